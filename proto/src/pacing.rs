//! Pace of requests, within what each coordinator takes of this peer.
//!
//! A coordinator announces its allowance when it registers this peer. Others are assumed to grant
//! the least that every coordinator must. A part of each allowance is left unused: requests that
//! were sent evenly may arrive in bunches, and other frames count as requests, too.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p_identity::PeerId;

use crate::rate_limit::{Rate, TokenBucket};

/// The allowance that every coordinator grants.
pub const MIN_ALLOWANCE: Rate = Rate { interval: Duration::from_millis(100), burst: 20 };
/// The most of an announced allowance that counts.
pub const MAX_ALLOWANCE: Rate = Rate { interval: Duration::from_millis(1), burst: 1_000 };

#[derive(Debug, Clone, Copy)]
struct Pace {
    rate: Rate,
    requests: TokenBucket,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rate: within(MIN_ALLOWANCE), requests: TokenBucket::default() }
    }
}

/// Requests sent lately, by coordinator. A coordinator is forgotten with its last control stream.
#[derive(Debug, Default)]
pub(crate) struct Pacing {
    by_coordinator: BTreeMap<PeerId, Pace>,
}

/// The pace that keeps within an allowance: three quarters of its requests at once.
fn within(allowance: Rate) -> Rate {
    let burst = allowance.burst.clamp(MIN_ALLOWANCE.burst, MAX_ALLOWANCE.burst);
    let interval = allowance.interval.clamp(MAX_ALLOWANCE.interval, MIN_ALLOWANCE.interval);
    Rate { burst: burst - burst / 4, interval }
}

impl Pacing {
    fn get(&self, coordinator: &PeerId) -> Pace {
        self.by_coordinator.get(coordinator).copied().unwrap_or_default()
    }

    /// A coordinator announced its allowance.
    pub(crate) fn announced(&mut self, coordinator: PeerId, allowance: Rate) {
        self.by_coordinator.entry(coordinator).or_default().rate = within(allowance);
    }

    /// Returns when the next request may be sent to a coordinator, from `now` on.
    pub(crate) fn next(&self, coordinator: &PeerId, now: Instant) -> Instant {
        let pace = self.get(coordinator);
        pace.requests.next(pace.rate, now)
    }

    /// Returns true if more than half of the requests that may be sent at once are left.
    pub(crate) fn has_spare(&self, coordinator: &PeerId, now: Instant) -> bool {
        let pace = self.get(coordinator);
        pace.requests.has(Rate { burst: pace.rate.burst.div_ceil(2), ..pace.rate }, now)
    }

    /// Counts a request that is sent now, or at the time that [`next`](Self::next) gave.
    pub(crate) fn charge(&mut self, coordinator: PeerId, now: Instant) {
        let pace = self.by_coordinator.entry(coordinator).or_default();
        pace.requests.charge(pace.rate, now);
    }

    /// A request that was counted is not sent.
    pub(crate) fn give_back(&mut self, coordinator: &PeerId) {
        if let Some(pace) = self.by_coordinator.get_mut(coordinator) {
            pace.requests.give_back(pace.rate);
        }
    }

    /// The last control stream to a coordinator is gone.
    pub(crate) fn forget(&mut self, coordinator: &PeerId) {
        self.by_coordinator.remove(coordinator);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWANCE: Rate = Rate { interval: Duration::from_millis(10), burst: 200 };

    #[test]
    fn an_allowance_leaves_a_quarter_of_the_burst_unused_and_lies_are_bounded() {
        let (mut pacing, coordinator, now) = (Pacing::default(), PeerId::random(), Instant::now());
        let at_once = |pacing: &Pacing| {
            let mut pacing = Pacing { by_coordinator: pacing.by_coordinator.clone() };
            let sent = (0..5_000).take_while(|_| {
                let may = pacing.next(&coordinator, now) <= now;
                pacing.charge(coordinator, now);
                may
            });
            sent.count()
        };
        assert_eq!(at_once(&pacing), 15, "what every coordinator grants");
        for (burst, interval, expected) in [
            (ALLOWANCE.burst, ALLOWANCE.interval, 150),
            (0, Duration::from_secs(1), 15),
            (u32::MAX, Duration::ZERO, 750),
        ] {
            pacing.announced(coordinator, Rate { burst, interval });
            assert_eq!(at_once(&pacing), expected);
        }
    }

    #[test]
    fn requests_beyond_the_burst_are_one_interval_apart() {
        let (mut pacing, coordinator, now) = (Pacing::default(), PeerId::random(), Instant::now());
        pacing.announced(coordinator, ALLOWANCE);
        let times: Vec<_> = (0..200)
            .map(|_| {
                let at = pacing.next(&coordinator, now);
                pacing.charge(coordinator, now);
                at - now
            })
            .collect();
        assert!(times[..150].iter().all(Duration::is_zero));
        assert_eq!(times[150], ALLOWANCE.interval);
        assert_eq!(times[199], ALLOWANCE.interval * 50);
        pacing.give_back(&coordinator);
        assert_eq!(pacing.next(&coordinator, now) - now, ALLOWANCE.interval * 50);
    }
}
