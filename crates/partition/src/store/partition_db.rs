//! One partition's part of the database, and batches of writes to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use prost::Message as _;
use rust_rocksdb::{
    BottommostLevelCompaction, BoundColumnFamily, CompactOptions, Range, ReadOptions, ReadTier,
    WriteBatch,
};

use super::column_families::{ColumnFamilies, Present};
use super::damage_report::Met;
use super::positions::Positions;
use super::segment_steps::{Step, Written};
use super::{Applied, Db, RawIterator, Store, StoreError};
use crate::ids::{PartitionId, StreamId};
use crate::keys;
use crate::row::Row;

/// One partition's part of the database. Cheap to clone.
#[derive(Clone)]
pub struct PartitionDb {
    pub(super) store: Store,
    pub(super) partition: PartitionId,
    pub(super) present: Arc<Present>,
    /// See [`PartitionDb::pinned`].
    pub(super) pinned: Option<Arc<ColumnFamilies>>,
    /// See [`PartitionDb::reclaim_is_behind`].
    pub(crate) reclaim_is_behind: Arc<AtomicBool>,
    /// See [`PartitionDb::note_free_space`]; `u64::MAX` if there is enough.
    pub(super) free_space: Arc<AtomicU64>,
    /// See [`PartitionDb::reclaimable`].
    pub(super) reclaimable: Arc<AtomicU64>,
    pub(super) positions: Arc<Positions>,
}

impl PartitionDb {
    /// The partition.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Whether more was written than the limit allows while files are rewritten without deleted data. New
    /// appends then have to wait until the rewriting is done, or the space in use would grow with their
    /// rate.
    pub fn reclaim_is_behind(&self) -> bool {
        self.reclaim_is_behind.load(Ordering::Acquire)
    }

    /// Records how many bytes of the disk are free, if they are too few (`None` if there are enough). With too
    /// few, files are rewritten as soon as the result fits into the free space, however little that reclaims.
    pub fn note_free_space(&self, free: Option<u64>) {
        self.free_space
            .store(free.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Approximate bytes of deleted data in files that no compaction under way removes.
    pub fn reclaimable(&self) -> u64 {
        self.reclaimable.load(Ordering::Relaxed)
    }

    pub(crate) fn note_reclaimable(&self, bytes: u64) {
        self.reclaimable.store(bytes, Ordering::Relaxed);
    }

    /// The free bytes, if they are too few.
    pub(crate) fn short_space(&self) -> Option<u64> {
        let free = self.free_space.load(Ordering::Relaxed);
        (free != u64::MAX).then_some(free)
    }

    /// The column family of everything but batches.
    pub(crate) fn cf(&self) -> Arc<BoundColumnFamily<'_>> {
        self.handle(|families| &families.rows)
    }

    /// The column family of batches.
    pub(crate) fn segments_cf(&self) -> Arc<BoundColumnFamily<'_>> {
        self.handle(|families| &families.segments)
    }

    fn handle(&self, name: impl Fn(&ColumnFamilies) -> &str) -> Arc<BoundColumnFamily<'_>> {
        let families = self.families();
        self.store
            .db
            .cf_handle(name(&families))
            .expect("every partition's column families are opened with the database")
    }

    /// The applied position; `None` if the partition was never created.
    pub fn applied(&self) -> Result<Option<Applied>, StoreError> {
        self.applied_at(ReadTier::All)
    }

    /// The durable position, which survives a crash: read from the files alone.
    pub fn durable(&self) -> Result<Option<Applied>, StoreError> {
        self.applied_at(ReadTier::Persisted)
    }

    /// As [`PartitionDb::applied`], for callers that know that `lsn` is applied: what was read as of that LSN
    /// is not read again.
    ///
    /// # Errors
    ///
    /// The database cannot be read.
    pub fn applied_as_of(&self, lsn: u64) -> Result<Option<Applied>, StoreError> {
        let number = self.families().number;
        let is_current = |seen: &Applied| seen.lsn == lsn;
        self.positions
            .applied
            .get(number, is_current, || self.applied())
    }

    /// As [`PartitionDb::durable`], for callers that know that `applied` is applied: it is read again only
    /// while something applied was not durable.
    ///
    /// # Errors
    ///
    /// The database cannot be read.
    pub fn durable_as_of(&self, applied: u64) -> Result<Option<Applied>, StoreError> {
        let number = self.families().number;
        let is_current = |seen: &Applied| seen.lsn >= applied;
        self.positions
            .durable
            .get(number, is_current, || self.durable())
    }

    /// How many of these calls have read the database.
    pub fn position_reads(&self) -> u64 {
        self.positions.reads()
    }

    pub(super) fn applied_at(&self, tier: ReadTier) -> Result<Option<Applied>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(tier);
        let value = self
            .store
            .db
            .get_pinned_cf_opt(&self.cf(), keys::APPLIED, &options)
            .map_err(|e| self.error("reading the position", e))?;
        value
            .map(|bytes| {
                Applied::decode(&bytes[..]).map_err(|e| self.malformed("the position", &e))
            })
            .transpose()
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Reads a value.
    pub(crate) fn get_bytes(
        &self,
        key: impl AsRef<[u8]>,
        what: &str,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.store
            .db
            .get_cf(&self.cf(), key)
            .map_err(|e| self.error(what, e))
    }

    /// Reads and parses a value.
    pub(crate) fn get<M: prost::Message + Default>(
        &self,
        key: impl AsRef<[u8]>,
        what: &str,
    ) -> Result<Option<M>, StoreError> {
        let value = self
            .store
            .db
            .get_pinned_cf(&self.cf(), key)
            .map_err(|e| self.error(what, e))?;
        value
            .map(|bytes| M::decode(&bytes[..]).map_err(|e| self.malformed(what, &e)))
            .transpose()
    }

    /// An iterator over keys in `[from, to)`, not yet positioned.
    pub(crate) fn iterate(&self, from: &[u8], to: &[u8], cache: bool) -> RawIterator<'_> {
        let options = bounded(from, to, cache);
        self.store.db.raw_iterator_cf_opt(&self.cf(), options)
    }

    /// An iterator over all batches of segments, not yet positioned.
    pub(crate) fn iterate_segments(&self, cache: bool) -> RawIterator<'_> {
        let cf = self.segments_cf();
        self.store.db.raw_iterator_cf_opt(&cf, unbounded(cache))
    }

    /// Reads into the cache those blocks that have keys from `first` on and before `at`, and others from
    /// `at` on. Each run may have one. Such a block is small, and each read from `at` on inspects it, in
    /// every run.
    pub(crate) fn cache_border(&self, first: &[u8], at: &[u8]) {
        self.iterate(first, at, true).seek(at);
    }

    /// A batch of writes.
    pub(crate) fn batch(&self) -> PartitionBatch {
        self.batch_of(WriteBatch::default())
    }

    /// A batch of writes with capacity for so many bytes of keys and values: one that grows copies what it has again and
    /// again.
    pub(crate) fn batch_with_capacity(&self, bytes: usize) -> PartitionBatch {
        self.batch_of(WriteBatch::with_capacity_bytes(bytes))
    }

    fn batch_of(&self, batch: WriteBatch) -> PartitionBatch {
        PartitionBatch {
            part: self.clone(),
            batch,
            steps: Vec::new(),
        }
    }

    /// Files that compactions replace stay until the result is dropped.
    pub(crate) fn keep_files(&self) -> Result<KeptFiles<'_>, StoreError> {
        let db = &self.store.db;
        db.disable_file_deletions()
            .map_err(|e| self.error("keeping files", e))?;
        Ok(KeptFiles { db })
    }

    /// Bytes of the partition's files.
    pub fn file_bytes(&self) -> u64 {
        self.property("rocksdb.total-sst-files-size")
    }

    /// Bytes of the files that have no batches of segments.
    pub(crate) fn row_file_bytes(&self) -> u64 {
        self.property_of(&self.cf(), "rocksdb.total-sst-files-size")
    }

    /// Bytes in memtables.
    pub fn memtable_bytes(&self) -> u64 {
        self.property("rocksdb.cur-size-all-mem-tables")
    }

    /// Bytes in memtables that take no more writes and are not in a file yet.
    pub(crate) fn flushing_bytes(&self) -> u64 {
        self.memtable_bytes()
            .saturating_sub(self.property("rocksdb.cur-size-active-mem-table"))
    }

    /// Bytes of files that hold keys of a range, roughly.
    pub(crate) fn approximate_bytes(&self, from: &[u8], to: &[u8]) -> Result<u64, StoreError> {
        self.store
            .db
            .get_approximate_sizes_cf(&self.cf(), &[Range::new(from, to)])
            .map(|sizes| sizes.iter().sum())
            .map_err(|e| self.error("estimating sizes", e))
    }

    /// A property of both column families together.
    pub(super) fn property(&self, name: &str) -> u64 {
        self.property_of(&self.cf(), name) + self.property_of(&self.segments_cf(), name)
    }

    pub(super) fn property_of(&self, cf: &Arc<BoundColumnFamily<'_>>, name: &str) -> u64 {
        self.store
            .db
            .property_int_value_cf(cf, name)
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// Drops files all of whose keys are from `from` to `last`, both included, and are not batches of
    /// segments. These keys must be deleted already.
    pub(crate) fn drop_files(&self, from: &[u8], last: &[u8]) -> Result<(), StoreError> {
        self.note_file_drop();
        self.store
            .db
            .delete_file_in_range_cf(&self.cf(), from, last)
            .map_err(|e| self.error("dropping files", e))
    }

    /// The largest key of each file of segments, in order.
    #[cfg(test)]
    pub(crate) fn largest_keys(&self) -> Vec<Vec<u8>> {
        let files = self.store.db.live_files().unwrap_or_default();
        let mut keys: Vec<Vec<u8>> = files
            .into_iter()
            .filter(|file| file.column_family_name == self.families().segments)
            .filter_map(|file| file.end_key)
            .collect();
        keys.sort();
        keys
    }

    /// Rewrites the files that have no batches of segments, without deleted data; blocks until done.
    ///
    /// # Errors
    ///
    /// A compaction, of any partition, has failed meanwhile.
    pub(crate) fn compact(&self) -> Result<(), StoreError> {
        let background = &self.store.background;
        let failed = background.failed_compactions();
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        self.store
            .db
            .compact_range_cf_opt(&self.cf(), None::<&[u8]>, None::<&[u8]>, &options);
        match background.compaction_failure_since(failed) {
            Some(why) => Err(self.not_flushed(why)),
            None => Ok(()),
        }
    }

    /// An error of a read.
    pub(crate) fn error(&self, operation: &str, source: rust_rocksdb::Error) -> StoreError {
        self.failed(operation, Met::Reading, source)
    }

    /// An error of a write, which may report damage that background work met in another partition.
    pub(super) fn write_error(&self, operation: &str, source: rust_rocksdb::Error) -> StoreError {
        self.failed(operation, Met::Writing, source)
    }

    pub(super) fn failed(
        &self,
        operation: &str,
        met: Met,
        source: rust_rocksdb::Error,
    ) -> StoreError {
        self.note_damage(operation, met, &source);
        StoreError::Db {
            path: self.store.path.to_path_buf(),
            operation: format!("partition {}, {operation}", self.partition),
            source,
        }
    }

    pub(crate) fn malformed(&self, what: &str, why: &dyn std::fmt::Display) -> StoreError {
        StoreError::Malformed {
            path: self.store.path.to_path_buf(),
            partition: self.partition,
            what: what.to_owned(),
            why: why.to_string(),
        }
    }
}

/// Decodes two big-endian numbers; `None` if there are not exactly 16 bytes.
pub(crate) fn two_numbers(bytes: &[u8]) -> Option<[u64; 2]> {
    let (first, second) = bytes.split_first_chunk::<8>()?;
    Some([
        u64::from_be_bytes(*first),
        u64::from_be_bytes(second.try_into().ok()?),
    ])
}

/// See [`PartitionDb::keep_files`].
pub(crate) struct KeptFiles<'a> {
    db: &'a Db,
}

impl Drop for KeptFiles<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.db.enable_file_deletions() {
            tracing::warn!(%error, "files that are not needed stay until the next start");
        }
    }
}

/// Options of an iterator over keys in `[from, to)`.
pub(crate) fn bounded(from: &[u8], to: &[u8], cache: bool) -> ReadOptions {
    let mut options = unbounded(cache);
    options.set_iterate_lower_bound(from);
    options.set_iterate_upper_bound(to);
    options
}

/// Options of an iterator over all keys.
pub(crate) fn unbounded(cache: bool) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.fill_cache(cache);
    options
}

/// Writes that become visible together.
pub(crate) struct PartitionBatch {
    part: PartitionDb,
    batch: WriteBatch,
    steps: Vec<Step>,
}

impl PartitionBatch {
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.batch.put_cf(&self.part.cf(), key, value);
    }

    pub fn delete(&mut self, key: impl AsRef<[u8]>) {
        self.batch.delete_cf(&self.part.cf(), key);
    }

    pub fn delete_range(&mut self, from: &[u8], to: &[u8]) {
        self.batch.delete_range_cf(&self.part.cf(), from, to);
    }

    /// Appends a batch to a stream.
    pub fn append(&mut self, stream: StreamId, first: u64, end: u64, value: Bytes) {
        let written = Written { first, end, value };
        self.steps.push(Step::Append(stream, written));
    }

    /// Removes a row; `last` is the last sequence number in its key.
    pub fn remove_row(&mut self, stream: StreamId, last: u64, row: Row) {
        self.steps.push(Step::Remove(stream, last, row));
    }

    /// Removes the batches of a row that begin before `first`, where one begins.
    pub fn trim_row(&mut self, stream: StreamId, last: u64, row: Row, first: u64) {
        self.steps.push(Step::Trim(stream, last, row, first));
    }

    /// Moves the first batches of a row to the present segment. Batches of the row before them are trimmed.
    pub fn move_batches(&mut self, stream: StreamId, last: u64, row: Row, moved: Vec<Written>) {
        self.steps.push(Step::Move(stream, last, row, moved));
    }

    /// Moves batches from where an earlier build wrote them to the present segment.
    pub fn convert(&mut self, stream: StreamId, moved: Vec<Written>) {
        self.steps.push(Step::Convert(stream, moved));
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> u64 {
        let values = self.steps.iter().flat_map(Step::written);
        let values: u64 = values.map(|written| written.value.len() as u64).sum();
        self.batch.size_in_bytes() as u64 + values
    }

    /// Writes all of them atomically. They are durable once flushed; until then the Raft log has them.
    pub fn write(self) -> Result<(), StoreError> {
        self.part.wait_for_memtables()?;
        self.part.write_with(self.batch, self.steps)
    }
}
