//! A message that waits in a link's queue, and what it counts for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::message::Envelope;
use crate::transport::Permit;

/// A message on its way.
pub(super) struct Queued {
    pub message: Envelope,
    _permit: Option<Permit>,
    _bytes: QueuedBytes,
}

/// Counts as queued until it is dropped.
struct QueuedBytes {
    size: usize,
    total: Arc<AtomicUsize>,
}

impl Drop for QueuedBytes {
    fn drop(&mut self) {
        self.total.fetch_sub(self.size, Ordering::Relaxed);
    }
}

impl Queued {
    /// Counts the message in `total`, the bytes that are queued for the same peer, until it is dropped.
    /// Returns what was queued before it, and its size, both in bytes.
    pub fn new(
        message: Envelope,
        permit: Option<Permit>,
        total: &Arc<AtomicUsize>,
    ) -> (Queued, usize, usize) {
        let size = message.size_hint();
        let before = total.fetch_add(size, Ordering::Relaxed);
        let queued = Queued {
            message,
            _permit: permit,
            _bytes: QueuedBytes {
                size,
                total: total.clone(),
            },
        };
        (queued, before, size)
    }
}
