//! Attempts to connect, and the handles that wait for them.

use std::{collections::BTreeMap, time::Duration};

use libp2p_identity::PeerId;
use libp2p_punch::event::{FailureReason, Phase};
use libp2p_swarm::ConnectionId;
use tokio::{sync::oneshot, time::Instant};

use crate::{connection::Connection, error::ConnectError};

/// Time from the end of a failed dial to the event with the reason of its traversal session.
const SESSION_REASON_TIMEOUT: Duration = Duration::from_millis(250);

/// A handle that waits for a connection to a peer.
pub(super) enum Reply {
    /// It wants the connection.
    Connection(oneshot::Sender<Result<Connection, ConnectError>>),
    /// It wants to know that there is one.
    Connected(oneshot::Sender<Result<(), ConnectError>>),
}

impl Reply {
    pub(super) fn fail(self, error: ConnectError) {
        match self {
            Self::Connection(to) => super::reply(to, Err(error)),
            Self::Connected(to) => super::reply(to, Err(error)),
        }
    }
}

/// An attempt that ended because of its deadline.
pub(super) struct Ended {
    pub(super) peer: PeerId,
    pub(super) error: ConnectError,
}

/// The attempts of a node, one for each peer.
#[derive(Default)]
pub(super) struct Attempts(BTreeMap<PeerId, Attempt>);

#[derive(Default)]
struct Attempt {
    waiters: Vec<Waiter>,
    /// Dials under way.
    dials: Vec<ConnectionId>,
    phase: Option<Phase>,
    /// The traversal session has failed. Another dial, or a relay, may still help.
    session_failure: Option<FailureReason>,
    /// All dials have failed.
    dial_failure: Option<DialFailure>,
}

struct Waiter {
    reply: Reply,
    deadline: Instant,
}

/// A failure of all dials, which waits for the reason of the session.
struct DialFailure {
    error: ConnectError,
    deadline: Instant,
}

impl Attempts {
    pub(super) fn contains(&self, peer: &PeerId) -> bool {
        self.0.contains_key(peer)
    }

    /// Adds a handle that waits for the peer, and the attempt if there is none.
    pub(super) fn wait(&mut self, peer: PeerId, reply: Reply, deadline: Instant) {
        self.0.entry(peer).or_default().waiters.push(Waiter { reply, deadline });
    }

    /// A dial began.
    pub(super) fn dialing(&mut self, peer: PeerId, id: ConnectionId) {
        let attempt = self.0.entry(peer).or_default();
        attempt.dials.push(id);
        attempt.dial_failure = None;
    }

    /// The session reached a phase.
    pub(super) fn reached(&mut self, peer: &PeerId, phase: Phase) {
        if let Some(attempt) = self.0.get_mut(peer) {
            attempt.phase = Some(phase);
        }
    }

    /// The session failed. Returns true if nothing is left that could succeed.
    pub(super) fn session_failed(&mut self, peer: &PeerId, reason: FailureReason) -> bool {
        let Some(attempt) = self.0.get_mut(peer) else { return false };
        attempt.session_failure = Some(reason);
        attempt.dial_failure.is_some()
    }

    /// A dial failed. Returns the error of the attempt if nothing is left that could succeed.
    pub(super) fn dial_failed(
        &mut self,
        peer: &PeerId,
        id: ConnectionId,
        error: ConnectError,
        now: Instant,
    ) -> Option<ConnectError> {
        let attempt = self.0.get_mut(peer)?;
        // The library dials over relays as well. Those dials do not end the attempt.
        let index = attempt.dials.iter().position(|dial| *dial == id)?;
        attempt.dials.swap_remove(index);
        if !attempt.dials.is_empty() {
            return None;
        }
        match (attempt.session_failure, error) {
            (Some(reason), ConnectError::Transport { .. } | ConnectError::NoAddresses) => {
                Some(ConnectError::Traversal(reason))
            }
            (None, error @ ConnectError::Transport { .. }) if attempt.phase.is_some() => {
                let deadline = now + SESSION_REASON_TIMEOUT;
                attempt.dial_failure = Some(DialFailure { error, deadline });
                None
            }
            (_, error) => Some(error),
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let waiters = self.0.values().flat_map(|attempt| &attempt.waiters).map(|waiter| waiter.deadline);
        let failures = self.0.values().filter_map(|attempt| attempt.dial_failure.as_ref());
        waiters.chain(failures.map(|failure| failure.deadline)).min()
    }

    /// Replies to the handles whose deadline has passed. Returns the attempts that have ended.
    pub(super) fn expire(&mut self, now: Instant, allowed: Duration) -> Vec<Ended> {
        let mut ended = Vec::new();
        self.0.retain(|peer, attempt| {
            if let Some(failure) = attempt.dial_failure.take_if(|failure| failure.deadline <= now) {
                for waiter in attempt.waiters.drain(..) {
                    waiter.reply.fail(failure.error.clone());
                }
                ended.push(Ended { peer: *peer, error: failure.error });
                return false;
            }
            let error = ConnectError::TimedOut { after: allowed, phase: attempt.phase };
            for waiter in attempt.waiters.extract_if(.., |waiter| waiter.deadline <= now) {
                waiter.reply.fail(error.clone());
            }
            if attempt.waiters.is_empty() {
                ended.push(Ended { peer: *peer, error });
            }
            !attempt.waiters.is_empty()
        });
        ended
    }

    /// Ends an attempt. Returns the handles that wait for it.
    pub(super) fn end(&mut self, peer: &PeerId) -> Option<Vec<Reply>> {
        self.0.remove(peer).map(Attempt::into_replies)
    }

    /// Ends all attempts. Returns their peers, and the handles that wait for each.
    pub(super) fn drain(&mut self) -> Vec<(PeerId, Vec<Reply>)> {
        let attempts = std::mem::take(&mut self.0).into_iter();
        attempts.map(|(peer, attempt)| (peer, attempt.into_replies())).collect()
    }
}

impl Attempt {
    fn into_replies(self) -> Vec<Reply> {
        self.waiters.into_iter().map(|waiter| waiter.reply).collect()
    }
}
