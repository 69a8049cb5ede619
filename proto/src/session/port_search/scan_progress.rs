//! Progress of the shots of a search.

use std::time::{Duration, Instant};

use rand::{Rng, rngs::StdRng};

use super::window::{FIRST_PORT, PORTS};
use crate::nat::strategy::gcd;

/// Time between two shots: 300 in a second.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_nanos(3_333_334);
/// Shots of a search.
pub(crate) const MAX_SHOTS: u32 = 1500;

/// Shots that have left, and the order of those to come.
#[derive(Debug)]
pub(super) struct ScanProgress {
    /// Shots to the present target.
    pub(super) shots: u32,
    /// Shots to addresses before the present target.
    spent: u32,
    /// All shots were sent to another port before.
    pub(super) is_retargeted: bool,
    /// The first port of a scan, counted from the first that NATs give.
    first: u32,
    /// Distance to the next port of a scan.
    distance: u32,
}

impl ScanProgress {
    /// Progress of a search without shots, with the ports of a scan in a random order.
    pub(super) fn new(rng: &mut StdRng) -> Self {
        let stride = |rng: &mut StdRng| rng.random_range(1..PORTS);
        let mut distance = stride(rng);
        // Only such a distance leads to every port once.
        while gcd(u16::try_from(PORTS).unwrap_or(1), u16::try_from(distance).unwrap_or(1)) != 1 {
            distance = stride(rng);
        }
        Self { shots: 0, spent: 0, is_retargeted: false, first: rng.random_range(0..PORTS), distance }
    }

    /// Sends all shots again, to another port of the same address.
    pub(super) fn retarget(&mut self) {
        self.is_retargeted = true;
        self.shots = 0;
    }

    /// Begins with the shots to a fresh socket of the peer.
    pub(super) fn follow(&mut self) {
        self.spent += self.shots;
        self.shots = 0;
    }

    /// Number of shots that the search may send to the present target.
    pub(super) fn left(&self) -> u32 {
        MAX_SHOTS.saturating_sub(self.spent)
    }

    /// Returns the time of the next shot, if the first leaves at `first`.
    pub(super) fn next_at(&self, first: Instant) -> Instant {
        first + PROBE_INTERVAL * self.shots
    }

    /// Returns the time of the first shot of a search that goes on at `now`.
    pub(super) fn resumed_at(&self, now: Instant) -> Instant {
        now.checked_sub(PROBE_INTERVAL * self.shots).unwrap_or(now)
    }

    /// Returns the port of the `n`th shot of a scan.
    pub(super) fn port_of(&self, n: u32) -> Option<u16> {
        let place = (u64::from(self.first) + u64::from(n) * u64::from(self.distance)) % u64::from(PORTS);
        u16::try_from(u64::from(FIRST_PORT) + place).ok()
    }
}
