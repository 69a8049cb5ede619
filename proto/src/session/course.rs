//! Phases and attempts of a session: their order, their time-outs, and their counts.

use std::time::{Duration, Instant};

use libp2p_identity::PeerId;

use crate::{
    event::{Event, FailureReason, NatKinds, Phase, PhaseTimes, SessionRole},
    nat::strategy::NatProfile,
    session::{Attempt, contact::Contact, context::Context},
};

/// A connection of this age was not denied by the other side's swarm, which takes a round trip.
pub const PROBATION: Duration = Duration::from_secs(2);

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
    /// Times that the phases took.
    pub(crate) times: PhaseTimes,
    /// Kinds of the NATs of both, as the last attempt knew them.
    pub(crate) nats: NatKinds,
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

impl Course {
    pub(super) fn new(role: SessionRole, phase: Phase, now: Instant) -> Self {
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

    /// Returns the kinds of the NATs of both, as the last attempt knew them.
    pub(crate) fn nats(&self) -> NatKinds {
        self.earlier.as_ref().map(|earlier| earlier.nats).unwrap_or_default()
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

    /// Enters another phase, reports it and starts its time-out.
    pub(super) fn enter(&mut self, cx: &mut Context<'_>, of: Attempt, to: Phase) {
        let from = self.phase;
        let after = cx.now.saturating_duration_since(self.phase_since);
        (self.phase, self.phase_since) = (to, cx.now);
        self.earlier_mut().times.add(from, after);
        self.report_phase(cx, of, Some(from), after);
    }

    /// Reports the phase of a new session, and starts its time-out.
    pub(super) fn enter_first(&mut self, cx: &mut Context<'_>, of: Attempt) {
        self.report_phase(cx, of, None, Duration::ZERO);
    }

    fn report_phase(&mut self, cx: &mut Context<'_>, of: Attempt, from: Option<Phase>, after: Duration) {
        let config = &cx.env.config;
        let until = |timeout| Some(cx.now + timeout);
        self.deadline = match self.phase {
            Phase::Discovery => {
                let lookup = self.lookup.as_ref().map(|lookup| lookup.until);
                lookup.max(until(config.phase_timeouts.discovery))
            }
            Phase::Coordination => until(config.coordination_timeout),
            Phase::Synchronization => until(config.phase_timeouts.synchronization),
            Phase::Punching => until(config.phase_timeouts.punching),
            Phase::Validation => until(config.phase_timeouts.validation),
            Phase::Connected | Phase::Failed => None,
        };
        cx.env.out.event(Event::Phase {
            peer: of.peer,
            role: of.role,
            attempt: of.number,
            from,
            to: self.phase,
            after,
        });
    }

    /// Counts the beginning of an attempt, unless one is under way.
    pub(super) fn begin_attempt(&mut self, cx: &mut Context<'_>) {
        if self.attempt_state == AttemptState::None {
            self.attempt_state = AttemptState::InFlight;
            cx.env.out.counters.attempts += 1;
            cx.env.out.counters.in_flight += 1;
        }
    }

    /// Counts the outcome of a connection. Returns false if it was counted before.
    pub(super) fn end_probation(&mut self, cx: &mut Context<'_>, is_kept: bool) -> bool {
        if self.attempt_state != AttemptState::Probation {
            return false;
        }
        self.attempt_state = AttemptState::None;
        let counters = &mut cx.env.out.counters;
        counters.in_flight -= 1;
        if is_kept {
            counters.successes += 1;
        } else {
            counters.failures += 1;
            counters.denied += 1;
        }
        true
    }
}
