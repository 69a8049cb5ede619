//! Counters of an endpoint.

use std::time::Duration;

use crate::wire::frame::RejectReason;

/// Counters of an endpoint. Nothing is estimated.
///
/// `attempts = successes + failures + in_flight` at every moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Attempts begun, as either role.
    pub attempts: u64,
    /// Attempts that ended in a QUIC connection that the swarms of both sides kept.
    pub successes: u64,
    /// Attempts that did not.
    pub failures: u64,
    /// Failures after the QUIC handshake: the swarm of either side denied the connection.
    /// `failures` counts them, too.
    pub denied: u64,
    /// Attempts under way. An attempt whose connection is younger than
    /// [`PROBATION`](crate::endpoint::PROBATION) counts too.
    pub in_flight: u64,
    /// Answers of coordinators received by us as an initiator.
    pub coordinations: u64,
    /// Sum of the times from `PUNCH_ME_NOW` to its answer; the mean is this over `coordinations`.
    pub coordination_time: Duration,
    /// Probes sent, challenges and responses.
    pub probes_sent: u64,
    /// Bytes of probes sent, UDP payload.
    pub probe_bytes_sent: u64,
    /// Probes received that were authentic.
    pub probes_received: u64,
    /// Datagrams received that looked like probes and were not authentic or not ours.
    pub probes_refused: u64,
    /// Searches begun after plain probes met silence.
    pub searches: u64,
    /// Searches that had to wait for others to end.
    pub searches_queued: u64,
    /// Probes sent by searches; `probes_sent` counts them, too.
    pub search_probes_sent: u64,
    /// Moves of a connected session to another socket that were begun, before our NAT forgot the
    /// mapping in use.
    pub renewals: u64,
    /// Requests that we, as a coordinator, passed on.
    pub requests_forwarded: u64,
    /// Requests that we, as a coordinator, turned down.
    pub requests_rejected: Rejections,
    /// Peers that are registered with us, as a coordinator, now.
    pub registrations: u64,
    /// Registrations that we, as a coordinator, accepted. A renewal is one, too.
    pub registrations_accepted: u64,
    /// Registrations that we, as a coordinator, turned down.
    pub registrations_rejected: Rejections,
    /// Registrations that we, as a coordinator, ended to make room for peers of smaller networks.
    pub registrations_evicted: u64,
    /// Datagrams that we, as a coordinator, sent to test how NATs of our clients filter, or of
    /// another coordinator's.
    pub filter_probes_sent: u64,
    /// Frames of a remote that were ignored, because they broke a rule or a cap.
    pub frames_refused: u64,
    /// Times that something a remote wanted to grow met its cap.
    pub caps_hit: u64,
}

/// Counts of rejections by their reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rejections([u64; RejectReason::ALL.len()]);

impl Rejections {
    pub(crate) fn count(&mut self, reason: RejectReason) {
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count += 1;
        }
    }

    /// Returns the rejections for each reason.
    pub fn by_reason(&self) -> impl Iterator<Item = (RejectReason, u64)> {
        RejectReason::ALL.into_iter().zip(self.0)
    }

    /// Returns the rejections for one reason.
    pub fn of(&self, reason: RejectReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or_default()
    }

    /// Returns all rejections.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_count_of_its_own() {
        let mut rejections = Rejections::default();
        for (index, reason) in RejectReason::ALL.into_iter().enumerate() {
            (0..=index).for_each(|_| rejections.count(reason));
        }
        let expected: Vec<_> = RejectReason::ALL.into_iter().zip(1..).collect();
        assert_eq!(rejections.by_reason().collect::<Vec<_>>(), expected);
        assert_eq!(rejections.of(RejectReason::RateLimited), 2);
        assert_eq!(rejections.total(), 36);
    }
}
