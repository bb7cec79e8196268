//! Reading: streams by name, records by position, what is due to expire.
//!
//! Everything here blocks on the database for as long as a disk takes; call it where that is fine.

use std::sync::Arc;

use bytes::Bytes;
use s2_common::caps::RECORD_BATCH_MAX;
use s2_common::config::StreamConfig;
use s2_common::read_extent::{ReadLimit, ReadUntil};
use s2_common::record::{
    Metered, MeteredSize as _, SeqNum, SequencedRecord, StreamPosition, Timestamp,
};
use s2_common::stream::{ReadFrom, ReadStart};

use crate::batch::{MalformedBatch, StoredBatch};
use crate::ids::{BasinId, PartitionId, StreamId};
use crate::keys;
use crate::store::{Part, RawIterator, StoreError, two_numbers};
use crate::stream::{Stream, StreamMeta, StreamState, View};
use crate::streams::directory::Directory;

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The position has no record yet, and the read may not wait for one.
    #[error("nothing is written at the position; the tail is {0}")]
    Unwritten(StreamPosition),
    /// The stream was deleted.
    #[error("the stream is gone")]
    Gone,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Records that were read.
#[derive(Debug)]
pub struct Scan {
    /// In order, without gaps but where sequence numbers have them; at most
    /// [`RECORD_BATCH_MAX`].
    pub records: Metered<Vec<SequencedRecord>>,
    /// Where to go on.
    pub next: SeqNum,
    /// Why it ended.
    pub end: ScanEnd,
}

/// Why a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanEnd {
    /// There is more.
    More,
    /// The tail was reached; this one.
    Tail(StreamPosition),
    /// The next record would exceed the limits that the reader set.
    Limit,
}

/// A stream in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
}

/// Something that time has made due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Records below are too old.
    Expire {
        /// The stream.
        stream: StreamId,
        /// First sequence number that stays.
        up_to: SeqNum,
    },
    /// The stream has been empty for long enough.
    DeleteIfEmpty {
        /// The stream.
        stream: StreamId,
        /// Since when nothing happened to it.
        since_ms: u64,
    },
}

/// Reads a stream partition. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    part: Part,
    directory: Arc<Directory>,
}

impl Reader {
    pub(crate) fn new(part: Part, directory: Arc<Directory>) -> Reader {
        Reader { part, directory }
    }

    /// Which partition.
    pub fn partition(&self) -> PartitionId {
        self.part.partition()
    }

    /// The partition's part of the database.
    pub fn part(&self) -> &Part {
        &self.part
    }

    #[cfg(test)]
    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The stream of this name, if there is one.
    pub fn stream(&self, basin: BasinId, name: &str) -> Result<Option<Arc<Stream>>, StoreError> {
        self.directory.by_name(basin, name)
    }

    /// Streams of a basin in order of their names, which begin with `prefix` and come after
    /// `start_after`; at most `limit`.
    pub fn list(
        &self,
        basin: BasinId,
        prefix: &str,
        start_after: &str,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let mut listed = Vec::new();
        if self.directory.is_dropped(basin) {
            return Ok(listed);
        }
        let (from, to) = keys::stream_names(basin, prefix.max(start_after));
        let mut it = self.part.iterate(&from, &to, true);
        it.seek_to_first();
        while let (Some(key), Some(value)) = (it.key(), it.value()) {
            let name = keys::name_of(key)
                .ok_or_else(|| self.part.malformed("the index of names", &"not UTF-8"))?;
            if listed.len() == limit || !name.starts_with(prefix) {
                break;
            }
            if name > start_after || start_after.is_empty() {
                let [_, created_ms] = two_numbers(value)
                    .ok_or_else(|| self.part.malformed("the index of names", &"its length"))?;
                listed.push(Listed {
                    name: name.to_owned(),
                    created_ms,
                });
            }
            it.next();
        }
        it.status()
            .map_err(|e| self.part.error("listing streams", e))?;
        Ok(listed)
    }

    /// The sequence number that a read begins at.
    pub fn start(
        &self,
        stream: &Stream,
        start: ReadStart,
        may_follow: bool,
    ) -> Result<SeqNum, ReadError> {
        let view = stream.view();
        if view.gone {
            return Err(ReadError::Gone);
        }
        let tail = view.state.tail();
        let seq = match start.from {
            ReadFrom::SeqNum(seq) => seq,
            ReadFrom::TailOffset(offset) => view.state.before_tail(offset),
            ReadFrom::Timestamp(timestamp) if timestamp > tail.timestamp => {
                if !start.clamp {
                    return Err(ReadError::Unwritten(tail));
                }
                tail.seq_num
            }
            ReadFrom::Timestamp(timestamp) => self
                .first_at(stream.id, timestamp, &view.state)?
                .unwrap_or(tail.seq_num),
        };
        let seq = if start.clamp {
            seq.min(tail.seq_num)
        } else {
            seq
        };
        let seq = view.state.after_gap(seq);
        if seq > tail.seq_num || (seq == tail.seq_num && !may_follow) {
            return Err(ReadError::Unwritten(tail));
        }
        Ok(seq)
    }

    /// The first record that readers see with at least this timestamp.
    fn first_at(
        &self,
        id: StreamId,
        timestamp: Timestamp,
        state: &StreamState,
    ) -> Result<Option<SeqNum>, StoreError> {
        let mut it = self.part.iterate(
            &keys::by_time(id, timestamp, 0),
            &keys::by_time_end(id),
            true,
        );
        it.seek_to_first();
        let found = it.key().and_then(keys::time_and_seq_of);
        it.status()
            .map_err(|e| self.part.error("reading the index by time", e))?;
        let Some((_, first_seq)) = found else {
            return Ok(None);
        };
        let mut it = self
            .part
            .iterate(&keys::data(id, first_seq), &keys::data_end(id), true);
        it.seek_to_first();
        let batch = self.batch_at(&it)?;
        let seq = batch.and_then(|batch| batch.seq_at(timestamp));
        // Timestamps never decrease, so if that record is trimmed, all that are left qualify.
        Ok(seq
            .map(|seq| seq.max(state.head()))
            .filter(|seq| *seq < state.tail_seq))
    }

    /// Records from `from` on, within `limit` and `until`, and within one batch of the API.
    pub fn scan(
        &self,
        stream: &Arc<Stream>,
        from: SeqNum,
        limit: ReadLimit,
        until: ReadUntil,
    ) -> Result<Scan, ReadError> {
        let (recent, view) = match stream.recent_from(from) {
            Some((batches, view)) => (Some(batches), view),
            None => (None, stream.view()),
        };
        if view.gone {
            return Err(ReadError::Gone);
        }
        let tail = view.state.tail();
        let from = from.max(view.state.head());
        let mut taking = Taking::new(from, tail.seq_num, limit, until);
        match recent {
            Some(batches) => {
                for batch in batches {
                    if !taking.take(&batch).map_err(|e| self.bad_batch(&e))? {
                        break;
                    }
                }
            }
            None => self.scan_database(stream.id, &mut taking, &view)?,
        }
        if taking.records.is_empty() && taking.end.is_none() && stream.view().gone {
            return Err(ReadError::Gone);
        }
        Ok(taking.finish(tail))
    }

    fn scan_database(
        &self,
        id: StreamId,
        taking: &mut Taking,
        view: &View,
    ) -> Result<(), StoreError> {
        let from = taking.next;
        if from >= view.state.tail_seq {
            return Ok(());
        }
        let mut it = self.part.iterate(
            &keys::data(id, 0),
            &keys::data(id, view.state.tail_seq),
            false,
        );
        it.seek_for_prev(keys::data(id, from));
        if !it.valid() {
            it.seek_to_first();
        }
        while let Some(batch) = self.batch_at(&it)? {
            if !taking.take(&batch).map_err(|e| self.bad_batch(&e))? {
                break;
            }
            it.next();
        }
        Ok(())
    }

    /// The batch under the iterator, if it has not ended.
    fn batch_at(&self, it: &RawIterator<'_>) -> Result<Option<StoredBatch>, StoreError> {
        let (Some(key), Some(value)) = (it.key(), it.value()) else {
            it.status()
                .map_err(|e| self.part.error("reading records", e))?;
            return Ok(None);
        };
        let first_seq = keys::first_seq_of(key)
            .ok_or_else(|| self.part.malformed("a batch's key", &"its length"))?;
        StoredBatch::parse(first_seq, Bytes::copy_from_slice(value))
            .map(Some)
            .map_err(|e| self.bad_batch(&e))
    }

    fn bad_batch(&self, e: &MalformedBatch) -> StoreError {
        self.part.malformed("a batch", e)
    }

    /// Looks at up to `count` streams with ids after `after`, and says what is due at `now_ms`, and
    /// where to go on; `None` at the end.
    pub fn due(
        &self,
        after: StreamId,
        count: usize,
        now_ms: u64,
    ) -> Result<(Vec<Due>, Option<StreamId>), StoreError> {
        let mut seen = Vec::new();
        {
            let (_, to) = keys::all_stream_metas();
            let from = keys::stream_meta(StreamId(after.0.saturating_add(1)));
            let mut it = self.part.iterate(&from, &to, true);
            it.seek_to_first();
            while let (Some(key), Some(value)) = (it.key(), it.value()) {
                if seen.len() == count {
                    break;
                }
                let id = keys::id_of(key)
                    .ok_or_else(|| self.part.malformed("a stream's key", &"its length"))?;
                let meta = <StreamMeta as prost::Message>::decode(value)
                    .map_err(|e| self.part.malformed("a stream's settings", &e))?;
                seen.push((StreamId(id), meta));
                it.next();
            }
            it.status()
                .map_err(|e| self.part.error("reading streams", e))?;
        }
        let next = (seen.len() == count)
            .then(|| seen.last().map(|(id, _)| *id))
            .flatten();
        let mut due = Vec::new();
        for (id, meta) in seen {
            if !self.directory.is_dropped(BasinId(meta.basin)) {
                due.extend(self.due_of(id, &meta, now_ms)?);
            }
        }
        Ok((due, next))
    }

    fn due_of(
        &self,
        id: StreamId,
        meta: &StreamMeta,
        now_ms: u64,
    ) -> Result<Option<Due>, StoreError> {
        let config = StreamConfig::from(&meta.settings);
        let age = config.retention_policy.age();
        let min_age = config.delete_on_empty.min_age();
        if age.is_none() && min_age.is_none() {
            return Ok(None);
        }
        let state = self.part.stream_state(id)?.unwrap_or_default();
        if state.is_empty() {
            let ripe = min_age.is_some_and(|min_age| {
                now_ms.saturating_sub(state.active_ms) >= min_age.as_millis() as u64
            });
            return Ok(ripe.then_some(Due::DeleteIfEmpty {
                stream: id,
                since_ms: state.active_ms,
            }));
        }
        let Some(age) = age else {
            return Ok(None);
        };
        let cutoff = now_ms.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let up_to = self.first_arrived(id, cutoff, &state)?;
        Ok((up_to > state.head()).then_some(Due::Expire { stream: id, up_to }))
    }
}

impl Reader {
    /// Where the first batch begins that arrived at or after `cutoff`; the tail if none did. Batches
    /// of a stream arrive in order, so this halves what is left until nothing is.
    fn first_arrived(
        &self,
        id: StreamId,
        cutoff: u64,
        state: &StreamState,
    ) -> Result<SeqNum, StoreError> {
        let mut it = self
            .part
            .iterate(&keys::data(id, 0), &keys::data(id, state.tail_seq), true);
        let mut low = state.head();
        let mut high = state.tail_seq;
        // The oldest first: most streams have nothing to expire.
        let mut probe = low;
        while low < high {
            it.seek_for_prev(keys::data(id, probe));
            let Some(batch) = self.batch_at(&it)? else {
                return Ok(state.head());
            };
            if batch.arrival_ms < cutoff {
                low = batch.end_seq().max(probe + 1);
            } else {
                high = batch.first_seq.max(state.head());
            }
            probe = low + (high.saturating_sub(low)) / 2;
        }
        Ok(low.min(state.tail_seq))
    }
}

/// Records on their way into a [`Scan`].
struct Taking {
    next: SeqNum,
    tail: SeqNum,
    limit: ReadLimit,
    until: ReadUntil,
    records: Metered<Vec<SequencedRecord>>,
    end: Option<ScanEnd>,
}

impl Taking {
    fn new(from: SeqNum, tail: SeqNum, limit: ReadLimit, until: ReadUntil) -> Taking {
        Taking {
            next: from,
            tail,
            limit,
            until,
            records: Metered::with_capacity(0),
            end: None,
        }
    }

    /// Takes what fits; whether there may be room for more.
    fn take(&mut self, batch: &StoredBatch) -> Result<bool, MalformedBatch> {
        if batch.end_seq() <= self.next {
            return Ok(true);
        }
        for record in batch.records(self.next) {
            let record = record?;
            let position = *record.position();
            if position.seq_num >= self.tail {
                return Ok(false);
            }
            let count = self.records.len() + 1;
            let bytes = self.records.metered_size() + record.metered_size();
            if self.limit.deny(count, bytes) || self.until.deny(position.timestamp) {
                self.end = Some(ScanEnd::Limit);
                return Ok(false);
            }
            if count > RECORD_BATCH_MAX.count || bytes > RECORD_BATCH_MAX.bytes {
                self.end = Some(ScanEnd::More);
                return Ok(false);
            }
            self.records.push(record);
            self.next = position.seq_num + 1;
        }
        Ok(true)
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
        }
    }
}
