//! Errors, by what the caller can do about them.

mod start;
mod start_codes;

use std::sync::Arc;

use esker_partition::command::Outcome;
use esker_partition::{Basin, ReadError, STATE_BASIN_ID, StoreError};
use esker_raft::ProposeError;
use s2_common::record::{FencingToken, SeqNum, StreamPosition};

pub use start::StartError;
pub(crate) use start::in_words;
pub use start_codes::START_CODES;

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No basin of the name.
    #[error("basin `{0}` not found")]
    BasinNotFound(String),
    /// The basin is being deleted.
    #[error("basin `{0}` is being deleted")]
    BasinDeletionPending(String),
    /// There is a basin of the name already.
    #[error("basin `{0}` already exists")]
    BasinExists(String),
    /// No stream of the name.
    #[error("stream `{stream}` in basin `{basin}` not found")]
    StreamNotFound {
        /// The basin.
        basin: String,
        /// The stream.
        stream: String,
    },
    /// There is a stream of the name already.
    #[error("stream `{stream}` in basin `{basin}` already exists")]
    StreamExists {
        /// The basin.
        basin: String,
        /// The stream.
        stream: String,
    },
    /// Another fencing token is in force: this one.
    #[error("fencing token mismatch: `{0}` is in force")]
    FencingTokenMismatch(FencingToken),
    /// The next sequence number is another: this one.
    #[error("sequence number mismatch: the next is {0}")]
    SeqNumMismatch(SeqNum),
    /// Nothing is written where the read begins; this is the tail.
    #[error("unwritten position; the tail is {0}")]
    Unwritten(StreamPosition),
    /// No partition of the number.
    #[error("there is no partition {partition}: they are 0 (the catalog) to {last}")]
    PartitionNotFound {
        /// The number.
        partition: u64,
        /// The highest that there is.
        last: u32,
    },
    /// The request is not valid.
    #[error("{0}")]
    Invalid(String),
    /// It is written by the server alone.
    #[error(
        "basin `{0}` is reserved for the state store: clients may read it; commit with `esker state` or a client of the state service"
    )]
    ReadOnly(String),
    /// Another request changed it at the same time. Nothing happened.
    #[error("changed by somebody else at the same time; try again")]
    Conflict,
    /// A snapshot is not of the lineage that the partition is of now. That says nothing about what is in it.
    #[error(
        "snapshot {snapshot} is of lineage {its}, and the partition is of lineage {ours} since a restore: its log does not bring the snapshot up to date, so that there is nothing to compare. Name one of the present lineage; `esker snapshot verify --data` checks the bytes of the others"
    )]
    EarlierLineage {
        /// The snapshot.
        snapshot: String,
        /// Its lineage; `unknown` if it names none.
        its: String,
        /// The partition's.
        ours: String,
    },
    /// Nothing happened; try again later.
    #[error("{0}")]
    TryLater(String),
    /// The server is stopping. Nothing happened.
    #[error("the server is stopping")]
    Stopping,
    /// It is not known whether it happened.
    #[error("{0}")]
    Unknown(String),
    /// The database failed.
    #[error("storage: {0}")]
    Storage(String),
    /// The snapshot repository.
    #[error(transparent)]
    Repository(Arc<esker_repository::Error>),
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
            ProposeError::NotLeader { .. }
            | ProposeError::Busy
            | ProposeError::LogFull
            | ProposeError::LogUnwritable { .. }
            | ProposeError::Stalled { .. }
            | ProposeError::Halted { .. }
            | ProposeError::Refused(_)
            | ProposeError::Superseded => Error::TryLater(error.to_string()),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Error::Storage(error.to_string())
    }
}

/// An error if only the server changes the basin.
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
