//! The state store: keys with versions, and the commits that made them.
//!
//! | module | what it holds |
//! |---|---|
//! | [`names`] | namespace, agent and key: their encoding and its order |
//! | [`command`] | commands of the store, and the answers to them |
//! | [`history`] | removal of earlier versions of keys |
//! | [`record`] | a commit as a record of the reserved stream |
//! | [`read`] | reading keys, as of now or earlier, and commits |
//! | [`rebuild`] | rebuilding the store without the log |
//! | [`digest`](read::StateView::digest) | a checksum of a state |
//!
//! The store is in the partition of its stream, `esker-state/default`. A commit is one command: it gives
//! each operation the key's next version, moves what it replaces to the history of the key, and appends
//! one record to the stream, all in the write of its step. The record at sequence number n has
//! `commit_ts` n + 1.
//!
//! Versions and numbers of commits are never given out twice: a deleted key has an entry with its
//! version, and numbers that a stale lineage may have given out are skipped, see [`crate::lineage`]. A
//! key that was never written has seen no fork.
//!
//! Entries belong to a *generation*. An import writes the entries of the next one while the present one
//! is read, and then makes it the present one in one write.

pub(crate) mod apply;
pub mod command;
mod history;
mod lowest_versions;
pub mod names;
pub mod read;
pub mod rebuild;
pub mod record;
pub(crate) mod step;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

pub use names::{MAX_NAME_BYTES, StateKey};
pub use read::{StateReader, StateView};
pub use record::{CommitRecord, CommittedOperation, MAX_RECORD_BYTES};

pub(crate) use lowest_versions::Forgotten;
use lowest_versions::LowestVersions;

use crate::ids::{PartitionId, STATE_BASIN_ID, partition_of};
use crate::keys;
use crate::lineage::GAP;
use crate::settings::StreamSettings;
use crate::store::{PartitionDb, StoreError};

/// The store's stream, in the basin [`STATE_BASIN`](crate::ids::STATE_BASIN).
pub const STATE_STREAM: &str = "default";

/// The partition of the state store.
pub fn state_partition(partitions: u32) -> PartitionId {
    partition_of(STATE_BASIN_ID, STATE_STREAM, partitions)
}

/// Settings of the store's stream: records are kept until history is cut, and their timestamp is that of
/// their arrival.
pub(crate) fn stream_settings() -> StreamSettings {
    StreamSettings {
        storage_class: None,
        retention_age_secs: Some(0),
        timestamping_mode: Some(2),
        timestamping_uncapped: Some(false),
        delete_on_empty_secs: Some(0),
    }
}

/// The store's metadata. It is written with each step that changes it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StateMeta {
    /// Its stream; 0 before the first commit.
    #[prost(uint64, tag = "1")]
    pub stream: u64,
    /// The generation whose entries are in force.
    #[prost(uint32, tag = "2")]
    pub generation: u32,
    /// The newest commit; 0 if there was none.
    #[prost(uint64, tag = "3")]
    pub commit_ts: u64,
    /// Commits up to this one are removed.
    #[prost(uint64, tag = "4")]
    pub history_cut: u64,
    /// Surplus versions of keys that commits up to this one changed are removed.
    #[prost(uint64, tag = "5")]
    pub versions_cut: u64,
    /// How often an import replaced the state: each time counts as a fork.
    #[prost(uint64, tag = "6")]
    pub replaced: u64,
    /// The commit as of which a state was imported: earlier states are not known.
    #[prost(uint64, tag = "7")]
    pub imported_at: u64,
    /// An import that has begun.
    #[prost(message, optional, tag = "8")]
    pub importing: Option<Importing>,
    /// Number of keys, deleted ones included.
    #[prost(uint64, tag = "9")]
    pub keys: u64,
    /// What versions exceed that are given out since the last import that replaced the state.
    #[prost(message, optional, tag = "10")]
    pub floor: Option<VersionFloor>,
}

/// No version up to this one is given out again, for any key: a state that an import has replaced may have given it
/// out, for a key of which the import has another entry, or none.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct VersionFloor {
    /// The largest version that may have been given out.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// Number of forks that it has seen, as of [`StateEntry::forks`].
    #[prost(uint64, tag = "2")]
    pub forks: u64,
}

impl VersionFloor {
    /// The same after this many forks: what was given out by a lineage that is stale by now is unknown, and below
    /// the gap of its fork. `None` if no number is left.
    pub(crate) fn after(self, forks: u64) -> Option<u64> {
        let missed = forks.saturating_sub(self.forks);
        self.version.checked_add(missed.checked_mul(GAP)?)
    }
}

/// An import that has begun.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Importing {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The generation that it writes.
    #[prost(uint32, tag = "2")]
    pub generation: u32,
    /// Number of entries that it has written.
    #[prost(uint64, tag = "3")]
    pub keys: u64,
    /// Whether a store that has had commits is replaced.
    #[prost(bool, tag = "4")]
    pub replace: bool,
}

/// Records that an import replaced the state. It is written with the import, and kept apart from
/// [`StateMeta`], so that it shows which commits lead to the present state even if that is lost.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Replaced {
    /// [`StateMeta::imported_at`].
    #[prost(uint64, tag = "1")]
    pub imported_at: u64,
    /// [`StateMeta::replaced`].
    #[prost(uint64, tag = "2")]
    pub times: u64,
    /// [`StateMeta::floor`].
    #[prost(message, optional, tag = "3")]
    pub floor: Option<VersionFloor>,
}

impl StateMeta {
    /// The first commit that can be replayed.
    pub fn history_begins(&self) -> u64 {
        self.history_cut.max(self.imported_at) + 1
    }
}

/// An entry of a key: the present one, or an earlier one.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StateEntry {
    /// Its version.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// The commit that wrote it.
    #[prost(uint64, tag = "2")]
    pub commit_ts: u64,
    /// Number of forks that the version has seen.
    #[prost(uint64, tag = "3")]
    pub forks: u64,
    /// A JSON object; `None` for a deleted key.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub value: Option<Bytes>,
    /// Whether the key had no entry before, not even that of a deletion.
    #[prost(bool, tag = "5")]
    pub first: bool,
}

impl StateEntry {
    /// The version after `entry`'s, or of a new key, when there have been `forks` forks; above the floor. `None`
    /// if no number is left.
    pub(crate) fn next_version(
        entry: Option<&StateEntry>,
        forks: u64,
        floor: Option<VersionFloor>,
    ) -> Option<u64> {
        let (version, seen) = entry.map_or((0, 0), |entry| (entry.version, entry.forks));
        let missed = forks.saturating_sub(seen);
        let last = version.checked_add(missed.checked_mul(GAP)?)?;
        let floor = floor.map_or(Some(0), |floor| floor.after(forks))?;
        last.max(floor).checked_add(1)
    }
}

/// The store's metadata, as readers see it; the apply thread sets it after each write.
#[derive(Clone)]
pub(crate) struct Published {
    meta: Arc<RwLock<StateMeta>>,
    /// The newest commit.
    newest: watch::Sender<u64>,
    /// Commits that were applied since it was opened.
    commits: Arc<AtomicU64>,
    /// For the apply thread alone.
    lowest: Arc<Mutex<LowestVersions>>,
}

impl Published {
    pub fn open(part: &PartitionDb) -> Result<Published, StoreError> {
        let meta = part.state_meta()?.unwrap_or_default();
        Ok(Published {
            newest: watch::Sender::new(meta.commit_ts),
            commits: Arc::default(),
            meta: Arc::new(RwLock::new(meta)),
            lowest: Arc::default(),
        })
    }

    pub fn get(&self) -> StateMeta {
        self.meta.read().clone()
    }

    /// Publishes the metadata after a step, and the number of the step's commits.
    pub fn set(&self, meta: StateMeta, commits: u64) {
        let newest = meta.commit_ts;
        self.commits.fetch_add(commits, Ordering::Relaxed);
        *self.meta.write() = meta;
        self.newest.send_replace(newest);
    }

    /// Publishes the metadata of a state that has replaced the one before.
    pub fn replace(&self, meta: StateMeta) {
        *self.lowest.lock() = LowestVersions::default();
        self.set(meta, 0);
    }

    /// Remembers which versions a step has deleted, once it is written.
    pub fn forgotten(&self, forgotten: Forgotten) {
        self.lowest.lock().remember(forgotten);
    }

    /// The version below which a key has no earlier entries; 0 if that is not known.
    pub fn lowest_version(&self, generation: u32, names: &[u8]) -> u64 {
        self.lowest.lock().get(generation, names)
    }

    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

impl PartitionDb {
    /// The state store's metadata; `None` if this partition never had a store.
    pub fn state_meta(&self) -> Result<Option<StateMeta>, StoreError> {
        self.get::<StateMeta>(keys::STATE_META, "where the state store stands")
    }
}
