//! The load: appends and trims.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::future::try_join_all;
use parking_lot::Mutex;
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch, CommandRecord, StreamName};

use crate::{
    client::{self, Batches, Connection, Kind},
    rows::BASIN,
};
use bench_harness::stats::Latencies;

/// Connections of a load.
const CONNECTIONS: usize = 4;

/// Appends under way at once.
const WORKERS: usize = 32;

/// Bytes that a record has beyond its body, as the API meters them.
pub const RECORD_OVERHEAD: usize = 8;

/// Streams of one server.
pub struct Streams {
    url: String,
    count: usize,
    connections: Vec<Connection>,
}

impl Streams {
    /// Connects to existing streams.
    ///
    /// # Errors
    ///
    /// If the server cannot be reached.
    pub async fn open(url: &str, count: usize) -> anyhow::Result<Self> {
        let open = (0..CONNECTIONS).map(|_| Connection::open(Kind::Wire, url, BASIN));
        Ok(Self {
            url: url.to_owned(),
            count,
            connections: try_join_all(open).await?,
        })
    }

    /// Makes a basin and streams in it.
    ///
    /// # Errors
    ///
    /// If the server refuses or cannot be reached.
    pub async fn create(url: &str, count: usize) -> anyhow::Result<Self> {
        client::create_basin(url, BASIN).await?;
        let streams = Self::open(url, count).await?;
        streams
            .for_all(0..count, async |connection, index| {
                connection.create_stream(&name(index)).await
            })
            .await?;
        Ok(streams)
    }

    /// Appends the batches with these numbers, to the streams in turn.
    ///
    /// # Errors
    ///
    /// If an append fails.
    pub async fn append(&self, batches: &Batches, numbers: Range<usize>) -> anyhow::Result<()> {
        self.for_all(numbers, async |connection, number| {
            let stream = connection.stream(&name(number % self.count))?;
            stream.append(batches.at(number)).await?;
            Ok(())
        })
        .await
    }

    /// Trims streams up to the sequence numbers that `up_to` returns for them.
    ///
    /// # Errors
    ///
    /// If an append fails.
    pub async fn trim(&self, up_to: impl Fn(usize) -> Option<u64>) -> anyhow::Result<()> {
        let client = client::sdk::client(&self.url, client::sdk::REQUEST_TIMEOUT)?;
        let basin = client.basin(BASIN.parse()?);
        let (basin, up_to) = (&basin, &up_to);
        let workers = (0..WORKERS).map(|worker| async move {
            for index in (worker..self.count).step_by(WORKERS) {
                let Some(up_to) = up_to(index) else {
                    continue;
                };
                let stream: StreamName = name(index).parse()?;
                let record: AppendRecord = CommandRecord::trim(up_to).into();
                let batch = AppendRecordBatch::try_from_iter([record])?;
                basin.stream(stream).append(AppendInput::new(batch)).await?;
            }
            anyhow::Ok(())
        });
        try_join_all(workers).await.context("a trim")?;
        Ok(())
    }

    /// Appends batches at a fixed rate, whether or not earlier ones have been answered. Returns how long each
    /// took.
    ///
    /// # Errors
    ///
    /// If an append fails.
    pub async fn at_a_rate(
        &self,
        batches: &Arc<Batches>,
        a_second: usize,
        how_long: Duration,
    ) -> anyhow::Result<Latencies> {
        let taken = Arc::new(Mutex::new(Latencies::default()));
        let began = Instant::now();
        let mut under_way = tokio::task::JoinSet::new();
        let pause = Duration::from_secs(1) / u32::try_from(a_second)?;
        for number in 0..a_second * usize::try_from(how_long.as_secs())? {
            let due = began + pause * u32::try_from(number)?;
            tokio::time::sleep_until(due.into()).await;
            let connection = &self.connections[number % self.connections.len()];
            let stream = connection.stream(&name(number % self.count))?;
            let (batches, taken) = (batches.clone(), taken.clone());
            under_way.spawn(async move {
                let sent = Instant::now();
                stream.append(batches.at(number)).await?;
                taken.lock().push(sent.elapsed());
                anyhow::Ok(())
            });
            while let Some(done) = under_way.try_join_next() {
                done??;
            }
        }
        while let Some(done) = under_way.join_next().await {
            done??;
        }
        Ok(std::mem::take(&mut *taken.lock()))
    }

    /// Runs `work` for numbers in turn, several at a time.
    async fn for_all(
        &self,
        numbers: Range<usize>,
        work: impl AsyncFn(&Connection, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let work = &work;
        let workers = (0..WORKERS).map(|worker| {
            let numbers = numbers.clone();
            async move {
                for number in numbers.skip(worker).step_by(WORKERS) {
                    work(&self.connections[worker % CONNECTIONS], number)
                        .await
                        .with_context(|| format!("stream {}", name(number % self.count)))?;
                }
                anyhow::Ok(())
            }
        });
        try_join_all(workers).await?;
        Ok(())
    }
}

fn name(index: usize) -> String {
    format!("recovery-{index}")
}
