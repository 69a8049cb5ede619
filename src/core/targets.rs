//! Which addresses may be probed (RFC 9000 §21.5: a remote must not make us hit a third party).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How far an address reaches, as far as it matters to probing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Never a target: unspecified, multicast, broadcast, reserved, link-local IPv6, IPv4-mapped IPv6.
    Never,
    /// This host.
    Loopback,
    /// Private networks: RFC 1918, RFC 3927, RFC 4193 and the shared space of RFC 6598.
    Private,
    /// Everything else, documentation ranges too: laboratories use them.
    Global,
}

/// The scope of an address.
pub(crate) fn scope(ip: IpAddr) -> Scope {
    match ip {
        IpAddr::V4(ip) => scope_v4(ip),
        IpAddr::V6(ip) => scope_v6(ip),
    }
}

fn scope_v4(ip: Ipv4Addr) -> Scope {
    let [first, second, ..] = ip.octets();
    // 0/8 is 'this network' (RFC 1122), 240/4 is reserved and holds the broadcast address.
    if first == 0 || first >= 240 || ip.is_multicast() {
        Scope::Never
    } else if ip.is_loopback() {
        Scope::Loopback
    } else if ip.is_private() || ip.is_link_local() || (first == 100 && second & 0xc0 == 64) {
        Scope::Private
    } else {
        Scope::Global
    }
}

fn scope_v6(ip: Ipv6Addr) -> Scope {
    let first = ip.segments()[0];
    if ip.is_loopback() {
        Scope::Loopback
    } else if ip.is_unspecified()
        || ip.is_multicast()
        || first & 0xffc0 == 0xfe80
        || ip.to_ipv4_mapped().is_some()
    {
        Scope::Never
    } else if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 {
        Scope::Private
    } else {
        Scope::Global
    }
}

/// Whether `ip` is in the address space of a household or an office, as opposed to that of a carrier.
pub(crate) fn is_lan(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(_) => matches!(scope(ip), Scope::Loopback | Scope::Private),
    }
}

/// The addresses of an interface: `address/length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Prefix {
    pub(crate) address: IpAddr,
    pub(crate) length: u8,
}

impl Prefix {
    /// Whether `ip` is one of them.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
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

    /// Whether `ip` is the directed broadcast address (RFC 919) of this network.
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

/// What a session knows when it judges the peer's addresses.
#[derive(Debug)]
pub(crate) struct Policy<'a> {
    /// The networks that we are on.
    pub(crate) prefixes: &'a [Prefix],
    /// The addresses at which observers see us.
    pub(crate) reflexive: &'a [IpAddr],
    /// The addresses of our own sockets.
    pub(crate) own: &'a [SocketAddr],
    /// The address of the coordinator, as we reach it.
    pub(crate) coordinator: Option<SocketAddr>,
    /// The address at which the coordinator sees the peer.
    pub(crate) observed: Option<SocketAddr>,
}

impl Policy<'_> {
    /// Whether `target` may be probed.
    ///
    /// Private targets only where they are likely to be the peer's: behind the same public address, on a network that
    /// we and the peer are both on, or where the coordinator itself lives in private space and saw the peer there. What
    /// the peer says of itself is no evidence, what the coordinator saw is.
    pub(crate) fn allows(&self, target: SocketAddr) -> bool {
        if target.port() == 0 || self.own.contains(&target) {
            return false;
        }
        let ip = target.ip();
        match scope(ip) {
            Scope::Never => false,
            Scope::Loopback => self.coordinator.is_some_and(|c| c.ip().is_loopback()),
            Scope::Global => !self.prefixes.iter().any(|prefix| prefix.is_broadcast(ip)),
            Scope::Private => {
                !self.prefixes.iter().any(|prefix| prefix.is_broadcast(ip))
                    && (self.shares_public_address() || self.shares_network(ip) || self.is_observed(target))
            }
        }
    }

    fn shares_public_address(&self) -> bool {
        self.observed.is_some_and(|observed| {
            scope(observed.ip()) == Scope::Global && self.reflexive.contains(&observed.ip())
        })
    }

    fn shares_network(&self, ip: IpAddr) -> bool {
        self.observed.is_some_and(|observed| {
            self.prefixes.iter().any(|prefix| prefix.contains(ip) && prefix.contains(observed.ip()))
        })
    }

    fn is_observed(&self, target: SocketAddr) -> bool {
        self.observed == Some(target)
            && self.coordinator.is_some_and(|c| matches!(scope(c.ip()), Scope::Private | Scope::Loopback))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Policy<'static> =
        Policy { prefixes: &[], reflexive: &[], own: &[], coordinator: None, observed: None };

    fn at(s: &str) -> SocketAddr {
        s.parse().unwrap()
    }

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn addresses_that_name_nobody_or_everybody_are_never_targets() {
        let prefixes = [Prefix { address: ip("198.51.100.7"), length: 24 }];
        let policy = Policy {
            prefixes: &prefixes,
            reflexive: &[ip("203.0.113.1")],
            coordinator: Some(at("127.0.0.1:1")),
            observed: Some(at("203.0.113.1:1")),
            ..NOTHING
        };
        for target in [
            "0.0.0.0:1",
            "0.1.2.3:1",
            "224.0.0.1:1",
            "239.1.1.1:1",
            "240.0.0.1:1",
            "255.255.255.255:1",
            "198.51.100.255:1",
            "[::]:1",
            "[ff02::1]:1",
            "[fe80::1]:1",
            "[::ffff:192.0.2.1]:1",
            "192.0.2.1:0",
            "[2001:db8::1]:0",
        ] {
            assert!(!policy.allows(at(target)), "{target}");
        }
        for target in ["192.0.2.1:1", "198.51.100.8:1", "[2001:db8::1]:1"] {
            assert!(policy.allows(at(target)), "{target}");
        }
    }

    const PRIVATE: [&str; 7] = [
        "10.1.2.3:1",
        "172.16.0.1:1",
        "192.168.1.1:1",
        "169.254.1.1:1",
        "100.64.0.1:1",
        "[fd00::1]:1",
        "[fec0::1]:1",
    ];

    #[test]
    fn private_targets_are_refused_without_evidence() {
        for target in PRIVATE {
            assert!(!NOTHING.allows(at(target)), "{target}");
        }
        assert!(NOTHING.allows(at("100.128.0.1:1")), "outside of the shared space of RFC 6598");
    }

    #[test]
    fn private_targets_are_allowed_behind_the_same_public_address() {
        let policy =
            Policy { reflexive: &[ip("203.0.113.1")], observed: Some(at("203.0.113.1:77")), ..NOTHING };
        assert!(PRIVATE.iter().all(|target| policy.allows(at(target))));
        let other = Policy { observed: Some(at("203.0.113.2:77")), ..policy };
        assert!(!PRIVATE.iter().any(|target| other.allows(at(target))));
    }

    #[test]
    fn a_shared_private_address_is_no_evidence() {
        let policy = Policy { reflexive: &[ip("10.0.0.1")], observed: Some(at("10.0.0.1:77")), ..NOTHING };
        assert!(!policy.allows(at("10.9.9.9:1")));
    }

    #[test]
    fn private_targets_are_allowed_on_a_network_that_both_are_on() {
        let prefixes = [Prefix { address: ip("192.168.1.7"), length: 24 }];
        let policy = Policy { prefixes: &prefixes, observed: Some(at("192.168.1.9:5")), ..NOTHING };
        assert!(policy.allows(at("192.168.1.9:6")));
        assert!(!policy.allows(at("192.168.2.9:6")), "another network");
        let elsewhere = Policy { observed: Some(at("203.0.113.9:5")), ..policy };
        assert!(!elsewhere.allows(at("192.168.1.9:6")), "the peer is elsewhere");
    }

    #[test]
    fn the_observed_private_address_is_allowed_if_the_coordinator_is_in_private_space_itself() {
        let seen = at("10.0.0.9:5");
        let policy = Policy { coordinator: Some(at("10.0.1.1:1")), observed: Some(seen), ..NOTHING };
        assert!(policy.allows(seen));
        assert!(!policy.allows(at("10.0.0.9:6")), "another port was not observed");
        let public = Policy { coordinator: Some(at("203.0.113.1:1")), ..policy };
        assert!(!public.allows(seen), "a public coordinator cannot have seen it");
    }

    #[test]
    fn loopback_is_allowed_only_over_a_loopback_coordinator() {
        for target in ["127.0.0.1:1", "[::1]:1"] {
            assert!(!NOTHING.allows(at(target)));
            assert!(Policy { coordinator: Some(at("127.0.0.1:9")), ..NOTHING }.allows(at(target)));
        }
    }

    #[test]
    fn our_own_sockets_are_not_targets() {
        let policy = Policy { own: &[at("192.0.2.1:4001")], ..NOTHING };
        assert!(!policy.allows(at("192.0.2.1:4001")));
        assert!(policy.allows(at("192.0.2.1:4002")));
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
