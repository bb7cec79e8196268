//! How many records and bytes a stream holds.

use std::sync::Arc;

use s2_common::read_extent::{ReadLimit, ReadUntil};
use s2_common::record::{SeqNum, Timestamp};
use s2_common::stream::{ReadFrom, ReadStart};

use super::{Cursor, ReadError, Reader, Scan};
use crate::lineage::GAP;
use crate::stream::{MAX_GAPS, Stream, View};

/// A stream with fewer bytes than this is read whole.
const EXACT_BYTES: u64 = 64 * 1024;
/// Records that are read at a time.
const RECORDS: usize = 100;
/// Number of places at which a larger stream is read.
const SAMPLES: u64 = 8;
/// Records that are read at each place.
const SAMPLE_RECORDS: usize = 10;

/// How many bytes a stream holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamSize {
    /// Metered bytes of the records that readers see.
    pub bytes: u64,
    /// Metered bytes of the records that were read to find out: at most 64 KiB and 9 MiB.
    pub read: u64,
}

impl Reader {
    /// The size of a stream: exact for one of up to 64 KiB. Of a larger one, the number of records is
    /// exact, and their mean size is that of records at 8 places.
    ///
    /// # Errors
    ///
    /// [`ReadError::Gone`] if the stream was deleted; [`ReadError::Store`] if the database cannot be read.
    pub fn metered_size(&self, stream: &Arc<Stream>) -> Result<StreamSize, ReadError> {
        let view = stream.view();
        let (head, tail) = (view.state.head(), view.state.tail_seq);
        let (mut records, mut bytes) = (0, 0);
        let mut cursor = Cursor::from(head);
        while bytes < EXACT_BYTES {
            let scan = self.some(stream, cursor, RECORDS)?;
            if scan.records.is_empty() {
                return Ok(StreamSize { bytes, read: bytes });
            }
            records += scan.records.len() as u64;
            bytes += scan.records.metered_size() as u64;
            if scan.next >= tail {
                return Ok(StreamSize { bytes, read: bytes });
            }
            cursor = scan.into_cursor();
        }
        for place in 1..SAMPLES {
            let seq = view.state.after_gap(head + (tail - head) / SAMPLES * place);
            let scan = self.some(stream, Cursor::from(seq), SAMPLE_RECORDS)?;
            records += scan.records.len() as u64;
            bytes += scan.records.metered_size() as u64;
        }
        let all = u128::from(count(&view, head, tail));
        let estimate = u128::from(bytes) * all / u128::from(records.max(1));
        Ok(StreamSize {
            bytes: u64::try_from(estimate).unwrap_or(u64::MAX),
            read: bytes,
        })
    }

    /// How many records a stream has, and how many of them have at least this timestamp, in milliseconds since
    /// the epoch. One record is read, however many there are.
    ///
    /// # Errors
    ///
    /// [`ReadError::Gone`] if the stream was deleted; [`ReadError::Store`] if the database cannot be read.
    pub fn record_counts(
        &self,
        stream: &Stream,
        timestamp: Timestamp,
    ) -> Result<(u64, u64), ReadError> {
        let start = ReadStart {
            from: ReadFrom::Timestamp(timestamp),
            clamp: true,
        };
        let view = stream.view();
        let (head, tail) = (view.state.head(), view.state.tail_seq);
        let begin = self.start_in(&view, stream.id, start, true)?;
        let since = begin.clamp(head, tail);
        Ok((count(&view, head, tail), count(&view, since, tail)))
    }

    fn some(&self, stream: &Arc<Stream>, from: Cursor, count: usize) -> Result<Scan, ReadError> {
        self.scan(stream, from, ReadLimit::Count(count), ReadUntil::Unbounded)
    }
}

/// Number of records, without the numbers that were passed over. Gaps that are forgotten have the length of
/// some forks, and no stream has as many records as a fork passes over; only an import may have left another.
fn count(view: &View, head: SeqNum, tail: SeqNum) -> u64 {
    let passed_over = view
        .state
        .gaps
        .iter()
        .map(|gap| gap.end.min(tail).saturating_sub(gap.from.max(head)));
    let count = (tail - head).saturating_sub(passed_over.sum());
    match view.state.gaps.len() < MAX_GAPS {
        true => count,
        false => count % GAP,
    }
}
