//! RocksDB's options for a partition's column families: blocks, indexes and compactions.

use rust_rocksdb::{
    BlockBasedOptions, DBCompactionStyle, DBCompressionType, Options, SstPartitionerFactory,
    UniversalCompactOptions, UniversalCompactionStopStyle,
};

use super::StoreOptions;
use super::background;

/// Bytes of a block that holds several keys. A read session reads one block of every run at each place
/// where a stream's keys begin or end, so 16 KiB would cost it four times as much there. The index takes
/// some 60 bytes of memory for each block of open files: 1.5 % of small batches, and less of larger ones,
/// each of which is one block.
pub(super) const BLOCK_SIZE: usize = 4 * 1024;

/// A block ends before a key that would make it larger than [`BLOCK_SIZE`], if less than this percentage
/// of it is free: with 99, if it has more than 41 bytes, which are 1 %. The small keys at the beginning
/// of a file are more than that, so no large batch shares their block. (With 100, RocksDB ends a block
/// only after the key that makes it too large.)
pub(super) const BLOCK_DEVIATION: i32 = 99;

/// Most bytes that an iterator reads ahead. A scan ends after a MiB, and what was read ahead by then is
/// lost: with RocksDB's default of 256 KiB, a quarter of the scan's bytes.
pub(super) const MAX_READAHEAD: usize = 64 * 1024;

/// The open files are one list; when there are too many, the file that was unused for longest is closed.
/// RocksDB's default has 64 lists, each with a 64th of the limit. Some of these are full when most are
/// not; every scan closes and opens their files again, and reads the whole index each time.
pub(super) const OPEN_FILES_SHARD_BITS: i32 = 0;

/// RocksDB's `IndexShorteningMode::kNoShortening`.
pub(super) const NO_SHORTENING: i32 = 0;

/// An index that has the first key of each block beside the last. An iterator that moves forward visits
/// all runs; if a run has nothing at the target, the index has its next key, so no block is read. Without
/// first keys, it reads a block of each run, and a block is as large as a batch, up to a MiB. Files that
/// earlier builds wrote have their old index until they are compacted. The bindings have no name for this
/// option, so it is set as text.
const INDEX: &str = "block_based_table_factory={index_type=kBinarySearchWithFirstKey;}";

/// Blocks of segments are not compressed while that saves less than an eighth of them: trying it takes a third of the
/// processor time of a flush. One block of each file, and one of some 64, are tried all the same, so that a segment is
/// compressed soon after what is appended changes. The bindings have no name for this option.
const SKIPS_INCOMPRESSIBLE: &str = "compression_opts={auto_skip=true;}";

pub(super) fn partition_options(
    options: &StoreOptions,
    table: &BlockBasedOptions,
) -> Result<Options, rust_rocksdb::Error> {
    let mut cf = Options::default();
    cf.set_block_based_table_factory(table);
    let mut cf = cf.get_options_from_string(INDEX)?;
    cf.set_write_buffer_size(options.write_buffer);
    cf.set_max_write_buffer_number(background::MAX_MEMTABLES);
    // Tiered: only files of similar size are compacted, many at a time, so that data is rewritten seldom.
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
    // No file is rewritten because of its age alone.
    cf.set_ttl(0);
    cf.set_periodic_compaction_seconds(0);
    cf.set_compression_type(DBCompressionType::None);
    cf.set_bottommost_compression_type(DBCompressionType::Lz4);
    cf.set_target_file_size_base(64 * 1024 * 1024);
    Ok(cf)
}

/// Options for segments: no file has keys between those of another, so a compaction moves files to a lower
/// level as they are. A file is moved only if both levels compress alike.
pub(super) fn segment_options(
    options: &StoreOptions,
    table: &BlockBasedOptions,
) -> Result<Options, rust_rocksdb::Error> {
    let mut cf = Options::default();
    cf.set_block_based_table_factory(table);
    let mut cf = cf.get_options_from_string(INDEX)?;
    let mut cf = cf.get_options_from_string(SKIPS_INCOMPRESSIBLE)?;
    cf.set_write_buffer_size(options.write_buffer);
    cf.set_max_write_buffer_number(background::MAX_MEMTABLES);
    cf.set_compaction_style(DBCompactionStyle::Level);
    cf.set_level_compaction_dynamic_level_bytes(true);
    cf.set_level_zero_file_num_compaction_trigger(1);
    cf.set_level_zero_slowdown_writes_trigger(96);
    cf.set_level_zero_stop_writes_trigger(background::LEVEL0_STOP);
    cf.set_ttl(0);
    cf.set_periodic_compaction_seconds(0);
    cf.set_compression_type(DBCompressionType::Lz4);
    // A flush that RocksDB begins on its own may end a file within a segment. The files of such a segment are
    // merged; without this, the result would take in its neighbours, whose files could then not be dropped.
    cf.set_sst_partitioner_factory(&SstPartitionerFactory::fixed_prefix(size_of::<u64>()));
    cf.set_target_file_size_base(64 * 1024 * 1024);
    Ok(cf)
}

#[cfg(test)]
mod tests {
    use super::super::{ClusterInit, DamageReport, Store};
    use super::*;
    use crate::ids::{PartitionId, StreamId};

    const VALUE_BYTES: usize = 16 * 1024;
    const VALUES: u64 = 512;

    fn options() -> StoreOptions {
        StoreOptions {
            block_cache: 1024 * 1024,
            write_buffer: 64 * 1024 * 1024,
            write_buffers_total: 64 * 1024 * 1024,
            max_open_files: 32,
            background_jobs: 1,
            checkpoints: None,
            damage: DamageReport::default(),
        }
    }

    /// Bytes of the file of a segment that is written now, for each of its values.
    fn written(store: &Store, first: u64, value: impl Fn(u64) -> Vec<u8>) -> u64 {
        let part = store.partition_db(PartitionId(1));
        let before = part.file_bytes();
        for number in first..first + VALUES {
            let mut batch = part.batch();
            batch.append(StreamId(1), number, number + 1, value(number).into());
            batch.write().unwrap();
        }
        part.flush().unwrap();
        (part.file_bytes() - before) / VALUES
    }

    #[test]
    fn what_does_not_compress_is_hardly_tried_and_what_does_is_compressed_again_soon() {
        let directory = tempfile::tempdir().unwrap();
        let init = ClusterInit {
            partitions: 1,
            voters: vec![1],
            cluster_id: "a cluster".to_owned(),
        };
        let store = Store::create(directory.path(), &options(), &init).unwrap();
        let random = |number| {
            use rand::{RngCore as _, SeedableRng as _};
            let mut value = vec![0; VALUE_BYTES];
            rand::rngs::StdRng::seed_from_u64(number).fill_bytes(&mut value);
            value
        };
        let raw = written(&store, 0, random);
        assert!(
            (VALUE_BYTES as u64..VALUE_BYTES as u64 + 200).contains(&raw),
            "{raw}"
        );
        let text = written(&store, VALUES, |_| b"esker ".repeat(VALUE_BYTES / 6));
        assert!(
            text < VALUE_BYTES as u64 / 2,
            "{text} bytes of {VALUE_BYTES} are left"
        );
        // The option, which nothing else shows, has reached the column family.
        let found = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let kept = found.filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("OPTIONS")
        });
        let kept = kept
            .map(|path| std::fs::read_to_string(path).unwrap())
            .max_by_key(String::len)
            .unwrap();
        assert_eq!(
            kept.matches("auto_skip=true").count(),
            2,
            "of the segments of the catalog and of the partition"
        );
    }
}
