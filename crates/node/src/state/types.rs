//! Requests to the state store, and its answers.

use std::time::Duration;

use crate::admission::Client;
use bytes::Bytes;
pub use esker_partition::state::{MAX_NAME_BYTES, StateKey};

/// A version that a key must have for a commit to happen; 0: the key must not exist, or must be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The key.
    pub key: StateKey,
    /// The version.
    pub version: u64,
}

/// A commit that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its place in the order of commits.
    pub commit_ts: u64,
    /// The versions that its operations got, in their order.
    pub versions: Vec<u64>,
}

/// The moment as of which a key is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReadAt {
    /// The present.
    #[default]
    Latest,
    /// The key's version of this number.
    Version(u64),
    /// The key's state after this commit.
    Commit(u64),
}

/// The state of a key.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StateRead {
    /// A JSON object; `None` if the key does not exist or is deleted.
    pub value: Option<Bytes>,
    /// The version; 0 for a key that never existed. A deleted key has that of its deletion.
    pub version: u64,
    /// The commit that wrote this version.
    pub commit_ts: u64,
}

impl StateRead {
    /// The answer for a key that never existed.
    pub fn absent() -> StateRead {
        StateRead::default()
    }
}

/// A key of an agent, with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    /// The key's name.
    pub key: String,
    /// A JSON object; empty if only keys were asked for.
    pub value: Bytes,
    /// Its version.
    pub version: u64,
    /// The commit that wrote this version.
    pub commit_ts: u64,
}

/// Which keys to read.
#[derive(Clone, Debug)]
pub struct Scan {
    /// The namespace.
    pub namespace: String,
    /// The agent.
    pub agent_id: String,
    /// The prefix of the keys.
    pub prefix: String,
    /// The commit as of which to read; `None` for the present.
    pub at: Option<u64>,
    /// Whether to return names without values.
    pub keys_only: bool,
    /// Only keys after this one.
    pub after: Option<String>,
    /// Most keys to return. With a limit, the answer also ends at `max_bytes`, but has at least one key;
    /// without one, more than `max_bytes` is an error.
    pub limit: Option<usize>,
    /// Most bytes of names and values to return.
    pub max_bytes: usize,
    /// Rows of the database after which the answer ends, however few keys it has: keys that are deleted, or were not
    /// written by then, are rows as well, and so is each step of the search for a key's version as of a commit.
    /// `None` reads all.
    pub max_rows: Option<u64>,
}

/// What a scan has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Rows of the database.
    pub rows: u64,
    /// The key at which it has ended because of [`Scan::max_rows`]: the next page begins after it.
    pub ended_at: Option<String>,
}

/// Which commits to read.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    /// Namespace and agent; `None` for all.
    pub agent: Option<(String, String)>,
    /// The first commit; `None` for the beginning of history.
    pub start: Option<u64>,
    /// The last commit; `None` for the newest.
    pub end: Option<u64>,
    /// Whether to continue at the present with new commits, until `end` or for ever.
    pub follow: bool,
    /// Whose memory it is: what was read and is not taken yet counts for it.
    pub client: Client,
}

/// A commit, as replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayEvent {
    /// The transaction.
    pub txn_id: String,
    /// Its place in the order of commits.
    pub commit_ts: u64,
    /// When the server received it, in milliseconds since the epoch.
    pub at_ms: u64,
    /// Its operations, in the order of staging; only those of the agent, if one was requested.
    pub operations: Vec<Operation>,
}

/// An operation of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The key that it wrote or deleted.
    pub key: StateKey,
    /// A JSON object; `None` for a deletion.
    pub value: Option<Bytes>,
    /// The version that the key got.
    pub version: u64,
}

/// A JSON snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSnapshot {
    /// Its file name, such as `snapshot-12345.json`.
    pub name: String,
    /// The last commit that it covers.
    pub commit_ts: u64,
    /// When it was made, in seconds since the epoch.
    pub created_at: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Number of keys, deleted ones included; `None` if that is not known without reading it.
    pub keys: Option<u64>,
    /// The lineage that it belongs to, in hexadecimal digits; empty if not known.
    pub lineage: String,
    /// Whether the data directory has it.
    pub local: bool,
    /// Whether the repository has it.
    pub archived: bool,
    /// Why it cannot be used, if it cannot.
    pub problem: Option<String>,
}

/// The result of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportSummary {
    /// The commit of the imported state, in the numbering of the snapshot.
    pub imported_commit_ts: u64,
    /// The commit of the imported state in this store: the same, unless another state was replaced.
    pub commit_ts: u64,
    /// Number of keys, deleted ones included.
    pub keys: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// The result of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateVerification {
    /// The snapshot.
    pub snapshot: String,
    /// The commit that it covers.
    pub snapshot_commit_ts: u64,
    /// The commit as of which the states were compared.
    pub commit_ts: u64,
    /// Number of commits after it that were folded.
    pub replayed: u64,
    /// Number of keys that were compared, deleted ones included.
    pub keys: u64,
    /// Digest of snapshot and replay, in hexadecimal digits.
    pub folded_digest: String,
    /// Digest of the live state.
    pub live_digest: String,
    /// The differences, for display; empty if the states are equal.
    pub differences: Vec<String>,
    /// Snapshots that were passed over, each with the reason.
    pub passed_over: Vec<String>,
}

/// The status of the store.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StateStatus {
    /// The newest commit; 0 if there was none.
    pub commit_ts: u64,
    /// The first commit that is kept; earlier commits cannot be replayed.
    pub history_begins: u64,
    /// Number of keys, deleted ones included.
    pub keys: u64,
    /// Number of open transactions.
    pub open_transactions: u64,
    /// Bytes that they hold.
    pub open_transaction_bytes: u64,
    /// Number of commits since the newest snapshot.
    pub commits_since_snapshot: u64,
    /// The newest snapshot's commit, if there is one.
    pub newest_snapshot: Option<u64>,
    /// Number of snapshots that failed since the start.
    pub snapshots_failed: u64,
    /// The last failure, if the last attempt failed.
    pub last_failure: Option<String>,
    /// Files in `snapshots/` that are not valid snapshots of this store, each with the reason.
    pub ignored_snapshots: Vec<String>,
}

/// Options of the store: snapshots, limits, and how much history is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateOptions {
    /// A JSON snapshot is written after this many commits; 0: never.
    pub snapshot_interval: u64,
    /// Number of newest JSON snapshots that are kept; at least 1.
    pub snapshots_retained: u32,
    /// Whether snapshots are also put into the repository, if one is configured.
    pub archive_snapshots: bool,
    /// Timeout of transactions that set none.
    pub default_timeout: Duration,
    /// Longest timeout that a transaction can set.
    pub max_timeout: Duration,
    /// Most open transactions.
    pub max_transactions: usize,
    /// Most operations of one transaction.
    pub max_operations: usize,
    /// Most bytes that open transactions hold together.
    pub max_transaction_bytes: usize,
    /// Number of versions kept of each key, the newest included; `None` for all.
    pub keep_versions: Option<u64>,
    /// Number of newest commits kept; `None` for all.
    pub keep_history_commits: Option<u64>,
    /// How long commits are kept; `None`: for ever.
    pub keep_history_age: Option<Duration>,
}

impl Default for StateOptions {
    fn default() -> Self {
        StateOptions {
            snapshot_interval: 1000,
            snapshots_retained: 3,
            archive_snapshots: true,
            default_timeout: Duration::from_secs(30),
            max_timeout: Duration::from_secs(300),
            max_transactions: 10_000,
            max_operations: 10_000,
            max_transaction_bytes: 64 * 1024 * 1024,
            keep_versions: None,
            keep_history_commits: None,
            keep_history_age: None,
        }
    }
}

/// Checks the text of a value, as if it was written by a client.
#[derive(Clone, Copy)]
pub struct ValueCheck(pub fn(&[u8]) -> Result<(), String>);

impl Default for ValueCheck {
    /// Accepts any JSON object.
    fn default() -> Self {
        ValueCheck(|_| Ok(()))
    }
}

impl std::fmt::Debug for ValueCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ValueCheck")
    }
}

/// Which agents, by namespace and name, a caller may change; `None` for all.
pub type Permitted<'a> = Option<&'a (dyn Fn(&str, &str) -> bool + Sync)>;
