//! `/ip4|ip6/ADDRESS/udp/PORT/quic-v1` to socket addresses and back.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

/// Reads `/ip4|ip6/…/udp/…/quic-v1`, with an optional `/p2p/PEER` at the end. Returns `None` for
/// anything else, including `/quic` (draft-29).
///
/// Of several `/p2p` the last counts, as in libp2p-quic: applications append the peer to addresses
/// that name it.
pub(crate) fn to_socket(address: &Multiaddr) -> Option<(SocketAddr, Option<PeerId>)> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Protocol::Udp(port) = parts.next()? else { return None };
    let Protocol::QuicV1 = parts.next()? else { return None };
    let mut peer = None;
    for part in parts {
        let Protocol::P2p(named) = part else { return None };
        peer = Some(named);
    }
    Some((SocketAddr::new(ip, port), peer))
}

/// Reads `/ip6zone/ZONE/ip6/fe80::…/udp/…/quic-v1`, with an optional `/p2p/PEER` at the end: a
/// link-local address, and the zone that it is meant in (RFC 4007 §11).
pub(crate) fn to_zoned(address: &Multiaddr) -> Option<(String, SocketAddrV6, Option<PeerId>)> {
    let mut parts = address.iter();
    let Protocol::Ip6zone(zone) = parts.next()? else { return None };
    match to_socket(&parts.collect())? {
        (SocketAddr::V6(socket), peer) if socket.ip().is_unicast_link_local() => {
            Some((zone.into_owned(), socket, peer))
        }
        _ => None,
    }
}

/// Returns true if datagrams can be sent to `socket`: the port and the address must be given.
pub(crate) fn is_remote(socket: SocketAddr) -> bool {
    socket.port() != 0 && !socket.ip().is_unspecified()
}

/// Returns true if an address has a meaning in its zone only.
pub(crate) fn is_zoned(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// `/ip4|ip6/…/udp/…/quic-v1`. A scope or flow label of IPv6 is left out.
pub(crate) fn from_socket(socket: SocketAddr) -> Multiaddr {
    Multiaddr::from(socket.ip()).with(Protocol::Udp(socket.port())).with(Protocol::QuicV1)
}

/// The wildcard of the family of `remote`, at any port.
pub(super) fn wildcard(remote: SocketAddr) -> SocketAddr {
    match remote {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<(SocketAddr, Option<PeerId>)> {
        to_socket(&text.parse().unwrap())
    }

    #[test]
    fn quic_v1_addresses_become_socket_addresses_and_back() {
        for text in
            ["/ip4/127.0.0.1/udp/12345/quic-v1", "/ip6/::1/udp/1/quic-v1", "/ip4/0.0.0.0/udp/0/quic-v1"]
        {
            let (socket, peer) = parse(text).unwrap();
            assert_eq!(peer, None);
            assert_eq!(from_socket(socket).to_string(), text);
        }
    }

    #[test]
    fn a_trailing_peer_is_read() {
        let peer = PeerId::random();
        let (socket, found) = parse(&format!("/ip4/192.0.2.1/udp/9/quic-v1/p2p/{peer}")).unwrap();
        assert_eq!((socket, found), (SocketAddr::from(([192, 0, 2, 1], 9)), Some(peer)));
    }

    #[test]
    fn of_several_peers_the_last_one_counts() {
        let (first, last) = (PeerId::random(), PeerId::random());
        for (parts, expected) in [([first, first], first), ([first, last], last)] {
            let parts = parts.map(|peer| format!("/p2p/{peer}")).concat();
            let (_, found) = parse(&format!("/ip4/192.0.2.1/udp/9/quic-v1{parts}")).unwrap();
            assert_eq!(found, Some(expected));
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let peer = PeerId::random();
        for text in [
            "/ip4/127.0.0.1/udp/1234",
            "/ip4/127.0.0.1/udp/1234/quic",
            "/ip4/127.0.0.1/tcp/1234",
            "/dns/example.com/udp/1/quic-v1",
            "/ip4/127.0.0.1/udp/1/quic-v1/webtransport",
            &format!("/ip4/127.0.0.1/udp/1/quic-v1/p2p/{peer}/p2p-circuit"),
            &format!("/p2p/{peer}"),
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(to_socket(&Multiaddr::empty()), None);
    }

    #[test]
    fn port_zero_and_unspecified_addresses_are_no_destinations() {
        for text in ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/0.0.0.0/udp/1/quic-v1", "/ip6/::/udp/1/quic-v1"] {
            assert!(!is_remote(parse(text).unwrap().0), "{text}");
        }
    }

    #[test]
    fn a_link_local_address_has_a_zone() {
        let read = |text: &str| to_zoned(&text.parse().unwrap());
        let peer = PeerId::random();
        let socket = "[fe80::1]:9".parse().unwrap();
        let address = "/ip6zone/eth0/ip6/fe80::1/udp/9/quic-v1";
        assert_eq!(read(address), Some(("eth0".to_owned(), socket, None)));
        assert_eq!(read(&format!("{address}/p2p/{peer}")), Some(("eth0".to_owned(), socket, Some(peer))));
        for text in [
            "/ip6/fe80::1/udp/9/quic-v1",
            "/ip6zone/eth0/ip6/2001:db8::1/udp/9/quic-v1",
            "/ip6zone/eth0/ip4/169.254.0.1/udp/9/quic-v1",
            "/ip6zone/eth0/ip6zone/eth0/ip6/fe80::1/udp/9/quic-v1",
            "/ip6zone/eth0/ip6/fe80::1/tcp/9",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(parse(address), None);
        assert!(is_zoned(socket.ip().to_owned().into()) && !is_zoned([169, 254, 0, 1].into()));
    }
}
