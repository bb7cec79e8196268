//! The database of a partition, and its keys.

use std::path::Path;

use anyhow::Context as _;
use rust_rocksdb::{
    BoundColumnFamily, Cache, ColumnFamilyDescriptor, DBWithThreadMode, MultiThreaded, Options,
};

use super::tuning::{Layout, Tuning};

pub type Db = DBWithThreadMode<MultiThreaded>;

pub const POSITION: u8 = 0x00;
pub const STATE: u8 = 0x11;
pub const DATA: u8 = 0x20;
pub const BY_TIME: u8 = 0x21;
pub const INDEX: u8 = 0x22;

/// A kind and two numbers, big-endian.
pub fn key(kind: u8, first: u64, second: u64) -> [u8; 17] {
    let mut key = [kind; 17];
    key[1..9].copy_from_slice(&first.to_be_bytes());
    key[9..].copy_from_slice(&second.to_be_bytes());
    key
}

pub fn by_time(stream: u64, time: u64, seq: u64) -> [u8; 25] {
    let mut key = [BY_TIME; 25];
    key[1..9].copy_from_slice(&stream.to_be_bytes());
    key[9..17].copy_from_slice(&time.to_be_bytes());
    key[17..].copy_from_slice(&seq.to_be_bytes());
    key
}

/// A key of segment-major batches.
pub fn in_segment(segment: u64, stream: u64, seq: u64) -> [u8; 25] {
    let mut key = [DATA; 25];
    key[1..9].copy_from_slice(&segment.to_be_bytes());
    key[9..17].copy_from_slice(&stream.to_be_bytes());
    key[17..].copy_from_slice(&seq.to_be_bytes());
    key
}

/// Opens the database; nothing is compacted if `quiet`.
pub fn open(path: &Path, tuning: &Tuning, quiet: bool) -> anyhow::Result<(Db, Options)> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_open_files(4096);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1024 * 1024);
    options.set_avoid_flush_during_shutdown(true);
    options.enable_statistics();
    let cache = Cache::new_lru_cache(128 * 1024 * 1024);
    let table = tuning.table(&cache);
    let mut main = tuning.main(&table);
    main.set_disable_auto_compactions(quiet);
    let mut families = vec![ColumnFamilyDescriptor::new("main", main)];
    if tuning.layout != Layout::Stream {
        let mut data = tuning.data(&table);
        data.set_disable_auto_compactions(quiet);
        families.push(ColumnFamilyDescriptor::new("data", data));
    }
    families.push(ColumnFamilyDescriptor::new("default", Options::default()));
    let db = Db::open_cf_descriptors(&options, path, families)?;
    Ok((db, options))
}

/// A column family by name.
pub fn family<'a>(db: &'a Db, name: &str) -> anyhow::Result<std::sync::Arc<BoundColumnFamily<'a>>> {
    db.cf_handle(name)
        .with_context(|| format!("no column family {name}"))
}
