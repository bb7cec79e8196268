//! What followers at the tail of a stream have in common: records that are scanned once, and encoded once.
//!
//! Followers are woken together, and most of them continue at the same record. What one of them has scanned up
//! to the tail is kept for the others for a short time, by the stream and by the record at which it begins, with
//! each encoded form that one of them has asked for. A scan is taken only while memory has its records (see
//! [`Stream::recent_tail`](esker_partition::Stream::recent_tail)), so that a follower gets what a scan of its own
//! would find. Followers of a stream with a cipher share nothing: each may have another key.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_partition::StoredRecords;
use parking_lot::Mutex;
use s2_common::record::{SeqNum, StreamPosition};

/// Scans that are kept: followers of a stream are at few different positions.
const MAX_KEPT: usize = 256;
/// Bytes that they keep in memory, encoded forms included.
const MAX_KEPT_BYTES: usize = 16 * 1024 * 1024;
/// How long one is kept: followers are woken together, or in turns ([`crate::follower_turns`]).
const MAX_AGE: Duration = Duration::from_secs(1);
/// Metered bytes of one. Of larger ones there is no more than one for each follower in a while.
const MAX_METERED: usize = 256 * 1024;

/// Records up to the tail that several followers get.
#[derive(Debug)]
pub struct SharedRecords {
    /// The records, as they are stored.
    pub records: StoredRecords,
    /// The tail, directly after them.
    pub tail: StreamPosition,
    /// Encoded forms, by what the host of the node calls them.
    forms: Mutex<Vec<(u8, Bytes)>>,
    /// Bytes of all that there are.
    total: Arc<AtomicUsize>,
}

impl SharedRecords {
    /// The encoded form of this kind. The first caller that asks for it encodes it, and others wait for that.
    ///
    /// # Errors
    ///
    /// Those of `encode`.
    pub fn form<E>(
        &self,
        kind: u8,
        encode: impl FnOnce(&StoredRecords, StreamPosition) -> Result<Bytes, E>,
    ) -> Result<Bytes, E> {
        let mut forms = self.forms.lock();
        if let Some((_, known)) = forms.iter().find(|(known, _)| *known == kind) {
            return Ok(known.clone());
        }
        let encoded = encode(&self.records, self.tail)?;
        self.total.fetch_add(encoded.len(), Ordering::Relaxed);
        forms.push((kind, encoded.clone()));
        Ok(encoded)
    }
}

impl Drop for SharedRecords {
    fn drop(&mut self) {
        let forms = self.forms.get_mut().iter().map(|(_, form)| form.len());
        let bytes = self.records.held_bytes() + forms.sum::<usize>();
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The partition and the stream, and the first record.
type Key = (u64, u64, SeqNum);

/// The scans that are kept. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct SharedScans {
    kept: Arc<Mutex<Kept>>,
    total: Arc<AtomicUsize>,
    made: Arc<AtomicU64>,
}

#[derive(Default)]
struct Kept {
    scans: HashMap<Key, Arc<SharedRecords>>,
    /// When each was made, and its key; the oldest at the front.
    order: VecDeque<(Instant, Key)>,
}

impl SharedScans {
    /// The scan of a stream that begins at `from`, if it ends at `until` or later.
    pub fn get(
        &self,
        (partition, stream): (u64, u64),
        from: SeqNum,
        until: SeqNum,
    ) -> Option<Arc<SharedRecords>> {
        let kept = self.kept.lock();
        let scan = kept.scans.get(&(partition, stream, from))?;
        (scan.tail.seq_num >= until).then(|| scan.clone())
    }

    /// Keeps a scan from `from` up to the tail for others, if it is not too large; returns the one that others
    /// get.
    pub fn keep(
        &self,
        (partition, stream): (u64, u64),
        from: SeqNum,
        records: StoredRecords,
        tail: StreamPosition,
    ) -> Arc<SharedRecords> {
        let bytes = records.held_bytes();
        let is_kept = records.metered_size() <= MAX_METERED && bytes <= MAX_KEPT_BYTES / 2;
        let key = (partition, stream, from);
        let mut kept = self.kept.lock();
        if let Some(known) = kept.scans.get(&key)
            && known.tail == tail
        {
            return known.clone();
        }
        self.total.fetch_add(bytes, Ordering::Relaxed);
        let scan = Arc::new(SharedRecords {
            records,
            tail,
            forms: Mutex::default(),
            total: self.total.clone(),
        });
        if !is_kept {
            return scan;
        }
        self.made.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        // One that it replaces leaves its place in the order, which then removes this one early.
        kept.scans.insert(key, scan.clone());
        kept.order.push_back((now, key));
        while let Some((made, key)) = kept.order.front().copied()
            && (kept.order.len() > MAX_KEPT
                || self.total.load(Ordering::Relaxed) > MAX_KEPT_BYTES
                || now.saturating_duration_since(made) > MAX_AGE)
        {
            kept.order.pop_front();
            kept.scans.remove(&key);
        }
        scan
    }

    /// How many scans were kept since the start.
    #[cfg(test)]
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(seq_num: SeqNum) -> StreamPosition {
        StreamPosition {
            seq_num,
            timestamp: 1,
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_its_memory_is_counted_until_the_last_session_has_sent_it() {
        let scans = SharedScans::default();
        let used = || scans.total.load(Ordering::Relaxed);
        let form = |scan: &SharedRecords, bytes: usize| {
            scan.form(0, |_, _| Ok::<_, ()>(Bytes::from(vec![0; bytes])))
                .unwrap()
        };
        let first = scans.keep((1, 1), 0, StoredRecords::default(), tail(1));
        form(&first, 1000);
        assert_eq!(used(), 1000);
        for from in 1..2 * MAX_KEPT as u64 {
            let scan = scans.keep((1, 1), from, StoredRecords::default(), tail(from + 1));
            form(&scan, 1000);
            assert!(used() <= (MAX_KEPT + 2) * 1000);
        }
        assert!(scans.get((1, 1), 0, 1).is_none());
        let newest = 2 * MAX_KEPT as u64 - 1;
        assert!(scans.get((1, 1), newest, newest + 1).is_some());
        assert!(
            scans.get((1, 1), newest, newest + 2).is_none(),
            "it ends before"
        );
        assert!(scans.get((1, 2), newest, newest + 1).is_none());
        // Large ones take the place of many.
        for from in 0..8 {
            let scan = scans.keep((2, 1), from, StoredRecords::default(), tail(from + 1));
            form(&scan, MAX_KEPT_BYTES / 4);
            assert!(used() <= MAX_KEPT_BYTES + MAX_KEPT_BYTES / 4 + 1000);
        }
        drop(scans.kept.lock().scans.drain());
        assert_eq!(used(), 1000, "a session has not sent the first one");
        drop(first);
        assert_eq!(used(), 0);
    }
}
