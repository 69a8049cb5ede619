//! Networks whose addresses share what is limited.
//!
//! A network is a prefix that one party can get cheaply: a /24 of IPv4 or a /48 of IPv6. A /24 is
//! the least that is routed on the Internet, and a /48 the most that a site gets (RFC 6177). On
//! private and link-local networks every address counts for itself, and loopback is not limited.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bits of an IPv4 address that name its network.
const IPV4_PREFIX: u32 = 24;
/// Bits of an IPv6 address that name its network.
const IPV6_PREFIX: u32 = 48;

/// A network whose addresses share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkPrefix(IpAddr);

impl NetworkPrefix {
    /// The network of an address; `None` for loopback, which is not limited.
    pub fn of(address: IpAddr) -> Option<Self> {
        match address.to_canonical() {
            ip if ip.is_loopback() => None,
            IpAddr::V4(ip) if ip.is_private() || ip.is_link_local() => Some(Self(ip.into())),
            IpAddr::V6(ip) if ip.is_unique_local() || ip.is_unicast_link_local() => Some(Self(ip.into())),
            IpAddr::V4(ip) => {
                let network = ip.to_bits() & (u32::MAX << (u32::BITS - IPV4_PREFIX));
                Some(Self(Ipv4Addr::from_bits(network).into()))
            }
            IpAddr::V6(ip) => {
                let network = ip.to_bits() & (u128::MAX << (u128::BITS - IPV6_PREFIX));
                Some(Self(Ipv6Addr::from_bits(network).into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(address: &str) -> Option<NetworkPrefix> {
        NetworkPrefix::of(address.parse().unwrap())
    }

    #[test]
    fn addresses_of_one_network_share_and_private_ones_count_for_themselves() {
        assert_eq!(prefix("192.0.2.1"), prefix("192.0.2.255"));
        assert_ne!(prefix("192.0.2.1"), prefix("192.0.3.1"));
        assert_eq!(prefix("::ffff:192.0.2.1"), prefix("192.0.2.9"));
        assert_eq!(prefix("2001:db8:1::1"), prefix("2001:db8:1:ffff::1"));
        assert_ne!(prefix("2001:db8:1::1"), prefix("2001:db8:2::1"));
        for [a, b] in [["10.0.0.1", "10.0.0.2"], ["fd00::1", "fd00::2"], ["169.254.1.1", "169.254.1.2"]] {
            assert_ne!(prefix(a), prefix(b));
        }
        assert_eq!([prefix("127.0.0.1"), prefix("::1"), prefix("::ffff:127.0.0.1")], [None; 3]);
    }
}
