//! Encoded batches that many followers of a stream get: each is encoded once.
//!
//! Followers at the tail of a stream are woken together, and most of them get the same records. What one has
//! encoded is kept for the others, for a short time: the newest [`MAX_KEPT`], of at most [`MAX_BYTES`] each.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use s2_api::data::Format;
use s2_common::record::MeteredSize as _;
use s2_common::stream::ReadBatch;

/// Batches that are kept: followers of a stream are at few different positions.
const MAX_KEPT: usize = 64;
/// Larger batches are not kept: there is no more than one for each of them in a while.
const MAX_BYTES: usize = 64 * 1024;

/// What an encoded batch has: the stream, its first and last records, the tail, and the format.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key {
    stream: (u64, u64),
    first: u64,
    last: u64,
    records: usize,
    tail: Option<(u64, u64)>,
    is_raw: bool,
}

/// Encoded batches, the one that was encoded last at the back.
type Kept = VecDeque<(Key, Arc<str>)>;

/// See the [module's head](self). Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct EncodedBatches {
    kept: Arc<Mutex<Kept>>,
}

impl std::fmt::Debug for EncodedBatches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EncodedBatches")
    }
}

impl EncodedBatches {
    /// The encoded form of a batch that a session of the stream with this key gets.
    ///
    /// # Errors
    ///
    /// Those of `encode`.
    pub(super) fn encoded<E>(
        &self,
        stream: (u64, u64),
        format: Format,
        batch: &ReadBatch,
        encode: impl FnOnce(&ReadBatch) -> Result<String, E>,
    ) -> Result<Arc<str>, E> {
        let positions = (batch.records.first(), batch.records.last());
        let (Some(first), Some(last)) = positions else {
            return encode(batch).map(Arc::from);
        };
        if batch.records.metered_size() > MAX_BYTES {
            return encode(batch).map(Arc::from);
        }
        let key = Key {
            stream,
            first: first.position().seq_num,
            last: last.position().seq_num,
            records: batch.records.len(),
            tail: batch.tail.map(|tail| (tail.seq_num, tail.timestamp)),
            is_raw: matches!(format, Format::Raw),
        };
        let known = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let known = kept.iter().find(|(known, _)| *known == key);
            known.map(|(_, text)| text.clone())
        };
        if let Some(text) = known {
            return Ok(text);
        }
        let text: Arc<str> = encode(batch)?.into();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.truncate(MAX_KEPT - 1);
        kept.push_front((key, text.clone()));
        Ok(text)
    }
}
