//! The hosts of the network: which are public, which NATs the others are behind, and how far away
//! they are.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use libp2p_punch_sim::{Host, Link, World};
use punch_lab::Kind;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use crate::{exit::Failure, simulation::NatSpec};

/// Share of each kind among the hosts behind NATs, in percent.
pub(super) const NATS: [(Kind, u32); 8] = [
    (Kind::EimApdf, 45),
    (Kind::EimApdfOtherPort, 15),
    (Kind::Double, 10),
    (Kind::EimAdf, 8),
    (Kind::EimEif, 7),
    (Kind::ApdmRandom, 7),
    (Kind::ApdmSequential, 4),
    (Kind::EimApdfBare, 4),
];

/// One-way time between a host and the core, in milliseconds. Round trips take 12 to 200 ms.
const LATENCY_MS: std::ops::RangeInclusive<u64> = 3..=50;

/// A host of the network.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) kind: Kind,
    pub(super) host: Arc<Host>,
    /// Address of the host as its own sockets know it. No other host has it.
    pub(super) local: Ipv4Addr,
    /// One-way time between the host and the core.
    pub(super) latency: Duration,
}

/// Source of hosts, each with addresses of its own.
pub(super) struct Population<'a> {
    world: &'a World,
    rng: StdRng,
    /// Loss on the link of each host.
    loss: f64,
    next: u32,
}

impl<'a> Population<'a> {
    /// Creates a population on `world`, with a loss between any two hosts of this share.
    pub(super) fn new(world: &'a World, rng: StdRng, loss: f64) -> Self {
        // Every path crosses two links.
        Self { world, rng, loss: 1.0 - (1.0 - loss).sqrt(), next: 0 }
    }

    /// Adds a host that others reach.
    pub(super) fn public(&mut self) -> Result<Site, Failure> {
        self.site(Kind::Public)
    }

    /// Adds a host behind a NAT that is drawn from [`NATS`].
    pub(super) fn hidden(&mut self) -> Result<Site, Failure> {
        let drawn = NATS.choose_weighted(&mut self.rng, |(_, share)| *share);
        let kind = drawn.map_err(Failure::error)?.0;
        self.site(kind)
    }

    fn site(&mut self, kind: Kind) -> Result<Site, Failure> {
        let number = self.next;
        self.next += 1;
        let public = public_address(number);
        let [_, b, c, d] = (number << 2 | 2).to_be_bytes();
        let private = Ipv4Addr::new(10, b, c, d);
        // Only the host's own inner network has this address.
        let between = Ipv4Addr::new(100, 64, 0, 2);
        let spec: NatSpec =
            kind.word().parse().map_err(|error| Failure::error(format!("{kind}: {error}")))?;
        let latency = Duration::from_millis(self.rng.random_range(LATENCY_MS));
        let link = Link { latency, loss: self.loss, ..Link::default() };
        let (host, local) = match spec {
            NatSpec::Public => {
                let host = self.world.public_host(public);
                self.world.set_link(&host, link);
                (host, public)
            }
            NatSpec::Single(nat) => {
                let gateway = self.world.nat(nat, public);
                self.world.set_link(&gateway, link);
                (gateway.host(private), private)
            }
            NatSpec::Double(nat) => {
                let outer = self.world.nat(nat.clone(), public);
                self.world.set_link(&outer, link);
                (outer.nat(nat, between).host(private), private)
            }
        };
        Ok(Site { kind, host, local, latency })
    }
}

/// Returns a global address. Neighbours in the count are in different /16 networks.
fn public_address(number: u32) -> Ipv4Addr {
    /// First bytes that hold no special addresses (RFC 6890).
    const FIRST: std::ops::Range<u32> = 20..100;
    let networks = FIRST.end - FIRST.start;
    let [_, _, b, c] = (number / networks).to_be_bytes();
    let a = (FIRST.start + number % networks).to_be_bytes()[3];
    Ipv4Addr::new(a, c, b, 1)
}

/// Returns false for pairs of NATs that no known way crosses without a relay: both give every
/// destination another port, and at least one draws it at random.
pub(super) fn can_be_direct(one: Kind, other: Kind) -> bool {
    let is_symmetric = |kind| matches!(kind, Kind::ApdmRandom | Kind::ApdmSequential);
    let is_random = |kind| kind == Kind::ApdmRandom;
    !(is_symmetric(one) && is_symmetric(other) && (is_random(one) || is_random(other)))
}

/// Returns the address as the network shows it.
pub(super) fn ip(site: &Site) -> IpAddr {
    IpAddr::V4(site.local)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_host_has_an_address_of_its_own() {
        let addresses: BTreeSet<_> = (0..20_000).map(public_address).collect();
        assert_eq!(addresses.len(), 20_000);
        assert!(addresses.iter().all(|address| !address.is_private() && !address.is_multicast()));
    }

    #[test]
    fn the_shares_of_nats_add_up() {
        assert_eq!(NATS.iter().map(|(_, share)| share).sum::<u32>(), 100);
    }

    #[test]
    fn a_random_port_meets_any_port_that_stays() {
        assert!(can_be_direct(Kind::ApdmRandom, Kind::EimApdf));
        assert!(can_be_direct(Kind::ApdmSequential, Kind::ApdmSequential));
        assert!(!can_be_direct(Kind::ApdmRandom, Kind::ApdmRandom));
        assert!(!can_be_direct(Kind::ApdmSequential, Kind::ApdmRandom));
    }
}
