//! Limit of unacknowledged data of a connection: small at first, larger where the path can use it.
//!
//! A window far above the capacity of a path fills the receiver's socket buffer and the caches, and
//! costs a quarter of the throughput between two processes of one machine. A window below the
//! capacity costs throughput on every long path.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Bytes at first. Enough for 200 Mb/s at a round-trip time of 100 ms.
pub(super) const FIRST_SEND_WINDOW: u64 = 2_500_000;
/// Bytes per second beyond which no window is made for a path: 10 Gb/s. Within one machine the
/// round-trip time is mostly that of the scheduler, and does not measure queues.
const MAX_RATE: f64 = 1.25e9;
/// Waits of a writer between two looks at the path, since a look takes the connection's lock.
const WAITS_BETWEEN_LOOKS: u32 = 16;

/// Send window of one connection, which grows when a writer has to wait.
pub(super) struct SendWindow {
    connection: quinn::Connection,
    most: u64,
    bytes: AtomicU64,
    waits: AtomicU32,
}

impl SendWindow {
    /// Creates a window that grows up to `most` bytes.
    pub(super) fn new(connection: quinn::Connection, most: u64) -> Self {
        Self {
            connection,
            most,
            bytes: AtomicU64::new(FIRST_SEND_WINDOW.min(most)),
            waits: AtomicU32::new(0),
        }
    }

    /// Grows the window to the capacity of the path; call it when a writer waits. quinn wakes
    /// writers by acknowledgements, for which a connection with a full window waits.
    pub(super) fn grow(&self) {
        let bytes = self.bytes.load(Relaxed);
        let look = self.waits.fetch_add(1, Relaxed).is_multiple_of(WAITS_BETWEEN_LOOKS);
        if bytes >= self.most || !look {
            return;
        }
        let path = self.connection.stats().path;
        let wanted = wanted(bytes.min(path.cwnd), path.rtt, path.min_rtt).min(self.most);
        // Streams may race here, and the loser asks again when it waits again.
        if wanted > bytes && self.bytes.fetch_max(wanted, Relaxed) < wanted {
            self.connection.set_send_window(wanted);
        }
    }
}

/// Twice the bandwidth-delay product, if `in_flight` bytes are delivered in each round trip: the
/// time that they spend in queues is no reason to have more of them.
fn wanted(in_flight: u64, rtt: Duration, min_rtt: Duration) -> u64 {
    let unqueued = (min_rtt.as_secs_f64() / rtt.as_secs_f64().max(f64::MIN_POSITIVE)).min(1.0);
    let at_most = MAX_RATE * min_rtt.as_secs_f64();
    let twice = 2.0 * (in_flight as f64 * unqueued).min(at_most);
    (twice as u64).max(FIRST_SEND_WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_millis(100);

    #[test]
    fn a_long_path_gets_twice_what_it_holds() {
        assert_eq!(wanted(3_000_000, LONG, LONG), 6_000_000);
    }

    #[test]
    fn time_in_queues_asks_for_no_more() {
        assert_eq!(wanted(8_000_000, LONG, LONG / 8), FIRST_SEND_WINDOW);
        assert_eq!(wanted(8_000_000, LONG, LONG / 4), 4_000_000);
    }

    #[test]
    fn a_path_within_the_machine_gets_no_more() {
        let short = Duration::from_micros(500);
        assert_eq!(wanted(8_000_000, short, short), FIRST_SEND_WINDOW);
    }

    #[test]
    fn a_path_that_is_not_known_changes_nothing() {
        assert_eq!(wanted(14_720, LONG, Duration::ZERO), FIRST_SEND_WINDOW);
        assert_eq!(wanted(14_720, Duration::ZERO, Duration::ZERO), FIRST_SEND_WINDOW);
        assert_eq!(wanted(u64::MAX, LONG, Duration::MAX), u64::MAX);
    }
}
