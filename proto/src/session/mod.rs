//! Sessions with peers.
//!
//! A [`Session`] owns its state and changes it in its own methods. An input is a method
//! `handle_…(&mut self, cx, …)` with a [`Context`](context::Context): the time, the knowledge about
//! this host and its NAT, and the budgets that all sessions share. The method returns a
//! [`Transition`].
//!
//! A session goes through [`Phase`]s. A procedure that ends the attempt under way returns the
//! reason as an error, a [`FailureReason`]; `Session::fail` then decides if another attempt follows
//! after a back-off, or if the session is done. [`Table`](table::Table) holds all sessions, and
//! [`Sessions`](sessions::Sessions) routes inputs to them.

pub(crate) mod checklist;
pub(crate) mod context;
pub(crate) mod key;
pub(crate) mod pair;
pub(crate) mod port_search;
pub(crate) mod renewal;
pub(crate) mod request_limiter;
mod requests;
pub(crate) mod sessions;
pub(crate) mod table;

mod contact;
mod failure;
mod initiator;
mod lifecycle;
mod moving;
mod probing;
mod responder;
mod searching;

pub(crate) use self::{
    contact::{Contact, Moves},
    initiator::InitiatorState,
    key::Key,
    searching::SessionSearch,
};

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::{
    Path, SessionId, VirtualConnectionId,
    candidate::{Candidate, CandidateKind},
    event::{FailureReason, PathKind, Phase, SessionRole},
    nat::strategy::NatProfile,
    network_prefix::NetworkPrefix,
    rate_limit::TokenBucket,
    session::{
        checklist::{Checklist, Known},
        pair::Origin,
    },
    wire::keys::{ProbeKeys, TAG_LEN},
};

/// A connection of this age was not denied by the other side's swarm, which takes a round trip.
pub const PROBATION: Duration = Duration::from_secs(2);

/// Result of an input to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Transition {
    /// The session goes on, perhaps with another attempt after a back-off.
    Stay,
    /// The session has ended.
    Done(Outcome),
}

/// End of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The connection has ended.
    Closed,
    /// No connection was made.
    Failed(FailureReason),
}

/// Result of a procedure of an attempt. An error ends the attempt.
pub(crate) type Progress = Result<(), FailureReason>;

/// Repetition of the requests for a peer that coordinators do not know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lookup {
    pub(crate) until: Instant,
    /// Requests in a row that failed, and the reason of the last failure.
    pub(crate) misses: u32,
    pub(crate) missed: Option<FailureReason>,
}

/// State that one attempt of a session leaves to the next.
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    /// The shortest round-trip time that was measured.
    pub(crate) rtt: Option<Duration>,
    /// NAT reports of both sides in the last round, ours first.
    pub(crate) traits: Option<(NatProfile, NatProfile)>,
    /// The peer's probe key in the last attempt that a coordinator answered and in which nothing
    /// was heard of the peer.
    pub(crate) unheard_key: Option<[u8; 32]>,
    /// Time after which the coordinators that refused the last request take another; zero if it is
    /// not known.
    pub(crate) retry_after: Duration,
    /// The coordinator at which the first request of the attempt counts already, until the request
    /// is sent.
    pub(crate) turn: Option<PeerId>,
}

/// Addresses of the peer that an idle session remembers.
pub(crate) const MAX_KEPT: usize = 3;

/// An address of the peer that may be probed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RemoteCandidate {
    pub(crate) remote: SocketAddr,
    /// RFC 8445 §5.1.2.
    pub(crate) priority: u32,
    pub(crate) origin: Origin,
    pub(crate) kind: PathKind,
}

impl RemoteCandidate {
    /// Candidate that the peer itself announced.
    pub(crate) fn announced(candidate: &Candidate) -> Self {
        let kind = match candidate.kind {
            CandidateKind::Host => PathKind::Host,
            CandidateKind::PortMapped => PathKind::PortMapped,
            CandidateKind::PeerReflexive => PathKind::PeerReflexive,
            CandidateKind::Predicted => PathKind::Predicted,
            CandidateKind::ServerReflexive | CandidateKind::Relayed => PathKind::ServerReflexive,
        };
        let Candidate { address: remote, priority, .. } = *candidate;
        Self { remote, priority, origin: Origin::Announced, kind }
    }
}

/// An attempt whose outcome is not counted yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptState {
    /// There is none: the session rests, or its outcome is counted.
    None,
    /// The attempt has not led to a connection yet.
    InFlight,
    /// The attempt has led to a connection, which a swarm may deny.
    Probation,
}

/// A session with a peer. See the [module](self).
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) key: Key,
    pub(crate) peer: PeerId,
    /// Name on the wire, which the initiator chose.
    pub(crate) id: SessionId,
    pub(crate) role: SessionRole,
    /// The initiator's number of this attempt, from 0.
    pub(crate) attempt: u32,
    pub(crate) course: Course,
    /// The virtual connection of the attempt.
    pub(crate) flow: Option<VirtualConnectionId>,
    /// State of an initiator until it has an answer.
    pub(crate) opening: Option<Box<InitiatorState>>,
    pub(crate) paths: Paths,
    pub(crate) moves: Moves,
    pub(crate) search: SessionSearch,
    /// The network of an initiator that asked for this session, if it is known.
    asked_from: Option<Box<NetworkPrefix>>,
    keys: Option<Box<ProbeKeys>>,
}

/// Phases and attempts of a session.
#[derive(Debug)]
pub(crate) struct Course {
    pub(crate) phase: Phase,
    pub(crate) phase_since: Instant,
    pub(crate) started: Instant,
    pub(crate) attempt_state: AttemptState,
    /// Contact with the peer in the phase Connected.
    pub(crate) contact: Contact,
    /// End of the phase, or of the back-off between two attempts.
    pub(crate) deadline: Option<Instant>,
    /// Number of failed attempts of this peer.
    pub(crate) failures: u32,
    /// This side waits for the connection.
    pub(crate) wanted: bool,
    /// Repetition of requests to coordinators, if a dial waits.
    pub(crate) lookup: Option<Box<Lookup>>,
    /// Findings of earlier attempts. A connected session keeps them only if the two sides need a
    /// search to meet again.
    pub(crate) earlier: Option<Box<Earlier>>,
}

/// Remote addresses of a session, and the paths to them.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    pub(crate) targets: Vec<RemoteCandidate>,
    pub(crate) checklist: Option<Box<Checklist>>,
    /// Takes the place of the checklist while a connected session has nothing to probe.
    pub(crate) known: Option<Box<Known>>,
    /// Bounds the answers to the peer's challenges.
    answers: TokenBucket,
}

/// Attributes by which a session is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) virtual_connection: Option<VirtualConnectionId>,
    pub(crate) tag: Option<[u8; TAG_LEN]>,
    /// The name, if this peer chose it.
    pub(crate) id: Option<SessionId>,
    /// The network of the initiator, if an attempt as a responder is under way.
    pub(crate) responding: Option<Option<NetworkPrefix>>,
    /// The time of the next time-out.
    pub(crate) deadline: Option<Instant>,
}

impl Paths {
    /// Returns the path that carries the connection.
    pub(crate) fn selected(&self) -> Option<Path> {
        let selected = self.checklist.as_ref().and_then(|checklist| checklist.selected);
        selected.or(self.known.as_ref().map(|known| known.path))
    }

    /// Returns true if the path that carries the connection has answered its last challenges.
    pub(crate) fn has_path(&self) -> bool {
        match &self.checklist {
            Some(checklist) => checklist.selected.is_some() && !checklist.is_in_doubt(),
            None => self.known.is_some(),
        }
    }

    /// Returns the time that the peer has for a procedure of this number of round trips.
    pub(crate) fn time_for(&self, least: Duration, round_trips: u32) -> Duration {
        let measured = self.checklist.as_ref().and_then(|checklist| checklist.best_rtt());
        least.max(measured.unwrap_or_default() * round_trips)
    }

    /// Returns true if there are paths to probe.
    pub(crate) fn is_probing(&self) -> bool {
        self.checklist.is_some() || self.known.is_some()
    }
}

impl Course {
    fn new(role: SessionRole, phase: Phase, now: Instant) -> Self {
        Self {
            phase,
            phase_since: now,
            started: now,
            attempt_state: AttemptState::None,
            contact: Contact::Kept,
            deadline: None,
            failures: 0,
            wanted: role == SessionRole::Initiator,
            lookup: None,
            earlier: None,
        }
    }

    /// Returns true if an attempt has not led to a connection yet, and has not failed.
    pub(crate) fn is_in_flight(&self) -> bool {
        self.attempt_state == AttemptState::InFlight
    }

    /// Returns true if nothing was heard of the peer in the attempt under way.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self.phase, Phase::Synchronization | Phase::Punching)
    }

    /// Returns the findings of earlier attempts, to be added to.
    pub(crate) fn earlier_mut(&mut self) -> &mut Earlier {
        self.earlier.get_or_insert_with(Box::default)
    }

    /// Returns the time after which the coordinators that refused the last request take another,
    /// once.
    pub(crate) fn take_retry_after(&mut self) -> Duration {
        self.earlier.as_mut().map(|earlier| std::mem::take(&mut earlier.retry_after)).unwrap_or_default()
    }

    /// Returns the coordinator at which the first request of the attempt counts already, once.
    pub(crate) fn take_turn(&mut self) -> Option<PeerId> {
        self.earlier.as_mut().and_then(|earlier| earlier.turn.take())
    }

    /// Returns the shortest round-trip time of earlier attempts.
    pub(crate) fn earlier_rtt(&self) -> Option<Duration> {
        self.earlier.as_ref()?.rtt
    }

    /// Returns the time at which the attempt that led to the connection counts as a success, unless
    /// a swarm denies the connection before.
    pub(crate) fn probation_end(&self) -> Option<Instant> {
        (self.attempt_state == AttemptState::Probation).then(|| self.phase_since + PROBATION)
    }

    /// Extends the time for which a dial asks coordinators again.
    pub(crate) fn look_up_until(&mut self, until: Instant) {
        let lookup = self.lookup.get_or_insert_with(|| Box::new(Lookup { until, misses: 0, missed: None }));
        lookup.until = lookup.until.max(until);
    }
}

impl Session {
    pub(crate) fn new(
        key: Key,
        peer: PeerId,
        id: SessionId,
        role: SessionRole,
        phase: Phase,
        now: Instant,
    ) -> Self {
        Self {
            key,
            peer,
            id,
            role,
            attempt: 0,
            course: Course::new(role, phase, now),
            flow: None,
            opening: None,
            paths: Paths::default(),
            moves: Moves::default(),
            search: SessionSearch::default(),
            asked_from: None,
            keys: None,
        }
    }

    /// Returns the attributes by which the session is found now.
    pub(crate) fn index(&self) -> Index {
        let is_responding = self.role == SessionRole::Responder && self.course.is_in_flight();
        Index {
            virtual_connection: self.flow,
            tag: self.keys().map(ProbeKeys::local_tag),
            id: (self.role == SessionRole::Initiator).then_some(self.id),
            responding: is_responding.then(|| self.asked_from.as_deref().copied()),
            deadline: self.next_deadline(),
        }
    }

    pub(crate) fn keys(&self) -> Option<&ProbeKeys> {
        self.keys.as_deref()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.course.phase == Phase::Connected
    }

    /// Returns true if the session waits between two attempts.
    pub(crate) fn is_resting(&self) -> bool {
        !self.course.is_in_flight() && !self.is_connected()
    }

    /// Returns true if the attempt begins once a coordinator takes its request.
    pub(crate) fn awaits_turn(&self) -> bool {
        let earlier = self.course.earlier.as_ref();
        self.flow.is_none() && earlier.is_some_and(|earlier| earlier.turn.is_some())
    }

    /// Returns true if the connection was made before a coordinator reported the addresses of the
    /// peer.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.is_connected() && self.opening.is_some() && self.paths.checklist.is_none()
    }

    /// Returns how the other end of a path was found. A path that nobody named was found by the
    /// search, if there was one.
    pub(crate) fn kind_of(&self, path: Path) -> PathKind {
        let named = self.paths.targets.iter().find(|target| target.remote == path.remote);
        match named.filter(|_| !self.search.owns(path.socket)) {
            Some(target) => target.kind,
            None => self.search.finds.unwrap_or(PathKind::PeerReflexive),
        }
    }

    /// Returns true if a coordinator has the request of this attempt.
    pub(crate) fn has_asked(&self) -> bool {
        self.opening.as_ref().is_some_and(|opening| !opening.asked.is_empty())
    }

    /// Returns the time of the next [`handle_timeout`](Self::handle_timeout).
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let probe = self.paths.checklist.as_ref().and_then(|checklist| checklist.next_due());
        let search = self.search.next_due();
        let ask = self.opening.as_ref().and_then(|opening| opening.ask_again);
        [self.course.deadline, self.course.probation_end(), probe, search, ask].into_iter().flatten().min()
    }
}
