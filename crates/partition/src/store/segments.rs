//! Segments: where the batches of streams are written, once.
//!
//! Batches are in a column family of their own, whose keys begin with the number of the segment. A flush
//! ends the segment, so each file has the batches of one segment, and no file has keys between those of
//! another: files are moved to lower levels as they are, and never merged. The other column family has the
//! rows: for each stream and segment, which sequence numbers are there ([`Row`]).
//!
//! **Whatever set of files is durable is a state at one LSN.** The two column families of a partition are
//! written by the same write batches, and flushed together:
//!
//! - The database has `atomic_flush`: the files of one flush become part of the database by one record of
//!   its manifest, all or none. A flush that RocksDB begins on its own flushes all column families.
//! - A flush that Esker begins names both ([`PartitionDb::begin_flush`]); nothing else flushes one alone. An
//!   export by RocksDB would, so checkpoints link the files themselves (`checkpoint::capture`).
//! - A segment's file is deleted only when the changes that took the last row from it are durable
//!   ([`PartitionDb::drop_segments`]).
//!
//! A crash therefore loses what was written after the last flush, in both, and a replay of the log writes it
//! into new segments.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;
use rust_rocksdb::{ReadOptions, ReadTier, WriteBatch};

use super::segment_steps::{Step, Written};
use super::{PartitionDb, Store, StoreError, two_numbers};
use crate::ids::{PartitionId, StreamId};
use crate::keys;
use crate::row::{Row, Usage};

/// Most open rows that are kept in memory; others are read from the database.
const MAX_OPEN_ROWS: usize = 64 * 1024;
/// RocksDB's property: bytes in the memtable that takes writes.
const ACTIVE_MEMTABLE: &str = "rocksdb.cur-size-active-mem-table";
/// Most bytes that are written until the memtables are measured again: RocksDB takes a lock for that. A
/// sixty-fourth of a segment, if that is less.
const MAX_UNMEASURED: u64 = 256 * 1024;

/// The segments of a partition, for all handles of it.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    /// `None` until the first write.
    state: Mutex<Option<State>>,
    /// Number of drops of files since the start.
    drops: AtomicU64,
    /// Bytes in the memtables that take writes, at the last write.
    memtables: AtomicU64,
    /// Whether batches are left where earlier builds wrote them: one of the constants below, or 0 for unknown.
    unconverted: AtomicU8,
    #[cfg(test)]
    mutant: Mutex<Option<Mutant>>,
    #[cfg(test)]
    counted: Mutex<Counted>,
}

/// What writes cost.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Entries of all write batches.
    pub entries: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Measurements of the memtables.
    pub measurements: u64,
    /// Last rows that were read from the database.
    pub rows_read: u64,
}

/// A mistake that tests must notice.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Flushes rows alone.
    FlushesRowsAlone,
    /// Drops segments before it is durable that they are empty.
    DropsEarly,
}

const LEFT: u8 = 1;
const NONE_LEFT: u8 = 2;

#[derive(Debug, Default)]
struct State {
    /// The segment that batches are written to.
    current: u64,
    /// Whether it has batches.
    begun: bool,
    /// Number of writes that removed or moved rows.
    changes: u64,
    /// The last rows of streams. One that is missing is in the database.
    open: HashMap<StreamId, Row>,
    usage: BTreeMap<u64, Usage>,
    /// Segments without rows, with the number of the change that took the last one. One that is missing was
    /// without rows when the state was read, from files alone.
    emptied: HashMap<u64, u64>,
    /// Bytes in the memtable of batches when it was last measured.
    memtable: u64,
    /// Bytes in both memtables that take writes then; `None` before the first write into them.
    measured: Option<u64>,
    /// Bytes that were written since.
    unmeasured: u64,
    /// The present segment and the number of changes that the database has; `None` before the first write.
    stored: Option<[u64; 2]>,
}

/// The changes of a write batch, which are in force once it is written.
#[derive(Default)]
struct Staged {
    current: u64,
    changes: u64,
    wrote: bool,
    /// `None` for a removed one.
    open: HashMap<StreamId, Option<Row>>,
    usage: BTreeMap<u64, Usage>,
}

impl Store {
    /// Forgets what was known of a partition that is created, imported or dropped, or whose column families were
    /// replaced by those of this number.
    pub(super) fn forget_segments(&self, partition: PartitionId, number: u64) {
        let mut segments = self.segments.lock();
        segments.retain(|(of, kept), _| *of != partition || *kept == number);
    }

    /// Bytes in the memtables of all partitions but this one.
    fn memtables_of_others(&self, partition: PartitionId) -> u64 {
        let segments = self.segments.lock();
        let others = segments
            .iter()
            .filter(|((other, _), _)| *other != partition);
        others
            .map(|(_, segments)| segments.memtables.load(Ordering::Relaxed))
            .sum()
    }
}

impl PartitionDb {
    fn segments(&self) -> Arc<Segments> {
        let key = (self.partition, self.families().number);
        self.store.segments.lock().entry(key).or_default().clone()
    }

    /// Runs `f` on the state of the segments, which is read from the database at first.
    fn with_segments<T>(
        &self,
        f: impl FnOnce(&Segments, &mut State) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let segments = self.segments();
        let mut state = segments.state.lock();
        let known = match state.take() {
            Some(known) => known,
            None => self.load_segments()?,
        };
        f(&segments, state.insert(known))
    }

    fn load_segments(&self) -> Result<State, StoreError> {
        let mut state = State::default();
        let stored = self.get_bytes(keys::SEGMENTS, "the present segment")?;
        if let Some(stored) = stored {
            let parsed = two_numbers(&stored)
                .ok_or_else(|| self.malformed("the present segment", &"its length"))?;
            [state.current, state.changes] = parsed;
        }
        let (from, to) = keys::all_usages();
        let mut it = self.iterate(&from, &to, false);
        it.seek_to_first();
        while let (Some(key), Some(value)) = (it.key(), it.value()) {
            let malformed = || self.malformed("the usage of a segment", &"its length");
            let segment = keys::id_of(key).ok_or_else(malformed)?;
            let [bytes, live] = two_numbers(value).ok_or_else(malformed)?;
            state.usage.insert(segment, Usage { bytes, live });
            it.next();
        }
        it.status()
            .map_err(|e| self.error("reading the usage of segments", e))?;
        // The files of earlier segments are complete.
        let last = state.usage.last_key_value().map_or(0, |(last, _)| *last);
        state.current = state.current.max(last).saturating_add(1);
        Ok(state)
    }

    /// Adds the steps to the batch, writes it, and begins a flush if the memtables are full.
    pub(super) fn write_with(
        &self,
        mut batch: WriteBatch,
        steps: Vec<Step>,
    ) -> Result<(), StoreError> {
        self.with_segments(|segments, state| {
            let staged = match steps.is_empty() {
                true => None,
                false => Some(self.stage(state, steps, &mut batch)?),
            };
            self.store
                .db
                .write_without_wal(&batch)
                .map_err(|e| self.write_error("writing", e))?;
            if let Some(staged) = staged {
                state.commit(staged);
            }
            #[cfg(test)]
            segments.count(|counted| {
                counted.entries += batch.len() as u64;
                counted.bytes += batch.size_in_bytes() as u64;
            });
            self.flush_if_full(segments, state, batch.size_in_bytes() as u64);
            Ok(())
        })
    }

    fn stage(
        &self,
        state: &State,
        steps: Vec<Step>,
        batch: &mut WriteBatch,
    ) -> Result<Staged, StoreError> {
        let (rows, data) = (self.cf(), self.segments_cf());
        let mut staged = Staged {
            current: state.current,
            changes: state.changes,
            ..Staged::default()
        };
        let current = state.current;
        let put = |batch: &mut WriteBatch, stream, written: &Written| {
            let key = keys::batch(current, stream, written.first);
            batch.put_cf(&data, key, &written.value);
        };
        for step in steps {
            match step {
                Step::Append(stream, written) => {
                    put(batch, stream, &written);
                    let bytes = written.value.len() as u64;
                    let last = match staged.open.get(&stream) {
                        Some(row) => *row,
                        // There is no row of what is before the first record.
                        None if written.first == 0 => None,
                        None => self.last_row(state, stream)?,
                    };
                    let row = match last {
                        Some(row) if row.segment == current => Row {
                            end: written.end,
                            bytes: row.bytes + bytes,
                            ..row
                        },
                        earlier => {
                            if let Some(row) = earlier {
                                batch.put_cf(&rows, keys::row(stream, row.end - 1), row.to_bytes());
                            }
                            Row {
                                segment: current,
                                first: written.first,
                                end: written.end,
                                bytes,
                            }
                        }
                    };
                    staged.add(state, bytes);
                    staged.open.insert(stream, Some(row));
                }
                Step::Remove(stream, last, row) => {
                    batch.delete_cf(&rows, keys::row(stream, last));
                    staged.take(state, row.segment, row.bytes);
                    staged.changes = state.changes + 1;
                    if last == keys::OPEN {
                        staged.open.insert(stream, None);
                    }
                }
                Step::Trim(stream, last, row, first) => {
                    let left = row.from(first);
                    batch.put_cf(&rows, keys::row(stream, last), left.to_bytes());
                    staged.take(state, row.segment, row.bytes.saturating_sub(left.bytes));
                    staged.changes = state.changes + 1;
                    if last == keys::OPEN {
                        staged.open.insert(stream, Some(left));
                    }
                }
                Step::Move(stream, last, row, moved) => {
                    staged.changes = state.changes + 1;
                    let (Some(first), Some(end)) = (moved.first(), moved.last()) else {
                        continue;
                    };
                    let (first, end) = (first.first, end.end);
                    let bytes = moved.iter().map(|written| written.value.len() as u64).sum();
                    for written in &moved {
                        put(batch, stream, written);
                    }
                    let copied = Row {
                        segment: current,
                        first,
                        end,
                        bytes,
                    };
                    staged.add(state, bytes);
                    let is_all = end >= row.end;
                    let (copied_last, left) = match is_all {
                        true => (last, None),
                        false => {
                            // The bytes of a row that was trimmed are estimated. Without bytes, its segment
                            // would be dropped with what is left of it.
                            let left = Row {
                                first: end,
                                bytes: row.bytes.saturating_sub(bytes).max(1),
                                ..row
                            };
                            (end - 1, Some(left))
                        }
                    };
                    batch.put_cf(&rows, keys::row(stream, copied_last), copied.to_bytes());
                    if let Some(left) = left {
                        batch.put_cf(&rows, keys::row(stream, last), left.to_bytes());
                    }
                    let left_bytes = left.map_or(0, |left| left.bytes);
                    staged.take(state, row.segment, row.bytes.saturating_sub(left_bytes));
                    if last == keys::OPEN {
                        staged.open.insert(stream, Some(left.unwrap_or(copied)));
                    }
                }
                Step::Convert(stream, moved) => {
                    staged.changes = state.changes + 1;
                    let (Some(first), Some(end)) = (moved.first(), moved.last()) else {
                        continue;
                    };
                    let row = Row {
                        segment: current,
                        first: first.first,
                        end: end.end,
                        bytes: moved.iter().map(|written| written.value.len() as u64).sum(),
                    };
                    for written in &moved {
                        put(batch, stream, written);
                        batch.delete_cf(&rows, keys::data(stream, written.first));
                    }
                    batch.put_cf(&rows, keys::row(stream, row.end - 1), row.to_bytes());
                    staged.add(state, row.bytes);
                }
            }
        }
        for (stream, row) in &staged.open {
            if let Some(row) = row {
                batch.put_cf(&rows, keys::row(*stream, keys::OPEN), row.to_bytes());
            }
        }
        for (segment, usage) in &staged.usage {
            batch.put_cf(&rows, keys::usage(*segment), usage.to_bytes());
        }
        if state.stored != Some(staged.present()) {
            let [current, changes] = staged.present().map(u64::to_be_bytes);
            batch.put_cf(&rows, keys::SEGMENTS, [current, changes].concat());
        }
        Ok(staged)
    }

    /// The stream's last row.
    fn last_row(&self, state: &State, stream: StreamId) -> Result<Option<Row>, StoreError> {
        if let Some(row) = state.open.get(&stream) {
            return Ok(Some(*row));
        }
        #[cfg(test)]
        self.segments().count(|counted| counted.rows_read += 1);
        let stored = self.get_bytes(keys::row(stream, keys::OPEN), "the last row of a stream")?;
        stored
            .map(|bytes| Row::parse(&bytes).ok_or_else(|| self.malformed("a row", &"its bytes")))
            .transpose()
    }

    /// Most bytes of a segment, roughly: beyond it, another one is begun.
    pub(crate) fn max_segment(&self) -> u64 {
        self.store.write_buffer / 4 * 3
    }

    /// Begins a flush if this partition's memtables are full, or those of all take too much. `written` is what
    /// the last write added.
    fn flush_if_full(&self, segments: &Segments, state: &mut State, written: u64) {
        let most = self.max_segment();
        state.unmeasured = state.unmeasured.saturating_add(written);
        if let Some(measured) = state.measured
            && state.unmeasured < MAX_UNMEASURED.min(most / 64)
        {
            let now = measured.saturating_add(state.unmeasured);
            segments.memtables.store(now, Ordering::Relaxed);
            return;
        }
        let [rows, data] = self.measure(segments, state);
        // RocksDB begins a flush of its own when one memtable is full, and of all partitions when all together
        // take too much: both before that, so that each flush ends a segment.
        let others = self.store.memtables_of_others(self.partition);
        let all = self.store.write_buffers_total / 4 * 3;
        let share = all.saturating_sub(others).max(most / 8);
        if (rows.max(data) >= most || rows + data >= share) && self.store.may_flush() {
            // A failure is recorded, and the flush is retried.
            let _ = self.begin_flush_of(segments, state);
        }
    }

    /// Measures the memtables of rows and of batches, and ends the segment if RocksDB has begun a flush.
    fn measure(&self, segments: &Segments, state: &mut State) -> [u64; 2] {
        #[cfg(test)]
        segments.count(|counted| counted.measurements += 1);
        let rows = self.property_of(&self.cf(), ACTIVE_MEMTABLE);
        let data = self.property_of(&self.segments_cf(), ACTIVE_MEMTABLE);
        segments.memtables.store(rows + data, Ordering::Relaxed);
        // The file that RocksDB writes ends here.
        if data < state.memtable {
            state.end_segment();
        }
        state.memtable = data;
        (state.measured, state.unmeasured) = (Some(rows + data), 0);
        [rows, data]
    }

    #[cfg(test)]
    pub(crate) fn set_mutant(&self, mutant: Option<Mutant>) {
        *self.segments().mutant.lock() = mutant;
    }

    /// What writes have cost so far.
    #[cfg(test)]
    pub(crate) fn counted(&self) -> Counted {
        *self.segments().counted.lock()
    }

    #[cfg(test)]
    fn has(&self, mutant: Mutant) -> bool {
        *self.segments().mutant.lock() == Some(mutant)
    }

    /// Begins a flush of both column families, and another segment.
    pub(crate) fn begin_flush(&self) -> Result<(), StoreError> {
        self.with_segments(|segments, state| self.begin_flush_of(segments, state))
    }

    fn begin_flush_of(&self, segments: &Segments, state: &mut State) -> Result<(), StoreError> {
        state.end_segment();
        state.memtable = 0;
        (state.measured, state.unmeasured) = (None, 0);
        segments.memtables.store(0, Ordering::Relaxed);
        #[cfg(test)]
        if *segments.mutant.lock() == Some(Mutant::FlushesRowsAlone) {
            return self.flush_these(&[&self.cf()]);
        }
        self.flush_these(&[&self.segments_cf(), &self.cf()])
    }

    /// Number of drops of files: of segments, and of what was converted or deleted; and of replacements of the column
    /// families. A reader that finds other numbers after it has created its iterators creates them again, and its
    /// snapshot, if it has one: a snapshot keeps no file, so one from before a deletion may lack what it needs.
    pub(crate) fn file_drops(&self) -> (u64, u64) {
        (
            self.families().number,
            self.segments().drops.load(Ordering::SeqCst),
        )
    }

    /// To be called before files are dropped, and after what they hold was deleted.
    pub(super) fn note_file_drop(&self) {
        self.segments().drops.fetch_add(1, Ordering::SeqCst);
    }

    /// The number of changes that are durable.
    pub(crate) fn durable_changes(&self) -> Result<u64, StoreError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        let stored = self
            .store
            .db
            .get_cf_opt(&self.cf(), keys::SEGMENTS, &options)
            .map_err(|e| self.error("reading the number of changes", e))?;
        let changes = stored.as_deref().and_then(two_numbers);
        Ok(changes.map_or(0, |[_, changes]| changes))
    }

    /// What each ended segment has.
    pub(crate) fn segment_usage(&self) -> Result<Vec<(u64, Usage)>, StoreError> {
        self.with_segments(|segments, state| {
            // Nothing may be written any more that would notice a flush that RocksDB has begun.
            self.measure(segments, state);
            let ended = state.usage.iter().filter(|(n, _)| **n < state.current);
            Ok(ended.map(|(segment, usage)| (*segment, *usage)).collect())
        })
    }

    /// Number of changes so far.
    pub(crate) fn segment_changes(&self) -> Result<u64, StoreError> {
        self.with_segments(|_, state| Ok(state.changes))
    }

    /// The first key and the last of all batches in a range of segments, both included.
    fn bounds(from: u64, last: u64) -> ([u8; 24], [u8; 24]) {
        let first = keys::batch(from, StreamId(0), 0);
        (first, keys::batch(last, StreamId(u64::MAX), u64::MAX))
    }

    /// Deletes the files of ended segments without rows, once the changes that emptied them are durable: by
    /// a crash, the rows would be there again. Later changes do not matter: with steady trims there always
    /// are some. Returns whether the changes that emptied segments are durable.
    pub(crate) fn drop_segments(&self) -> Result<bool, StoreError> {
        let durable = self.durable_changes()?;
        #[cfg(test)]
        let durable = match self.has(Mutant::DropsEarly) {
            true => u64::MAX,
            false => durable,
        };
        let (empty, waiting) = self.with_segments(|_, state| {
            let ended = state.usage.iter().filter(|(n, _)| **n < state.current);
            let empty = ended.filter(|(_, usage)| usage.live == 0).map(|(n, _)| *n);
            let is_durable = |n: &u64| state.emptied.get(n).is_none_or(|at| *at <= durable);
            Ok(empty.partition::<Vec<u64>, _>(is_durable))
        })?;
        if empty.is_empty() {
            return Ok(waiting.is_empty());
        }
        self.note_file_drop();
        for segment in &empty {
            // A file may also have keys of the segment before or after, if that one is gone, too.
            let (from, last) = self.with_segments(|_, state| {
                let is_left = |(n, _): &(&u64, &Usage)| !empty.contains(n);
                let before = state.usage.range(..segment).rfind(is_left);
                let after = state.usage.range(segment + 1..).find(is_left);
                let from = before.map_or(0, |(n, _)| n + 1);
                let last = after.map_or(state.current, |(n, _)| *n) - 1;
                Ok((from, last))
            })?;
            let (first, last) = PartitionDb::bounds(from, last);
            self.store
                .db
                .delete_file_in_range_cf(&self.segments_cf(), first, last)
                .map_err(|e| self.error("dropping segments", e))?;
        }
        // Of a file that is at level 0 still, or has other segments, too, nothing is gone yet.
        let mut gone = Vec::with_capacity(empty.len());
        for segment in empty {
            if !self.has_batches(segment)? {
                gone.push(segment);
            }
        }
        self.with_segments(|_, state| {
            let mut batch = WriteBatch::default();
            for segment in &gone {
                batch.delete_cf(&self.cf(), keys::usage(*segment));
            }
            self.store
                .db
                .write_without_wal(&batch)
                .map_err(|e| self.write_error("writing", e))?;
            for segment in &gone {
                state.usage.remove(segment);
                state.emptied.remove(segment);
            }
            Ok(waiting.is_empty())
        })
    }

    /// Whether files have batches of a segment.
    fn has_batches(&self, segment: u64) -> Result<bool, StoreError> {
        let mut it = self.iterate_segments(false);
        it.seek(keys::batch(segment, StreamId(0), 0));
        let found = it.key().and_then(keys::parts_of_batch);
        let has = found.is_some_and(|(found, _, _)| found == segment);
        it.status()
            .map_err(|e| self.error("looking for batches of a segment", e))?;
        Ok(has)
    }

    /// Whether batches are left where earlier builds wrote them.
    pub(crate) fn has_unconverted(&self) -> Result<bool, StoreError> {
        let segments = self.segments();
        match segments.unconverted.load(Ordering::Acquire) {
            LEFT => return Ok(true),
            NONE_LEFT => return Ok(false),
            _ => {}
        }
        let (from, to) = keys::all_data();
        let mut it = self.iterate(&from, &to, false);
        it.seek_to_first();
        let left = it.valid();
        it.status()
            .map_err(|e| self.error("looking for batches of an earlier build", e))?;
        let known = if left { LEFT } else { NONE_LEFT };
        segments.unconverted.store(known, Ordering::Release);
        Ok(left)
    }

    /// To be called when none are left.
    pub(crate) fn note_converted(&self) {
        let segments = self.segments();
        segments.unconverted.store(NONE_LEFT, Ordering::Release);
    }
}

#[cfg(test)]
impl Segments {
    fn count(&self, add: impl FnOnce(&mut Counted)) {
        add(&mut self.counted.lock());
    }
}

impl State {
    fn end_segment(&mut self) {
        if std::mem::take(&mut self.begun) {
            self.current = self.current.saturating_add(1);
        }
    }

    fn commit(&mut self, staged: Staged) {
        self.stored = Some(staged.present());
        self.changes = staged.changes;
        self.begun |= staged.wrote;
        for (segment, usage) in staged.usage {
            match usage.live {
                0 => _ = self.emptied.entry(segment).or_insert(staged.changes),
                _ => _ = self.emptied.remove(&segment),
            }
            self.usage.insert(segment, usage);
        }
        for (stream, row) in staged.open {
            match row {
                Some(row) => self.open.insert(stream, row),
                None => self.open.remove(&stream),
            };
        }
        if self.open.len() > MAX_OPEN_ROWS {
            let current = self.current;
            self.open.retain(|_, row| row.segment == current);
            if self.open.len() > MAX_OPEN_ROWS {
                self.open.clear();
            }
        }
    }
}

impl Staged {
    /// The present segment and the number of changes.
    fn present(&self) -> [u64; 2] {
        [self.current, self.changes]
    }

    fn usage<'s>(&'s mut self, state: &State, segment: u64) -> &'s mut Usage {
        let known = state.usage.get(&segment).copied().unwrap_or_default();
        self.usage.entry(segment).or_insert(known)
    }

    fn add(&mut self, state: &State, bytes: u64) {
        self.wrote = true;
        let usage = self.usage(state, self.current);
        usage.bytes += bytes;
        usage.live += bytes;
    }

    fn take(&mut self, state: &State, segment: u64, bytes: u64) {
        let usage = self.usage(state, segment);
        usage.live = usage.live.saturating_sub(bytes);
    }
}
