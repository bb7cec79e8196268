//! The rows of the table, one file each.
//!
//! A row puts one kind of load on one running server and returns [`Reading`]s. It does not depend on the
//! other server, on runs or on medians: [`crate::streams`] calls it once per server and run. Each server is
//! new in each run, so the only streams are those of earlier rows, which have other names.

mod batches;
mod catch_up;
mod create;
mod followers;
mod load;
mod memory;
pub mod restart;
mod s2_bench;
mod unary;

use std::{path::PathBuf, time::Duration};

use clap::ValueEnum;

use crate::{client::Kind, process::Server, sizes::Sizes, targets::Metric, targets::Reading};

/// The basin that all rows use. Made once per server.
pub const BASIN: &str = "bench-basin";

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// Unary appends of 100 bytes by one client.
    One,
    /// Unary appends of 100 bytes by 32 clients on 32 streams.
    Many,
    /// The peer's own `s2 bench`, unthrottled.
    S2Bench,
    /// One and several followers of a stream that is written as fast as it is acknowledged.
    Followers,
    /// 256-byte records in batches of 100 by eight append sessions.
    Batches,
    /// Reading a long stream, and some of many interleaved ones, these also with cold caches.
    CatchUp,
    /// Resident memory after the rows above.
    Memory,
    /// Making many streams.
    Create,
    /// Restart after SIGKILL with millions of records.
    Restart,
}

impl Row {
    /// The figures that the row yields, in the order of the table.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Self::One => &[Metric::OneP50, Metric::OneP99, Metric::DiskSync],
            Self::Many => &[Metric::ManyRate, Metric::ManyP50],
            Self::S2Bench => &[
                Metric::BenchWrite,
                Metric::BenchAck,
                Metric::BenchEndToEnd,
                Metric::BenchCatchUp,
            ],
            Self::Followers => &[
                Metric::FollowerP99,
                Metric::FollowerWrite,
                Metric::FollowersP99,
                Metric::FollowersWrite,
            ],
            Self::Batches => &[Metric::BatchRate],
            Self::CatchUp => &[
                Metric::CatchUpOne,
                Metric::CatchUpOneSdk,
                Metric::CatchUpInterleaved,
                Metric::CatchUpCold,
            ],
            Self::Memory => &[Metric::Resident, Metric::ResidentHighest],
            Self::Create => &[Metric::CreateRate],
            Self::Restart => &[Metric::Restart, Metric::RestartTwice],
        }
    }

    /// The client of the row's load unless the user selects another; `None` if the row brings its own or has
    /// none.
    pub fn client(self) -> Option<Kind> {
        match self {
            Self::One | Self::Create => Some(Kind::Sdk),
            // Tens of thousands of requests or hundreds of thousands of records per second: the SDK alone
            // would need half of a small machine to encode and decode them.
            Self::Many | Self::Followers | Self::Batches | Self::CatchUp => Some(Kind::Wire),
            Self::S2Bench | Self::Memory | Self::Restart => None,
        }
    }

    /// Whether a part of the row is measured when the server has been started again on the same data.
    pub fn starts_again(self) -> bool {
        self == Self::CatchUp
    }

    /// Measures that part.
    ///
    /// # Errors
    ///
    /// If the server refuses anything or cannot be reached.
    pub async fn measure_again(self, load: &Load<'_>) -> anyhow::Result<Vec<Reading>> {
        match self {
            Self::CatchUp => catch_up::measure_cold(load).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Puts the row's load on a server. [`Row::Restart`] starts servers of its own and is not
    /// measured here.
    ///
    /// # Errors
    ///
    /// If the server refuses anything or cannot be reached.
    pub async fn measure(self, load: &Load<'_>) -> anyhow::Result<Vec<Reading>> {
        match self {
            Self::One => unary::one(load).await,
            Self::Many => unary::many(load).await,
            Self::S2Bench => s2_bench::measure(load).await,
            Self::Followers => followers::measure(load).await,
            Self::Batches => batches::measure(load).await,
            Self::CatchUp => catch_up::measure(load).await,
            Self::Memory => memory::measure(load).await,
            Self::Create => create::measure(load).await,
            Self::Restart => Ok(Vec::new()),
        }
    }
}

/// The parameters of a row.
pub struct Load<'a> {
    /// The server under load.
    pub server: &'a Server,
    /// The client that carries the load.
    pub client: Kind,
    /// The sizes of the load.
    pub sizes: &'a Sizes,
    /// The peer's command line program, for the row that runs it against either server.
    pub s2: PathBuf,
    /// A directory of the row's own on the measured disk.
    pub scratch: PathBuf,
    /// The seed of the contents of records.
    pub seed: u64,
}

/// A figure per second.
fn per_second(count: f64, elapsed: Duration) -> f64 {
    count / elapsed.as_secs_f64()
}

/// `bytes` in `elapsed` as MiB/s.
fn mib_per_second(bytes: u64, elapsed: Duration) -> f64 {
    per_second(bytes as f64 / f64::from(1 << 20), elapsed)
}
