//! Folding beside reading, and framed snapshots beside plain records.

use std::time::Duration;

use super::{Bench, Operation, Step, create, load, step};
use bench_harness::page::{Figure, Section};
use bench_harness::stats::median_or_zero as median;

/// Longest wait for compactions.
const SETTLED: Duration = Duration::from_secs(20);

pub async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let server = bench.serve("rates").await?;
    let records: u64 = if bench.run.quick { 50_000 } else { 4_000_000 };
    let stream = create(&server, "orders").await?;
    load(&stream, 0..records, 10_000).await?;
    let read = bench
        .median(&step(Operation::Read, &server, "orders"))
        .await?;
    let folded = bench
        .median(&step(Operation::Follow, &server, "orders"))
        .await?;
    let per_second = |done: &super::Done| done.records as f64 / done.seconds;
    let on_one_core = folded.records as f64 / folded.cpu_seconds;
    let enough =
        per_second(&folded) >= 500_000.0 || per_second(&folded) >= 0.95 * per_second(&read);
    let mut figures = vec![
        Figure::plain(
            "records folded in a second, latest by key",
            format!("{:.0}", per_second(&folded)),
        )
        .beside(format!(
            "the official client alone reads {:.0}; for a second of the follower's CPU: {on_one_core:.0}",
            per_second(&read)
        ))
        .target("≥ 500,000, or the server's read rate", enough),
    ];

    let bytes: u64 = if bench.run.quick { 16 << 20 } else { 1 << 30 };
    let mib = bytes >> 20;
    let (mut plain_append, mut plain_read) = (Vec::new(), Vec::new());
    let (mut written, mut restored) = (Vec::new(), Vec::new());
    let mut memory: f64 = 0.0;
    for run in 0..bench.run.runs {
        let plain = format!("plain-{run}");
        let framed = format!("framed-{run}");
        create(&server, &plain).await?;
        let stream = create(&server, &framed).await?;
        // The snapshot needs records to cover.
        load(&stream, 0..10, 10).await?;
        let on = |operation, stream: &str| Step {
            bytes,
            ..step(operation, &server, stream)
        };
        let rate = |done: &super::Done| done.bytes as f64 / done.seconds / f64::from(1 << 20);
        let mut measured = Vec::new();
        for (operation, stream) in [
            (Operation::PlainAppend, &plain),
            (Operation::Snapshot, &framed),
            (Operation::PlainRead, &plain),
            (Operation::Restore, &framed),
        ] {
            // Compactions of earlier data are not measured.
            server.settle(SETTLED).await;
            let done = on(operation, stream).run().await?;
            bench.run.note(format!("{operation:?}: {done:?}"));
            if matches!(operation, Operation::Snapshot | Operation::Restore) {
                memory = memory.max(done.extra_mib);
            }
            measured.push(rate(&done));
        }
        plain_append.push(measured[0]);
        written.push(measured[1]);
        plain_read.push(measured[2]);
        restored.push(measured[3]);
    }
    let (write, append) = (median(&written), median(&plain_append));
    let (restore, read) = (median(&restored), median(&plain_read));
    figures.extend([
        Figure::plain(
            format!("framed snapshot of {mib} MiB, written"),
            format!("{write:.0} MiB/s, {:.2}x", write / append),
        )
        .beside(format!("plain records of 1 MiB: {append:.0} MiB/s"))
        .target("≥ 0.8x", write >= 0.8 * append),
        Figure::plain(
            format!("framed snapshot of {mib} MiB, restored"),
            format!("{restore:.0} MiB/s, {:.2}x", restore / read),
        )
        .beside(format!("plain records of 1 MiB: {read:.0} MiB/s"))
        .target("≥ 0.9x", restore >= 0.9 * read),
        Figure::plain("memory meanwhile, at most", format!("{memory:.0} MiB"))
            .target("≤ 64 MiB", memory <= 64.0),
    ]);
    Ok(Section {
        title: "Folding, and framed snapshots".to_owned(),
        how: format!(
            "Folding: {records} JSON records of 100 bytes, 10,000 keys, from the head to the tail. Framed: a \
             state of {mib} MiB, not compressed, beside the official client with as many bytes in flight; \
             medians of {} runs that take turns. Memory is what the process has beyond its beginning.",
            bench.run.runs
        ),
        figures,
        ..Section::default()
    })
}
