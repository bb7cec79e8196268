//! Readers of the state store: keys as of now or earlier, commits, the whole state as of one moment.
//!
//! Every operation blocks while the database reads from the disk.

mod commits;
mod digest;
mod view;

use std::cell::Cell;

use rust_rocksdb::{ErrorKind, ReadOptions, ReadTier};

use super::names::agent_names;
use super::record::CommitRecord;
use super::{Published, StateEntry, StateKey, StateMeta};
use crate::ids::StreamId;
use crate::keys;
use crate::store::{Applied, PartitionDb, StoreError};
use commits::Commits;

pub(crate) use commits::commits;
pub use digest::{StateDigest, StateDigester};
pub use view::StateView;

/// Why something of the state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StateReadError {
    /// It is before the history that is kept.
    #[error("history begins at commit_ts {commit_ts}")]
    HistoryBegins {
        /// The first commit that is kept, or as of which states are known.
        commit_ts: u64,
        /// The first version of the key that is kept.
        version: Option<u64>,
    },
    /// The database could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The moment as of which a key is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Now.
    Latest,
    /// The version with this number.
    Version(u64),
    /// The state after this commit.
    Commit(u64),
}

/// Reads the state store of a partition. Cheap to clone.
#[derive(Clone)]
pub struct StateReader {
    part: PartitionDb,
    published: Published,
}

impl StateReader {
    pub(crate) fn new(part: PartitionDb, published: Published) -> StateReader {
        StateReader { part, published }
    }

    /// The store's metadata.
    pub fn meta(&self) -> StateMeta {
        self.published.get()
    }

    /// Number of commits applied since the partition was opened. Right after that, these are the replayed
    /// ones.
    pub fn commits_applied(&self) -> u64 {
        self.published.commits()
    }

    /// A receiver of the newest commit, and of each one that follows.
    pub fn newest(&self) -> tokio::sync::watch::Receiver<u64> {
        self.published.newest()
    }

    /// The partition's part of the database.
    pub fn partition_db(&self) -> &PartitionDb {
        &self.part
    }

    /// The present entry of a key.
    pub fn get(&self, key: &StateKey) -> Result<Option<StateEntry>, StoreError> {
        let names = key.encode();
        let mut generation = self.published.get().generation;
        loop {
            let key = keys::state_key(generation, &names);
            let found = self.part.get(key, "a key of the state")?;
            // The write of an import that puts another generation in force also removes this one, and it
            // is published only after that. So if the key is absent, the database has to be asked for the
            // generation.
            let now = match found {
                Some(_) => generation,
                None => self.part.state_meta()?.unwrap_or_default().generation,
            };
            if now == generation {
                return Ok(found);
            }
            generation = now;
        }
    }

    /// The same, without a read of a file; `None` if one would be necessary.
    pub fn get_cached(&self, key: &StateKey) -> Result<Option<Option<StateEntry>>, StoreError> {
        let generation = self.published.get().generation;
        let key = keys::state_key(generation, &key.encode());
        let found = self.value_cached(&key, "a key of the state")?;
        if !matches!(found, Some(None)) {
            return Ok(found);
        }
        // As in `get`.
        let meta =
            self.value_cached::<StateMeta>(&keys::STATE_META, "where the state store stands")?;
        let is_absent = meta.is_some_and(|m| m.unwrap_or_default().generation == generation);
        Ok(is_absent.then_some(None))
    }

    fn value_cached<M: prost::Message + Default>(
        &self,
        key: &[u8],
        what: &str,
    ) -> Result<Option<Option<M>>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::BlockCache);
        let db = self.part.store().db();
        match db.get_pinned_cf_opt(&self.part.cf(), key, &options) {
            Ok(None) => Ok(Some(None)),
            Ok(Some(value)) => M::decode(&value[..])
                .map(|value| Some(Some(value)))
                .map_err(|e| self.part.malformed(what, &e)),
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(None),
            Err(error) => Err(self.part.error(what, error)),
        }
    }

    /// Calls `look` with the state as of one moment. Writes continue; what they delete stays on the disk
    /// meanwhile.
    pub fn view<T>(
        &self,
        look: impl FnOnce(&StateView<'_>) -> Result<T, StateReadError>,
    ) -> Result<T, StateReadError> {
        let part = self.part.pinned();
        let snapshot = part.store().db().snapshot();
        let mut view = StateView {
            part: &part,
            snapshot: &snapshot,
            meta: StateMeta::default(),
            applied: Applied::default(),
            rows: Cell::new(0),
        };
        view.applied = view.value(&keys::APPLIED)?.unwrap_or_default();
        view.meta = view.value(&keys::STATE_META)?.unwrap_or_default();
        look(&view)
    }

    /// Commits after `from` and up to `to`, those of one agent if one is given: at most `most`, and no
    /// more once `most_bytes` are read. Returns them and the `commit_ts` up to which they go.
    ///
    /// # Errors
    ///
    /// [`StateReadError::HistoryBegins`] if the first of them is not kept.
    pub fn commits(
        &self,
        agent: Option<(&str, &str)>,
        from: u64,
        to: u64,
        most: usize,
        most_bytes: usize,
    ) -> Result<(Vec<CommitRecord>, u64), StateReadError> {
        let meta = self.published.get();
        let begins = meta.history_begins();
        if from + 1 < begins {
            return Err(StateReadError::HistoryBegins {
                commit_ts: begins,
                version: None,
            });
        }
        let to = to.min(meta.commit_ts);
        if to <= from || meta.stream == 0 {
            return Ok((Vec::new(), from.max(to)));
        }
        let stream = StreamId(meta.stream);
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut enough = |found: &mut Vec<CommitRecord>, commit: CommitRecord, size: usize| {
            bytes += size;
            found.push(commit);
            found.len() >= most || bytes >= most_bytes
        };
        match agent {
            None => {
                Commits::new(&self.part, stream, from, to).scan(from, to, &mut |commit, size| {
                    enough(&mut found, commit, size)
                })?
            }
            Some((namespace, agent_id)) => {
                let names = agent_names(namespace, agent_id);
                let first = keys::state_agent(&names, from + 1);
                let end = keys::state_agent(&names, to.saturating_add(1));
                let mut commits = Commits::new(&self.part, stream, from, to);
                let mut it = self.part.iterate(&first, &end, true);
                it.seek_to_first();
                while let Some(key) = it.key() {
                    let ts = keys::last_number(key).unwrap_or_default();
                    let mut ended = false;
                    commits.scan(ts - 1, ts, &mut |mut commit, size| {
                        let of_agent =
                            |key: &StateKey| key.namespace == namespace && key.agent_id == agent_id;
                        commit.operations.retain(|o| of_agent(&o.key));
                        ended = enough(&mut found, commit, size);
                        ended
                    })?;
                    if ended {
                        break;
                    }
                    it.next();
                }
                it.status()
                    .map_err(|e| self.part.error("reading commits of an agent", e))?;
            }
        }
        // The history may have been cut during the read, by a write that is published only later.
        let meta = self.part.state_meta()?.unwrap_or_default();
        let begins = meta.history_begins();
        if from + 1 < begins {
            return Err(StateReadError::HistoryBegins {
                commit_ts: begins,
                version: None,
            });
        }
        let full = found.len() >= most || bytes >= most_bytes;
        let up_to = match found.last() {
            Some(last) if full => last.commit_ts,
            _ => to,
        };
        Ok((found, up_to))
    }

    /// The first commit after `from` that arrived at or after `at_ms`; if none did, the number after the
    /// last one that was read. Reads at most `most` commits, and none after `to`. Commits arrive in
    /// order.
    pub fn first_arrived(
        &self,
        from: u64,
        to: u64,
        at_ms: u64,
        most: usize,
    ) -> Result<u64, StoreError> {
        let meta = self.published.get();
        let mut ts = from + 1;
        let mut looked = 0;
        if meta.stream == 0 {
            return Ok(ts);
        }
        let to = to.min(meta.commit_ts);
        if to <= from {
            return Ok(ts);
        }
        let mut commits = Commits::new(&self.part, StreamId(meta.stream), from, to);
        commits.scan(from, to, &mut |commit, _| {
            ts = commit.commit_ts;
            looked += 1;
            if commit.at_ms >= at_ms {
                return true;
            }
            ts += 1;
            looked >= most
        })?;
        Ok(ts)
    }
}
