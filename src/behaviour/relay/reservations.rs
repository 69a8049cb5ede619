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

/// One reservation may fail while the other carries on.
const MAX_RESERVATIONS: usize = 2;
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
    accepted: bool,
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
        if self.current.len() >= MAX_RESERVATIONS {
            return None;
        }
        ranked.iter().find(|(relay, _)| self.is_free(relay) && self.rest(relay) <= Some(now)).cloned()
    }

    /// Returns the earliest time at which [`next`](Self::next) may find a relay.
    pub(super) fn next_time(&self, ranked: &[(PeerId, Multiaddr)]) -> Option<Instant> {
        if self.current.len() >= MAX_RESERVATIONS {
            return None;
        }
        ranked.iter().filter(|(relay, _)| self.is_free(relay)).filter_map(|(relay, _)| self.rest(relay)).min()
    }

    fn is_free(&self, relay: &PeerId) -> bool {
        self.current.iter().all(|reservation| reservation.relay != *relay)
    }

    fn rest(&self, relay: &PeerId) -> Option<Instant> {
        self.rests.get(relay).map(|rest| rest.until)
    }

    pub(super) fn asked(&mut self, relay: PeerId, listener: ListenerId, now: Instant) {
        self.current.push(Reservation { listener, relay, asked: now, accepted: false });
    }

    /// The listener has an address.
    pub(super) fn opened(&mut self, listener: ListenerId, now: Instant) -> Option<Outcome> {
        let reservation = self.current.iter_mut().find(|r| r.listener == listener && !r.accepted)?;
        reservation.accepted = true;
        self.rests.remove(&reservation.relay);
        Some(Outcome::Accepted(reservation.relay, now.saturating_duration_since(reservation.asked)))
    }

    /// The listener is gone.
    pub(super) fn closed(&mut self, listener: ListenerId, now: Instant) -> Option<Outcome> {
        let index = self.current.iter().position(|r| r.listener == listener)?;
        let Reservation { relay, accepted, .. } = self.current.swap_remove(index);
        let refusals = self.rests.get(&relay).map_or(0, |rest| rest.refusals);
        let (delay, refusals) = match accepted {
            true => (LOSS_DELAY, 0),
            false => {
                let delay = REFUSAL_DELAY.saturating_mul(2u32.saturating_pow(refusals)).min(MAX_DELAY);
                (delay, refusals.saturating_add(1))
            }
        };
        self.rests.insert(relay, Rest { until: now + delay, refusals });
        Some(if accepted { Outcome::Lost(relay) } else { Outcome::Refused(relay) })
    }

    pub(super) fn contains(&self, listener: ListenerId) -> bool {
        self.current.iter().any(|reservation| reservation.listener == listener)
    }

    /// Gives all of them up: the listeners to close, and the relays that had accepted.
    pub(super) fn give_up(&mut self) -> Vec<(ListenerId, Option<PeerId>)> {
        self.current.drain(..).map(|r| (r.listener, r.accepted.then_some(r.relay))).collect()
    }

    /// Forgets a peer that is no relay of ours any longer.
    pub(super) fn forget(&mut self, relay: &PeerId) -> Option<ListenerId> {
        self.rests.remove(relay);
        let index = self.current.iter().position(|reservation| reservation.relay == *relay)?;
        Some(self.current.swap_remove(index).listener)
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

    fn three(now: Instant) -> (Reservations, Vec<(PeerId, Multiaddr)>) {
        let mut reservations = Reservations::default();
        let ranked: Vec<_> = (0..3).map(|_| (PeerId::random(), Multiaddr::empty())).collect();
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
    fn the_two_best_relays_are_asked_and_no_more() {
        let now = Instant::now();
        let (mut reservations, ranked) = three(now);
        assert_eq!(ask(&mut reservations, &ranked, now).0, ranked[0].0);
        assert_eq!(ask(&mut reservations, &ranked, now).0, ranked[1].0);
        assert_eq!(reservations.next(&ranked, now), None);
        assert_eq!(reservations.next_time(&ranked), None);
        assert_eq!(reservations.give_up().len(), 2);
    }

    #[test]
    fn a_refusal_passes_the_turn_on_and_backs_off() {
        let mut now = Instant::now();
        let (mut reservations, ranked) = three(now);
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
        let (mut reservations, ranked) = three(now);
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
        let (mut reservations, ranked) = three(now);
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
        let (mut reservations, ranked) = three(now);
        let (relay, listener) = ask(&mut reservations, &ranked, now);
        assert!(reservations.contains(listener));
        assert_eq!(reservations.forget(&relay), Some(listener));
        assert!(!reservations.contains(listener) && reservations.forget(&relay).is_none());
    }
}
