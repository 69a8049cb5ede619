//! Parts of multiaddrs that a node needs.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

/// Returns the peer at the end of an address.
pub(super) fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// Returns true for an address over a relay.
pub(super) fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// Wildcard QUIC addresses of both families, with free ports.
pub(super) fn wildcards() -> [Multiaddr; 2] {
    [[0; 4].into(), IpAddr::from(Ipv6Addr::UNSPECIFIED)]
        .map(|any| Multiaddr::from(any).with(Protocol::Udp(0)).with(Protocol::QuicV1))
}

/// `/ip4/…/udp/…` of a socket address.
pub(super) fn udp_address(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Udp(address.port()))
}

/// Returns the `/ip4/…/udp/…` at the start of an address.
pub(super) fn udp_part(address: &Multiaddr) -> Option<Multiaddr> {
    let mut parts = address.iter();
    match (parts.next()?, parts.next()?) {
        (ip @ (Protocol::Ip4(_) | Protocol::Ip6(_)), port @ Protocol::Udp(_)) => {
            Some(Multiaddr::empty().with(ip).with(port))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_udp_part_of_an_address_ends_at_the_port() {
        let address: Multiaddr = "/ip6/2001:db8::1/udp/9/quic-v1".parse().unwrap();
        assert_eq!(udp_part(&address), Some("/ip6/2001:db8::1/udp/9".parse().unwrap()));
        assert_eq!(udp_part(&"/dns4/example.com/udp/9".parse().unwrap()), None);
        let socket: SocketAddr = "192.0.2.7:4001".parse().unwrap();
        assert_eq!(udp_address(socket), "/ip4/192.0.2.7/udp/4001".parse().unwrap());
    }
}
