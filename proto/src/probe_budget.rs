//! Limits on probes to addresses that never answered, over all sessions that other peers requested.
//!
//! A request names addresses without proof that the requester is there. Each session bounds the
//! probes of one request to one destination. The limits here bound the probes of all requests
//! together, for any number of identities.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{
    rate_limit::{Rate, RecentBuckets, TokenBucket},
    wire::probe::PROBE_LEN,
};

/// Probes to one destination. Honest peers behind one address of a carrier share them, and each
/// needs one or two.
pub(crate) const DESTINATION_RATE: Rate = Rate { interval: Duration::from_millis(50), burst: 128 };
/// Probes to all destinations together: 81 kB/s on the wire over IPv4.
pub(crate) const TOTAL_RATE: Rate = Rate { interval: Duration::from_millis(1), burst: 2_000 };
/// Server flights to one destination that only the requester named. Honest peers behind one address
/// share these too; a peer that gets none waits for a probe.
pub(crate) const DESTINATION_FLIGHT_RATE: Rate = Rate { interval: Duration::from_secs(4), burst: 2 };
/// Server flights to all such destinations together: 72 kB/s.
pub(crate) const TOTAL_FLIGHT_RATE: Rate = Rate { interval: Duration::from_millis(50), burst: 128 };
/// Destinations whose rate is remembered.
const MAX_DESTINATIONS: usize = 16_384;
/// Bytes sent to a destination for each byte of the request that named it (RFC 9000 §8.1).
const AMPLIFICATION: usize = 3;

/// A host that can be flooded: an IPv4 address, or an IPv6 prefix of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Destination(u128);

impl From<IpAddr> for Destination {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().to_bits()),
            IpAddr::V6(v6) => Self(v6.to_bits() >> 64 << 64),
        }
    }
}

/// Returns the number of probes that a request of this length may cause at one destination that
/// does not answer.
pub(crate) fn probes_for(request_len: usize) -> u32 {
    u32::try_from(AMPLIFICATION * request_len / PROBE_LEN).unwrap_or(u32::MAX)
}

/// Returns how many probes have at least this many bytes.
pub(crate) fn probes_in(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(PROBE_LEN)).unwrap_or(u32::MAX)
}

/// Token buckets of all destinations.
#[derive(Debug)]
pub(crate) struct ProbeBudget {
    destinations: RecentBuckets<Destination>,
    total: TokenBucket,
    flights: RecentBuckets<Destination>,
    all_flights: TokenBucket,
}

impl ProbeBudget {
    pub(crate) fn new() -> Self {
        Self {
            destinations: RecentBuckets::new(DESTINATION_RATE, MAX_DESTINATIONS),
            total: TokenBucket::default(),
            flights: RecentBuckets::new(DESTINATION_FLIGHT_RATE, MAX_DESTINATIONS),
            all_flights: TokenBucket::default(),
        }
    }

    /// Takes one server flight to `destination`.
    pub(crate) fn take_flight(&mut self, destination: Destination, now: Instant) -> bool {
        self.flights.has(&destination, now)
            && self.all_flights.take(TOTAL_FLIGHT_RATE, now)
            && self.flights.take(destination, now)
    }

    /// Takes one probe to `destination`. A refused probe is not sent, and counts as lost.
    pub(crate) fn take(&mut self, destination: Destination, now: Instant) -> bool {
        self.destinations.has(&destination, now)
            && self.total.take(TOTAL_RATE, now)
            && self.destinations.take(destination, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(ip: &str) -> Destination {
        ip.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn one_destination_is_an_address_or_a_prefix_of_64_bits() {
        assert_ne!(destination("192.0.2.1"), destination("192.0.2.2"));
        assert_eq!(destination("2001:db8::1"), destination("2001:db8::ffff:1"));
        assert_ne!(destination("2001:db8::1"), destination("2001:db8:0:1::1"));
        assert_ne!(destination("192.0.2.1"), destination("::1"));
    }

    #[test]
    fn a_destination_uses_up_its_own_share_only() {
        let (mut budget, now) = (ProbeBudget::new(), Instant::now());
        let [one, other] = [destination("192.0.2.1"), destination("192.0.2.2")];
        assert_eq!((0..500).filter(|_| budget.take(one, now)).count(), 128);
        assert!(budget.take(other, now));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..500).filter(|_| budget.take(one, later)).count(), 20);
    }

    #[test]
    fn all_destinations_together_have_a_limit() {
        let (mut budget, now) = (ProbeBudget::new(), Instant::now());
        let mut all = (0..=u16::MAX).map(|n| destination(&format!("10.1.{}.{}", n >> 8, n & 0xff)));
        assert_eq!(all.by_ref().take(5_000).filter(|ip| budget.take(*ip, now)).count(), 2_000);
        let later = now + Duration::from_secs(1);
        assert_eq!(all.filter(|ip| budget.take(*ip, later)).count(), 1_000);
    }
}
