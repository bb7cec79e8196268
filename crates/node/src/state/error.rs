//! Why an operation on the state store, or reading a snapshot, failed.

use std::io;

use esker_partition::command::Outcome;
use esker_partition::state::read::StateReadError;
use esker_partition::store::StoreError;

use super::types::StateKey;

/// Why an operation on the state store failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StateError {
    /// There is no such transaction: it was never begun, or it was committed or aborted.
    #[error("transaction {0} is not known: it was committed, aborted, or never begun; begin again")]
    TransactionNotFound(String),
    /// The transaction was open for longer than its timeout.
    #[error("transaction {txn} expired {timeout_ms} ms after its beginning; begin again")]
    TransactionExpired {
        /// The transaction.
        txn: String,
        /// Its timeout.
        timeout_ms: u64,
    },
    /// The transaction was begun on a node that has stopped or lost the leadership since, and what was staged in it is
    /// lost. If its commit was on its way at that time, it may have happened.
    #[error(
        "transaction {0} is lost: the server that has begun it was restarted, or no longer leads the state store. If \
         its commit was sent before, it may have happened: read the keys; else begin again"
    )]
    TransactionLost(String),
    /// The transaction has something of an agent that the caller is not permitted; nothing happened.
    #[error("the transaction has changes or expectations of agents that are not permitted")]
    NotPermitted,
    /// A key does not have the expected version; nothing happened.
    #[error(
        "namespace `{}`, agent `{}`, key `{}` has version {actual}, not {expected}; read it again",
        .key.namespace, .key.agent_id, .key.key
    )]
    VersionMismatch {
        /// The key.
        key: StateKey,
        /// The version that was expected.
        expected: u64,
        /// The version that it has; 0 if it does not exist.
        actual: u64,
    },
    /// The request is not valid.
    #[error("{0}")]
    Invalid(String),
    /// A limit was exceeded.
    #[error("{0}")]
    Exhausted(String),
    /// The request is for commits or versions below the history that is kept.
    #[error("history begins at commit_ts {commit_ts}{}", .version.map(|v| format!(" (this key's at version {v})")).unwrap_or_default())]
    HistoryBegins {
        /// The first commit that is kept.
        commit_ts: u64,
        /// The first version of the key that is kept, if a key was asked for.
        version: Option<u64>,
    },
    /// Nothing was committed yet, so there is nothing to make a snapshot of.
    #[error("nothing was committed yet: there is nothing to make a snapshot of")]
    NothingCommitted,
    /// There is no snapshot of that commit.
    #[error("there is no snapshot of commit_ts {0}")]
    SnapshotNotFound(u64),
    /// There is no snapshot on this disk.
    #[error("there is no snapshot on the server's disk: make one with `esker state snapshot`")]
    NoSnapshot,
    /// The store has had commits, and an import replaces them only if that is requested.
    #[error(
        "the store has had {commit_ts} commits: an import replaces what it holds, say --replace if that is meant"
    )]
    NotEmpty {
        /// Its newest commit.
        commit_ts: u64,
    },
    /// Nothing happened; the caller can try again later.
    #[error("{0}")]
    Unavailable(String),
    /// The server is stopping; nothing happened.
    #[error("the server is stopping")]
    Stopping,
    /// It is not known whether it happened; the caller has to read the keys.
    #[error("{0}")]
    Unknown(String),
    /// The database or a file failed.
    #[error("storage: {0}")]
    Storage(String),
}

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It cannot be read now: nothing is known of its content.
    #[error("{0}")]
    Unreadable(io::Error),
    /// It is not what was written, or not a snapshot.
    #[error("{0}")]
    Damaged(String),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => FileError::Damaged(error.to_string()),
            _ => FileError::Unreadable(error),
        }
    }
}

pub(crate) fn unexpected(outcome: &Outcome) -> StateError {
    StateError::Unknown(format!("an answer to another command: {outcome:?}"))
}

impl From<StoreError> for StateError {
    fn from(error: StoreError) -> Self {
        StateError::Storage(error.to_string())
    }
}

impl From<StateReadError> for StateError {
    fn from(error: StateReadError) -> Self {
        match error {
            StateReadError::HistoryBegins { commit_ts, version } => {
                StateError::HistoryBegins { commit_ts, version }
            }
            StateReadError::Store(error) => error.into(),
        }
    }
}
