//! What travels through the log for the state store, and what it answers.

use bytes::Bytes;

use super::names::StateKey;

/// See [`Kind::StateCommit`](crate::command::Kind::StateCommit).
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateCommit {
    /// The transaction.
    #[prost(string, tag = "1")]
    pub txn_id: String,
    /// What it does, in this order.
    #[prost(message, repeated, tag = "2")]
    pub operations: Vec<StagedOperation>,
    /// Versions that keys must have for anything to happen.
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
    /// On which key.
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
    /// Of which key.
    pub fn key(&self) -> StateKey {
        StateKey::new(&*self.namespace, &*self.agent_id, &*self.key)
    }
}

/// See [`Kind::StatePrune`](crate::command::Kind::StatePrune). What it asks for is done as far as it is
/// allowed; a bounded number of commits is looked at.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StatePrune {
    /// Of keys that were changed by commits up to this one, surplus versions go.
    #[prost(uint64, tag = "1")]
    pub versions_to: u64,
    /// How many versions of a key stay, the present one included; 0 for all.
    #[prost(uint64, tag = "2")]
    pub keep_versions: u64,
    /// Commits below this one go; 0 for none.
    #[prost(uint64, tag = "3")]
    pub history_below: u64,
    /// Now, in milliseconds since the epoch.
    #[prost(uint64, tag = "4")]
    pub at_ms: u64,
}

/// Commits that one [`StatePrune`] looks at, for either purpose: what keeps the apply thread for a few
/// milliseconds.
pub const PRUNE_COMMITS: u64 = 256;
/// Bytes of them, for the same reason; one commit may have a MiB.
pub const PRUNE_BYTES: usize = 2 * 1024 * 1024;

/// See [`Kind::StateImport`](crate::command::Kind::StateImport).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StateImport {
    /// Which import; a number drawn at random.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Which step of it.
    #[prost(oneof = "ImportStep", tags = "2, 3, 4, 6")]
    pub step: Option<ImportStep>,
    /// Now, in milliseconds since the epoch.
    #[prost(uint64, tag = "5")]
    pub at_ms: u64,
}

/// The steps of an import. Nothing is visible before the last one.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum ImportStep {
    /// The first.
    #[prost(message, tag = "2")]
    Begin(ImportBegin),
    /// Some entries.
    #[prost(message, tag = "3")]
    Entries(ImportEntries),
    /// What was imported takes the place of what there was.
    #[prost(message, tag = "4")]
    Finish(ImportFinish),
    /// The import has ended without the last one: what it wrote goes.
    #[prost(message, tag = "6")]
    Abort(ImportAbort),
}

/// See [`ImportStep::Abort`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ImportAbort {}

/// Largest version and `commit_ts` that the store gives out, and that an import may bring: whatever a store
/// has, another one can take over. Forks and imports take 2^40 each, so four million of them fit.
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
    /// The commit that gave it.
    #[prost(uint64, tag = "5")]
    pub commit_ts: u64,
    /// Forks that the version has seen.
    #[prost(uint64, tag = "6")]
    pub forks: u64,
    /// A JSON object; `None` for a deleted key.
    #[prost(bytes = "bytes", optional, tag = "7")]
    pub value: Option<Bytes>,
}

/// A commit that happened.
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
        /// The one that it has; 0 if it never was.
        actual: u64,
    },
    /// There are no numbers left for commits, or for versions of a key.
    Exhausted,
}

/// A step of an import that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateImported {
    /// The commit that the imported state is as of; 0 before the last step.
    pub commit_ts: u64,
}

/// Why a step of an import was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateImportRefusal {
    /// The store has had commits; this is the newest.
    NotEmpty(u64),
    /// Another import has begun since.
    Superseded,
    /// The step makes no sense.
    Invalid(String),
}
