//! Progress of a long operation, for display.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that an operation raises as it proceeds. Cheap to clone; clones share the counters.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    files: AtomicU64,
    files_done: AtomicU64,
    bytes: AtomicU64,
    bytes_done: AtomicU64,
}

impl Progress {
    /// Counters at zero.
    pub fn new() -> Progress {
        Progress::default()
    }

    /// Bytes to transfer in all; rises while the operation determines them.
    pub fn bytes(&self) -> u64 {
        self.counters.bytes.load(Ordering::Relaxed)
    }

    /// Bytes transferred.
    pub fn bytes_done(&self) -> u64 {
        self.counters.bytes_done.load(Ordering::Relaxed)
    }

    /// Files to transfer in all.
    pub fn files(&self) -> u64 {
        self.counters.files.load(Ordering::Relaxed)
    }

    /// Files transferred.
    pub fn files_done(&self) -> u64 {
        self.counters.files_done.load(Ordering::Relaxed)
    }

    pub(crate) fn expect(&self, files: u64, bytes: u64) {
        self.counters.files.fetch_add(files, Ordering::Relaxed);
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_bytes(&self, bytes: u64) {
        self.counters.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_file(&self) {
        self.counters.files_done.fetch_add(1, Ordering::Relaxed);
    }
}
