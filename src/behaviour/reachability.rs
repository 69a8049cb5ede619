//! Addresses at which any peer on the Internet reaches us without help.
//!
//! An external address is confirmed by AutoNAT, by a port mapping or by the application, and each
//! of them may confirm an address that only the own network, or only another transport, reaches.
//! Such an address must not end reservations or make us a coordinator.
//!
//! AutoNAT dials back from a server to which we have sent, and a NAT with address-dependent
//! filtering (RFC 4787 §5) lets that through. So an address that somebody has observed, and that is
//! not an address of this host, counts only with a proof that the NAT is open to everybody: a
//! connection from an address to which this host has never sent, or a filtering test. An address
//! that was confirmed without having been observed is the word of the application or of a port
//! mapping, and counts.
//!
//! A mapping in a gateway may end unnoticed, and the peer would then depend on its coordinators and
//! relays again. It keeps both until the address is proved: it is an address of this host, or
//! somebody new has reached this peer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

use libp2p_punch_proto::address_policy::{Scope, scope};

/// Observed addresses that are remembered. Once there are as many, every address counts as
/// observed.
const MAX_OBSERVED: usize = 64;

/// The confirmed external addresses that count.
#[derive(Debug)]
pub(super) struct Reachability {
    local_peer: PeerId,
    /// Confirmed addresses, and for each whether it had been observed before.
    confirmed: BTreeMap<Multiaddr, bool>,
    /// Addresses at which somebody claims to see us.
    observed: BTreeSet<Multiaddr>,
    /// Addresses of this host on which it listens.
    local: BTreeSet<IpAddr>,
    /// Address families in which somebody to whom we had not sent has reached us. A NAT of one
    /// family says nothing about the firewall of the other.
    open: BTreeSet<Family>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl Reachability {
    pub(super) fn new(local_peer: PeerId) -> Self {
        Self {
            local_peer,
            confirmed: BTreeMap::new(),
            observed: BTreeSet::new(),
            local: BTreeSet::new(),
            open: BTreeSet::new(),
        }
    }

    /// Returns true if peers on the Internet reach this one, as far as is known.
    pub(super) fn is_reachable(&self) -> bool {
        self.confirmed.iter().any(|(address, was_observed)| !was_observed || self.is_proved(address))
    }

    /// Returns true if peers on the Internet reach this one without coordinators and relays.
    pub(super) fn needs_no_help(&self) -> bool {
        self.confirmed.keys().any(|address| self.is_proved(address))
    }

    fn is_proved(&self, address: &Multiaddr) -> bool {
        let is_open = |ip: IpAddr| self.local.contains(&ip) || self.open.contains(&Family::of(ip));
        ip_of(address).is_some_and(is_open)
    }

    /// Returns the confirmed addresses that have an IP address.
    pub(super) fn external_addresses(&self) -> Vec<SocketAddr> {
        self.confirmed.keys().filter_map(socket_of).collect()
    }

    /// Records an address at which somebody claims to see us.
    pub(super) fn observed(&mut self, address: &Multiaddr) {
        if self.observed.len() < MAX_OBSERVED && is_global_quic(address, &self.local_peer) {
            self.observed.insert(without_peer(address));
        }
    }

    /// Records an external address that was confirmed.
    pub(super) fn confirmed(&mut self, address: &Multiaddr) {
        if is_global_quic(address, &self.local_peer) {
            let is_full = self.observed.len() >= MAX_OBSERVED;
            let was_observed = is_full || self.observed.contains(&without_peer(address));
            self.confirmed.entry(address.clone()).or_insert(was_observed);
        }
    }

    /// Removes an external address that expired.
    pub(super) fn expired(&mut self, address: &Multiaddr) {
        self.confirmed.remove(address);
        if self.confirmed.is_empty() {
            self.open.clear();
        }
    }

    /// Records an address on which we listen.
    pub(super) fn listening(&mut self, address: &Multiaddr) {
        self.local.extend(ip_of(address));
    }

    /// Removes an address on which we listened. The host may be in another network now.
    pub(super) fn not_listening(&mut self, address: &Multiaddr) {
        if let Some(ip) = ip_of(address).filter(|ip| self.local.remove(ip)) {
            self.open.remove(&Family::of(ip));
        }
    }

    /// Records a connection that came from an address to which we had not sent. The NAT in front of
    /// us lets everybody in, unless the address is in our own network: it may be that NAT's own.
    pub(super) fn reached_from(&mut self, address: IpAddr) {
        let is_own =
            || self.observed.iter().chain(self.confirmed.keys()).any(|own| ip_of(own) == Some(address));
        if scope(address) == Scope::Global && !is_own() {
            self.open.insert(Family::of(address));
        }
    }

    /// Records that a test has found endpoint-independent filtering in front of a public address.
    pub(super) fn filters_nothing(&mut self, public: IpAddr) {
        self.open.insert(Family::of(public));
    }
}

fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

fn socket_of(address: &Multiaddr) -> Option<SocketAddr> {
    match address.iter().nth(1)? {
        Protocol::Udp(port) => Some(SocketAddr::new(ip_of(address)?, port)),
        _ => None,
    }
}

fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().take_while(|part| !matches!(part, Protocol::P2p(_))).collect()
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

    fn reachability() -> Reachability {
        Reachability::new(PeerId::random())
    }

    #[test]
    fn the_first_address_makes_us_reachable_and_the_end_of_the_last_one_ends_it() {
        let mut reachability = reachability();
        let (one, two) = (parse(GLOBAL), parse("/ip4/198.51.100.2/udp/4001/quic-v1"));
        reachability.confirmed(&parse("/ip4/10.0.0.7/udp/4001/quic-v1"));
        assert!(!reachability.is_reachable());
        reachability.confirmed(&one);
        assert!(reachability.is_reachable());
        reachability.confirmed(&two);
        reachability.expired(&one);
        assert!(reachability.is_reachable());
        reachability.expired(&two);
        assert!(!reachability.is_reachable());
    }

    #[test]
    fn a_mapped_port_is_proved_by_somebody_new_and_an_address_of_this_host_at_once() {
        let mut reachability = reachability();
        reachability.listening(&parse("/ip4/10.0.0.7/udp/4001/quic-v1"));
        reachability.confirmed(&parse(GLOBAL));
        reachability.confirmed(&parse("/dns4/peer.example/udp/4001/quic-v1"));
        assert!(reachability.is_reachable() && !reachability.needs_no_help());
        assert_eq!(reachability.external_addresses(), ["198.51.100.1:4001".parse().unwrap()]);
        reachability.reached_from("192.0.2.1".parse().unwrap());
        assert!(reachability.needs_no_help());
        reachability.expired(&parse(GLOBAL));
        assert!(reachability.is_reachable() && !reachability.needs_no_help());
        reachability.listening(&parse("/ip4/198.51.100.2/udp/4001/quic-v1"));
        reachability.confirmed(&parse("/ip4/198.51.100.2/udp/4001/quic-v1"));
        assert!(reachability.needs_no_help());
    }

    #[test]
    fn an_observed_address_of_another_host_needs_somebody_new_who_reaches_us() {
        let mut reachability = reachability();
        reachability.listening(&parse("/ip4/10.0.0.7/udp/4001/quic-v1"));
        reachability.observed(&parse(GLOBAL));
        reachability.confirmed(&parse(&format!("{GLOBAL}/p2p/{}", reachability.local_peer)));
        assert!(!reachability.is_reachable(), "AutoNAT dials back from a server to which we have sent");
        for own in ["10.0.0.8", "100.64.0.1", "198.51.100.1"] {
            reachability.reached_from(own.parse().unwrap());
            assert!(!reachability.is_reachable(), "{own} is within the NAT, or is the NAT");
        }
        reachability.reached_from("192.0.2.1".parse().unwrap());
        assert!(reachability.is_reachable());
        reachability.not_listening(&parse("/ip4/10.0.0.7/udp/4001/quic-v1"));
        assert!(!reachability.is_reachable(), "the host is in another network");
        reachability.filters_nothing("198.51.100.1".parse().unwrap());
        assert!(reachability.is_reachable());
    }

    #[test]
    fn a_stranger_over_ipv6_proves_nothing_about_the_nat_of_ipv4() {
        let mut reachability = reachability();
        reachability.listening(&parse("/ip4/10.0.0.7/udp/4001/quic-v1"));
        reachability.observed(&parse(GLOBAL));
        reachability.confirmed(&parse(GLOBAL));
        reachability.reached_from("2001:db8::1".parse().unwrap());
        assert!(!reachability.is_reachable());
        reachability.filters_nothing("2001:db8::2".parse().unwrap());
        assert!(!reachability.is_reachable());
        reachability.reached_from("192.0.2.1".parse().unwrap());
        assert!(reachability.is_reachable());
    }

    #[test]
    fn an_observed_address_of_this_host_needs_no_proof() {
        let mut reachability = reachability();
        reachability.observed(&parse(GLOBAL));
        reachability.confirmed(&parse(GLOBAL));
        reachability.listening(&parse("/ip4/198.51.100.1/udp/4001/quic-v1"));
        assert!(reachability.is_reachable());
    }

    #[test]
    fn invented_observations_are_capped_and_gain_no_trust() {
        let mut reachability = reachability();
        for port in 1..200 {
            reachability.observed(&parse(&format!("/ip4/198.51.100.9/udp/{port}/quic-v1")));
        }
        assert_eq!(reachability.observed.len(), MAX_OBSERVED);
        reachability.observed(&parse(GLOBAL));
        reachability.confirmed(&parse(GLOBAL));
        assert!(!reachability.is_reachable());
    }
}
