//! Commands of the state store, and the answers to them.

use bytes::Bytes;

use super::names::StateKey;

/// See [`Kind::StateCommit`](crate::command::Kind::StateCommit).
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateCommit {
    /// The transaction.
    #[prost(string, tag = "1")]
    pub txn_id: String,
    /// Its operations, in order.
    #[prost(message, repeated, tag = "2")]
    pub operations: Vec<StagedOperation>,
    /// Versions that keys must have; if one has another, nothing is committed.
    #[prost(message, repeated, tag = "3")]
    pub expected: Vec<ExpectedVersion>,
    /// When it arrived, in milliseconds since the epoch.
    #[prost(uint64, tag = "4")]
    pub at_ms: u64,
}

/// An operation of a transaction.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StagedOperation {
    /// The namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// The agent.
    #[prost(string, tag = "2")]
    pub agent_id: String,
    /// The key.
    #[prost(string, tag = "3")]
    pub key: String,
    /// A JSON object; `None` for a deletion.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub value: Option<Bytes>,
}

impl StagedOperation {
    /// The key.
    pub fn key(&self) -> StateKey {
        StateKey::new(&*self.namespace, &*self.agent_id, &*self.key)
    }
}

/// A version that a key must have.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExpectedVersion {
    /// The namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// The agent.
    #[prost(string, tag = "2")]
    pub agent_id: String,
    /// The key.
    #[prost(string, tag = "3")]
    pub key: String,
    /// The version; 0: the key must not exist.
    #[prost(uint64, tag = "4")]
    pub version: u64,
}

impl ExpectedVersion {
    /// The key.
    pub fn key(&self) -> StateKey {
        StateKey::new(&*self.namespace, &*self.agent_id, &*self.key)
    }
}

/// See [`Kind::StatePrune`](crate::command::Kind::StatePrune). One command reads a bounded number of
/// commits, so it may do a part of what it asks for.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StatePrune {
    /// Surplus versions are removed of keys that commits up to this one changed.
    #[prost(uint64, tag = "1")]
    pub versions_to: u64,
    /// Number of versions of a key that are kept, the present one included; 0 for all.
    #[prost(uint64, tag = "2")]
    pub keep_versions: u64,
    /// Commits below this one are removed; 0 for none.
    #[prost(uint64, tag = "3")]
    pub history_below: u64,
    /// Now, in milliseconds since the epoch.
    #[prost(uint64, tag = "4")]
    pub at_ms: u64,
}

/// Most commits that one [`StatePrune`] reads for each of its two purposes. They take the apply thread a
/// few milliseconds.
pub const PRUNE_COMMITS: u64 = 256;
/// Most bytes of these commits, for the same reason; one commit may have a MiB.
pub const PRUNE_BYTES: usize = 2 * 1024 * 1024;

/// See [`Kind::StateImport`](crate::command::Kind::StateImport).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StateImport {
    /// Id of the import: a random number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The step.
    #[prost(oneof = "ImportStep", tags = "2, 3, 4, 6")]
    pub step: Option<ImportStep>,
    /// Now, in milliseconds since the epoch.
    #[prost(uint64, tag = "5")]
    pub at_ms: u64,
}

/// The steps of an import. Nothing is visible before the last one.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum ImportStep {
    /// Begins an import.
    #[prost(message, tag = "2")]
    Begin(ImportBegin),
    /// Adds some entries.
    #[prost(message, tag = "3")]
    Entries(ImportEntries),
    /// The last step: what was imported replaces what the store had.
    #[prost(message, tag = "4")]
    Finish(ImportFinish),
    /// Ends an import without its last step: what it wrote is removed.
    #[prost(message, tag = "6")]
    Abort(ImportAbort),
}

/// See [`ImportStep::Abort`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ImportAbort {}

/// Largest version and `commit_ts` that the store gives out, and that an import may contain, so that
/// every store can import what another one has. Forks and imports take 2^40 each, so four million of them
/// fit.
pub const MAX_NUMBER: u64 = 1 << 62;

/// See [`ImportStep::Begin`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ImportBegin {
    /// Whether a store that has had commits is replaced.
    #[prost(bool, tag = "1")]
    pub replace: bool,
}

/// See [`ImportStep::Entries`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ImportEntries {
    /// Entries with their names.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<ImportedEntry>,
}

/// See [`ImportStep::Finish`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ImportFinish {
    /// The last commit that the snapshot covers.
    #[prost(uint64, tag = "1")]
    pub commit_ts: u64,
    /// Whether versions that are given out after an import that replaces the state exceed all that were given out
    /// before it. Earlier builds do not set it; what they have proposed is applied as they did.
    #[prost(bool, tag = "2")]
    pub raises_versions: bool,
}

/// An entry of a JSON snapshot.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ImportedEntry {
    /// The namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// The agent.
    #[prost(string, tag = "2")]
    pub agent_id: String,
    /// The key.
    #[prost(string, tag = "3")]
    pub key: String,
    /// The version.
    #[prost(uint64, tag = "4")]
    pub version: u64,
    /// The commit that wrote it.
    #[prost(uint64, tag = "5")]
    pub commit_ts: u64,
    /// Number of forks that the version has seen.
    #[prost(uint64, tag = "6")]
    pub forks: u64,
    /// A JSON object; `None` for a deleted key.
    #[prost(bytes = "bytes", optional, tag = "7")]
    pub value: Option<Bytes>,
}

/// The answer to a commit that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateCommitted {
    /// Its place in the order of commits.
    pub commit_ts: u64,
    /// The versions that its operations got, in their order.
    pub versions: Vec<u64>,
}

/// Why nothing was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateRefusal {
    /// A key has another version than expected.
    VersionMismatch {
        /// The key.
        key: StateKey,
        /// The version that was expected.
        expected: u64,
        /// The version that it has; 0 if the key never existed.
        actual: u64,
    },
    /// No numbers are left for commits, or for versions of a key.
    Exhausted,
}

/// The answer to a step of an import that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateImported {
    /// The store's newest commit after the import; 0 before the last step.
    pub commit_ts: u64,
}

/// Why a step of an import was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateImportRefusal {
    /// The store has had commits; this is the newest.
    NotEmpty(u64),
    /// Another import has begun since.
    Superseded,
    /// The step is not valid, for this reason.
    Invalid(String),
}
