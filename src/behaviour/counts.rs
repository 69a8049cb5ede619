//! Sources of the counters of a node.

use std::sync::{Arc, Mutex, PoisonError};

use super::{control::ControlTraffic, frames::QueuedBytes};
use crate::counters::Counters;

/// Sources of the counters of a node, for readers in any thread.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    driver: Arc<Mutex<Counters>>,
    pub(super) queued: QueuedBytes,
    pub(super) traffic: ControlTraffic,
}

impl Counts {
    /// Counts of a driver that writes its own to `driver`.
    pub(super) fn new(driver: Arc<Mutex<Counters>>) -> Self {
        Self { driver, queued: QueuedBytes::default(), traffic: ControlTraffic::default() }
    }

    /// Returns the counters so far.
    pub(crate) fn get(&self) -> Counters {
        Counters {
            frame_bytes_queued: self.queued.get() as u64,
            control_bytes_sent: self.traffic.sent(),
            control_bytes_received: self.traffic.received(),
            ..*self.driver.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
