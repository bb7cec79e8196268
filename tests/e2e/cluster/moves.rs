//! Leaderships that move as planned: clients that retry nothing see that an append takes longer, and no error.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use s2_sdk::S2Stream;
use serde_json::json;
use tokio::task::JoinHandle;

use super::writer::{create, stream};
use crate::support::{Cluster, Setup, eventually, sdk, soon};

/// The partition of all streams.
const PARTITION: u64 = 1;
const TRANSFERS: usize = 20;

/// Appends one record after the other, each once. An error fails the test.
struct Appender {
    task: JoinHandle<u64>,
    acked: Arc<AtomicU64>,
}

impl Appender {
    /// Begins to append by way of a node. Bodies are `name-number`, filled up to `bytes`.
    fn start(cluster: &Cluster, at: usize, bytes: usize, stop: &Arc<AtomicBool>) -> Appender {
        let basin = cluster
            .server(at)
            .sdk()
            .basin(sdk::basin_name("test-basin"));
        let stream: S2Stream = basin.stream(sdk::stream_name("orders"));
        let (stop, acked) = (stop.clone(), Arc::new(AtomicU64::new(0)));
        let counted = acked.clone();
        let task = tokio::spawn(async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let body = format!("{at}-{bytes}-{number} {}", "x".repeat(bytes));
                let appended = stream.append(sdk::input([body])).await;
                appended.unwrap_or_else(|error| panic!("append {number} by way of n{at}: {error}"));
                number += 1;
                counted.fetch_add(1, Ordering::Relaxed);
            }
            number
        });
        Appender { task, acked }
    }

    async fn goes_on(&self, more: u64) {
        let acked = || self.acked.load(Ordering::Relaxed);
        let wanted = acked() + more;
        eventually("appends go on", async || {
            assert!(
                !self.task.is_finished(),
                "the appender has failed: see above"
            );
            (acked() >= wanted).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_whose_leader_moves_are_made_once_and_without_an_error() {
    let cluster = Cluster::start(&Setup::default().partitions(1)).await;
    create(&cluster, 0, "orders").await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut appenders = Vec::new();
    for at in cluster.all() {
        appenders.push(Appender::start(&cluster, at, 10, &stop));
    }
    // Its body is larger than what is kept of one whose length is not known.
    appenders.push(Appender::start(&cluster, 0, 200_000, &stop));
    let leader = cluster.leader_of(PARTITION, 0).await;
    for number in 1..=TRANSFERS {
        cluster.lead(PARTITION, (leader + number) % 3).await;
        for appender in &appenders {
            appender.goes_on(1).await;
        }
    }
    // So does what a node leads that is drained.
    let drained = cluster.leader_of(PARTITION, 0).await;
    let path = |what: &str| format!("nodes/n{drained}/{what}");
    eventually("the node is to be drained", async || {
        let answer = cluster.change(drained, &path("drain"), &json!({})).await;
        (answer.status == 200).then_some(())
    })
    .await;
    eventually("the drained node leads nothing", async || {
        let view = cluster.view(0).await.ok()?;
        let nodes = view["nodes"].as_array()?;
        let name = format!("n{drained}");
        let node = nodes.iter().find(|node| node["name"] == name)?;
        (node["leads"] == 0).then_some(())
    })
    .await;
    for appender in &appenders {
        appender.goes_on(5).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut made = 0;
    for appender in appenders {
        made += appender.task.await.unwrap();
    }
    let read = soon(
        "the stream is read",
        sdk::read_all(&stream(&cluster, 0, "orders")),
    )
    .await;
    let bodies = sdk::bodies(&read);
    let names: BTreeSet<&str> = bodies
        .iter()
        .map(|body| body.split(' ').next().unwrap())
        .collect();
    assert_eq!(bodies.len() as u64, made, "one record for each append");
    assert_eq!(names.len() as u64, made, "and each another one");
}
