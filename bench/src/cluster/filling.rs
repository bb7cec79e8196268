//! Appends while another node gets all data.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bench_harness::page::{Figure, Section};
use bench_harness::stats::{Latencies, SortedLatencies};

use super::Bench;
use super::load::{self, Counted};
use super::nodes::Nodes;
use crate::client::{Batches, Stream};

/// Bytes in the body of each small record.
const BODY_BYTES: usize = 256;
/// The load that makes the data: sessions of large batches.
const SESSIONS: usize = 4;
const BATCH_RECORDS: usize = 64;
const RECORD_BYTES: usize = 8 * 1024;
const IN_FLIGHT: usize = 4;
/// Longest time that a node may take for each GiB.
const FILL_AT_MOST: Duration = Duration::from_secs(600);
/// How often it is looked at how far the node is.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let dir = bench.run.dir("filling")?;
    let mut nodes = Nodes::start(bench.esker.clone(), dir, 3).await?;
    let leader = nodes.leader(0).await?;
    let url = nodes.url(leader);
    load::create_basin(&url).await?;
    let filled = fill(bench, &url).await?;
    nodes.voting(3).await?;
    bench.run.note(format!("{filled} MiB are there"));
    let stream = load::new_stream(&url, "small").await?;
    let small = load::small(BODY_BYTES)?;
    let alone = load::one_client(&stream, &small, 2 * bench.time()).await?;

    let wanted = nodes.applied(leader, leader).await?;
    let wanted = wanted.context("the leader has applied nothing")?;
    let limit = FILL_AT_MOST * u32::try_from(bench.fill_mib.div_ceil(1024))?;
    let used = nodes.processor_seconds();
    let began = Instant::now();
    // It is filled while it starts, too.
    let is_filled = async {
        nodes.add()?;
        let new = nodes.count() - 1;
        while nodes.applied(leader, new).await?.unwrap_or_default() < wanted {
            anyhow::ensure!(
                began.elapsed() < limit,
                "the new node is not filled in time"
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        anyhow::Ok(began.elapsed())
    };
    let (during, took) = append_during(&stream, &small, is_filled).await?;
    let cores = (nodes.processor_seconds() - used) / took.as_secs_f64();
    let still_leads = nodes.leader(leader).await? == leader;
    let ratio = during.percentile_ms(99.0) / alone.percentile_ms(99.0);
    let shown = |of: &SortedLatencies| {
        format!(
            "p50 {:.2} ms, p99 {:.2} ms",
            of.percentile_ms(50.0),
            of.percentile_ms(99.0)
        )
    };
    Ok(Section {
        title: "A node that is filled".to_owned(),
        how: format!(
            "Three nodes have {filled} MiB of records of {} KiB. One client appends records of {BODY_BYTES} bytes to the \
             leader, at first alone, and then while a fourth node joins and gets all of it.",
            RECORD_BYTES / 1024
        ),
        figures: vec![
            Figure::plain("appends to the leader alone", shown(&alone)),
            Figure::plain(
                "while the node is filled",
                format!("{} at {cores:.2} cores", shown(&during)),
            )
            .beside(format!("{ratio:.2}×, p99"))
            .target("p99 at most 2×", ratio <= 2.0),
            Figure::plain(
                "the node has all of it after",
                format!("{:.1} s", took.as_secs_f64()),
            ),
            Figure::plain(
                "the leader is the same",
                if still_leads { "yes" } else { "no" },
            ),
        ],
        ..Section::default()
    })
}

/// Appends as many MiB as there are to be. Returns how many there are.
async fn fill(bench: &Bench, url: &str) -> anyhow::Result<u64> {
    let wanted = bench.fill_mib;
    let batches = Arc::new(load::batches(BATCH_RECORDS, RECORD_BYTES)?);
    let each = (BATCH_RECORDS * RECORD_BYTES) as u64;
    let total = (wanted << 20).div_ceil(each).div_ceil(SESSIONS as u64) as usize;
    let mut tasks = tokio::task::JoinSet::new();
    for session in 0..SESSIONS {
        let stream = load::new_stream(url, &format!("filling-{session}")).await?;
        let batches = batches.clone();
        tasks.spawn(async move {
            let go_on = |submitted: usize| submitted < total;
            stream
                .append_session(&batches, IN_FLIGHT, go_on, |_| {})
                .await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok((total as u64 * SESSIONS as u64 * each) >> 20)
}

/// Appends until something has happened. Returns how long appends took, and what it was.
async fn append_during<T>(
    stream: &Stream,
    batches: &Batches,
    until: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(SortedLatencies, T)> {
    let counted = Counted::default();
    let mut latencies = Latencies::default();
    let appends = async {
        while counted.goes_on() {
            let before = Instant::now();
            stream.append(batches.at(latencies.len())).await?;
            latencies.push(before.elapsed());
        }
        anyhow::Ok(())
    };
    let happened = tokio::select! {
        happened = until => happened?,
        ended = appends => {
            ended?;
            anyhow::bail!("the appends have ended");
        }
    };
    Ok((
        latencies.sorted().context("nothing was measured")?,
        happened,
    ))
}
