//! How RocksDB keeps a partition's data: blocks, indexes, and when files are merged.

use rust_rocksdb::{
    BlockBasedOptions, DBCompactionStyle, DBCompressionType, Options, UniversalCompactOptions,
    UniversalCompactionStopStyle,
};

use super::StoreOptions;
use super::background;

/// Bytes of a block that holds several keys. Of 16 KiB, every run would cost a read session as much at
/// each place where a stream's keys begin or end. The index takes some 60 bytes of memory a block of
/// open files: 1.5 % of small batches, and less of larger ones, which are a block each.
pub(super) const BLOCK_SIZE: usize = 4 * 1024;

/// A block ends before a key that would make it larger than [`BLOCK_SIZE`], once it holds so many
/// percent less than that: 1 % are 41 bytes. The small keys at the beginning of a file are more than
/// that, so no large batch shares their block. (Of 100 RocksDB makes that a block is as large as the
/// last key makes it.)
pub(super) const BLOCK_DEVIATION: i32 = 99;

/// Bytes that an iterator that moves on reads ahead at most. A scan ends after a MiB, and what was read
/// ahead then is lost: of RocksDB's 256 KiB, a quarter.
pub(super) const MAX_READAHEAD: usize = 64 * 1024;

/// The open files are one list, of which the one unused for longest is closed when there are too many. Of
/// RocksDB's 64 lists, each of a 64th of them, some are full when most are not, and the files there are
/// closed and opened again by every scan, which reads their whole index each time.
pub(super) const OPEN_FILES_SHARD_BITS: i32 = 0;

/// RocksDB's `IndexShorteningMode::kNoShortening`.
pub(super) const NO_SHORTENING: i32 = 0;

/// An index that has the first key of each block beside the last. An iterator that moves forward looks
/// into all runs, and of those that have nothing at the target it then reads no block: it learns from
/// the index what they have next. Without first keys it reads a block of each run, and a block is as
/// large as a batch, a MiB at most. Files that earlier builds wrote keep their index until they are
/// merged. The bindings have no name for it, so it is given as text.
const INDEX: &str = "block_based_table_factory={index_type=kBinarySearchWithFirstKey;}";

pub(super) fn partition_options(
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
