//! Counters of an endpoint.

use std::time::Duration;

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
    pub requests_rejected: u64,
    /// Datagrams that we, as a coordinator, sent to test how NATs of our clients filter, or of
    /// another coordinator's.
    pub filter_probes_sent: u64,
    /// Frames of a remote that were ignored, because they broke a rule or a cap.
    pub frames_refused: u64,
    /// Times that something a remote wanted to grow met its cap.
    pub caps_hit: u64,
}
