//! The coordinators that are needed, and when to dial them.
//!
//! A peer stays registered with those that were configured or found. Others are named by an address
//! of some peer, and are connected only while that peer is looked for.

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
/// Time between two dials of a coordinator, whatever makes it due.
const MIN_REDIAL_INTERVAL: Duration = Duration::from_secs(1);

/// Addresses of one coordinator that other peers reported.
const MAX_TOLD: usize = 4;

#[derive(Debug, Default)]
struct Coordinator {
    /// The configuration or the application names it: we stay registered with it.
    is_configured: bool,
    /// The coordinator was found: we stay registered with it while it is chosen.
    is_found: bool,
    /// The peers for which it was named, as long as they are looked for.
    named_for: BTreeSet<PeerId>,
    addresses: BTreeSet<Multiaddr>,
    /// Addresses that other peers reported, while the coordinator is named for a dial.
    told: BTreeSet<Multiaddr>,
    connections: BTreeSet<ConnectionId>,
    /// The connection that we keep of our own dials.
    dialed: Option<ConnectionId>,
    /// Dials in a row that failed or led to a connection that was soon lost.
    failures: u32,
    connected_at: Option<Instant>,
    /// Our own dials under way.
    dials: BTreeSet<ConnectionId>,
    /// Start of the last dial among these addresses.
    dialed_at: Option<Instant>,
    /// Time of the next dial; `None` while a dial is under way that may succeed, or a connection is
    /// open.
    dial_at: Option<Instant>,
}

impl Coordinator {
    fn is_registrar(&self) -> bool {
        self.is_configured || self.is_found
    }

    fn is_needed(&self) -> bool {
        self.is_registrar() || !self.named_for.is_empty()
    }

    fn back_off(&mut self, now: Instant) {
        let delay = REDIAL_BASE.saturating_mul(2u32.saturating_pow(self.failures)).min(REDIAL_CAP);
        self.failures = self.failures.saturating_add(1);
        self.dial_at = Some(now + delay);
    }

    /// Makes failed and silent coordinators due, since they may work now. A dial that has just
    /// begun is left alone: QUIC is about to send again.
    fn expedite(&mut self, now: Instant) {
        let soon = self.dialed_at.map_or(now, |at| now.max(at + MIN_REDIAL_INTERVAL));
        let has_just_begun = !self.dials.is_empty() && soon > now;
        if self.connections.is_empty() && !has_just_begun {
            self.dial_at = Some(self.dial_at.map_or(soon, |at| at.min(soon)));
        }
    }
}

/// A dial to make now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) peer: PeerId,
    pub(super) addresses: Vec<Multiaddr>,
    /// An earlier dial is still under way, from before the network changed. The new dial does not
    /// wait for it.
    pub(super) in_parallel: bool,
}

/// The coordinators that we want to be connected to.
#[derive(Debug, Default)]
pub(super) struct Coordinators(BTreeMap<PeerId, Coordinator>);

impl Coordinators {
    /// Returns true if we stay registered with `peer`.
    pub(super) fn contains(&self, peer: &PeerId) -> bool {
        self.0.get(peer).is_some_and(|coordinator| coordinator.is_registrar())
    }

    /// Returns those that we stay registered with: the peer, its addresses, and whether a
    /// connection to it is open.
    pub(super) fn registrars(&self) -> impl Iterator<Item = (PeerId, Vec<Multiaddr>, bool)> {
        self.0.iter().filter(|(_, coordinator)| coordinator.is_registrar()).map(|(peer, coordinator)| {
            let addresses = coordinator.addresses.iter().cloned().collect();
            (*peer, addresses, !coordinator.connections.is_empty())
        })
    }

    /// Returns true if a connection to `peer` is needed, for a registration or for a question.
    pub(super) fn needs(&self, peer: &PeerId) -> bool {
        self.0.contains_key(peer)
    }

    /// Returns true if there is no coordinator with which we stay registered.
    pub(super) fn is_empty(&self) -> bool {
        !self.0.values().any(|coordinator| coordinator.is_registrar())
    }

    /// Returns true if the configuration or the application names `peer`.
    pub(super) fn is_configured(&self, peer: &PeerId) -> bool {
        self.0.get(peer).is_some_and(|coordinator| coordinator.is_configured)
    }

    /// Adds an address of a coordinator; returns true if the coordinator is new. It is dialed if
    /// there are no `connections` to it.
    pub(super) fn add(
        &mut self,
        peer: PeerId,
        address: Multiaddr,
        connections: impl IntoIterator<Item = ConnectionId>,
        now: Instant,
    ) -> bool {
        let is_new = !self.contains(&peer);
        let coordinator = self.need(peer, connections, now);
        coordinator.is_configured = true;
        coordinator.addresses.insert(address);
        is_new
    }

    /// Adds a coordinator that was found; true if it is new.
    pub(super) fn find(
        &mut self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        connections: impl IntoIterator<Item = ConnectionId>,
        now: Instant,
    ) -> bool {
        let is_new = !self.contains(&peer);
        let coordinator = self.need(peer, connections, now);
        coordinator.is_found = true;
        if !coordinator.is_configured {
            coordinator.addresses = addresses.into_iter().collect();
        }
        is_new
    }

    /// Adds a coordinator that may know `target`. It is dialed if there are no `connections` to it.
    /// Returns true if no connection to it was needed before.
    pub(super) fn name(
        &mut self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        target: PeerId,
        connections: impl IntoIterator<Item = ConnectionId>,
        now: Instant,
    ) -> bool {
        let is_new = !self.needs(&peer);
        let coordinator = self.need(peer, connections, now);
        // A dial waits for it.
        coordinator.expedite(now);
        coordinator.named_for.insert(target);
        for address in addresses {
            if coordinator.told.len() < MAX_TOLD {
                coordinator.told.insert(address);
            }
        }
        is_new
    }

    fn need(
        &mut self,
        peer: PeerId,
        connections: impl IntoIterator<Item = ConnectionId>,
        now: Instant,
    ) -> &mut Coordinator {
        if !self.needs(&peer) {
            self.0.insert(peer, Coordinator { dial_at: Some(now), ..Coordinator::default() });
            for connection in connections {
                self.connected(&peer, connection, now);
            }
        }
        self.0.entry(peer).or_default()
    }

    /// Ends the registration with `peer`; false if there was none.
    pub(super) fn remove(&mut self, peer: &PeerId) -> bool {
        let Some(coordinator) = self.0.get_mut(peer) else { return false };
        let was_registrar = coordinator.is_registrar();
        (coordinator.is_configured, coordinator.is_found) = (false, false);
        self.forget_unneeded(peer);
        was_registrar
    }

    /// A coordinator that was found is no longer chosen. Returns true if that ends the registration
    /// with it.
    pub(super) fn drop_found(&mut self, peer: &PeerId) -> bool {
        let Some(coordinator) = self.0.get_mut(peer) else { return false };
        let ends = std::mem::take(&mut coordinator.is_found) && !coordinator.is_configured;
        self.forget_unneeded(peer);
        ends
    }

    fn forget_unneeded(&mut self, peer: &PeerId) {
        let Some(coordinator) = self.0.get_mut(peer) else { return };
        if coordinator.named_for.is_empty() {
            coordinator.told.clear();
        }
        if !coordinator.is_needed() {
            self.0.remove(peer);
        }
    }

    /// Returns the peers for which `coordinator` was named.
    pub(super) fn targets_of(&self, coordinator: &PeerId) -> Vec<PeerId> {
        let named = self.0.get(coordinator).map(|coordinator| &coordinator.named_for);
        named.into_iter().flatten().copied().collect()
    }

    /// Returns true if a connection to `coordinator`, which is needed, is open.
    pub(super) fn is_connected(&self, coordinator: &PeerId) -> bool {
        self.0.get(coordinator).is_some_and(|coordinator| !coordinator.connections.is_empty())
    }

    /// Returns true if this is a dial of ours.
    pub(super) fn is_own_dial(&self, coordinator: &PeerId, dial: ConnectionId) -> bool {
        self.0.get(coordinator).is_some_and(|coordinator| coordinator.dials.contains(&dial))
    }

    /// `coordinator` is no longer asked for `target`. Returns true if no connection to it is needed
    /// now.
    pub(super) fn unname(&mut self, coordinator: &PeerId, target: &PeerId) -> bool {
        let Some(named) = self.0.get_mut(coordinator) else { return false };
        let was_named = named.named_for.remove(target);
        self.forget_unneeded(coordinator);
        was_named && !self.needs(coordinator)
    }

    /// Ends the search for `target`. Returns the coordinators to which no connection is needed now.
    pub(super) fn release(&mut self, target: &PeerId) -> Vec<PeerId> {
        let mut released = Vec::from_iter(self.named_for(target));
        released.retain(|coordinator| self.unname(coordinator, target));
        released
    }

    /// Returns an address at which a coordinator may be dialed.
    pub(super) fn address_of(&self, peer: &PeerId) -> Option<Multiaddr> {
        let coordinator = self.0.get(peer)?;
        coordinator.addresses.iter().chain(&coordinator.told).next().cloned()
    }

    /// Returns the coordinators that were named for `target`.
    pub(super) fn named_for(&self, target: &PeerId) -> BTreeSet<PeerId> {
        let named = self.0.iter().filter(|(_, coordinator)| coordinator.named_for.contains(target));
        named.map(|(peer, _)| *peer).collect()
    }

    /// Notes a connection. Returns true if the connection is redundant: a parallel dial of ours
    /// succeeded too.
    pub(super) fn connected(&mut self, peer: &PeerId, connection: ConnectionId, now: Instant) -> bool {
        let Some(coordinator) = self.0.get_mut(peer) else { return false };
        coordinator.connections.insert(connection);
        coordinator.connected_at.get_or_insert(now);
        coordinator.dial_at = None;
        let is_dialed = coordinator.dials.remove(&connection);
        is_dialed && *coordinator.dialed.get_or_insert(connection) != connection
    }

    pub(super) fn disconnected(&mut self, peer: &PeerId, connection: ConnectionId, now: Instant) {
        if let Some(coordinator) = self.0.get_mut(peer) {
            let known = coordinator.connections.remove(&connection);
            coordinator.dialed.take_if(|dialed| *dialed == connection);
            if known && coordinator.connections.is_empty() {
                // A coordinator that accepts connections only to close them is not dialed every
                // second.
                let since = coordinator.connected_at.take();
                if since.is_some_and(|since| now.saturating_duration_since(since) >= REDIAL_CAP) {
                    coordinator.failures = 0;
                }
                coordinator.back_off(now);
            }
        }
    }

    /// We dial `peer`.
    pub(super) fn dialing(&mut self, peer: &PeerId, dial: ConnectionId, now: Instant) {
        if let Some(coordinator) = self.0.get_mut(peer) {
            coordinator.dials.insert(dial);
            coordinator.dialed_at = Some(now);
        }
    }

    /// Records the failure of a dial of `peer`; returns true if that is a coordinator of ours.
    /// Dials of other components do not count.
    pub(super) fn failed(&mut self, peer: &PeerId, dial: ConnectionId, now: Instant) -> bool {
        let Some(coordinator) = self.0.get_mut(peer) else { return false };
        if coordinator.dials.remove(&dial)
            && coordinator.dials.is_empty()
            && coordinator.connections.is_empty()
            && coordinator.dial_at.is_none()
        {
            coordinator.back_off(now);
        }
        true
    }

    /// Our network has changed: an interface came up, or we have another address. Every coordinator
    /// without a connection is due, whatever became of earlier dials.
    pub(super) fn network_changed(&mut self, now: Instant) {
        for coordinator in self.0.values_mut() {
            coordinator.failures = 0;
            coordinator.expedite(now);
        }
    }

    /// Makes the coordinators due that may know `target` and back off, since a dial needs one.
    pub(super) fn wanted(&mut self, target: &PeerId, now: Instant) {
        let may_know = |coordinator: &&mut Coordinator| {
            coordinator.is_registrar() || coordinator.named_for.contains(target)
        };
        let idle = self.0.values_mut().filter(|coordinator| coordinator.dials.is_empty());
        idle.filter(may_know).for_each(|coordinator| coordinator.expedite(now));
    }

    pub(super) fn next_dial(&self) -> Option<Instant> {
        self.0.values().filter_map(|coordinator| coordinator.dial_at).min()
    }

    /// Returns the next coordinator whose dial is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        let (peer, coordinator) =
            self.0.iter_mut().find(|(_, coordinator)| coordinator.dial_at.is_some_and(|at| at <= now))?;
        coordinator.dial_at = None;
        let addresses = coordinator.addresses.union(&coordinator.told).cloned().collect();
        Some(Due { peer: *peer, addresses, in_parallel: !coordinator.dials.is_empty() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_dials_that_both_succeed_one_connection_is_kept() {
        let (mut coordinators, peer, now) = one();
        let [first, second, theirs] = [1, 2, 3].map(ConnectionId::new_unchecked);
        coordinators.dialing(&peer, first, now);
        coordinators.dialing(&peer, second, now);
        assert!(!coordinators.connected(&peer, theirs, now), "the coordinator dialed us, and may keep that");
        assert!(!coordinators.connected(&peer, first, now));
        assert!(coordinators.connected(&peer, second, now));
        coordinators.disconnected(&peer, second, now);
        coordinators.disconnected(&peer, first, now);
        coordinators.dialing(&peer, second, now);
        assert!(!coordinators.connected(&peer, second, now));
    }

    fn one() -> (Coordinators, PeerId, Instant) {
        let (peer, now) = (PeerId::random(), Instant::now());
        let mut coordinators = Coordinators::default();
        assert!(coordinators.add(peer, "/ip4/192.0.2.1/udp/1/quic-v1".parse().unwrap(), [], now));
        (coordinators, peer, now)
    }

    fn dial() -> ConnectionId {
        ConnectionId::new_unchecked(7)
    }

    /// Dials, in vain.
    fn fail(coordinators: &mut Coordinators, peer: PeerId, now: Instant) {
        assert!(coordinators.due(now).is_some());
        coordinators.dialing(&peer, dial(), now);
        assert!(coordinators.failed(&peer, dial(), now));
    }

    #[test]
    fn a_change_of_the_network_makes_a_coordinator_due_at_once_but_not_more_than_once_a_second() {
        let (mut coordinators, peer, mut now) = one();
        for _ in 0..6 {
            now = coordinators.next_dial().unwrap();
            fail(&mut coordinators, peer, now);
        }
        assert_eq!(coordinators.next_dial(), Some(now + REDIAL_CAP));
        for _ in 0..3 {
            coordinators.network_changed(now);
            assert_eq!(coordinators.next_dial(), Some(now + MIN_REDIAL_INTERVAL));
            now += MIN_REDIAL_INTERVAL;
            fail(&mut coordinators, peer, now);
        }
        coordinators.network_changed(now + 2 * MIN_REDIAL_INTERVAL);
        assert!(coordinators.due(now + 2 * MIN_REDIAL_INTERVAL).is_some());
    }

    #[test]
    fn a_dial_from_before_the_network_changed_is_not_waited_for() {
        let (mut coordinators, peer, mut now) = one();
        assert!(!coordinators.due(now).unwrap().in_parallel);
        coordinators.dialing(&peer, dial(), now);
        now += Duration::from_secs(3);
        coordinators.wanted(&PeerId::random(), now);
        assert_eq!(coordinators.next_dial(), None, "it is being dialed");
        coordinators.network_changed(now);
        assert!(coordinators.due(now).unwrap().in_parallel);
        let second = ConnectionId::new_unchecked(8);
        coordinators.dialing(&peer, second, now);
        assert!(coordinators.failed(&peer, dial(), now));
        assert_eq!(coordinators.next_dial(), None, "the second dial goes on");
        coordinators.connected(&peer, second, now);
        assert_eq!(coordinators.next_dial(), None);
    }

    #[test]
    fn a_dial_that_needs_a_coordinator_ends_its_back_off() {
        let (mut coordinators, peer, mut now) = one();
        for _ in 0..6 {
            now = coordinators.next_dial().unwrap();
            fail(&mut coordinators, peer, now);
        }
        now += Duration::from_secs(2);
        coordinators.wanted(&PeerId::random(), now);
        assert_eq!(coordinators.next_dial(), Some(now));
    }

    #[test]
    fn failed_dials_of_others_are_no_failures() {
        let (mut coordinators, peer, now) = one();
        coordinators.due(now);
        coordinators.dialing(&peer, dial(), now);
        assert!(coordinators.failed(&peer, ConnectionId::new_unchecked(99), now));
        assert_eq!(coordinators.next_dial(), None);
    }

    #[test]
    fn a_new_coordinator_is_dialed_at_once_and_only_once() {
        let (mut coordinators, peer, now) = one();
        assert_eq!(coordinators.due(now).map(|due| due.peer), Some(peer));
        assert!(coordinators.due(now + Duration::from_secs(3600)).is_none());
    }

    #[test]
    fn a_second_address_of_a_coordinator_joins_the_first() {
        let (mut coordinators, peer, now) = one();
        assert!(!coordinators.add(peer, "/ip6/2001:db8::1/udp/1/quic-v1".parse().unwrap(), [], now));
        assert_eq!(coordinators.due(now).map(|due| due.addresses.len()), Some(2));
    }

    #[test]
    fn failed_dials_back_off_to_half_a_minute() {
        let (mut coordinators, peer, mut now) = one();
        let mut delays = Vec::new();
        for _ in 0..7 {
            fail(&mut coordinators, peer, now);
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
            coordinators.is_empty()
                && coordinators.due(now).is_none()
                && !coordinators.failed(&peer, dial(), now)
        );
    }
}
