//! Counters of the path layer.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Actions and refusals of the path layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
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

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// [`PathCounters`] that several tasks add to.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> PathCounters {
                PathCounters { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    probes_received,
    probes_dropped,
    probes_sent,
    probes_unsent,
    bytes_received,
    bytes_dropped,
    strays_dropped,
    datagrams_unsent,
    send_errors,
    sends_blocked,
    flows_refused,
    paths_refused,
    commands_ignored,
    sockets_refused,
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, n: usize) {
    counter.fetch_add(u64::try_from(n).unwrap_or(u64::MAX), Relaxed);
}
