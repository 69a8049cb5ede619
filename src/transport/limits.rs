//! Limits of the configuration on connections.

/// Limits of the configuration on connections, and on the growth of each connection, which starts
/// small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Connections from which on incoming ones are refused.
    pub(crate) connections: Option<u32>,
    /// Largest number of incoming connections of one network.
    pub(crate) connections_per_prefix: Option<u32>,
    /// Streams that the remote may have open at once.
    pub(crate) streams: u32,
    /// Bytes that may be written and not yet acknowledged.
    pub(crate) send_window: u64,
}
