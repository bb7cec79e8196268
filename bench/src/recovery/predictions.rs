//! The predicted and the actual time of a recovery.

use std::time::Duration;

use bench_harness::page::{Figure, Section};
use bench_harness::stats::median_or_zero as median;

use super::{
    Bench,
    load::Streams,
    lose,
    subject::{Setup, Subject},
};
use crate::client::Batches;

const STREAMS: usize = 100;

const RESTART: &str = "esker_predicted_restart_seconds";
const RESTORE: &str = "esker_predicted_restore_seconds";
const AT_RISK: &str = "esker_entries_at_risk";

/// Longer than the interval of one second at which gauges are published.
const PUBLISHED: Duration = Duration::from_millis(2_200);

/// Batches appended before a kill: the first only causes a start that can be measured.
const TAILS: [usize; 6] = [3_000, 3_000, 500, 12_000, 30_000, 1_500];

/// MiB of the node when it is lost: the first restore only provides a measured rate.
const SIZES: [usize; 4] = [128, 256, 768, 1_536];

pub async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let (setup, _store) = bench.place("predictions").await?;
    let setup = setup.with([
        "snapshots.snapshot-kind=incremental",
        "snapshots.num-retained=3",
        "snapshots.snapshot-interval=1s",
    ]);
    let mut figures = Vec::new();
    let mut ratios = (Vec::new(), Vec::new());
    let (mut server, _) = setup.start(&[]).await?;
    let mut streams = Streams::create(&server.url(), STREAMS).await?;

    // Restarts, without snapshots in between, so that the tail is what is replayed.
    server.kill();
    let apart = setup.with(["snapshots.snapshot-interval=1h"]);
    (server, _) = apart.start(&[]).await?;
    let tail = Batches::new(4, 256, 41)?;
    let mut next = 0;
    for (number, entries) in TAILS.into_iter().enumerate() {
        streams = Streams::open(&server.url(), STREAMS).await?;
        streams.append(&tail, next..next + entries).await?;
        next += entries;
        let achieved = restart(bench, &apart, &mut server, number > 0).await?;
        if let Some((figure, ratio)) = achieved {
            figures.push(figure);
            ratios.0.push(ratio);
        }
    }

    // Restores: everything is in the repository before the node is lost.
    server.kill();
    (server, _) = setup.start(&[]).await?;
    let large = Batches::new(64, 1024, 42)?;
    let sizes = match bench.run.quick {
        true => &SIZES[..2],
        false => &SIZES[..],
    };
    let mut loaded = 0;
    for (number, mib) in sizes.iter().enumerate() {
        streams = Streams::open(&server.url(), STREAMS).await?;
        streams.append(&large, loaded * 16..mib * 16).await?;
        loaded = *mib;
        server
            .wait(AT_RISK, Duration::from_secs(120), |at_risk| at_risk == 0.0)
            .await?;
        server.settle(Duration::from_secs(30)).await;
        tokio::time::sleep(PUBLISHED).await;
        let predicted = server.metric(RESTORE).await?;
        server.kill();
        lose(&setup.data)?;
        let (again, time) = setup.start(&["--bootstrap", "restore"]).await?;
        server = again;
        let achieved = time.as_secs_f64();
        let said = server.said()?;
        bench.run.note(format!(
            "{mib} MiB lost: predicted {predicted:.2} s, achieved {achieved:.2} s, {said:?}"
        ));
        if number == 0 {
            continue;
        }
        let ratio = achieved / predicted;
        ratios.1.push(ratio);
        figures.push(
            Figure::plain(
                format!("restore of {mib} MiB: achieved ÷ predicted"),
                format!("{ratio:.2}"),
            )
            .beside(format!(
                "{achieved:.2} s ÷ {predicted:.2} s; {}",
                said.parts()
            ))
            .target("0.5 to 1.5", (0.5..=1.5).contains(&ratio)),
        );
    }
    for (what, ratios) in [("restarts", &ratios.0), ("restores", &ratios.1)] {
        figures.push(Figure::plain(
            format!("{what}: median"),
            format!("{:.2}", median(ratios)),
        ));
    }
    drop(streams);
    Ok(Section {
        title: "Recovery time, achieved ÷ predicted".to_owned(),
        how: "Predicted are the gauges `esker_predicted_restart_seconds` and \
              `esker_predicted_restore_seconds` just before SIGKILL, achieved is from the start of \
              the process to the first 200 of `/health`. Restarts: batches of 4 records of 256 bytes \
              after the last start, the first of several on the same node only to measure its \
              rates. Restores: into an empty directory, with `--bootstrap restore` and everything \
              uploaded before; each predicts with what the one before it measured."
            .to_owned(),
        figures,
        ..Section::default()
    })
}

async fn restart(
    bench: &Bench,
    setup: &Setup,
    server: &mut Subject,
    counts: bool,
) -> anyhow::Result<Option<(Figure, f64)>> {
    // No longer than necessary, because old memtables are flushed.
    tokio::time::sleep(PUBLISHED).await;
    let predicted = server.metric(RESTART).await?;
    // Killed at the end of this line, and started by the next.
    server.end();
    let (again, time) = setup.start(&[]).await?;
    *server = again;
    let achieved = time.as_secs_f64();
    let said = server.said()?;
    bench.run.note(format!(
        "restart: predicted {predicted:.3} s, achieved {achieved:.3} s, {said:?}"
    ));
    let ratio = achieved / predicted;
    let figure = Figure::plain(
        format!(
            "restart, {} entries replayed: achieved ÷ predicted",
            said.events
        ),
        format!("{ratio:.2}"),
    )
    .beside(format!(
        "{achieved:.2} s ÷ {predicted:.2} s; {}",
        said.parts()
    ))
    .target("0.5 to 1.5", (0.5..=1.5).contains(&ratio));
    Ok(counts.then_some((figure, ratio)))
}
