//! Reports of the endpoint.

use std::{fmt, net::SocketAddr, time::Duration};

use libp2p_identity::PeerId;

use crate::{
    Path, SocketId,
    candidate::Candidate,
    nat::{MappingBehaviour, Report, strategy::NatKind},
    wire::frame::{CoordinatorAddress, RejectReason},
};

/// The phases of a session. A retry goes from `Punching` or `Validation` back to `Coordination`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Looking for a coordinator that is connected.
    Discovery,
    /// `PUNCH_ME_NOW` is on its way.
    Coordination,
    /// Both sides' candidates are known, no probe has been sent yet.
    Synchronization,
    /// Probes are being sent, none has been answered.
    Punching,
    /// A path works in at least one direction, the QUIC handshake runs over it.
    Validation,
    /// The QUIC connection is established.
    Connected,
    /// The session ended without a connection.
    Failed,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Discovery => "discovery",
            Phase::Coordination => "coordination",
            Phase::Synchronization => "synchronization",
            Phase::Punching => "punching",
            Phase::Validation => "validation",
            Phase::Connected => "connected",
            Phase::Failed => "failed",
        })
    }
}

/// Times that the phases of a session took, over all of its attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PhaseTimes {
    /// Time in [`Phase::Discovery`].
    pub discovery: Duration,
    /// Time in [`Phase::Coordination`], with the delays between attempts.
    pub coordination: Duration,
    /// Time in [`Phase::Synchronization`] and [`Phase::Punching`].
    pub punching: Duration,
    /// Time in [`Phase::Validation`]: the rest of the QUIC handshake.
    pub validation: Duration,
}

impl PhaseTimes {
    pub(crate) fn add(&mut self, phase: Phase, time: Duration) {
        match phase {
            Phase::Discovery => self.discovery += time,
            Phase::Coordination => self.coordination += time,
            Phase::Synchronization | Phase::Punching => self.punching += time,
            Phase::Validation => self.validation += time,
            Phase::Connected | Phase::Failed => {}
        }
    }
}

/// Kinds of the NATs of both peers of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct NatKinds {
    /// Kind of our NAT.
    pub local: NatKind,
    /// Kind of the peer's NAT, as the peer describes it.
    pub remote: NatKind,
}

/// Our role in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionRole {
    /// We asked for it; QUIC client.
    Initiator,
    /// The other peer asked for it; QUIC server.
    Responder,
}

/// Origin of the peer's address on a session's path, as seen from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PathKind {
    /// The peer has the address on an interface of its own: no NAT is in front of the peer, or both
    /// are in one network.
    Host,
    /// A gateway granted it to the peer.
    PortMapped,
    /// The coordinator, or another observer, sees the peer there: the holes in the NATs were
    /// punched.
    ServerReflexive,
    /// Source of an authentic probe that was no candidate before: the holes were punched, and the
    /// peer's NAT showed us another address than it shows others.
    PeerReflexive,
    /// Port from the sequence of a NAT on one side, which was sampled and predicted.
    Predicted,
    /// A birthday search hit upon it.
    Searched,
}

impl PathKind {
    /// Returns the name, such as `server-reflexive`.
    pub fn name(self) -> &'static str {
        match self {
            PathKind::Host => "host",
            PathKind::PortMapped => "port-mapped",
            PathKind::ServerReflexive => "server-reflexive",
            PathKind::PeerReflexive => "peer-reflexive",
            PathKind::Predicted => "predicted",
            PathKind::Searched => "searched",
        }
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reason for the failure of an attempt or a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum FailureReason {
    /// No coordinator is configured, or none could be reached in time.
    #[error("no coordinator is connected")]
    NoCoordinator,
    /// A coordinator did not answer in time.
    #[error("the coordinator did not answer in time")]
    CoordinationTimeout,
    /// The connection to the coordinator ended before it had answered.
    #[error("the connection to the coordinator ended before it answered")]
    CoordinatorLost,
    /// Every coordinator rejected the request. If one of the reasons makes another attempt useful,
    /// it is that reason.
    #[error("the coordinator refused: {0}")]
    Rejected(RejectReason),
    /// The coordinator's answer was not signed by the peer.
    #[error("the coordinator's answer is not signed by the peer")]
    Forged,
    /// Neither side has an address that the other may probe.
    #[error("neither side has an address that the other may probe")]
    NoCandidates,
    /// The QUIC handshake could not be started.
    #[error("the QUIC handshake could not be started in time")]
    SynchronizationTimeout,
    /// No probe was answered in time.
    #[error("no probe was answered: the NATs on the way let none through")]
    PunchingTimeout,
    /// Our report of our NAT to the peer turned out wrong, and plain probes met silence. The next
    /// attempt begins at once, with the right report.
    #[error("our NAT was measured only after the attempt had begun")]
    NatMeasured,
    /// Plain probes met silence, and both NATs give every destination another port that cannot be
    /// found: only a relay helps.
    #[error("both NATs give every destination another port: only a relay can help")]
    Hopeless,
    /// A path answered, but the QUIC handshake over it did not finish in time.
    #[error("the QUIC handshake did not finish in time")]
    ValidationTimeout,
    /// The QUIC handshake failed.
    #[error("the QUIC handshake failed")]
    Handshake,
    /// The requester no longer wants the session.
    #[error("cancelled")]
    Cancelled,
    /// A cap on sessions is reached.
    #[error("too many sessions")]
    TooManySessions,
    /// A peer cannot punch a way to itself.
    #[error("a peer cannot dial itself")]
    DialSelf,
}

/// Event of an [`Endpoint`](crate::endpoint::Endpoint).
///
/// Exhaustive on purpose, as [`Command`](crate::command::Command) is: a driver has to pass each of
/// them on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A session went from one phase to another.
    Phase {
        /// The other peer.
        peer: PeerId,
        /// Our part.
        role: SessionRole,
        /// The attempt, from 0.
        attempt: u32,
        /// The phase that ended; `None` for a new session.
        from: Option<Phase>,
        /// The phase that begins.
        to: Phase,
        /// Duration of the ended phase.
        after: Duration,
    },
    /// An attempt failed and another will follow. Of attempts that fail in a row because no
    /// coordinator could be asked for the peer, only the first is reported, and the first for each
    /// other reason.
    Retry {
        /// The other peer.
        peer: PeerId,
        /// The attempt that failed, from 0.
        attempt: u32,
        /// Reason of the failure.
        reason: FailureReason,
        /// Delay until the next attempt.
        delay: Duration,
    },
    /// The candidates of both sides are known and form a checklist.
    Candidates {
        /// The other peer.
        peer: PeerId,
        /// Ours.
        local: Vec<Candidate>,
        /// Theirs, those that we may probe.
        remote: Vec<Candidate>,
    },
    /// A path answered an authenticated probe.
    PathValidated {
        /// The other peer.
        peer: PeerId,
        /// The path.
        path: Path,
        /// Measured by the probe.
        rtt: Duration,
    },
    /// A path was chosen to carry the QUIC connection.
    PathSelected {
        /// The other peer.
        peer: PeerId,
        /// The path.
        path: Path,
    },
    /// Plain probes met silence, and a search for ports began.
    Search {
        /// The other peer.
        peer: PeerId,
        /// Sockets that are opened for it.
        sockets: usize,
    },
    /// A session ended in a QUIC connection. The swarm of either side may still deny it
    /// ([`Denied`](Event::Denied)).
    Connected {
        /// The other peer.
        peer: PeerId,
        /// Our part.
        role: SessionRole,
        /// The path that carries it.
        path: Path,
        /// Origin of the other end of that path.
        kind: PathKind,
        /// Since the session began.
        elapsed: Duration,
        /// Parts of that time.
        times: PhaseTimes,
        /// Kinds of the NATs of both.
        nats: NatKinds,
    },
    /// A session ended without a connection.
    Failed {
        /// The other peer.
        peer: PeerId,
        /// Our part.
        role: SessionRole,
        /// Reason of the last attempt's failure. A dial that is dropped while coordinators are
        /// asked again for the peer fails with the reason of those requests.
        reason: FailureReason,
        /// Since the session began.
        elapsed: Duration,
        /// Kinds of the NATs of both.
        nats: NatKinds,
    },
    /// The connection of a session was denied after [`Connected`](Event::Connected): the swarm of
    /// either side did not take it. The cause is a limit, a block list or another behaviour, or
    /// nothing waited for the connection any more.
    Denied {
        /// The other peer.
        peer: PeerId,
        /// Our part.
        role: SessionRole,
    },
    /// The peer of a connected session is heard through a coordinator, and no path to it works any
    /// more. The connection is closed, and the side that dialed dials again.
    PathLost {
        /// The other peer.
        peer: PeerId,
        /// Our part.
        role: SessionRole,
    },
    /// An observer reported the address of one of our sockets, for the first time or again.
    Observed {
        /// The observer.
        observer: PeerId,
        /// Our socket.
        socket: SocketId,
        /// The observed address.
        address: SocketAddr,
    },
    /// The findings on the NAT in front of one of our sockets have changed.
    Mapping {
        /// Our socket.
        socket: SocketId,
        /// RFC 4787 §4.1; `None` while not known.
        mapping: Option<MappingBehaviour>,
        /// The NAT keeps our port; `None` while not known.
        port_preserved: Option<bool>,
        /// The constant distance between the ports of consecutive mappings; `None` if there is
        /// none, or not known.
        allocation_step: Option<u16>,
    },
    /// The report on our NAT has changed: the whole report, with its evidence.
    Nat(Box<Report>),
    /// A coordinator accepted our registration.
    Registered {
        /// The coordinator.
        coordinator: PeerId,
        /// Time that the coordinator took to answer; `None` if the answer is to an earlier request.
        rtt: Option<Duration>,
    },
    /// A coordinator renewed our registration.
    RegistrationRenewed {
        /// The coordinator.
        coordinator: PeerId,
        /// Time that the coordinator took to answer.
        rtt: Duration,
    },
    /// A coordinator turned our registration down.
    RegistrationRejected {
        /// The coordinator.
        coordinator: PeerId,
        /// Reason.
        reason: RejectReason,
    },
    /// The state of our registrations as a whole has changed.
    Registration(RegistrationStatus),
    /// A connected peer named the coordinators with which it is registered. They replace those that
    /// it named before.
    PeerCoordinators {
        /// The peer.
        peer: PeerId,
        /// At least one.
        coordinators: Vec<CoordinatorAddress>,
    },
}

/// Share of the configured coordinators that know us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RegistrationStatus {
    /// A majority does.
    Majority {
        /// Coordinators that accepted us.
        registered: usize,
        /// Coordinators configured.
        configured: usize,
    },
    /// At least one knows us, but no majority: a warning.
    Partial {
        /// Coordinators that accepted us.
        registered: usize,
        /// Coordinators configured.
        configured: usize,
    },
    /// None does: an error, nobody behind a NAT can be reached.
    None {
        /// Coordinators configured.
        configured: usize,
    },
}
