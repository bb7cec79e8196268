//! Commits, read from the store's stream.

use s2_common::record::Record;
use s2_storage::record::StoredRecord;

use crate::batch::StoredBatch;
use crate::ids::StreamId;
use crate::keys;
use crate::state::record::CommitRecord;
use crate::store::{PartitionDb, RawIterator, StoreError};

/// Commits after `from` and up to `to`: at most `most`, and no more once `most_bytes` are read. Returns
/// them and the `commit_ts` up to which they go.
pub(crate) fn commits(
    part: &PartitionDb,
    stream: StreamId,
    from: u64,
    to: u64,
    (most, most_bytes): (usize, usize),
) -> Result<(Vec<CommitRecord>, u64), StoreError> {
    let mut found: Vec<CommitRecord> = Vec::new();
    let (mut bytes, mut full) = (0, false);
    Commits::new(part, stream, from, to).scan(from, to, &mut |commit, size| {
        found.push(commit);
        bytes += size;
        full = found.len() >= most || bytes >= most_bytes;
        full
    })?;
    let up_to = match found.last() {
        Some(last) if full => last.commit_ts,
        _ => to,
    };
    Ok((found, up_to))
}

/// Reads the commits of a range from a store's stream.
pub(super) struct Commits<'a> {
    part: &'a PartitionDb,
    stream: StreamId,
    it: RawIterator<'a>,
}

impl<'a> Commits<'a> {
    pub(super) fn new(part: &'a PartitionDb, stream: StreamId, from: u64, to: u64) -> Commits<'a> {
        // The commit of number t is at t − 1.
        let (first, end) = (keys::data(stream, from), keys::data(stream, to));
        part.cache_border(&keys::data(stream, 0), &first);
        Commits {
            part,
            stream,
            it: part.iterate(&first, &end, false),
        }
    }

    /// Passes commits after `from` and up to `to`, with their sizes, to `take`, until it returns true.
    pub(super) fn scan(
        &mut self,
        from: u64,
        to: u64,
        take: &mut dyn FnMut(CommitRecord, usize) -> bool,
    ) -> Result<(), StoreError> {
        let part = self.part;
        self.it.seek(keys::data(self.stream, from));
        while let (Some(key), Some(value)) = (self.it.key(), self.it.value()) {
            let first_seq = keys::first_seq_of(key)
                .ok_or_else(|| part.malformed("a commit's key", &"its length"))?;
            if first_seq >= to {
                break;
            }
            let batch = StoredBatch::parse(first_seq, bytes::Bytes::copy_from_slice(value))
                .map_err(|e| part.malformed("a commit", &e))?;
            for record in batch.records(first_seq) {
                let record = record.map_err(|e| part.malformed("a commit", &e))?;
                let (position, record) = record.into_inner().into_parts();
                let StoredRecord::Plaintext(Record::Envelope(record)) = record else {
                    continue;
                };
                let commit = CommitRecord::parse(record.body())
                    .map_err(|e| part.malformed("a commit", &e))?;
                if commit.commit_ts != position.seq_num + 1 {
                    let why = format!(
                        "commit {} is at sequence number {}",
                        commit.commit_ts, position.seq_num
                    );
                    return Err(part.malformed("a commit", &why));
                }
                if take(commit, value.len()) {
                    return Ok(());
                }
            }
            // Moving the iterator would read the next batch.
            if batch.end_seq() >= to {
                return Ok(());
            }
            self.it.next();
        }
        self.it
            .status()
            .map_err(|e| part.error("reading commits", e))
    }
}
