//! The record of each coordinator that this peer stays registered with.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;
use libp2p_punch_proto::wire::frame::RejectReason;

/// The record of one coordinator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Registration {
    /// Time of the first registration over the present connection; `None` without one.
    pub(super) since: Option<Instant>,
    /// Time that the coordinator took to answer the last registration.
    pub(super) rtt: Option<Duration>,
    /// Registrations that it accepted, renewals among them.
    pub(super) accepted: u64,
    /// Dials of it that failed, and registrations that it rejected.
    pub(super) failed: u64,
}

/// The records of all coordinators.
#[derive(Debug, Default)]
pub(super) struct Registrations(BTreeMap<PeerId, Registration>);

impl Registrations {
    pub(super) fn of(&self, coordinator: &PeerId) -> Registration {
        self.0.get(coordinator).copied().unwrap_or_default()
    }

    /// Returns true if no coordinator has registered this peer.
    pub(super) fn is_empty(&self) -> bool {
        self.0.values().all(|registration| registration.since.is_none())
    }

    /// A coordinator accepted a registration or its renewal.
    pub(super) fn accepted(&mut self, coordinator: PeerId, rtt: Option<Duration>, now: Instant) {
        let registration = self.0.entry(coordinator).or_default();
        registration.since.get_or_insert(now);
        registration.rtt = rtt.or(registration.rtt);
        registration.accepted += 1;
    }

    /// A coordinator rejected a registration. If that only came too soon, the one before stays in
    /// force.
    pub(super) fn rejected(&mut self, coordinator: PeerId, reason: RejectReason) {
        let since = self.of(&coordinator).since.filter(|_| reason == RejectReason::RateLimited);
        self.failed(coordinator);
        self.0.entry(coordinator).or_default().since = since;
    }

    /// A coordinator could not be dialed.
    pub(super) fn failed(&mut self, coordinator: PeerId) {
        let registration = self.0.entry(coordinator).or_default();
        registration.since = None;
        registration.failed += 1;
    }

    /// The last connection to a coordinator has ended, and the registration with it.
    pub(super) fn disconnected(&mut self, coordinator: &PeerId) {
        if let Some(registration) = self.0.get_mut(coordinator) {
            registration.since = None;
        }
    }

    /// The peer is no coordinator of this peer any longer.
    pub(super) fn remove(&mut self, coordinator: &PeerId) {
        self.0.remove(coordinator);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_lasts_as_long_as_its_connection_and_the_record_longer() {
        let (mut registrations, peer, now) = (Registrations::default(), PeerId::random(), Instant::now());
        let rtt = Some(Duration::from_millis(40));
        registrations.accepted(peer, rtt, now);
        registrations.accepted(peer, None, now + Duration::from_secs(150));
        let expected = Registration { since: Some(now), rtt, accepted: 2, failed: 0 };
        assert_eq!((registrations.of(&peer), registrations.is_empty()), (expected, false));
        registrations.rejected(peer, RejectReason::RateLimited);
        assert_eq!(registrations.of(&peer), Registration { failed: 1, ..expected });
        registrations.rejected(peer, RejectReason::Full);
        assert!(registrations.is_empty());
        registrations.accepted(peer, None, now);
        registrations.disconnected(&peer);
        registrations.failed(peer);
        let expected = Registration { since: None, accepted: 3, failed: 3, ..expected };
        assert_eq!((registrations.of(&peer), registrations.is_empty()), (expected, true));
        registrations.remove(&peer);
        assert_eq!(registrations.of(&peer), Registration::default());
    }
}
