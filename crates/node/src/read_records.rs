//! The records of one output of a read session.

use std::sync::Arc;

use esker_partition::StoredRecords;
use esker_partition::encryption::{self, RecordCipher, StoredSequencedRecord};
use s2_common::record::{Metered, MeteredSize as _, SequencedRecord, StreamPosition};
use s2_common::stream::ReadBatch;

use crate::error::Error;
use crate::shared_records::SharedRecords;

/// Records that a session has read.
#[derive(Debug)]
pub struct ReadRecords {
    /// The records.
    pub content: ReadContent,
    /// The position after the last record of the stream, if these end there.
    pub tail: Option<StreamPosition>,
}

/// Records in one of two forms.
#[derive(Debug)]
pub enum ReadContent {
    /// As they are stored, in a stream without a cipher: most are passed on without being decoded.
    Stored(StoredRecords),
    /// The same for several sessions, with what is encoded for all of them.
    Shared(Arc<SharedRecords>),
    /// Decrypted.
    Decrypted(Metered<Vec<SequencedRecord>>),
}

impl ReadRecords {
    /// Number of records.
    pub fn len(&self) -> usize {
        match &self.content {
            ReadContent::Stored(records) => records.len(),
            ReadContent::Shared(shared) => shared.records.len(),
            ReadContent::Decrypted(records) => records.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their metered bytes.
    pub fn metered_size(&self) -> usize {
        match &self.content {
            ReadContent::Stored(records) => records.metered_size(),
            ReadContent::Shared(shared) => shared.records.metered_size(),
            ReadContent::Decrypted(records) => records.metered_size(),
        }
    }

    /// The position of the first record.
    pub fn first_position(&self) -> Option<StreamPosition> {
        match &self.content {
            ReadContent::Stored(records) => records.first_position(),
            ReadContent::Shared(shared) => shared.records.first_position(),
            ReadContent::Decrypted(records) => records.first().map(|record| *record.position()),
        }
    }

    /// The position of the last record.
    pub fn last_position(&self) -> Option<StreamPosition> {
        match &self.content {
            ReadContent::Stored(records) => records.last_position(),
            ReadContent::Shared(shared) => shared.records.last_position(),
            ReadContent::Decrypted(records) => records.last().map(|record| *record.position()),
        }
    }

    /// The records as a batch of the API.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if a stored record is not one that a stream without a cipher can have.
    pub fn into_batch(self) -> Result<ReadBatch, Error> {
        let records = match self.content {
            ReadContent::Stored(records) => plain(&records)?,
            ReadContent::Shared(shared) => plain(&shared.records)?,
            ReadContent::Decrypted(records) => records,
        };
        Ok(ReadBatch {
            records,
            tail: self.tail,
        })
    }
}

/// Records of a stream without a cipher, decoded.
///
/// # Errors
///
/// [`Error::Storage`] if a stored record is not one that such a stream can have.
pub fn plain(records: &StoredRecords) -> Result<Metered<Vec<SequencedRecord>>, Error> {
    let decoded: Result<Metered<Vec<StoredSequencedRecord>>, _> = records.decode();
    let decoded = decoded.map_err(|e| Error::Storage(e.to_string()))?;
    encryption::decrypt(decoded, &RecordCipher::default(), &[])
        .map_err(|e| Error::Storage(format!("decoding records: {e}")))
}
