//! Registrations at a coordinator, bounded in number and size.
//!
//! When the table is full, a newcomer replaces the least useful registration of the network with
//! most registrations: the one that was requested longest ago. A network never loses a place to a
//! network of equal size, so that each gets its share.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::{
    ControlStreamId, NetworkPrefix, candidate::Candidate, config::Disclosure, wire::frame::Registration,
};

/// Candidates of a registration: twice as many as a peer announces by default.
pub(crate) const MAX_ANNOUNCED: usize = 16;

/// A peer that we coordinate for.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) stream: ControlStreamId,
    pub(crate) registration: Registration,
    pub(crate) disclosure: Disclosure,
    /// Shared with the announcements of the control stream, until these change.
    pub(crate) candidates: Arc<Vec<Candidate>>,
    pub(crate) expires: Instant,
    /// The network of the peer; `None` for those that are not limited.
    network: Option<NetworkPrefix>,
    /// Time of the last request for this peer, or of its first registration.
    used: Instant,
}

/// A registration to be entered.
#[derive(Debug)]
pub(crate) struct NewRegistration {
    pub(crate) peer: PeerId,
    pub(crate) stream: ControlStreamId,
    pub(crate) network: Option<NetworkPrefix>,
    pub(crate) registration: Registration,
    pub(crate) disclosure: Disclosure,
    pub(crate) candidates: Arc<Vec<Candidate>>,
    pub(crate) lifetime: Duration,
}

/// The table is full, and the network of the newcomer has its share.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// At most `max` registrations, at no more than 2 KiB each.
#[derive(Debug)]
pub(crate) struct Registrations {
    max: usize,
    by_peer: BTreeMap<PeerId, Registered>,
    expiries: BTreeSet<(Instant, PeerId)>,
    /// The peers of each network, those that were asked for longest ago first.
    by_network: BTreeMap<Option<NetworkPrefix>, BTreeSet<(Instant, PeerId)>>,
    /// The networks by their number of registrations.
    by_size: BTreeSet<(usize, Option<NetworkPrefix>)>,
}

impl Registrations {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            by_peer: BTreeMap::new(),
            expiries: BTreeSet::new(),
            by_network: BTreeMap::new(),
            by_size: BTreeSet::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_peer.len()
    }

    pub(crate) fn get(&self, peer: &PeerId) -> Option<&Registered> {
        self.by_peer.get(peer)
    }

    /// Enters a registration, in place of an earlier one of the peer. Returns the registration that
    /// had to make room.
    pub(crate) fn insert(&mut self, new: NewRegistration, now: Instant) -> Result<Option<Registered>, Full> {
        let NewRegistration { peer, stream, network, registration, disclosure, candidates, lifetime } = new;
        let known = self.remove(&peer);
        let evicted = match known {
            None if self.by_peer.len() >= self.max => Some(self.evict_for(network).ok_or(Full)?),
            _ => None,
        };
        let (expires, used) = (now + lifetime, known.map_or(now, |known| known.used));
        self.expiries.insert((expires, peer));
        self.resize(network, |peers| {
            peers.insert((used, peer));
        });
        let entry = Registered { stream, registration, disclosure, candidates, expires, network, used };
        self.by_peer.insert(peer, entry);
        Ok(evicted)
    }

    /// Takes the least useful registration of the largest network away, if that is larger than
    /// `network`.
    fn evict_for(&mut self, network: Option<NetworkPrefix>) -> Option<Registered> {
        let own = self.by_network.get(&network).map_or(0, BTreeSet::len);
        let (_, largest) = self.by_size.last().filter(|(size, _)| *size > own)?;
        let (_, idle) = *self.by_network.get(largest)?.first()?;
        self.remove(&idle)
    }

    pub(crate) fn remove(&mut self, peer: &PeerId) -> Option<Registered> {
        let entry = self.by_peer.remove(peer)?;
        self.expiries.remove(&(entry.expires, *peer));
        self.resize(entry.network, |peers| {
            peers.remove(&(entry.used, *peer));
        });
        Some(entry)
    }

    /// Returns the registration of a peer that another peer requests.
    pub(crate) fn ask_for(&mut self, peer: &PeerId, now: Instant) -> Option<&Registered> {
        let entry = self.by_peer.get_mut(peer).filter(|entry| entry.expires > now)?;
        if let Some(peers) = self.by_network.get_mut(&entry.network) {
            peers.remove(&(entry.used, *peer));
            peers.insert((now, *peer));
        }
        entry.used = now;
        Some(entry)
    }

    /// Changes the peers of a network, and keeps `by_size` true.
    fn resize(
        &mut self,
        network: Option<NetworkPrefix>,
        change: impl FnOnce(&mut BTreeSet<(Instant, PeerId)>),
    ) {
        let peers = self.by_network.entry(network).or_default();
        self.by_size.remove(&(peers.len(), network));
        change(peers);
        if peers.is_empty() {
            self.by_network.remove(&network);
        } else {
            self.by_size.insert((peers.len(), network));
        }
    }

    /// Takes all registrations out.
    pub(crate) fn clear(&mut self) -> impl Iterator<Item = Registered> {
        std::mem::replace(self, Self::new(self.max)).by_peer.into_values()
    }

    /// Returns the time at which the next registration expires.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.expiries.first().map(|(at, _)| *at)
    }

    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((_, peer)) = self.expiries.first().copied().filter(|(at, _)| *at <= now) {
            self.remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use bytes::Bytes;

    use super::*;
    use crate::candidate::CandidateKind;

    const MAX: usize = 10_000;

    fn candidates() -> Arc<Vec<Candidate>> {
        let address = |n: usize| SocketAddr::from(([192, 0, 2, n as u8], 4001));
        let candidate = |n: usize| Candidate {
            sequence: n as u64,
            kind: CandidateKind::Host,
            priority: 0,
            address: address(n),
        };
        Arc::new((0..MAX_ANNOUNCED).map(candidate).collect())
    }

    fn new(peer: PeerId, network: &str) -> NewRegistration {
        let registration = Registration {
            peer: Bytes::from_static(&[1; 36]),
            generation: 1,
            lifetime: Duration::from_secs(300),
            probe_key: [0; 32],
            nat: Bytes::from_static(&[1; 5]),
            signature: Bytes::from_static(&[1; 64]),
            public_signature: Bytes::from_static(&[1; 64]),
        };
        let network = NetworkPrefix::of(network.parse::<IpAddr>().unwrap());
        let lifetime = registration.lifetime;
        NewRegistration {
            peer,
            stream: ControlStreamId(1),
            network,
            registration,
            disclosure: Disclosure::ToAll,
            candidates: candidates(),
            lifetime,
        }
    }

    fn full_of(network: &str, now: Instant) -> (Registrations, Vec<PeerId>) {
        let mut all = Registrations::new(MAX);
        let peers: Vec<_> = (0..MAX).map(|_| PeerId::random()).collect();
        for (n, peer) in (0_u64..).zip(&peers) {
            assert_eq!(
                all.insert(new(*peer, network), now + Duration::from_micros(n)).map(|e| e.is_some()),
                Ok(false)
            );
        }
        (all, peers)
    }

    #[test]
    fn a_full_table_takes_newcomers_of_smaller_networks_and_gives_up_who_was_not_asked_for() {
        let now = Instant::now();
        let (mut all, peers) = full_of("192.0.2.1", now);
        let later = now + Duration::from_secs(1);
        assert_eq!(all.insert(new(PeerId::random(), "192.0.2.9"), later).err(), Some(Full));
        assert!(all.ask_for(&peers[0], later).is_some());
        let honest = PeerId::random();
        assert!(all.insert(new(honest, "198.51.100.1"), later).unwrap().is_some());
        assert!(all.get(&honest).is_some());
        assert!(all.get(&peers[0]).is_some(), "another peer has asked for it");
        assert!(all.get(&peers[1]).is_none(), "the one that was not asked for longest");
        assert!(
            all.insert(new(honest, "198.51.100.1"), later).unwrap().is_none(),
            "a renewal takes no place"
        );
    }

    #[test]
    fn networks_end_with_equal_shares() {
        let now = Instant::now();
        let (mut all, _) = full_of("192.0.2.1", now);
        let taken =
            (0..MAX).filter(|_| all.insert(new(PeerId::random(), "198.51.100.1"), now).is_ok()).count();
        assert_eq!(taken, MAX / 2);
        assert_eq!(all.by_peer.len(), MAX);
    }

    #[test]
    fn expired_and_removed_registrations_leave_nothing() {
        let now = Instant::now();
        let mut all = Registrations::new(MAX);
        let [a, b] = [PeerId::random(), PeerId::random()];
        all.insert(new(a, "192.0.2.1"), now).unwrap();
        all.insert(new(b, "192.0.2.2"), now + Duration::from_secs(1)).unwrap();
        assert_eq!(all.next_expiry(), Some(now + Duration::from_secs(300)));
        all.expire(now + Duration::from_secs(300));
        assert!(all.get(&a).is_none() && all.get(&b).is_some());
        assert!(all.remove(&b).is_some());
        assert!(all.expiries.is_empty() && all.by_network.is_empty() && all.by_size.is_empty());
    }

    #[test]
    fn a_registration_costs_at_most_two_kibibytes() {
        let entry = new(PeerId::random(), "192.0.2.1");
        let bytes = entry.registration.peer.len()
            + entry.registration.nat.len()
            + 2 * entry.registration.signature.len();
        let parts = [
            MAX_ANNOUNCED * size_of::<Candidate>(),
            size_of::<Registered>() + size_of::<PeerId>(),
            2 * size_of::<(Instant, PeerId)>(),
            bytes,
        ];
        // B-trees are at least half full, and have 5% of nodes that are not leaves.
        let trees = (parts[1] + parts[2]) * 2 * 21 / 20;
        assert!(parts[0] + trees + parts[3] <= 2048, "{parts:?}, {trees}");
    }
}
