//! Upgrades of relayed connections to direct connections.
//!
//! While a peer is connected over relays only, traversal is tried again. One back-off counts every
//! failure: a session, a connection that a swarm denies, or a direct connection that ends soon.
//! Once a direct connection has proved to last, the relayed connections stay open for their streams
//! for a while, and are then closed. Until then the direct connection is kept alive.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;

use libp2p_punch_proto::endpoint::PROBATION;

/// Delay before the next attempt after the first failure; it doubles each time.
const RETRY_BASE: Duration = Duration::from_secs(5);
/// And never exceeds this.
const RETRY_CAP: Duration = Duration::from_secs(60);
/// The side that did not dial the relayed connection leaves the first attempt to the other.
const LISTENER_DELAY: Duration = Duration::from_secs(30);
/// After a change of our addresses the others need to settle, too.
const CHANGE_DELAY: Duration = Duration::from_secs(1);
/// However often our addresses change.
const MIN_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Peer {
    relayed: BTreeSet<ConnectionId>,
    /// Direct connections, each with the time of its opening.
    direct: BTreeMap<ConnectionId, Instant>,
    /// The other side dialed the first relayed connection, and goes first.
    leaves_it_to_the_other: bool,
    /// Attempts in a row that led to no direct connection, or to a connection that soon ended.
    failures: u32,
    /// Time of the next attempt; `None` if there is nothing to upgrade.
    next: Option<Instant>,
    last: Option<Instant>,
    /// Time at which the direct connection has proved to last, if it has not yet.
    proved_at: Option<Instant>,
    /// Time at which to close the relayed connections, if a direct connection has proved to last by
    /// then. Set once, and not reset by a direct connection that comes and goes.
    close_at: Option<Instant>,
}

impl Peer {
    fn back_off(&mut self, now: Instant) {
        let delay = RETRY_BASE.saturating_mul(2u32.saturating_pow(self.failures)).min(RETRY_CAP);
        let other_first = if self.leaves_it_to_the_other { LISTENER_DELAY } else { Duration::ZERO };
        self.failures = self.failures.saturating_add(1);
        self.next = Some(now + delay + other_first);
    }

    /// Returns the time at which the relayed connections have had their time.
    fn drained_at(&self) -> Option<Instant> {
        let is_proved = !self.direct.is_empty() && self.proved_at.is_none();
        self.close_at.filter(|_| is_proved && !self.relayed.is_empty())
    }
}

/// Origin of a relayed connection, which sets the time of its first upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// We dialed it: at once.
    Dialed,
    /// We dialed it because traversal has just failed for good: no sooner than after any other
    /// failure.
    LastResort,
    /// The other side dialed it, and goes first.
    Accepted,
}

/// Consequence of a new connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    Nothing,
    /// The peer is connected, over a relay only.
    Relayed,
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

    /// A relayed connection was opened. A session that is under way is joined by the first attempt
    /// to upgrade it.
    pub(super) fn relayed(&mut self, peer: PeerId, id: ConnectionId, origin: Origin, now: Instant) -> News {
        let drain = self.drain;
        let entry = self.peers.entry(peer).or_default();
        let is_first = entry.relayed.is_empty();
        entry.relayed.insert(id);
        if !is_first {
            return News::Nothing;
        }
        entry.leaves_it_to_the_other = origin == Origin::Accepted;
        if !entry.direct.is_empty() {
            entry.close_at = now.checked_add(drain);
            return News::Nothing;
        }
        let (delay, failures) = match origin {
            Origin::Dialed => (Duration::ZERO, 0),
            Origin::LastResort => (RETRY_BASE, 1),
            Origin::Accepted => (LISTENER_DELAY, 0),
        };
        entry.next = Some(now + delay);
        entry.failures = failures;
        News::Relayed
    }

    pub(super) fn direct(&mut self, peer: PeerId, id: ConnectionId, now: Instant) {
        let entry = self.peers.entry(peer).or_default();
        if entry.direct.is_empty() && !entry.relayed.is_empty() {
            entry.proved_at = Some(now + PROBATION);
        }
        entry.direct.insert(id, now);
        entry.next = None;
    }

    /// Returns the next peer whose direct connection has proved to last while a relayed connection
    /// is open.
    pub(super) fn proved(&mut self, now: Instant) -> Option<PeerId> {
        let drain = self.drain;
        let is_fresh = |(_, entry): &(&PeerId, &mut Peer)| entry.proved_at.is_some_and(|at| at <= now);
        let (peer, entry) = self.peers.iter_mut().find(is_fresh)?;
        entry.proved_at = None;
        let since = entry.direct.values().min().copied().unwrap_or(now);
        entry.close_at = entry.close_at.or_else(|| since.checked_add(drain));
        Some(*peer)
    }

    /// True if that was the last connection to the peer.
    pub(super) fn closed(&mut self, peer: &PeerId, id: ConnectionId, now: Instant) -> bool {
        let Some(entry) = self.peers.get_mut(peer) else { return true };
        entry.relayed.remove(&id);
        let ended = entry.direct.remove(&id).filter(|_| entry.direct.is_empty());
        if entry.relayed.is_empty() {
            (entry.next, entry.proved_at, entry.close_at, entry.failures) = (None, None, None, 0);
        } else if let Some(since) = ended {
            entry.proved_at = None;
            if now.saturating_duration_since(since) < RETRY_CAP {
                entry.back_off(now);
            } else {
                entry.failures = 0;
                entry.next = Some(now);
            }
        }
        let is_last = entry.relayed.is_empty() && entry.direct.is_empty();
        if is_last {
            self.peers.remove(peer);
        }
        is_last
    }

    /// Direct connections of a peer that is connected over a relay as well, and whether they have
    /// to be kept alive for that.
    pub(super) fn draining(&self, peer: &PeerId) -> (Vec<ConnectionId>, bool) {
        let entry = self.peers.get(peer);
        let direct = entry.map(|entry| entry.direct.keys().copied().collect()).unwrap_or_default();
        (direct, entry.is_some_and(|entry| !entry.relayed.is_empty()))
    }

    pub(super) fn is_connected(&self, peer: &PeerId) -> bool {
        self.peers.contains_key(peer)
    }

    pub(super) fn is_direct(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|entry| !entry.direct.is_empty())
    }

    pub(super) fn is_relayed(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|entry| !entry.relayed.is_empty())
    }

    /// A session with the peer failed, or our own swarm denied the connection that came of it.
    pub(super) fn failed(&mut self, peer: &PeerId, now: Instant) {
        if let Some(entry) = self.peers.get_mut(peer).filter(|entry| entry.next.is_some()) {
            entry.back_off(now);
        }
    }

    /// Makes failed upgrades due, since our addresses changed.
    pub(super) fn network_changed(&mut self, now: Instant) {
        for entry in self.peers.values_mut() {
            if let Some(next) = &mut entry.next {
                let soon = entry.last.map_or(now, |last| last + MIN_INTERVAL).max(now + CHANGE_DELAY);
                *next = soon.min(*next);
                entry.failures = 0;
            }
        }
    }

    /// The next peer to be tried.
    pub(super) fn due(&mut self, now: Instant) -> Option<PeerId> {
        let (peer, entry) =
            self.peers.iter_mut().find(|(_, entry)| entry.next.is_some_and(|at| at <= now))?;
        // Another attempt follows this attempt, whatever its outcome.
        entry.next = Some(now + RETRY_CAP);
        entry.last = Some(now);
        Some(*peer)
    }

    /// Returns the next relayed connection whose time is over.
    pub(super) fn drained(&mut self, now: Instant) -> Option<(PeerId, ConnectionId)> {
        let (peer, entry) =
            self.peers.iter_mut().find(|(_, entry)| entry.drained_at().is_some_and(|at| at <= now))?;
        Some((*peer, entry.relayed.pop_first()?))
    }

    pub(super) fn next_time(&self) -> Option<Instant> {
        let times = |entry: &Peer| [entry.next, entry.proved_at, entry.drained_at()];
        self.peers.values().flat_map(times).flatten().min()
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
        assert_eq!(upgrades.due(now + RETRY_CAP), Some(peer));
    }

    #[test]
    fn the_side_that_was_dialed_waits_for_the_other() {
        let (mut upgrades, peer, now) = (Upgrades::new(DRAIN), PeerId::random(), Instant::now());
        upgrades.relayed(peer, id(1), Origin::Accepted, now);
        assert_eq!(upgrades.due(now), None);
        assert_eq!(upgrades.due(now + LISTENER_DELAY), Some(peer));
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
        assert_eq!(upgrades.next_time(), Some(now + MIN_INTERVAL));
        let now = now + RETRY_CAP;
        upgrades.due(now);
        upgrades.network_changed(now + Duration::from_secs(10));
        upgrades.network_changed(now + Duration::from_secs(11));
        assert_eq!(upgrades.next_time(), Some(now + Duration::from_secs(11)));
        assert_eq!(upgrades.due(now + Duration::from_secs(11)), Some(peer));
    }

    #[test]
    fn a_direct_connection_that_lasts_lets_the_relayed_ones_drain() {
        let (mut upgrades, peer, now) = relayed();
        upgrades.relayed(peer, id(2), Origin::Dialed, now);
        upgrades.direct(peer, id(3), now);
        assert_eq!((upgrades.due(now + DRAIN), upgrades.proved(now)), (None, None));
        assert_eq!(upgrades.next_time(), Some(now + PROBATION));
        assert_eq!(upgrades.proved(now + PROBATION), Some(peer));
        assert_eq!(upgrades.proved(now + PROBATION), None);
        upgrades.direct(peer, id(4), now + DRAIN / 2);
        assert_eq!((upgrades.proved(now + DRAIN), upgrades.drained(now + DRAIN / 2)), (None, None));
        assert_eq!(upgrades.next_time(), Some(now + DRAIN));
        assert_eq!(upgrades.draining(&peer), (vec![id(3), id(4)], true));
        assert_eq!(upgrades.drained(now + DRAIN), Some((peer, id(1))));
        assert_eq!(upgrades.drained(now + DRAIN), Some((peer, id(2))));
        assert_eq!(upgrades.drained(now + DRAIN), None);
        assert_eq!((upgrades.draining(&peer).1, upgrades.next_time()), (false, None));
        assert!(!upgrades.closed(&peer, id(3), now) && upgrades.closed(&peer, id(4), now));
        assert!(upgrades.peers.is_empty());
    }

    #[test]
    fn a_direct_connection_that_soon_ends_is_a_failure() {
        let (mut upgrades, peer, mut now) = relayed();
        let mut delays = Vec::new();
        for number in 10..16 {
            assert_eq!(upgrades.due(now), Some(peer));
            upgrades.direct(peer, id(number), now);
            now += PROBATION / 2;
            assert!(!upgrades.closed(&peer, id(number), now));
            assert_eq!(upgrades.proved(now + DRAIN), None, "nobody hears of it");
            let next = upgrades.next_time().unwrap();
            delays.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(delays, [5, 10, 20, 40, 60, 60]);
        assert_eq!(upgrades.drained(now + DRAIN), None, "the relayed connection is all there is");
    }

    #[test]
    fn the_time_of_a_relayed_connection_is_not_reset_by_direct_ones_that_come_and_go() {
        let (mut upgrades, peer, begin) = relayed();
        let mut now = begin;
        for number in 10..13 {
            upgrades.direct(peer, id(number), now);
            now += PROBATION;
            assert_eq!(upgrades.proved(now), Some(peer));
            now += DRAIN / 3;
            if now < begin + DRAIN {
                assert!(!upgrades.closed(&peer, id(number), now));
            }
        }
        assert_eq!(upgrades.drained(now), Some((peer, id(1))));
    }

    #[test]
    fn a_relayed_connection_is_not_closed_while_nothing_else_stands() {
        let (mut upgrades, peer, now) = relayed();
        upgrades.direct(peer, id(2), now);
        upgrades.proved(now + PROBATION);
        let later = now + RETRY_CAP;
        assert!(upgrades.is_direct(&peer) && !upgrades.closed(&peer, id(2), later));
        assert_eq!(upgrades.drained(now + DRAIN), None);
        assert_eq!(upgrades.due(later), Some(peer), "it was of use");
        assert!(upgrades.is_connected(&peer) && !upgrades.is_direct(&peer));
        upgrades.direct(peer, id(3), now + DRAIN);
        assert_eq!(upgrades.drained(now + DRAIN), None, "it may be denied");
        upgrades.proved(now + DRAIN + PROBATION);
        assert_eq!(upgrades.drained(now + DRAIN + PROBATION), Some((peer, id(1))));
    }

    #[test]
    fn the_side_that_was_dialed_goes_on_leaving_the_attempts_to_the_other() {
        let (mut upgrades, peer, now) = (Upgrades::new(DRAIN), PeerId::random(), Instant::now());
        upgrades.relayed(peer, id(1), Origin::Accepted, now);
        upgrades.failed(&peer, now);
        assert_eq!(upgrades.next_time(), Some(now + RETRY_BASE + LISTENER_DELAY));
    }
}
