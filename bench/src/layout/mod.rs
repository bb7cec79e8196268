//! Compares layouts of a partition's stream data on RocksDB alone.
//!
//! | layout | data key | where a stream's batches are found |
//! |---|---|---|
//! | stream-major | stream ‖ first seq | in a row |
//! | log-major | LSN, in a column family of its own | index: stream ‖ first seq → LSN |
//! | segment-major | segment ‖ stream ‖ first seq, in a column family of its own | index: stream ‖ segment |
//!
//! A segment is what was appended between two positions of the log, some 32 MiB.
//!
//! `snapshots` counts the bytes that a snapshot uploads, which are those that neither of the two before it
//! had; `reads` reads single streams from a large database. [`tuning`] has RocksDB's options, [`database`]
//! the keys, [`store`] the layouts, [`lookup`] the reads of one stream, [`load`] the load.

mod database;
mod load;
mod lookup;
mod reads;
mod segments;
mod snapshots;
mod store;
mod tuning;

use clap::Subcommand;

pub(crate) const MIB: u64 = 1024 * 1024;

/// Arguments of `layout`.
#[derive(clap::Parser)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Bytes uploaded by twenty snapshots.
    Snapshots(snapshots::Args),
    /// Reading one stream among many.
    Reads(reads::Args),
}

/// Measures and prints one line per layout.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.what {
        What::Snapshots(args) => snapshots::run(args),
        What::Reads(args) => reads::run(args),
    }
}
