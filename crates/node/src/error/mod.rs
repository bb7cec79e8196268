//! Errors, by what the caller can do about them.

mod start;
mod start_codes;

use std::sync::Arc;

use esker_partition::command::Outcome;
use esker_partition::{Basin, ReadError, STATE_BASIN_ID, StoreError};
use esker_raft::ProposeError;
use s2_common::record::{FencingToken, SeqNum, StreamPosition};

pub use start::StartError;
pub(crate) use start::{JOIN_AGAIN, in_words};
pub use start_codes::START_CODES;

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no basin of this name.
    #[error("basin `{0}` not found")]
    BasinNotFound(String),
    /// The basin is being deleted.
    #[error("basin `{0}` is being deleted")]
    BasinDeletionPending(String),
    /// A basin of this name exists already.
    #[error("basin `{0}` already exists")]
    BasinExists(String),
    /// There is no stream of this name.
    #[error("stream `{stream}` in basin `{basin}` not found")]
    StreamNotFound {
        /// The basin.
        basin: String,
        /// The stream.
        stream: String,
    },
    /// A stream of this name exists already.
    #[error("stream `{stream}` in basin `{basin}` already exists")]
    StreamExists {
        /// The basin.
        basin: String,
        /// The stream.
        stream: String,
    },
    /// A fencing token other than the given one is in force: this one.
    #[error("fencing token mismatch: `{0}` is in force")]
    FencingTokenMismatch(FencingToken),
    /// The next sequence number is not the expected one: it is this one.
    #[error("sequence number mismatch: the next is {0}")]
    SeqNumMismatch(SeqNum),
    /// The read begins at or beyond the tail, which is this.
    #[error("unwritten position; the tail is {0}")]
    Unwritten(StreamPosition),
    /// There is no partition of this number.
    #[error("there is no partition {partition}: they are 0 (the catalog) to {last}")]
    PartitionNotFound {
        /// The number.
        partition: u64,
        /// The highest existing number.
        last: u32,
    },
    /// The request is not valid.
    #[error("{0}")]
    Invalid(String),
    /// The request has no key for a stream with a cipher, or one that cannot be a key of it.
    #[error(
        "stream `{stream}` in basin `{basin}` is encrypted: {why}; send the key, base64 of 32 bytes, in the header `s2-encryption-key`"
    )]
    EncryptionKey {
        /// The basin.
        basin: String,
        /// The stream.
        stream: String,
        /// What is wrong, without the key.
        why: String,
    },
    /// The key of the request is not the one that the record was appended with.
    #[error(
        "stream `{stream}` in basin `{basin}`: record {seq_num} cannot be decrypted with the key of the request: read it with the key that it was appended with"
    )]
    Decryption {
        /// The basin.
        basin: String,
        /// The stream.
        stream: String,
        /// The record.
        seq_num: SeqNum,
    },
    /// Only the server writes to the basin.
    #[error(
        "basin `{0}` is reserved for the state store: clients may read it; commit with `esker state` or a client of the state service"
    )]
    ReadOnly(String),
    /// Another request changed it at the same time. Nothing happened.
    #[error("changed by somebody else at the same time; try again")]
    Conflict,
    /// A snapshot does not belong to the partition's current lineage. The snapshot may be whole
    /// nevertheless.
    #[error(
        "snapshot {snapshot} is of lineage {its}, and the partition is of lineage {ours} since a restore: its log does not bring the snapshot up to date, so that there is nothing to compare. Name one of the present lineage; `esker snapshot verify --data` checks the bytes of the others"
    )]
    EarlierLineage {
        /// The snapshot.
        snapshot: String,
        /// Its lineage; `unknown` if its description has none.
        its: String,
        /// The partition's lineage.
        ours: String,
    },
    /// Nothing happened; the caller can try again later.
    #[error("{0}")]
    TryLater(String),
    /// Another node leads the partition now, or none does. Nothing happened; the leader takes the request.
    #[error("{0}; nothing happened, try again")]
    NotLeader(String),
    /// The server is stopping. Nothing happened.
    #[error("the server is stopping")]
    Stopping,
    /// It is not known whether it happened.
    #[error("{0}")]
    Unknown(String),
    /// The database failed.
    #[error("storage: {0}")]
    Storage(String),
    /// The snapshot repository failed.
    #[error(transparent)]
    Repository(Arc<esker_repository::Error>),
}

impl Error {
    /// Whether it has the name of a stream.
    pub fn names_stream(&self) -> bool {
        match self {
            Error::StreamNotFound { .. }
            | Error::StreamExists { .. }
            | Error::EncryptionKey { .. }
            | Error::Decryption { .. } => true,
            Error::Storage(text) => text.contains("stream `"),
            _ => false,
        }
    }

    /// The same for somebody who uses names of streams without this prefix.
    #[must_use]
    pub fn without_prefix(mut self, prefix: &str) -> Error {
        match &mut self {
            Error::StreamNotFound { stream, .. }
            | Error::StreamExists { stream, .. }
            | Error::EncryptionKey { stream, .. }
            | Error::Decryption { stream, .. } => {
                if let Some(own) = stream.strip_prefix(prefix) {
                    *stream = own.to_owned();
                }
            }
            Error::Storage(text) => *text = text.replace(&format!("stream `{prefix}"), "stream `"),
            _ => {}
        }
        self
    }
}

impl From<esker_repository::Error> for Error {
    fn from(error: esker_repository::Error) -> Self {
        Error::Repository(Arc::new(error))
    }
}

impl From<ProposeError> for Error {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Unknown => Error::Unknown(error.to_string()),
            ProposeError::NotLeader { .. } | ProposeError::Superseded => {
                Error::NotLeader(error.to_string())
            }
            ProposeError::Busy
            | ProposeError::LogFull
            | ProposeError::LogUnwritable { .. }
            | ProposeError::Stalled { .. }
            | ProposeError::Halted { .. }
            | ProposeError::Refused(_) => Error::TryLater(error.to_string()),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Error::Storage(error.to_string())
    }
}

/// Returns an error if only the server changes the basin.
pub(crate) fn changeable(basin: &Basin) -> Result<(), Error> {
    match basin.id {
        STATE_BASIN_ID => Err(Error::ReadOnly(basin.name.clone())),
        _ => Ok(()),
    }
}

pub(crate) fn unexpected(outcome: &Outcome) -> Error {
    Error::Unknown(format!("an answer to another command: {outcome:?}"))
}

pub(crate) fn read_error(error: ReadError, basin: &str, stream: &str) -> Error {
    match error {
        ReadError::Unwritten(tail) => Error::Unwritten(tail),
        ReadError::Gone => Error::StreamNotFound {
            basin: basin.to_owned(),
            stream: stream.to_owned(),
        },
        ReadError::Store(e) => e.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_name_of_the_stream_that_its_reader_uses() {
        let (basin, stream) = (String::from("test-basin"), String::from("tenant-1/a"));
        for error in [
            Error::StreamNotFound {
                basin: basin.clone(),
                stream: stream.clone(),
            },
            Error::StreamExists {
                basin: basin.clone(),
                stream: stream.clone(),
            },
            Error::EncryptionKey {
                basin: basin.clone(),
                stream: stream.clone(),
                why: "no key".to_owned(),
            },
            Error::Decryption {
                basin: basin.clone(),
                stream: stream.clone(),
                seq_num: 7,
            },
            Error::Storage(format!("stream `{stream}` in basin `{basin}`: damaged")),
        ] {
            assert!(error.names_stream(), "{error}");
            assert!(error.to_string().contains("`tenant-1/a`"), "{error}");
            let own = error.clone().without_prefix("tenant-1/").to_string();
            assert!(own.contains("stream `a` in basin `test-basin`"), "{own}");
            let whole = error.clone().without_prefix("tenant-2/").to_string();
            assert_eq!(whole, error.to_string(), "it is not of that prefix");
        }
        assert!(!Error::Conflict.names_stream());
    }

    #[test]
    fn a_proposal_that_met_another_leader_is_told_from_one_that_may_have_happened() {
        for certain in [
            ProposeError::NotLeader { leader: None },
            ProposeError::Superseded,
        ] {
            assert!(matches!(Error::from(certain), Error::NotLeader(_)));
        }
        let unknown = Error::from(ProposeError::Unknown);
        assert!(matches!(unknown, Error::Unknown(_)), "{unknown}");
        let busy = Error::from(ProposeError::Busy);
        assert!(matches!(busy, Error::TryLater(_)), "{busy}");
    }
}
