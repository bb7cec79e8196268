//! Options of the database: sizes, and where its checkpoints are.

use std::path::PathBuf;

use super::damage_report::DamageReport;

/// Options of the database.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Bytes of the cache of uncompressed blocks, for all partitions together.
    pub block_cache: usize,
    /// Bytes of one memtable.
    pub write_buffer: usize,
    /// Bytes of all memtables of all partitions together.
    pub write_buffers_total: usize,
    /// Most open files.
    pub max_open_files: i32,
    /// Threads for flushes and compactions.
    pub background_jobs: i32,
    /// Directory of the checkpoints, with one directory for each partition, on the file system of the
    /// database. `None`: below the database.
    pub checkpoints: Option<PathBuf>,
    /// Damage that is found is recorded here.
    pub damage: DamageReport,
}

impl StoreOptions {
    /// Options of a small database that is inspected and then removed.
    pub fn for_inspection() -> StoreOptions {
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
