//! Resident memory over a long mixed load: it has to be flat.
//!
//! The load: single appends and sessions on streams that come and go, readers that catch up, followers that
//! connect and disconnect, snapshots of all partitions. The median of the last quarter of the time is compared
//! with that of the second; the first one fills caches and memtables.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bench_harness::stats::median;
use tokio::task::JoinSet;

use super::{Outcome, connect, serve};
use crate::client::{Batches, Stream};
use crate::recovery::subject::Setup;

/// Clients of each kind.
const CLIENTS: usize = 4;
/// Appends to a stream before the next one takes its place.
const APPENDS: usize = 2000;
/// Batches that a session has under way.
const UNDER_WAY: usize = 8;
/// Bytes a second that each session appends at most: the disk has to last for an hour of it.
const SESSION_PAUSE: Duration = Duration::from_millis(20);
/// The last quarter may have so much more than the second: a part, and what is due to chance.
const MAX_GROWTH: f64 = 1.1;
const MAX_NOISE_MIB: f64 = 16.0;

pub(super) async fn measure(setup: &Setup, seconds: u64) -> anyhow::Result<Vec<Outcome>> {
    let setup = setup.with([
        "snapshots.snapshot-interval=1m",
        "snapshots.max-log-bytes=512MiB",
    ]);
    let server = Arc::new(serve(&setup).await?);
    let ends = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        for kind in [Kind::Unary, Kind::Session, Kind::Follower] {
            let (server, ends, done) = (server.clone(), ends.clone(), done.clone());
            clients.spawn(async move {
                let mut round = 0;
                while !ends.load(Ordering::Relaxed) {
                    let name = format!("mixed-{kind:?}-{number}-{round}").to_lowercase();
                    let connection = connect(&server).await?;
                    connection.create_stream(&name).await?;
                    let stream = connection.stream(&name)?;
                    kind.round(&stream, &ends, &done).await?;
                    // The disk has to last: what an hour appends is more than many have free.
                    connection.delete_stream(&name).await?;
                    round += 1;
                }
                anyhow::Ok(())
            });
        }
    }
    let begun = Instant::now();
    let mut samples = Vec::new();
    while begun.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        samples.push(server.resident_mib()?.0);
        if let Some(ended) = clients.try_join_next() {
            ended??;
        }
    }
    ends.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    let quarter = samples.len() / 4;
    let of = |part: &[f64]| median(part).context("no sample was taken");
    let second = of(&samples[quarter..2 * quarter])?;
    let last = of(&samples[3 * quarter..])?;
    let most = second * MAX_GROWTH + MAX_NOISE_MIB;
    Ok(vec![
        Outcome::plain(format!(
            "{seconds} s of a mixed load, {} appends",
            done.load(Ordering::Relaxed)
        )),
        Outcome {
            what: format!(
                "resident memory: median {second:.0} MiB in the second quarter, {last:.0} MiB in the last"
            ),
            target: format!("at most {most:.0} MiB"),
            met: last <= most,
        },
    ])
}

/// What a client does.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Appends one record at a time.
    Unary,
    /// Appends in a session, then reads everything.
    Session,
    /// Appends some, and follows them.
    Follower,
}

impl Kind {
    async fn round(
        self,
        stream: &Stream,
        ends: &AtomicBool,
        done: &AtomicU64,
    ) -> anyhow::Result<()> {
        let is_over = || ends.load(Ordering::Relaxed);
        let count = |appends: usize| done.fetch_add(appends as u64, Ordering::Relaxed);
        match self {
            Kind::Unary => {
                let batches = Batches::new(1, 200, 1)?;
                for turn in (0..APPENDS).take_while(|_| !is_over()) {
                    stream.append(batches.at(turn)).await?;
                    count(1);
                }
            }
            Kind::Session => {
                let batches = Batches::new(16, 1000, 2)?;
                for _ in (0..APPENDS / UNDER_WAY).take_while(|_| !is_over()) {
                    let go_on = |submitted| submitted < UNDER_WAY;
                    let on_ack = |_| {
                        count(1);
                    };
                    stream
                        .append_session(&batches, UNDER_WAY, go_on, on_ack)
                        .await?;
                    tokio::time::sleep(SESSION_PAUSE).await;
                }
                let tail = stream.tail().await?;
                let first = tail.saturating_sub(10_000);
                stream.read(first, tail - first).await?;
            }
            Kind::Follower => {
                let batches = Batches::new(10, 100, 3)?;
                let tail = stream.tail().await?;
                for turn in 0..20 {
                    stream.append(batches.at(turn)).await?;
                    count(1);
                }
                stream.follow(|records| records < tail + 200).await?;
            }
        }
        Ok(())
    }
}
