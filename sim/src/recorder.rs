//! The recorder behind a time line.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{trace::Record, world::World};

/// Records of a world since the start of the recorder, in the order in which journeys ended.
#[derive(Debug, Clone, Default)]
pub struct Trace(Arc<Mutex<Vec<Record>>>);

impl Trace {
    /// Starts recording.
    pub fn start(world: &World) -> Self {
        let trace = Self::default();
        let records = trace.clone();
        world.tap(move |packet| records.lock().push(packet.record.clone()));
        trace
    }

    /// Returns the records so far.
    pub fn records(&self) -> Vec<Record> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock().iter().try_for_each(|record| writeln!(f, "{record}"))
    }
}
