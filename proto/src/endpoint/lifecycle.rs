//! How sessions go from phase to phase, fail, try again and end.

use std::time::{Duration, Instant};

use libp2p_identity::PeerId;

use super::Endpoint;
use crate::{
    Path, VirtualConnectionId, backoff,
    command::Command,
    event::{Event, FailureReason, Phase, SessionRole},
    nat::strategy::strategy,
    session::{AttemptState, Contact, Key, Session},
    wire::frame::RejectReason,
};

impl Endpoint {
    /// The QUIC handshake of `flow` is finished: the peer is who it should be. The last packet of it came on `path`, of which
    /// nobody may have said anything: an initiator may hear the responder before its coordinator answers.
    pub fn handle_established(&mut self, flow: VirtualConnectionId, path: Path, now: Instant) {
        let Some(key) = self.sessions.of_flow(flow) else { return };
        let Some(session) = self.sessions.get(key).filter(|session| session.is_in_flight()) else { return };
        let (peer, role, elapsed) =
            (session.peer, session.role, now.saturating_duration_since(session.started));
        let path = session.checklist.as_ref().and_then(|checklist| checklist.likeliest()).unwrap_or(path);
        let kind = session.kind_of(path);
        self.gate.acquaint(peer, now);
        self.enter(key, Phase::Connected, now);
        self.begin_probation(key);
        self.give_flight_back(key);
        if let Some(session) = self.sessions.get_mut(key) {
            match session.checklist {
                Some(_) => session.opening = None,
                // Without the answer no path can be validated, and QUIC sends no more than RFC 9000 §8.1 allows.
                None => {
                    session.contact = Contact::Missing;
                    session.deadline = Some(now + self.settings.coordination_timeout);
                }
            }
            session.lookup = None;
            let is_search = |(ours, theirs)| strategy(&ours, &theirs, true).is_search();
            session.earlier.take_if(|earlier| !earlier.traits.is_some_and(is_search));
            session.targets.shrink_to_fit();
        }
        self.end_search(key);
        self.close_sockets(key);
        self.release_sockets(key);
        self.out.event(Event::Connected { peer, role, path, kind, elapsed });
        self.settle(key);
        self.look_for_old_mappings(now);
    }

    /// The handshake of `flow` failed, or its connection ended.
    pub fn handle_closed(&mut self, flow: VirtualConnectionId, now: Instant) {
        let Some(key) = self.sessions.of_flow(flow) else { return };
        self.sessions.set_flow(key, None);
        if self.sessions.get(key).is_some_and(Session::is_connected) {
            self.end_probation(key, true);
            self.end_search(key);
            self.release_sockets(key);
            self.sessions.remove(key);
        } else {
            self.fail(key, FailureReason::Handshake, now);
        }
    }

    /// As [`handle_closed`](Self::handle_closed), for a connection that the swarm of either side did not take.
    pub fn handle_denied(&mut self, flow: VirtualConnectionId, now: Instant) {
        if let Some(key) = self.sessions.of_flow(flow)
            && let Some((peer, role)) = self.session_of(flow)
            && self.end_probation(key, false)
        {
            self.out.event(Event::Denied { peer, role });
        }
        self.handle_closed(flow, now);
    }

    /// Nobody here wants a connection to `peer` any more. A session that the peer asked for goes on.
    pub fn cancel(&mut self, peer: &PeerId, now: Instant) {
        let Some(key) = self.sessions.pending_with(peer) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.wanted = false;
        let missed = session.lookup.take().and_then(|lookup| lookup.missed);
        if session.role == SessionRole::Initiator {
            let waited = now.saturating_duration_since(session.phase_since);
            let reason = match missed {
                _ if session.phase == Phase::Discovery
                    && !session.awaits_turn()
                    && waited >= self.settings.phase_timeouts.discovery =>
                {
                    FailureReason::NoCoordinator
                }
                Some(missed) => missed,
                None => FailureReason::Cancelled,
            };
            self.fail(key, reason, now);
        }
    }

    /// Goes to another phase, reports it and starts its time-out.
    pub(super) fn enter(&mut self, key: Key, to: Phase, now: Instant) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let from = session.phase;
        let after = now.saturating_duration_since(session.phase_since);
        session.phase = to;
        session.phase_since = now;
        session.deadline = self.settings.deadline(session, now);
        self.out.event(Event::Phase {
            peer: session.peer,
            role: session.role,
            attempt: session.attempt,
            from: Some(from),
            to,
            after,
        });
    }

    /// As [`enter`](Self::enter), for a session that has just been made in its first phase.
    pub(super) fn enter_first(&mut self, key: Key, now: Instant) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.deadline = self.settings.deadline(session, now);
        self.out.event(Event::Phase {
            peer: session.peer,
            role: session.role,
            attempt: session.attempt,
            from: None,
            to: session.phase,
            after: std::time::Duration::ZERO,
        });
    }

    pub(super) fn begin_attempt(&mut self, key: Key) {
        if let Some(session) = self.sessions.get_mut(key)
            && session.attempt_state == AttemptState::None
        {
            session.attempt_state = AttemptState::InFlight;
            self.out.counters.attempts += 1;
            self.out.counters.in_flight += 1;
            if session.role == SessionRole::Responder {
                self.gate.enter(session.asked_from.as_deref(), key);
            }
        }
    }

    /// Returns true if an attempt was under way. Its outcome remains to be counted.
    fn end_attempt(&mut self, key: Key) -> bool {
        let Some(session) = self.sessions.get_mut(key).filter(|session| session.is_in_flight()) else {
            return false;
        };
        session.attempt_state = AttemptState::None;
        if session.role == SessionRole::Responder {
            self.gate.leave(session.asked_from.as_deref(), key);
        }
        true
    }

    /// The attempt led to a connection. Its outcome is counted once it is known whether both swarms keep the connection.
    fn begin_probation(&mut self, key: Key) {
        if self.end_attempt(key)
            && let Some(session) = self.sessions.get_mut(key)
        {
            session.attempt_state = AttemptState::Probation;
        }
    }

    /// Counts the outcome of a connection. Returns false if it was counted before.
    fn end_probation(&mut self, key: Key, is_kept: bool) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return false };
        if session.attempt_state != AttemptState::Probation {
            return false;
        }
        session.attempt_state = AttemptState::None;
        let counters = &mut self.out.counters;
        counters.in_flight -= 1;
        if is_kept {
            counters.successes += 1;
        } else {
            counters.failures += 1;
            counters.denied += 1;
        }
        true
    }

    /// Ends the attempt under way without a connection, and leaves nothing of it.
    pub(super) fn abandon_attempt(&mut self, key: Key) {
        if self.end_attempt(key) {
            self.out.counters.in_flight -= 1;
            self.out.counters.failures += 1;
        }
        self.end_search(key);
        self.abandon_sockets(key);
        if let Some(flow) = self.sessions.get(key).and_then(|session| session.flow) {
            self.out.command(Command::Close { flow });
        }
        self.sessions.set_flow(key, None);
        self.sessions.set_keys(key, None);
        if let Some(session) = self.sessions.get_mut(key) {
            if let Some(coordinator) = session.take_turn() {
                self.pacing.give_back(&coordinator);
            }
            let measured = session.checklist.take().and_then(|checklist| checklist.best_rtt());
            if measured.is_some() {
                session.earlier_mut().rtt = measured;
            }
            session.opening = None;
            session.sought = None;
            session.targets = Vec::new();
        }
    }

    /// The attempt has failed: another one follows, or the session ends.
    pub(super) fn fail(&mut self, key: Key, reason: FailureReason, now: Instant) {
        let is_silent = self.is_silent(key);
        let used = self.sessions.get(key).and_then(|session| session.opening.as_ref()?.used.as_ref());
        let unheard_key = used.filter(|_| is_silent).map(|used| used.probe_key);
        self.abandon_attempt(key);
        let Some(session) = self.sessions.get_mut(key) else { return };
        if unheard_key.is_some() {
            session.earlier_mut().unheard_key = unheard_key;
        }
        let has_others = self.named.contains_key(&session.peer);
        if session.lookup.as_ref().is_some_and(|lookup| now < lookup.until) && is_miss(reason, has_others) {
            return self.missed(key, reason, now);
        }
        let retry_after = session.take_retry_after();
        session.failures += 1;
        let again = session.wanted && session.failures < self.settings.max_attempts && is_retryable(reason);
        if again {
            let delay = match reason {
                FailureReason::NatMeasured => Duration::ZERO,
                FailureReason::Rejected(RejectReason::RateLimited | RejectReason::Full) => {
                    backoff::after_refusal(retry_after, session.failures - 1, &mut self.rng)
                }
                _ => backoff::delay(session.failures - 1, &mut self.rng),
            };
            self.report_retry(key, reason, delay);
            return self.rest(key, delay, now);
        }
        self.enter(key, Phase::Failed, now);
        if let Some(session) = self.sessions.remove(key) {
            let elapsed = now.saturating_duration_since(session.started);
            self.out.event(Event::Failed { peer: session.peer, role: session.role, reason, elapsed });
        }
    }

    /// The peer could not be asked for, and a dial waits: coordinators are asked again, under another name, since one of them
    /// may have passed on what it could not answer any more. No attempt to punch was made, so none counts.
    fn missed(&mut self, key: Key, reason: FailureReason, now: Instant) {
        let id = self.new_session_id();
        let Some(session) = self.sessions.get_mut(key) else { return };
        let retry_after = session.take_retry_after();
        let Some(lookup) = &mut session.lookup else { return };
        let delay = match reason {
            FailureReason::Rejected(RejectReason::RateLimited | RejectReason::Full) => {
                backoff::after_refusal(retry_after, lookup.misses, &mut self.rng)
            }
            _ => backoff::lookup_delay(lookup.misses, &mut self.rng),
        };
        let delay = delay.min(lookup.until.saturating_duration_since(now));
        lookup.misses = lookup.misses.saturating_add(1);
        if lookup.missed.replace(reason) != Some(reason) {
            self.report_retry(key, reason, delay);
        }
        self.sessions.name(key, id);
        self.rest(key, delay, now);
    }

    /// Waits before the next attempt, in which we are the initiator whoever was it before.
    fn rest(&mut self, key: Key, delay: Duration, now: Instant) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let was_responder = session.role == SessionRole::Responder;
        session.role = SessionRole::Initiator;
        session.attempt = session.failures;
        if was_responder {
            let id = self.new_session_id();
            self.sessions.name(key, id);
        }
        self.enter(key, Phase::Coordination, now);
        if let Some(session) = self.sessions.get_mut(key) {
            session.deadline = Some(now + delay);
        }
        self.sessions.reschedule(key);
    }

    fn report_retry(&mut self, key: Key, reason: FailureReason, delay: Duration) {
        let Some(Session { peer, attempt, .. }) = self.sessions.get(key) else { return };
        self.out.event(Event::Retry { peer: *peer, attempt: *attempt, reason, delay });
    }

    /// A deadline of the session has come: that of its phase, of its backoff, or of a probe.
    pub(super) fn session_timeout(&mut self, key: Key, now: Instant) {
        let is_proved = |session: &&Session| session.probation_end().is_some_and(|at| at <= now);
        if self.sessions.get(key).filter(is_proved).is_some() {
            self.end_probation(key, true);
            self.sessions.reschedule(key);
            if !self.sessions.is_due(key, now) {
                return;
            }
        }
        let Some(session) = self.sessions.get(key) else { return };
        if session.deadline.is_none_or(|at| at > now) {
            return self.poll_session(key, now);
        }
        if session.is_connected() {
            return self.contact_due(key, now);
        }
        if session.awaits_turn() {
            return self.open(key, now);
        }
        if session.is_resting() {
            return self.try_again(key, now);
        }
        let has_flight = session.opening.as_ref().is_none_or(|opening| !opening.first_flight.is_empty());
        let reason = match session.phase {
            Phase::Discovery if session.flow.is_none() => FailureReason::NoCoordinator,
            Phase::Coordination if session.flow.is_some() && has_flight => FailureReason::CoordinationTimeout,
            Phase::Discovery | Phase::Coordination if has_flight => FailureReason::NoCoordinator,
            Phase::Discovery | Phase::Coordination => FailureReason::SynchronizationTimeout,
            Phase::Synchronization => FailureReason::NoCandidates,
            Phase::Punching => FailureReason::PunchingTimeout,
            Phase::Validation | Phase::Connected | Phase::Failed => FailureReason::ValidationTimeout,
        };
        self.fail(key, reason, now);
    }
}

/// Whether another attempt can end otherwise.
pub(super) fn is_retryable(reason: FailureReason) -> bool {
    match reason {
        FailureReason::Rejected(reason) => is_temporary(reason),
        FailureReason::CoordinationTimeout
        | FailureReason::CoordinatorLost
        | FailureReason::Forged
        | FailureReason::NoCandidates
        | FailureReason::SynchronizationTimeout
        | FailureReason::PunchingTimeout
        | FailureReason::NatMeasured
        | FailureReason::ValidationTimeout
        | FailureReason::Handshake => true,
        // Discovery has had its time-out to wait for a coordinator.
        FailureReason::NoCoordinator
        | FailureReason::Cancelled
        | FailureReason::TooManySessions
        | FailureReason::Hopeless
        | FailureReason::DialSelf => false,
    }
}

/// Returns true if no attempt to punch came of it because coordinators could not, or would not for the moment, pass the request
/// on.
///
/// A node that was named as a coordinator may be none, or may say so only to end the attempt: with `has_others`, no rejection ends it.
fn is_miss(reason: FailureReason, has_others: bool) -> bool {
    match reason {
        FailureReason::CoordinatorLost => true,
        FailureReason::Rejected(_) if has_others => true,
        FailureReason::Rejected(reason) => is_temporary(reason) || reason == RejectReason::NotConnected,
        _ => false,
    }
}

/// Whether who said so may say otherwise in a moment.
pub(super) fn is_temporary(reason: RejectReason) -> bool {
    match reason {
        RejectReason::RateLimited | RejectReason::Full | RejectReason::Expired | RejectReason::Superseded => {
            true
        }
        RejectReason::NotConnected
        | RejectReason::NotWilling
        | RejectReason::Unsupported
        | RejectReason::Malformed => false,
    }
}
