//! A snapshot as a host hands it over and gets it back: position, membership, and bytes or files.
//!
//! [`SnapshotStore`](super::SnapshotStore) keeps such snapshots; nothing here does I/O.

use std::path::PathBuf;

use crate::ids::{Lsn, Term};
use crate::membership::Membership;

/// A snapshot that the host has stored durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSnapshot {
    /// Last entry that it covers.
    pub last_included_index: Lsn,
    /// That entry's term.
    pub term: Term,
    /// Who belongs to the group, as of that entry.
    pub peers: Membership,
    /// What was stored.
    pub data: SnapshotData,
}

/// What a snapshot consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotData {
    /// Bytes that only the host understands.
    Bytes(Vec<u8>),
    /// A directory of immutable files.
    Files(SnapshotDir),
}

impl From<Vec<u8>> for SnapshotData {
    fn from(bytes: Vec<u8>) -> Self {
        SnapshotData::Bytes(bytes)
    }
}

/// The directory of a snapshot's files. The host removes it when it is no longer needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotDir {
    /// Where it is.
    pub path: PathBuf,
}
