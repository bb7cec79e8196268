//! Reclaiming the space of what readers can no longer see.
//!
//! A trim, an expiry or a deletion is in force for readers at once; the data is deleted later, a bounded
//! step at a time, on the apply thread. What is to be reclaimed is marked in the database in the write
//! that makes it invisible, so that the mark survives a crash. None of this changes what readers see, so
//! replicas may do it differently, and at different times.
//!
//! Batches are in segments, whose space [`segments`] reclaims. Of everything else, a few keys are deleted one
//! by one, many by a range. Files that lie wholly in the range are dropped as soon as the trim is durable:
//! dropped before, a crash would restore the earlier trim point, and not the data. Other files are rewritten
//! once at least half of their bytes are reclaimable, and at least a set amount, or less if it has not grown
//! for a while. On a disk that is nearly full they are rewritten for less, if the result fits into the free
//! space.
//!
//! The space in use does not depend on the rate of appends. With `live` bytes that readers see and `set`
//! for the set amount: streams are visited after `set / 2` bytes were written since they were marked,
//! however short that time was. So what is reclaimable and not yet rewritten stays below the sum of
//! `max(set, live)` and `set / 2`. While files are rewritten, at most `max(set, live)` bytes are written
//! beside that; beyond it, [`PartitionDb::reclaim_is_behind`] holds, and appends wait.
//!
//! What is moved is uploaded with the next snapshot. While appends go on, moves are paid for by what is written: a
//! snapshot that covers `written` bytes uploads `2 × written` and two steps at most, some 8 MiB. It is more only
//! while more is dead in segments than live, which is the bound of the disk, and on a disk that is nearly full.

mod garbage;
mod segments;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::batch::StoredBatch;
use crate::batches::Batches;
use crate::ids::{BasinId, StreamId};
use crate::keys;
use crate::row::Row;
use crate::store::{PartitionBatch, PartitionDb, StoreError};
use crate::stream::StreamState;
use crate::streams::directory::Directory;
use crate::streams::name_index::NameEntry;
use crate::streams::options::StreamOptions;
use esker_raft::MAINTENANCE_INTERVAL;
use garbage::Garbage;
use segments::SegmentReclaimer;

/// How long one round may occupy the apply thread.
const ROUND_TIMEOUT: Duration = Duration::from_millis(5);
/// Without appends for so long, batches are moved as fast as that goes; in tests at each round.
const REST: Duration = match cfg!(test) {
    true => Duration::ZERO,
    false => garbage::QUIET,
};
/// Time between two rounds while there is garbage that is not worth reclaiming yet.
const WAITING_INTERVAL: Duration = Duration::from_secs(1);
/// The same while there is none.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);
/// Most streams that one round visits.
const MAX_STREAMS_PER_ROUND: usize = 64;
/// Most ranges that wait for a flush; files of further ranges are removed when they are rewritten.
const MAX_DROPPABLE: usize = 1024;
/// Up to this many keys are deleted one by one: a range deletion makes every later read slower.
const MAX_SINGLE_DELETES: usize = 128;

/// Whether batches may be moved, after so many bytes were written beyond those that were moved, the last ones so
/// long ago. While appends go on, as many bytes are moved as are written, however slowly they come: what is moved is
/// uploaded with the next snapshot.
fn may_move(unmoved: u64, since: Duration, rest: Duration) -> bool {
    unmoved >= segments::MAX_STEP_BYTES || since >= rest
}

pub(crate) struct Reclaimer {
    part: PartitionDb,
    /// Streams to visit, each with the earliest time for it.
    queue: VecDeque<(StreamId, Instant)>,
    queued: HashSet<StreamId>,
    /// Dropped basins whose streams still have entries.
    basins: VecDeque<BasinId>,
    /// Ranges of deleted keys whose files can be dropped.
    droppable: VecDeque<Droppable>,
    garbage: Garbage,
    segments: SegmentReclaimer,
    /// Bytes written, less those that were moved.
    unmoved: u64,
    /// When something was last appended.
    appended: Instant,
    compact_garbage: u64,
    reclaim_after: Duration,
    compacting: Arc<AtomicBool>,
    /// Bytes that a rewriting was to remove when it failed.
    left_in: Arc<AtomicU64>,
    /// Bytes written since the oldest marking of a stream that was not visited yet.
    unvisited: u64,
    /// Bytes written since a rewriting began, and the most that may be written until it is done.
    beside: u64,
    most_beside: u64,
}

/// A range of deleted keys, both ends included.
struct Droppable {
    /// The files can be dropped once the database is durable up to this LSN...
    lsn: u64,
    /// ...and so many changes of segments are.
    changes: u64,
    from: [u8; 17],
    last: [u8; 17],
}

impl Reclaimer {
    pub fn open(part: PartitionDb, options: &StreamOptions) -> Result<Reclaimer, StoreError> {
        let mut reclaimer = Reclaimer {
            part: part.clone(),
            queue: VecDeque::new(),
            queued: HashSet::new(),
            basins: VecDeque::new(),
            droppable: VecDeque::new(),
            garbage: Garbage::none(),
            segments: SegmentReclaimer::open(part.clone(), options.compact_garbage)?,
            unmoved: 0,
            appended: Instant::now(),
            compact_garbage: options.compact_garbage,
            reclaim_after: options.reclaim_after,
            compacting: Arc::new(AtomicBool::new(false)),
            left_in: Arc::default(),
            unvisited: 0,
            beside: 0,
            most_beside: 0,
        };
        let (from, to) = keys::all_reclaims();
        let mut it = part.iterate(&from, &to, false);
        it.seek_to_first();
        let mut marked = Vec::new();
        while let Some(key) = it.key() {
            marked.extend(keys::id_of(key).map(StreamId));
            it.next();
        }
        it.status()
            .map_err(|e| part.error("reading what is to be reclaimed", e))?;
        reclaimer.mark(&marked);
        let (from, to) = keys::all_dropped_basins();
        let mut it = part.iterate(&from, &to, false);
        it.seek_to_first();
        while let Some(key) = it.key() {
            reclaimer.basins.extend(keys::id_of(key).map(BasinId));
            it.next();
        }
        it.status()
            .map_err(|e| part.error("reading dropped basins", e))?;
        Ok(reclaimer)
    }

    /// Uses another handle of the same data from now on.
    pub fn use_part(&mut self, part: &PartitionDb) {
        self.part = part.clone();
        self.segments.use_part(part);
    }

    /// Queues streams that have something to reclaim; their marks are in the database.
    pub fn mark(&mut self, streams: &[StreamId]) {
        let not_before = Instant::now() + self.reclaim_after;
        for stream in streams {
            if self.queued.insert(*stream) {
                self.queue.push_back((*stream, not_before));
            }
        }
    }

    /// Counts written bytes. Without appends they are those of expiries and deletions, after which there is more to move,
    /// and which must not keep it from being moved.
    pub fn note_written(&mut self, bytes: u64, appended: bool) {
        if !self.queue.is_empty() {
            self.unvisited += bytes;
        }
        self.unmoved += bytes;
        if appended {
            self.appended = Instant::now();
        }
        if self.compacting.load(Ordering::Acquire) {
            self.beside += bytes;
            if self.beside > self.most_beside {
                self.part.reclaim_is_behind.store(true, Ordering::Release);
                // The rewriting may have ended since the check above; then nothing else would let appends
                // continue.
                if !self.compacting.load(Ordering::Acquire) {
                    self.part.reclaim_is_behind.store(false, Ordering::Release);
                }
            }
        }
    }

    /// Whether enough was written since streams were marked that they have to be visited now.
    pub fn is_urgent(&self) -> bool {
        // While batches are moved, as many bytes are moved as are appended, so that garbage does not grow with
        // the rate of appends.
        let moves = self.segments.is_moving() && self.unmoved >= segments::MAX_STEP_BYTES;
        self.unvisited > self.compact_garbage / 2 || moves
    }

    /// Counts bytes that commands have deleted.
    pub fn add_garbage(&mut self, bytes: u64) {
        self.garbage.add(bytes, || self.part.row_file_bytes());
    }

    /// Approximate bytes of deleted data in files.
    #[cfg(test)]
    pub fn garbage(&self) -> u64 {
        self.garbage.bytes + self.segments.garbage()
    }

    /// Queues a basin whose streams are to be removed; its mark is in the database.
    pub fn mark_basin(&mut self, basin: BasinId) {
        self.basins.push_back(basin);
    }

    /// The interval of rounds while nothing is applied: a round that has nothing to do wakes a thread of each
    /// partition.
    pub fn interval(&self) -> Duration {
        let is_at_work = !self.queue.is_empty()
            || !self.basins.is_empty()
            || !self.droppable.is_empty()
            || self.garbage.rewriting
            || self.compacting.load(Ordering::Acquire)
            || self.left_in.load(Ordering::Acquire) > 0
            || self.segments.is_at_work();
        // On a nearly full disk everything that gives space back is urgent.
        let has_garbage = self.garbage.bytes > 0 || self.segments.garbage() > 0;
        match (is_at_work, has_garbage) {
            (true, _) => MAINTENANCE_INTERVAL,
            (false, true) if self.part.short_space().is_some() => MAINTENANCE_INTERVAL,
            (false, true) => WAITING_INTERVAL,
            (false, false) => IDLE_INTERVAL,
        }
    }

    /// Does one round. If one part fails, the others are still done, and that part is retried later.
    pub fn work(&mut self, directory: &Directory) -> Result<(), StoreError> {
        let files = self.drop_durable();
        let basins = self.visit_basin(directory);
        let streams = self.visit_streams();
        let segments = self.work_on_segments();
        self.compact_if_worth_it();
        self.part
            .note_reclaimable(self.garbage.bytes + self.segments.garbage());
        files.and(basins).and(streams).and(segments)
    }

    fn work_on_segments(&mut self) -> Result<(), StoreError> {
        let is_short = self.part.short_space().is_some();
        let may_move = is_short || may_move(self.unmoved, self.appended.elapsed(), REST);
        let done = self.segments.work(may_move);
        if done.is_err() {
            // Without this, every step would retry it.
            self.unmoved = 0;
        }
        let (moved, converted) = done?;
        self.unmoved = self.unmoved.saturating_sub(moved);
        if !self.segments.is_moving() {
            // What was written before does not let more be moved at once later.
            self.unmoved = self.unmoved.min(segments::MAX_STEP_BYTES);
        }
        let Some(last) = converted else {
            return Ok(());
        };
        // The keys of an earlier build up to this one are deleted now.
        let droppable = Droppable {
            lsn: 0,
            changes: self.part.segment_changes()?,
            from: keys::data(StreamId(0), 0),
            last,
        };
        // Each of these ranges has the one before it.
        let is_long = self.droppable.len() >= MAX_DROPPABLE / 2;
        match self.droppable.back_mut() {
            Some(before) if before.lsn == 0 && is_long => *before = droppable,
            _ => self.droppable.push_back(droppable),
        }
        Ok(())
    }

    /// Drops the files of ranges whose deletion is durable by now.
    fn drop_durable(&mut self) -> Result<(), StoreError> {
        if self.droppable.is_empty() {
            return Ok(());
        }
        let durable = self.part.durable()?.map_or(0, |applied| applied.lsn);
        let changes = self.part.durable_changes()?;
        let is_durable = |range: &mut Droppable| range.lsn <= durable && range.changes <= changes;
        while let Some(range) = self.droppable.pop_front_if(is_durable) {
            self.part.drop_files(&range.from, &range.last)?;
        }
        Ok(())
    }

    fn visit_basin(&mut self, directory: &Directory) -> Result<(), StoreError> {
        let Some(basin) = self.basins.front().copied() else {
            return Ok(());
        };
        if directory.is_dropped(basin) {
            let done = self.drop_streams(basin);
            self.basins.pop_front();
            if !matches!(done, Ok(true)) {
                self.basins.push_back(basin);
            }
            done?;
        }
        Ok(())
    }

    fn visit_streams(&mut self) -> Result<(), StoreError> {
        let started = Instant::now();
        if self.queue.is_empty() {
            return Ok(());
        }
        let urgent = self.is_urgent();
        for visited in 0..MAX_STREAMS_PER_ROUND {
            let Some((stream, not_before)) = self.queue.front().copied() else {
                break;
            };
            // Each round visits at least one stream, however slow the machine is.
            let is_over = visited > 0 && started.elapsed() > ROUND_TIMEOUT;
            if (not_before > started && !urgent) || is_over {
                break;
            }
            let done = self.reclaim(stream);
            self.queue.pop_front();
            self.queued.remove(&stream);
            if done.is_err() {
                // Without this, every step would retry it.
                self.unvisited = 0;
                self.mark(&[stream]);
            }
            done?;
        }
        if self.queue.is_empty() {
            // Data that is being flushed now gets into a file although it is deleted already.
            let flushing = self.part.flushing_bytes().min(self.unvisited);
            self.add_garbage(flushing);
            self.unvisited = 0;
        }
        Ok(())
    }

    /// Removes the entries of some of a dropped basin's streams; returns whether none were left.
    fn drop_streams(&mut self, basin: BasinId) -> Result<bool, StoreError> {
        let (from, to) = keys::stream_names(basin, "");
        let mut found = Vec::new();
        {
            let mut it = self.part.iterate(&from, &to, false);
            it.seek_to_first();
            while let (Some(key), Some(value)) = (it.key(), it.value()) {
                if found.len() == MAX_STREAMS_PER_ROUND {
                    break;
                }
                let entry = NameEntry::parse(&self.part, value)?;
                found.push((key.to_vec(), entry.id));
                it.next();
            }
            it.status()
                .map_err(|e| self.part.error("reading the index of names", e))?;
        }
        if found.is_empty() {
            return Ok(true);
        }
        let mut batch = self.part.batch();
        for (name, id) in &found {
            batch.delete(name);
            batch.delete(keys::stream_meta(*id));
            batch.delete(keys::stream_state(*id));
            batch.put(keys::reclaim(*id), []);
        }
        batch.write()?;
        let ids: Vec<StreamId> = found.into_iter().map(|(_, id)| id).collect();
        self.mark(&ids);
        Ok(false)
    }

    fn reclaim(&mut self, id: StreamId) -> Result<(), StoreError> {
        let state = self.part.stream_state(id)?;
        let kept = self.first_kept(id, state.as_ref())?;
        let mut batch = self.part.batch();
        self.reclaim_rows(id, kept.as_ref(), &mut batch)?;
        let data_from = keys::data(id, 0);
        let time_from = keys::by_time(id, 0, 0);
        // The exclusive ends of what is deleted, and the last key that a dropped file may have: the first
        // batch that is kept must not be in such a file.
        let (data_to, time_to, last) = match &kept {
            Some(kept) => (
                keys::data(id, kept.first_seq).to_vec(),
                keys::by_time(id, kept.last_timestamp(), kept.first_seq).to_vec(),
                keys::data(id, kept.first_seq.saturating_sub(1)),
            ),
            None => (
                keys::data_end(id),
                keys::by_time_end(id),
                keys::data(id, u64::MAX),
            ),
        };
        // Every batch is in the index, which is small: the batches themselves need not be read.
        let mut few = Vec::new();
        {
            let mut it = self.part.iterate(&time_from, &time_to, false);
            it.seek_to_first();
            while let Some(key) = it.key() {
                if few.len() > MAX_SINGLE_DELETES {
                    break;
                }
                few.push(keys::time_and_seq_of(key).ok_or_else(|| {
                    self.part
                        .malformed("the index by time", &"the length of a key")
                })?);
                it.next();
            }
            it.status()
                .map_err(|e| self.part.error("reading what to reclaim", e))?;
        }
        // Batches deleted earlier were counted then, even if files still have them.
        let counted_from = few
            .first()
            .map(|(time, first_seq)| (keys::data(id, *first_seq), keys::by_time(id, *time, 0)));
        let unconverted = self.part.has_unconverted()?;
        let many = few.len() > MAX_SINGLE_DELETES;
        if many {
            if unconverted {
                batch.delete_range(&data_from, &data_to);
            }
            batch.delete_range(&time_from, &time_to);
        } else {
            for (last_timestamp, first_seq) in few {
                if unconverted {
                    batch.delete(keys::data(id, first_seq));
                }
                batch.delete(keys::by_time(id, last_timestamp, first_seq));
            }
        }
        batch.delete(keys::reclaim(id));
        if let Some((data, time)) = counted_from {
            let data = self.part.approximate_bytes(&data, &data_to)?;
            let time = self.part.approximate_bytes(&time, &time_to)?;
            self.add_garbage(data + time);
        }
        batch.write()?;
        if many && unconverted && self.droppable.len() < MAX_DROPPABLE {
            let lsn = self.part.applied()?.map_or(0, |applied| applied.lsn);
            self.droppable.push_back(Droppable {
                lsn,
                changes: 0,
                from: data_from,
                last,
            });
        }
        Ok(())
    }

    /// Removes the rows, and the parts of rows, before the first batch that is kept.
    fn reclaim_rows(
        &self,
        id: StreamId,
        kept: Option<&StoredBatch>,
        batch: &mut PartitionBatch,
    ) -> Result<(), StoreError> {
        let kept = kept.map_or(u64::MAX, |kept| kept.first_seq);
        let mut it = self
            .part
            .iterate(&keys::row(id, 0), &keys::rows_end(id), false);
        it.seek_to_first();
        while let (Some(key), Some(value)) = (it.key(), it.value()) {
            let row = Row::parse(value).zip(keys::last_of(key));
            let (row, last) =
                row.ok_or_else(|| self.part.malformed("a row of batches", &"its length"))?;
            if row.first >= kept {
                break;
            }
            match row.end <= kept {
                true => batch.remove_row(id, last, row),
                false => batch.trim_row(id, last, row, kept),
            }
            it.next();
        }
        it.status()
            .map_err(|e| self.part.error("reading rows to reclaim", e))
    }

    /// The first batch with a record that readers may see.
    fn first_kept(
        &self,
        id: StreamId,
        state: Option<&StreamState>,
    ) -> Result<Option<StoredBatch>, StoreError> {
        let Some(state) = state.filter(|s| !s.is_empty()) else {
            return Ok(None);
        };
        let mut batches = Batches::sequential(&self.part, id, state.trim_point, u64::MAX);
        batches.seek(state.trim_point);
        batches.peek()
    }

    fn compact_if_worth_it(&mut self) {
        // The order matters: the thread records a failure before it records its end.
        let has_ended = self.garbage.rewriting && !self.compacting.load(Ordering::Acquire);
        let left_in = self.left_in.swap(0, Ordering::AcqRel);
        if left_in > 0 {
            self.garbage.put_back(left_in, Instant::now());
        } else if has_ended {
            self.garbage.rewritten();
        }
        // RocksDB counts files under its lock, and the apply thread calls this several times a second.
        if self.garbage.bytes == 0 {
            return;
        }
        let rewriting = self.compacting.load(Ordering::Acquire);
        let files = self.part.row_file_bytes();
        self.garbage.note_files(files, rewriting);
        let set = self.compact_garbage;
        let free = self.part.short_space();
        if rewriting || !self.garbage.is_worth_it(files, set, free, Instant::now()) {
            return;
        }
        // A rewriting would read up to the damaged block, and fail.
        if self.part.store().damage(self.part.partition()).is_some() {
            return;
        }
        self.compacting.store(true, Ordering::Release);
        let garbage = self.garbage.rewrite();
        self.most_beside = set.max(files.saturating_sub(garbage));
        self.beside = 0;
        let part = self.part.clone();
        let (compacting, left_in) = (self.compacting.clone(), self.left_in.clone());
        let spawned = std::thread::Builder::new()
            .name(format!("compact-{}", part.partition()))
            .spawn(move || {
                // Deletions may be in memtables only, and a compaction reads files.
                if let Err(error) = part.flush().and_then(|()| part.compact()) {
                    tracing::warn!(partition = %part.partition(), %error, "space was not reclaimed; tried again");
                    left_in.store(garbage, Ordering::Release);
                }
                compacting.store(false, Ordering::Release);
                part.reclaim_is_behind.store(false, Ordering::Release);
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a compaction");
            self.garbage.put_back(garbage, Instant::now());
            self.compacting.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_appends_go_on_as_many_bytes_are_moved_as_are_written_however_slowly_they_come() {
        let rest = Duration::from_secs(10);
        let step = segments::MAX_STEP_BYTES;
        assert!(may_move(step, Duration::ZERO, rest));
        assert!(!may_move(step - 1, rest / 2, rest));
        assert!(may_move(0, rest, rest), "nothing is appended any more");
    }
}
