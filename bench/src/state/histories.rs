//! Restarts by the length of the history, the pages of a long one, and the disk space that it takes.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use super::Bench;
use super::load::{self, Deed};
use super::pages;
use crate::recovery::subject::bytes_below;
use bench_harness::page::{Figure, Section};

/// Clients that make the history.
const CLIENTS: u64 = 128;
/// Commits of the history that is cut.
const HOT: u64 = 1_000_000;
/// Time limit for making a history.
const AT_MOST: Duration = Duration::from_secs(1200);

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let mut figures = Vec::new();
    let mut times = Vec::new();
    let mut made = 0;
    let mut server = Some(bench.serve("history", &[]).await?);
    for commits in [10_000, 100_000, 1_000_000].map(|full| bench.size(full)) {
        let Some(running) = server.take() else {
            break;
        };
        let deed = Deed::Commit { keys: 1000 };
        let done = load::clients(&running.url(), CLIENTS, deed, commits - made, AT_MOST).await?;
        made += done.count as u64;
        // The kill comes at an ordinary moment.
        tokio::time::sleep(Duration::from_secs(2)).await;
        running.kill();
        let (running, took) = bench.setup("history", &[]).start(&[]).await?;
        let said = running.said()?;
        bench.run.note(format!(
            "{made} commits at {:.0}/s; killed, and back in {took:.2?}: {} events, {}",
            done.rate(),
            said.events,
            said.parts()
        ));
        times.push(took.as_secs_f64());
        figures.push(
            Figure::plain(
                format!("restart after kill -9, {made} commits"),
                format!("{:.2} s", took.as_secs_f64()),
            )
            .beside(format!("{} events; {}", said.events, said.parts()))
            .target("at most 0.3 s", took <= Duration::from_millis(300)),
        );
        server = Some(running);
    }
    if let (Some(first), Some(last)) = (times.first(), times.last()) {
        figures.push(Figure::plain(
            "longest history against the shortest",
            format!("{:.1}x", last / first),
        ));
    }
    if let Some(server) = &server {
        figures.extend(pages::measure(bench, server, made).await?);
    }
    drop(server);
    figures.push(disk(bench).await?);
    Ok(Section {
        title: "Long histories".to_owned(),
        how: format!(
            "{CLIENTS} clients commit, with a snapshot every 1000 commits. The disk is looked at when \
             housekeeping has come to rest; partition snapshots are left to their schedule. Pages of the \
             console are loaded a hundred times, one after the other; a viewer keeps a live page open, of \
             which the server renders a part every two seconds."
        ),
        figures,
        ..Section::default()
    })
}

/// Bytes of all files below a directory; a file with several hard links counts once.
fn disk_bytes(directory: &Path) -> anyhow::Result<u64> {
    fn add(directory: &Path, seen: &mut HashSet<u64>) -> anyhow::Result<u64> {
        let mut sum = 0;
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            // A file may be removed meanwhile.
            let Ok(meta) = entry.metadata() else {
                continue;
            };
            if meta.is_dir() {
                sum += add(&entry.path(), seen)?;
            } else if seen.insert(meta.ino()) {
                sum += meta.len();
            }
        }
        Ok(sum)
    }
    add(directory, &mut HashSet::new())
}

/// Measures the disk space of one hot key, of which little history is kept.
async fn disk(bench: &Bench) -> anyhow::Result<Figure> {
    let repository = bench.run.scratch.join("hot-repository");
    let destination = format!("snapshots.destination={}", repository.display());
    let settings = [
        "state.keep-versions=10",
        "state.keep-history=10000",
        destination.as_str(),
    ];
    let server = bench.serve("hot", &settings).await?;
    let commits = bench.size(HOT);
    let data = bench.setup("hot", &settings).data;
    let done = load::clients(&server.url(), CLIENTS, Deed::Hot, commits, AT_MOST).await?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let without_log = || -> anyhow::Result<(f64, f64)> {
        let log = bytes_below(&data.join("log"))?;
        Ok((mib(disk_bytes(&data)? - log), mib(log)))
    };
    let mut least = f64::MAX;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        least = least.min(without_log()?.0);
        if least < 20.0 {
            break;
        }
    }
    let (_, log) = without_log()?;
    bench.run.note(format!(
        "{} commits of one key: {least:.1} MiB, log {log:.1} MiB",
        done.count
    ));
    Ok(Figure::plain(
        format!("disk after {} commits, keep-versions 10, keep-history 10000", done.count),
        format!("{least:.1} MiB"),
    )
    .beside(format!(
        "the Raft log apart: {log:.0} MiB, bounded by log.purge-threshold (256 MiB) while snapshots keep up"
    ))
    .target("at most 40 MiB", least <= 40.0))
}
