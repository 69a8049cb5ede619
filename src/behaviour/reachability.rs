//! Addresses at which any peer on the Internet reaches us without help.
//!
//! An external address is confirmed by AutoNAT, by UPnP or by the application, and each of them may
//! confirm an address that only the own network, or only another transport, reaches. Such an
//! address must not end reservations or make us a coordinator.

use std::collections::BTreeSet;

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

use libp2p_punch_proto::address_policy::{Scope, scope};

/// The confirmed external addresses that count.
#[derive(Debug)]
pub(super) struct Reachability {
    local_peer: PeerId,
    addresses: BTreeSet<Multiaddr>,
}

impl Reachability {
    pub(super) fn new(local_peer: PeerId) -> Self {
        Self { local_peer, addresses: BTreeSet::new() }
    }

    pub(super) fn is_reachable(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// An external address was confirmed. Returns true if we are reachable from now on, and were
    /// not before.
    pub(super) fn confirmed(&mut self, address: &Multiaddr) -> bool {
        let was_reachable = self.is_reachable();
        if is_global_quic(address, &self.local_peer) {
            self.addresses.insert(address.clone());
        }
        !was_reachable && !self.addresses.is_empty()
    }

    /// Removes an expired external address. Returns true if it was the last that made us reachable.
    pub(super) fn expired(&mut self, address: &Multiaddr) -> bool {
        self.addresses.remove(address) && self.addresses.is_empty()
    }
}

/// Returns true for `/ip4|ip6|dns…/HOST/udp/PORT/quic-v1` with a host that has a meaning everywhere
/// on the Internet. A `/p2p` at the end must name `local_peer`.
pub(super) fn is_global_quic(address: &Multiaddr, local_peer: &PeerId) -> bool {
    let mut parts = address.iter();
    let is_global = match parts.next() {
        Some(Protocol::Ip4(ip)) => scope(ip.into()) == Scope::Global,
        Some(Protocol::Ip6(ip)) => scope(ip.into()) == Scope::Global,
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => !is_local_name(&name),
        _ => false,
    };
    let has_port = matches!(parts.next(), Some(Protocol::Udp(port)) if port != 0);
    let is_quic = parts.next() == Some(Protocol::QuicV1);
    is_global && has_port && is_quic && parts.all(|part| part == Protocol::P2p(*local_peer))
}

/// Names of this host (RFC 6761 §6.3) and of its link (RFC 6762 §3).
fn is_local_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    ["localhost", "local"].iter().any(|top| name.rsplit('.').next() == Some(top))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBAL: &str = "/ip4/198.51.100.1/udp/4001/quic-v1";

    fn parse(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_global_quic_addresses_of_ours_count() {
        let (own, other) = (PeerId::random(), PeerId::random());
        for address in [
            GLOBAL,
            "/ip6/2001:db8::1/udp/4001/quic-v1",
            "/dns4/peer.example/udp/4001/quic-v1",
            &format!("{GLOBAL}/p2p/{own}"),
        ] {
            assert!(is_global_quic(&parse(address), &own), "{address}");
        }
        for address in [
            "/ip4/192.168.1.2/udp/4001/quic-v1",
            "/ip4/10.0.0.7/udp/4001/quic-v1",
            "/ip4/127.0.0.1/udp/4001/quic-v1",
            "/ip4/100.64.1.1/udp/4001/quic-v1",
            "/ip4/169.254.1.1/udp/4001/quic-v1",
            "/ip4/0.0.0.0/udp/4001/quic-v1",
            "/ip4/198.51.100.1/udp/0/quic-v1",
            "/ip6/fe80::1/udp/4001/quic-v1",
            "/ip6/fd00::1/udp/4001/quic-v1",
            "/ip6/::1/udp/4001/quic-v1",
            "/ip6/::ffff:198.51.100.1/udp/4001/quic-v1",
            "/dns4/localhost/udp/4001/quic-v1",
            "/dns/printer.local./udp/4001/quic-v1",
            "/ip4/198.51.100.1/tcp/4001",
            "/ip4/198.51.100.1/udp/4001/quic",
            "/ip4/198.51.100.1/udp/4001/quic-v1/webtransport",
            &format!("{GLOBAL}/p2p/{other}"),
            &format!("{GLOBAL}/p2p/{other}/p2p-circuit"),
            &format!("/p2p/{own}"),
            "",
        ] {
            assert!(!is_global_quic(&parse(address), &own), "{address}");
        }
    }

    #[test]
    fn the_first_address_makes_us_reachable_and_the_last_one_ends_it() {
        let mut reachability = Reachability::new(PeerId::random());
        let (one, two) = (parse(GLOBAL), parse("/ip4/198.51.100.2/udp/4001/quic-v1"));
        let private = parse("/ip4/10.0.0.7/udp/4001/quic-v1");
        assert!(!reachability.confirmed(&private));
        assert!(reachability.confirmed(&one));
        assert!(!reachability.confirmed(&two) && !reachability.confirmed(&one));
        assert!(!reachability.expired(&one) && !reachability.expired(&private));
        assert!(reachability.expired(&two) && !reachability.expired(&two));
    }
}
