//! Reading one stream among many.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;

use super::MIB;
use super::database::open;
use super::load::Load;
use super::lookup::read;
use super::store::Store;
use super::tuning::Tuning;

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

/// One pass through the chosen streams.
#[derive(Default)]
struct Pass {
    wanted: u64,
    from_files: u64,
    calls: u64,
    from_disk: u64,
    seconds: f64,
}

/// Loads all layouts, then reads them in turns.
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
