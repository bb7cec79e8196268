//! The state store as of one moment.

use std::cell::Cell;

use prost::Message as _;
use rust_rocksdb::{ReadOptions, SnapshotWithThreadMode};

use super::{At, StateDigest, StateDigester, StateReadError};
use crate::ids::StreamId;
use crate::keys;
use crate::lineage::GAP;
use crate::state::names::{after, agent_names, prefix_names};
use crate::state::{StateEntry, StateKey, StateMeta};
use crate::store::{Applied, Db, PartitionDb, RawIterator, StoreError};
use crate::stream::StreamState;

/// The state store as of one moment.
pub struct StateView<'a> {
    pub(super) part: &'a PartitionDb,
    pub(super) snapshot: &'a SnapshotWithThreadMode<'a, Db>,
    /// The store's metadata.
    pub meta: StateMeta,
    /// The applied position of the partition.
    pub applied: Applied,
    /// Rows that were read.
    pub(super) rows: Cell<u64>,
}

impl StateView<'_> {
    /// Rows that were read of the database so far, those that hold nothing of the answer included: what a read costs.
    pub fn rows_read(&self) -> u64 {
        self.rows.get()
    }

    fn count_row(&self) {
        self.rows.set(self.rows.get() + 1);
    }

    pub(super) fn value<M: prost::Message + Default>(
        &self,
        key: &[u8],
    ) -> Result<Option<M>, StoreError> {
        self.count_row();
        let value = self
            .snapshot
            .get_pinned_cf(&self.part.cf(), key)
            .map_err(|e| self.part.error("reading the state", e))?;
        value
            .map(|bytes| M::decode(&bytes[..]).map_err(|e| self.part.malformed("the state", &e)))
            .transpose()
    }

    fn iterate(&self, from: &[u8], to: &[u8], cache: bool) -> RawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        options.fill_cache(cache);
        self.snapshot.raw_iterator_cf_opt(&self.part.cf(), options)
    }

    /// Number of forks that the newest commit has seen, without those after which nothing was committed.
    pub fn commit_forks(&self) -> Result<u64, StoreError> {
        let key = keys::stream_state(StreamId(self.meta.stream));
        let stream = self.value::<StreamState>(&key)?.unwrap_or_default();
        let (tail, commit_ts) = (stream.tail_seq, self.meta.commit_ts);
        if tail >= commit_ts {
            let since = (tail - commit_ts) / GAP;
            return Ok(stream.forks.saturating_sub(since));
        }
        // A rebuild puts the store in force as of the tail after all forks, but the stream's state is
        // written only with the next append.
        Ok(stream.forks + (commit_ts - tail) / GAP)
    }

    /// The entry of a key at a moment; `None` if it had none.
    ///
    /// # Errors
    ///
    /// [`StateReadError::HistoryBegins`] if the entry, or the state of that moment, is no longer kept.
    pub fn get(&self, key: &StateKey, at: At) -> Result<Option<StateEntry>, StateReadError> {
        let names = key.encode();
        self.known_at(at)?;
        let present = self.value(&keys::state_key(self.meta.generation, &names))?;
        self.entry_at(&names, present, at)
    }

    /// Checks that states of that moment are known.
    fn known_at(&self, at: At) -> Result<(), StateReadError> {
        let begins = self.meta.history_begins();
        match at {
            At::Commit(ts) if ts + 1 < begins => Err(StateReadError::HistoryBegins {
                commit_ts: begins - 1,
                version: None,
            }),
            _ => Ok(()),
        }
    }

    fn entry_at(
        &self,
        names: &[u8],
        present: Option<StateEntry>,
        at: At,
    ) -> Result<Option<StateEntry>, StateReadError> {
        let Some(present) = present else {
            // The key was never written: deleted keys have an entry.
            return Ok(None);
        };
        match at {
            At::Latest => Ok(Some(present)),
            At::Version(version) if version == present.version => Ok(Some(present)),
            At::Version(version) if version > present.version || version == 0 => Ok(None),
            At::Version(version) => {
                let key = keys::state_history(self.meta.generation, names, version);
                match self.value(&key)? {
                    Some(entry) => Ok(Some(entry)),
                    None => self.missing(names, &present, |oldest| version < oldest.version),
                }
            }
            At::Commit(ts) if ts >= present.commit_ts => Ok(Some(present)),
            At::Commit(ts) => match self.newest_up_to(names, &present, ts)? {
                Some(entry) => Ok(Some(entry)),
                None => self.missing(names, &present, |_| true),
            },
        }
    }

    /// The answer if no entry was found: `None` if there never was one, an error if it is no longer kept.
    fn missing(
        &self,
        names: &[u8],
        present: &StateEntry,
        is_before: impl Fn(&StateEntry) -> bool,
    ) -> Result<Option<StateEntry>, StateReadError> {
        let oldest = self.oldest(names)?.unwrap_or_else(|| present.clone());
        if oldest.first || !is_before(&oldest) {
            return Ok(None);
        }
        Err(StateReadError::HistoryBegins {
            commit_ts: oldest.commit_ts,
            version: Some(oldest.version),
        })
    }

    fn oldest(&self, names: &[u8]) -> Result<Option<StateEntry>, StoreError> {
        let from = keys::state_history(self.meta.generation, names, 0);
        self.first_from(names, &from)
    }

    fn first_from(&self, names: &[u8], from: &[u8]) -> Result<Option<StateEntry>, StoreError> {
        let to = keys::state_history(self.meta.generation, names, u64::MAX);
        self.count_row();
        let mut it = self.iterate(from, &to, true);
        it.seek_to_first();
        let found = it.value().map(StateEntry::decode).transpose();
        it.status()
            .map_err(|e| self.part.error("reading versions of a key", e))?;
        found.map_err(|e| self.part.malformed("a version of a key", &e))
    }

    /// The newest of a key's earlier entries that a commit up to `ts` wrote. Versions increase with
    /// commits, so this is a binary search.
    fn newest_up_to(
        &self,
        names: &[u8],
        present: &StateEntry,
        ts: u64,
    ) -> Result<Option<StateEntry>, StoreError> {
        let mut best: Option<StateEntry> = None;
        // Versions below `low` were written up to `ts`, and those from `high` on later.
        let (mut low, mut high) = (0, present.version);
        while low < high {
            let middle = low + (high - low) / 2;
            let from = keys::state_history(self.meta.generation, names, middle);
            match self.first_from(names, &from)? {
                Some(entry) if entry.version >= high => high = middle,
                Some(entry) if entry.commit_ts <= ts => {
                    low = entry.version + 1;
                    best = Some(entry);
                }
                // The entry is later than `ts`, or the present one is the first.
                _ => high = middle,
            }
        }
        Ok(best)
    }

    /// Passes an agent's keys that begin with `prefix` to `take`, in order, deleted ones included, until
    /// it returns true; with no entry those that had none at that moment.
    pub fn scan(
        &self,
        namespace: &str,
        agent_id: &str,
        prefix: &str,
        start_after: Option<&str>,
        at: At,
        take: &mut dyn FnMut(String, Option<StateEntry>) -> bool,
    ) -> Result<(), StateReadError> {
        self.known_at(at)?;
        let begin = prefix_names(namespace, agent_id, prefix);
        let end = keys::state_key(self.meta.generation, &after(&begin));
        let from = match start_after {
            None => keys::state_key(self.meta.generation, &begin),
            Some(last) => {
                let last = StateKey::new(namespace, agent_id, last).encode();
                let mut from = keys::state_key(self.meta.generation, last.as_slice().max(&begin));
                if last >= begin {
                    // Just after it.
                    from.push(0);
                }
                from
            }
        };
        let mut it = self.iterate(&from, &end, true);
        it.seek_to_first();
        while let Some((key, present)) = self.entry_of(&it)? {
            let entry = match at {
                At::Latest => Some(present),
                at => self.entry_at(&key.encode(), Some(present), at)?,
            };
            if take(key.key, entry) {
                break;
            }
            it.next();
        }
        it.status()
            .map_err(|e| self.part.error("reading keys", e))?;
        Ok(())
    }

    /// Passes the agents after `start_after` that have keys, deleted ones included, to `take`, in order, until it
    /// returns true. It reads one key of each.
    pub fn agents(
        &self,
        start_after: Option<(&str, &str)>,
        take: &mut dyn FnMut(String, String) -> bool,
    ) -> Result<(), StoreError> {
        let generation = self.meta.generation;
        let beyond = |namespace: &str, agent: &str| {
            keys::state_key(generation, &after(&agent_names(namespace, agent)))
        };
        let [(begin, end), _] = keys::state_generation(generation);
        let from = start_after.map_or(begin, |(namespace, agent)| beyond(namespace, agent));
        let mut it = self.iterate(&from, &end, true);
        it.seek_to_first();
        while let Some((key, _)) = self.entry_of(&it)? {
            let next = beyond(&key.namespace, &key.agent_id);
            if take(key.namespace, key.agent_id) {
                break;
            }
            it.seek(next);
        }
        it.status()
            .map_err(|e| self.part.error("reading agents", e))?;
        Ok(())
    }

    /// Passes every key to `take`, in order, deleted ones included, until it fails.
    pub fn entries<E: From<StoreError>>(
        &self,
        take: &mut dyn FnMut(StateKey, StateEntry) -> Result<(), E>,
    ) -> Result<(), E> {
        let [(from, to), _] = keys::state_generation(self.meta.generation);
        let mut it = self.iterate(&from, &to, false);
        it.seek_to_first();
        while let Some((key, entry)) = self.entry_of(&it)? {
            take(key, entry)?;
            it.next();
        }
        it.status()
            .map_err(|e| self.part.error("reading keys", e))?;
        Ok(())
    }

    /// Computes the digest of the state.
    pub fn digest(&self) -> Result<StateDigest, StoreError> {
        let mut digester = StateDigester::default();
        self.entries(&mut |key, entry| {
            digester.add(&key, entry.version, entry.commit_ts, entry.value.as_deref());
            Ok::<_, StoreError>(())
        })?;
        Ok(digester.finish())
    }

    fn entry_of(&self, it: &RawIterator<'_>) -> Result<Option<(StateKey, StateEntry)>, StoreError> {
        let (Some(key), Some(value)) = (it.key(), it.value()) else {
            return Ok(None);
        };
        self.count_row();
        let names = keys::state_names(key).and_then(StateKey::decode);
        let names = names.ok_or_else(|| self.part.malformed("a key of the state", &"its names"))?;
        let entry =
            StateEntry::decode(value).map_err(|e| self.part.malformed("a key of the state", &e))?;
        Ok(Some((names, entry)))
    }
}
