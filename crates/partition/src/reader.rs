//! Reading: streams by name, records by position, what is due to expire.
//!
//! Everything here blocks on the database for as long as a disk takes; call it where that is fine.

use std::sync::Arc;

use s2_common::config::StreamConfig;
use s2_common::record::{SeqNum, StreamPosition, Timestamp};
use s2_common::stream::{ReadFrom, ReadStart};

use crate::ids::{BasinId, PartitionId, StreamId};
use crate::keys;
use crate::seek::seek_batch;
use crate::store::{PartitionDb, StoreError, two_numbers};
use crate::stream::{Stream, StreamMeta, StreamState, View};
use crate::streams::directory::Directory;

pub use crate::scan::{Cursor, Scan, ScanEnd};

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
    part: PartitionDb,
    directory: Arc<Directory>,
}

impl Reader {
    pub(crate) fn new(part: PartitionDb, directory: Arc<Directory>) -> Reader {
        Reader { part, directory }
    }

    /// Which partition.
    pub fn partition(&self) -> PartitionId {
        self.part.partition()
    }

    /// The partition's part of the database.
    pub fn part(&self) -> &PartitionDb {
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

    /// The basins that the partition's streams are in, but for dropped ones. Looks at one stream of each.
    pub fn basins(&self) -> Result<Vec<BasinId>, StoreError> {
        let (from, to) = keys::all_stream_names();
        let mut it = self.part.iterate(&from, &to, false);
        it.seek_to_first();
        let mut basins = Vec::new();
        while let Some(key) = it.key() {
            let id = keys::id_of(key)
                .ok_or_else(|| self.part.malformed("the index of names", &"its length"))?;
            if !self.directory.is_dropped(BasinId(id)) {
                basins.push(BasinId(id));
            }
            match id.checked_add(1) {
                Some(next) => it.seek(keys::stream_name(BasinId(next), "")),
                None => break,
            }
        }
        it.status()
            .map_err(|e| self.part.error("reading basins of streams", e))?;
        Ok(basins)
    }

    /// Where a read begins: at a record that no trim has reached yet, or at the tail.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unwritten`] beyond the tail, or at it if the read may not follow.
    pub fn begin(
        &self,
        stream: &Stream,
        start: ReadStart,
        may_follow: bool,
    ) -> Result<Cursor, ReadError> {
        let view = stream.view();
        let seq = self.start_in(&view, stream.id, start, may_follow)?;
        Ok(Cursor::at_start(seq.max(view.state.head())))
    }

    /// The sequence number that a read is asked to begin at.
    #[cfg(test)]
    pub(crate) fn start(
        &self,
        stream: &Stream,
        start: ReadStart,
        may_follow: bool,
    ) -> Result<SeqNum, ReadError> {
        self.start_in(&stream.view(), stream.id, start, may_follow)
    }

    fn start_in(
        &self,
        view: &View,
        id: StreamId,
        start: ReadStart,
        may_follow: bool,
    ) -> Result<SeqNum, ReadError> {
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
                .first_at(id, timestamp, &view.state)?
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
    /// of a stream arrive in order, so this halves what is left until nothing is; it only moves
    /// forward, see [`crate::seek`].
    fn first_arrived(
        &self,
        id: StreamId,
        cutoff: u64,
        state: &StreamState,
    ) -> Result<SeqNum, StoreError> {
        let (head, tail) = (state.head(), state.tail_seq);
        let (first, end) = (keys::data(id, 0), keys::data(id, tail));
        let mut it = self.part.iterate(&first, &end, true);
        // The oldest first: most streams have nothing to expire.
        seek_batch(&mut it, id, head);
        let mut low = match self.batch_at(&it)? {
            Some(oldest) if oldest.arrival_ms < cutoff => oldest.end_seq().max(head),
            _ => return Ok(head),
        };
        // No batch that begins before `low` arrived late enough. The first that begins at or after
        // `high` does; it begins at `found`.
        let (mut high, mut found) = (tail, tail);
        while low < high {
            let probe = low + (high - low) / 2;
            it.seek(keys::data(id, probe));
            match self.batch_at(&it)?.filter(|batch| batch.first_seq < high) {
                Some(batch) if batch.arrival_ms < cutoff => low = batch.end_seq(),
                Some(batch) => (high, found) = (probe, batch.first_seq),
                None => high = probe,
            }
        }
        Ok(found)
    }
}
