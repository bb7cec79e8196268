//! The node's RocksDB: one column family per partition, without a write-ahead log.
//!
//! The Raft log is the write-ahead log: a batch written here carries the LSN up to which it
//! applies ([`Applied`]), atomically with the data. What a crash loses is what was not flushed; the
//! LSN that is *durable* is read back from the files alone, and everything above it is replayed.
//!
//! A partition comes and goes as a whole: it is founded empty, or imported from a checkpoint
//! ([`partitions`]).

mod background;
mod damage;
pub mod partitions;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use prost::Message as _;
use rust_rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, BoundColumnFamily, Cache, ColumnFamilyDescriptor,
    CompactOptions, DBCompactionStyle, DBCompressionType, DBRawIteratorWithThreadMode,
    DBWithThreadMode, ErrorKind, LogLevel, MultiThreaded, Options, Range, ReadOptions, ReadTier,
    UniversalCompactOptions, UniversalCompactionStopStyle, WriteBatch,
};

use crate::ids::PartitionId;
use crate::keys;
use crate::lineage::Lineage;
use crate::log_tail::LogTail;
use background::Background;
pub use damage::DamageReport;
use damage::Met;
pub use partitions::ClusterInit;

pub(crate) type Db = DBWithThreadMode<MultiThreaded>;
pub(crate) type RawIterator<'a> = DBRawIteratorWithThreadMode<'a, Db>;

/// Sizes of the database.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Cache of uncompressed blocks, bytes, over all partitions.
    pub block_cache: usize,
    /// One memtable, bytes.
    pub write_buffer: usize,
    /// All memtables of all partitions, bytes.
    pub write_buffers_total: usize,
    /// Open files at most.
    pub max_open_files: i32,
    /// Threads for flushes and compactions.
    pub background_jobs: i32,
    /// Where checkpoints are made, a directory per partition, on the file system of the database.
    /// `None`: below the database.
    pub checkpoints: Option<PathBuf>,
    /// What is found damaged is noted here.
    pub damage: DamageReport,
}

impl StoreOptions {
    /// Those of a small database that is looked into and thrown away.
    pub fn for_a_look() -> StoreOptions {
        const MIB: usize = 1024 * 1024;
        StoreOptions {
            block_cache: MIB,
            write_buffer: MIB,
            write_buffers_total: MIB,
            max_open_files: 64,
            background_jobs: 1,
            checkpoints: None,
            damage: DamageReport::default(),
        }
    }
}

impl Default for StoreOptions {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        StoreOptions {
            block_cache: 128 * MIB,
            write_buffer: 32 * MIB,
            write_buffers_total: 192 * MIB,
            max_open_files: 512,
            background_jobs: 2,
            checkpoints: None,
            damage: DamageReport::default(),
        }
    }
}

/// A failure of the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There should be one, and there is none.
    #[error(
        "the database in {path} is missing although this data directory was in use; nothing was created in its place"
    )]
    Missing {
        /// Its directory.
        path: PathBuf,
    },
    /// One partition's part is missing or has no position.
    #[error("the database in {path} lacks partition {partition}: {what}")]
    Incomplete {
        /// Its directory.
        path: PathBuf,
        /// The partition.
        partition: PartitionId,
        /// What is wrong.
        what: String,
    },
    /// RocksDB failed.
    #[error("the database in {path}, {operation}: {source}")]
    Db {
        /// Its directory.
        path: PathBuf,
        /// What was being done.
        operation: String,
        /// What RocksDB says; it names the file.
        source: rust_rocksdb::Error,
    },
    /// A file of a checkpoint, or the directory of one.
    #[error("{operation} {path}: {source}", path = .path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// A checkpoint that cannot be used.
    #[error("the checkpoint in {path}: {why}", path = .path.display())]
    Checkpoint {
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What was written is not in files yet, and does not get there at the moment. It is in memory, and
    /// in the Raft log.
    #[error("the database in {path}, partition {partition}, cannot write its files: {why}")]
    NotFlushed {
        /// Its directory.
        path: PathBuf,
        /// The partition.
        partition: PartitionId,
        /// What RocksDB says; it names the file.
        why: String,
    },
    /// Something stored is not what this version writes.
    #[error("the database in {path}, partition {partition}, {what}: {why}")]
    Malformed {
        /// Its directory.
        path: PathBuf,
        /// The partition.
        partition: PartitionId,
        /// Which value.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

impl StoreError {
    /// Whether the operating system refused: the same may work later, and nothing is known about what
    /// could not be read. What is missing, damaged or malformed is none of that.
    pub fn is_unreadable(&self) -> bool {
        match self {
            StoreError::Db { source, .. } => is_refusal(source.kind(), source.as_ref()),
            StoreError::Io { source, .. } => source.kind() != std::io::ErrorKind::NotFound,
            StoreError::NotFlushed { .. } => true,
            StoreError::Missing { .. }
            | StoreError::Incomplete { .. }
            | StoreError::Checkpoint { .. }
            | StoreError::Malformed { .. } => false,
        }
    }
}

/// Whether RocksDB met an answer of the operating system, rather than bytes that are not what was
/// written. A file that is gone is no such answer: RocksDB has noted which files there are. What it
/// calls corruption may be one: it reports corruption for every file that it cannot look at when it opens.
fn is_refusal(kind: ErrorKind, message: &str) -> bool {
    const ANSWER: &str = "IO error: ";
    const GONE: &str = "No such file or directory";
    let answers = || message.match_indices(ANSWER);
    match kind {
        ErrorKind::Corruption | ErrorKind::IOError => {
            answers().any(|(at, _)| !message[at + ANSWER.len()..].starts_with(GONE))
        }
        // A version that it does not know, a time-out, options that do not fit.
        _ => true,
    }
}

/// How far a partition's data goes, and who belonged to its group then.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Applied {
    /// Last entry whose effects are here.
    #[prost(uint64, tag = "1")]
    pub lsn: u64,
    /// Its term.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Members with a vote.
    #[prost(uint64, repeated, tag = "3")]
    pub voters: Vec<u64>,
    /// Members without.
    #[prost(uint64, repeated, tag = "4")]
    pub learners: Vec<u64>,
    /// During a change of the membership: who had a vote before it.
    #[prost(uint64, repeated, tag = "5")]
    pub voters_outgoing: Vec<u64>,
    /// During a change of the membership: who becomes a learner when it ends.
    #[prost(uint64, repeated, tag = "6")]
    pub learners_next: Vec<u64>,
    /// The learners that get a vote once they have caught up.
    #[prost(uint64, repeated, tag = "7")]
    pub to_promote: Vec<u64>,
    /// Checksums of the last entries; absent until one was applied by a build that computes them.
    #[prost(message, optional, tag = "8")]
    pub log_tail: Option<LogTail>,
}

/// The node's database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    db: Arc<Db>,
    path: Arc<PathBuf>,
    checkpoints: Arc<PathBuf>,
    partition_options: Arc<Options>,
    damage: DamageReport,
    background: Arc<Background>,
}

impl Store {
    /// Makes the database of a new node: every partition at LSN 0, durable when this returns.
    /// Something left by an earlier attempt that did not finish is completed.
    pub fn create(
        path: &Path,
        options: &StoreOptions,
        init: &ClusterInit,
    ) -> Result<Store, StoreError> {
        let store = Store::open_any(path, options)?;
        for number in 0..=init.partitions {
            store.create_partition(PartitionId(u64::from(number)), init)?;
        }
        Ok(store)
    }

    /// Opens the database of a node that has been in use. A missing or incomplete one is an error,
    /// never an empty one.
    pub fn open(path: &Path, options: &StoreOptions, partitions: u32) -> Result<Store, StoreError> {
        if !path.join("CURRENT").exists() {
            return Err(StoreError::Missing {
                path: path.to_owned(),
            });
        }
        let store = Store::open_any(path, options)?;
        for number in 0..=partitions {
            let partition = PartitionId(u64::from(number));
            if store.applied(partition)?.is_none() {
                return Err(StoreError::Incomplete {
                    path: path.to_owned(),
                    partition,
                    what: "it has no position".to_owned(),
                });
            }
        }
        let more = PartitionId(u64::from(partitions) + 1);
        if store.has(more) {
            return Err(StoreError::Incomplete {
                path: path.to_owned(),
                partition: more,
                what: format!("it is one of more than {partitions}"),
            });
        }
        Ok(store)
    }

    /// Opens what is there, with whatever partitions it has; makes an empty one where there is none.
    pub fn open_any(path: &Path, options: &StoreOptions) -> Result<Store, StoreError> {
        Store::open_with(path, options, Mode::Sound)
    }

    fn open_with(path: &Path, options: &StoreOptions, mode: Mode) -> Result<Store, StoreError> {
        let fail = |source| StoreError::Db {
            path: path.to_owned(),
            operation: "opening".to_owned(),
            source,
        };
        let mut db_options = Options::default();
        db_options.create_if_missing(true);
        db_options.set_db_write_buffer_size(options.write_buffers_total);
        db_options.set_max_open_files(options.max_open_files);
        db_options.set_table_cache_num_shard_bits(OPEN_FILES_SHARD_BITS);
        db_options.set_max_background_jobs(options.background_jobs);
        db_options.set_bytes_per_sync(1024 * 1024);
        db_options.set_paranoid_checks(mode == Mode::Sound);
        // RocksDB's own text log stays small.
        db_options.set_log_level(LogLevel::Warn);
        db_options.set_max_log_file_size(1024 * 1024);
        db_options.set_keep_log_file_num(2);
        let background = Arc::new(Background::default());
        db_options.add_event_listener(background.listener());
        // What is not flushed is in the Raft log.
        db_options.set_avoid_flush_during_shutdown(true);

        let cache = Cache::new_lru_cache(options.block_cache);
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&cache);
        table.set_block_size(BLOCK_SIZE);
        table.set_format_version(5);
        // The index of a file says where each block begins and ends, exactly: see `partition_options`.
        table.set_index_shortening(NO_SHORTENING);
        // And a block that holds several keys is no larger than a block should be.
        table.set_block_size_deviation(BLOCK_DEVIATION);
        table.set_max_auto_readahead_size(MAX_READAHEAD);

        // It has to be there, and nothing is written into it. Yet after a full disk, RocksDB goes on only
        // when there is room for the largest write buffer of all column families: 64 MiB, if this one
        // had the default.
        let mut unused = Options::default();
        unused.set_write_buffer_size(options.write_buffer);
        let mut descriptors = vec![ColumnFamilyDescriptor::new("default", unused)];
        let mut partition_options = partition_options(options, &table).map_err(fail)?;
        partition_options.set_disable_auto_compactions(mode == Mode::Damaged);
        if path.join("CURRENT").exists() {
            let there = Db::list_cf(&db_options, path).map_err(fail)?;
            for name in there.into_iter().filter(|name| name != "default") {
                descriptors.push(ColumnFamilyDescriptor::new(name, partition_options.clone()));
            }
        }
        let db = Db::open_cf_descriptors(&db_options, path, descriptors).map_err(fail)?;
        let checkpoints = options.checkpoints.clone();
        Ok(Store {
            db: Arc::new(db),
            path: Arc::new(path.to_owned()),
            checkpoints: Arc::new(checkpoints.unwrap_or_else(|| path.join("checkpoints"))),
            partition_options: Arc::new(partition_options),
            damage: options.damage.clone(),
            background,
        })
    }

    /// One partition's part.
    pub fn part(&self, partition: PartitionId) -> PartitionDb {
        PartitionDb {
            store: self.clone(),
            partition,
            name: cf_name(partition).into(),
            lineage: Arc::default(),
            reclaim_is_behind: Arc::default(),
            free_space: Arc::new(AtomicU64::new(u64::MAX)),
            reclaimable: Arc::default(),
        }
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    /// Stops background work; to be called before the last handle goes.
    pub fn close(&self) {
        self.background.close();
        self.db.cancel_all_background_work(true);
    }
}

/// How a database is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A table that cannot be opened is an error.
    Sound,
    /// A table that cannot be opened is an error of who reads it. Nothing is compacted.
    Damaged,
}

fn cf_name(partition: PartitionId) -> String {
    format!("partition-{partition}")
}

/// Bytes of a block that holds several keys. Of 16 KiB, every run would cost a read session as much at
/// each place where a stream's keys begin or end. The index takes some 60 bytes of memory a block of
/// open files: 1.5 % of small batches, and less of larger ones, which are a block each.
const BLOCK_SIZE: usize = 4 * 1024;

/// A block ends before a key that would make it larger than [`BLOCK_SIZE`], once it holds so many
/// percent less than that: 1 % are 41 bytes. The small keys at the beginning of a file are more than
/// that, so no large batch shares their block. (Of 100 RocksDB makes that a block is as large as the
/// last key makes it.)
const BLOCK_DEVIATION: i32 = 99;

/// Bytes that an iterator that moves on reads ahead at most. A scan ends after a MiB, and what was read
/// ahead then is lost: of RocksDB's 256 KiB, a quarter.
const MAX_READAHEAD: usize = 64 * 1024;

/// The open files are one list, of which the one unused for longest is closed when there are too many. Of
/// RocksDB's 64 lists, each of a 64th of them, some are full when most are not, and the files there are
/// closed and opened again by every scan, which reads their whole index each time.
const OPEN_FILES_SHARD_BITS: i32 = 0;

/// RocksDB's `IndexShorteningMode::kNoShortening`.
const NO_SHORTENING: i32 = 0;

/// An index that has the first key of each block beside the last. An iterator that moves forward looks
/// into all runs, and of those that have nothing at the target it then reads no block: it learns from
/// the index what they have next. Without first keys it reads a block of each run, and a block is as
/// large as a batch, a MiB at most. Files that earlier builds wrote keep their index until they are
/// merged. The bindings have no name for it, so it is given as text.
const INDEX: &str = "block_based_table_factory={index_type=kBinarySearchWithFirstKey;}";

fn partition_options(
    options: &StoreOptions,
    table: &BlockBasedOptions,
) -> Result<Options, rust_rocksdb::Error> {
    let mut cf = Options::default();
    cf.set_block_based_table_factory(table);
    let mut cf = cf.get_options_from_string(INDEX)?;
    cf.set_write_buffer_size(options.write_buffer);
    cf.set_max_write_buffer_number(background::MAX_MEMTABLES);
    // Tiered: only files of like size are merged, many at a time, so that what was appended is
    // rewritten seldom: docs/design/layout.md has what that saves in uploads, and what it costs readers, who
    // look into some dozen files.
    cf.set_compaction_style(DBCompactionStyle::Universal);
    let mut universal = UniversalCompactOptions::default();
    universal.set_stop_style(UniversalCompactionStopStyle::Similar);
    universal.set_size_ratio(100);
    universal.set_min_merge_width(16);
    universal.set_max_size_amplification_percent(200);
    cf.set_universal_compaction_options(&universal);
    cf.set_level_zero_file_num_compaction_trigger(32);
    cf.set_level_zero_slowdown_writes_trigger(96);
    cf.set_level_zero_stop_writes_trigger(background::LEVEL0_STOP);
    // Nothing is rewritten for its age alone.
    cf.set_ttl(0);
    cf.set_periodic_compaction_seconds(0);
    cf.set_compression_type(DBCompressionType::None);
    cf.set_bottommost_compression_type(DBCompressionType::Lz4);
    cf.set_target_file_size_base(64 * 1024 * 1024);
    Ok(cf)
}

/// One partition's part of the database. Cheap to clone.
#[derive(Clone)]
pub struct PartitionDb {
    store: Store,
    partition: PartitionId,
    name: Arc<str>,
    lineage: Arc<OnceLock<Lineage>>,
    /// See [`PartitionDb::reclaim_is_behind`].
    pub(crate) reclaim_is_behind: Arc<AtomicBool>,
    /// See [`PartitionDb::note_free_space`]; `u64::MAX` if there is enough.
    free_space: Arc<AtomicU64>,
    /// See [`PartitionDb::reclaimable`].
    reclaimable: Arc<AtomicU64>,
}

impl PartitionDb {
    /// Which partition.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Whether more was written than may be while the files are rewritten without what is deleted: new
    /// appends are to wait until that is done, or the space in use would grow with their rate.
    pub fn reclaim_is_behind(&self) -> bool {
        self.reclaim_is_behind.load(Ordering::Acquire)
    }

    /// So many bytes of the disk are free, if that is too little: then what is deleted is given back as soon
    /// as the files that are rewritten for it fit into them, however little it is.
    pub fn note_free_space(&self, free: Option<u64>) {
        self.free_space
            .store(free.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Bytes of deleted data that files hold, roughly, and that no rewriting is under way for.
    pub fn reclaimable(&self) -> u64 {
        self.reclaimable.load(Ordering::Relaxed)
    }

    pub(crate) fn note_reclaimable(&self, bytes: u64) {
        self.reclaimable.store(bytes, Ordering::Relaxed);
    }

    /// Free bytes of a disk that has too few.
    pub(crate) fn short_space(&self) -> Option<u64> {
        let free = self.free_space.load(Ordering::Relaxed);
        (free != u64::MAX).then_some(free)
    }

    pub(crate) fn cf(&self) -> Arc<BoundColumnFamily<'_>> {
        self.store
            .db
            .cf_handle(&self.name)
            .expect("every partition's column family is opened with the database")
    }

    /// How far the data goes; `None` if the partition was never made.
    pub fn applied(&self) -> Result<Option<Applied>, StoreError> {
        self.applied_at(ReadTier::All)
    }

    /// How far the data goes that survives a crash, read from the files alone.
    pub fn durable(&self) -> Result<Option<Applied>, StoreError> {
        self.applied_at(ReadTier::Persisted)
    }

    fn applied_at(&self, tier: ReadTier) -> Result<Option<Applied>, StoreError> {
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

    pub(crate) fn known_lineage(&self) -> &OnceLock<Lineage> {
        &self.lineage
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

    /// Reads a value that is two numbers.
    pub(crate) fn get_ids(
        &self,
        key: impl AsRef<[u8]>,
        what: &str,
    ) -> Result<Option<[u64; 2]>, StoreError> {
        let value = self
            .store
            .db
            .get_pinned_cf(&self.cf(), key)
            .map_err(|e| self.error(what, e))?;
        value
            .map(|bytes| two_numbers(&bytes).ok_or_else(|| self.malformed(what, &"its length")))
            .transpose()
    }

    /// An iterator over keys in `[from, to)`, not yet positioned.
    pub(crate) fn iterate(&self, from: &[u8], to: &[u8], cache: bool) -> RawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        options.fill_cache(cache);
        self.store.db.raw_iterator_cf_opt(&self.cf(), options)
    }

    /// Reads the blocks into the cache that have keys from `first` on and before `at`, and others from
    /// `at` on. In each run there may be one: it is small, and whoever reads on from `at` looks into it
    /// each time, in every run.
    pub(crate) fn cache_border(&self, first: &[u8], at: &[u8]) {
        self.iterate(first, at, true).seek(at);
    }

    /// A batch of writes.
    pub(crate) fn batch(&self) -> PartBatch {
        PartBatch {
            part: self.clone(),
            batch: WriteBatch::default(),
        }
    }

    /// Bytes of files.
    pub fn file_bytes(&self) -> u64 {
        self.property("rocksdb.total-sst-files-size")
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

    fn property(&self, name: &str) -> u64 {
        self.store
            .db
            .property_int_value_cf(&self.cf(), name)
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// Drops files that have no keys but from `from` to `last`, both included, all of which are
    /// deleted already.
    pub(crate) fn drop_files(&self, from: &[u8], last: &[u8]) -> Result<(), StoreError> {
        self.store
            .db
            .delete_file_in_range_cf(&self.cf(), from, last)
            .map_err(|e| self.error("dropping files", e))
    }

    /// The largest key of each file, in order.
    #[cfg(test)]
    pub(crate) fn largest_keys(&self) -> Vec<Vec<u8>> {
        let files = self.store.db.live_files().unwrap_or_default();
        let mut keys: Vec<Vec<u8>> = files
            .into_iter()
            .filter(|file| *file.column_family_name == *self.name)
            .filter_map(|file| file.end_key)
            .collect();
        keys.sort();
        keys
    }

    /// Rewrites all files, without what is deleted; blocks until done.
    ///
    /// # Errors
    ///
    /// A compaction has failed meanwhile, of whichever partition.
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

    /// An error of a write, which may tell of what the background work for another partition met.
    fn write_error(&self, operation: &str, source: rust_rocksdb::Error) -> StoreError {
        self.failed(operation, Met::Writing, source)
    }

    fn failed(&self, operation: &str, met: Met, source: rust_rocksdb::Error) -> StoreError {
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

/// Two big-endian numbers.
pub(crate) fn two_numbers(bytes: &[u8]) -> Option<[u64; 2]> {
    let (first, second) = bytes.split_first_chunk::<8>()?;
    Some([
        u64::from_be_bytes(*first),
        u64::from_be_bytes(second.try_into().ok()?),
    ])
}

/// Writes that happen together.
pub(crate) struct PartBatch {
    part: PartitionDb,
    batch: WriteBatch,
}

impl PartBatch {
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.batch.put_cf(&self.part.cf(), key, value);
    }

    pub fn delete(&mut self, key: impl AsRef<[u8]>) {
        self.batch.delete_cf(&self.part.cf(), key);
    }

    pub fn delete_range(&mut self, from: &[u8], to: &[u8]) {
        self.batch.delete_range_cf(&self.part.cf(), from, to);
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> u64 {
        self.batch.size_in_bytes() as u64
    }

    /// Makes them visible, all or none. Durable once flushed; until then the Raft log has them.
    pub fn write(self) -> Result<(), StoreError> {
        self.part.wait_for_memtables()?;
        self.part
            .store
            .db
            .write_without_wal(&self.batch)
            .map_err(|e| self.part.write_error("writing", e))
    }
}

#[cfg(test)]
mod tests;
