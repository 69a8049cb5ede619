//! Counters of the path layer.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What the path layer did and refused to do, since it was made.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub(crate) struct PathStats {
            $($(#[$doc])* pub(crate) $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> PathStats {
                PathStats { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Probes handed to the driver.
    probes_received,
    /// Probes dropped because the driver's channel was full or they were longer than any probe.
    probes_dropped,
    /// Probes handed to a socket.
    probes_sent,
    /// Probes not sent: the socket would have blocked, failed or is not there.
    probes_unsent,
    /// Bytes of QUIC packets handed to the session endpoint.
    bytes_received,
    /// Bytes of QUIC packets dropped because the session endpoint's queue was full.
    bytes_dropped,
    /// Datagrams of flows that were neither sent nor kept, for want of a path or of its budget.
    datagrams_unsent,
    /// Sends on a path that failed; QUIC takes them for lost packets.
    send_errors,
    /// Times that a flow had to wait for its path's socket.
    sends_blocked,
    /// Flows refused because there were too many.
    flows_refused,
    /// Paths refused because the flow, or the pair of addresses, had too many.
    paths_refused,
    /// Commands that named a flow or a socket that is not there, or a flow that is there already.
    commands_ignored,
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, n: usize) {
    counter.fetch_add(u64::try_from(n).unwrap_or(u64::MAX), Relaxed);
}
