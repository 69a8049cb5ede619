//! Events of the behaviour, grouped by subject.

use std::{net::SocketAddr, time::Duration};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_punch_proto::{
    candidate::Candidate,
    event::{FailureReason, NatKinds, PathKind, Phase, PhaseTimes, RegistrationStatus, SessionRole},
    nat::{MappingBehaviour, Report},
    wire::frame::RejectReason,
};

/// Event of a [`Behaviour`](super::Behaviour).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Progress and outcome of a traversal session.
    Session(SessionEvent),
    /// Observations and findings about the NAT in front of this peer.
    Nat(NatEvent),
    /// Coordinators, and registrations at them.
    Registration(RegistrationEvent),
    /// Relayed connections, their upgrades, and reservations at relays.
    Relay(RelayEvent),
}

/// UDP path to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Path {
    /// Address to which the local socket is bound, possibly a wildcard; `None` if the socket was
    /// closed meanwhile.
    pub local: Option<SocketAddr>,
    /// Address of the peer, as the local socket sees it.
    pub remote: SocketAddr,
}

/// Event of a traversal session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// The session went from one phase to another.
    #[non_exhaustive]
    Phase {
        /// The other peer.
        peer: PeerId,
        /// Role of this peer.
        role: SessionRole,
        /// Number of the attempt, from 0.
        attempt: u32,
        /// The phase that ended; `None` for a new session.
        from: Option<Phase>,
        /// The phase that begins.
        to: Phase,
        /// Duration of the phase that ended.
        after: Duration,
    },
    /// An attempt failed, and another one follows. Of attempts that fail in a row because the peer
    /// could not be asked for, only the first is reported, and the first for each other reason.
    #[non_exhaustive]
    Retry {
        /// The other peer.
        peer: PeerId,
        /// Number of the attempt that failed, from 0.
        attempt: u32,
        /// Reason of the failure.
        reason: FailureReason,
        /// Time until the next attempt begins.
        delay: Duration,
    },
    /// The candidates of both sides are known and form a checklist.
    #[non_exhaustive]
    Candidates {
        /// The other peer.
        peer: PeerId,
        /// Candidates of this peer.
        local: Vec<Candidate>,
        /// Candidates of the other peer that may be probed.
        remote: Vec<Candidate>,
    },
    /// A path answered an authenticated probe.
    #[non_exhaustive]
    PathValidated {
        /// The other peer.
        peer: PeerId,
        /// The path.
        path: Path,
        /// Round-trip time of the probe.
        rtt: Duration,
    },
    /// A path was selected to carry the QUIC connection.
    #[non_exhaustive]
    PathSelected {
        /// The other peer.
        peer: PeerId,
        /// The path.
        path: Path,
    },
    /// Plain probes met silence, and a search for ports began.
    #[non_exhaustive]
    Search {
        /// The other peer.
        peer: PeerId,
        /// Sockets that are opened for the search.
        sockets: usize,
    },
    /// The session ended in a QUIC connection. The swarm of either side may still deny it
    /// ([`Denied`](Self::Denied)).
    #[non_exhaustive]
    Connected {
        /// The other peer.
        peer: PeerId,
        /// Role of this peer.
        role: SessionRole,
        /// The path that carries the connection.
        path: Path,
        /// Source of the remote address of that path.
        kind: PathKind,
        /// Time since the session began.
        elapsed: Duration,
        /// Parts of that time.
        times: PhaseTimes,
        /// Kinds of the NATs of both peers.
        nats: NatKinds,
    },
    /// The session ended without a connection.
    #[non_exhaustive]
    Failed {
        /// The other peer.
        peer: PeerId,
        /// Role of this peer.
        role: SessionRole,
        /// Reason of the last failed attempt. A dial that is dropped while coordinators are asked
        /// again for the peer fails for the reason for which they are.
        reason: FailureReason,
        /// Time since the session began.
        elapsed: Duration,
        /// Kinds of the NATs of both peers.
        nats: NatKinds,
    },
    /// The connection of the session was denied after [`Connected`](Self::Connected): the swarm of
    /// either side did not take it, because of a limit, a block list or another behaviour, or
    /// because nothing waited for it any more.
    #[non_exhaustive]
    Denied {
        /// The other peer.
        peer: PeerId,
        /// Role of this peer.
        role: SessionRole,
    },
    /// The peer of a connected session is heard through a coordinator, and no path to it works any
    /// more. The connection is closed, and the side that dialed dials again.
    #[non_exhaustive]
    PathLost {
        /// The other peer.
        peer: PeerId,
        /// Role of this peer.
        role: SessionRole,
    },
}

/// Event about the NAT in front of this peer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NatEvent {
    /// An observer reported the address at which it sees a socket: the first one, or another one
    /// than before.
    #[non_exhaustive]
    Observed {
        /// The peer that reports the address.
        observer: PeerId,
        /// Address to which the socket is bound, possibly a wildcard; `None` if the socket was
        /// closed meanwhile.
        local: Option<SocketAddr>,
        /// The address that the observer sees.
        address: SocketAddr,
    },
    /// The findings about the NAT in front of one socket changed.
    #[non_exhaustive]
    Mapping {
        /// Address to which the socket is bound, possibly a wildcard; `None` if the socket was
        /// closed meanwhile.
        local: Option<SocketAddr>,
        /// Mapping behaviour (RFC 4787 §4.1); `None` while not known.
        mapping: Option<MappingBehaviour>,
        /// True if the NAT keeps the port of the socket; `None` while not known.
        port_preserved: Option<bool>,
        /// Constant distance between the ports of consecutive mappings; `None` if there is none, or
        /// not known.
        allocation_step: Option<u16>,
    },
    /// The findings about the NAT changed. The report has all of them, with their evidence.
    Report(Box<Report>),
}

/// Event about coordinators, and registrations at them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistrationEvent {
    /// A connected peer coordinates for others, and this peer registers with it.
    #[non_exhaustive]
    CoordinatorFound {
        /// The coordinator.
        coordinator: PeerId,
    },
    /// This peer no longer registers with a coordinator that it had found: the coordinator failed
    /// or stopped, or another one is nearer.
    #[non_exhaustive]
    CoordinatorDropped {
        /// The coordinator.
        coordinator: PeerId,
    },
    /// A coordinator accepted the registration of this peer.
    #[non_exhaustive]
    Accepted {
        /// The coordinator.
        coordinator: PeerId,
        /// Time that the coordinator took to answer; `None` if the answer is to an earlier request.
        rtt: Option<Duration>,
    },
    /// A coordinator renewed the registration of this peer.
    #[non_exhaustive]
    Renewed {
        /// The coordinator.
        coordinator: PeerId,
        /// Time that the coordinator took to answer.
        rtt: Duration,
    },
    /// A coordinator rejected the registration of this peer.
    #[non_exhaustive]
    Rejected {
        /// The coordinator.
        coordinator: PeerId,
        /// Reason of the rejection.
        reason: RejectReason,
    },
    /// A connected peer named the coordinators with which it is registered. Later dials of the peer
    /// ask them, see [`Behaviour::peer_coordinators`](super::Behaviour::peer_coordinators).
    #[non_exhaustive]
    PeerCoordinators {
        /// The peer.
        peer: PeerId,
        /// Addresses of its coordinators. Each ends in `/p2p/PEER_ID`.
        coordinators: Vec<Multiaddr>,
    },
    /// The number of coordinators that know this peer changed.
    Status(RegistrationStatus),
}

/// Event about relayed connections, their upgrades, and reservations at relays.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RelayEvent {
    /// A peer is connected over a relay, and not directly. Traversal is tried again and again.
    #[non_exhaustive]
    Connected {
        /// The other peer.
        peer: PeerId,
        /// The relay, if the address of the connection names it.
        relay: Option<PeerId>,
    },
    /// Traversal failed, and no relay could help: the dial fails, too.
    #[non_exhaustive]
    Failed {
        /// The other peer.
        peer: PeerId,
        /// Reason of the failure.
        reason: RelayFailure,
    },
    /// A peer that was connected over a relay is connected directly, and neither side's swarm has
    /// denied that. The relayed connection is closed once its streams have had time to end.
    #[non_exhaustive]
    Upgraded {
        /// The other peer.
        peer: PeerId,
    },
    /// A relay accepted a reservation: peers reach this peer over it.
    #[non_exhaustive]
    Reserved {
        /// The relay.
        relay: PeerId,
    },
    /// A reservation ended, because its relay is gone or because it is not needed any more.
    #[non_exhaustive]
    Unreserved {
        /// The relay.
        relay: PeerId,
    },
}

/// Reason for which a peer could not be reached over a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum RelayFailure {
    /// No relay is connected that could be asked.
    #[error("no relay is known")]
    NoRelay,
    /// None of the relays that were asked reaches the peer.
    #[error("no relay reaches the peer")]
    Unreachable,
}
