//! Detection of a peer that no longer answers.

use std::time::{Duration, Instant};

/// Least silence, after a datagram to the peer, that counts as silence. A single lost packet costs
/// less.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(1);
/// The same in round-trip times, for paths that are longer.
const SILENCE_RTTS: u32 = 3;
/// Datagrams that must have gone unanswered: more than an idle connection sends to be kept alive.
const UNANSWERED: u64 = 3;
/// Least pause of a peer that was talking, before it is probed. Without that probe, a side that
/// only answers would not notice that its NAT has lost its state.
const PAUSE_TIMEOUT: Duration = Duration::from_millis(750);
/// Datagrams that make a conversation: more than the keep-alives of an idle connection.
const CONVERSATION: u64 = 4;
/// Silence after which datagrams belong to another conversation.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval of the checks of a connection in use.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Interval of the checks of an idle connection.
const IDLE_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Concern about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Concern {
    /// The peer does not answer.
    Silent,
    /// The peer was talking, and pauses.
    Quiet,
}

/// Counts at the time when the peer was heard last.
#[derive(Debug)]
pub(super) struct Pulse {
    sent: u64,
    heard: u64,
    /// Since when something goes unanswered.
    at: Instant,
    /// The silence of the peer was reported.
    said: bool,
    heard_at: Instant,
    /// Datagrams heard before the conversation began.
    began: u64,
    /// Time of the last report that the peer pauses.
    paused_at: Option<Instant>,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { sent: 0, heard: 0, at: now, said: false, heard_at: now, began: 0, paused_at: None }
    }

    /// Returns the time until the next check.
    pub(super) fn next_look(&self, now: Instant) -> Duration {
        let is_used = now.saturating_duration_since(self.heard_at.max(self.at)) < IDLE_TIMEOUT;
        if is_used { POLL_INTERVAL } else { IDLE_POLL_INTERVAL }
    }

    /// Takes the datagrams that were sent and received so far. Reports the silence of the peer
    /// once, until the peer was heard again. Reports a pause repeatedly, until the conversation
    /// counts as over: the NAT may lose its state at any time of a pause.
    pub(super) fn look(&mut self, (sent, heard): (u64, u64), rtt: Duration, now: Instant) -> Option<Concern> {
        if heard != self.heard {
            if now.saturating_duration_since(self.heard_at) >= IDLE_TIMEOUT {
                self.began = self.heard;
            }
            (self.heard_at, self.paused_at) = (now, None);
        }
        // A side that sends nothing expects no answer.
        if heard != self.heard || sent == self.sent {
            (self.sent, self.heard, self.at, self.said) = (sent, heard, now, false);
        }
        let long = |least: Duration| least.max(rtt * SILENCE_RTTS);
        let is_silent = now.saturating_duration_since(self.at) >= long(SILENCE_TIMEOUT);
        if is_silent && sent - self.sent >= UNANSWERED && !self.said {
            self.said = true;
            return Some(Concern::Silent);
        }
        let pause = now.saturating_duration_since(self.heard_at);
        let is_due = self.paused_at.is_none_or(|at| {
            pause < IDLE_TIMEOUT && now.saturating_duration_since(at) >= long(PAUSE_TIMEOUT)
        });
        let talked = self.heard.saturating_sub(self.began) >= CONVERSATION;
        if pause >= long(PAUSE_TIMEOUT) && talked && is_due && !self.said {
            self.paused_at = Some(now);
            return Some(Concern::Quiet);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    /// Returns the concerns of a pulse for these counts, half a second apart.
    fn said(rtt: Duration, counts: &[(u64, u64)]) -> Vec<bool> {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let times = (1..).map(|n| start + Duration::from_millis(500) * n);
        counts
            .iter()
            .zip(times)
            .map(|(counts, now)| pulse.look(*counts, rtt, now) == Some(Concern::Silent))
            .collect()
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

    /// Returns the half-second checks that report a pause of the peer.
    fn pauses(rtt: Duration, counts: &[(u64, u64)]) -> Vec<usize> {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let times = (1..).map(|n| start + Duration::from_millis(500) * n);
        let looks = counts.iter().zip(times).map(|(counts, now)| pulse.look(*counts, rtt, now));
        looks.enumerate().filter(|(_, said)| *said == Some(Concern::Quiet)).map(|(n, _)| n).collect()
    }

    #[test]
    fn who_only_answers_asks_once_in_each_pause_of_a_conversation() {
        let answers = [(10, 10), (20, 20), (20, 20), (20, 20), (21, 21), (21, 21), (21, 21), (21, 21)];
        assert_eq!(pauses(RTT, &answers), [3, 6]);
        assert_eq!(pauses(Duration::from_millis(400), &answers), [7], "a long path is given its time");
    }

    #[test]
    fn a_long_pause_of_a_conversation_is_asked_about_twice() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let looks = (0..40).map(|n| start + POLL_INTERVAL * n);
        let said = looks.filter(|now| pulse.look((10, 10), RTT, *now) == Some(Concern::Quiet));
        let said: Vec<_> = said.map(|now| now - start).collect();
        assert_eq!(said, [Duration::from_millis(750), Duration::from_millis(1_500)]);
    }

    #[test]
    fn keep_alives_are_no_conversation() {
        let kept: Vec<_> = (0..100).map(|n| (10 + n / 10, 10 + n / 10)).collect();
        assert_eq!(pauses(RTT, &kept), [2], "the handshake is one");
    }
}
