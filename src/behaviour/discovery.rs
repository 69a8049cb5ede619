//! Coordinators that this peer finds among its connected peers.
//!
//! A peer that coordinates announces the protocol name
//! [`COORDINATOR_PROTOCOL_NAME`](super::COORDINATOR_PROTOCOL_NAME) over identify. A peer behind a
//! NAT registers with the nearest coordinators by Kademlia's distance: in a DHT every peer can then
//! find them by the PeerId alone. One more coordinator is the nearest to a secret key, so that an
//! attacker with PeerIds near this peer does not get all places. The keys of peers differ, so that
//! no coordinator gets all peers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use sha2::{Digest, Sha256};

/// Coordinators that are remembered. With more, those farthest away are forgotten.
const MAX_KNOWN: usize = 64;
/// Addresses that are remembered of each, of those that it claims.
const MAX_ADDRESSES: usize = 4;
/// Time for which a coordinator that failed is not chosen. It doubles with each further failure.
const FAILURE_DELAY: Duration = Duration::from_secs(60);
const MAX_FAILURE_DELAY: Duration = Duration::from_secs(3600);
/// Time for a chosen coordinator to be connected and to register us.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between two searches for coordinators while some are missing. It doubles each time.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_secs(10);
/// Longest such time, and the time while none is missing: nearer coordinators may have come.
const MAX_REFRESH_INTERVAL: Duration = Duration::from_secs(600);
/// Bits of an address that name the network within which not all coordinators may be.
const IPV4_PREFIX: u32 = 16;
const IPV6_PREFIX: u32 = 32;

/// A distance of Kademlia: the exclusive or of two hashes.
type Distance = [u8; 32];

/// A coordinator that was found.
#[derive(Debug)]
struct Known {
    /// From this peer.
    distance: Distance,
    /// From the secret key.
    secret_distance: Distance,
    /// The address at which we dialed it.
    dialed: Option<Multiaddr>,
    /// Addresses that it claims.
    told: Vec<Multiaddr>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Known {
    fn may_be_chosen(&self, now: Instant) -> bool {
        (self.dialed.is_some() || !self.told.is_empty()) && self.not_before.is_none_or(|at| at <= now)
    }

    fn addresses(&self) -> Vec<Multiaddr> {
        self.dialed.iter().chain(&self.told).cloned().collect()
    }

    /// Returns the networks of its addresses. Claimed addresses count only if we have not dialed
    /// the coordinator.
    fn networks(&self) -> BTreeSet<IpAddr> {
        match &self.dialed {
            Some(dialed) => network_of(dialed).into_iter().collect(),
            None => self.told.iter().filter_map(network_of).collect(),
        }
    }
}

/// A difference between the coordinators that are in use and those that should be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Register with this coordinator.
    Choose { coordinator: PeerId, addresses: Vec<Multiaddr> },
    /// No longer.
    Drop { coordinator: PeerId },
}

/// The coordinators that were found, and those of them that are in use.
#[derive(Debug)]
pub(super) struct Discovery {
    key: Distance,
    /// A secret point of the key space.
    secret: Distance,
    /// The most that are in use.
    max: usize,
    known: BTreeMap<PeerId, Known>,
    chosen: BTreeSet<PeerId>,
    /// Chosen coordinators without a registration, and the time at which each is given up.
    pending: BTreeMap<PeerId, Instant>,
    /// Others reach this peer without a coordinator.
    is_reachable: bool,
    /// Something is known since the last choice that may change it.
    has_news: bool,
    /// Time at which a failed coordinator may be chosen again.
    next: Option<Instant>,
    /// Time of the next search for coordinators near this peer.
    refresh_at: Option<Instant>,
    refresh_interval: Duration,
}

impl Discovery {
    pub(super) fn new(local_peer: PeerId, secret: Distance, max: usize) -> Self {
        Self {
            key: key_of(&local_peer),
            secret,
            max,
            known: BTreeMap::new(),
            chosen: BTreeSet::new(),
            pending: BTreeMap::new(),
            is_reachable: false,
            has_news: false,
            next: None,
            refresh_at: None,
            refresh_interval: MIN_REFRESH_INTERVAL,
        }
    }

    /// Records that a peer coordinates.
    pub(super) fn coordinates(&mut self, peer: PeerId, dialed: Option<Multiaddr>, told: Vec<Multiaddr>) {
        self.has_news = true;
        let key = key_of(&peer);
        let new = || Known {
            distance: distance(&self.key, &key),
            secret_distance: distance(&self.secret, &key),
            dialed: None,
            told: Vec::new(),
            failures: 0,
            not_before: None,
        };
        let known = self.known.entry(peer).or_insert_with(new);
        known.dialed = dialed.or(known.dialed.take());
        for address in told {
            if !known.told.contains(&address) {
                known.told.push(address);
            }
        }
        let surplus = known.told.len().saturating_sub(MAX_ADDRESSES);
        known.told.drain(..surplus);
        if self.known.len() > MAX_KNOWN {
            let hidden = self.known.iter().min_by_key(|(_, known)| known.secret_distance);
            let hidden = hidden.map(|(peer, _)| *peer);
            let is_needed = |peer: &PeerId| self.chosen.contains(peer) || Some(*peer) == hidden;
            let unneeded = self.known.iter().filter(|(peer, _)| !is_needed(peer));
            let worst = unneeded.max_by_key(|(_, known)| (known.failures, known.distance));
            let worst = worst.map(|(peer, _)| *peer);
            worst.and_then(|peer| self.known.remove(&peer));
        }
    }

    /// Records that a peer no longer coordinates.
    pub(super) fn stopped(&mut self, peer: &PeerId) {
        self.known.remove(peer);
        self.has_news = true;
    }

    /// Records an address that a peer claims, if the peer coordinates.
    pub(super) fn learned(&mut self, peer: PeerId, address: &Multiaddr) {
        if self.known.contains_key(&peer) {
            self.coordinates(peer, None, vec![address.clone()]);
        }
    }

    /// Replaces a coordinator whose dial failed, or that did not register us.
    pub(super) fn failed(&mut self, peer: &PeerId, now: Instant) {
        let Some(known) = self.known.get_mut(peer).filter(|_| self.chosen.contains(peer)) else { return };
        self.has_news = true;
        let delay = FAILURE_DELAY.saturating_mul(2u32.saturating_pow(known.failures)).min(MAX_FAILURE_DELAY);
        known.failures = known.failures.saturating_add(1);
        known.not_before = Some(now + delay);
        // Others may have to be found in its place.
        self.refresh_interval = MIN_REFRESH_INTERVAL;
        self.refresh_at = self.refresh_at.map(|at| at.min(now + MIN_REFRESH_INTERVAL));
    }

    /// Returns true if the sources of coordinators are to look for those near this peer now.
    pub(super) fn refresh(&mut self, now: Instant) -> bool {
        if self.is_reachable || self.max == 0 {
            self.refresh_at = None;
            return false;
        }
        if *self.refresh_at.get_or_insert(now + self.refresh_interval) > now {
            return false;
        }
        let is_complete = self.chosen.len() >= self.max && self.pending.is_empty();
        let doubled = self.refresh_interval.saturating_mul(2).min(MAX_REFRESH_INTERVAL);
        self.refresh_interval = if is_complete { MAX_REFRESH_INTERVAL } else { doubled };
        self.refresh_at = Some(now + self.refresh_interval);
        true
    }

    /// A coordinator registered us.
    pub(super) fn succeeded(&mut self, peer: &PeerId) {
        if let Some(known) = self.known.get_mut(peer) {
            (known.failures, known.not_before) = (0, None);
            self.pending.remove(peer);
            self.has_news = true;
        }
    }

    /// Excludes a coordinator with which the application wants no registration.
    pub(super) fn exclude(&mut self, peer: &PeerId, now: Instant) {
        self.has_news = true;
        if let Some(known) = self.known.get_mut(peer) {
            known.not_before = Some(now + MAX_FAILURE_DELAY);
        }
    }

    pub(super) fn set_reachable(&mut self, is_reachable: bool) {
        self.is_reachable = is_reachable;
        self.has_news = true;
    }

    /// The configured coordinators are others now.
    pub(super) fn reconsider(&mut self) {
        self.has_news = true;
    }

    pub(super) fn is_chosen(&self, peer: &PeerId) -> bool {
        self.chosen.contains(peer)
    }

    /// Returns the time of the next choice or search.
    pub(super) fn next_time(&self) -> Option<Instant> {
        [self.next, self.refresh_at].into_iter().flatten().min()
    }

    /// Chooses again, but for those that are `configured`. A coordinator that works is dropped only
    /// once those that take its place have registered us.
    pub(super) fn poll(&mut self, configured: impl Fn(&PeerId) -> bool, now: Instant) -> Option<Change> {
        let late: Vec<_> = self.pending.iter().filter(|(_, at)| **at <= now).map(|(peer, _)| *peer).collect();
        for peer in late {
            self.pending.remove(&peer);
            self.failed(&peer, now);
        }
        if !self.has_news && self.next.is_none_or(|at| at > now) {
            return None;
        }
        let wanted = self.wanted(&configured, now);
        if let Some(coordinator) = wanted.difference(&self.chosen).next().copied() {
            self.chosen.insert(coordinator);
            self.pending.insert(coordinator, now + REGISTRATION_TIMEOUT);
            let addresses = self.known.get(&coordinator).map(Known::addresses).unwrap_or_default();
            return Some(Change::Choose { coordinator, addresses });
        }
        let is_replaced = !wanted.is_empty() && !wanted.iter().any(|peer| self.pending.contains_key(peer));
        let is_useless = |peer: &PeerId| {
            self.is_reachable
                || configured(peer)
                || self.known.get(peer).is_none_or(|known| !known.may_be_chosen(now))
        };
        let dropped = self.chosen.difference(&wanted).find(|peer| is_replaced || is_useless(peer)).copied();
        if let Some(coordinator) = dropped {
            self.chosen.remove(&coordinator);
            self.pending.remove(&coordinator);
            return Some(Change::Drop { coordinator });
        }
        self.has_news = false;
        let retries = self.known.values().filter_map(|known| known.not_before).filter(|at| *at > now);
        self.next = retries.chain(self.pending.values().copied()).min();
        None
    }

    fn wanted(&self, configured: impl Fn(&PeerId) -> bool, now: Instant) -> BTreeSet<PeerId> {
        if self.is_reachable || self.max == 0 {
            return BTreeSet::new();
        }
        let mut usable: Vec<_> =
            self.known.iter().filter(|(peer, known)| known.may_be_chosen(now) && !configured(peer)).collect();
        usable.sort_by_key(|(_, known)| known.distance);
        let hidden = usable.iter().min_by_key(|(_, known)| known.secret_distance).copied();
        let mut wanted: Vec<(&PeerId, &Known)> = hidden.filter(|_| self.max > 1).into_iter().collect();
        for (peer, known) in usable {
            let is_wanted = wanted.iter().any(|(other, _)| *other == peer);
            if wanted.len() < self.max && !is_wanted && self.is_diverse(&wanted, known) {
                wanted.push((peer, known));
            }
        }
        wanted.into_iter().map(|(peer, _)| *peer).collect()
    }

    /// Returns true unless this would be the last place, and all coordinators would be in one
    /// network.
    fn is_diverse(&self, wanted: &[(&PeerId, &Known)], one_more: &Known) -> bool {
        if self.max == 1 || wanted.len() + 1 < self.max {
            return true;
        }
        let mut shared = one_more.networks();
        for (_, known) in wanted {
            shared = shared.intersection(&known.networks()).copied().collect();
        }
        shared.is_empty()
    }
}

/// Returns the peer nearest to `target` by Kademlia's distance.
pub(super) fn nearest_to(target: &PeerId, peers: impl Iterator<Item = PeerId>) -> Option<PeerId> {
    let key = key_of(target);
    peers.min_by_key(|peer| distance(&key, &key_of(peer)))
}

/// Sorts by Kademlia's distance of a peer to `target`, the nearest first.
pub(crate) fn sort_by_distance<T>(target: &PeerId, items: &mut [T], peer_of: impl Fn(&T) -> PeerId) {
    let key = key_of(target);
    items.sort_by_cached_key(|item| distance(&key, &key_of(&peer_of(item))));
}

/// Returns the key of a peer in Kademlia as libp2p has it.
fn key_of(peer: &PeerId) -> Distance {
    Sha256::digest(peer.to_bytes()).into()
}

fn distance(a: &Distance, b: &Distance) -> Distance {
    std::array::from_fn(|place| a[place] ^ b[place])
}

/// Returns the network of an address within which not all coordinators may be. Names have none.
fn network_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => {
            Some(Ipv4Addr::from_bits(ip.to_bits() & (u32::MAX << (u32::BITS - IPV4_PREFIX))).into())
        }
        Protocol::Ip6(ip) => {
            Some(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << (u128::BITS - IPV6_PREFIX))).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn address(network: u8, number: u8) -> Multiaddr {
        format!("/ip4/198.{network}.0.{number}/udp/4001/quic-v1").parse().unwrap()
    }

    fn peers(count: u8) -> Vec<PeerId> {
        let keypair = |seed| libp2p_identity::Keypair::ed25519_from_bytes([seed; 32]).unwrap();
        (1..=count).map(|seed| keypair(seed).public().to_peer_id()).collect()
    }

    /// The secret key is that of `hidden`.
    fn discovery_with(max: usize, hidden: PeerId) -> Discovery {
        Discovery::new(peers(200)[199], key_of(&hidden), max)
    }

    fn discovery(max: usize) -> Discovery {
        discovery_with(max, peers(201)[200])
    }

    fn changes(discovery: &mut Discovery, now: Instant) -> Vec<Change> {
        std::iter::from_fn(|| discovery.poll(|_| false, now)).collect()
    }

    #[test]
    fn missing_coordinators_are_looked_for_ever_less_often_and_again_soon_after_a_loss() {
        let (mut discovery, start) = (discovery(3), Instant::now());
        let searches = |discovery: &mut Discovery, from: u64, to: u64| {
            let due = |second: &u64| discovery.refresh(start + Duration::from_secs(*second));
            (from..to).filter(due).collect::<Vec<_>>()
        };
        assert_eq!(searches(&mut discovery, 0, 200), [10, 30, 70, 150]);
        let all = peers(3);
        for (network, peer) in (1..).zip(&all) {
            discovery.coordinates(*peer, Some(address(network, 1)), Vec::new());
        }
        let now = start + Duration::from_secs(200);
        changes(&mut discovery, now);
        all.iter().for_each(|peer| discovery.succeeded(peer));
        changes(&mut discovery, now);
        assert_eq!(searches(&mut discovery, 200, 1_000), [310, 910]);
        discovery.failed(&all[0], start + Duration::from_secs(1_000));
        assert_eq!(searches(&mut discovery, 1_000, 1_011), [1_010]);
        discovery.set_reachable(true);
        assert_eq!(searches(&mut discovery, 1_011, 5_000), [] as [u64; 0]);
    }

    fn by_distance(discovery: &Discovery, mut peers: Vec<PeerId>) -> Vec<PeerId> {
        peers.sort_by_key(|peer| distance(&discovery.key, &key_of(peer)));
        peers
    }

    #[test]
    fn the_nearest_are_chosen_and_the_one_nearest_to_a_secret_key() {
        let now = Instant::now();
        let peers = by_distance(&discovery(3), peers(20));
        let mut discovery = discovery_with(3, peers[13]);
        for (number, peer) in (0..).zip(&peers) {
            discovery.coordinates(*peer, Some(address(number, 1)), Vec::new());
        }
        changes(&mut discovery, now);
        assert_eq!(discovery.chosen, BTreeSet::from([peers[0], peers[1], peers[13]]));
    }

    #[test]
    fn not_all_are_in_one_network() {
        let now = Instant::now();
        let peers = by_distance(&discovery(3), peers(10));
        let mut discovery = discovery_with(3, peers[6]);
        for (number, peer) in (0..).zip(&peers) {
            let network = if number == 8 { 2 } else { 1 };
            // Claimed addresses do not count, since the peers were dialed.
            discovery.coordinates(*peer, Some(address(network, number)), vec![address(3, number)]);
        }
        changes(&mut discovery, now);
        assert_eq!(discovery.chosen, BTreeSet::from([peers[0], peers[6], peers[8]]));
    }

    #[test]
    fn one_that_fails_is_replaced_and_tried_again_later() {
        let (mut discovery, now) = (discovery(1), Instant::now());
        let peers = by_distance(&discovery, peers(2));
        discovery.coordinates(peers[0], Some(address(1, 1)), Vec::new());
        discovery.coordinates(peers[1], Some(address(2, 1)), Vec::new());
        changes(&mut discovery, now);
        assert!(discovery.is_chosen(&peers[0]));
        discovery.failed(&peers[0], now);
        assert_eq!(
            changes(&mut discovery, now),
            [
                Change::Choose { coordinator: peers[1], addresses: vec![address(2, 1)] },
                Change::Drop { coordinator: peers[0] }
            ]
        );
        discovery.succeeded(&peers[1]);
        changes(&mut discovery, now + 2 * MINUTE);
        assert!(discovery.is_chosen(&peers[0]), "the nearest again");
        assert!(discovery.is_chosen(&peers[1]), "it works, and the other may not");
        discovery.succeeded(&peers[0]);
        changes(&mut discovery, now + 2 * MINUTE);
        assert!(!discovery.is_chosen(&peers[1]));
    }

    #[test]
    fn one_that_does_not_answer_is_replaced() {
        let (mut discovery, now) = (discovery(1), Instant::now());
        let peers = by_distance(&discovery, peers(2));
        for peer in &peers {
            discovery.coordinates(*peer, Some(address(1, 1)), Vec::new());
        }
        changes(&mut discovery, now);
        assert!(discovery.is_chosen(&peers[0]));
        let later = discovery.next_time().unwrap();
        assert_eq!(later, now + REGISTRATION_TIMEOUT);
        changes(&mut discovery, later);
        assert!(discovery.is_chosen(&peers[1]) && !discovery.is_chosen(&peers[0]));
    }

    #[test]
    fn none_is_chosen_while_others_reach_us_or_if_it_is_configured() {
        let (mut discovery, now) = (discovery(3), Instant::now());
        let peers = peers(2);
        for peer in &peers {
            discovery.coordinates(*peer, Some(address(1, 1)), Vec::new());
        }
        assert_eq!(discovery.poll(|_| true, now), None);
        discovery.reconsider();
        changes(&mut discovery, now);
        assert_eq!(discovery.chosen.len(), 2);
        discovery.set_reachable(true);
        assert_eq!(changes(&mut discovery, now).len(), 2);
        assert!(discovery.chosen.is_empty());
        discovery.set_reachable(false);
        discovery.stopped(&peers[0]);
        changes(&mut discovery, now);
        assert!(discovery.is_chosen(&peers[1]) && !discovery.is_chosen(&peers[0]));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_one_nearest_to_the_secret_key_stays() {
        let peers = by_distance(&discovery(3), peers(199));
        let hidden = peers[198];
        let mut discovery = discovery_with(3, hidden);
        // The farthest comes first, and everybody else is nearer.
        for peer in peers.iter().rev() {
            for number in 0..10 {
                discovery.coordinates(*peer, None, vec![address(1, number)]);
            }
        }
        assert_eq!(discovery.known.len(), MAX_KNOWN);
        assert!(discovery.known.values().all(|known| known.told.len() == MAX_ADDRESSES));
        assert!(discovery.known.contains_key(&hidden) && discovery.known.contains_key(&peers[0]));
    }
}
