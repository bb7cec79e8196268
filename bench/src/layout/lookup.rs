//! Reads of one stream in each of the layouts.

use anyhow::Context as _;
use rust_rocksdb::ReadOptions;

use super::database::{DATA, Db, INDEX, family, in_segment, key};
use super::tuning::Layout;

/// Bytes of a stream's batches, from a sequence number on.
pub fn read(db: &Db, layout: Layout, stream: u64, first: u64) -> anyhow::Result<u64> {
    match layout {
        Layout::Stream => {
            let range = (key(DATA, stream, first), key(DATA, stream + 1, 0));
            scan(db, "main", &range.0, &range.1)
        }
        Layout::Log => by_lsn(db, stream),
        Layout::Segment => by_segment(db, stream, first),
    }
}

/// Bytes of the values in a range.
fn scan(db: &Db, name: &str, from: &[u8], to: &[u8]) -> anyhow::Result<u64> {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(from);
    options.set_iterate_upper_bound(to);
    options.fill_cache(false);
    let mut iterator = db.raw_iterator_cf_opt(&family(db, name)?, options);
    iterator.seek_to_first();
    let mut bytes = 0;
    while let Some(value) = iterator.value() {
        bytes += value.len() as u64;
        iterator.next();
    }
    iterator.status()?;
    Ok(bytes)
}

/// First sequence numbers of a stream's index, each with the number that it leads to.
fn index(db: &Db, stream: u64) -> anyhow::Result<Vec<(u64, u64)>> {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(key(INDEX, stream, 0));
    options.set_iterate_upper_bound(key(INDEX, stream + 1, 0));
    let mut iterator = db.raw_iterator_cf_opt(&family(db, "main")?, options);
    iterator.seek_to_first();
    let mut entries = Vec::new();
    while let Some((key, value)) = iterator.item() {
        let number = |bytes: &[u8], from: usize| -> anyhow::Result<u64> {
            let bytes = bytes
                .get(from..from + 8)
                .context("an index entry is too short")?;
            Ok(u64::from_be_bytes(bytes.try_into()?))
        };
        entries.push((number(key, 9)?, number(value, 0)?));
        iterator.next();
    }
    iterator.status()?;
    Ok(entries)
}

fn by_lsn(db: &Db, stream: u64) -> anyhow::Result<u64> {
    let data = family(db, "data")?;
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    let mut bytes = 0;
    for entries in index(db, stream)?.chunks(32) {
        let keys: Vec<_> = entries.iter().map(|(_, lsn)| key(DATA, *lsn, 0)).collect();
        for value in db.batched_multi_get_cf_opt(&data, &keys, true, &options) {
            bytes += value?.context("a batch is missing")?.len() as u64;
        }
    }
    Ok(bytes)
}

fn by_segment(db: &Db, stream: u64, from: u64) -> anyhow::Result<u64> {
    let runs = index(db, stream)?;
    let mut bytes = 0;
    for (number, (first, segment)) in runs.iter().enumerate() {
        let first = from.max(*first);
        let end = runs.get(number + 1).map_or(u64::MAX, |run| run.0);
        let (from, to) = (
            in_segment(*segment, stream, first),
            in_segment(*segment, stream, end),
        );
        bytes += scan(db, "data", &from, &to)?;
    }
    Ok(bytes)
}
