//! Counters, by the place of the event.

use std::time::Duration;

/// Counts of events, by their place. Nothing is estimated.
///
/// `attempts = successes + failures + in_flight` at every moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
    /// Bytes of frames that wait for control streams now. Kept by the behaviour; an endpoint alone
    /// leaves it at zero.
    pub frame_bytes_queued: u64,
    /// Events about the course of a session that were dropped, because the swarm was too busy to
    /// take them. Counted by the driver; an endpoint alone leaves it at zero.
    pub events_dropped: u64,
    /// Counters of the path layer. Counted by the transport; an endpoint alone leaves it at zero.
    pub paths: PathCounters,
}

/// Actions and refusals of the path layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathCounters {
    /// Probes handed to the driver.
    pub probes_received: u64,
    /// Probes dropped because the driver's channel was full or they were longer than any probe.
    pub probes_dropped: u64,
    /// Probes handed to a socket.
    pub probes_sent: u64,
    /// Probes not sent: the socket would have blocked, failed or is not there.
    pub probes_unsent: u64,
    /// Bytes of QUIC packets handed to the session endpoint.
    pub bytes_received: u64,
    /// Bytes of QUIC packets dropped because the session endpoint's queue was full.
    pub bytes_dropped: u64,
    /// First flights dropped because they came on a path that was not admitted for their virtual
    /// connection.
    pub strays_dropped: u64,
    /// Datagrams of virtual connections that were neither sent nor kept, without a path or a
    /// budget.
    pub datagrams_unsent: u64,
    /// Sends on a path that failed; QUIC takes them for lost packets.
    pub send_errors: u64,
    /// Times that a virtual connection had to wait for its path's socket.
    pub sends_blocked: u64,
    /// Flows refused because there were too many.
    pub flows_refused: u64,
    /// Paths refused or taken away because the virtual connection, or the pair of addresses, had
    /// too many.
    pub paths_refused: u64,
    /// Commands for an unknown virtual connection or socket, or for a virtual connection that
    /// exists already.
    pub commands_ignored: u64,
    /// Sockets that were not opened: for want of file descriptors or ports, or since those that a
    /// node may use are taken.
    pub sockets_refused: u64,
}
