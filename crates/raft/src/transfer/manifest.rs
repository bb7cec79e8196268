//! The manifest of a checkpoint: name, position, membership and files. It is what an offer contains.
//!
//! A manifest from a peer is untrusted until [`Manifest::validate`] has accepted it, which the decoding of
//! an offer calls. After that its names can be joined to a directory, and its sizes added without overflow.

use std::collections::BTreeSet;
use std::fmt;

use xxhash_rust::xxh3::xxh3_128;

use crate::ids::{CheckpointId, Lsn, NodeId, Term};
use crate::membership::Membership;

/// Version of the offer that this library writes, and the newest that it reads.
pub const OFFER_FORMAT: u32 = 1;
/// Most files of one checkpoint. With 64 MiB files that is 6 TiB.
pub const MAX_FILES: usize = 100_000;
/// Most bytes of a file's name.
pub const MAX_NAME_BYTES: usize = 255;
/// Most parts of a file's name, between slashes.
pub const MAX_NAME_PARTS: usize = 4;
/// Most bytes of all files of a checkpoint together: 64 TiB.
pub const MAX_SNAPSHOT_BYTES: u64 = 1 << 46;
/// Most members that a membership names, in all of its lists together.
pub const MAX_MEMBERS: usize = 1024;

/// xxh3-128 of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum(pub u128);

impl Checksum {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Checksum {
        Checksum(xxh3_128(bytes))
    }
}

impl fmt::Display for Checksum {
    /// As 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Relative to the checkpoint's directory, parts separated by `/`. Only letters, digits, `.`,
    /// `_` and `-`; no part is `.` or `..`.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// Of the whole file.
    pub checksum: Checksum,
}

/// What a checkpoint consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes that only the host understands. A transfer treats them as one file, of index 0.
    Bytes {
        /// How many.
        size: u64,
        /// Of all of them.
        checksum: Checksum,
    },
    /// Immutable files, at least one.
    Files(Vec<FileEntry>),
}

/// A checkpoint, as it is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// See [`OFFER_FORMAT`].
    pub format: u32,
    /// Its name.
    pub checkpoint: CheckpointId,
    /// The node that has it.
    pub source: NodeId,
    /// Last entry that it covers.
    pub last_included_index: Lsn,
    /// That entry's term.
    pub term: Term,
    /// Who belongs to the group, as of that entry.
    pub peers: Membership,
    /// The files or bytes to fetch.
    pub content: Content,
}

/// Why a manifest cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    /// A newer version wrote it.
    #[error("the offer has format {0}, this version knows up to {OFFER_FORMAT}")]
    NewerFormat(u32),
    /// It covers nothing.
    #[error("the offer covers no entry")]
    Empty,
    /// No files.
    #[error("the offer has no files")]
    NoFiles,
    /// Too many.
    #[error("the offer has {0} files, more than {MAX_FILES}")]
    TooManyFiles(usize),
    /// Two files of one name, or a file where another has a directory.
    #[error("the offer names {0:?} twice")]
    Duplicate(String),
    /// A name that leaves the directory, or is not portable.
    #[error("the offer has a file of the name {0:?}")]
    Name(String),
    /// More than [`MAX_SNAPSHOT_BYTES`].
    #[error("the offer is of more than {MAX_SNAPSHOT_BYTES} bytes")]
    TooLarge,
    /// No voters, too many members, or one of number 0.
    #[error("the offer's membership is not one")]
    Membership,
}

impl Manifest {
    /// Checks whether the checkpoint can be fetched safely.
    ///
    /// # Errors
    ///
    /// The first rule that the manifest breaks.
    pub fn validate(&self) -> Result<(), InvalidManifest> {
        if self.format > OFFER_FORMAT {
            return Err(InvalidManifest::NewerFormat(self.format));
        }
        if self.last_included_index.0 == 0 || self.term.0 == 0 {
            return Err(InvalidManifest::Empty);
        }
        if !is_membership(&self.peers) {
            return Err(InvalidManifest::Membership);
        }
        match &self.content {
            Content::Bytes { size, .. } => within_limit(*size),
            Content::Files(files) => valid_files(files),
        }
    }

    /// How many files a transfer of it consists of; at least 1.
    pub fn file_count(&self) -> usize {
        match &self.content {
            Content::Bytes { .. } => 1,
            Content::Files(files) => files.len(),
        }
    }

    /// Size in bytes of a file, by index.
    pub fn file_size(&self, file: usize) -> Option<u64> {
        match &self.content {
            Content::Bytes { size, .. } => (file == 0).then_some(*size),
            Content::Files(files) => files.get(file).map(|f| f.size),
        }
    }

    /// Checksum of a file, by index.
    pub fn file_checksum(&self, file: usize) -> Option<Checksum> {
        match &self.content {
            Content::Bytes { checksum, .. } => (file == 0).then_some(*checksum),
            Content::Files(files) => files.get(file).map(|f| f.checksum),
        }
    }

    /// Bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        match &self.content {
            Content::Bytes { size, .. } => *size,
            Content::Files(files) => files.iter().map(|f| f.size).sum(),
        }
    }
}

fn within_limit(bytes: u64) -> Result<(), InvalidManifest> {
    match bytes <= MAX_SNAPSHOT_BYTES {
        true => Ok(()),
        false => Err(InvalidManifest::TooLarge),
    }
}

fn is_membership(peers: &Membership) -> bool {
    let members = peers.members().count();
    !peers.voters.is_empty() && members <= MAX_MEMBERS && peers.members().all(|n| n.0 != 0)
}

fn valid_files(files: &[FileEntry]) -> Result<(), InvalidManifest> {
    if files.is_empty() {
        return Err(InvalidManifest::NoFiles);
    }
    if files.len() > MAX_FILES {
        return Err(InvalidManifest::TooManyFiles(files.len()));
    }
    let mut total: u64 = 0;
    // Compared without case, so that two names are two files on any file system.
    let mut names = BTreeSet::new();
    for file in files {
        total = total
            .checked_add(file.size)
            .ok_or(InvalidManifest::TooLarge)?;
        if !is_plain_name(&file.name) {
            return Err(InvalidManifest::Name(clipped(&file.name)));
        }
        if !names.insert(file.name.to_ascii_lowercase()) {
            return Err(InvalidManifest::Duplicate(file.name.clone()));
        }
    }
    for name in &names {
        let directories = name.match_indices('/').map(|(at, _)| &name[..at]);
        for directory in directories {
            if names.contains(directory) {
                return Err(InvalidManifest::Duplicate(directory.to_owned()));
            }
        }
    }
    within_limit(total)
}

fn is_plain_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    let part = |p: &str| !p.is_empty() && p != "." && p != ".." && p.bytes().all(plain);
    name.len() <= MAX_NAME_BYTES
        && name.split('/').count() <= MAX_NAME_PARTS
        && name.split('/').all(part)
}

/// The beginning of an untrusted name, for messages.
fn clipped(name: &str) -> String {
    name.chars().take(64).collect()
}
