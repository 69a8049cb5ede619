//! Facts that `punch doctor` observes, and how they are gathered from the reports of a node.

use std::time::Duration;

use libp2p_punch::event::{
    FailureReason, NatKinds, PathKind, Phase, RegistrationEvent, RejectReason, RelayEvent, RelayFailure,
    SessionEvent, SessionRole,
};
use libp2p_punch_node::{ConnectError, Diagnostic, Multiaddr, PeerId, multiaddr::Protocol};

use super::probe::Probe;

/// Facts about one coordinator, or another node through which this one enters the network.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Coordinator {
    /// Its address, as it was configured or as the ticket names it.
    pub(super) address: Multiaddr,
    /// Its PeerId, if it is known.
    pub(super) peer: Option<PeerId>,
    /// Result of the dials.
    pub(super) dial: Option<Result<(), ConnectError>>,
    /// Time from the start to that result.
    pub(super) after: Option<Duration>,
    /// True if it coordinates for others; `None` if it has not described itself.
    pub(super) coordinates: Option<bool>,
    /// Result of the registration, with the time that it took to answer.
    pub(super) registration: Option<Result<Option<Duration>, RejectReason>>,
    /// Result of the probes, which a coordinator gets that did not answer.
    pub(super) probe: Option<Probe>,
}

impl Coordinator {
    pub(super) fn new(address: Multiaddr) -> Self {
        let (_, peer) = split(&address);
        Self { address, peer, dial: None, after: None, coordinates: None, registration: None, probe: None }
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(self.dial, Some(Ok(())))
    }

    /// Returns true if the coordinator did not answer a dial.
    pub(super) fn is_silent(&self) -> bool {
        matches!(&self.dial, None | Some(Err(ConnectError::Transport { .. })))
    }

    /// Returns true if nothing more is to be waited for.
    pub(super) fn is_settled(&self) -> bool {
        match &self.dial {
            None => false,
            Some(Err(_)) => true,
            Some(Ok(())) => self.registration.is_some() || self.coordinates == Some(false),
        }
    }

    /// Returns true for an address of this coordinator, with or without its PeerId.
    fn has(&self, address: &Multiaddr) -> bool {
        let (ours, peer) = split(&self.address);
        let (theirs, other) = split(address);
        ours == theirs && (peer == other || peer.is_none() || other.is_none())
    }
}

/// Returns an address without its PeerId, and the PeerId.
fn split(address: &Multiaddr) -> (Multiaddr, Option<PeerId>) {
    let peer = address.iter().find_map(|part| match part {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    });
    (address.iter().take_while(|part| !matches!(part, Protocol::P2p(_))).collect(), peer)
}

/// Numbers of candidates of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidates {
    pub(super) local: usize,
    /// Those that may be probed.
    pub(super) remote: usize,
}

/// Facts about the traversal session with the peer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Session {
    /// Time until a coordinator passed the request on and answered.
    pub(super) coordination: Option<Duration>,
    pub(super) candidates: Option<Candidates>,
    /// Sockets of a search for ports.
    pub(super) search: Option<usize>,
    /// Round-trip time of the first probe that was answered.
    pub(super) answered: Option<Duration>,
    /// Time of probing.
    pub(super) probing: Option<Duration>,
    /// Kind of the path, and time of the handshake.
    pub(super) connected: Option<(PathKind, Duration)>,
    /// Reasons of the attempts that failed, in their order, the last one that of the session.
    pub(super) failures: Vec<FailureReason>,
    /// Kinds of the NATs of both peers.
    pub(super) nats: Option<NatKinds>,
}

/// Result of the connection to the peer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Outcome {
    /// It was not tried: it could not succeed.
    #[default]
    NotTried,
    /// There is a direct connection.
    Direct { address: Option<Multiaddr>, after: Duration },
    /// There is a connection over a relay, and none without.
    Relayed { after: Duration },
    /// There is no connection.
    Failed(ConnectError),
}

/// All that was observed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    /// The peer that is looked for.
    pub(super) peer: PeerId,
    /// Addresses of the interfaces on which this node listens, without loopback.
    pub(super) interfaces: Vec<Multiaddr>,
    /// Coordinators that were configured, or that the ticket of the peer names.
    pub(super) coordinators: Vec<Coordinator>,
    /// Addresses of the peer that were given.
    pub(super) addresses: Vec<Multiaddr>,
    /// Failures of addresses of the peer.
    pub(super) dial_failures: Vec<ConnectError>,
    pub(super) session: Session,
    /// Result of the relays; the failure is that of all of them.
    pub(super) relay: Option<Result<Option<PeerId>, RelayFailure>>,
    pub(super) outcome: Outcome,
    /// Facts of the node that were lost.
    pub(super) missed: u64,
}

impl Facts {
    pub(super) fn new(peer: PeerId, coordinators: Vec<Multiaddr>, addresses: Vec<Multiaddr>) -> Self {
        Self {
            peer,
            interfaces: Vec::new(),
            coordinators: coordinators.into_iter().map(Coordinator::new).collect(),
            addresses,
            dial_failures: Vec::new(),
            session: Session::default(),
            relay: None,
            outcome: Outcome::default(),
            missed: 0,
        }
    }

    /// Takes note of a fact of the node, `elapsed` after the start.
    pub(super) fn record(&mut self, diagnostic: &Diagnostic, elapsed: Duration) {
        match diagnostic {
            Diagnostic::Session(event) => self.on_session(event),
            Diagnostic::Registration(event) => self.on_registration(event),
            Diagnostic::Relay(RelayEvent::Connected { peer, relay, .. }) if *peer == self.peer => {
                self.relay = Some(Ok(*relay));
            }
            Diagnostic::Relay(RelayEvent::Failed { peer, reason, .. }) if *peer == self.peer => {
                self.relay.get_or_insert(Err(*reason));
            }
            Diagnostic::Connected { peer, address, .. } => self.on_connected(*peer, address, elapsed),
            Diagnostic::Identified { peer, coordinates, .. } => {
                for coordinator in self.coordinators_of(*peer) {
                    coordinator.coordinates = Some(*coordinates);
                }
            }
            Diagnostic::DialFailed { peer, failures, .. } => self.on_dial_failed(*peer, failures, elapsed),
            Diagnostic::Missed { count, .. } => self.missed += count,
            _ => {}
        }
    }

    fn coordinators_of(&mut self, peer: PeerId) -> impl Iterator<Item = &mut Coordinator> {
        self.coordinators.iter_mut().filter(move |coordinator| coordinator.peer == Some(peer))
    }

    fn on_connected(&mut self, peer: PeerId, address: &Multiaddr, elapsed: Duration) {
        for coordinator in &mut self.coordinators {
            if coordinator.peer == Some(peer) || coordinator.peer.is_none() && coordinator.has(address) {
                coordinator.peer = Some(peer);
                if !coordinator.is_connected() {
                    (coordinator.dial, coordinator.after) = (Some(Ok(())), Some(elapsed));
                }
            }
        }
    }

    fn on_dial_failed(&mut self, peer: Option<PeerId>, failures: &[ConnectError], elapsed: Duration) {
        for failure in failures {
            let address = match failure {
                ConnectError::WrongPeer { address, .. } | ConnectError::Transport { address, .. } => address,
                _ => continue,
            };
            if self.addresses.contains(address)
                && peer == Some(self.peer)
                && !self.dial_failures.contains(failure)
            {
                self.dial_failures.push(failure.clone());
            }
            let coordinators = self.coordinators.iter_mut().filter(|it| it.has(address));
            for coordinator in coordinators.filter(|it| !it.is_connected()) {
                (coordinator.dial, coordinator.after) = (Some(Err(failure.clone())), Some(elapsed));
            }
        }
    }

    fn on_registration(&mut self, event: &RegistrationEvent) {
        let (peer, result) = match event {
            RegistrationEvent::Accepted { coordinator, rtt, .. } => (*coordinator, Ok(*rtt)),
            RegistrationEvent::Rejected { coordinator, reason, .. } => (*coordinator, Err(*reason)),
            _ => return,
        };
        for coordinator in self.coordinators_of(peer) {
            coordinator.registration = Some(result);
        }
    }

    fn on_session(&mut self, event: &SessionEvent) {
        let session = &mut self.session;
        match event {
            SessionEvent::Phase { peer, role: SessionRole::Initiator, from, to, after, .. }
                if *peer == self.peer =>
            {
                match (from, to) {
                    (Some(Phase::Coordination), Phase::Synchronization | Phase::Punching) => {
                        session.coordination = Some(*after);
                    }
                    (Some(Phase::Punching), Phase::Validation) => session.probing = Some(*after),
                    _ => {}
                }
            }
            SessionEvent::Candidates { peer, local, remote, .. } if *peer == self.peer => {
                session.candidates = Some(Candidates { local: local.len(), remote: remote.len() });
            }
            SessionEvent::Search { peer, sockets, .. } if *peer == self.peer => {
                session.search = Some(*sockets);
            }
            SessionEvent::PathValidated { peer, rtt, .. } if *peer == self.peer => {
                session.answered.get_or_insert(*rtt);
            }
            SessionEvent::Retry { peer, reason, .. } if *peer == self.peer => {
                session.failures.push(*reason);
            }
            SessionEvent::Failed { peer, role: SessionRole::Initiator, reason, nats, .. }
                if *peer == self.peer =>
            {
                session.failures.push(*reason);
                session.nats = Some(*nats);
            }
            SessionEvent::Connected { peer, kind, times, nats, .. } if *peer == self.peer => {
                session.connected = Some((*kind, times.validation));
                session.nats = Some(*nats);
            }
            _ => {}
        }
    }
}
