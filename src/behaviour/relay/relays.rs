//! The known relays, best first.
//!
//! Every coordinator may be a relay too; only a request shows it. The order is by failures since
//! the last success, then by the time to answer, which grows with distance and load.

use std::{collections::BTreeMap, time::Duration};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

/// Assumed answer time of a relay without an answer yet: it is asked before slow relays and after
/// quick relays.
const ASSUMED_RTT: Duration = Duration::from_millis(250);
/// Failures beyond these make no difference.
const MAX_FAILURES: u32 = 8;
/// Peers, and relays of one peer, whose circuit addresses are remembered; with more, some are
/// forgotten.
const MAX_PEERS: usize = 256;
const MAX_PER_PEER: usize = 4;
/// Relays that one dial tries in turn.
const MAX_TRIED: usize = 4;

#[derive(Debug, Default)]
struct Relay {
    /// Without `/p2p/RELAY`. `None` while there is no direct connection.
    address: Option<Multiaddr>,
    failures: u32,
    /// Smoothed (RFC 6298 §2: an eighth of each new value).
    time: Option<Duration>,
}

/// Coordinators as relays, and the relays that other peers are known to use.
#[derive(Debug, Default)]
pub(super) struct Relays {
    ours: BTreeMap<PeerId, Relay>,
    of_peers: BTreeMap<PeerId, Vec<Multiaddr>>,
    /// Circuit addresses over the coordinators that are asked for a peer. One of them may have a
    /// reservation of the peer. Only peers that are dialed have an entry.
    of_dialed: BTreeMap<PeerId, Vec<Multiaddr>>,
}

impl Relays {
    /// A direct connection to a coordinator was opened. Returns true if it is the only one.
    pub(super) fn connected(&mut self, relay: PeerId, address: &Multiaddr) -> bool {
        let base: Multiaddr = address.iter().take_while(|part| !matches!(part, Protocol::P2p(_))).collect();
        !base.is_empty() && self.ours.entry(relay).or_default().address.replace(base).is_none()
    }

    /// Records the end of the last direct connection to a relay. Its history is kept for the next
    /// connection.
    pub(super) fn disconnected(&mut self, relay: &PeerId) {
        if let Some(relay) = self.ours.get_mut(relay) {
            relay.address = None;
        }
    }

    pub(super) fn forget(&mut self, relay: &PeerId) {
        self.ours.remove(relay);
    }

    /// Records the success of a relay, after `took`.
    pub(super) fn succeeded(&mut self, relay: &PeerId, took: Duration) {
        let Some(relay) = self.ours.get_mut(relay) else { return };
        relay.failures = 0;
        relay.time = Some(relay.time.map_or(took, |time| time - time / 8 + took / 8));
    }

    pub(super) fn failed(&mut self, relay: &PeerId) {
        if let Some(relay) = self.ours.get_mut(relay) {
            relay.failures = (relay.failures + 1).min(MAX_FAILURES);
        }
    }

    /// The connected ones, best first, with their addresses.
    pub(super) fn ranked(&self) -> Vec<(PeerId, Multiaddr)> {
        let mut ranked: Vec<_> = self
            .ours
            .iter()
            .filter_map(|(peer, relay)| {
                Some((relay.failures, relay.time.unwrap_or(ASSUMED_RTT), peer, relay.address.as_ref()?))
            })
            .collect();
        ranked.sort_by_key(|(failures, time, peer, _)| (*failures, *time, **peer));
        ranked.into_iter().map(|(_, _, peer, address)| (*peer, address.clone())).collect()
    }

    /// Records an address at which `peer` can be reached, as another component reports it.
    pub(super) fn learned(&mut self, peer: PeerId, address: &Multiaddr) {
        if relay_of(address).is_none() {
            return;
        }
        if !self.of_peers.contains_key(&peer)
            && self.of_peers.len() >= MAX_PEERS
            && let Some(first) = self.of_peers.keys().next().copied()
        {
            self.of_peers.remove(&first);
        }
        let Ok(address) = address.clone().with_p2p(peer) else { return };
        let known = self.of_peers.entry(peer).or_default();
        known.retain(|other| *other != address);
        known.push(address);
        if known.len() > MAX_PER_PEER {
            known.remove(0);
        }
    }

    /// Sets the coordinators that are asked for `peer`, each with an address. None of them is
    /// remembered once the list is empty.
    pub(super) fn set_coordinators_of(&mut self, peer: PeerId, coordinators: &[(PeerId, Multiaddr)]) {
        let to_circuit = |(relay, address): &(PeerId, Multiaddr)| {
            let base = address.iter().take_while(|part| !matches!(part, Protocol::P2p(_))).collect();
            circuit(&base, *relay).with(Protocol::P2p(peer))
        };
        if coordinators.is_empty() {
            self.of_dialed.remove(&peer);
        } else {
            self.of_dialed.insert(peer, coordinators.iter().map(to_circuit).collect());
        }
    }

    /// Returns true if the peer is known to use some relay.
    pub(super) fn knows_some_of(&self, peer: &PeerId) -> bool {
        self.of_peers.contains_key(peer)
    }

    /// Returns the relays that `peer` is known to use, each with its address.
    pub(super) fn used_by(&self, peer: &PeerId) -> Vec<(PeerId, Multiaddr)> {
        let circuits = self.of_peers.get(peer).into_iter().flatten();
        circuits.filter_map(|circuit| Some((relay_of(circuit)?, address_of_relay(circuit)))).collect()
    }

    /// Returns the circuit addresses at which to try `peer`, in this order: over relays that it is
    /// known to use, then over coordinators that were found for it, then over ours. Each relay is
    /// one that `may_ask` allows.
    pub(super) fn circuits_to(&self, peer: PeerId, may_ask: impl Fn(&PeerId) -> bool) -> Vec<Multiaddr> {
        let ranked = self.ranked();
        let rank = |address: &Multiaddr| {
            let relay = relay_of(address);
            ranked.iter().position(|(peer, _)| Some(*peer) == relay).unwrap_or(usize::MAX)
        };
        let mut circuits = self.of_peers.get(&peer).cloned().unwrap_or_default();
        circuits.sort_by_key(rank);
        for found in self.of_dialed.get(&peer).into_iter().flatten() {
            if !circuits.iter().any(|circuit| relay_of(circuit) == relay_of(found)) {
                circuits.push(found.clone());
            }
        }
        for (relay, address) in &ranked {
            if !circuits.iter().any(|circuit| relay_of(circuit) == Some(*relay)) {
                circuits.push(circuit(address, *relay).with(Protocol::P2p(peer)));
            }
        }
        circuits.retain(|circuit| relay_of(circuit).is_some_and(|relay| relay != peer && may_ask(&relay)));
        circuits.truncate(MAX_TRIED);
        circuits
    }
}

/// Returns the address to listen on for circuits through a relay.
pub(super) fn circuit(address: &Multiaddr, relay: PeerId) -> Multiaddr {
    address.clone().with(Protocol::P2p(relay)).with(Protocol::P2pCircuit)
}

/// The part of a circuit address that leads to the relay.
fn address_of_relay(circuit: &Multiaddr) -> Multiaddr {
    circuit.iter().take_while(|part| *part != Protocol::P2pCircuit).collect()
}

/// The relay of a circuit address. `None` for every other address, and if the relay is not named.
pub(super) fn relay_of(address: &Multiaddr) -> Option<PeerId> {
    let mut last = None;
    for part in address {
        match part {
            Protocol::P2p(peer) => last = Some(peer),
            Protocol::P2pCircuit => return last,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u8) -> Multiaddr {
        format!("/ip4/192.0.2.{number}/udp/4001/quic-v1").parse().unwrap()
    }

    fn three() -> (Relays, [PeerId; 3]) {
        let mut peers = [PeerId::random(), PeerId::random(), PeerId::random()];
        peers.sort();
        let mut relays = Relays::default();
        for (number, peer) in (1..).zip(peers) {
            relays.connected(peer, &address(number).with(Protocol::P2p(peer)));
        }
        (relays, peers)
    }

    fn order(relays: &Relays) -> Vec<PeerId> {
        relays.ranked().into_iter().map(|(peer, _)| peer).collect()
    }

    #[test]
    fn a_relay_that_works_comes_before_one_that_does_not_and_a_quick_one_before_a_slow_one() {
        let (mut relays, [a, b, c]) = three();
        relays.succeeded(&a, Duration::from_millis(400));
        relays.succeeded(&c, Duration::from_millis(40));
        assert_eq!(order(&relays), [c, b, a]);
        relays.failed(&c);
        assert_eq!(order(&relays), [b, a, c]);
        relays.succeeded(&c, Duration::from_millis(40));
        assert_eq!(order(&relays), [c, b, a]);
    }

    #[test]
    fn a_relay_that_is_not_connected_is_not_asked_but_remembered() {
        let (mut relays, [a, b, c]) = three();
        relays.failed(&a);
        relays.disconnected(&a);
        assert_eq!(order(&relays), [b, c]);
        relays.connected(a, &address(1));
        assert_eq!(order(&relays), [b, c, a]);
        relays.forget(&a);
        assert_eq!(order(&relays), [b, c]);
    }

    #[test]
    fn the_relays_that_a_peer_is_known_to_use_are_tried_first_and_each_only_once() {
        let (mut relays, [a, b, c]) = three();
        let (peer, far) = (PeerId::random(), PeerId::random());
        relays.learned(peer, &circuit(&address(9), far));
        relays.learned(peer, &circuit(&address(3), c).with(Protocol::P2p(peer)));
        relays.learned(peer, &address(77));
        let tried: Vec<_> = relays.circuits_to(peer, |_| true).iter().filter_map(relay_of).collect();
        assert_eq!(tried, [c, far, a, b]);
        assert!(
            relays
                .circuits_to(peer, |_| true)
                .iter()
                .all(|address| address.iter().last() == Some(Protocol::P2p(peer)))
        );
        assert!(relays.circuits_to(a, |_| true).iter().all(|address| relay_of(address) != Some(a)));
    }

    #[test]
    fn what_others_say_of_peers_is_bounded() {
        let (mut relays, _) = three();
        for _ in 0..2 * MAX_PEERS {
            let peer = PeerId::random();
            (1..=9).for_each(|number| relays.learned(peer, &circuit(&address(number), PeerId::random())));
            assert_eq!(relays.circuits_to(peer, |_| true).len(), MAX_TRIED);
        }
        assert_eq!(relays.of_peers.len(), MAX_PEERS);
        assert!(relays.of_peers.values().all(|known| known.len() <= MAX_PER_PEER));
    }
}
