//! The operations of clients. Each has a connection of its own and waits for an answer before the next request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bench_harness::stats::{Latencies, SortedLatencies};
use futures::future::try_join_all;
use tokio::task::JoinSet;

use super::BASIN;
use super::nodes::Nodes;
use crate::client::{Batches, Connection, Kind, Stream};

/// Load before the clock runs.
pub const WARM_UP: Duration = Duration::from_secs(1);
/// The seed of the contents of records.
const SEED: u64 = 0xe5_4e13;

/// Makes the basin.
pub async fn create_basin(url: &str) -> anyhow::Result<()> {
    crate::client::create_basin(url, BASIN).await
}

/// Makes a stream by way of a node, and opens it over a connection of its own.
pub async fn new_stream(url: &str, name: &str) -> anyhow::Result<Stream> {
    let connection = Connection::open(Kind::Wire, url, BASIN).await?;
    connection.create_stream(name).await?;
    connection.stream(name)
}

/// Opens a stream over a connection of its own.
pub async fn open_stream(url: &str, name: &str) -> anyhow::Result<Stream> {
    Connection::open(Kind::Wire, url, BASIN).await?.stream(name)
}

/// Small records.
pub fn small(bytes: usize) -> anyhow::Result<Batches> {
    Batches::new(1, bytes, SEED)
}

/// Batches of records.
pub fn batches(records: usize, bytes: usize) -> anyhow::Result<Batches> {
    Batches::new(records, bytes, SEED)
}

/// Appends a batch after the other for some time, after a warm-up.
pub async fn one_client(
    stream: &Stream,
    batches: &Batches,
    time: Duration,
) -> anyhow::Result<SortedLatencies> {
    let from = Instant::now() + WARM_UP;
    let until = from + time;
    let mut latencies = Latencies::default();
    let mut turn = 0;
    loop {
        let before = Instant::now();
        stream.append(batches.at(turn)).await?;
        let after = Instant::now();
        turn += 1;
        if after > until {
            break;
        }
        if before >= from {
            latencies.push(after - before);
        }
    }
    latencies.sorted().context("nothing was measured")
}

/// What clients did, and what it cost.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Operations a second.
    pub each_second: f64,
    /// Processors that the nodes used.
    pub cores: f64,
}

/// The work of one client, which counts what it has done until it is stopped.
pub type Work = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// What clients share.
#[derive(Clone, Default)]
pub struct Counted {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Counted {
    /// Counts.
    pub fn add(&self, count: u64) {
        self.done.fetch_add(count, Ordering::Relaxed);
    }

    /// Whether to go on.
    pub fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// Runs clients for some time after a warm-up. `processor` is the time that the servers have used so far.
pub async fn many(
    work: impl IntoIterator<Item = Work>,
    counted: &Counted,
    time: Duration,
    processor: impl Fn() -> f64,
) -> anyhow::Result<Rate> {
    let mut tasks = JoinSet::new();
    for work in work {
        tasks.spawn(work);
    }
    let measured = async {
        tokio::time::sleep(WARM_UP).await;
        let (began, before) = (Instant::now(), counted.done.load(Ordering::Relaxed));
        let used = processor();
        tokio::time::sleep(time).await;
        let took = began.elapsed().as_secs_f64();
        let done = counted.done.load(Ordering::Relaxed) - before;
        Rate {
            each_second: done as f64 / took,
            cores: (processor() - used) / took,
        }
    };
    let rate = tokio::select! {
        rate = measured => rate,
        Some(ended) = tasks.join_next() => {
            ended??;
            anyhow::bail!("a client has ended before its time");
        }
    };
    counted.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(rate)
}

/// Clients that append single records, each to a stream of its own, by way of one node.
pub async fn appenders(
    url: &str,
    clients: usize,
    prefix: &str,
    batches: Arc<Batches>,
    counted: &Counted,
) -> anyhow::Result<Vec<Work>> {
    let streams = (0..clients).map(|client| {
        let name = format!("{prefix}-{client}");
        async move { new_stream(url, &name).await }
    });
    let streams = try_join_all(streams).await?;
    let work = streams.into_iter().map(|stream| {
        let (batches, counted) = (batches.clone(), counted.clone());
        let work = async move {
            let mut turn = 0;
            while counted.goes_on() {
                stream.append(batches.at(turn)).await?;
                turn += 1;
                counted.add(1);
            }
            Ok(())
        };
        Box::pin(work) as Work
    });
    Ok(work.collect())
}

/// Append sessions, each to a stream of its own, by way of one node. Records are counted.
pub async fn sessions(
    url: &str,
    clients: usize,
    prefix: &str,
    batches: Arc<Batches>,
    in_flight: usize,
    counted: &Counted,
) -> anyhow::Result<Vec<Work>> {
    let streams = (0..clients).map(|client| {
        let name = format!("{prefix}-{client}");
        async move { new_stream(url, &name).await }
    });
    let streams = try_join_all(streams).await?;
    let work = streams.into_iter().map(|stream| {
        let (batches, counted) = (batches.clone(), counted.clone());
        let work = async move {
            let (acked, asked) = (counted.clone(), counted);
            stream
                .append_session(
                    &batches,
                    in_flight,
                    move |_| asked.goes_on(),
                    move |records| acked.add(records as u64),
                )
                .await
        };
        Box::pin(work) as Work
    });
    Ok(work.collect())
}

/// The processor time of nodes so far.
pub fn processor(nodes: &Nodes) -> impl Fn() -> f64 {
    move || nodes.processor_seconds()
}
