//! The batches of one stream in the database, in the order of their sequence numbers.
//!
//! Readers of records find them here alone, so that this is the one place that knows where a stream's
//! batches lie.

use bytes::Bytes;
use s2_common::record::SeqNum;

use crate::batch::StoredBatch;
use crate::ids::StreamId;
use crate::keys;
use crate::seek::seek_batch;
use crate::store::{PartitionDb, RawIterator, StoreError};

#[cfg(test)]
thread_local! {
    /// How many [`Batches`] this thread has created.
    pub(crate) static OPENED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// The batches of a stream, as they are when this is created. Every move may read from the disk.
pub(crate) struct Batches<'a> {
    part: &'a PartitionDb,
    stream: StreamId,
    it: RawIterator<'a>,
    end: SeqNum,
    /// Whether [`next`](Self::next) has returned the batch under the iterator.
    returned: bool,
}

impl<'a> Batches<'a> {
    /// The batches that begin before `end`. What is read stays in the block cache, so this is for searches.
    pub(crate) fn new(part: &'a PartitionDb, stream: StreamId, end: SeqNum) -> Batches<'a> {
        Batches::iterate(part, stream, end, true)
    }

    /// The same for reading many from `from` on: batches are not cached, because each is read once; only
    /// the blocks at the border of `from` are, which every such read inspects.
    pub(crate) fn sequential(
        part: &'a PartitionDb,
        stream: StreamId,
        from: SeqNum,
        end: SeqNum,
    ) -> Batches<'a> {
        part.cache_border(&keys::data(stream, 0), &keys::data(stream, from));
        Batches::iterate(part, stream, end, false)
    }

    fn iterate(part: &'a PartitionDb, stream: StreamId, end: SeqNum, cache: bool) -> Batches<'a> {
        #[cfg(test)]
        OPENED.set(OPENED.get() + 1);
        let (first, to) = (keys::data(stream, 0), keys::data(stream, end));
        Batches {
            part,
            stream,
            it: part.iterate(&first, &to, cache),
            end,
            returned: false,
        }
    }

    /// All batches that begin before this are here.
    pub(crate) fn end(&self) -> SeqNum {
        self.end
    }

    /// Moves to the batch that holds `seq` or, if there is none, to the first one after it.
    pub(crate) fn seek(&mut self, seq: SeqNum) {
        self.returned = false;
        seek_batch(&mut self.it, self.stream, seq);
    }

    /// Moves to the first batch that begins at or after `seq`.
    pub(crate) fn seek_start(&mut self, seq: SeqNum) {
        self.returned = false;
        self.it.seek(keys::data(self.stream, seq));
    }

    /// The batch that was moved to, or the one after it if that was returned; `None` at the end. It does
    /// not move beyond the batch, because moving reads the next one.
    pub(crate) fn next(&mut self) -> Result<Option<StoredBatch>, StoreError> {
        if self.returned && self.it.valid() {
            self.it.next();
        }
        self.returned = true;
        self.peek()
    }

    /// The batch under the iterator.
    pub(crate) fn peek(&self) -> Result<Option<StoredBatch>, StoreError> {
        let (Some(key), Some(value)) = (self.it.key(), self.it.value()) else {
            let status = self.it.status();
            status.map_err(|e| self.part.error("reading records", e))?;
            return Ok(None);
        };
        let first_seq = keys::first_seq_of(key)
            .ok_or_else(|| self.part.malformed("a batch's key", &"its length"))?;
        StoredBatch::parse(first_seq, Bytes::copy_from_slice(value))
            .map(Some)
            .map_err(|e| self.part.malformed("a batch", &e))
    }
}
