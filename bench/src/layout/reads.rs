//! Reading one stream among many.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use rust_rocksdb::ReadOptions;

use super::MIB;
use super::load::Load;
use super::store::{DATA, Db, INDEX, Store, family, in_segment, key, open};
use super::tuning::{Layout, Tuning};

/// Arguments of `layout reads`.
#[derive(clap::Args)]
pub struct Args {
    /// User bytes in all, MiB.
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// Records of 1 KiB in a batch.
    #[arg(long, default_value_t = 16)]
    records: u64,
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// Flush after so many MiB.
    #[arg(long, default_value_t = 24)]
    delta: u64,
    /// Streams that are read, one after the other.
    #[arg(long, default_value_t = 40)]
    read: u64,
    /// Repetitions, by turns over the layouts; the medians are printed.
    #[arg(long, default_value_t = 3)]
    times: usize,
    /// Where databases are made.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Layouts with options, such as `stream,mmw=16`.
    #[arg(required = true)]
    layouts: Vec<Tuning>,
}

/// One way through the chosen streams.
#[derive(Default)]
struct Pass {
    wanted: u64,
    from_files: u64,
    calls: u64,
    from_disk: u64,
    seconds: f64,
}

/// Loads all layouts, then reads them by turns.
#[allow(
    clippy::cast_precision_loss,
    reason = "ratios, printed with two digits"
)]
pub fn run(args: &Args) -> anyhow::Result<()> {
    let scratch = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    for (number, tuning) in args.layouts.iter().enumerate() {
        let mut store = Store::create(
            &scratch.path().join(number.to_string()),
            tuning,
            args.streams,
        )?;
        let mut load = Load::new(1, args.streams, (args.records, args.records));
        let started = Instant::now();
        let mut flushes = 0;
        while store.counted().user < args.size * MIB {
            load.append(&mut store)?;
            if store.counted().user / (args.delta * MIB) > flushes {
                flushes += 1;
                store.flush()?;
            }
        }
        store.flush()?;
        let wrote = started.elapsed().as_secs_f64();
        store.settle()?;
        let counted = store.counted();
        println!(
            "{}\tload {:.0} MiB/s\twamp {:.2}\truns {}",
            tuning.name,
            counted.user as f64 / MIB as f64 / wrote,
            (counted.flushed + counted.compacted) as f64 / counted.user as f64,
            store.runs()?,
        );
    }
    for cold in [false, true] {
        let mut passes: Vec<Vec<Pass>> = args.layouts.iter().map(|_| Vec::new()).collect();
        for _ in 0..args.times {
            for (number, tuning) in args.layouts.iter().enumerate() {
                let path = scratch.path().join(number.to_string());
                if cold {
                    forget(&path)?;
                }
                passes[number].push(pass(args, tuning, &path)?);
            }
        }
        for (tuning, mut passes) in args.layouts.iter().zip(passes) {
            passes.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
            let median = &passes[passes.len() / 2];
            println!(
                "{}\t{}\t{:.0} MiB/s\t{:.2} read for 1 wanted, {:.2} from disk\t{:.1} KiB a call\t{:.0} KiB a stream",
                tuning.name,
                if cold {
                    "page cache dropped"
                } else {
                    "page cache warm"
                },
                median.wanted as f64 / MIB as f64 / median.seconds,
                median.from_files as f64 / median.wanted as f64,
                median.from_disk as f64 / median.wanted as f64,
                median.from_files as f64 / median.calls as f64 / 1024.0,
                median.wanted as f64 / args.read as f64 / 1024.0,
            );
        }
    }
    Ok(())
}

/// Drops a directory's files from the page cache.
fn forget(path: &std::path::Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        if !path.is_file() {
            continue;
        }
        let file = std::fs::File::open(path)?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// Bytes read by system calls, those calls, and bytes read from devices.
fn input() -> anyhow::Result<[u64; 3]> {
    let text = std::fs::read_to_string("/proc/self/io")?;
    let field = |name: &str| -> anyhow::Result<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(value
            .context("/proc/self/io lacks a line")?
            .trim()
            .parse()?)
    };
    Ok([field("rchar:")?, field("syscr:")?, field("read_bytes:")?])
}

fn pass(args: &Args, tuning: &Tuning, path: &std::path::Path) -> anyhow::Result<Pass> {
    let (db, _options) = open(path, tuning, true)?;
    let before = input()?;
    let started = Instant::now();
    let mut wanted = 0;
    for number in 0..args.read {
        let stream = number * 7919 % args.streams as u64;
        wanted += read(&db, tuning.layout, stream, 0)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let after = input()?;
    Ok(Pass {
        wanted,
        from_files: after[0] - before[0],
        calls: after[1] - before[1],
        from_disk: after[2] - before[2],
        seconds,
    })
}

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
