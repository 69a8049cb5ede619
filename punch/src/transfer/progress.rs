//! Counters of a transfer, which the program reads while it goes on.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Counters of a transfer. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    kept: AtomicU64,
    moved: AtomicU64,
    moved_in_all: AtomicU64,
    files: AtomicU64,
    failed: AtomicU64,
    reads_pipe: AtomicBool,
}

impl Progress {
    /// Counts bytes that went over the network and were verified.
    pub(crate) fn add_moved(&self, bytes: usize) {
        self.0.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        self.0.moved_in_all.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes the number of bytes that need not be sent, since the receiver has them.
    pub(crate) fn set_kept(&self, bytes: u64) {
        self.0.kept.store(bytes, Ordering::Relaxed);
        self.0.moved.store(0, Ordering::Relaxed);
    }

    /// Counts a file that is complete.
    pub(crate) fn add_file(&self) {
        self.0.files.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a file that could not be sent.
    pub(crate) fn add_failed(&self) {
        self.0.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the transfer sends what a pipe has.
    pub(crate) fn set_reads_pipe(&self) {
        self.0.reads_pipe.store(true, Ordering::Relaxed);
    }

    /// Returns true if the transfer sends what a pipe has, which no other transfer can send again.
    pub(crate) fn reads_pipe(&self) -> bool {
        self.0.reads_pipe.load(Ordering::Relaxed)
    }

    /// Files that could not be sent.
    pub(crate) fn failed(&self) -> u64 {
        self.0.failed.load(Ordering::Relaxed)
    }

    /// Bytes that went over the network in this attempt.
    pub(crate) fn moved(&self) -> u64 {
        self.0.moved.load(Ordering::Relaxed)
    }

    /// Bytes that went over the network in all attempts.
    pub(crate) fn moved_in_all(&self) -> u64 {
        self.0.moved_in_all.load(Ordering::Relaxed)
    }

    /// Bytes that the receiver has.
    pub(crate) fn done(&self) -> u64 {
        self.0.kept.load(Ordering::Relaxed) + self.moved()
    }

    /// Files that were completed.
    pub(crate) fn files(&self) -> u64 {
        self.0.files.load(Ordering::Relaxed)
    }
}
