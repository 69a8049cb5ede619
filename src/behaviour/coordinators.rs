//! The configured coordinators, and when to dial them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;

/// Delay before the first dial again after a failure or a loss; it doubles each time.
const REDIAL_BASE: Duration = Duration::from_secs(1);
/// And never exceeds this.
const REDIAL_CAP: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Coordinator {
    addresses: BTreeSet<Multiaddr>,
    connections: BTreeSet<ConnectionId>,
    /// Dials in a row that failed or led to a connection that was soon lost.
    failures: u32,
    connected_at: Option<Instant>,
    /// When to dial; `None` while a dial is under way or a connection stands.
    dial_at: Option<Instant>,
}

impl Coordinator {
    fn back_off(&mut self, now: Instant) {
        let delay = REDIAL_BASE.saturating_mul(2u32.saturating_pow(self.failures)).min(REDIAL_CAP);
        self.failures = self.failures.saturating_add(1);
        self.dial_at = Some(now + delay);
    }
}

/// The coordinators that we want to be connected to.
#[derive(Debug, Default)]
pub(super) struct Coordinators(BTreeMap<PeerId, Coordinator>);

impl Coordinators {
    pub(super) fn contains(&self, peer: &PeerId) -> bool {
        self.0.contains_key(peer)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds an address of a coordinator; true if the coordinator is new. It is dialed if there are no `connections` to it.
    pub(super) fn add(
        &mut self,
        peer: PeerId,
        address: Multiaddr,
        connections: impl IntoIterator<Item = ConnectionId>,
        now: Instant,
    ) -> bool {
        let is_new = !self.contains(&peer);
        let coordinator = self.0.entry(peer).or_default();
        coordinator.addresses.insert(address);
        if is_new {
            coordinator.dial_at = Some(now);
            for connection in connections {
                self.connected(&peer, connection, now);
            }
        }
        is_new
    }

    pub(super) fn remove(&mut self, peer: &PeerId) -> bool {
        self.0.remove(peer).is_some()
    }

    pub(super) fn connected(&mut self, peer: &PeerId, connection: ConnectionId, now: Instant) {
        if let Some(coordinator) = self.0.get_mut(peer) {
            coordinator.connections.insert(connection);
            coordinator.connected_at.get_or_insert(now);
            coordinator.dial_at = None;
        }
    }

    pub(super) fn disconnected(&mut self, peer: &PeerId, connection: ConnectionId, now: Instant) {
        if let Some(coordinator) = self.0.get_mut(peer) {
            let known = coordinator.connections.remove(&connection);
            if known && coordinator.connections.is_empty() {
                // Who accepts us only to turn us away is not asked every second.
                let since = coordinator.connected_at.take();
                if since.is_some_and(|since| now.saturating_duration_since(since) >= REDIAL_CAP) {
                    coordinator.failures = 0;
                }
                coordinator.back_off(now);
            }
        }
    }

    /// A dial of `peer` failed; true if that is a coordinator of ours.
    pub(super) fn failed(&mut self, peer: &PeerId, now: Instant) -> bool {
        let Some(coordinator) = self.0.get_mut(peer) else { return false };
        if coordinator.connections.is_empty() {
            coordinator.back_off(now);
        }
        true
    }

    pub(super) fn next_dial(&self) -> Option<Instant> {
        self.0.values().filter_map(|coordinator| coordinator.dial_at).min()
    }

    /// The next coordinator whose dial is due, with its addresses.
    pub(super) fn due(&mut self, now: Instant) -> Option<(PeerId, Vec<Multiaddr>)> {
        let (peer, coordinator) =
            self.0.iter_mut().find(|(_, coordinator)| coordinator.dial_at.is_some_and(|at| at <= now))?;
        coordinator.dial_at = None;
        Some((*peer, coordinator.addresses.iter().cloned().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> (Coordinators, PeerId, Instant) {
        let (peer, now) = (PeerId::random(), Instant::now());
        let mut coordinators = Coordinators::default();
        assert!(coordinators.add(peer, "/ip4/192.0.2.1/udp/1/quic-v1".parse().unwrap(), [], now));
        (coordinators, peer, now)
    }

    #[test]
    fn a_new_coordinator_is_dialed_at_once_and_only_once() {
        let (mut coordinators, peer, now) = one();
        assert_eq!(coordinators.due(now).map(|(peer, _)| peer), Some(peer));
        assert!(coordinators.due(now + Duration::from_secs(3600)).is_none());
    }

    #[test]
    fn a_second_address_of_a_coordinator_joins_the_first() {
        let (mut coordinators, peer, now) = one();
        assert!(!coordinators.add(peer, "/ip6/2001:db8::1/udp/1/quic-v1".parse().unwrap(), [], now));
        assert_eq!(coordinators.due(now).map(|(_, addresses)| addresses.len()), Some(2));
    }

    #[test]
    fn failed_dials_back_off_to_half_a_minute() {
        let (mut coordinators, peer, mut now) = one();
        let mut delays = Vec::new();
        for _ in 0..7 {
            coordinators.due(now);
            assert!(coordinators.failed(&peer, now));
            let next = coordinators.next_dial().unwrap();
            delays.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn only_the_loss_of_the_last_connection_leads_to_a_dial() {
        let (mut coordinators, peer, now) = one();
        coordinators.due(now);
        let (first, second) = (ConnectionId::new_unchecked(1), ConnectionId::new_unchecked(2));
        coordinators.connected(&peer, first, now);
        coordinators.connected(&peer, second, now);
        coordinators.disconnected(&peer, first, now);
        assert_eq!(coordinators.next_dial(), None);
        coordinators.disconnected(&peer, second, now);
        assert_eq!(coordinators.next_dial(), Some(now + REDIAL_BASE));
    }

    #[test]
    fn a_coordinator_that_is_connected_already_is_not_dialed() {
        let (peer, now) = (PeerId::random(), Instant::now());
        let connection = ConnectionId::new_unchecked(1);
        let mut coordinators = Coordinators::default();
        coordinators.add(peer, "/ip4/192.0.2.1/udp/1/quic-v1".parse().unwrap(), [connection], now);
        assert_eq!((coordinators.next_dial(), coordinators.due(now)), (None, None));
        coordinators.disconnected(&peer, connection, now);
        assert!(coordinators.next_dial().is_some());
    }

    #[test]
    fn a_coordinator_that_closes_soon_after_accepting_is_dialed_ever_less_often() {
        let (mut coordinators, peer, mut now) = one();
        let connection = ConnectionId::new_unchecked(1);
        let mut flap = |coordinators: &mut Coordinators, lasting: u64| {
            coordinators.due(now);
            coordinators.connected(&peer, connection, now);
            now += Duration::from_secs(lasting);
            coordinators.disconnected(&peer, connection, now);
            let next = coordinators.next_dial().unwrap();
            let delay = (next - now).as_secs();
            now = next;
            delay
        };
        let delays: Vec<_> = (0..7).map(|_| flap(&mut coordinators, 1)).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(flap(&mut coordinators, 30), 1, "it was of use");
        assert_eq!(flap(&mut coordinators, 1), 2);
    }

    #[test]
    fn a_removed_coordinator_is_forgotten() {
        let (mut coordinators, peer, now) = one();
        assert!(coordinators.remove(&peer) && !coordinators.remove(&peer));
        assert!(
            coordinators.is_empty() && coordinators.due(now).is_none() && !coordinators.failed(&peer, now)
        );
    }
}
