//! The part of the configuration that the protocol needs.

use std::time::Duration;

use crate::{
    gater::SharedGater,
    rate_limit::{PAIR_RATE, Rate},
};

/// Part that a peer plays for others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Coordinates for others once its external address is confirmed, and not before. Behind a NAT,
    /// an address that was observed also needs a connection from somebody to whom this host had not
    /// sent.
    #[default]
    Auto,
    /// Never coordinates.
    Client,
    /// Coordinates for all peers that ask.
    Server,
    /// As [`Role::Server`], and the first contact of others: it never falls back to a relay itself.
    Bootstrap,
}

/// Time-outs of the phases of a session. An attempt fails when one passes.
///
/// The time-out of the coordination phase is [`Config::coordination_timeout`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PhaseTimeouts {
    /// Wait for a connected coordinator, if no dial waits for the session; otherwise
    /// [`Config::lookup_timeout`] holds. Default 5 s.
    pub discovery: Duration,
    /// From the candidates of both sides being known to the first probe. Default 2 s.
    pub synchronization: Duration,
    /// Probing until a path answers. Default 5 s.
    pub punching: Duration,
    /// From the first answer to a finished QUIC handshake. Default 5 s.
    pub validation: Duration,
}

impl Default for PhaseTimeouts {
    fn default() -> Self {
        Self {
            discovery: Duration::from_secs(5),
            synchronization: Duration::from_secs(2),
            punching: Duration::from_secs(5),
            validation: Duration::from_secs(5),
        }
    }
}

/// Interface addresses that a peer announces to coordinators and peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostCandidates {
    /// All interface addresses: peers in one network connect without a NAT between them.
    #[default]
    Announced,
    /// No interface addresses. Coordinators and peers get only the addresses at which coordinators
    /// see this one. Other protocols may still disclose addresses, as identify does with the listen
    /// addresses. Peers in one network then depend on a NAT that sends packets back (hairpinning,
    /// RFC 4787 §6), and on a relay where it does not.
    Hidden,
}

/// The peers to which coordinators disclose the candidates and the NAT report of this peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Disclosure {
    /// Every peer that asks for a connection, at once.
    #[default]
    ToAll,
    /// A peer whose request this peer has accepted: [`Gater::allow_connection`] and the limits on
    /// sessions decide. The coordinator answers then. A peer behind a NAT gets its connection later
    /// because of that, by the round trip from the coordinator to this peer at most.
    ///
    /// [`Gater::allow_connection`]: crate::gater::Gater::allow_connection
    ToAccepted,
}

/// Limits on the service of this peer for others as a coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoordinatorLimits {
    /// Peers that are registered at once, at no more than 2 KiB each. When all places are taken,
    /// networks share them. Default 10,000, 1..=1,000,000.
    pub max_registrations: usize,
    /// `REGISTER`s of one peer: candidates change in bursts when a laptop changes networks, and
    /// rarely otherwise. Default 10 at once and 1 a second, 1..=1,000 at once and one in 1 ms..=10
    /// s.
    pub register_rate: Rate,
    /// Requests of one peer, for all others: a DHT walk dials a hundred peers at once. Registered
    /// peers learn of this rate, and keep within it. Default 200 at once and 100 a second,
    /// 20..=1,000 at once and one in 1 ms..=100 ms.
    pub request_rate: Rate,
    /// Requests of one peer for one other. Default 10 at once and 2 a second, 1..=1,000 at once and
    /// one in 1 ms..=10 s.
    pub pair_rate: Rate,
}

impl Default for CoordinatorLimits {
    fn default() -> Self {
        Self {
            max_registrations: 10_000,
            register_rate: Rate { interval: Duration::from_secs(1), burst: 10 },
            request_rate: Rate { interval: Duration::from_millis(10), burst: 200 },
            pair_rate: PAIR_RATE,
        }
    }
}

/// Configuration of an [`Endpoint`](crate::endpoint::Endpoint). The caller checks the bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The part that this peer plays for others. Default [`Role::Auto`].
    pub role: Role,
    /// Candidates kept and announced, ours and a remote's alike. Default 8, 1..=16. A session
    /// probes at most 56 pairs of a socket of ours and a candidate of the peer, the best candidates
    /// first, and up to eight more that it learns from probes.
    pub max_candidates: usize,
    /// Pairs of one session whose opening burst runs at the same time. Default 3, 1..=16 and not
    /// above [`max_candidates`](Self::max_candidates).
    pub max_concurrent_attempts: usize,
    /// Attempts of one session before it fails. Default 3, 1..=16.
    pub max_attempts: u32,
    /// Time-out for the answer of a coordinator. Default 10 s, 100 ms..=300 s.
    pub coordination_timeout: Duration,
    /// Time for which a dial waits for a coordinator that is connected and knows the peer: until
    /// there is one, the coordinators are asked again, up to once a second. The swarm's own
    /// time-out for dials, 10 s by default, usually ends the dial sooner. Default 60 s, 100
    /// ms..=300 s.
    pub lookup_timeout: Duration,
    /// Time-outs of the other phases, each 100 ms..=300 s.
    pub phase_timeouts: PhaseTimeouts,
    /// Predict the port of a NAT that allocates sequentially. Default on.
    pub prediction: bool,
    /// Search for ports when one side is behind a NAT that gives every destination a random port:
    /// one side opens 256 sockets for some seconds, the other sends up to 1,500 small datagrams.
    /// Only after plain probing was silent. Default on; if it is off on either side, a relay takes
    /// such a pair.
    pub birthday_search: bool,
    /// Interface addresses in registrations and requests: those of local networks, VPNs and
    /// containers. Any peer that knows a PeerId learns that peer's candidates from its
    /// coordinators. Default [`HostCandidates::Announced`].
    pub host_candidates: HostCandidates,
    /// Peers that learn the candidates of this one from its coordinators. Default
    /// [`Disclosure::ToAll`].
    pub disclosure: Disclosure,
    /// Limits of this peer as a coordinator.
    pub coordinator_limits: CoordinatorLimits,
    /// Decides who is served, and which addresses are announced. By default everybody is, and all
    /// are.
    pub gater: SharedGater,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            role: Role::Auto,
            max_candidates: 8,
            max_concurrent_attempts: 3,
            max_attempts: 3,
            coordination_timeout: Duration::from_secs(10),
            lookup_timeout: Duration::from_secs(60),
            phase_timeouts: PhaseTimeouts::default(),
            prediction: true,
            birthday_search: true,
            host_candidates: HostCandidates::Announced,
            disclosure: Disclosure::ToAll,
            coordinator_limits: CoordinatorLimits::default(),
            gater: SharedGater::default(),
        }
    }
}
