//! How a checkpoint gets from one node to another: two state machines without I/O or clocks.
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
//! The receiver asks; the sender only answers. So the receiver alone decides the pace, what it needs
//! (not what it has by hash), and where to go on after a break; and a sender that restarts knows
//! nothing that it would have to remember.
//!
//! - **Order.** Chunks are asked for in the order of files and offsets, up to a *window* of bytes that
//!   are asked for and not yet written. They may arrive in any order, and are written in order. So
//!   what is there of a file is always a prefix, its length says how much, and after a break no byte is
//!   fetched twice but those of the window.
//! - **Checks.** Every chunk has a checksum, and a corrupt one is asked for again. A whole file is
//!   verified against the manifest from the disk; one that fails is fetched anew, from its start.
//! - **Time** is ticks. A chunk that does not come is asked for again, each time later; a transfer that
//!   gets nothing at all for long is over. A large snapshot may take as long as it likes.
//! - **A full disk** is waited for: nothing is asked for meanwhile, and the same write is tried again.
//! - **Memory.** The receiver holds at most the window, the sender at most its bytes in flight.
//! - **Bandwidth** is the host's: it may let reads wait as long as it likes, as long as every receiver gets
//!   a chunk before it gives the sender up. A receiver that asks once more meanwhile changes nothing.
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
