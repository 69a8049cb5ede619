//! Relayed connections on their way to being direct ones.
//!
//! As long as a peer is connected over relays only, traversal is tried again and again. Once a direct connection stands,
//! the relayed ones are left to the streams on them for a while, and then closed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;

/// Delay before the next attempt after the first one that failed; it doubles each time.
const BASE: Duration = Duration::from_secs(5);
/// And never exceeds this.
const CAP: Duration = Duration::from_secs(60);
/// The side that did not dial the relayed connection leaves the first attempt to the other.
const LISTENER_WAITS: Duration = Duration::from_secs(30);
/// After a change of our addresses the others need to settle, too.
const AFTER_CHANGE: Duration = Duration::from_secs(1);
/// However often our addresses change.
const MIN_GAP: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Peer {
    relayed: BTreeSet<ConnectionId>,
    direct: BTreeSet<ConnectionId>,
    failures: u32,
    /// When to try; `None` if there is nothing to upgrade.
    next: Option<Instant>,
    last: Option<Instant>,
    /// When to close the relayed connections.
    close_at: Option<Instant>,
}

/// How a relayed connection came about, and so when its upgrade is tried first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// We dialed it: at once.
    Dialed,
    /// We dialed it because traversal has just failed for good: no sooner than after any other failure.
    LastResort,
    /// The other side dialed it, and goes first.
    Accepted,
}

/// What follows from a new connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    Nothing,
    /// The peer is connected, over a relay only.
    Relayed,
    /// The peer is connected directly now.
    Upgraded,
}

/// All connected peers.
#[derive(Debug)]
pub(super) struct Upgrades {
    peers: BTreeMap<PeerId, Peer>,
    drain: Duration,
}

impl Upgrades {
    pub(super) fn new(drain: Duration) -> Self {
        Self { peers: BTreeMap::new(), drain }
    }

    /// A relayed connection stands. A session that is under way is joined by the first attempt to upgrade it.
    pub(super) fn relayed(&mut self, peer: PeerId, id: ConnectionId, origin: Origin, now: Instant) -> News {
        let drain = self.drain;
        let entry = self.peers.entry(peer).or_default();
        let is_first = entry.relayed.is_empty();
        entry.relayed.insert(id);
        if !entry.direct.is_empty() {
            entry.close_at = now.checked_add(drain);
            return News::Nothing;
        }
        if !is_first {
            return News::Nothing;
        }
        let (delay, failures) = match origin {
            Origin::Dialed => (Duration::ZERO, 0),
            Origin::LastResort => (BASE, 1),
            Origin::Accepted => (LISTENER_WAITS, 0),
        };
        entry.next = Some(now + delay);
        entry.failures = failures;
        News::Relayed
    }

    pub(super) fn direct(&mut self, peer: PeerId, id: ConnectionId, now: Instant) -> News {
        let drain = self.drain;
        let entry = self.peers.entry(peer).or_default();
        entry.direct.insert(id);
        entry.next = None;
        entry.failures = 0;
        if entry.relayed.is_empty() || entry.close_at.is_some() {
            return News::Nothing;
        }
        entry.close_at = now.checked_add(drain);
        News::Upgraded
    }

    /// True if that was the last connection to the peer.
    pub(super) fn closed(&mut self, peer: &PeerId, id: ConnectionId, now: Instant) -> bool {
        let Some(entry) = self.peers.get_mut(peer) else { return true };
        entry.relayed.remove(&id);
        let lost_direct = entry.direct.remove(&id) && entry.direct.is_empty();
        if entry.relayed.is_empty() {
            entry.next = None;
            entry.close_at = None;
        } else if lost_direct {
            entry.close_at = None;
            entry.next = Some(now);
        }
        let is_last = entry.relayed.is_empty() && entry.direct.is_empty();
        if is_last {
            self.peers.remove(peer);
        }
        is_last
    }

    pub(super) fn is_connected(&self, peer: &PeerId) -> bool {
        self.peers.contains_key(peer)
    }

    pub(super) fn is_direct(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|entry| !entry.direct.is_empty())
    }

    /// A session with the peer failed.
    pub(super) fn failed(&mut self, peer: &PeerId, now: Instant) {
        let Some(entry) = self.peers.get_mut(peer) else { return };
        if entry.next.is_some() {
            let delay = BASE.saturating_mul(2u32.saturating_pow(entry.failures)).min(CAP);
            entry.failures = entry.failures.saturating_add(1);
            entry.next = Some(now + delay);
        }
    }

    /// We have other addresses than before: what failed may work now.
    pub(super) fn network_changed(&mut self, now: Instant) {
        for entry in self.peers.values_mut() {
            if let Some(next) = &mut entry.next {
                let soon = entry.last.map_or(now, |last| last + MIN_GAP).max(now + AFTER_CHANGE);
                *next = soon.min(*next);
                entry.failures = 0;
            }
        }
    }

    /// The next peer to be tried.
    pub(super) fn due(&mut self, now: Instant) -> Option<PeerId> {
        let (peer, entry) =
            self.peers.iter_mut().find(|(_, entry)| entry.next.is_some_and(|at| at <= now))?;
        // Whatever becomes of this attempt, another one follows.
        entry.next = Some(now + CAP);
        entry.last = Some(now);
        Some(*peer)
    }

    /// The next relayed connection whose time is over.
    pub(super) fn drained(&mut self, now: Instant) -> Option<(PeerId, ConnectionId)> {
        let (peer, entry) = self.peers.iter_mut().find(|(_, e)| e.close_at.is_some_and(|at| at <= now))?;
        let id = entry.relayed.pop_first()?;
        if entry.relayed.is_empty() {
            entry.close_at = None;
        }
        Some((*peer, id))
    }

    pub(super) fn next_time(&self) -> Option<Instant> {
        self.peers.values().flat_map(|entry| [entry.next, entry.close_at]).flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAIN: Duration = Duration::from_secs(120);

    fn id(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    fn relayed() -> (Upgrades, PeerId, Instant) {
        let (peer, now) = (PeerId::random(), Instant::now());
        let mut upgrades = Upgrades::new(DRAIN);
        assert_eq!(upgrades.relayed(peer, id(1), Origin::Dialed, now), News::Relayed);
        (upgrades, peer, now)
    }

    #[test]
    fn a_relayed_peer_is_tried_at_once_and_then_at_least_every_minute() {
        let (mut upgrades, peer, mut now) = relayed();
        let mut delays = Vec::new();
        for _ in 0..6 {
            assert_eq!(upgrades.due(now), Some(peer));
            assert_eq!(upgrades.due(now), None);
            upgrades.failed(&peer, now);
            let next = upgrades.next_time().unwrap();
            delays.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(delays, [5, 10, 20, 40, 60, 60]);
    }

    #[test]
    fn an_attempt_of_which_nothing_is_heard_is_followed_by_another_within_a_minute() {
        let (mut upgrades, peer, now) = relayed();
        upgrades.due(now);
        assert_eq!(upgrades.due(now + CAP), Some(peer));
    }

    #[test]
    fn the_side_that_was_dialed_waits_for_the_other() {
        let (mut upgrades, peer, now) = (Upgrades::new(DRAIN), PeerId::random(), Instant::now());
        upgrades.relayed(peer, id(1), Origin::Accepted, now);
        assert_eq!(upgrades.due(now), None);
        assert_eq!(upgrades.due(now + LISTENER_WAITS), Some(peer));
    }

    #[test]
    fn what_has_just_failed_is_not_tried_again_at_once() {
        let (mut upgrades, peer, mut now) = (Upgrades::new(DRAIN), PeerId::random(), Instant::now());
        upgrades.relayed(peer, id(1), Origin::LastResort, now);
        for delay in [5, 10, 20] {
            assert_eq!(upgrades.due(now), None);
            now += Duration::from_secs(delay);
            assert_eq!(upgrades.due(now), Some(peer));
            upgrades.failed(&peer, now);
        }
    }

    #[test]
    fn new_addresses_lead_to_an_attempt_soon_but_not_to_many() {
        let (mut upgrades, peer, now) = relayed();
        upgrades.due(now);
        upgrades.network_changed(now);
        assert_eq!(upgrades.next_time(), Some(now + MIN_GAP));
        let now = now + CAP;
        upgrades.due(now);
        upgrades.network_changed(now + Duration::from_secs(10));
        upgrades.network_changed(now + Duration::from_secs(11));
        assert_eq!(upgrades.next_time(), Some(now + Duration::from_secs(11)));
        assert_eq!(upgrades.due(now + Duration::from_secs(11)), Some(peer));
    }

    #[test]
    fn a_direct_connection_ends_the_attempts_and_lets_the_relayed_ones_drain() {
        let (mut upgrades, peer, now) = relayed();
        upgrades.relayed(peer, id(2), Origin::Dialed, now);
        assert_eq!(upgrades.direct(peer, id(3), now), News::Upgraded);
        assert_eq!(upgrades.direct(peer, id(4), now + DRAIN / 2), News::Nothing);
        assert_eq!(upgrades.due(now + DRAIN), None);
        assert_eq!(upgrades.drained(now + DRAIN / 2), None);
        assert_eq!(upgrades.next_time(), Some(now + DRAIN));
        assert_eq!(upgrades.drained(now + DRAIN), Some((peer, id(1))));
        assert_eq!(upgrades.drained(now + DRAIN), Some((peer, id(2))));
        assert_eq!(upgrades.drained(now + DRAIN), None);
        assert!(!upgrades.closed(&peer, id(3), now) && upgrades.closed(&peer, id(4), now));
        assert!(upgrades.peers.is_empty());
    }

    #[test]
    fn if_the_direct_connection_goes_first_the_relayed_one_stays_and_is_tried_again() {
        let (mut upgrades, peer, now) = relayed();
        upgrades.direct(peer, id(2), now);
        assert!(upgrades.is_direct(&peer));
        assert!(!upgrades.closed(&peer, id(2), now));
        assert_eq!(upgrades.drained(now + DRAIN), None);
        assert_eq!(upgrades.due(now), Some(peer));
        assert!(upgrades.is_connected(&peer) && !upgrades.is_direct(&peer));
    }
}
