//! Durable transactions and point reads, beside the peer's.

use std::time::Duration;

use super::Bench;
use super::load::{self, Deed};
use super::peer::Peer;
use bench_harness::disk::fdatasync_p50_ms;
use bench_harness::page::{Figure, Section};
use bench_harness::stats::median_or_zero as median;

/// Clients at once.
const MANY: u64 = 64;
/// Keys that are read.
const KEYS: u64 = 10_000;

/// The rates of one server.
#[derive(Default)]
struct Rates {
    one: Vec<f64>,
    one_p50: Vec<f64>,
    many: Vec<f64>,
    many_p50: Vec<f64>,
    reads: Vec<f64>,
    empty: Vec<f64>,
}

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let time = Duration::from_secs(if bench.run.quick { 1 } else { 8 });
    let (mut peers, mut ours) = (Rates::default(), Rates::default());
    let mut syncs = Vec::new();
    for run in 0..bench.run.runs {
        syncs.push(fdatasync_p50_ms(
            &bench.run.scratch,
            500,
            Duration::from_secs(2),
        )?);
        if let Some(statehoused) = &bench.statehoused {
            let data = bench.run.scratch.join(format!("peer-{run}"));
            let peer = Peer::start(statehoused, &data).await?;
            rates(bench, &peer.url(), time, &mut peers).await?;
        }
        let esker = bench.serve(&format!("rates-{run}"), &[]).await?;
        rates(bench, &esker.url(), time, &mut ours).await?;
    }
    let sync = median(&syncs);
    let ratio = |ours: &[f64], peers: &[f64]| median(ours) / median(peers);
    let one = ratio(&ours.one, &peers.one);
    let one_p50 = median(&ours.one_p50);
    let many = median(&ours.many);
    let bound = 40.0 * median(&peers.many);
    let reads = ratio(&ours.reads, &peers.reads);
    let rate = |values: &[f64]| format!("{:.0}/s", median(values));
    let ms = |values: &[f64]| format!("{:.2} ms", median(values));
    let is_compared = bench.statehoused.is_some();
    let beside = |figure: Figure, theirs: String| match is_compared {
        true => figure.beside(theirs),
        false => figure,
    };
    let judged = |figure: Figure, target: String, met: bool| match is_compared {
        true => figure.target(target, met),
        false => figure,
    };
    Ok(Section {
        title: "Transactions and reads".to_owned(),
        how: format!(
            "`beside` is statehoused, in the same run, turn by turn. Medians of {} runs of {} s.",
            bench.run.runs,
            time.as_secs()
        ),
        figures: vec![
            Figure::plain(
                "the disk alone: fdatasync of 4 KiB, p50",
                format!("{sync:.2} ms"),
            ),
            judged(
                beside(
                    Figure::plain(
                        "durable transactions, 1 client, 1 operation",
                        rate(&ours.one),
                    ),
                    format!("{} ({one:.1}x)", rate(&peers.one)),
                ),
                "at least 6x".to_owned(),
                one >= 6.0,
            ),
            beside(
                Figure::plain("its commits, p50", ms(&ours.one_p50)),
                ms(&peers.one_p50),
            )
            .target("at most one sync + 1 ms", one_p50 <= sync + 1.0),
            beside(
                Figure::plain(format!("empty calls, {MANY} clients"), rate(&ours.empty)),
                rate(&peers.empty),
            ),
            judged(
                beside(
                    Figure::plain(
                        format!("durable transactions, {MANY} clients"),
                        rate(&ours.many),
                    ),
                    format!(
                        "{} ({:.1}x)",
                        rate(&peers.many),
                        ratio(&ours.many, &peers.many)
                    ),
                ),
                format!("at least 40x: {bound:.0}/s"),
                many >= bound,
            ),
            beside(
                Figure::plain("its commits, p50", ms(&ours.many_p50)),
                ms(&peers.many_p50),
            ),
            judged(
                beside(
                    Figure::plain(format!("point reads, {MANY} clients"), rate(&ours.reads)),
                    format!("{} ({reads:.1}x)", rate(&peers.reads)),
                ),
                "at least 2x".to_owned(),
                reads >= 2.0,
            ),
        ],
        ..Section::default()
    })
}

async fn rates(bench: &Bench, url: &str, time: Duration, rates: &mut Rates) -> anyhow::Result<()> {
    let all = u64::MAX;
    let one = load::clients(url, 1, Deed::Commit { keys: 100 }, all, time).await?;
    let many = load::clients(url, MANY, Deed::Commit { keys: 100 }, all, time).await?;
    let empty = load::clients(url, MANY, Deed::Empty, all, time).await?;
    load::fill(url, KEYS).await?;
    let reads = load::clients(url, MANY, Deed::Read { keys: KEYS }, all, time).await?;
    bench.run.note(format!(
        "{url}: {:.0} and {:.0} transactions/s (p50 {:.2} and {:.2} ms), {:.0} reads/s, {:.0} empty calls/s",
        one.rate(),
        many.rate(),
        one.percentile_ms(50.0),
        many.percentile_ms(50.0),
        reads.rate(),
        empty.rate()
    ));
    rates.one.push(one.rate());
    rates.one_p50.push(one.percentile_ms(50.0));
    rates.many.push(many.rate());
    rates.many_p50.push(many.percentile_ms(50.0));
    rates.reads.push(reads.rate());
    rates.empty.push(empty.rate());
    Ok(())
}
