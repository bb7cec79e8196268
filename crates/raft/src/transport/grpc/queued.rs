//! A message that waits in a link's queue, and what it counts for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::codec::EncodeBuf;

use crate::drops::DropReason;
use crate::message::Envelope;
use crate::transport::Permit;

/// A message on its way. It counts as one that was dropped, unless it was encoded before.
pub(super) struct Queued {
    message: Envelope,
    is_counted: bool,
    _permit: Option<Permit>,
    _bytes: QueuedBytes,
}

impl Drop for Queued {
    fn drop(&mut self) {
        if !self.is_counted {
            DropReason::Disconnected.count(1);
        }
    }
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
            is_counted: false,
            _permit: permit,
            _bytes: QueuedBytes {
                size,
                total: total.clone(),
            },
        };
        (queued, before, size)
    }

    /// Encodes the message: it is sent.
    pub fn encode_to(mut self, buffer: &mut EncodeBuf<'_>) {
        self.message.encode_to(buffer);
        self.is_counted = true;
    }

    /// Drops the message, because too much is queued.
    pub fn drop_surplus(mut self) {
        DropReason::QueueFull.count(1);
        self.is_counted = true;
    }
}
