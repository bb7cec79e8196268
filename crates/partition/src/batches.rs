//! The batches of one stream in the database, in the order of their sequence numbers.
//!
//! Readers find them here alone, so that this is the one place that knows where a stream's batches are: in
//! rows of segments ([`crate::row`]) or, in a partition that an earlier build wrote and that is not
//! converted yet, under keys of the stream. Either place may have batches before and after those of the
//! other.
//!
//! All searches move forward only. Moving an iterator forward reads no block of a file that has nothing at
//! the target, because the index of a file has the first and last key of each block. Moving it backward
//! reads a block of every run.
//!
//! Batches move between places while they are read. They are written to the new place before they vanish
//! from the old one, so the iterators are created in this order: of earlier builds' keys, of rows, of
//! segments. What the first has lost, the others have. Files of a segment are deleted when no row is in it;
//! the iterators are created again if that happens while they are created.

use bytes::Bytes;
use rust_rocksdb::SnapshotWithThreadMode;
use s2_common::caps::RECORD_BATCH_MAX;
use s2_common::record::SeqNum;

use crate::batch::StoredBatch;
use crate::ids::StreamId;
use crate::keys;
use crate::row::Row;
use crate::store::{Db, PartitionDb, RawIterator, StoreError};

/// Most records of a batch. The batch that holds a sequence number begins less than this many numbers
/// before it.
const MAX_BATCH_RECORDS: u64 = RECORD_BATCH_MAX.count as u64;

#[cfg(test)]
thread_local! {
    /// How many [`Batches`] this thread has created.
    pub(crate) static OPENED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// The batches of a stream, as they are when this is created. Every move may read from the disk.
pub(crate) struct Batches<'a> {
    part: &'a PartitionDb,
    stream: StreamId,
    /// Batches that begin here or later are left out.
    end: SeqNum,
    /// Of an earlier build's keys; `None` if the partition has none.
    earlier: Option<RawIterator<'a>>,
    rows: RawIterator<'a>,
    segments: RawIterator<'a>,
    /// The row under `rows`; its end is [`SeqNum::MAX`] if it may grow.
    row: Option<Row>,
    /// Where the batch under `segments` begins, and that under `earlier`; `None` at the end.
    in_segment: Option<SeqNum>,
    in_earlier: Option<SeqNum>,
    /// Whether [`next`](Self::next) has returned the present batch.
    returned: bool,
    failed: Option<StoreError>,
}

/// A snapshot of the database.
type Snapshot<'a> = SnapshotWithThreadMode<'a, Db>;

impl<'a> Batches<'a> {
    /// The batches that begin before `end`. What is read stays in the block cache, so this is for searches.
    pub(crate) fn new(part: &'a PartitionDb, stream: StreamId, end: SeqNum) -> Batches<'a> {
        Batches::open(part, stream, end, true)
    }

    /// The same for reading many from `from` on: batches are not cached, because each is read once; only
    /// the blocks at the border of `from` are, which every such read of an earlier build's keys inspects.
    pub(crate) fn sequential(
        part: &'a PartitionDb,
        stream: StreamId,
        from: SeqNum,
        end: SeqNum,
    ) -> Batches<'a> {
        let batches = Batches::open(part, stream, end, false);
        if batches.earlier.is_some() {
            part.cache_border(&keys::data(stream, 0), &keys::data(stream, from));
        }
        batches
    }

    fn open(part: &'a PartitionDb, stream: StreamId, end: SeqNum, cache: bool) -> Batches<'a> {
        #[cfg(test)]
        OPENED.set(OPENED.get() + 1);
        let (first, last) = (keys::data(stream, 0), keys::data(stream, end));
        let (row, rows_end) = (keys::row(stream, 0), keys::rows_end(stream));
        loop {
            let drops = part.file_drops();
            let (has, failed) = match part.has_unconverted() {
                Ok(has) => (has, None),
                Err(error) => (false, Some(error)),
            };
            let batches = Batches {
                part,
                stream,
                end,
                earlier: has.then(|| part.iterate(&first, &last, cache)),
                rows: part.iterate(&row, &rows_end, true),
                segments: part.iterate_segments(cache),
                row: None,
                in_segment: None,
                in_earlier: None,
                returned: false,
                failed,
            };
            if part.file_drops() == drops {
                return batches;
            }
        }
    }

    /// The batches of all streams in a snapshot; [`Batches::turn_to`] names a stream. `has_earlier` is
    /// [`PartitionDb::has_unconverted`] before the snapshot was created.
    pub(crate) fn of_snapshot(
        part: &'a PartitionDb,
        snapshot: &'a Snapshot<'_>,
        has_earlier: bool,
    ) -> Batches<'a> {
        let iterate = |(from, to): (Vec<u8>, Vec<u8>), cache| {
            let options = crate::store::bounded(&from, &to, cache);
            snapshot.raw_iterator_cf_opt(&part.cf(), options)
        };
        let segments =
            snapshot.raw_iterator_cf_opt(&part.segments_cf(), crate::store::unbounded(false));
        Batches {
            part,
            stream: StreamId(0),
            end: 0,
            earlier: has_earlier.then(|| iterate(keys::all_data(), false)),
            rows: iterate(keys::all_rows(), true),
            segments,
            row: None,
            in_segment: None,
            in_earlier: None,
            returned: false,
            failed: None,
        }
    }

    /// All batches that begin before this are here.
    pub(crate) fn end(&self) -> SeqNum {
        self.end
    }

    /// Goes on with another stream; a seek has to follow.
    pub(crate) fn turn_to(&mut self, stream: StreamId, end: SeqNum) {
        self.stream = stream;
        self.end = end;
        self.row = None;
        self.in_segment = None;
        self.in_earlier = None;
    }

    /// Moves to the batch that holds `seq` or, if there is none, to the first one after it.
    ///
    /// A seek reads the batch at its target, so the search needs few of them: most reads begin where a batch
    /// begins, and the batches of a stream tend to have one size, so the first step back is the size of the
    /// batch after `seq`.
    pub(crate) fn seek(&mut self, seq: SeqNum) {
        let behind = self.seek_from(seq);
        if behind.is_some_and(|(start, _)| start == seq) {
            return;
        }
        let mut lowest = seq.saturating_sub(MAX_BATCH_RECORDS - 1);
        if self.earlier.is_none() {
            // The row that `seq` is in has the batch, or none has.
            match self.row_of(seq) {
                Some(row) if row.first <= seq => lowest = lowest.max(row.first),
                _ => {
                    self.seek_start(seq);
                    return;
                }
            }
        }
        let mut step = behind.map_or(1, |(start, end)| end - start);
        // No batch begins in `high..=seq`; the batch that holds `seq` does not begin before `low`.
        let (mut low, mut high) = (lowest, seq);
        while low < high {
            let probe = high.saturating_sub(step).max(low);
            match self.seek_from(probe).filter(|(start, _)| *start < high) {
                Some((_, end)) if end > seq => return,
                Some((_, end)) => {
                    low = end;
                    step = (high.saturating_sub(low) / 2).max(1);
                }
                None => {
                    high = probe;
                    step = step.saturating_mul(2);
                }
            }
        }
        self.seek_start(seq);
    }

    /// Moves to the first batch that begins at or after `seq`; returns where it begins and ends.
    fn seek_from(&mut self, seq: SeqNum) -> Option<(SeqNum, SeqNum)> {
        self.seek_start(seq);
        self.range()
    }

    /// Moves to the first batch that begins at or after `seq`.
    pub(crate) fn seek_start(&mut self, seq: SeqNum) {
        self.returned = false;
        self.seek_segments(seq);
        self.seek_earlier(seq);
    }

    fn seek_earlier(&mut self, seq: SeqNum) {
        let (stream, end) = (self.stream, self.end);
        self.in_earlier = self.earlier.as_mut().and_then(|it| {
            it.seek(keys::data(stream, seq));
            first_before(it, stream, end)
        });
    }

    /// Moves `rows` to the row that has `seq`, or to the first after it.
    fn row_of(&mut self, seq: SeqNum) -> Option<Row> {
        if self.row.is_none_or(|row| seq < row.first || row.end <= seq) {
            self.rows.seek(keys::row(self.stream, seq));
            self.row = self.present_row();
        }
        self.row
    }

    fn next_row(&mut self) {
        if self.rows.valid() {
            self.rows.next();
        }
        self.row = self.present_row();
    }

    fn present_row(&mut self) -> Option<Row> {
        let (Some(key), Some(value)) = (self.rows.key(), self.rows.value()) else {
            return None;
        };
        if key[..9] != keys::row(self.stream, 0)[..9] {
            return None;
        }
        let Some((row, last)) = Row::parse(value).zip(keys::last_of(key)) else {
            self.failed = Some(self.part.malformed("a row of batches", &"its length"));
            return None;
        };
        Some(match last {
            keys::OPEN => Row {
                end: SeqNum::MAX,
                ..row
            },
            _ => row,
        })
    }

    fn seek_segments(&mut self, seq: SeqNum) {
        self.row_of(seq);
        self.in_segment = None;
        let mut from = seq;
        while let Some(row) = self.row.filter(|row| row.first < self.end) {
            let key = keys::batch(row.segment, self.stream, from.max(row.first));
            self.segments.seek(key);
            self.in_segment = self.first_in(&row);
            if self.in_segment.is_some() || self.segments.status().is_err() {
                return;
            }
            from = 0;
            self.next_row();
        }
    }

    /// Where the batch under `segments` begins, if it is in the row.
    fn first_in(&self, row: &Row) -> Option<SeqNum> {
        let (segment, stream, first) = keys::parts_of_batch(self.segments.key()?)?;
        let is_in = (segment, stream) == (row.segment, self.stream) && first < row.end;
        (is_in && first < self.end).then_some(first)
    }

    /// Moves to the next batch of the row or, after its last one, to the next row.
    fn move_in_segments(&mut self, end: SeqNum) {
        self.in_segment = None;
        if end >= self.end {
            return;
        }
        // Moving the iterator would read the next batch of the file, which is another stream's.
        if let Some(row) = self.row.filter(|row| end < row.end) {
            self.segments.next();
            self.in_segment = self.first_in(&row);
            if self.in_segment.is_some() || self.segments.status().is_err() {
                return;
            }
        }
        self.next_row();
        if let Some(row) = self.row {
            self.seek_segments(row.first.max(end));
        }
    }

    fn is_in_segment(&self) -> bool {
        match (self.in_segment, self.in_earlier) {
            (Some(here), Some(there)) => here <= there,
            (here, _) => here.is_some(),
        }
    }

    /// Where the present batch begins, and its value.
    fn present(&self) -> Option<(SeqNum, &[u8])> {
        match self.is_in_segment() {
            true => self.in_segment.zip(self.segments.value()),
            false => self.in_earlier.zip(self.earlier.as_ref()?.value()),
        }
    }

    /// Where the present batch begins and ends.
    fn range(&self) -> Option<(SeqNum, SeqNum)> {
        let (first, value) = self.present()?;
        let count = StoredBatch::count_in(value).unwrap_or(1);
        Some((first, first.saturating_add(count.max(1))))
    }

    /// The batch that was moved to, or the one after it if that was returned; `None` at the end. It does
    /// not move beyond the batch, because moving reads the next one.
    pub(crate) fn next(&mut self) -> Result<Option<StoredBatch>, StoreError> {
        self.advance();
        self.peek()
    }

    /// The same: where the batch begins, and its bytes.
    pub(crate) fn next_value(&mut self) -> Result<Option<(SeqNum, &[u8])>, StoreError> {
        self.advance();
        self.check()?;
        Ok(self.present())
    }

    fn advance(&mut self) {
        if self.returned
            && let Some((_, end)) = self.range()
        {
            let was_in_segment = self.is_in_segment();
            if was_in_segment {
                self.move_in_segments(end);
            } else if let Some(it) = &mut self.earlier {
                it.next();
                self.in_earlier = first_before(it, self.stream, self.end);
            }
            // A batch that is being moved is in both places.
            if self.in_segment.is_some_and(|first| first < end) {
                self.seek_segments(end);
            }
            if self.in_earlier.is_some_and(|first| first < end) {
                self.seek_earlier(end);
            }
        }
        self.returned = true;
    }

    fn check(&mut self) -> Result<(), StoreError> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let iterators = [
            Some(&self.rows),
            Some(&self.segments),
            self.earlier.as_ref(),
        ];
        for it in iterators.into_iter().flatten() {
            it.status()
                .map_err(|e| self.part.error("reading records", e))?;
        }
        Ok(())
    }

    /// The present batch.
    pub(crate) fn peek(&mut self) -> Result<Option<StoredBatch>, StoreError> {
        self.check()?;
        let Some((first, value)) = self.present() else {
            return Ok(None);
        };
        StoredBatch::parse(first, Bytes::copy_from_slice(value))
            .map(Some)
            .map_err(|e| self.part.malformed("a batch", &e))
    }
}

/// Where the batch under an iterator of an earlier build's keys begins, if it is the stream's.
fn first_before(it: &RawIterator<'_>, stream: StreamId, end: SeqNum) -> Option<SeqNum> {
    let first = keys::first_seq_in(stream, it.key()?)?;
    (first < end).then_some(first)
}
