//! The coordinators that peers named while they were connected.
//!
//! A dial of such a peer asks them, so that it needs no other source. An application that persists
//! them reaches the peers again after a restart.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_punch_proto::wire::frame::MAX_FRAME_COORDINATORS;

use crate::config::peer_of;

/// Peers whose coordinators are remembered.
const MAX_PEERS: usize = 1024;
/// Time for which they are remembered after the peer named them.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug)]
struct Named {
    /// Addresses that end in `/p2p/PEER`.
    addresses: Vec<Multiaddr>,
    named_at: Instant,
}

/// A bounded cache, by peer.
#[derive(Debug, Default)]
pub(super) struct PeerCoordinators(BTreeMap<PeerId, Named>);

impl PeerCoordinators {
    /// Replaces the coordinators of a peer. Each address ends in the PeerId of the coordinator.
    pub(super) fn insert(&mut self, peer: PeerId, mut addresses: Vec<Multiaddr>, now: Instant) {
        addresses.truncate(MAX_FRAME_COORDINATORS);
        self.0.retain(|_, named| now < named.named_at + LIFETIME);
        self.0.insert(peer, Named { addresses, named_at: now });
        if self.0.len() > MAX_PEERS {
            let oldest = self.0.iter().min_by_key(|(_, named)| named.named_at).map(|(peer, _)| *peer);
            oldest.and_then(|peer| self.0.remove(&peer));
        }
    }

    /// Returns the coordinators of a peer, each with an address.
    pub(super) fn of(&self, peer: &PeerId, now: Instant) -> impl Iterator<Item = (PeerId, Multiaddr)> {
        let named = self.0.get(peer).filter(|named| now < named.named_at + LIFETIME);
        let addresses = named.into_iter().flat_map(|named| &named.addresses);
        addresses.filter_map(|address| Some((peer_of(address)?, address.clone())))
    }

    /// Returns all peers with the addresses of their coordinators.
    pub(super) fn iter(&self, now: Instant) -> impl Iterator<Item = (PeerId, &[Multiaddr])> {
        let current = self.0.iter().filter(move |(_, named)| now < named.named_at + LIFETIME);
        current.map(|(peer, named)| (*peer, &named.addresses[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u16) -> Multiaddr {
        let peer = PeerId::random();
        format!("/ip4/192.0.2.1/udp/{number}/quic-v1/p2p/{peer}").parse().unwrap()
    }

    #[test]
    fn later_coordinators_replace_earlier_ones_and_expire_after_a_day() {
        let (mut known, peer, start) = (PeerCoordinators::default(), PeerId::random(), Instant::now());
        known.insert(peer, vec![address(1)], start);
        let [second, third] = [address(2), address(3)];
        known.insert(peer, vec![second.clone(), third.clone()], start + Duration::from_secs(60));
        let of = |now| Vec::from_iter(known.of(&peer, now).map(|(_, address)| address));
        assert_eq!(of(start + LIFETIME), [second, third]);
        assert_eq!(of(start + LIFETIME + Duration::from_secs(60)), []);
        assert_eq!(known.iter(start + LIFETIME + Duration::from_secs(60)).count(), 0);
    }

    #[test]
    fn the_peers_and_the_coordinators_of_each_are_bounded() {
        let (mut known, start) = (PeerCoordinators::default(), Instant::now());
        let peers: Vec<_> = (0..=MAX_PEERS).map(|_| PeerId::random()).collect();
        for (second, peer) in (0..).zip(&peers) {
            let addresses = (1..=9).map(address).collect();
            known.insert(*peer, addresses, start + Duration::from_secs(second));
        }
        let now = start + Duration::from_secs(MAX_PEERS as u64);
        assert_eq!(known.iter(now).count(), MAX_PEERS);
        assert_eq!(known.of(&peers[0], now).count(), 0, "the peer that was heard longest ago");
        assert_eq!(known.of(&peers[1], now).count(), MAX_FRAME_COORDINATORS);
    }
}
