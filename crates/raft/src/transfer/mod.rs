//! How a checkpoint gets from one node to another: two state machines without I/O or clocks. They know the
//! names and sizes of files, and neither disks, sockets nor consensus.
//!
//! ```text
//!          receiver's node                                     sender's node
//!  engine ─FetchSnapshot▶ Receiver ──Fetch (file, offset)──▶ Sender ─ReadChunk▶ host reads
//!                            │ ▲                                │
//!        host writes ◀─Write─┘ └──────────Chunk + checksum──────┘◀─Read── host
//!        host verifies ◀─Verify─
//!  engine ◀─SnapshotFetched── Complete
//! ```
//!
//! The receiver requests chunks and the sender answers. So the receiver alone decides the rate, which files
//! it needs (not those that it has by hash), and where to go on after a break; and a sender has no state
//! that it would have to keep across a restart.
//!
//! - **Order.** Chunks are requested in the order of files and offsets, up to a *window* of bytes that are
//!   requested and not yet written. They may arrive in any order, and are written in order. So a partial
//!   file is always a prefix whose length is its state, and after a break only the bytes of the window are
//!   fetched twice.
//! - **Checks.** Every chunk has a checksum, and a corrupt one is requested again. A complete file is read
//!   back from disk and verified against the manifest; one that does not match is fetched again from its
//!   start.
//! - **Time** is counted in ticks. A chunk that does not arrive is requested again, with growing deadlines;
//!   a transfer without any chunk for `progress_deadline_ticks` ends. The duration of a transfer that makes
//!   progress is not limited.
//! - **Full disk.** The receiver waits: it requests nothing meanwhile, and repeats the same write.
//! - **Memory.** The receiver holds at most the window, the sender at most its bytes in flight.
//! - **Bandwidth.** The host of the sender may delay reads, as long as every receiver gets a chunk before
//!   its progress deadline. A repeated request for a chunk that is still unread has no effect.
//!
//! A transfer is bound to a node and a checkpoint, not to a group's leadership.

#![deny(clippy::disallowed_methods)]

mod manifest;
mod protocol;
mod receiver;
mod sender;
#[cfg(test)]
mod tests;

pub use manifest::{
    Checksum, Content, FileEntry, InvalidManifest, MAX_FILES, MAX_MEMBERS, MAX_NAME_BYTES,
    MAX_NAME_PARTS, MAX_SNAPSHOT_BYTES, Manifest, OFFER_FORMAT,
};
pub use protocol::{Chunk, EndReason, Ended, Fetch, MAX_CHUNK_BYTES};
pub use receiver::{Held, Receiver, ReceiverAction, ReceiverConfig, ReceiverCounts, ReceiverEvent};
pub use sender::{
    ReadError, ReadId, Sender, SenderAction, SenderConfig, SenderCounts, SenderEvent,
};
