//! Readers of a stream partition: streams by name, records by position, what is due to expire.
//!
//! Every operation but [`Reader::open_stream`] blocks while the database reads from the disk, so callers need
//! threads that may block.

mod due;
mod scan;
mod size;

use std::sync::Arc;

use s2_common::record::{SeqNum, StreamPosition, Timestamp};
use s2_common::stream::{ReadFrom, ReadStart};

use crate::batches::Batches;
use crate::ids::{BasinId, PartitionId, StreamId};
use crate::keys;
use crate::store::{PartitionDb, StoreError};
use crate::stream::{Stream, StreamState, View};
use crate::streams::directory::Directory;
use crate::streams::name_index::NameEntry;

pub use crate::streams::name_index::Listed;
pub use due::{Due, DueBySettings, DueScan};
pub use scan::{Cursor, Place, Scan, ScanEnd};
pub use size::StreamSize;

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The position has no record yet, and the read may not wait for one.
    #[error("nothing is written at the position; the tail is {0}")]
    Unwritten(StreamPosition),
    /// The stream was deleted.
    #[error("the stream is gone")]
    Gone,
    /// The database could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
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

    /// The partition.
    pub fn partition(&self) -> PartitionId {
        self.part.partition()
    }

    /// The partition's part of the database.
    pub fn partition_db(&self) -> &PartitionDb {
        &self.part
    }

    #[cfg(test)]
    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The stream of this name, if it is open in memory. Does not block; `None` says nothing of a stream that
    /// is not open.
    pub fn open_stream(&self, basin: BasinId, name: &str) -> Option<Arc<Stream>> {
        self.directory.open_by_name(basin, name)
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
        if let Some(listed) = self.directory.list(basin, prefix, start_after, limit)? {
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
                let entry = NameEntry::parse(&self.part, value)?;
                listed.push(Listed {
                    name: name.to_owned(),
                    created_ms: entry.created_ms,
                    cipher: entry.cipher,
                });
            }
            it.next();
        }
        it.status()
            .map_err(|e| self.part.error("listing streams", e))?;
        Ok(listed)
    }

    /// Whether the partition has dropped a basin.
    pub fn is_dropped(&self, basin: BasinId) -> bool {
        self.directory.is_dropped(basin)
    }

    /// The basins of the partition's streams, without dropped ones. It reads one stream of each.
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

    /// The cursor of a new read: at a record that is not trimmed yet, or at the tail.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unwritten`] beyond the tail, or at it if the read may not follow; [`ReadError::Gone`]
    /// if the stream was deleted; [`ReadError::Store`] if the database cannot be read.
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

    /// The same if it needs no disk, as for all reads that begin by number; `None` if the database has to be read.
    ///
    /// # Errors
    ///
    /// Those of [`begin`](Reader::begin).
    pub fn begin_in_memory(
        stream: &Stream,
        start: ReadStart,
        may_follow: bool,
    ) -> Result<Option<Cursor>, ReadError> {
        let view = stream.view();
        let Some(seq) = known_start(&view, start)? else {
            return Ok(None);
        };
        let seq = checked_start(&view, seq, start, may_follow)?;
        Ok(Some(Cursor::at_start(seq.max(view.state.head()))))
    }

    /// The sequence number at which a read is to begin.
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
        let seq = match (known_start(view, start)?, start.from) {
            (Some(seq), _) => seq,
            (None, ReadFrom::Timestamp(timestamp)) => self
                .first_at(id, timestamp, &view.state)?
                .unwrap_or(view.state.tail_seq),
            (None, _) => view.state.tail_seq,
        };
        checked_start(view, seq, start, may_follow)
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
        let mut batches = Batches::new(&self.part, id, SeqNum::MAX);
        batches.seek_start(first_seq);
        let seq = batches.next()?.and_then(|batch| batch.seq_at(timestamp));
        // Timestamps never decrease, so if that record is trimmed, all records that are left qualify.
        Ok(seq
            .map(|seq| seq.max(state.head()))
            .filter(|seq| *seq < state.tail_seq))
    }
}

/// Where a read begins, as it was requested; `None` if the database has to be asked, for the first record of a time.
fn known_start(view: &View, start: ReadStart) -> Result<Option<SeqNum>, ReadError> {
    if view.gone {
        return Err(ReadError::Gone);
    }
    let tail = view.state.tail();
    Ok(match start.from {
        ReadFrom::SeqNum(seq) => Some(seq),
        ReadFrom::TailOffset(offset) => Some(view.state.before_tail(offset)),
        ReadFrom::Timestamp(timestamp) if timestamp > tail.timestamp => {
            if !start.clamp {
                return Err(ReadError::Unwritten(tail));
            }
            Some(tail.seq_num)
        }
        ReadFrom::Timestamp(_) => None,
    })
}

/// The same, of records that there are or that may come.
fn checked_start(
    view: &View,
    seq: SeqNum,
    start: ReadStart,
    may_follow: bool,
) -> Result<SeqNum, ReadError> {
    let tail = view.state.tail();
    let seq = match start.clamp {
        true => seq.min(tail.seq_num),
        false => seq,
    };
    let seq = view.state.after_gap(seq);
    if seq > tail.seq_num || (seq == tail.seq_num && !may_follow) {
        return Err(ReadError::Unwritten(tail));
    }
    Ok(seq)
}
