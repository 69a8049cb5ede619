//! Contact with the peer of a connected session.

use crate::rate_limit::TokenBucket;

/// Contact with the peer of a connected session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Contact {
    #[default]
    Kept,
    /// The peer pauses and was challenged; until the deadline.
    Asked,
    /// The peer has told its address through a coordinator. The known path is challenged, until the
    /// deadline.
    Told,
    /// The peer has told its address, and the known path does not work; until the deadline.
    Missing,
    /// The connection is being closed.
    Lost,
}

/// Moves of both sides that were told through coordinators.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    /// Bounds the `PUNCH_MOVED` of the peer that are followed.
    pub(super) heard_rate: TokenBucket,
    /// Sequence number of the last `PUNCH_MOVED` to the peer.
    pub(super) told: u32,
    /// Highest sequence number of a `PUNCH_MOVED` of the peer.
    pub(super) heard: u32,
}
