//! A checksum of the visible contents of a partition, as of one LSN.
//!
//! Two copies of a partition that have applied the same log have the same digest, even if their files
//! differ: it covers what readers and later commands can see, and no data that only waits to be
//! reclaimed.
//!
//! The log asks for digests, so that the members of a group compare theirs as of the same entry:
//!
//! | module | what it holds |
//! |---|---|
//! | `step` | what the commands do when they are applied |
//! | [`mod@replicas`] | the threads that compute digests, and what this node knows of its replicas |
//! | `comparison` | whose digest is right |

mod comparison;
pub mod replicas;
mod step;

use prost::Message as _;
use rust_rocksdb::{ReadOptions, SnapshotWithThreadMode};
use xxhash_rust::xxh3::Xxh3;

use crate::batches::Batches;
use crate::ids::{BasinId, LineageId, StreamId};
use crate::keys::{self, REMEMBER_FAILED};
use crate::lineage::Lineage;
use crate::store::{Applied, Db, PartitionDb, RawIterator, StoreError};
use crate::stream::{StreamMeta, StreamState};
pub use comparison::{Compared, ComparedMember, Trusted, Verdict};
pub use replicas::{Asked, Divergence, OwnDigest, ReplicaDigests};
pub(crate) use step::{DigestStep, DigestsDone};

/// What a digest covers, as a number: it is raised whenever other bytes are hashed, because digests of two
/// builds are compared only if they cover the same.
pub const DIGEST_FORMAT: u32 = 1;
/// Bytes after which the pace of a digest is looked at.
const PACE_BYTES: u64 = 1 << 20;

#[cfg(test)]
thread_local! {
    /// What happens once between the snapshot of the next digest and its iterators.
    pub(crate) static AFTER_SNAPSHOT: std::cell::Cell<Option<Box<dyn FnOnce()>>> =
        const { std::cell::Cell::new(None) };
}

/// The digest of a partition, and what was read for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionDigest {
    /// LSN of the last entry that it covers.
    pub lsn: u64,
    /// The partition's lineage.
    pub lineage: LineageId,
    /// xxh3-128 of the contents.
    pub digest: u128,
    /// Number of streams.
    pub streams: u64,
    /// Number of batches.
    pub batches: u64,
    /// Number of bytes that the digest covers.
    pub bytes: u64,
}

impl PartitionDb {
    /// Computes the digest as of one moment. It reads the whole partition; writes continue meanwhile.
    pub fn digest(&self) -> Result<PartitionDigest, StoreError> {
        self.digest_at_pace(|| {}, &mut |_| true)
    }

    /// The same. Calls `begun` as soon as the moment is chosen, and `pace` with the bytes that were read since
    /// the last call, again and again; that may wait, and ends the reading by returning false.
    pub(crate) fn digest_at_pace(
        &self,
        begun: impl FnOnce(),
        pace: Pace<'_>,
    ) -> Result<PartitionDigest, StoreError> {
        let part = self.pinned();
        loop {
            let drops = part.file_drops();
            let has_earlier = part.has_unconverted()?;
            let snapshot = part.store().db().snapshot();
            #[cfg(test)]
            if let Some(then) = AFTER_SNAPSHOT.take() {
                then();
            }
            let batches = Batches::of_snapshot(&part, &snapshot, has_earlier);
            // The files that the snapshot needs must not have been dropped before they were open.
            if part.file_drops() == drops {
                begun();
                return part.digest_of(&snapshot, batches, pace);
            }
        }
    }

    fn digest_of(
        &self,
        snapshot: &SnapshotWithThreadMode<'_, Db>,
        mut data: Batches<'_>,
        pace: Pace<'_>,
    ) -> Result<PartitionDigest, StoreError> {
        let mut look = Look {
            part: self,
            snapshot,
            hash: Xxh3::new(),
            bytes: 0,
            paced: 0,
            pace,
        };
        let applied: Applied = look
            .get(&keys::APPLIED)?
            .ok_or_else(|| self.malformed("the position", &"it is missing"))?;
        let lineage = look.lineage()?;
        let dropped = look.dropped_basins()?;
        look.names(&dropped)?;
        let refused_from = (applied.lsn + 1).saturating_sub(REMEMBER_FAILED);
        let (from, to) = keys::refusals(refused_from);
        look.range(&from, &to)?;
        let (from, to) = keys::all_basins();
        look.range(&from, &to)?;
        let (from, to) = keys::all_forgotten_basins();
        look.range(&from, &to)?;
        let (from, to) = keys::all_of_tokens();
        look.range(&from, &to)?;
        let (from, to) = keys::all_nodes();
        look.range(&from, &to)?;
        let (from, to) = keys::all_state();
        look.range(&from, &to)?;
        let (streams, batches) = look.streams(&dropped, &lineage, &mut data)?;
        Ok(PartitionDigest {
            lsn: applied.lsn,
            lineage: lineage.id(),
            digest: look.hash.digest128(),
            streams,
            batches,
            bytes: look.bytes,
        })
    }
}

/// See [`PartitionDb::digest_at_pace`].
pub(crate) type Pace<'p> = &'p mut dyn FnMut(u64) -> bool;

struct Look<'a, 's, 'p> {
    part: &'a PartitionDb,
    snapshot: &'a SnapshotWithThreadMode<'s, Db>,
    hash: Xxh3,
    bytes: u64,
    /// The bytes of which `pace` knows.
    paced: u64,
    pace: Pace<'p>,
}

impl<'a> Look<'a, '_, '_> {
    fn add(&mut self, bytes: &[u8]) {
        self.hash.update(&(bytes.len() as u64).to_be_bytes());
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Waits as `pace` demands.
    fn keep_pace(&mut self) -> Result<(), StoreError> {
        let unpaced = self.bytes - self.paced;
        if unpaced < PACE_BYTES {
            return Ok(());
        }
        self.paced = self.bytes;
        match (self.pace)(unpaced) {
            true => Ok(()),
            false => Err(StoreError::Interrupted {
                partition: self.part.partition(),
                what: "computing a digest",
            }),
        }
    }

    /// The lineage as of the snapshot: the log may begin another one meanwhile.
    fn lineage(&self) -> Result<Lineage, StoreError> {
        let value = self
            .snapshot
            .get_cf(&self.part.cf(), keys::LINEAGE)
            .map_err(|e| self.part.error("computing a digest", e))?;
        let value = value.ok_or_else(|| self.part.malformed("the lineage", &"it is missing"))?;
        Lineage::from_bytes(&value).map_err(|e| self.part.malformed("the lineage", &e))
    }

    fn get<M: prost::Message + Default>(&self, key: &[u8]) -> Result<Option<M>, StoreError> {
        let value = self
            .snapshot
            .get_cf(&self.part.cf(), key)
            .map_err(|e| self.part.error("computing a digest", e))?;
        value
            .map(|bytes| M::decode(&bytes[..]).map_err(|e| self.part.malformed("a value", &e)))
            .transpose()
    }

    fn iterate(&self, from: &[u8], to: &[u8], cache: bool) -> RawIterator<'a> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        options.fill_cache(cache);
        let mut it = self.snapshot.raw_iterator_cf_opt(&self.part.cf(), options);
        it.seek_to_first();
        it
    }

    fn ended(&self, it: &RawIterator<'_>) -> Result<(), StoreError> {
        it.status()
            .map_err(|e| self.part.error("computing a digest", e))
    }

    fn range(&mut self, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        let mut it = self.iterate(from, to, true);
        while let (Some(key), Some(value)) = (it.key(), it.value()) {
            self.add(key);
            self.add(value);
            self.keep_pace()?;
            it.next();
        }
        self.ended(&it)
    }

    fn dropped_basins(&mut self) -> Result<Vec<BasinId>, StoreError> {
        let (from, to) = keys::all_dropped_basins();
        let mut it = self.iterate(&from, &to, true);
        let mut dropped = Vec::new();
        while let Some(key) = it.key() {
            self.add(key);
            dropped.extend(keys::id_of(key).map(BasinId));
            it.next();
        }
        self.ended(&it)?;
        Ok(dropped)
    }

    /// Adds the names of streams whose basins are not dropped.
    fn names(&mut self, dropped: &[BasinId]) -> Result<(), StoreError> {
        let (from, to) = keys::all_stream_names();
        let mut it = self.iterate(&from, &to, true);
        while let (Some(key), Some(value)) = (it.key(), it.value()) {
            let basin = keys::id_of(key).map(BasinId);
            if basin.is_some_and(|basin| dropped.binary_search(&basin).is_err()) {
                self.add(key);
                self.add(value);
                self.keep_pace()?;
            }
            it.next();
        }
        self.ended(&it)
    }

    /// Adds the streams, and the batches of each that readers can see.
    fn streams(
        &mut self,
        dropped: &[BasinId],
        lineage: &Lineage,
        data: &mut Batches<'_>,
    ) -> Result<(u64, u64), StoreError> {
        let (from, to) = keys::all_stream_metas();
        let mut metas = self.iterate(&from, &to, true);
        let (mut streams, mut batches) = (0, 0);
        while let (Some(key), Some(value)) = (metas.key(), metas.value()) {
            let id = keys::id_of(key)
                .map(StreamId)
                .ok_or_else(|| self.part.malformed("a stream's key", &"its length"))?;
            let meta = StreamMeta::decode(value)
                .map_err(|e| self.part.malformed("a stream's settings", &e))?;
            if dropped.binary_search(&BasinId(meta.basin)).is_err() {
                self.add(key);
                self.add(value);
                let mut state: StreamState = self.get(&keys::stream_state(id))?.unwrap_or_default();
                // The digest must not depend on whether the state was written since a fork.
                state.see_forks(lineage.forks);
                // It must not depend on whether an earlier build removed the gaps below the trim point.
                state.retain_visible_gaps();
                // It must not depend on whether it is recorded what left each gap.
                state.merge_gaps();
                self.add(&state.encode_to_vec());
                self.keep_pace()?;
                streams += 1;
                batches += self.batches(id, &state, data)?;
            }
            metas.next();
        }
        self.ended(&metas)?;
        Ok((streams, batches))
    }

    fn batches(
        &mut self,
        id: StreamId,
        state: &StreamState,
        data: &mut Batches<'_>,
    ) -> Result<u64, StoreError> {
        if state.is_empty() {
            return Ok(0);
        }
        data.turn_to(id, state.tail_seq);
        data.seek(state.trim_point);
        let mut batches = 0;
        while let Some((first_seq, value)) = data.next_value()? {
            self.add(&keys::data(id, first_seq));
            self.add(value);
            self.keep_pace()?;
            batches += 1;
        }
        Ok(batches)
    }
}
