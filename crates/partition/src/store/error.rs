//! Errors of the database, by what the caller can do about them.

use std::path::PathBuf;

use rust_rocksdb::ErrorKind;

use crate::ids::PartitionId;

/// An error of the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database of a node that has been in use is missing.
    #[error(
        "the database in {path} is missing although this data directory was in use; nothing was created in its place"
    )]
    Missing {
        /// Its directory.
        path: PathBuf,
    },
    /// A partition is missing or has no position.
    #[error("the database in {path} lacks partition {partition}: {what}")]
    Incomplete {
        /// Its directory.
        path: PathBuf,
        /// The partition.
        partition: PartitionId,
        /// What is wrong.
        what: String,
    },
    /// RocksDB failed.
    #[error("the database in {path}, {operation}: {source}")]
    Db {
        /// Its directory.
        path: PathBuf,
        /// The operation.
        operation: String,
        /// RocksDB's message; it names the file.
        source: rust_rocksdb::Error,
    },
    /// An operation on a file or directory failed.
    #[error("{operation} {path}: {source}", path = .path.display())]
    Io {
        /// The operation.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A checkpoint that cannot be used.
    #[error("the checkpoint in {path}: {why}", path = .path.display())]
    Checkpoint {
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A checkpoint that a newer release has made: nothing is known of it here, and it stays.
    #[error("the checkpoint in {path} was made by a newer release of Esker: it has format {found}, and formats up to {known} are known: use that release, or a newer one", path = .path.display())]
    NewerCheckpoint {
        /// Its directory.
        path: PathBuf,
        /// The format that it has.
        found: u32,
        /// The newest format that is known.
        known: u32,
    },
    /// Memtables cannot be flushed at the moment. Their data is in memory and in the Raft log.
    #[error("the database in {path}, partition {partition}, cannot write its files: {why}")]
    NotFlushed {
        /// Its directory.
        path: PathBuf,
        /// The partition.
        partition: PartitionId,
        /// RocksDB's message; it names the file.
        why: String,
    },
    /// It was ended before it was done, because the node stops or lacks space.
    #[error("{what} of partition {partition} was ended before it was done")]
    Interrupted {
        /// The partition.
        partition: PartitionId,
        /// The operation.
        what: &'static str,
    },
    /// A stored value is not one that this version can have written.
    #[error("the database in {path}, partition {partition}, {what}: {why}")]
    Malformed {
        /// Its directory.
        path: PathBuf,
        /// The partition.
        partition: PartitionId,
        /// Which value.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

impl StoreError {
    /// Whether the operating system refused, or a newer release has written it: the data that could not be read
    /// may be intact, and a retry, or that release, may read it. False for what is missing, damaged or malformed.
    pub fn is_unreadable(&self) -> bool {
        match self {
            StoreError::Db { source, .. } => is_refusal(source.kind(), source.as_ref()),
            StoreError::Io { source, .. } => source.kind() != std::io::ErrorKind::NotFound,
            StoreError::NotFlushed { .. }
            | StoreError::NewerCheckpoint { .. }
            | StoreError::Interrupted { .. } => true,
            StoreError::Missing { .. }
            | StoreError::Incomplete { .. }
            | StoreError::Checkpoint { .. }
            | StoreError::Malformed { .. } => false,
        }
    }
}

/// Whether an answer of the operating system is about a file without data: RocksDB's lock, or one of its text logs,
/// which another handle of the same database removes while this one opens.
fn is_about_no_data(answer: &str) -> bool {
    let name = answer.rsplit('/').next().unwrap_or_default();
    let name = name.split([':', ' ', ',']).next().unwrap_or_default();
    name == "LOCK" || name == "LOG" || name.starts_with("LOG.old.")
}

/// Whether an error of RocksDB comes from the operating system, rather than from bytes that are not what was
/// written. A missing file is damage, because RocksDB's manifest lists the files that must be there, but for those
/// that have no data. An error of
/// kind corruption may come from the operating system: RocksDB reports corruption for every file that it cannot
/// inspect when it opens.
pub(super) fn is_refusal(kind: ErrorKind, message: &str) -> bool {
    const ANSWER: &str = "IO error: ";
    const GONE: &str = "No such file or directory";
    match kind {
        ErrorKind::Corruption | ErrorKind::IOError => {
            let mut answers = message.split(ANSWER).skip(1);
            answers.any(|answer| !answer.starts_with(GONE) || is_about_no_data(answer))
        }
        // An unknown version, a time-out, options that do not fit.
        _ => true,
    }
}
