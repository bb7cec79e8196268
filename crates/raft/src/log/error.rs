//! Why the log could not be opened or read, and what that proves: damage, or only that it was unreadable.

use std::path::{Path, PathBuf};

use super::inspect;
use super::layout::FORMAT;

/// Why the log could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The inspection found damage that no crash can cause, or could not read the files.
    #[error(transparent)]
    Inspect(#[from] inspect::InspectError),
    /// A torn tail could not be cut.
    #[error("cutting the torn tail of the log in {dir}: {source}")]
    Cut {
        /// The log's directory.
        dir: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The log was read, and its content breaks a rule of its format: it is damaged.
    #[error("the log in {dir}: {message}")]
    Engine {
        /// The log's directory.
        dir: PathBuf,
        /// raft-engine's error.
        message: String,
    },
    /// The operating system refused to read or write. Nothing is known about the content of the log.
    #[error("the log in {dir}: {message}")]
    Unreadable {
        /// The log's directory.
        dir: PathBuf,
        /// The operating system's error, and the file.
        message: String,
    },
    /// The log was written by a newer version.
    #[error(
        "the log in {dir} has format {found}, this version knows up to {FORMAT}: use a newer esker"
    )]
    NewerFormat {
        /// The log's directory.
        dir: PathBuf,
        /// The format found.
        found: u8,
    },
}

impl LogError {
    /// Whether a checksum or a rule of the format proves that the log is damaged or incomplete. An error of
    /// the operating system proves nothing.
    pub fn is_damage(&self) -> bool {
        match self {
            LogError::Inspect(found) => match found {
                inspect::InspectError::Rot { .. }
                | inspect::InspectError::MissingFile { .. }
                | inspect::InspectError::Gap { .. }
                | inspect::InspectError::OlderCopy { .. }
                | inspect::InspectError::OtherCopy { .. } => true,
                // A foreign file proves nothing about the log's own files.
                inspect::InspectError::Foreign { .. } | inspect::InspectError::Io { .. } => false,
            },
            LogError::Engine { .. } => true,
            LogError::Cut { .. } | LogError::Unreadable { .. } | LogError::NewerFormat { .. } => {
                false
            }
        }
    }

    /// Whether the operating system refused. The same may work later.
    pub fn is_unreadable(&self) -> bool {
        match self {
            LogError::Inspect(found) => matches!(found, inspect::InspectError::Io { .. }),
            LogError::Cut { .. } | LogError::Unreadable { .. } => true,
            LogError::Engine { .. } | LogError::NewerFormat { .. } => false,
        }
    }

    /// The error for one of raft-engine, preceded by `context`.
    pub(super) fn of_engine(dir: &Path, context: &str, error: &raft_engine::Error) -> LogError {
        let (dir, message) = (dir.to_owned(), format!("{context}{error}"));
        match is_unreadable(error) {
            true => LogError::Unreadable { dir, message },
            false => LogError::Engine { dir, message },
        }
    }
}

/// Whether an error of raft-engine proves nothing about the log, so that the same may work later.
pub(super) fn is_unreadable(error: &raft_engine::Error) -> bool {
    match error {
        raft_engine::Error::Io(_)
        | raft_engine::Error::TryAgain(_)
        | raft_engine::Error::Full
        | raft_engine::Error::Other(_) => true,
        raft_engine::Error::InvalidArgument(_)
        | raft_engine::Error::Corruption(_)
        | raft_engine::Error::Codec(_)
        | raft_engine::Error::Protobuf(_)
        | raft_engine::Error::EntryCompacted
        | raft_engine::Error::EntryNotFound => false,
    }
}
