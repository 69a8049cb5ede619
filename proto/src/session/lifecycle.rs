//! Failures, retries and the end of a session.

use std::time::Duration;

use crate::{
    Path, backoff,
    command::Command,
    event::{Event, FailureReason, Phase, SessionRole},
    nat::strategy::strategy,
    session::{
        AttemptState, Outcome, Progress, Session, Transition,
        contact::Contact,
        context::Context,
        failure::{is_miss, is_retryable},
    },
    wire::frame::RejectReason,
};

impl Session {
    /// The QUIC handshake is finished, and has proved the identity of the peer. The last packet of
    /// it came on `path`, which nobody may have named: an initiator may hear the responder before
    /// its coordinator answers.
    pub(crate) fn handle_established(&mut self, cx: &mut Context<'_>, path: Path) -> Transition {
        if !self.course.is_in_flight() {
            return Transition::Stay;
        }
        let (peer, role) = (self.peer, self.role);
        let elapsed = cx.now.saturating_duration_since(self.course.started);
        let path = self.paths.checklist.as_ref().and_then(|checklist| checklist.likeliest()).unwrap_or(path);
        let kind = self.kind_of(path);
        self.course.enter(cx, self.current(), Phase::Connected);
        // The outcome is counted once it is known if both swarms keep the connection.
        self.course.attempt_state = AttemptState::Probation;
        self.paths.give_flight_back(cx);
        match self.paths.checklist {
            Some(_) => self.opening = None,
            // Without the answer no path can be validated, and QUIC sends no more than RFC 9000
            // §8.1 allows.
            None => {
                self.course.contact = Contact::Missing;
                self.course.deadline = Some(cx.now + cx.env.config.coordination_timeout);
            }
        }
        self.course.lookup = None;
        let (nats, times) = (self.course.nats(), self.course.earlier_mut().times);
        let is_search = |(ours, theirs)| strategy(&ours, &theirs, true).is_search();
        self.course.earlier.take_if(|earlier| !earlier.traits.is_some_and(is_search));
        self.paths.targets.shrink_to_fit();
        self.search.end(cx.shared);
        self.search.close_sockets(cx, self.flow, &self.paths);
        self.search.release_sockets(cx.shared);
        cx.env.out.event(Event::Connected { peer, role, path, kind, elapsed, times, nats });
        self.settle(cx);
        Transition::Stay
    }

    /// The handshake failed, or the connection ended.
    pub(crate) fn handle_closed(&mut self, cx: &mut Context<'_>) -> Transition {
        self.flow = None;
        if !self.is_connected() {
            return self.fail(cx, FailureReason::Handshake);
        }
        self.course.end_probation(cx, true);
        self.search.end(cx.shared);
        self.search.release_sockets(cx.shared);
        Transition::Done(Outcome::Closed)
    }

    /// The swarm of either side did not take the connection, which has ended.
    pub(crate) fn handle_denied(&mut self, cx: &mut Context<'_>) -> Transition {
        if self.course.end_probation(cx, false) {
            cx.env.out.event(Event::Denied { peer: self.peer, role: self.role });
        }
        self.handle_closed(cx)
    }

    /// This side no longer wants a connection. A session that the peer asked for goes on.
    pub(crate) fn handle_cancelled(&mut self, cx: &mut Context<'_>) -> Transition {
        self.course.wanted = false;
        let missed = self.course.lookup.take().and_then(|lookup| lookup.missed);
        if self.role != SessionRole::Initiator {
            return Transition::Stay;
        }
        let waited = cx.now.saturating_duration_since(self.course.phase_since);
        let has_waited = waited >= cx.env.config.phase_timeouts.discovery;
        let reason = match missed {
            _ if self.course.phase == Phase::Discovery && has_waited && !self.awaits_turn() => {
                FailureReason::NoCoordinator
            }
            Some(missed) => missed,
            None => FailureReason::Cancelled,
        };
        self.fail(cx, reason)
    }

    /// A deadline has come: that of the phase, of the back-off, of a probe or of a request.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) -> Transition {
        let now = cx.now;
        if self.course.probation_end().is_some_and(|at| at <= now) {
            self.course.end_probation(cx, true);
            if self.next_deadline().is_none_or(|at| at > now) {
                return Transition::Stay;
            }
        }
        let progress = if self.course.deadline.is_none_or(|at| at > now) {
            self.poll(cx)
        } else if self.is_connected() {
            self.contact_due(cx)
        } else if self.awaits_turn() {
            self.open(cx);
            Ok(())
        } else if self.is_resting() {
            self.try_again(cx)
        } else {
            Err(self.reason_of_timeout())
        };
        self.conclude(cx, progress)
    }

    fn reason_of_timeout(&self) -> FailureReason {
        let has_flight = self.opening.as_ref().is_none_or(|opening| !opening.first_flight.is_empty());
        match self.course.phase {
            Phase::Discovery if self.flow.is_none() => FailureReason::NoCoordinator,
            Phase::Coordination if self.flow.is_some() && has_flight => FailureReason::CoordinationTimeout,
            Phase::Discovery | Phase::Coordination if has_flight => FailureReason::NoCoordinator,
            Phase::Discovery | Phase::Coordination => FailureReason::SynchronizationTimeout,
            Phase::Synchronization => FailureReason::NoCandidates,
            Phase::Punching => FailureReason::PunchingTimeout,
            Phase::Validation | Phase::Connected | Phase::Failed => FailureReason::ValidationTimeout,
        }
    }

    /// Ends the attempt under way without a connection, and leaves nothing of it.
    pub(super) fn abandon_attempt(&mut self, cx: &mut Context<'_>) {
        if self.course.is_in_flight() {
            self.course.attempt_state = AttemptState::None;
            cx.env.out.counters.in_flight -= 1;
            cx.env.out.counters.failures += 1;
        }
        self.search.end(cx.shared);
        self.search.abandon_sockets(cx, self.flow);
        if let Some(flow) = self.flow.take() {
            cx.env.out.command(Command::Close { flow });
        }
        self.keys = None;
        if let Some(coordinator) = self.course.take_turn() {
            cx.shared.pacing.give_back(&coordinator);
        }
        let measured = self.paths.checklist.take().and_then(|checklist| checklist.best_rtt());
        if measured.is_some() {
            self.course.earlier_mut().rtt = measured;
        }
        self.opening = None;
        self.search.finds = None;
        self.paths.targets = Vec::new();
    }

    /// Follows the result of a procedure.
    pub(super) fn conclude(&mut self, cx: &mut Context<'_>, progress: Progress) -> Transition {
        match progress {
            Ok(()) => Transition::Stay,
            Err(reason) => self.fail(cx, reason),
        }
    }

    /// Ends the attempt under way. Another attempt follows, or the session ends.
    pub(crate) fn fail(&mut self, cx: &mut Context<'_>, reason: FailureReason) -> Transition {
        let used = self.opening.as_ref().and_then(|opening| opening.used.as_ref());
        let unheard_key = used.filter(|_| self.course.is_silent()).map(|used| used.probe_key);
        self.abandon_attempt(cx);
        if unheard_key.is_some() {
            self.course.earlier_mut().unheard_key = unheard_key;
        }
        let has_others = cx.shared.named.contains_key(&self.peer);
        let looks_up = self.course.lookup.as_ref().is_some_and(|lookup| cx.now < lookup.until);
        if looks_up && is_miss(reason, has_others) {
            self.repeat_lookup(cx, reason);
            return Transition::Stay;
        }
        let retry_after = self.course.take_retry_after();
        self.course.failures += 1;
        let failures = self.course.failures;
        if self.course.wanted && failures < cx.env.config.max_attempts && is_retryable(reason) {
            let delay = match reason {
                FailureReason::NatMeasured => Duration::ZERO,
                FailureReason::Rejected(RejectReason::RateLimited | RejectReason::Full) => {
                    backoff::after_refusal(retry_after, failures - 1, &mut cx.env.rng)
                }
                _ => backoff::RETRY.delay(failures - 1, &mut cx.env.rng),
            };
            self.report_retry(cx, reason, delay);
            self.schedule_retry(cx, delay);
            return Transition::Stay;
        }
        self.course.enter(cx, self.current(), Phase::Failed);
        Transition::Done(Outcome::Failed(reason))
    }

    /// Asks coordinators again after a delay, because a dial waits and the peer could not be asked
    /// for. The request gets another name, since a coordinator may have passed on one that it could
    /// not answer any more. It does not count as an attempt.
    fn repeat_lookup(&mut self, cx: &mut Context<'_>, reason: FailureReason) {
        let id = cx.new_session_id();
        let retry_after = self.course.take_retry_after();
        let Some(lookup) = self.course.lookup.as_mut() else { return };
        let delay = match reason {
            FailureReason::Rejected(RejectReason::RateLimited | RejectReason::Full) => {
                backoff::after_refusal(retry_after, lookup.misses, &mut cx.env.rng)
            }
            _ => backoff::LOOKUP.delay(lookup.misses, &mut cx.env.rng),
        };
        let delay = delay.min(lookup.until.saturating_duration_since(cx.now));
        lookup.misses = lookup.misses.saturating_add(1);
        if lookup.missed.replace(reason) != Some(reason) {
            self.report_retry(cx, reason, delay);
        }
        self.id = id;
        self.schedule_retry(cx, delay);
    }

    /// Waits before the next attempt, in which this peer is the initiator whatever its role was
    /// before.
    fn schedule_retry(&mut self, cx: &mut Context<'_>, delay: Duration) {
        let was_responder = self.role == SessionRole::Responder;
        self.role = SessionRole::Initiator;
        self.attempt = self.course.failures;
        if was_responder {
            self.id = cx.new_session_id();
        }
        self.course.enter(cx, self.current(), Phase::Coordination);
        self.course.deadline = Some(cx.now + delay);
    }

    fn report_retry(&self, cx: &mut Context<'_>, reason: FailureReason, delay: Duration) {
        cx.env.out.event(Event::Retry { peer: self.peer, attempt: self.attempt, reason, delay });
    }
}
