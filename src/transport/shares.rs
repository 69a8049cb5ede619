//! What each network may have of something that is limited, so that one attacker does not take all of it.
//!
//! A network is what one party can get hold of cheaply: a /24 of IPv4, which is the least that is routed on the Internet, and a
//! /48 of IPv6, which is the most that a site gets (RFC 6177). On private and link-local networks every address counts for itself,
//! and loopback is not limited.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Bits of an IPv4 address that name its network.
const IPV4_PREFIX: u32 = 24;
/// Bits of an IPv6 address that name its network.
const IPV6_PREFIX: u32 = 48;

/// A network whose addresses share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Prefix(IpAddr);

impl Prefix {
    /// The network of an address; `None` for loopback, which is not limited.
    pub(crate) fn of(address: IpAddr) -> Option<Self> {
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

/// Counts places by network. There are as many networks in it as places, at most.
#[derive(Debug, Default)]
pub(crate) struct Shares(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_prefix: BTreeMap<Prefix, usize>,
}

/// A place, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    shares: Arc<Shares>,
    prefix: Option<Prefix>,
}

impl Shares {
    /// Places that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.lock().all
    }

    /// Places that the network of `address` has; none if that is not limited.
    pub(crate) fn taken_by(&self, address: IpAddr) -> usize {
        Prefix::of(address).and_then(|prefix| self.lock().by_prefix.get(&prefix).copied()).unwrap_or(0)
    }

    /// Takes a place for `address`. Whether there is one is the caller's to say.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Place {
        let prefix = Prefix::of(address);
        let mut counts = self.lock();
        counts.all += 1;
        if let Some(prefix) = prefix {
            *counts.by_prefix.entry(prefix).or_default() += 1;
        }
        Place { shares: self.clone(), prefix }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.shares.lock();
        counts.all -= 1;
        if let Some(prefix) = self.prefix
            && let Entry::Occupied(mut count) = counts.by_prefix.entry(prefix)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(address: &str) -> Option<Prefix> {
        Prefix::of(address.parse().unwrap())
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

    #[test]
    fn places_are_counted_until_they_are_dropped_and_nothing_is_kept_of_them() {
        let shares = Arc::new(Shares::default());
        let [a, b, own] = ["192.0.2.1", "192.0.3.1", "127.0.0.1"].map(|ip| ip.parse().unwrap());
        let places = [a, a, b, own].map(|ip| shares.take(ip));
        assert_eq!([a, b, own].map(|ip| shares.taken_by(ip)), [2, 1, 0]);
        assert_eq!(shares.taken(), 4);
        drop(places);
        assert_eq!(shares.taken(), 0);
        assert!(shares.lock().by_prefix.is_empty());
    }
}
