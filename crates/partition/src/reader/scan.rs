//! Scans: the records that a read session reads at a time, and its position between two scans.
//!
//! A session that continues is at the end of a batch, or within one that it keeps in memory, so a scan
//! finds its first batch by its key and reads nothing twice. Trims apply to where a read begins, and to
//! what it reads from the database later. A batch that directly follows everything that the session has
//! received is returned whole, even if the batch itself trims some of its records.

use std::sync::Arc;

use s2_common::caps::RECORD_BATCH_MAX;
use s2_common::read_extent::{ReadLimit, ReadUntil};
use s2_common::record::{SeqNum, StreamPosition};

use super::{ReadError, Reader};
use crate::batch::{MalformedBatch, StoredBatch};
use crate::batches::Batches;
use crate::ids::StreamId;
use crate::store::StoreError;
use crate::stored_records::StoredRecords;
use crate::stream::{Stream, View};

/// Records that were read.
#[derive(Debug)]
pub struct Scan {
    /// In order, without gaps other than those in the sequence numbers; at most [`RECORD_BATCH_MAX`]. As they
    /// are stored: see [`decrypt`](crate::encryption::decrypt).
    pub records: StoredRecords,
    /// The sequence number at which the next scan continues.
    pub next: SeqNum,
    /// Why it ended.
    pub end: ScanEnd,
    /// Whether the database was read, because not all records were in memory.
    pub read_database: bool,
    /// The batch that `next` is in, if the scan ended within it.
    rest: Option<StoredBatch>,
}

impl Scan {
    /// The cursor of the next scan.
    pub fn cursor(&self) -> Cursor {
        Cursor {
            next: self.next,
            rest: self.rest.clone(),
            begins: false,
        }
    }

    /// The same, of a scan that is not used any more.
    pub fn into_cursor(self) -> Cursor {
        Cursor {
            next: self.next,
            rest: self.rest,
            begins: false,
        }
    }
}

/// Why a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanEnd {
    /// There may be more records to read.
    More,
    /// The scan reached the tail, which is this position.
    Tail(StreamPosition),
    /// The next record would exceed the limits that the reader set.
    Limit,
}

/// The position of a reader in a stream.
#[derive(Clone, Debug)]
pub struct Cursor {
    next: SeqNum,
    /// The batch that `next` is in, if an earlier scan has read it already. At most one batch.
    rest: Option<StoredBatch>,
    /// Whether the next scan skips the records that are trimmed by then.
    begins: bool,
}

impl Cursor {
    /// The cursor of a session that reads no record.
    pub fn nowhere() -> Cursor {
        Cursor::at_start(0)
    }

    /// The cursor of a read that begins where no trim has reached: see [`Reader::begin`].
    pub(crate) fn at_start(seq: SeqNum) -> Cursor {
        Cursor {
            next: seq,
            rest: None,
            begins: false,
        }
    }

    /// The next sequence number.
    pub fn next(&self) -> SeqNum {
        self.next
    }

    /// The cursor of a session that has been given everything before this sequence number.
    pub fn after(next: SeqNum) -> Cursor {
        Cursor::at_start(next)
    }

    /// The next sequence number, if the cursor is between two appended batches, or the read of what follows
    /// does not depend on trims.
    pub fn continues_at(&self) -> Option<SeqNum> {
        (self.rest.is_none() && !self.begins).then_some(self.next)
    }

    /// Bytes of the batch that it keeps.
    pub fn rest_bytes(&self) -> usize {
        self.rest.as_ref().map_or(0, StoredBatch::bytes)
    }

    /// Where the stream has to be read next: after the batch that the cursor keeps, if it keeps one.
    pub fn resumes_at(&self) -> SeqNum {
        self.rest.as_ref().map_or(self.next, StoredBatch::end_seq)
    }
}

impl From<SeqNum> for Cursor {
    /// The cursor of a read that begins at this sequence number, or at the head if that is higher.
    fn from(seq: SeqNum) -> Cursor {
        Cursor {
            begins: true,
            ..Cursor::at_start(seq)
        }
    }
}

impl Reader {
    /// Records from the cursor on, within `limit` and `until`, and no more than one batch of the API.
    pub fn scan(
        &self,
        stream: &Arc<Stream>,
        from: impl Into<Cursor>,
        limit: ReadLimit,
        until: ReadUntil,
    ) -> Result<Scan, ReadError> {
        self.scan_on(stream, from, limit, until, &mut Place::default())
    }

    /// The same for one of several scans that follow each other: it continues at the place where the last
    /// one ended, and leaves its own.
    pub fn scan_on<'a>(
        &'a self,
        stream: &Arc<Stream>,
        from: impl Into<Cursor>,
        limit: ReadLimit,
        until: ReadUntil,
        place: &mut Place<'a>,
    ) -> Result<Scan, ReadError> {
        let from = from.into();
        let (mut recent, mut view) = match stream.recent_from(from.resumes_at()) {
            Some((batches, view)) => (Some(batches), view),
            None => (None, stream.view()),
        };
        if view.gone {
            return Err(ReadError::Gone);
        }
        let next = if from.begins {
            from.next.max(view.state.head())
        } else {
            from.next
        };
        let mut builder = ScanBuilder::new(next, limit, until);
        let bad_batch = |e: MalformedBatch| self.partition_db().malformed("a batch", &e);
        let mut has_room = match &from.rest {
            Some(rest) => builder.take(rest).map_err(bad_batch)?,
            None => true,
        };
        while has_room {
            let Some(some) = recent else {
                self.scan_database(stream.id, &mut builder, &view, place)?;
                break;
            };
            let mut end = from.resumes_at();
            for batch in &some.batches {
                end = batch.end_seq();
                has_room = builder.take(batch).map_err(bad_batch)?;
                if !has_room {
                    break;
                }
            }
            if some.ends {
                break;
            }
            // The batches were small or before the cursor, so there is room for more.
            recent = match stream.recent_from(end) {
                Some((batches, now)) => {
                    view = now;
                    Some(batches)
                }
                None => None,
            };
        }
        if builder.records.is_empty() && builder.end.is_none() && stream.view().gone {
            return Err(ReadError::Gone);
        }
        Ok(builder.finish(view.state.tail()))
    }

    /// Records of the batch that the cursor keeps, and of no other.
    ///
    /// # Errors
    ///
    /// [`ReadError::Store`] if the batch is malformed.
    pub fn scan_rest(
        &self,
        from: Cursor,
        limit: ReadLimit,
        until: ReadUntil,
    ) -> Result<Scan, ReadError> {
        let mut builder = ScanBuilder::new(from.next, limit, until);
        if let Some(rest) = &from.rest {
            let taken = builder.take(rest);
            taken.map_err(|e| self.partition_db().malformed("a batch", &e))?;
        }
        builder.end.get_or_insert(ScanEnd::More);
        // The end is set, so the tail is not used.
        Ok(builder.finish(StreamPosition::MIN))
    }

    fn scan_database<'a>(
        &'a self,
        id: StreamId,
        builder: &mut ScanBuilder,
        view: &View,
        place: &mut Place<'a>,
    ) -> Result<(), StoreError> {
        let (head, tail) = (view.state.head(), view.state.tail_seq);
        if builder.next >= tail {
            return Ok(());
        }
        builder.read_database = true;
        let bad_batch = |e: MalformedBatch| self.partition_db().malformed("a batch", &e);
        // A place before records that were trimmed meanwhile, or behind which there is nothing, is of no use.
        let kept = (place.0.take()).filter(|(next, batches)| {
            *next == builder.next && head <= *next && *next < batches.end()
        });
        let mut batches = match kept {
            Some((_, batches)) => batches,
            None => self.batches_from(id, builder, view)?,
        };
        loop {
            while let Some(batch) = batches.next()? {
                if !builder.take(&batch).map_err(bad_batch)? {
                    // The rest of the batch is in memory.
                    if builder.rest.is_some() {
                        place.0 = Some((batch.end_seq(), batches));
                    }
                    return Ok(());
                }
            }
            // What was kept may end before what was appended meanwhile.
            if batches.end() >= tail || builder.next >= tail {
                return Ok(());
            }
            batches = self.batches_from(id, builder, view)?;
        }
    }

    /// The batches of a stream, at the one that holds the next record of the scan. If the stream was trimmed
    /// beyond that, the scan continues at the head.
    fn batches_from<'a>(
        &'a self,
        id: StreamId,
        builder: &mut ScanBuilder,
        view: &View,
    ) -> Result<Batches<'a>, StoreError> {
        let (head, tail) = (view.state.head(), view.state.tail_seq);
        let bad_batch = |e: MalformedBatch| self.partition_db().malformed("a batch", &e);
        let mut batches = Batches::sequential(self.partition_db(), id, builder.next, tail);
        if builder.next < head {
            let trims_to = |batch: &StoredBatch| -> Result<Option<SeqNum>, MalformedBatch> {
                Ok(batch.trims_to()?.map(|seq| view.state.after_gap(seq)))
            };
            // The stream was trimmed beyond the cursor since the last scan. Trimmed records are skipped,
            // except for those of a batch at the cursor that contains the trim.
            batches.seek_start(builder.next);
            match batches.peek()? {
                Some(batch) if trims_to(&batch).map_err(bad_batch)? >= Some(head) => {}
                _ => {
                    builder.next = head;
                    batches.seek(head);
                }
            }
        } else {
            batches.seek(builder.next);
        }
        Ok(batches)
    }
}

/// The place in the database where a scan has ended, for the next scan of the same stream. It keeps
/// the files and memtables from being removed that there were when it was made, so it must not be kept for
/// long.
#[derive(Default)]
pub struct Place<'a>(Option<(SeqNum, Batches<'a>)>);

/// Records on their way into a [`Scan`].
struct ScanBuilder {
    next: SeqNum,
    limit: ReadLimit,
    until: ReadUntil,
    records: StoredRecords,
    end: Option<ScanEnd>,
    read_database: bool,
    rest: Option<StoredBatch>,
}

impl ScanBuilder {
    fn new(from: SeqNum, limit: ReadLimit, until: ReadUntil) -> ScanBuilder {
        ScanBuilder {
            next: from,
            limit,
            until,
            records: StoredRecords::default(),
            end: None,
            read_database: false,
            rest: None,
        }
    }

    /// Takes the records that fit; returns whether there may be room for more.
    fn take(&mut self, batch: &StoredBatch) -> Result<bool, MalformedBatch> {
        if batch.end_seq() <= self.next {
            return Ok(true);
        }
        let first = batch.index_of(self.next);
        let offset = batch.offset_of(first);
        let (mut count, mut bytes) = (0, 0);
        let mut has_room = true;
        for record in batch.raw_records(first, offset) {
            let (position, record) = record?;
            let new_count = self.records.len() + count + 1;
            let new_bytes = self.records.metered_size() + bytes + record.metered_size;
            if self.limit.deny(new_count, new_bytes) || self.until.deny(position.timestamp) {
                self.end = Some(ScanEnd::Limit);
                has_room = false;
                break;
            }
            if new_count > RECORD_BATCH_MAX.count || new_bytes > RECORD_BATCH_MAX.bytes {
                self.end = Some(ScanEnd::More);
                self.rest = Some(batch.clone());
                has_room = false;
                break;
            }
            count += 1;
            bytes += record.metered_size;
            self.next = position.seq_num + 1;
        }
        self.records
            .push(batch.clone(), (first, offset), (count, bytes));
        Ok(has_room)
    }

    fn finish(self, tail: StreamPosition) -> Scan {
        let end = self.end.unwrap_or(ScanEnd::Tail(tail));
        Scan {
            records: self.records,
            next: match end {
                ScanEnd::Tail(tail) => tail.seq_num.max(self.next),
                ScanEnd::More | ScanEnd::Limit => self.next,
            },
            end,
            read_database: self.read_database,
            rest: self.rest,
        }
    }
}
