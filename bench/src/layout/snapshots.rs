//! Bytes that snapshots upload, divided by bytes that were written.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;

use super::MIB;
use super::load::Load;
use super::store::Store;
use super::tuning::Tuning;

/// Arguments of `layout snapshots`.
#[derive(clap::Args)]
pub struct Args {
    /// User bytes between two snapshots, MiB.
    #[arg(long, default_value_t = 24)]
    delta: u64,
    /// Deltas that are there before the first snapshot counts.
    #[arg(long, default_value_t = 20)]
    base: u64,
    /// Snapshots.
    #[arg(long, default_value_t = 20)]
    snapshots: u64,
    /// Wait for compactions before each snapshot.
    #[arg(long)]
    settle: bool,
    /// Deltas that streams keep, by turns: `20`, or `10,30`. Nothing is trimmed if this is absent.
    #[arg(long, value_delimiter = ',')]
    keep: Vec<u64>,
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where databases are made.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Layouts with options, such as `stream,mmw=16`.
    #[arg(required = true)]
    layouts: Vec<Tuning>,
}

/// Prints one line for each layout.
pub fn run(args: &Args) -> anyhow::Result<()> {
    for tuning in &args.layouts {
        one(args, tuning)?;
    }
    Ok(())
}

fn write_delta(args: &Args, store: &mut Store, load: &mut Load) -> anyhow::Result<u64> {
    let began = store.counted().user;
    let size = args.delta * MIB;
    let mut trimmed = 0;
    loop {
        let done = store.counted().user - began;
        if done >= size {
            return Ok(done);
        }
        load.append(store)?;
        // Trims are spread over the delta: each stream is trimmed once.
        while !args.keep.is_empty() && trimmed * size < done * args.streams as u64 {
            let keep = args.keep[usize::try_from(trimmed)? % args.keep.len()];
            store.trim(usize::try_from(trimmed)?, keep * size)?;
            trimmed += 1;
        }
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "ratios, printed with two digits"
)]
fn one(args: &Args, tuning: &Tuning) -> anyhow::Result<()> {
    let scratch = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let mut store = Store::create(&scratch.path().join("db"), tuning, args.streams)?;
    let mut load = Load::new(args.seed, args.streams, (4, 16));
    for _ in 0..args.base {
        write_delta(args, &mut store, &mut load)?;
        store.flush()?;
        store.reclaim()?;
        if args.settle {
            store.settle()?;
        }
    }
    store.settle()?;
    let before = store.counted();
    let mut kept: VecDeque<HashSet<(PathBuf, u64)>> = VecDeque::new();
    let mut last = store.export(&scratch.path().join("s0"))?;
    kept.push_back(last.files.iter().cloned().collect());
    let mut ratios = Vec::new();
    let (mut uploaded, mut written) = (0, 0);
    let (mut most_files, mut most_runs, mut runs, mut space, mut most_space, mut took) =
        (0, 0, 0, 0.0, 0.0_f64, Vec::new());
    for number in 1..=args.snapshots {
        let user = write_delta(args, &mut store, &mut load)?;
        store.reclaim()?;
        if args.settle {
            store.flush()?;
            store.settle()?;
        }
        last = store.export(&scratch.path().join(format!("s{number}")))?;
        let files = &last.files;
        let new: u64 = files
            .iter()
            .filter(|file| !kept.iter().any(|set| set.contains(*file)))
            .map(|file| file.1)
            .sum();
        ratios.push(new as f64 / user as f64);
        uploaded += new;
        written += user;
        took.push(last.took.as_secs_f64() * 1000.0);
        most_files = most_files.max(files.len());
        let bytes: u64 = files.iter().map(|file| file.1).sum();
        let times = bytes as f64 / store.live() as f64;
        space += times;
        most_space = most_space.max(times);
        let there = store.runs()?;
        most_runs = most_runs.max(there);
        runs += there;
        kept.push_back(files.iter().cloned().collect());
        if kept.len() > 2 {
            kept.pop_front();
        }
        if number >= 3 {
            std::fs::remove_dir_all(scratch.path().join(format!("s{}", number - 3)))?;
        }
    }
    let counted = store.counted();
    store.check(&last, &scratch.path().join("imported"))?;
    took.sort_by(f64::total_cmp);
    let count = args.snapshots as f64;
    println!(
        "{}\tup {:.2} max {:.2}\twamp {:.2} moved {:.2}\truns {:.1} max {}\tfiles {}\tspace {:.2} max {:.2}\texport {:.0} ms\t[{}]",
        tuning.name,
        uploaded as f64 / written as f64,
        ratios.iter().copied().fold(0.0, f64::max),
        (counted.flushed + counted.compacted - before.flushed - before.compacted) as f64
            / (counted.user - before.user) as f64,
        (counted.moved - before.moved) as f64 / (counted.user - before.user) as f64,
        runs as f64 / count,
        most_runs,
        most_files,
        space / count,
        most_space,
        took[took.len() / 2],
        ratios
            .iter()
            .map(|ratio| format!("{ratio:.1}"))
            .collect::<Vec<_>>()
            .join(" ")
    );
    Ok(())
}
