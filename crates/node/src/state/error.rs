//! Why something was not done with the state store.

use super::types::StateKey;

/// Why an operation on the state store failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StateError {
    /// There is no such transaction: it never was, or it was committed or aborted.
    #[error("transaction {0} is not known: it was committed, aborted, or never begun; begin again")]
    TransactionNotFound(String),
    /// It was open for longer than its timeout.
    #[error("transaction {txn} expired {timeout_ms} ms after its beginning; begin again")]
    TransactionExpired {
        /// The transaction.
        txn: String,
        /// Its timeout.
        timeout_ms: u64,
    },
    /// It was begun on a node, or in a run of it, that is gone. Nothing of it happened.
    #[error("transaction {0} was begun on another run of the server and is lost; begin again")]
    TransactionLost(String),
    /// A key has another version than expected; nothing happened.
    #[error(
        "namespace `{}`, agent `{}`, key `{}` has version {actual}, not {expected}; read it again",
        .key.namespace, .key.agent_id, .key.key
    )]
    VersionMismatch {
        /// The key.
        key: StateKey,
        /// The version that was expected.
        expected: u64,
        /// The one that it has; 0 if it does not exist.
        actual: u64,
    },
    /// The request cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// A limit.
    #[error("{0}")]
    Exhausted(String),
    /// What is asked for is below the history that is kept.
    #[error("history begins at commit_ts {commit_ts}{}", .version.map(|v| format!(" (this key's at version {v})")).unwrap_or_default())]
    HistoryBegins {
        /// The first commit that is kept.
        commit_ts: u64,
        /// The first version of the key that is kept, if a key was asked for.
        version: Option<u64>,
    },
    /// There is nothing to make a snapshot of.
    #[error("nothing was committed yet: there is nothing to make a snapshot of")]
    NothingCommitted,
    /// No snapshot of that name.
    #[error("there is no snapshot of commit_ts {0}")]
    SnapshotNotFound(u64),
    /// No snapshot at all.
    #[error("there is no snapshot on the server's disk: make one with `esker state snapshot`")]
    NoSnapshot,
    /// An import into a store that has had commits.
    #[error(
        "the store has had {commit_ts} commits: an import replaces what it holds, say --replace if that is meant"
    )]
    NotEmpty {
        /// Its newest commit.
        commit_ts: u64,
    },
    /// Nothing happened; try again later.
    #[error("{0}")]
    Unavailable(String),
    /// The server is stopping; nothing happened.
    #[error("the server is stopping")]
    Stopping,
    /// It may have happened or not: look.
    #[error("{0}")]
    Unknown(String),
    /// The database, or a file.
    #[error("storage: {0}")]
    Storage(String),
}
