//! Commits, read from the store's stream.

use s2_common::record::Record;
use s2_storage::record::StoredRecord;

use crate::batches::Batches;
use crate::ids::StreamId;
use crate::state::record::CommitRecord;
use crate::store::{PartitionDb, StoreError};

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
    batches: Batches<'a>,
}

impl<'a> Commits<'a> {
    pub(super) fn new(part: &'a PartitionDb, stream: StreamId, from: u64, to: u64) -> Commits<'a> {
        // The commit of number t is at t − 1.
        Commits {
            part,
            batches: Batches::sequential(part, stream, from, to),
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
        self.batches.seek_start(from);
        while let Some(batch) = self.batches.next()? {
            if batch.first_seq >= to {
                break;
            }
            for record in batch.records(batch.first_seq) {
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
                if take(commit, batch.bytes()) {
                    return Ok(());
                }
            }
            // Otherwise the next batch would be read.
            if batch.end_seq() >= to {
                break;
            }
        }
        Ok(())
    }
}
