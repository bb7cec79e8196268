//! What is asked of the state store, and what it answers.

use std::time::Duration;

use bytes::Bytes;
pub use esker_partition::state::{MAX_NAME_BYTES, StateKey};

/// A version that a key must have for a commit to happen; 0: it must not exist, never or no more.
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

/// As of when to read a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReadAt {
    /// Now.
    #[default]
    Latest,
    /// Its version of this number.
    Version(u64),
    /// What it was after this commit.
    Commit(u64),
}

/// What a key had.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StateRead {
    /// A JSON object; `None` if the key does not exist or is deleted.
    pub value: Option<Bytes>,
    /// The version; 0 for a key that never was. A deleted one has that of its deletion.
    pub version: u64,
    /// The commit that gave it.
    pub commit_ts: u64,
}

impl StateRead {
    /// What is answered for a key that never was.
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
    /// The commit that gave it.
    pub commit_ts: u64,
}

/// Which keys to read.
#[derive(Clone, Debug)]
pub struct Scan {
    /// The namespace.
    pub namespace: String,
    /// The agent.
    pub agent_id: String,
    /// What the keys begin with.
    pub prefix: String,
    /// As of a commit; `None` for now.
    pub at: Option<u64>,
    /// Only names.
    pub keys_only: bool,
    /// Only keys after this one.
    pub after: Option<String>,
    /// Most keys to answer. With it, the answer ends at `max_bytes` too, but has at least one key;
    /// without it, more than `max_bytes` is an error.
    pub limit: Option<usize>,
    /// Most bytes of names and values to answer.
    pub max_bytes: usize,
}

/// Which commits to read.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    /// Namespace and agent; `None` for all.
    pub agent: Option<(String, String)>,
    /// The first commit; `None` for the first there is.
    pub start: Option<u64>,
    /// The last commit; `None` for the newest.
    pub end: Option<u64>,
    /// Whether to go on at the present, until `end` or for ever.
    pub follow: bool,
}

/// A commit, as replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayEvent {
    /// The transaction.
    pub txn_id: String,
    /// Its place in the order of commits.
    pub commit_ts: u64,
    /// When the server took it in, in milliseconds since the epoch.
    pub at_ms: u64,
    /// What it did, in the order of staging; those of the agent, if one was asked for.
    pub operations: Vec<Operation>,
}

/// An operation of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// On which key.
    pub key: StateKey,
    /// A JSON object; `None` for a deletion.
    pub value: Option<Bytes>,
    /// The version that the key got.
    pub version: u64,
}

/// A JSON snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSnapshot {
    /// `snapshot-12345.json`.
    pub name: String,
    /// The last commit that it covers.
    pub commit_ts: u64,
    /// Seconds since the epoch.
    pub created_at: u64,
    /// Its size.
    pub bytes: u64,
    /// Keys, deleted ones included; `None` if that is not known without reading it.
    pub keys: Option<u64>,
    /// The lineage that it is of, in hexadecimal digits; empty if not known.
    pub lineage: String,
    /// Whether the data directory has it.
    pub local: bool,
    /// Whether the repository has it.
    pub archived: bool,
    /// Why it cannot be used, if it cannot.
    pub problem: Option<String>,
}

/// What an import did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportSummary {
    /// The commit that the imported state is as of, in the numbering of the snapshot.
    pub imported_commit_ts: u64,
    /// The commit that it is as of here: the same, unless another state was replaced.
    pub commit_ts: u64,
    /// Keys, deleted ones included.
    pub keys: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateVerification {
    /// The snapshot.
    pub snapshot: String,
    /// The commit that it covers.
    pub snapshot_commit_ts: u64,
    /// The commit as of which was compared.
    pub commit_ts: u64,
    /// Commits that were folded after it.
    pub replayed: u64,
    /// Keys that were compared, deleted ones included.
    pub keys: u64,
    /// Digest of snapshot and replay, in hexadecimal digits.
    pub folded_digest: String,
    /// Digest of the live state.
    pub live_digest: String,
    /// What differs, for people; empty if nothing does.
    pub differences: Vec<String>,
    /// Snapshots that were passed over, and why.
    pub passed_over: Vec<String>,
}

/// Where the store stands.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StateStatus {
    /// The newest commit; 0 if there was none.
    pub commit_ts: u64,
    /// The first commit that is kept; commits below cannot be replayed.
    pub history_begins: u64,
    /// Keys, deleted ones included.
    pub keys: u64,
    /// Open transactions.
    pub open_transactions: u64,
    /// Bytes that they hold.
    pub open_transaction_bytes: u64,
    /// Commits since the newest snapshot.
    pub commits_since_snapshot: u64,
    /// The newest snapshot's commit, if there is one.
    pub newest_snapshot: Option<u64>,
    /// Snapshots that failed since the start.
    pub snapshots_failed: u64,
    /// The last failure, if the last attempt failed.
    pub last_failure: Option<String>,
    /// Files in `snapshots/` that are not valid snapshots of this store, each with the reason.
    pub ignored_snapshots: Vec<String>,
}

/// How the store is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateOptions {
    /// A JSON snapshot every so many commits; 0 for never.
    pub snapshot_interval: u64,
    /// JSON snapshots that are kept, the newest; at least 1.
    pub snapshots_retained: u32,
    /// Whether snapshots go into the repository, too, if one is configured.
    pub archive_snapshots: bool,
    /// Timeout of transactions that set none.
    pub default_timeout: Duration,
    /// Longest timeout.
    pub max_timeout: Duration,
    /// Open transactions at most.
    pub max_transactions: usize,
    /// Operations of one transaction at most.
    pub max_operations: usize,
    /// Bytes that open transactions may hold together.
    pub max_transaction_bytes: usize,
    /// Versions kept of each key, the newest included; `None` for all.
    pub keep_versions: Option<u64>,
    /// Commits kept; `None` for all.
    pub keep_history_commits: Option<u64>,
    /// Commits are kept for so long; `None` for ever.
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

/// Checks the text of a value, as if it was written.
#[derive(Clone, Copy)]
pub struct ValueCheck(pub fn(&[u8]) -> Result<(), String>);

impl Default for ValueCheck {
    /// Any JSON object will do.
    fn default() -> Self {
        ValueCheck(|_| Ok(()))
    }
}

impl std::fmt::Debug for ValueCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ValueCheck")
    }
}
