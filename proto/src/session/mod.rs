//! Sessions with peers.
//!
//! A [`Session`] owns its state and changes it in its own methods. An input is a method
//! `handle_…(&mut self, cx, …)` with a [`Context`](context::Context): the time, the knowledge about
//! this host and its NAT, and the budgets that all sessions share. The method returns a
//! [`Transition`].
//!
//! Its parts are objects, too: [`Course`] (phases and attempts), [`Paths`] (addresses and paths of
//! the peer), [`InitiatorState`] (requests to coordinators) and [`SessionSearch`] (the search and
//! its sockets). A part gets the [`Attempt`] that is under way, and knows no other part.
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
mod course;
mod failure;
mod initiator;
mod lifecycle;
mod moving;
mod paths;
mod probing;
mod responder;
mod searching;

pub use self::course::PROBATION;
pub(crate) use self::{
    contact::Moves,
    course::{AttemptState, Course, Lookup},
    initiator::InitiatorState,
    key::Key,
    paths::Paths,
    searching::SessionSearch,
};

use std::{net::SocketAddr, time::Instant};

use libp2p_identity::PeerId;

use crate::{
    Path, SessionId, VirtualConnectionId,
    candidate::{Candidate, CandidateKind, MAPPED_PORT_PRIORITY},
    event::{FailureReason, PathKind, Phase, SessionRole},
    network_prefix::NetworkPrefix,
    session::pair::Origin,
    wire::keys::{ProbeKeys, TAG_LEN},
};

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
        let Candidate { address: remote, mut priority, .. } = *candidate;
        if kind == PathKind::PortMapped {
            priority = MAPPED_PORT_PRIORITY;
        }
        Self { remote, priority, origin: Origin::Announced, kind }
    }
}

/// The attempt of a session that is under way, for the parts of the session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    pub(crate) peer: PeerId,
    pub(crate) role: SessionRole,
    /// The initiator's number of the attempt, from 0.
    pub(crate) number: u32,
    /// The virtual connection of the attempt.
    pub(crate) flow: Option<VirtualConnectionId>,
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

    /// Returns the attempt that is under way.
    pub(crate) fn current(&self) -> Attempt {
        let Self { peer, role, attempt: number, flow, .. } = *self;
        Attempt { peer, role, number, flow }
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
