//! Exponential backoff with jitter.

use std::time::Duration;

use rand::Rng;

/// Delays that double from `base` to `cap`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    /// The first delay, before jitter.
    base: Duration,
    /// The longest delay.
    cap: Duration,
    /// Random part of each delay, from 0 to 1. The rest is fixed, so that a retry is never
    /// immediate. Because of the random part, peers that failed together do not come back together.
    jitter: f64,
}

/// Delays of attempts and registrations.
pub(crate) const RETRY: Backoff =
    Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(30), jitter: 0.5 };
/// Delays of requests to coordinators for a peer that they did not know.
pub(crate) const LOOKUP: Backoff =
    Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(1), jitter: 0.5 };

impl Backoff {
    /// Returns the delay after `failures` failures in a row, counted from 0: at most
    /// `base * 2^failures`, and at most `cap`.
    pub(crate) fn delay(&self, failures: u32, rng: &mut impl Rng) -> Duration {
        let whole = self.base.saturating_mul(1 << failures.min(16)).min(self.cap);
        let random = whole.mul_f64(self.jitter);
        whole - random + random.mul_f64(rng.random::<f64>())
    }
}

/// Returns the delay after a refusal that says when to ask again, and after `failures` failures in
/// a row. The time in the refusal counts up to the cap of [`RETRY`]. A refusal without a time is a
/// failure as others.
pub(crate) fn after_refusal(retry_after: Duration, failures: u32, rng: &mut impl Rng) -> Duration {
    match retry_after.is_zero() {
        true => RETRY.delay(failures, rng),
        // Peers that were refused together do not come back together.
        false => (retry_after + LOOKUP.delay(failures, rng)).min(RETRY.cap),
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn a_refusal_delays_for_as_long_as_it_says_and_thirty_seconds_at_most() {
        let mut rng = StdRng::seed_from_u64(7);
        for (says, least, most) in [(1, 51, 101), (700, 750, 800), (300_000, 30_000, 30_000), (0, 500, 1_000)]
        {
            let delay = after_refusal(Duration::from_millis(says), 0, &mut rng).as_millis();
            assert!((least..=most).contains(&delay), "{says} ms: {delay}");
        }
    }

    #[test]
    fn delays_double_from_one_second_to_thirty_with_half_of_each_left_to_chance() {
        let mut rng = StdRng::seed_from_u64(7);
        for (failures, whole) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 16), (5, 30), (6, 30), (u32::MAX, 30)] {
            let whole = Duration::from_secs(whole);
            let delays: Vec<_> = (0..100).map(|_| RETRY.delay(failures, &mut rng)).collect();
            assert!(delays.iter().all(|d| *d >= whole / 2 && *d <= whole), "{failures}: {delays:?}");
            assert!(delays.iter().any(|d| *d != delays[0]), "{failures}: no jitter");
        }
    }
}
