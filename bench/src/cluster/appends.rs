//! Appends to three nodes beside one, and forwarded ones beside direct ones.

use std::sync::Arc;

use bench_harness::disk::fdatasync_p50_ms;
use bench_harness::page::{Figure, Section};
use bench_harness::stats::median_or_zero as median;

use super::Bench;
use super::load::{self, Counted, Rate};
use super::nodes::Nodes;

/// Bytes in the body of each record.
const BODY_BYTES: usize = 256;
/// Append sessions at once.
const SESSIONS: usize = 32;
/// Records in each batch.
const BATCH_RECORDS: usize = 100;
/// Unacknowledged batches of a session.
const IN_FLIGHT: usize = 8;

/// The figures of one or of three nodes.
#[derive(Default)]
struct Found {
    p50: Vec<f64>,
    p99: Vec<f64>,
    rates: Vec<f64>,
    cores: Vec<f64>,
}

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let (mut one, mut three) = (Found::default(), Found::default());
    let (mut direct, mut forwarded) = (Vec::new(), Vec::new());
    let mut syncs = Vec::new();
    for run in 0..bench.run.runs {
        let probe = std::time::Duration::from_secs(2);
        syncs.push(fdatasync_p50_ms(&bench.run.scratch, 500, probe)?);
        for (count, found) in [(1, &mut one), (3, &mut three)] {
            let dir = bench.run.dir(&format!("appends-{run}-{count}"))?;
            let nodes = Nodes::start(bench.esker.clone(), dir.clone(), count).await?;
            let leader = match count {
                1 => 0,
                _ => nodes.leader(0).await?,
            };
            load::create_basin(&nodes.url(leader)).await?;
            let small = load::small(BODY_BYTES)?;
            let stream = load::new_stream(&nodes.url(leader), "one").await?;
            let alone = load::one_client(&stream, &small, bench.time()).await?;
            found.p50.push(alone.percentile_ms(50.0));
            found.p99.push(alone.percentile_ms(99.0));
            if count > 1 {
                direct.push(alone.percentile_ms(50.0));
                let other = nodes.url((leader + 1) % nodes.count());
                let stream = load::open_stream(&other, "one").await?;
                let passed_on = load::one_client(&stream, &small, bench.time()).await?;
                forwarded.push(passed_on.percentile_ms(50.0));
            }
            let Rate { each_second, cores } = rate(bench, &nodes, leader).await?;
            bench.run.note(format!(
                "{count} nodes: p50 {:.2} ms; {each_second:.0} records/s, {cores:.2} cores",
                alone.percentile_ms(50.0)
            ));
            found.rates.push(each_second);
            found.cores.push(cores);
            drop(nodes);
            std::fs::remove_dir_all(dir)?;
        }
    }
    let ratio = |three: &[f64], one: &[f64]| median(three) / median(one);
    let latency = ratio(&three.p50, &one.p50);
    let throughput = ratio(&three.rates, &one.rates);
    let passed_on = ratio(&forwarded, &direct);
    let ms = |values: &[f64]| format!("{:.2} ms", median(values));
    let of = |found: &Found| {
        let (rate, cores) = (median(&found.rates), median(&found.cores));
        format!("{rate:.0}/s at {cores:.2} cores")
    };
    Ok(Section {
        title: "Appends".to_owned(),
        how: format!(
            "Records of {BODY_BYTES} bytes, sent to the node that leads. `beside` is one node without a cluster, in \
             the same run, turn by turn; for the forwarded append, the direct one. Medians of {} runs of {} s each.",
            bench.run.runs,
            bench.time().as_secs()
        ),
        figures: vec![
            Figure::plain("the disk alone: fdatasync of 4 KiB, p50", ms(&syncs)),
            Figure::plain("append of one client, three nodes, p50", ms(&three.p50))
                .beside(format!("{} ({latency:.2}×)", ms(&one.p50)))
                .target("at most 2.5×", latency <= 2.5),
            Figure::plain("the same, p99", ms(&three.p99)).beside(ms(&one.p99)),
            Figure::plain(
                format!(
                    "records of {SESSIONS} append sessions, batches of {BATCH_RECORDS}, three nodes"
                ),
                of(&three),
            )
            .beside(format!("{} ({throughput:.2}×)", of(&one)))
            .target("at least 0.5×", throughput >= 0.5),
            Figure::plain("append that another node passes on, p50", ms(&forwarded))
                .beside(format!("{} ({passed_on:.2}×)", ms(&direct)))
                .target("at most 1.5×", passed_on <= 1.5),
        ],
        ..Section::default()
    })
}

async fn rate(bench: &Bench, nodes: &Nodes, leader: usize) -> anyhow::Result<Rate> {
    let counted = Counted::default();
    let batches = Arc::new(load::batches(BATCH_RECORDS, BODY_BYTES)?);
    let url = nodes.url(leader);
    let work = load::sessions(&url, SESSIONS, "many", batches, IN_FLIGHT, &counted).await?;
    load::many(work, &counted, bench.time(), load::processor(nodes)).await
}
