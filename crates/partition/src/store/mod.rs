//! The node's RocksDB: two column families per partition, without a write-ahead log: rows, and segments
//! ([`segments`]).
//!
//! The Raft log is the write-ahead log: a batch written here has the LSN up to which it applies
//! ([`Applied`]), atomically with the data. A crash loses what was not flushed. The *durable* LSN is read
//! back from the files alone, and everything above it is replayed.
//!
//! A partition is created empty, imported from a checkpoint, or dropped as a whole ([`partitions`]).

mod background;
mod column_families;
mod damage;
mod damage_report;
mod error;
mod lineage;
mod next_families;
mod options;
mod partition_db;
pub mod partitions;
mod positions;
mod present_families;
pub(crate) mod segment_steps;
pub(crate) mod segments;
mod tuning;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use rust_rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBRawIteratorWithThreadMode,
    DBWithThreadMode, LogLevel, MultiThreaded, Options,
};

use crate::ids::PartitionId;
use background::Background;
use column_families::{Present, parts_of_name, rows_name};
use segments::Segments;
use tuning::{
    BLOCK_DEVIATION, BLOCK_SIZE, MAX_READAHEAD, NO_SHORTENING, OPEN_FILES_SHARD_BITS,
    partition_options, segment_options,
};

pub use crate::applied::{Applied, Archived};
pub use damage_report::DamageReport;
pub use error::StoreError;
pub(crate) use next_families::NextFamilies;
pub use options::StoreOptions;
pub use partition_db::PartitionDb;
pub(crate) use partition_db::{PartitionBatch, bounded, two_numbers, unbounded};
pub use partitions::ClusterInit;

pub(crate) type Db = DBWithThreadMode<MultiThreaded>;
pub(crate) type RawIterator<'a> = DBRawIteratorWithThreadMode<'a, Db>;

/// What is known of segments, by the partition and the number of its column families.
type SegmentsByFamilies = HashMap<(PartitionId, u64), Arc<Segments>>;

/// The node's database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    db: Arc<Db>,
    path: Arc<PathBuf>,
    checkpoints: Arc<PathBuf>,
    partition_options: Arc<Options>,
    segment_options: Arc<Options>,
    /// [`StoreOptions::write_buffer`], in bytes.
    write_buffer: u64,
    /// [`StoreOptions::write_buffers_total`], in bytes.
    write_buffers_total: u64,
    present: Arc<Mutex<HashMap<PartitionId, Arc<Present>>>>,
    /// By the number of the column families, too.
    segments: Arc<Mutex<SegmentsByFamilies>>,
    damage: DamageReport,
    background: Arc<Background>,
}

/// RocksDB flushes with a quarter of its threads, so this many are one for flushes. With two, an atomic flush
/// waits for an earlier one of the same column family; once that has failed, and its error was reset, it waits
/// until somebody flushes again, and two of them may wait for each other.
const MAX_BACKGROUND_JOBS: i32 = 7;

impl Store {
    /// Creates the database of a new node: every partition is at LSN 0, and durable when this returns. It
    /// completes an earlier attempt that did not finish.
    pub fn create(
        path: &Path,
        options: &StoreOptions,
        init: &ClusterInit,
    ) -> Result<Store, StoreError> {
        let store = Store::open_any(path, options)?;
        store.prepare_partitions((0..=u64::from(init.partitions)).map(PartitionId))?;
        for number in 0..=init.partitions {
            store.create_partition(PartitionId(u64::from(number)), init)?;
        }
        Ok(store)
    }

    /// Opens the database of a node that has been in use. A missing or incomplete one is an error; it is
    /// never replaced by an empty one.
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

    /// Opens the database with the partitions that it has; creates an empty one if there is none.
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
        db_options.set_max_background_jobs(options.background_jobs.min(MAX_BACKGROUND_JOBS));
        db_options.set_bytes_per_sync(1024 * 1024);
        db_options.set_paranoid_checks(mode == Mode::Sound);
        // See `segments`.
        db_options.set_atomic_flush(true);
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
        // The index of a file has the exact first and last key of each block: see `partition_options`.
        table.set_index_shortening(NO_SHORTENING);
        // A block with several keys does not exceed the block size.
        table.set_block_size_deviation(BLOCK_DEVIATION);
        table.set_max_auto_readahead_size(MAX_READAHEAD);

        // RocksDB requires this column family; nothing is written to it. After a full disk, RocksDB resumes
        // only when there is space for the largest write buffer of all column families, which would be
        // 64 MiB with the default here.
        let mut unused = Options::default();
        unused.set_write_buffer_size(options.write_buffer);
        let mut descriptors = vec![ColumnFamilyDescriptor::new("default", unused)];
        let mut partition_options = partition_options(options, &table).map_err(fail)?;
        partition_options.set_disable_auto_compactions(mode == Mode::Damaged);
        let mut segment_options = segment_options(options, &table).map_err(fail)?;
        segment_options.set_disable_auto_compactions(mode == Mode::Damaged);
        let mut there = Vec::new();
        if path.join("CURRENT").exists() {
            there = Db::list_cf(&db_options, path).map_err(fail)?;
        }
        for name in there.iter().filter(|name| *name != "default") {
            let options = match is_of_segments(name) {
                true => segment_options.clone(),
                false => partition_options.clone(),
            };
            descriptors.push(ColumnFamilyDescriptor::new(name, options));
        }
        let db = Db::open_cf_descriptors(&db_options, path, descriptors).map_err(fail)?;
        let db = Arc::new(db);
        let checkpoints = options.checkpoints.clone();
        let store = Store {
            db,
            path: Arc::new(path.to_owned()),
            checkpoints: Arc::new(checkpoints.unwrap_or_else(|| path.join("checkpoints"))),
            partition_options: Arc::new(partition_options),
            segment_options: Arc::new(segment_options),
            write_buffer: options.write_buffer as u64,
            write_buffers_total: options.write_buffers_total as u64,
            present: Arc::default(),
            segments: Arc::default(),
            damage: options.damage.clone(),
            background,
        };
        store.find_families(&there, mode)?;
        Ok(store)
    }

    /// One partition's part of the database.
    pub fn partition_db(&self, partition: PartitionId) -> PartitionDb {
        PartitionDb {
            store: self.clone(),
            partition,
            present: self.present(partition),
            pinned: None,
            reclaim_is_behind: Arc::default(),
            free_space: Arc::new(AtomicU64::new(u64::MAX)),
            reclaimable: Arc::default(),
            positions: Arc::default(),
        }
    }

    /// The directory of the database.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    /// Stops background work. To be called before the last handle is dropped.
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
    /// A table that cannot be opened is an error of each read of it. Nothing is compacted.
    Damaged,
}

/// How the names of column families of segments end.
const SEGMENTS_SUFFIX: &str = "-segments";

/// The name of a partition's column family of rows in descriptions, whatever it is in this database.
pub(crate) fn cf_name(partition: PartitionId) -> String {
    rows_name(partition, 0)
}

/// The same of segments.
pub(crate) fn segments_cf_name(partition: PartitionId) -> String {
    column_families::segments_name(partition, 0)
}

/// Whether a column family is one of segments.
pub(crate) fn is_of_segments(column_family: &str) -> bool {
    column_family.ends_with(SEGMENTS_SUFFIX)
}

/// The partition of a column family.
fn partition_of(column_family: &str) -> Option<PartitionId> {
    parts_of_name(column_family).map(|(partition, _)| partition)
}

#[cfg(test)]
mod tests;
