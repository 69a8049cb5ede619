//! Exponential backoff with jitter.

use std::time::Duration;

use rand::Rng;

/// The first delay, before jitter.
pub(crate) const BASE: Duration = Duration::from_secs(1);
/// The longest delay.
pub(crate) const CAP: Duration = Duration::from_secs(30);
/// As [`BASE`], for asking coordinators again for a peer that they did not know.
pub(crate) const LOOKUP_BASE: Duration = Duration::from_millis(100);
/// As [`CAP`], for the same.
pub(crate) const LOOKUP_CAP: Duration = Duration::from_secs(1);

/// The delay after `failures` failures in a row, counted from 0: between half of and the whole of
/// `BASE * 2^failures`, at most [`CAP`].
///
/// Half of it is fixed, so that a retry is never immediate; half is random, so that peers that
/// failed together do not come back together.
pub(crate) fn delay(failures: u32, rng: &mut impl Rng) -> Duration {
    between(BASE, CAP, failures, rng)
}

/// As [`delay`], for asking coordinators again for a peer that they did not know: from
/// [`LOOKUP_BASE`] to [`LOOKUP_CAP`].
pub(crate) fn lookup_delay(failures: u32, rng: &mut impl Rng) -> Duration {
    between(LOOKUP_BASE, LOOKUP_CAP, failures, rng)
}

/// The delay after a refusal that says when to ask again, and after `failures` failures in a row.
/// What it says counts up to [`CAP`]. If it says nothing, the delay is [`delay`].
pub(crate) fn after_refusal(retry_after: Duration, failures: u32, rng: &mut impl Rng) -> Duration {
    match retry_after.is_zero() {
        true => delay(failures, rng),
        // Peers that were refused together do not come back together.
        false => (retry_after + lookup_delay(failures, rng)).min(CAP),
    }
}

fn between(base: Duration, cap: Duration, failures: u32, rng: &mut impl Rng) -> Duration {
    let whole = base.saturating_mul(1 << failures.min(16)).min(cap);
    let half = whole / 2;
    half + half.mul_f64(rng.random::<f64>())
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
            let delays: Vec<_> = (0..100).map(|_| delay(failures, &mut rng)).collect();
            assert!(delays.iter().all(|d| *d >= whole / 2 && *d <= whole), "{failures}: {delays:?}");
            assert!(delays.iter().any(|d| *d != delays[0]), "{failures}: no jitter");
        }
    }
}
