//! The addresses at which this node is reached.

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

use crate::ticket::{MAX_ADDRESSES, MAX_COORDINATORS, Ticket, TicketError};

/// Addresses of this node, and of the coordinators that know it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Local {
    /// Addresses that others have confirmed, or that the application has.
    pub(crate) external: Vec<Multiaddr>,
    /// Addresses of interfaces that the node listens on.
    pub(crate) listening: Vec<Multiaddr>,
    /// Addresses of coordinators that have registered the node. Each ends with its PeerId.
    pub(crate) coordinators: Vec<Multiaddr>,
    /// Coordinators that have registered the node.
    pub(crate) registered: Vec<PeerId>,
}

impl Local {
    /// Returns true if nodes of other networks can reach this one.
    pub(crate) fn is_reachable(&self) -> bool {
        // An address over a relay is in no ticket: its coordinator is.
        self.external.iter().any(|address| !is_circuit(address)) || !self.coordinators.is_empty()
    }

    /// Returns the own addresses, those first that help most peers, without those over relays.
    pub(crate) fn addresses(&self) -> Vec<Multiaddr> {
        let mut addresses = Vec::new();
        for address in self.external.iter().chain(&self.listening) {
            let mut address = address.clone();
            if let Some(Protocol::P2p(_)) = address.iter().last() {
                address.pop();
            }
            if !is_circuit(&address) && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        // Stable: external addresses stay before those of interfaces.
        addresses.sort_by_key(reach);
        addresses
    }

    /// Makes a ticket of as many addresses as fit.
    pub(crate) fn ticket(&self, peer: PeerId) -> Result<Ticket, TicketError> {
        let mut addresses = self.addresses();
        // Loopback addresses help on this machine alone: they are for a machine without others.
        if let Some(first @ 1..) = addresses.iter().position(|address| reach(address) == Reach::Machine) {
            addresses.truncate(first);
        }
        addresses.truncate(MAX_ADDRESSES);
        let coordinators = self.coordinators.iter().take(MAX_COORDINATORS).cloned();
        Ticket::new(peer, addresses, coordinators)
    }
}

/// The peers that an address helps, most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Anyone,
    Network,
    Machine,
}

fn reach(address: &Multiaddr) -> Reach {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) if ip.is_loopback() => Reach::Machine,
        Some(Protocol::Ip6(ip)) if ip.is_loopback() => Reach::Machine,
        Some(Protocol::Ip4(ip)) if ip.is_private() || ip.is_link_local() => Reach::Network,
        Some(Protocol::Ip6(ip)) if ip.is_unique_local() || ip.is_unicast_link_local() => Reach::Network,
        _ => Reach::Anyone,
    }
}

/// Returns true for an address over a relay.
pub(crate) fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// The address, with the PeerId of its peer at the end.
pub(crate) fn with_peer(address: Multiaddr, peer: PeerId) -> Multiaddr {
    match address.iter().last() {
        Some(Protocol::P2p(_)) => address,
        _ => address.with(Protocol::P2p(peer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses<const N: usize>(texts: [&str; N]) -> Vec<Multiaddr> {
        texts.map(|text| text.parse().unwrap()).into()
    }

    #[test]
    fn a_ticket_holds_the_addresses_first_that_help_most_peers() {
        let local = Local {
            external: addresses(["/ip4/192.0.2.1/udp/9/quic-v1"]),
            listening: addresses([
                "/ip4/127.0.0.1/udp/1/quic-v1",
                "/ip4/192.168.1.2/udp/1/quic-v1",
                "/ip6/2001:db8::1/udp/1/quic-v1",
                "/ip4/192.0.2.1/udp/9/quic-v1",
            ]),
            ..Local::default()
        };
        let ticket = local.ticket(PeerId::random()).unwrap();
        let expected = addresses([
            "/ip4/192.0.2.1/udp/9/quic-v1",
            "/ip6/2001:db8::1/udp/1/quic-v1",
            "/ip4/192.168.1.2/udp/1/quic-v1",
        ]);
        assert_eq!(ticket.addresses(), expected);
    }

    #[test]
    fn a_machine_without_a_network_has_a_ticket_for_itself() {
        let listening = addresses(["/ip4/127.0.0.1/udp/1/quic-v1"]);
        let local = Local { listening: listening.clone(), ..Local::default() };
        assert_eq!(local.ticket(PeerId::random()).unwrap().addresses(), listening);
    }

    #[test]
    fn a_node_that_has_a_reservation_and_no_registration_yet_is_not_reachable_by_its_ticket() {
        let external = addresses(["/ip4/192.0.2.9/udp/1/quic-v1/p2p-circuit"]);
        let local = Local { external, ..Local::default() };
        assert!(!local.is_reachable());
        assert!(local.ticket(PeerId::random()).unwrap().addresses().is_empty());
    }

    #[test]
    fn a_ticket_of_many_addresses_is_valid() {
        let many = |net: &'static str| {
            (1..=50).map(move |n| format!("/ip4/{net}.{n}/udp/1/quic-v1").parse::<Multiaddr>().unwrap())
        };
        let coordinators = many("192.0.2").map(|address| with_peer(address, PeerId::random()));
        let local = Local {
            external: many("198.51.100").collect(),
            listening: many("10.0.0").collect(),
            coordinators: coordinators.collect(),
            registered: Vec::new(),
        };
        let ticket = local.ticket(PeerId::random()).unwrap();
        assert_eq!(
            [ticket.addresses().len(), ticket.coordinators().len()],
            [MAX_ADDRESSES, MAX_COORDINATORS]
        );
    }
}
