//! Records of several batches, in the form in which they are stored.

use s2_common::record::{Metered, StreamPosition};
use s2_storage::record::StoredSequencedRecord;

use crate::batch::{MalformedBatch, StoredBatch};
use crate::raw_record::RawRecord;

/// Records that follow each other in a stream. They share the memory of the batches that hold them.
#[derive(Clone, Debug, Default)]
pub struct StoredRecords {
    parts: Vec<Part>,
    count: usize,
    metered_size: usize,
}

/// Records of one batch.
#[derive(Clone, Debug)]
struct Part {
    batch: StoredBatch,
    /// Index of the first record in the batch, and its place in the batch's body.
    first: usize,
    offset: usize,
    count: usize,
}

impl StoredRecords {
    /// Number of records.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Their metered bytes.
    pub fn metered_size(&self) -> usize {
        self.metered_size
    }

    /// Bytes of the batches that hold them, which stay in memory as long as these records do.
    pub fn held_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.batch.bytes()).sum()
    }

    /// The position of the first record.
    pub fn first_position(&self) -> Option<StreamPosition> {
        let part = self.parts.first()?;
        part.batch.position(part.first)
    }

    /// The position of the last record.
    pub fn last_position(&self) -> Option<StreamPosition> {
        let part = self.parts.last()?;
        part.batch.position(part.first + part.count - 1)
    }

    /// The records in place, in order.
    ///
    /// # Errors
    ///
    /// A malformed record, after which nothing follows. A scan has parsed all of its records, so none of
    /// them is.
    pub fn raw(
        &self,
    ) -> impl Iterator<Item = Result<(StreamPosition, RawRecord<'_>), MalformedBatch>> {
        self.parts.iter().flat_map(|part| {
            let records = part.batch.raw_records(part.first, part.offset);
            records.take(part.count)
        })
    }

    /// The records, decoded.
    ///
    /// # Errors
    ///
    /// As for [`raw`](Self::raw).
    pub fn decode(&self) -> Result<Metered<Vec<StoredSequencedRecord>>, MalformedBatch> {
        let mut decoded = Metered::with_capacity(self.count);
        for part in &self.parts {
            for record in part
                .batch
                .records_at(part.first, part.offset)
                .take(part.count)
            {
                decoded.push(record?);
            }
        }
        Ok(decoded)
    }

    /// Adds `count` records of a batch from index `first` on, at `offset` of its body.
    pub(crate) fn push(
        &mut self,
        batch: StoredBatch,
        (first, offset): (usize, usize),
        (count, metered_size): (usize, usize),
    ) {
        if count > 0 {
            self.count += count;
            self.metered_size += metered_size;
            self.parts.push(Part {
                batch,
                first,
                offset,
                count,
            });
        }
    }
}
