//! What goes into a receiver and what comes out of it, with its limits and counters.

use bytes::Bytes;

use super::super::{Checksum, Chunk, EndReason, Ended, Fetch};

/// Limits of a transfer.
#[derive(Clone, Debug)]
pub struct ReceiverConfig {
    /// Bytes of one chunk; 1 to [`MAX_CHUNK_BYTES`]. Default: 1 MiB.
    pub chunk_bytes: u32,
    /// Most bytes requested and not yet written; at least one chunk. Default: 16 MiB.
    pub window_bytes: u64,
    /// Ticks until a missing chunk is requested again the first time, if no chunk has arrived for so long.
    /// Default: 20.
    pub chunk_deadline_ticks: u64,
    /// Ticks without a single good chunk after which the transfer fails. Default: 600.
    pub progress_deadline_ticks: u64,
    /// Ticks until a failed write is tried again. Default: 10.
    pub retry_ticks: u64,
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        ReceiverConfig {
            chunk_bytes: 1024 * 1024,
            window_bytes: 16 * 1024 * 1024,
            chunk_deadline_ticks: 20,
            progress_deadline_ticks: 600,
            retry_ticks: 10,
        }
    }
}

/// What the host has of a file when the transfer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The whole file, verified: it was fetched before, or another checkpoint has a file of the same hash.
    Whole,
    /// So many bytes from its start, not verified; 0 for none.
    Prefix(u64),
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum ReceiverEvent {
    /// The beginning: step it first, and once.
    Start,
    /// One `tick_interval` has passed.
    Tick,
    /// A chunk arrived.
    Chunk(Chunk),
    /// The sender ended the transfer, or is busy.
    Ended(Ended),
    /// The write is done.
    Written,
    /// The write failed. The file must not have more than the prefix before it.
    WriteFailed,
    /// The disk may have space again: the write is repeated at once.
    SpaceReturned,
    /// The result of a verification.
    Verified {
        /// Which file.
        file: u32,
        /// Whether the file is durable and has the size and checksum of the manifest.
        good: bool,
    },
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiverAction {
    /// Send to the source.
    Fetch(Fetch),
    /// Write these bytes, in order, at this offset. Create the file if it is missing; cut it to `offset` if
    /// it is longer. Then step [`ReceiverEvent::Written`] or [`ReceiverEvent::WriteFailed`]. There is one
    /// write at a time.
    Write {
        /// Which file.
        file: u32,
        /// Where.
        offset: u64,
        /// What; none for an empty file.
        bytes: Vec<Bytes>,
    },
    /// Sync the file, read it back and compare it with the manifest; then step [`ReceiverEvent::Verified`].
    /// Other files may be written meanwhile.
    Verify {
        /// Which file.
        file: u32,
        /// What it has to have.
        checksum: Checksum,
    },
    /// The checkpoint is complete, durable and verified.
    Complete,
    /// The transfer has failed. Its files are useful for the next one.
    Failed(EndReason),
}

/// Counters of a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiverCounts {
    /// Good bytes that arrived and were needed.
    pub bytes_fetched: u64,
    /// Bytes that were present at the start.
    pub bytes_held: u64,
    /// Chunks that were requested again because they did not arrive.
    pub requested_again: u64,
    /// Chunks that arrived and were not needed (any more).
    pub unwanted: u64,
    /// Chunks, and whole files, that did not match their checksum.
    pub corrupt: u64,
    /// Writes that failed.
    pub failed_writes: u64,
}
