//! Reclaiming the space of segments, and conversion of batches that an earlier build wrote.
//!
//! A segment without rows is dropped whole. When segments hold more than [`MAX_GARBAGE`] of the live bytes as
//! dead ones, the batches that are left in the worst of them are moved to the present segment, a bounded step at
//! a time; then it has no rows, too. Nothing is moved because of a clock, and nothing while there is
//! little to gain: batches that are about to be trimmed would be written once more for nothing. For the same
//! reason, of segments that are nearly equal the newest is moved: streams are trimmed from their beginning, so
//! what is left in it stays for longest, and the space that it gives back stays free for longest.
//!
//! Small segments are joined: a partition that is seldom appended to would otherwise have a file for each of
//! its flushes, and short rows. Segments of less than a quarter of the largest are in classes, each of four times the size of
//! the one before; once a class has 16, they are moved to the present segment. So there are at most 15 of a
//! class, and a batch is moved once a class.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::garbage::{LITTLE, QUIET, QUIET_IN_NEED};
use crate::batch::StoredBatch;
use crate::ids::StreamId;
use crate::keys;
use crate::row::{Row, Usage};
use crate::store::segment_steps::Written;
use crate::store::{PartitionBatch, PartitionDb, StoreError};

/// Most bytes that one step moves or converts; a single batch may be larger.
pub(super) const MAX_STEP_BYTES: u64 = 4 << 20;
/// Segments may hold so many dead bytes for each live one, as a fraction: less than half, because files that hold
/// nothing live any more wait for a flush and for the next local snapshot, and are there until then.
const MAX_GARBAGE: (u64, u64) = (2, 5);
/// Segments are nearly equal if their shares of dead bytes are at least this part of the largest share.
const NEARLY: (u128, u128) = (9, 10);
/// Segments of fewer bytes are joined, if that is a quarter of what a segment may have...
const SMALL: u64 = 8 << 20;
/// ...once so many are of one class of sizes.
const JOIN: usize = 16;
/// Segments without rows are dropped no more often than this; in tests at each step.
const DROP_INTERVAL: Duration = match cfg!(test) {
    true => Duration::ZERO,
    false => Duration::from_millis(250),
};

pub(super) struct SegmentReclaimer {
    part: PartitionDb,
    /// Garbage of a partition is not reclaimed before there are so many bytes of it, or it is quiet.
    set: u64,
    /// The garbage at the last look, and when it last grew.
    garbage: u64,
    grown: Instant,
    /// The segment that is being moved, and the key at which that continues.
    moving: Option<(u64, [u8; 24])>,
    /// Segments that are joined, after the one that is being moved.
    joining: VecDeque<u64>,
    /// Segments of which nothing more can be moved.
    exhausted: HashSet<u64>,
    /// Where the conversion continues; `None` once nothing is left.
    unconverted: Option<[u8; 17]>,
    next_drop: Instant,
    /// Since when changes that empty segments wait for a flush.
    unflushed: Option<Instant>,
}

/// What segments hold in all.
#[derive(Clone, Copy, Default)]
struct Total {
    live: u64,
    garbage: u64,
    /// Of segments that have no rows.
    droppable: u64,
}

impl SegmentReclaimer {
    /// As [`Reclaimer::use_part`](super::Reclaimer::use_part).
    pub fn use_part(&mut self, part: &PartitionDb) {
        self.part = part.clone();
    }

    pub fn open(part: PartitionDb, set: u64) -> Result<SegmentReclaimer, StoreError> {
        let left = part.has_unconverted()?;
        Ok(SegmentReclaimer {
            part,
            set,
            garbage: 0,
            grown: Instant::now(),
            moving: None,
            joining: VecDeque::new(),
            exhausted: HashSet::new(),
            unconverted: left.then(|| keys::data(StreamId(0), 0)),
            next_drop: Instant::now(),
            unflushed: None,
        })
    }

    /// Does one step: drops segments, moves at most some batches if it may, or converts some. Returns the bytes
    /// that were moved, and the last key that was converted: files with no keys after it can be dropped once that
    /// is durable.
    pub fn work(&mut self, may_move: bool) -> Result<(u64, Option<[u8; 17]>), StoreError> {
        let usages = self.part.segment_usage()?;
        let total = Total::of(&usages);
        self.note(total);
        // Segments that are gone need not be remembered.
        self.exhausted
            .retain(|segment| usages.binary_search_by_key(segment, |(n, _)| *n).is_ok());
        self.drop_segments(total)?;
        if self.moving.is_none() {
            let short = self.part.short_space();
            let next = match self.is_worth_it(total) {
                true => worst(&usages, short, &self.exhausted),
                false => None,
            };
            // A join gives no space back, and takes some until it is done.
            let next = match short {
                None => next.or_else(|| self.next_to_join(&usages)),
                Some(_) => next,
            };
            self.moving = next.map(|segment| (segment, keys::batch(segment, StreamId(0), 0)));
        }
        // However little is appended: files must not take much more than what is live.
        let is_urgent = total.garbage - total.droppable > total.live;
        let moved = match may_move || is_urgent {
            true => self.move_some()?,
            false => 0,
        };
        Ok((moved, self.convert_some()?))
    }

    /// Bytes that no row has any more.
    pub fn garbage(&self) -> u64 {
        self.garbage
    }

    /// Whether batches are to be moved: with appends under way, as many bytes may be moved as are appended.
    pub fn is_moving(&self) -> bool {
        self.moving.is_some()
    }

    /// Whether a round has something to do, or waits for a flush.
    pub fn is_at_work(&self) -> bool {
        let is_joining = !self.joining.is_empty();
        self.is_moving() || is_joining || self.unconverted.is_some() || self.unflushed.is_some()
    }

    fn note(&mut self, total: Total) {
        if total.garbage > self.garbage {
            self.grown = Instant::now();
        }
        self.garbage = total.garbage;
    }

    fn is_worth_it(&self, total: Total) -> bool {
        let quiet = self.grown.elapsed();
        // What is dropped whole costs nothing.
        let garbage = total.garbage - total.droppable;
        let is_much = |after| garbage >= self.set || (garbage >= LITTLE && quiet >= after);
        let is_over = is_too_much(garbage, total.live) && is_much(QUIET);
        let is_short = self.part.short_space().is_some();
        is_over || (is_short && is_much(QUIET_IN_NEED))
    }

    fn drop_segments(&mut self, total: Total) -> Result<(), StoreError> {
        if total.droppable == 0 {
            self.unflushed = None;
            return Ok(());
        }
        let now = Instant::now();
        if now < self.next_drop {
            return Ok(());
        }
        self.next_drop = now + DROP_INTERVAL;
        if self.part.drop_segments()? {
            self.unflushed = None;
            return Ok(());
        }
        // Without appends, nothing else would flush them.
        let since = *self.unflushed.get_or_insert(now);
        let wait = match self.part.short_space() {
            Some(_) => QUIET_IN_NEED,
            None => QUIET,
        };
        let is_due = total.droppable >= self.set || now.duration_since(since) >= wait;
        if is_due && self.part.may_flush() && self.part.unflushed() == 0 {
            self.part.begin_flush()?;
        }
        Ok(())
    }

    /// A segment that is to be joined with others.
    fn next_to_join(&mut self, usages: &[(u64, Usage)]) -> Option<u64> {
        if self.joining.is_empty() {
            let mut classes: [Vec<u64>; 16] = Default::default();
            // What is moved is written to segments of the largest size, or it would be joined again and again.
            let most = SMALL.min(self.part.max_segment() / 4);
            let small = |(segment, usage): &&(u64, Usage)| {
                usage.bytes < most && usage.live > 0 && !self.exhausted.contains(segment)
            };
            for (segment, usage) in usages.iter().filter(small) {
                let class = usage.bytes.checked_ilog2().unwrap_or(0) / 2;
                classes[class as usize % classes.len()].push(*segment);
            }
            let full = classes.into_iter().find(|class| class.len() >= JOIN);
            self.joining = full.unwrap_or_default().into();
        }
        self.joining.pop_front()
    }

    fn move_some(&mut self) -> Result<u64, StoreError> {
        let Some((segment, from)) = self.moving else {
            return Ok(0);
        };
        let part = self.part.clone();
        let mut batch = part.batch();
        let (next, bytes) = collect(&part, segment, from, &mut batch)?;
        // After a failure, the same batches are moved again: a move takes those before it for trimmed.
        batch.write()?;
        self.moving = next.map(|next| (segment, next));
        if self.moving.is_none() {
            self.exhausted.insert(segment);
        }
        Ok(bytes)
    }

    fn convert_some(&mut self) -> Result<Option<[u8; 17]>, StoreError> {
        let Some(from) = self.unconverted else {
            return Ok(None);
        };
        let part = &self.part;
        let (_, to) = keys::all_data();
        let mut it = part.iterate(&from, &to, false);
        it.seek_to_first();
        let (first_row, rows_end) = keys::all_rows();
        let mut rows = part.iterate(&first_row, &rows_end, true);
        let (mut found, mut bytes, mut stream) = (Vec::<Written>::new(), 0, None);
        let mut batch = part.batch();
        let mut last = None;
        while let (Some(key), Some(value)) = (it.key(), it.value()) {
            let malformed = || part.malformed("a batch's key", &"its length");
            let id = keys::id_of(key).map(StreamId).ok_or_else(malformed)?;
            let first = keys::first_seq_of(key).ok_or_else(malformed)?;
            // The batches of a row follow each other, so that no other row is among them.
            let follows = found.last().is_none_or(|before| before.end == first);
            if bytes >= MAX_STEP_BYTES || *stream.get_or_insert(id) != id || !follows {
                break;
            }
            bytes += value.len() as u64;
            last = Some(keys::data(id, first));
            // When files of converted batches are dropped, one of them may be found again.
            rows.seek(keys::row(id, first));
            let is_there = row_under(part, &rows, id)?.is_some_and(|(last, row)| {
                row.first <= first && (first < row.end || last == keys::OPEN)
            });
            match is_there {
                true => batch.delete(keys::data(id, first)),
                false => found.push(written(first, value)),
            }
            it.next();
        }
        for it in [&it, &rows] {
            it.status()
                .map_err(|e| part.error("reading batches of an earlier build", e))?;
        }
        drop((it, rows));
        let (Some(stream), Some(last)) = (stream, last) else {
            if from == keys::data(StreamId(0), 0) {
                self.unconverted = None;
                part.note_converted();
                tracing::info!(partition = %part.partition(), "batches of an earlier build are converted");
            } else {
                self.unconverted = Some(keys::data(StreamId(0), 0));
            }
            return Ok(None);
        };
        batch.convert(stream, found);
        batch.write()?;
        self.unconverted = Some(following(last));
        Ok(Some(last))
    }
}

/// Whether segments with rows hold more dead bytes than they may for these live ones.
fn is_too_much(garbage: u64, live: u64) -> bool {
    let (dead, of) = MAX_GARBAGE;
    garbage > live / of * dead
}

/// The segment with the largest share of dead bytes, if it is not exhausted; of those that are nearly equal, the
/// newest. On a disk with few free bytes, these must be enough for what is moved. `usages` are in order.
fn worst(usages: &[(u64, Usage)], free: Option<u64>, exhausted: &HashSet<u64>) -> Option<u64> {
    let fits = |usage: &Usage| free.is_none_or(|free| usage.live < free / 2);
    let movable = |(segment, usage): &&(u64, Usage)| {
        let is_left = usage.live > 0 && usage.garbage() > 0;
        is_left && fits(usage) && !exhausted.contains(segment)
    };
    let (part, of) = NEARLY;
    let shares = usages.iter().filter(movable);
    let most = shares.map(|(_, usage)| dead_share(usage)).max()?;
    let mut newest_first = usages.iter().rev().filter(movable);
    let worst = newest_first.find(|(_, usage)| dead_share(usage) * of >= most * part);
    worst.map(|(segment, _)| *segment)
}

/// Dead bytes of a segment, as a fraction of 2^32.
fn dead_share(usage: &Usage) -> u128 {
    (u128::from(usage.garbage()) << 32) / u128::from(usage.bytes.max(1))
}

impl Total {
    fn of(usages: &[(u64, Usage)]) -> Total {
        let mut total = Total::default();
        for (_, usage) in usages {
            total.live += usage.live;
            total.garbage += usage.garbage();
            if usage.live == 0 {
                total.droppable += usage.bytes;
            }
        }
        total
    }
}

/// The key after this one of the same length.
fn following(key: [u8; 17]) -> [u8; 17] {
    let mut next = key;
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
    next
}

fn written(first: u64, value: &[u8]) -> Written {
    let count = StoredBatch::count_in(value).unwrap_or(1).max(1);
    Written {
        first,
        end: first.saturating_add(count),
        value: Bytes::copy_from_slice(value),
    }
}

/// Adds moves of a segment's batches from a key on to a batch of writes. Returns the key at which the next
/// step continues, `None` at the end of the segment; and the bytes that are moved.
fn collect(
    part: &PartitionDb,
    segment: u64,
    from: [u8; 24],
    batch: &mut PartitionBatch,
) -> Result<(Option<[u8; 24]>, u64), StoreError> {
    let (first_row, rows_end) = keys::all_rows();
    let mut rows = part.iterate(&first_row, &rows_end, true);
    let mut it = part.iterate_segments(false);
    it.seek(from);
    let mut bytes = 0;
    let next = loop {
        let Some((found, stream, first)) = it.key().and_then(keys::parts_of_batch) else {
            break None;
        };
        if found != segment {
            break None;
        }
        if bytes >= MAX_STEP_BYTES {
            break Some(keys::batch(segment, stream, first));
        }
        rows.seek(keys::row(stream, first));
        let row = row_under(part, &rows, stream)?;
        match row {
            // The stream has nothing more.
            None => match stream.0.checked_add(1) {
                Some(next) => it.seek(keys::batch(segment, StreamId(next), 0)),
                None => break None,
            },
            Some((keys::OPEN, row)) if row.segment != segment => match stream.0.checked_add(1) {
                Some(next) => it.seek(keys::batch(segment, StreamId(next), 0)),
                None => break None,
            },
            // The batch is in another segment now.
            Some((_, row)) if row.segment != segment => {
                it.seek(keys::batch(segment, stream, row.end.max(first + 1)));
            }
            // It is trimmed.
            Some((_, row)) if first < row.first => {
                it.seek(keys::batch(segment, stream, row.first));
            }
            Some((last, row)) => {
                let mut moved = Vec::new();
                while let (Some(key), Some(value)) = (it.key(), it.value()) {
                    let is_of_row = keys::parts_of_batch(key).filter(|(found, of, first)| {
                        (*found, *of) == (segment, stream) && *first < row.end
                    });
                    let Some((_, _, first)) = is_of_row.filter(|_| bytes < MAX_STEP_BYTES) else {
                        break;
                    };
                    bytes += value.len() as u64;
                    moved.push(written(first, value));
                    it.next();
                }
                if moved.is_empty() {
                    return Err(part.malformed("a row of batches", &"it ends before a batch of it"));
                }
                batch.move_batches(stream, last, row, moved);
            }
        }
    };
    for it in [&it, &rows] {
        it.status()
            .map_err(|e| part.error("reading what to move", e))?;
    }
    Ok((next, bytes))
}

/// The row of a stream under an iterator, with the last sequence number of its key.
fn row_under(
    part: &PartitionDb,
    rows: &crate::store::RawIterator<'_>,
    stream: StreamId,
) -> Result<Option<(u64, Row)>, StoreError> {
    let (Some(key), Some(value)) = (rows.key(), rows.value()) else {
        return Ok(None);
    };
    if key[..9] != keys::row(stream, 0)[..9] {
        return Ok(None);
    }
    let row = Row::parse(value).zip(keys::last_of(key));
    let (row, last) = row.ok_or_else(|| part.malformed("a row of batches", &"its length"))?;
    Ok(Some((last, row)))
}

#[cfg(test)]
mod tests;
