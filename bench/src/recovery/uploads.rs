//! Bytes uploaded per newly written byte, over a number of snapshots.

use std::time::Duration;

use bench_harness::page::{Figure, Section};

use super::{
    Bench, largest,
    load::{RECORD_OVERHEAD, Streams},
};
use crate::client::Batches;

const STREAMS: usize = 200;
const RECORDS: usize = 8;
const BODY: usize = 1024;
/// Batches that each stream gets in one delta.
const BATCHES: usize = 15;
/// Deltas before counting begins, and the deltas that trimmed streams keep.
const KEPT: usize = 20;
const SNAPSHOTS: usize = 20;

const BYTES: &str = "esker_partition_store_snapshots_upload_bytes_total";
const COUNT: &str = "esker_partition_store_snapshots_upload_total";

pub async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let mut figures = Vec::new();
    for (trims, name) in [(true, "steady"), (false, "growing")] {
        let ratios = run(bench, trims, name).await?;
        let average = ratios.iter().sum::<f64>() / ratios.len() as f64;
        let shown: Vec<_> = ratios.iter().map(|r| format!("{r:.1}")).collect();
        let what = match trims {
            true => "steady: each delta's records trim as many old ones",
            false => "growing: nothing is trimmed",
        };
        let figure = Figure::plain(
            format!("{what}; average of {} snapshots", ratios.len()),
            format!("{average:.2}"),
        )
        .beside("Restate: about 12");
        figures.push(match trims {
            true => figure.target("≤ 2.5 (aim 1.5)", average <= 2.5),
            false => figure,
        });
        figures.push(Figure::plain(
            format!("{name}: the largest of them"),
            format!("{:.1}", largest(&ratios)),
        ));
        figures.push(Figure::plain(format!("{name}: each"), shown.join(" ")));
    }
    let delta = STREAMS * BATCHES * RECORDS * (BODY + RECORD_OVERHEAD) / 1024 / 1024;
    Ok(Section {
        title: "Bytes uploaded ÷ bytes newly written".to_owned(),
        how: format!(
            "One partition, {STREAMS} streams, batches of {RECORDS} records of 1 KiB that do not \
             compress; {KEPT} deltas of {delta} MiB beforehand, then one delta and one snapshot in \
             turn, with compactions at rest in between. `snapshot-kind = incremental`, \
             `num-retained = 3`. *Uploaded* is \
             `esker_partition_store_snapshots_upload_bytes_total`; *written* are the metered bytes \
             of appended records."
        ),
        figures,
        ..Section::default()
    })
}

async fn run(bench: &Bench, trims: bool, name: &str) -> anyhow::Result<Vec<f64>> {
    let (setup, store) = bench.place(&format!("uploads-{name}")).await?;
    let in_delta = STREAMS * BATCHES;
    // A little less than a delta: its last entries may be those of the creation of streams.
    let due = in_delta * 99 / 100;
    let setup = setup.with([
        "partitions=1".to_owned(),
        "snapshots.snapshot-kind=incremental".to_owned(),
        "snapshots.num-retained=3".to_owned(),
        "snapshots.snapshot-interval=".to_owned(),
        format!("snapshots.snapshot-interval-num-records={due}"),
        "snapshots.recovery-budget=".to_owned(),
    ]);
    let base = setup.with([format!(
        "snapshots.snapshot-interval-num-records={}",
        in_delta * KEPT * 2
    )]);
    let (server, _) = base.start(&[]).await?;
    let batches = Batches::new(RECORDS, BODY, 11)?;
    let streams = Streams::create(&server.url(), STREAMS).await?;
    streams.append(&batches, 0..in_delta * KEPT).await?;
    server.settle(Duration::from_secs(30)).await;
    server.kill();

    let (server, _) = setup.start(&[]).await?;
    server.settle(Duration::from_secs(20)).await;
    let streams = Streams::open(&server.url(), STREAMS).await?;
    // The base is due at once, and is not counted.
    let snapshot = async |before: f64| {
        server
            .wait(COUNT, Duration::from_secs(60), |now| now > before)
            .await?;
        server.settle(Duration::from_secs(20)).await;
        server.metric(COUNT).await
    };
    // A new repository has no snapshot yet, or that of a new partition.
    let mut count = snapshot(0.0).await?;
    let mut bytes = server.metric(BYTES).await?;
    let snapshots = if bench.run.quick { 3 } else { SNAPSHOTS };
    let written = (in_delta * RECORDS * (BODY + RECORD_OVERHEAD)) as f64;
    let mut ratios = Vec::new();
    for number in 0..snapshots {
        let begin = (KEPT + number) * in_delta;
        if trims {
            let trimmed = (number + 1) * BATCHES * RECORDS + number;
            // Each trim is a record itself.
            streams.trim(trimmed as u64).await?;
        }
        streams.append(&batches, begin..begin + in_delta).await?;
        count = snapshot(count).await?;
        let now = server.metric(BYTES).await?;
        ratios.push((now - bytes) / written);
        bytes = now;
        bench.run.note(format!(
            "{name} snapshot {}: {:.2} uploaded for 1 written; the store has {:?}",
            number + 1,
            ratios[number],
            store.size()
        ));
    }
    Ok(ratios)
}
