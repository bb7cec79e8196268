//! The speed of the disk itself: the lower bound of every durable append.
//!
//! The probe does the least that a log writer does: it appends 4 KiB to a file and waits for `fdatasync`. Its
//! median is in the table beside the latency of an append, because the difference of the two is the server's
//! own.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;

use crate::stats::Latencies;

/// Bytes written before each sync: one page, the least that a disk writes.
const BLOCK_BYTES: usize = 4096;

/// Appends and syncs 4 KiB blocks to a new file in `directory` until `count` are done or
/// `at_most` has passed, and returns the median of the syncs in milliseconds.
///
/// The file is removed afterwards.
///
/// # Errors
///
/// Any error of the file system.
pub fn fdatasync_p50_ms(directory: &Path, count: usize, at_most: Duration) -> anyhow::Result<f64> {
    let path = directory.join("fdatasync-probe");
    let result = probe(&path, count, at_most);
    let _ = std::fs::remove_file(&path);
    result.with_context(|| format!("fdatasync probe in {}", directory.display()))
}

fn probe(path: &Path, count: usize, at_most: Duration) -> anyhow::Result<f64> {
    let file = File::create(path)?;
    let block = [0x5a; BLOCK_BYTES];
    let mut samples = Latencies::default();
    let began = Instant::now();
    for index in 0..count {
        let offset = (index * BLOCK_BYTES) as u64;
        let before = Instant::now();
        file.write_all_at(&block, offset)?;
        file.sync_data()?;
        samples.push(before.elapsed());
        if began.elapsed() > at_most {
            break;
        }
    }
    let sorted = samples.sorted().context("no block was written")?;
    Ok(sorted.percentile_ms(50.0))
}
