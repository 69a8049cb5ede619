//! Counters of the path layer.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use libp2p_punch_proto::counters::PathCounters;

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
