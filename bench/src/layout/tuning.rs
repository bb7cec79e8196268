//! RocksDB's options, as `name=value` pairs on top of a layout's defaults.

use std::str::FromStr;

use anyhow::{Context as _, bail};
use rust_rocksdb::{
    BlockBasedOptions, DBCompactionStyle, DBCompressionType, Options, SstPartitionerFactory,
    UniversalCompactOptions, UniversalCompactionStopStyle,
};

/// The order of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A stream's batches are contiguous.
    Stream,
    /// Batches in the order of the log.
    Log,
    /// Batches in the order of the log by segments, within a segment by stream.
    Segment,
}

/// A layout and its options: `stream`, `segment,mmw=16,amp=100`, …
#[derive(Clone, Debug)]
pub struct Tuning {
    /// The text of the argument.
    pub name: String,
    pub layout: Layout,
    /// Leveled compaction instead of universal.
    leveled: bool,
    size_ratio: i32,
    min_merge_width: i32,
    max_amplification: i32,
    /// Sorted runs from which on compaction starts.
    trigger: i32,
    similar: bool,
    incremental: bool,
    target_mib: u64,
    /// Files are cut where this many bytes of the key change; 0 means never.
    cut: usize,
    /// Write buffer, MiB.
    pub buffer_mib: usize,
    block_kib: usize,
    /// User bytes of one segment, MiB.
    pub segment_mib: u64,
    /// Garbage that all segments together may have, in percent of the live data.
    pub garbage: u64,
    /// Whether the column family of the batches has universal compaction instead of leveled.
    data_universal: bool,
}

impl FromStr for Tuning {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Tuning> {
        let mut parts = text.split(',');
        let layout = match parts.next() {
            Some("stream") => Layout::Stream,
            Some("log") => Layout::Log,
            Some("segment") => Layout::Segment,
            other => bail!("{other:?} is no layout: stream, log or segment"),
        };
        let mut tuning = Tuning {
            name: text.to_owned(),
            layout,
            leveled: false,
            size_ratio: 20,
            min_merge_width: 8,
            max_amplification: 200,
            trigger: 12,
            similar: false,
            incremental: false,
            target_mib: 64,
            cut: 0,
            buffer_mib: 32,
            block_kib: 16,
            segment_mib: 32,
            garbage: 50,
            data_universal: false,
        };
        for part in parts {
            let (name, value) = part
                .split_once('=')
                .with_context(|| format!("{part} is not name=value"))?;
            let number: i32 = value.parse().with_context(|| part.to_owned())?;
            let size = u64::try_from(number).with_context(|| part.to_owned())?;
            match name {
                "leveled" => tuning.leveled = number != 0,
                "ratio" => tuning.size_ratio = number,
                "mmw" => tuning.min_merge_width = number,
                "amp" => tuning.max_amplification = number,
                "trigger" => tuning.trigger = number,
                "similar" => tuning.similar = number != 0,
                "incremental" => tuning.incremental = number != 0,
                "target" => tuning.target_mib = size,
                "cut" => tuning.cut = usize::try_from(size)?,
                "buffer" => tuning.buffer_mib = usize::try_from(size)?,
                "block" => tuning.block_kib = usize::try_from(size)?,
                "seg" => tuning.segment_mib = size,
                "garbage" => tuning.garbage = size,
                "datauni" => tuning.data_universal = number != 0,
                _ => bail!("{name} is no option"),
            }
        }
        Ok(tuning)
    }
}

impl Tuning {
    fn common(&self, table: &BlockBasedOptions) -> Options {
        let mut cf = Options::default();
        cf.set_block_based_table_factory(table);
        cf.set_write_buffer_size(self.buffer_mib * 1024 * 1024);
        cf.set_max_write_buffer_number(4);
        cf.set_compression_type(DBCompressionType::None);
        cf.set_target_file_size_base(self.target_mib * 1024 * 1024);
        cf.set_ttl(0);
        cf.set_periodic_compaction_seconds(0);
        cf
    }

    pub fn table(&self, cache: &rust_rocksdb::Cache) -> BlockBasedOptions {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(cache);
        table.set_block_size(self.block_kib * 1024);
        table.set_format_version(5);
        table
    }

    /// Options of the column family that has everything, or everything but the batches.
    pub fn main(&self, table: &BlockBasedOptions) -> Options {
        let mut cf = self.common(table);
        cf.set_bottommost_compression_type(DBCompressionType::Lz4);
        if self.cut > 0 {
            cf.set_sst_partitioner_factory(&SstPartitionerFactory::fixed_prefix(self.cut));
        }
        if self.leveled {
            cf.set_compaction_style(DBCompactionStyle::Level);
            cf.set_level_compaction_dynamic_level_bytes(true);
            return cf;
        }
        cf.set_compaction_style(DBCompactionStyle::Universal);
        let mut universal = UniversalCompactOptions::default();
        universal.set_size_ratio(self.size_ratio);
        universal.set_min_merge_width(self.min_merge_width);
        universal.set_max_size_amplification_percent(self.max_amplification);
        universal.set_incremental(self.incremental);
        if self.similar {
            universal.set_stop_style(UniversalCompactionStopStyle::Similar);
        }
        cf.set_universal_compaction_options(&universal);
        cf.set_level_zero_file_num_compaction_trigger(self.trigger);
        cf.set_level_zero_slowdown_writes_trigger(self.trigger.saturating_mul(3));
        cf.set_level_zero_stop_writes_trigger(self.trigger.saturating_mul(5));
        cf
    }

    /// Options of the column family that has only batches: files are moved down the levels, never merged,
    /// because their ranges do not overlap.
    pub fn data(&self, table: &BlockBasedOptions) -> Options {
        let mut cf = self.common(table);
        // The write buffer holds a segment, so that it is flushed when the segment ends, and not before.
        let segment = usize::try_from(self.segment_mib).unwrap_or(usize::MAX);
        cf.set_write_buffer_size(segment.saturating_mul(2 * 1024 * 1024));
        if self.data_universal {
            cf.set_compaction_style(DBCompactionStyle::Universal);
            let mut universal = UniversalCompactOptions::default();
            universal.set_allow_trivial_move(true);
            universal.set_max_size_amplification_percent(i32::MAX);
            cf.set_universal_compaction_options(&universal);
        } else {
            cf.set_compaction_style(DBCompactionStyle::Level);
            cf.set_level_compaction_dynamic_level_bytes(true);
        }
        cf.set_level_zero_file_num_compaction_trigger(1);
        cf.set_level_zero_slowdown_writes_trigger(64);
        cf.set_level_zero_stop_writes_trigger(128);
        cf
    }
}
