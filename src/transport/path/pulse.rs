//! Whether a connection that sends still hears its peer.

use std::time::{Duration, Instant};

/// How long a peer may be silent, at least. What a single lost packet costs is less.
const SILENCE: Duration = Duration::from_secs(1);
/// The same in round-trip times, for paths that are longer.
const SILENCE_RTTS: u32 = 3;
/// Datagrams that must have gone unanswered: more than an idle connection sends to be kept alive.
const UNANSWERED: u64 = 3;

/// What was counted when the peer was heard last.
#[derive(Debug)]
pub(super) struct Pulse {
    sent: u64,
    heard: u64,
    at: Instant,
    /// It was said that the peer is silent.
    said: bool,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { sent: 0, heard: 0, at: now, said: false }
    }

    /// Takes the datagrams that were sent and received so far. Says so once that the peer is silent, and not again before it was
    /// heard.
    pub(super) fn is_lost(&mut self, (sent, heard): (u64, u64), rtt: Duration, now: Instant) -> bool {
        // Who has nothing to say need not be answered.
        if heard != self.heard || sent == self.sent {
            *self = Self { sent, heard, at: now, said: false };
            return false;
        }
        let silent = now.saturating_duration_since(self.at) >= SILENCE.max(rtt * SILENCE_RTTS);
        let lost = silent && sent - self.sent >= UNANSWERED;
        lost && !std::mem::replace(&mut self.said, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    /// What a pulse says of these counts, half a second apart.
    fn said(rtt: Duration, counts: &[(u64, u64)]) -> Vec<bool> {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let times = (1..).map(|n| start + Duration::from_millis(500) * n);
        counts.iter().zip(times).map(|(counts, now)| pulse.is_lost(*counts, rtt, now)).collect()
    }

    #[test]
    fn a_peer_that_does_not_answer_for_a_second_is_lost_once() {
        let counts = [(10, 10), (20, 10), (22, 10), (23, 10), (24, 10), (25, 11), (30, 11), (40, 11)];
        assert_eq!(said(RTT, &counts), [false, false, true, false, false, false, false, true]);
    }

    #[test]
    fn an_idle_connection_and_one_that_is_kept_alive_are_not() {
        assert_eq!(said(RTT, &[(10, 10); 8]), [false; 8]);
        assert_eq!(said(RTT, &[(10, 10), (11, 10), (11, 10), (12, 10), (12, 10), (12, 10)]), [false; 6]);
    }

    #[test]
    fn a_long_path_is_given_its_time() {
        let counts = [(10, 10), (20, 10), (30, 10), (40, 10), (50, 10), (60, 10), (70, 10)];
        let lost = said(Duration::from_secs(1), &counts);
        assert_eq!(lost.iter().position(|lost| *lost), Some(6));
    }
}
