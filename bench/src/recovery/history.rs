//! Starts after SIGKILL, with longer and longer histories and the same settings.

use std::time::Duration;

use bench_harness::page::{Figure, Section};
use bench_harness::stats::median_or_zero as median;

use super::{Bench, load::Streams};
use crate::client::Batches;

const STREAMS: usize = 100;
const RECORDS: usize = 10;
const BODY: usize = 200;
/// Records of the shortest history.
const ONCE: usize = 50_000;
/// Batches after the newest snapshot, in every case.
const TAIL: usize = 2_000;

const COUNT: &str = "esker_partition_store_snapshots_upload_total";

pub async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let (setup, _store) = bench.place("history").await?;
    let setup = setup.with([
        "snapshots.snapshot-kind=incremental",
        "snapshots.num-retained=3",
        "snapshots.snapshot-interval=5s",
    ]);
    let batches = Batches::new(RECORDS, BODY, 31)?;
    let (mut server, _) = setup.start(&[]).await?;
    Streams::create(&server.url(), STREAMS).await?;
    let mut figures = Vec::new();
    let mut medians = Vec::new();
    let mut next = 0;
    for times in [1, 10, 100] {
        let wanted = ONCE * times / RECORDS / if bench.run.quick { 10 } else { 1 };
        let streams = Streams::open(&server.url(), STREAMS).await?;
        streams.append(&batches, next..wanted).await?;
        next = next.max(wanted);
        bench.run.note(format!("{} records", next * RECORDS));
        // All retained snapshots are of a time after the load.
        for _ in 0..3 {
            let before = server.metric(COUNT).await?;
            streams.append(&batches, next..next + 200).await?;
            next += 200;
            let partitions = 8.0;
            server
                .wait(COUNT, Duration::from_secs(60), |now| {
                    now >= before + partitions
                })
                .await?;
        }
        server.settle(Duration::from_secs(20)).await;
        let mut took = Vec::new();
        let mut events = Vec::new();
        let mut log = 0;
        for _ in 0..bench.run.runs.max(3) + 2 {
            let streams = Streams::open(&server.url(), STREAMS).await?;
            streams.append(&batches, next..next + TAIL).await?;
            next += TAIL;
            server.kill();
            let (again, time) = setup.start(&[]).await?;
            server = again;
            let said = server.said()?;
            bench
                .run
                .note(format!("{times}x: {:.3} s, {said:?}", time.as_secs_f64()));
            took.push(time.as_secs_f64());
            events.push(said.events as f64);
            log = said.log_bytes;
        }
        medians.push(median(&took));
        let slowest = super::largest(&took);
        figures.push(
            Figure::plain(
                format!("{times}x, {} records", next * RECORDS),
                format!("{:.2} s (slowest {slowest:.2} s)", median(&took)),
            )
            .beside(format!(
                "{:.0} entries replayed, log of {} MiB",
                median(&events),
                log >> 20
            )),
        );
    }
    let ratio = medians[2] / medians[0];
    figures.push(Figure::plain("100x ÷ 1x", format!("{ratio:.2}x")).target("≤ 1.2x", ratio <= 1.2));
    Ok(Section {
        title: "Starts by the length of the history".to_owned(),
        how: format!(
            "Eight partitions, {STREAMS} streams, batches of {RECORDS} records of {BODY} bytes; a \
             snapshot every 5 s. After the load three rounds of snapshots, then {} starts, before \
             each of them {TAIL} batches and SIGKILL right after the last answer. Medians.",
            bench.run.runs.max(3) + 2
        ),
        figures,
        ..Section::default()
    })
}
