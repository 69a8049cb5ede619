//! Judges addresses: how far an address reaches, and which addresses of a peer may be probed.
//!
//! A remote must not make this host send to a third party or into its own network (RFC 9000 §21.5).
//! The scope of an address follows from the IANA special-purpose address registries (RFC 6890). An
//! IPv6 address that embeds an IPv4 address is judged by both.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::candidate::{Candidate, CandidateKind};

/// Reach of an address, as far as it matters to probing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Never a target: unspecified, multicast, broadcast, reserved, link-local IPv6, IPv4-mapped
    /// IPv6.
    Never,
    /// This host.
    Loopback,
    /// A network that the Internet does not route to.
    Private,
    /// The Internet.
    Global,
}

use Scope::{Global, Loopback, Never, Private};

/// IANA IPv4 special-purpose address registry. The first matching entry counts. Unlisted addresses
/// are global.
const SPECIAL_V4: [(Ipv4Addr, u8, Scope); 13] = [
    // 'This network' (RFC 791).
    (Ipv4Addr::new(0, 0, 0, 0), 8, Never),
    (Ipv4Addr::new(10, 0, 0, 0), 8, Private),
    // Shared address space of carriers (RFC 6598).
    (Ipv4Addr::new(100, 64, 0, 0), 10, Private),
    (Ipv4Addr::new(127, 0, 0, 0), 8, Loopback),
    // Metadata of cloud instances, with their credentials.
    (Ipv4Addr::new(169, 254, 169, 254), 32, Never),
    // Link-local (RFC 3927).
    (Ipv4Addr::new(169, 254, 0, 0), 16, Private),
    (Ipv4Addr::new(172, 16, 0, 0), 12, Private),
    // IETF protocol assignments (RFC 6890), among them the ends of DS-Lite and 464XLAT tunnels.
    (Ipv4Addr::new(192, 0, 0, 0), 24, Never),
    // Anycast of 6to4 relays (RFC 7526).
    (Ipv4Addr::new(192, 88, 99, 0), 24, Never),
    (Ipv4Addr::new(192, 168, 0, 0), 16, Private),
    // Benchmarks of networks (RFC 2544).
    (Ipv4Addr::new(198, 18, 0, 0), 15, Private),
    (Ipv4Addr::new(224, 0, 0, 0), 4, Never),
    // Reserved (RFC 1112), with the limited broadcast address.
    (Ipv4Addr::new(240, 0, 0, 0), 4, Never),
];

/// IANA IPv6 special-purpose address registry, without the prefixes that embed IPv4 addresses: see
/// [`embedded`]. The first matching entry counts. Unlisted addresses are global.
const SPECIAL_V6: [(Ipv6Addr, u8, Scope); 15] = [
    (Ipv6Addr::LOCALHOST, 128, Loopback),
    // Unspecified, and IPv4-compatible addresses (RFC 4291 §2.5.5.1).
    (Ipv6Addr::UNSPECIFIED, 96, Never),
    // IPv4-mapped: such an address has another form (protocol.md §2.2).
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, Never),
    // Translation within one network (RFC 8215).
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, Never),
    // Discard-only (RFC 6666).
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64, Never),
    // Benchmarks of networks (RFC 5180).
    (Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48, Private),
    // IETF protocol assignments (RFC 2928), among them identifiers without a location (RFC 7343).
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, Never),
    // Segment routing identifiers (RFC 9602).
    (Ipv6Addr::new(0x5f00, 0, 0, 0, 0, 0, 0, 0), 16, Never),
    // Metadata of cloud instances.
    (Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128, Never),
    // Unique local (RFC 4193).
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, Private),
    // Link-local: means nothing without a zone (RFC 4007).
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, Never),
    // Site-local (RFC 3879).
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, Private),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, Never),
    // Documentation: laboratories use these prefixes as their Internet, and no other network routes
    // them. The same holds for the three IPv4 prefixes of RFC 5737, which are not listed.
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, Global),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, Global),
];

/// Returns the scope of an address.
pub fn scope(ip: IpAddr) -> Scope {
    match ip {
        IpAddr::V4(ip) => scope_v4(ip),
        IpAddr::V6(ip) => match embedded(ip) {
            Some([first, second]) => {
                let is_global = |ip| scope_v4(ip) == Global;
                if is_global(first) && is_global(second) { Global } else { Never }
            }
            None => scope_v6(ip),
        },
    }
}

fn scope_v4(ip: Ipv4Addr) -> Scope {
    let contains = |(address, length, _): &&(Ipv4Addr, u8, Scope)| {
        Prefix { address: (*address).into(), length: *length }.contains(ip.into())
    };
    SPECIAL_V4.iter().find(contains).map_or(Global, |(.., scope)| *scope)
}

fn scope_v6(ip: Ipv6Addr) -> Scope {
    let contains = |(address, length, _): &&(Ipv6Addr, u8, Scope)| {
        Prefix { address: (*address).into(), length: *length }.contains(ip.into())
    };
    SPECIAL_V6.iter().find(contains).map_or(Global, |(.., scope)| *scope)
}

/// Returns the IPv4 addresses to which a packet to `ip` leads: that of the destination first, and
/// the same again if there is only one. NAT64 (RFC 6052), 6to4 (RFC 3056) and Teredo (RFC 4380,
/// which names a server and a client) embed them.
fn embedded(ip: Ipv6Addr) -> Option<[Ipv4Addr; 2]> {
    let segments = ip.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match segments {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => Some([v4(high, low); 2]),
        [0x2001, 0, server_high, server_low, _, _, high, low] => {
            Some([v4(!high, !low), v4(server_high, server_low)])
        }
        _ => None,
    }
}

/// Returns the address of the host to which a packet to `ip` leads.
fn destination(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => embedded(v6).map_or(ip, |[host, _]| host.into()),
        IpAddr::V4(_) => ip,
    }
}

/// Returns true if `ip` is in the address space of a household or an office, as opposed to that of
/// a carrier.
pub fn is_lan(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(_) => matches!(scope(ip), Scope::Loopback | Scope::Private),
    }
}

/// The addresses of an interface: `address/length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// The address of an interface in it.
    pub address: IpAddr,
    /// The length of its prefix in bits.
    pub length: u8,
}

impl Prefix {
    /// Returns true if `ip` is one of the addresses.
    pub fn contains(&self, ip: IpAddr) -> bool {
        fn shared(a: u128, b: u128, width: u32, length: u32) -> bool {
            length == 0 || (a ^ b) >> (width - length.min(width)) == 0
        }
        let length = u32::from(self.length);
        match (self.address, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => shared(a.to_bits().into(), b.to_bits().into(), 32, length),
            (IpAddr::V6(a), IpAddr::V6(b)) => shared(a.to_bits(), b.to_bits(), 128, length),
            _ => false,
        }
    }

    /// Returns true if `ip` is the directed broadcast address (RFC 919) of this network.
    fn is_broadcast(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(_), IpAddr::V4(v4)) if self.length < 31 => {
                let hosts = u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
                self.contains(ip) && v4.to_bits() & hosts == hosts
            }
            _ => false,
        }
    }
}

/// Ports below this one belong to services of the system (RFC 6335 §6). No peer of ours has one in
/// a private network.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;
/// Coordinators that must see us at one public address before a private network counts as shared
/// with the peer.
const WITNESSES: usize = 2;

/// Facts by which the addresses that a peer and its coordinator name are judged.
#[derive(Debug)]
pub struct Policy<'a> {
    /// The networks on our links.
    pub prefixes: &'a [Prefix],
    /// The addresses at which our coordinators see us, with the number of independent coordinators
    /// that do.
    pub public: &'a BTreeMap<IpAddr, usize>,
    /// The addresses of our own sockets.
    pub own: &'a [SocketAddr],
    /// The address of the coordinator, as we reach it.
    pub coordinator: Option<SocketAddr>,
    /// The address at which the coordinator sees the peer.
    pub observed: Option<SocketAddr>,
}

impl Policy<'_> {
    /// Returns true if a candidate that the peer signed may be probed.
    pub fn allows(&self, candidate: &Candidate) -> bool {
        self.judge(candidate.address, candidate.kind == CandidateKind::Host)
    }

    /// Returns the address at which the coordinator sees the peer, if that may be probed.
    pub fn allowed_observed(&self) -> Option<SocketAddr> {
        self.observed.filter(|observed| self.judge(*observed, false))
    }

    /// A private address proves nothing, since every network has similar addresses. Evidence for
    /// the peer's network is a shared public address, or a coordinator that sees the peer in a
    /// private network. One coordinator is evidence for a network on our link only. Routed private
    /// networks need two coordinators, and the peer's signature.
    fn judge(&self, target: SocketAddr, is_signed_host: bool) -> bool {
        let ip = target.ip();
        let is_broadcast = || self.prefixes.iter().any(|prefix| prefix.is_broadcast(destination(ip)));
        if target.port() == 0 || self.own.contains(&target) || is_broadcast() {
            return false;
        }
        match scope(ip) {
            Never => false,
            Loopback => self.coordinator.is_some_and(|c| c.ip().is_loopback()),
            Global => !self.is_own_public(ip) || (self.is_seen_at(ip) && is_unprivileged(target)),
            Private => {
                let is_on_link = self.prefixes.iter().any(|prefix| prefix.contains(ip));
                let shares_public_address = |witnesses| self.public_address_shared_by() >= witnesses;
                is_unprivileged(target)
                    && (self.is_observed(target)
                        || self.shares_link(ip)
                        || (is_on_link && shares_public_address(1))
                        || (is_signed_host && !is_link_local(ip) && shares_public_address(WITNESSES)))
            }
        }
    }

    /// Returns true if a packet to `ip` leads to this host, or to the NAT in front of it.
    fn is_own_public(&self, ip: IpAddr) -> bool {
        let ip = destination(ip);
        self.public.contains_key(&ip) || self.prefixes.iter().any(|prefix| prefix.address == ip)
    }

    fn is_seen_at(&self, ip: IpAddr) -> bool {
        self.observed.is_some_and(|observed| observed.ip() == ip)
    }

    /// Counts the coordinators that see us at the public address at which this coordinator sees the
    /// peer.
    fn public_address_shared_by(&self) -> usize {
        let observed = self.observed.map(|observed| observed.ip()).filter(|ip| scope(*ip) == Global);
        observed.and_then(|ip| self.public.get(&ip)).copied().unwrap_or(0)
    }

    /// Returns true if `ip` and the address at which the coordinator sees the peer are both on one
    /// of our links.
    fn shares_link(&self, ip: IpAddr) -> bool {
        self.observed.is_some_and(|observed| {
            self.prefixes.iter().any(|prefix| prefix.contains(ip) && prefix.contains(observed.ip()))
        })
    }

    fn is_observed(&self, target: SocketAddr) -> bool {
        self.observed == Some(target)
            && self.coordinator.is_some_and(|c| matches!(scope(c.ip()), Private | Loopback))
    }
}

fn is_unprivileged(target: SocketAddr) -> bool {
    target.port() >= FIRST_UNPRIVILEGED_PORT
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.is_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: &str) -> SocketAddr {
        s.parse().unwrap()
    }

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    fn candidate(kind: CandidateKind, address: &str) -> Candidate {
        Candidate { sequence: 0, kind, priority: 0, address: at(address) }
    }

    /// A policy for a peer that the coordinator at 203.0.113.99 sees at `observed`, with ourselves
    /// seen at 203.0.113.1 by as many coordinators as `witnesses` says.
    struct Facts {
        prefixes: Vec<Prefix>,
        public: BTreeMap<IpAddr, usize>,
        own: Vec<SocketAddr>,
        coordinator: SocketAddr,
        observed: SocketAddr,
    }

    fn facts(witnesses: usize, observed: &str) -> Facts {
        let prefix = |address, length| Prefix { address: ip(address), length };
        Facts {
            prefixes: vec![prefix("192.168.1.7", 24), prefix("fd00:1::7", 64)],
            public: BTreeMap::from([(ip("203.0.113.1"), witnesses)]),
            own: vec![at("192.168.1.7:4001")],
            coordinator: at("203.0.113.99:4001"),
            observed: at(observed),
        }
    }

    impl Facts {
        fn policy(&self) -> Policy<'_> {
            Policy {
                prefixes: &self.prefixes,
                public: &self.public,
                own: &self.own,
                coordinator: Some(self.coordinator),
                observed: Some(self.observed),
            }
        }

        fn allows_host(&self, address: &str) -> bool {
            self.policy().allows(&candidate(CandidateKind::Host, address))
        }

        fn allows_reflexive(&self, address: &str) -> bool {
            self.policy().allows(&candidate(CandidateKind::ServerReflexive, address))
        }
    }

    #[test]
    fn special_purpose_addresses_have_the_scope_that_the_registries_give() {
        let expected = [
            (Never, "0.0.0.0 0.1.2.3 192.0.0.1 192.0.0.170 192.88.99.1 224.0.0.1 239.1.1.1 240.0.0.1"),
            (Never, "255.255.255.255 169.254.169.254"),
            (Never, ":: ff02::1 fe80::1 febf::1 ::ffff:192.0.2.1 ::ffff:10.0.0.1 100::1 5f00::1"),
            (Never, "2001:20::1 2001:1::1 2001:4:112::1 64:ff9b:1::192.0.2.1 ::192.0.2.1 fd00:ec2::254"),
            (Loopback, "127.0.0.1 127.255.255.255 ::1"),
            (
                Private,
                "10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.1.1 100.64.0.1 100.127.255.255",
            ),
            (Private, "198.18.0.1 198.19.255.255 fd00::1 fc00::1 fec0::1 2001:2::1"),
            (Global, "1.1.1.1 100.63.255.255 100.128.0.1 172.32.0.1 192.0.1.1 198.17.0.1 198.20.0.1"),
            (Global, "192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 3fff::1 2600::1 2001:200::1"),
        ];
        for (scope, addresses) in expected {
            for address in addresses.split(' ') {
                assert_eq!(super::scope(ip(address)), scope, "{address}");
            }
        }
    }

    #[test]
    fn an_address_that_embeds_another_is_judged_by_both() {
        for global in ["64:ff9b::192.0.2.1", "2002:c000:201::1", "2001:0:c000:201::3fff:fdfe"] {
            assert_eq!(scope(ip(global)), Global, "{global}");
        }
        for inner in ["10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1", "224.0.0.1"] {
            let IpAddr::V4(v4) = ip(inner) else { panic!("{inner} is IPv4") };
            let [a, b, c, d] = v4.octets();
            let [high, low] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
            let server = [0xc000, 0x0201];
            let addresses = [
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, server[0], server[1], 0, 0, !high, !low),
                Ipv6Addr::new(0x2001, 0, high, low, 0, 0, !server[0], !server[1]),
                Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
            ];
            for address in addresses {
                assert!(matches!(scope(address.into()), Never | Loopback), "{address}");
            }
        }
    }

    #[test]
    fn addresses_that_name_nobody_or_everybody_are_never_targets() {
        let mut facts = facts(2, "203.0.113.1:1");
        facts.prefixes.push(Prefix { address: ip("198.51.100.7"), length: 24 });
        for target in [
            "0.0.0.0:1",
            "224.0.0.1:1",
            "240.0.0.1:1",
            "255.255.255.255:1",
            "198.51.100.255:1",
            "192.168.1.255:4001",
            "[::]:1",
            "[ff02::1]:1",
            "[fe80::1]:1",
            "[::ffff:192.0.2.1]:1",
            "[64:ff9b::198.51.100.255]:1",
            "192.0.2.1:0",
            "[2001:db8::1]:0",
        ] {
            assert!(!facts.allows_host(target), "{target}");
        }
        for target in ["192.0.2.1:1", "198.51.100.8:1", "[2001:db8::1]:1"] {
            assert!(facts.allows_host(target), "{target}");
        }
    }

    const ROUTED: [&str; 5] =
        ["10.1.2.3:4001", "172.17.0.2:6379", "192.168.2.1:4001", "100.64.0.1:4001", "[fd00:2::1]:4001"];
    const ON_LINK: [&str; 2] = ["192.168.1.9:4001", "[fd00:1::9]:4001"];

    #[test]
    fn private_targets_are_refused_without_a_shared_public_address() {
        let facts = facts(2, "203.0.113.2:77");
        for target in ROUTED.iter().chain(&ON_LINK) {
            assert!(!facts.allows_host(target), "{target}");
        }
    }

    #[test]
    fn one_coordinator_is_evidence_for_our_own_link_only() {
        let facts = facts(1, "203.0.113.1:77");
        assert!(ON_LINK.iter().all(|target| facts.allows_host(target)));
        assert!(!ROUTED.iter().any(|target| facts.allows_host(target)));
    }

    #[test]
    fn two_coordinators_are_evidence_for_private_networks_that_the_peer_signed() {
        let facts = facts(2, "203.0.113.1:77");
        assert!(ROUTED.iter().all(|target| facts.allows_host(target)));
        assert!(
            !ROUTED.iter().any(|target| facts.allows_reflexive(target)),
            "the peer does not own that address"
        );
        assert!(!facts.allows_host("169.254.1.1:4001"), "link-local, and not on our link");
    }

    #[test]
    fn an_address_of_a_stranger_is_no_evidence() {
        let mut facts = facts(2, "203.0.113.1:77");
        facts.public.clear();
        assert!(!ROUTED.iter().chain(&ON_LINK).any(|target| facts.allows_host(target)));
    }

    #[test]
    fn services_of_the_system_are_no_targets_in_a_private_network() {
        let facts = facts(2, "203.0.113.1:77");
        for target in ["10.0.0.1:53", "192.168.1.1:80", "192.168.1.1:1023", "[fd00:1::9]:443"] {
            assert!(!facts.allows_host(target), "{target}");
        }
        assert!(facts.allows_host("192.0.2.1:443"), "the Internet");
    }

    #[test]
    fn a_shared_private_address_is_no_evidence() {
        let mut facts = facts(2, "10.0.0.1:77");
        facts.public = BTreeMap::from([(ip("10.0.0.1"), 2)]);
        assert!(!facts.allows_host("10.9.9.9:4001"));
    }

    #[test]
    fn private_targets_are_allowed_on_a_network_on_which_the_coordinator_sees_the_peer() {
        let facts = facts(0, "192.168.1.9:5000");
        assert!(facts.allows_host("192.168.1.9:6000"));
        assert!(!facts.allows_host("192.168.2.9:6000"), "another network");
    }

    #[test]
    fn the_observed_private_address_is_allowed_if_the_coordinator_is_in_private_space_itself() {
        let mut facts = facts(0, "10.0.0.9:5000");
        assert_eq!(facts.policy().allowed_observed(), None, "a public coordinator cannot have seen it");
        facts.coordinator = at("10.0.1.1:4001");
        assert_eq!(facts.policy().allowed_observed(), Some(facts.observed));
        assert!(!facts.allows_host("10.0.0.9:6000"), "another port was not observed");
    }

    #[test]
    fn loopback_is_allowed_only_over_a_loopback_coordinator() {
        let mut facts = facts(2, "203.0.113.1:77");
        for target in ["127.0.0.1:4001", "[::1]:4001"] {
            assert!(!facts.allows_host(target));
        }
        facts.coordinator = at("127.0.0.1:9");
        for target in ["127.0.0.1:4001", "[::1]:4001"] {
            assert!(facts.allows_host(target));
        }
    }

    #[test]
    fn our_own_sockets_and_our_own_public_address_are_no_targets() {
        let mut facts = facts(2, "203.0.113.2:77");
        facts.own.push(at("192.0.2.1:4001"));
        assert!(!facts.allows_host("192.0.2.1:4001"));
        assert!(facts.allows_host("192.0.2.1:4002"));
        for target in ["203.0.113.1:4001", "[64:ff9b::203.0.113.1]:4001", "[2002:cb00:7101::1]:4001"] {
            assert!(!facts.allows_reflexive(target), "{target} is ours, and the peer is seen elsewhere");
        }
        facts.observed = at("203.0.113.1:77");
        assert!(facts.allows_reflexive("203.0.113.1:4001"), "the peer is behind the same NAT");
        assert!(!facts.allows_reflexive("203.0.113.1:443"));
    }

    #[test]
    fn prefixes_contain_what_shares_their_first_bits() {
        let v4 = Prefix { address: ip("10.1.2.3"), length: 20 };
        assert!(v4.contains(ip("10.1.15.255")));
        assert!(!v4.contains(ip("10.1.16.0")));
        assert!(!v4.contains(ip("::1")));
        assert!(Prefix { address: ip("10.1.2.3"), length: 0 }.contains(ip("8.8.8.8")));
        let v6 = Prefix { address: ip("2001:db8::1"), length: 64 };
        assert!(v6.contains(ip("2001:db8::ffff")));
        assert!(!v6.contains(ip("2001:db8:0:1::1")));
        assert!(Prefix { address: ip("10.0.0.1"), length: 200 }.contains(ip("10.0.0.1")));
    }
}
