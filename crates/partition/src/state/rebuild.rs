//! Rebuilding the state store without the log, before its partition is opened.
//!
//! A JSON snapshot and the commits after it result in the entries that were lost, except for versions
//! that were replaced before the snapshot. A crash leaves the store as it was, and entries of a
//! generation that is not in force.

use prost::Message as _;

use super::names::agent_names;
use super::{Replaced, STATE_STREAM, StateEntry, StateKey, StateMeta, read, stream_settings};
use crate::ids::{STATE_BASIN_ID, StreamId};
use crate::keys;
use crate::lineage::GAP;
use crate::store::{Applied, PartitionBatch, PartitionDb, StoreError};
use crate::stream::{Imports, MAX_GAPS, StreamMeta, StreamState};
use crate::streams::counters::Counters;
use crate::streams::name_index::{NameEntry, name_entry};

/// Bytes that are written in one batch.
const BATCH: usize = 4 * 1024 * 1024;
/// Most commits that are read at a time, and most bytes of them.
const COMMITS: (usize, usize) = (256, 4 * 1024 * 1024);

/// The commits that a store's stream still has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLeft {
    /// Commits up to this one are not in it, or led to a state that an import has replaced.
    pub from: u64,
    /// The newest commit in it.
    pub to: u64,
}

impl PartitionDb {
    /// The problem of the state store, if it has one that prevents its use.
    pub fn state_problem(&self) -> Result<Option<String>, StoreError> {
        let meta = match self.state_meta() {
            Ok(meta) => meta,
            Err(StoreError::Malformed { what, why, .. }) => {
                return Ok(Some(format!("{what}: {why}")));
            }
            Err(error) => return Err(error),
        };
        let stream = name_entry(self, STATE_BASIN_ID, STATE_STREAM)?;
        let meta = match (meta, stream) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Ok(Some("where it stands is missing".to_owned())),
            (Some(meta), _) if meta.stream == 0 => return Ok(None),
            (Some(meta), _) => meta,
        };
        let Some(state) = self.stream_state(StreamId(meta.stream))? else {
            return Ok(Some("its stream is missing".to_owned()));
        };
        if state.tail_seq < meta.commit_ts {
            return Ok(Some(format!(
                "it is at commit_ts {}, and its stream ends at {}",
                meta.commit_ts, state.tail_seq
            )));
        }
        let [(from, to), _] = keys::state_generation(meta.generation);
        let mut it = self.iterate(&from, &to, false);
        it.seek_to_first();
        if meta.keys > 0 && it.key().is_none() {
            it.status()
                .map_err(|e| self.error("reading keys of the state", e))?;
            return Ok(Some(format!("its {} keys are missing", meta.keys)));
        }
        Ok(None)
    }

    /// The commits that the store's stream still has, if the stream exists.
    pub fn state_stream_left(&self) -> Result<Option<StreamLeft>, StoreError> {
        let Some(NameEntry { id, .. }) = name_entry(self, STATE_BASIN_ID, STATE_STREAM)? else {
            return Ok(None);
        };
        let Some(state) = self.stream_state(id)? else {
            return Ok(None);
        };
        Ok(Some(StreamLeft {
            from: state.head().max(self.state_replaced()?.imported_at),
            to: state.tail_seq,
        }))
    }

    /// The imports that replaced the state; `None` if they are not known any more.
    pub(crate) fn state_imports(&self) -> Result<Option<Imports>, StoreError> {
        let is_known = match self.state_meta() {
            Ok(meta) => meta.is_some(),
            Err(StoreError::Malformed { .. }) => false,
            Err(error) => return Err(error),
        };
        let replaced = self.state_replaced()?;
        let imports = Imports {
            count: replaced.times,
            last_end: replaced.imported_at,
        };
        Ok((is_known || imports.count > 0).then_some(imports))
    }

    /// The last import that replaced the state, known even if [`StateMeta`] is lost.
    fn state_replaced(&self) -> Result<Replaced, StoreError> {
        let row = self.get::<Replaced>(keys::STATE_REPLACED, "the last import")?;
        let row = row.unwrap_or_default();
        // Earlier builds wrote it only to [`StateMeta`].
        let meta = self.state_meta().ok().flatten().unwrap_or_default();
        Ok(Replaced {
            imported_at: row.imported_at.max(meta.imported_at),
            times: row.times.max(meta.replaced),
            // Both are written by the same import.
            floor: row.floor.or(meta.floor),
        })
    }

    /// The newest generation that has entries; 0 if none has. The search visits each generation in turn,
    /// of which there are few: a search for the last key of all would read a block of each run.
    fn newest_generation(&self) -> Result<u32, StoreError> {
        let mut newest = 0;
        for (kind, (from, to)) in keys::all_state_entries().into_iter().enumerate() {
            let mut it = self.iterate(&from, &to, false);
            it.seek_to_first();
            while let Some(generation) = it.key().and_then(keys::generation_of) {
                newest = newest.max(generation);
                it.seek(&keys::state_generation(generation)[kind].1);
            }
            it.status()
                .map_err(|e| self.error("reading keys of the state", e))?;
        }
        Ok(newest)
    }

    /// Begins to rebuild the store.
    pub fn rebuild_state(&self) -> Result<StateRebuild, StoreError> {
        let newest = self.newest_generation()?;
        let known = self.state_meta().ok().flatten().unwrap_or_default();
        let replaced = self.state_replaced()?;
        Ok(StateRebuild {
            batch: self.batch(),
            part: self.clone(),
            bytes: 0,
            meta: StateMeta {
                generation: newest.max(known.generation).saturating_add(1),
                replaced: replaced.times,
                imported_at: replaced.imported_at,
                floor: replaced.floor,
                ..StateMeta::default()
            },
            commit_forks: None,
        })
    }
}

/// A rebuild of the store, under way.
pub struct StateRebuild {
    part: PartitionDb,
    batch: PartitionBatch,
    bytes: usize,
    meta: StateMeta,
    /// See [`StateRebuild::commit_forks`].
    commit_forks: Option<u64>,
}

impl StateRebuild {
    /// Sets how many forks the commit of the snapshot had seen. `None` if an earlier build wrote the
    /// snapshot: then it is computed from what the stream of commits remembers or, without a stream, from
    /// the number of the commit.
    pub fn commit_forks(&mut self, forks: Option<u64>) {
        self.commit_forks = forks;
    }

    fn put(&mut self, key: Vec<u8>, value: &[u8]) -> Result<(), StoreError> {
        self.bytes += key.len() + value.len();
        self.batch.put(key, value);
        match self.bytes > BATCH {
            true => self.write(),
            false => Ok(()),
        }
    }

    fn write(&mut self) -> Result<(), StoreError> {
        self.bytes = 0;
        std::mem::replace(&mut self.batch, self.part.batch()).write()
    }

    /// Adds an entry of the snapshot.
    pub fn entry(&mut self, key: &StateKey, entry: &StateEntry) -> Result<(), StoreError> {
        let forks = self.part.forks()?;
        // Beyond the partition's forks, the entry has seen imports that replaced the state.
        self.meta.replaced = self.meta.replaced.max(entry.forks.saturating_sub(forks));
        self.meta.keys += 1;
        let names = key.encode();
        self.put(
            keys::state_key(self.meta.generation, &names),
            &entry.encode_to_vec(),
        )
    }

    /// Folds the commits of the stream after `from` and up to `to`; returns their number.
    ///
    /// # Errors
    ///
    /// [`StoreError::Malformed`] if one of them is missing: only a fork may have passed over a number
    /// without a record.
    pub fn fold(&mut self, from: u64, to: u64) -> Result<u64, StoreError> {
        let Some(NameEntry { id: stream, .. }) =
            name_entry(&self.part, STATE_BASIN_ID, STATE_STREAM)?
        else {
            return Ok(0);
        };
        let mut forks = self.forks_seen_at(stream, from)?;
        let (mut at, mut folded) = (from, 0);
        loop {
            self.write()?;
            let (commits, _) = read::commits(&self.part, stream, at, to, COMMITS)?;
            if commits.is_empty() {
                self.forks_between(at, to)?;
                return Ok(folded);
            }
            folded += commits.len() as u64;
            for commit in commits {
                forks += self.forks_between(at, commit.commit_ts - 1)?;
                at = commit.commit_ts;
                for operation in commit.operations {
                    let names = operation.key.encode();
                    let key = keys::state_key(self.meta.generation, &names);
                    // The same key may have been changed in this batch.
                    self.write()?;
                    let before = self.part.get::<StateEntry>(&key, "a key of the state")?;
                    if let Some(before) = &before {
                        let key = keys::state_history(self.meta.generation, &names, before.version);
                        self.put(key, &before.encode_to_vec())?;
                    }
                    let entry = StateEntry {
                        version: operation.version,
                        commit_ts: commit.commit_ts,
                        forks: forks + self.meta.replaced,
                        value: operation.value,
                        first: before.is_none(),
                    };
                    self.meta.keys += u64::from(before.is_none());
                    self.put(key, &entry.encode_to_vec())?;
                    let (namespace, agent) = (&operation.key.namespace, &operation.key.agent_id);
                    let agent = agent_names(namespace, agent);
                    self.put(keys::state_agent(&agent, commit.commit_ts), &[])?;
                }
            }
        }
    }

    /// How many of the stream's forks the commit `at` had seen; less, if neither the stream nor the
    /// snapshot remembers: then later versions skip more numbers than necessary.
    ///
    /// A store that was rebuilt after a fork is at the end of that fork's gap, and the gap grows with the
    /// next fork if there was no commit in between. So `at` may be inside a gap: it has seen those of the
    /// gap's forks whose numbers are below it.
    fn forks_seen_at(&self, stream: StreamId, at: u64) -> Result<u64, StoreError> {
        let state = self.part.stream_state(stream)?.unwrap_or_default();
        // Earlier builds wrote numbers that are too low to some snapshots.
        let of_snapshot = self.commit_forks.unwrap_or(0).min(state.forks);
        if state.gaps.len() >= MAX_GAPS && state.gaps.iter().all(|gap| gap.from >= at) {
            return Ok(of_snapshot);
        }
        let since: u64 = state.gaps.iter().map(|gap| gap.forks_after(at)).sum();
        Ok(state.forks.saturating_sub(since).max(of_snapshot))
    }

    /// Number of forks between one commit and the next, `to + 1`, or the tail.
    fn forks_between(&self, from: u64, to: u64) -> Result<u64, StoreError> {
        let passed_over = to.saturating_sub(from);
        if !passed_over.is_multiple_of(GAP) {
            let why = format!("those after {from} and up to {to} are missing");
            return Err(self.part.malformed("the stream of commits", &why));
        }
        Ok(passed_over / GAP)
    }

    /// Puts the rebuilt store in force as of a commit; durable when this returns. Returns its metadata.
    pub fn finish(mut self, commit_ts: u64) -> Result<StateMeta, StoreError> {
        let stream = name_entry(&self.part, STATE_BASIN_ID, STATE_STREAM)?;
        let (stream, history_cut) = match stream {
            Some(NameEntry { id, .. }) => {
                let state = self.part.stream_state(id)?.ok_or_else(|| {
                    self.part
                        .malformed("the stream of commits", &"where it stands is missing")
                })?;
                (id, state.head().min(commit_ts))
            }
            None => (self.make_stream(commit_ts)?, commit_ts),
        };
        self.meta.stream = stream.0;
        self.meta.commit_ts = commit_ts;
        self.meta.history_cut = history_cut;
        self.meta.versions_cut = history_cut;
        for (from, to) in keys::state_before(self.meta.generation) {
            self.batch.delete_range(&from, &to);
        }
        self.batch.put(keys::STATE_META, self.meta.encode_to_vec());
        self.write()?;
        self.part.flush()?;
        Ok(self.meta)
    }

    /// Creates the store's stream without a record, for a partition of which nothing else is left.
    fn make_stream(&mut self, tail: u64) -> Result<StreamId, StoreError> {
        let forks = self.part.forks()?;
        let counters = self
            .part
            .get::<Counters>(keys::COUNTERS, "the counters")?
            .unwrap_or(Counters {
                next_stream: 1,
                forks,
            });
        let id = StreamId(counters.next_stream);
        let counters = Counters {
            next_stream: id.0 + 1,
            ..counters
        };
        let meta = StreamMeta {
            basin: STATE_BASIN_ID.0,
            name: STATE_STREAM.to_owned(),
            settings: stream_settings(),
            settings_version: 1,
            created_ms: 0,
            request_hash: Vec::new(),
            cipher: 0,
        };
        let state = StreamState {
            tail_seq: tail,
            trim_point: tail,
            // A commit's number has passed over `GAP` numbers for each fork that it has seen.
            forks: self.commit_forks.unwrap_or(forks.min(tail / GAP)),
            ..StreamState::default()
        };
        let name = NameEntry {
            id,
            created_ms: 0,
            cipher: None,
        };
        self.batch.put(keys::COUNTERS, counters.encode_to_vec());
        self.batch.put(keys::stream_meta(id), meta.encode_to_vec());
        self.batch
            .put(keys::stream_state(id), state.encode_to_vec());
        self.batch.put(
            keys::stream_name(STATE_BASIN_ID, STATE_STREAM),
            name.encode(),
        );
        Ok(id)
    }

    /// Sets the applied position of the partition, which has to be empty.
    pub fn applied(&mut self, lsn: u64, term: u64) -> Result<(), StoreError> {
        let applied = self.part.applied()?.unwrap_or_default();
        let applied = Applied {
            lsn,
            term,
            log_tail: None,
            ..applied
        };
        self.batch.put(keys::APPLIED, applied.encode_to_vec());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
