//! Statistics of connections: by call, and as events.
//!
//! Without calls and subscribers nothing is collected. A call reads QUIC's own counters under the
//! connection's lock. Events report only the opening, the moving and the closing of connections.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{Stream, StreamExt, channel::mpsc};
use libp2p_identity::PeerId;

use super::{
    connection_stats::{ConnectionStats, StatsEvent},
    live::{self, ConnectionTable},
};
use crate::carrier::ConnectionNumber;

/// Handle to the statistics of a transport, usable from anywhere: clone it before the transport
/// goes into a swarm.
#[derive(Debug, Clone)]
pub struct Stats(Arc<ConnectionTable>);

impl Stats {
    pub(super) fn new(registry: Arc<ConnectionTable>) -> Self {
        Self(registry)
    }

    /// Returns the number of moves of clients, or claims of a move, that were refused. Nothing more
    /// was sent to the new address, because the client had moved too often or too many clients had
    /// moved there. See `docs/protocol.md` §8.
    pub fn moves_refused(&self) -> u64 {
        self.0.moves().refused()
    }

    /// Every connection that the swarm holds, oldest first.
    pub fn connections(&self) -> Vec<ConnectionStats> {
        self.0.live().iter().map(|live| live.stats()).collect()
    }

    /// The connections with `peer`, oldest first.
    pub fn of_peer(&self, peer: &PeerId) -> Vec<ConnectionStats> {
        self.0.live().iter().filter(|live| live.peer() == *peer).map(|live| live.stats()).collect()
    }

    /// Returns the statistics of one connection; `None` once it is gone.
    pub fn connection(&self, connection: ConnectionNumber) -> Option<ConnectionStats> {
        self.0.get(connection).map(|live| live.stats())
    }

    /// Returns a stream of the events from now on. A slow reader misses some; see
    /// [`StatsEvents::missed`].
    pub fn events(&self) -> Option<StatsEvents> {
        let (sender, receiver) = mpsc::channel(Self::BACKLOG);
        let missed = self.0.subscribe(sender)?;
        Some(StatsEvents { receiver, missed })
    }

    /// Event streams at once.
    pub const MAX_SUBSCRIBERS: usize = live::MAX_SUBSCRIBERS;
    /// Events that wait for a slow reader of a stream.
    pub const BACKLOG: usize = 256;
}

/// A stream of [`StatsEvent`]s. It ends with the transport and its last connection.
#[derive(Debug)]
pub struct StatsEvents {
    receiver: mpsc::Receiver<StatsEvent>,
    missed: Arc<std::sync::atomic::AtomicU64>,
}

impl StatsEvents {
    /// Events that this stream lost because it was not read in time.
    pub fn missed(&self) -> u64 {
        self.missed.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Stream for StatsEvents {
    type Item = StatsEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<StatsEvent>> {
        self.receiver.poll_next_unpin(cx)
    }
}
