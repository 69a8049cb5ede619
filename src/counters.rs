//! Counts of what happened, by the place where it happened.

#[doc(inline)]
pub use libp2p_punch_proto::counters::{Counters as ProtocolCounters, Rejections};

#[doc(inline)]
pub use crate::transport::PathCounters;

/// Counts of what happened, by the place where it happened. Nothing is estimated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Counts of the protocol: attempts, probes, searches, and the work of a coordinator.
    pub protocol: ProtocolCounters,
    /// Counts of the path layer under the sessions.
    pub paths: PathCounters,
    /// Bytes of frames that wait for control streams now.
    pub frame_bytes_queued: u64,
    /// Bytes written to control streams.
    pub control_bytes_sent: u64,
    /// Bytes read from control streams.
    pub control_bytes_received: u64,
    /// Events about the progress of sessions that were not reported, because the swarm was too busy
    /// to take them.
    pub events_dropped: u64,
}
