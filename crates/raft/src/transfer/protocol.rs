//! What the two sides of a transfer send each other: requests for parts of files, the parts, and the end.
//!
//! Source of the encoding: `message/wire.rs`.

use bytes::Bytes;

use super::Checksum;
use crate::ids::CheckpointId;

/// Most bytes of a chunk.
pub const MAX_CHUNK_BYTES: u32 = 4 * 1024 * 1024;

/// A transfer has ended, or did not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// How.
    pub reason: EndReason,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndReason {
    /// Installed.
    Installed,
    /// The receiver has everything that the checkpoint covers, or is fetching another one.
    NotNeeded,
    /// The receiver is not a member in the checkpoint's membership.
    NotAMember,
    /// The offer or a request is invalid; or the reason is one that this version does not know.
    Refused,
    /// The sender has too many transfers. The receiver tries again later.
    Busy,
    /// The sender does not have the checkpoint (any more).
    Vanished,
    /// The sender cannot read its files.
    Unreadable,
    /// The same chunk or file arrived corrupt too often.
    Corrupt,
    /// No chunk arrived within the progress deadline.
    Silent,
    /// The host could not install it.
    NotInstalled,
    /// The receiver does not know the format of the offer, because it runs an older version. It catches up
    /// once it is upgraded.
    NewerFormat,
}

/// A request for part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fetch {
    /// Of which checkpoint.
    pub checkpoint: CheckpointId,
    /// Which file, by its index in the manifest.
    pub file: u32,
    /// From which byte on.
    pub offset: u64,
    /// How many bytes; 1 to [`MAX_CHUNK_BYTES`].
    pub length: u32,
}

/// Part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Of which checkpoint.
    pub checkpoint: CheckpointId,
    /// Which file.
    pub file: u32,
    /// From which byte on.
    pub offset: u64,
    /// The bytes; 1 to [`MAX_CHUNK_BYTES`].
    pub bytes: Bytes,
    /// Checksum of the bytes as the sender read them.
    pub checksum: Checksum,
}
