//! Reservations with relays, so that peers which cannot get through to us directly still reach us.
//!
//! A reservation is a libp2p listener at `…/p2p/RELAY/p2p-circuit`; the relay client renews it as
//! long as the listener exists. We keep up to [`MAX_RESERVATIONS`] of them, with the best relays,
//! while others cannot reach us directly.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p_core::{Multiaddr, transport::ListenerId};
use libp2p_identity::PeerId;

/// One for each coordinator that a peer finds ([`Config::max_found_coordinators`], 3 by default).
/// A dialer that shares only one coordinator with the peer has no other relay.
///
/// [`Config::max_found_coordinators`]: crate::Config::max_found_coordinators
const MAX_RESERVATIONS: usize = 3;
/// Delay before a relay is asked again whose reservation ended.
const LOSS_DELAY: Duration = Duration::from_secs(1);
/// Delay before a relay is asked again that refused; doubles each time.
const REFUSAL_DELAY: Duration = Duration::from_secs(60);
/// And never exceeds this.
const MAX_DELAY: Duration = Duration::from_secs(15 * 60);

#[derive(Debug)]
struct Reservation {
    listener: ListenerId,
    relay: PeerId,
    asked: Instant,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The relay has not answered.
    Asked,
    /// The relay has not answered, and the reservation is no longer wanted. libp2p-relay 0.22
    /// panics if
    /// its listener is removed before the answer.
    Unwanted,
    /// The relay accepted us.
    Accepted,
}

/// Reservation that is no longer wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Released {
    /// Listener to remove.
    pub(super) listener: ListenerId,
    pub(super) relay: PeerId,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    until: Instant,
    refusals: u32,
}

/// Outcome of a listener.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The relay accepted us after this time.
    Accepted(PeerId, Duration),
    /// The relay did not accept us.
    Refused(PeerId),
    /// A reservation ended.
    Lost(PeerId),
    /// The relay accepted us after the reservation was given up: this listener is to be removed.
    Unwanted(ListenerId),
}

/// Our reservations, and when to ask for more.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    current: Vec<Reservation>,
    rests: BTreeMap<PeerId, Rest>,
}

impl Reservations {
    /// The next relay to ask, of those given best first.
    pub(super) fn next(&self, ranked: &[(PeerId, Multiaddr)], now: Instant) -> Option<(PeerId, Multiaddr)> {
        if self.is_complete() {
            return None;
        }
        ranked.iter().find(|(relay, _)| self.is_free(relay) && self.rest(relay) <= Some(now)).cloned()
    }

    /// Returns the earliest time at which [`next`](Self::next) may find a relay.
    pub(super) fn next_time(&self, ranked: &[(PeerId, Multiaddr)]) -> Option<Instant> {
        if self.is_complete() {
            return None;
        }
        ranked.iter().filter(|(relay, _)| self.is_free(relay)).filter_map(|(relay, _)| self.rest(relay)).min()
    }

    fn is_complete(&self) -> bool {
        self.current.iter().filter(|r| r.state != State::Unwanted).count() >= MAX_RESERVATIONS
    }

    fn is_free(&self, relay: &PeerId) -> bool {
        self.current.iter().all(|reservation| reservation.relay != *relay)
    }

    fn rest(&self, relay: &PeerId) -> Option<Instant> {
        self.rests.get(relay).map(|rest| rest.until)
    }

    pub(super) fn asked(&mut self, relay: PeerId, listener: ListenerId, now: Instant) {
        self.current.push(Reservation { listener, relay, asked: now, state: State::Asked });
    }

    /// The listener has an address.
    pub(super) fn opened(&mut self, listener: ListenerId, now: Instant) -> Option<Outcome> {
        let index = self.current.iter().position(|r| r.listener == listener)?;
        let reservation = self.current.get_mut(index)?;
        match reservation.state {
            State::Accepted => None,
            State::Unwanted => {
                self.current.swap_remove(index);
                Some(Outcome::Unwanted(listener))
            }
            State::Asked => {
                reservation.state = State::Accepted;
                self.rests.remove(&reservation.relay);
                let took = now.saturating_duration_since(reservation.asked);
                Some(Outcome::Accepted(reservation.relay, took))
            }
        }
    }

    /// The listener is gone.
    pub(super) fn closed(&mut self, listener: ListenerId, now: Instant) -> Option<Outcome> {
        let index = self.current.iter().position(|r| r.listener == listener)?;
        let Reservation { relay, state, .. } = self.current.swap_remove(index);
        let refusals = self.rests.get(&relay).map_or(0, |rest| rest.refusals);
        let (outcome, delay, refusals) = match state {
            State::Accepted => (Outcome::Lost(relay), LOSS_DELAY, 0),
            State::Asked => {
                let delay = REFUSAL_DELAY.saturating_mul(2u32.saturating_pow(refusals)).min(MAX_DELAY);
                (Outcome::Refused(relay), delay, refusals.saturating_add(1))
            }
            State::Unwanted => return None,
        };
        self.rests.insert(relay, Rest { until: now + delay, refusals });
        Some(outcome)
    }

    pub(super) fn contains(&self, listener: ListenerId) -> bool {
        self.current.iter().any(|reservation| reservation.listener == listener)
    }

    /// Gives up all reservations. Returns those that can be ended now.
    pub(super) fn give_up(&mut self) -> Vec<Released> {
        self.release(|_| true)
    }

    /// Gives up the reservation with a peer that is no relay of ours any longer.
    pub(super) fn forget(&mut self, relay: &PeerId) -> Vec<Released> {
        self.rests.remove(relay);
        self.release(|reservation| reservation.relay == *relay)
    }

    fn release(&mut self, is_unwanted: impl Fn(&Reservation) -> bool) -> Vec<Released> {
        for reservation in self.current.iter_mut().filter(|r| r.state == State::Asked && is_unwanted(r)) {
            reservation.state = State::Unwanted;
        }
        let ended = self.current.extract_if(.., |r| r.state == State::Accepted && is_unwanted(r));
        ended.map(|Reservation { listener, relay, .. }| Released { listener, relay }).collect()
    }

    /// A coordinator is connected that was not: it may be asked at once. An earlier refusal may
    /// have been the end of its connection.
    pub(super) fn arrived(&mut self, relay: PeerId, now: Instant) {
        let rest = self.rests.entry(relay).or_insert(Rest { until: now, refusals: 0 });
        rest.until = rest.until.min(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four(now: Instant) -> (Reservations, Vec<(PeerId, Multiaddr)>) {
        let mut reservations = Reservations::default();
        let ranked: Vec<_> = (0..4).map(|_| (PeerId::random(), Multiaddr::empty())).collect();
        ranked.iter().for_each(|(relay, _)| reservations.arrived(*relay, now));
        (reservations, ranked)
    }

    fn ask(
        reservations: &mut Reservations,
        ranked: &[(PeerId, Multiaddr)],
        now: Instant,
    ) -> (PeerId, ListenerId) {
        let (relay, _) = reservations.next(ranked, now).unwrap();
        let listener = ListenerId::next();
        reservations.asked(relay, listener, now);
        (relay, listener)
    }

    #[test]
    fn the_three_best_relays_are_asked_and_no_more() {
        let now = Instant::now();
        let (mut reservations, ranked) = four(now);
        for (best, _) in &ranked[..3] {
            assert_eq!(ask(&mut reservations, &ranked, now).0, *best);
        }
        assert_eq!(reservations.next(&ranked, now), None);
        assert_eq!(reservations.next_time(&ranked), None);
    }

    #[test]
    fn a_reservation_that_is_given_up_before_the_answer_is_removed_after_it() {
        let now = Instant::now();
        let (mut reservations, ranked) = four(now);
        let (_, accepted) = ask(&mut reservations, &ranked, now);
        let (relay, asked) = ask(&mut reservations, &ranked, now);
        reservations.opened(accepted, now);
        let released = reservations.give_up();
        assert_eq!(released, [Released { listener: accepted, relay: ranked[0].0 }]);
        assert!(reservations.contains(asked) && !reservations.is_free(&relay));
        assert_eq!(reservations.opened(asked, now), Some(Outcome::Unwanted(asked)));
        assert!(!reservations.contains(asked) && reservations.is_free(&relay));
        // Its end is no loss, and no refusal.
        assert_eq!(reservations.closed(asked, now), None);
    }

    #[test]
    fn a_refusal_of_a_reservation_that_was_given_up_does_not_count() {
        let now = Instant::now();
        let (mut reservations, ranked) = four(now);
        let (_, listener) = ask(&mut reservations, &ranked, now);
        assert!(reservations.give_up().is_empty());
        assert_eq!(reservations.closed(listener, now), None);
        assert_eq!(reservations.next(&ranked, now), Some(ranked[0].clone()));
    }

    #[test]
    fn a_refusal_passes_the_turn_on_and_backs_off() {
        let mut now = Instant::now();
        let (mut reservations, ranked) = four(now);
        let only = &ranked[..1];
        let mut delays = Vec::new();
        for _ in 0..6 {
            let (relay, listener) = ask(&mut reservations, &ranked[..1], now);
            assert_eq!(reservations.closed(listener, now), Some(Outcome::Refused(relay)));
            assert_eq!(reservations.next(&ranked, now).map(|(relay, _)| relay), Some(ranked[1].0));
            let next = reservations.next_time(only).unwrap();
            delays.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(delays, [60, 120, 240, 480, 900, 900]);
    }

    #[test]
    fn a_reservation_that_is_lost_is_made_again_after_a_second() {
        let now = Instant::now();
        let (mut reservations, ranked) = four(now);
        let (relay, listener) = ask(&mut reservations, &ranked[..1], now);
        let took = Duration::from_millis(70);
        assert_eq!(reservations.opened(listener, now + took), Some(Outcome::Accepted(relay, took)));
        assert_eq!(reservations.opened(listener, now + took), None);
        assert_eq!(reservations.closed(listener, now), Some(Outcome::Lost(relay)));
        assert_eq!(reservations.next_time(&ranked[..1]), Some(now + LOSS_DELAY));
    }

    #[test]
    fn a_relay_that_comes_back_is_asked_at_once() {
        let now = Instant::now();
        let (mut reservations, ranked) = four(now);
        let (relay, listener) = ask(&mut reservations, &ranked[..1], now);
        assert_eq!(reservations.closed(listener, now), Some(Outcome::Refused(relay)));
        assert_eq!(reservations.next_time(&ranked[..1]), Some(now + REFUSAL_DELAY));
        let later = now + Duration::from_secs(5);
        reservations.arrived(relay, later);
        assert_eq!(reservations.next(&ranked[..1], later).map(|(relay, _)| relay), Some(relay));
    }

    #[test]
    fn a_relay_that_is_forgotten_leaves_its_place() {
        let now = Instant::now();
        let (mut reservations, ranked) = four(now);
        let (relay, listener) = ask(&mut reservations, &ranked, now);
        reservations.opened(listener, now);
        assert_eq!(reservations.forget(&relay), [Released { listener, relay }]);
        assert!(!reservations.contains(listener) && reservations.forget(&relay).is_empty());
    }
}
