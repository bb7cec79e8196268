//! For how long appends stand still when the leader is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bench_harness::page::{Figure, Section};
use bench_harness::stats::Latencies;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::Bench;
use super::load;
use super::nodes::Nodes;
use crate::client::Batches;

/// Writers at once, each to a stream of its own.
const WRITERS: usize = 8;
/// Bytes in the body of each record.
const BODY_BYTES: usize = 256;
/// The election timeout.
const TIMEOUT: Duration = Duration::from_secs(1);
/// An append that is not answered for so long is given up, and sent to the next node.
const ANSWER_AT_MOST: Duration = Duration::from_secs(5);
/// Wait of a writer after an append that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);
/// Load before each kill.
const BEFORE: Duration = Duration::from_millis(500);
/// Longest wait for the first append after a kill.
const AFTER_AT_MOST: Duration = Duration::from_secs(60);

/// What the writers share: when an append was last acknowledged.
struct Shared {
    stop: AtomicBool,
    acked: Mutex<Instant>,
}

/// Appends by way of one node after the other: the next one after a failure.
async fn write(urls: Vec<String>, name: String, first: usize, shared: Arc<Shared>) {
    let Ok(batches) = load::small(BODY_BYTES) else {
        return;
    };
    let mut at = first;
    while !shared.stop.load(Ordering::Relaxed) {
        // It fails as soon as an append does.
        let _ = write_to(&urls[at % urls.len()], &name, &batches, &shared).await;
        at += 1;
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

async fn write_to(url: &str, name: &str, batches: &Batches, shared: &Shared) -> anyhow::Result<()> {
    let stream = tokio::time::timeout(ANSWER_AT_MOST, load::open_stream(url, name)).await??;
    let mut turn = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        tokio::time::timeout(ANSWER_AT_MOST, stream.append(batches.at(turn))).await??;
        turn += 1;
        *shared.acked.lock() = Instant::now();
    }
    Ok(())
}

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let dir = bench.run.dir("kills")?;
    let mut nodes = Nodes::start(bench.esker.clone(), dir, 3).await?;
    load::create_basin(&nodes.url(0)).await?;
    let urls: Vec<String> = (0..nodes.count()).map(|at| nodes.url(at)).collect();
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        acked: Mutex::new(Instant::now()),
    });
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let name = format!("kills-{writer}");
        load::new_stream(&urls[0], &name).await?;
        writers.spawn(write(urls.clone(), name, writer, shared.clone()));
    }
    let mut still = Latencies::default();
    for kill in 0..bench.kills {
        tokio::time::sleep(BEFORE).await;
        let leader = nodes.leader(kill as usize % nodes.count()).await?;
        nodes.kill(leader);
        let took = stood_still(&shared).await?;
        bench.run.note(format!(
            "kill {kill}: n{leader} led; {:.0} ms",
            took.as_secs_f64() * 1e3
        ));
        still.push(took);
        nodes.restart(leader).await?;
        nodes.voting(nodes.count()).await?;
    }
    shared.stop.store(true, Ordering::Relaxed);
    while writers.join_next().await.is_some() {}
    let still = still.sorted().context("nothing was measured")?;
    let in_timeouts =
        |percentile: f64| still.percentile_ms(percentile) / TIMEOUT.as_secs_f64() / 1e3;
    let (p50, p99) = (in_timeouts(50.0), in_timeouts(99.0));
    let shown = |of: f64| format!("{of:.2} T");
    Ok(Section {
        title: "A killed leader".to_owned(),
        how: format!(
            "{WRITERS} clients append single records, each to the next node after a failure. The leader gets SIGKILL, \
             {} times, and is started again once appends go on. Measured is the time from the last acknowledgement \
             before to the first after the kill, in election timeouts T of {} s.",
            bench.kills,
            TIMEOUT.as_secs()
        ),
        figures: vec![
            Figure::plain("time without appends, p50", shown(p50)).target("below 2 T", p50 < 2.0),
            Figure::plain("the same, p99", shown(p99)).target("below 3 T", p99 < 3.0),
            Figure::plain("the longest", shown(in_timeouts(100.0))),
        ],
        ..Section::default()
    })
}

/// Waits for the first acknowledgement after a kill. Returns how long after the last one before it came: answers
/// that were under way at the kill still arrive for some milliseconds.
async fn stood_still(shared: &Shared) -> anyhow::Result<Duration> {
    /// A pause that is no longer than this is no election.
    const PAUSE: Duration = Duration::from_millis(150);
    let killed = Instant::now();
    let mut last = *shared.acked.lock();
    let mut longest = Duration::ZERO;
    while killed.elapsed() < AFTER_AT_MOST {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let acked = *shared.acked.lock();
        if acked != last {
            longest = longest.max(acked - last);
            last = acked;
        }
        // It is over when appends have gone on for a while after the longest pause.
        let is_over = longest >= PAUSE && killed.elapsed() > longest + TIMEOUT;
        if is_over || (killed.elapsed() > 5 * TIMEOUT && last.elapsed() < PAUSE) {
            return Ok(longest);
        }
    }
    anyhow::bail!(
        "no append was acknowledged for {} s",
        AFTER_AT_MOST.as_secs()
    )
}
