//! Commits a second beside etcd's: appends of single records, and transactions of the state service.

use std::sync::Arc;

use bench_harness::page::{Figure, Section};
use bench_harness::stats::median_or_zero as median;
use esker_proto::statehouse::v1::{BeginTransactionRequest, CommitRequest, WriteRequest};
use esker_proto::{Kind, Struct, Value};

use super::Bench;
use super::etcd::{self, Etcd};
use super::load::{self, Counted, Rate, Work};
use super::nodes::Nodes;
use crate::state::load::connect;

/// Clients at once.
const CLIENTS: usize = 64;
/// Bytes of a record or a value.
const BYTES: usize = 256;
/// Keys of each client.
const KEYS: u64 = 150;

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let version = etcd::version(&bench.etcd);
    if version.is_none() {
        bench.run.note(format!(
            "{} cannot be executed, so there is nothing beside: apt-get install etcd-server",
            bench.etcd.display()
        ));
    }
    let (mut appends, mut transactions, mut puts) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..bench.run.runs {
        if version.is_some() {
            let dir = bench.run.dir(&format!("etcd-{run}"))?;
            let etcd = Etcd::start(&bench.etcd, &dir)?;
            let (leader, counted) = (etcd.leader().await?, Counted::default());
            let work = etcd::putters(&leader, CLIENTS, BYTES, KEYS, &counted).await?;
            let used = || etcd.processor_seconds();
            let rate = load::many(work, &counted, bench.time(), used).await?;
            bench.run.note(format!("etcd: {rate:.2?}"));
            puts.push(rate);
            drop(etcd);
            std::fs::remove_dir_all(dir)?;
        }
        let dir = bench.run.dir(&format!("commits-{run}"))?;
        let nodes = Nodes::start(bench.esker.clone(), dir.clone(), 3).await?;
        let url = nodes.url(nodes.leader(0).await?);
        load::create_basin(&url).await?;
        let (small, counted) = (Arc::new(load::small(BYTES)?), Counted::default());
        let work = load::appenders(&url, CLIENTS, "commits", small, &counted).await?;
        let rate = load::many(work, &counted, bench.time(), load::processor(&nodes)).await?;
        bench.run.note(format!("appends: {rate:.2?}"));
        appends.push(rate);
        let counted = Counted::default();
        let work = committers(&url, &counted).await?;
        let rate = load::many(work, &counted, bench.time(), load::processor(&nodes)).await?;
        bench.run.note(format!("transactions: {rate:.2?}"));
        transactions.push(rate);
        drop(nodes);
        std::fs::remove_dir_all(dir)?;
    }
    let rate = |all: &[Rate]| median(&all.iter().map(|it| it.each_second).collect::<Vec<_>>());
    let cores = |all: &[Rate]| median(&all.iter().map(|it| it.cores).collect::<Vec<_>>());
    let shown = |all: &[Rate]| format!("{:.0}/s at {:.2} cores", rate(all), cores(all));
    let judged = |what: &str, ours: &[Rate], least: f64| {
        let figure = Figure::plain(what, shown(ours));
        if puts.is_empty() {
            return figure.beside("etcd is not installed: not compared");
        }
        let times = rate(ours) / rate(&puts);
        figure
            .beside(format!("{} ({times:.2}×)", shown(&puts)))
            .target(format!("at least {least}×"), times >= least)
    };
    let beside = match &version {
        Some(version) => format!(
            "`beside` is etcd {version}, three members with its defaults, in the same run: puts of the same size under \
             one of {KEYS} keys of each client."
        ),
        None => "etcd is not installed on this machine: nothing is beside.".to_owned(),
    };
    Ok(Section {
        title: "Commits".to_owned(),
        how: format!(
            "{CLIENTS} clients, each with a connection of its own to the leader, each waiting for its answer before it \
             sends again: {BYTES} bytes. An append is one request, a transaction of one key three (begin, write, \
             commit). {beside} Medians of {} runs of {} s each.",
            bench.run.runs,
            bench.time().as_secs()
        ),
        figures: vec![
            judged("appends of one record, by the S2 API", &appends, 2.0),
            judged(
                "transactions of one key, by the state service",
                &transactions,
                1.0,
            ),
        ],
        ..Section::default()
    })
}

/// A value of about so many bytes.
fn value(n: u64) -> Struct {
    let text = Value {
        kind: Some(Kind::StringValue(format!(
            "{n:0>width$}",
            width = BYTES - 10
        ))),
    };
    let fields = [("fact".to_owned(), text)];
    Struct {
        fields: fields.into_iter().collect(),
    }
}

/// Clients that commit transactions of one key.
async fn committers(url: &str, counted: &Counted) -> anyhow::Result<Vec<Work>> {
    let mut all = Vec::new();
    for client in 0..CLIENTS {
        let mut state = connect(url).await?;
        let counted = counted.clone();
        let work = async move {
            let mut n = 0;
            while counted.goes_on() {
                let begin = BeginTransactionRequest { timeout_ms: None };
                let txn_id = state.begin_transaction(begin).await?.into_inner().txn_id;
                let write = WriteRequest {
                    txn_id: txn_id.clone(),
                    namespace: "bench".to_owned(),
                    agent_id: format!("agent-{client}"),
                    key: format!("key-{}", n % KEYS),
                    value: Some(value(n)),
                };
                state.write(write).await?;
                state.commit(CommitRequest { txn_id }).await?;
                n += 1;
                counted.add(1);
            }
            Ok(())
        };
        all.push(Box::pin(work) as Work);
    }
    Ok(all)
}
