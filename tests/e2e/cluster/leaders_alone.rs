//! What the leader of a partition alone does: it uploads snapshots and looks for what is due by time. A node that did it as a
//! follower would double the traffic, and no answer would be wrong.

use std::time::Duration;

use s2_sdk::types::{CreateStreamInput, RetentionPolicy, StreamConfig};

use super::writer::stream;
use crate::small_disk::{noise, small};
use crate::support::{Cluster, eventually, in_time, sdk};

/// Work that only leaders do, as each node counts it.
const COUNTERS: [&str; 3] = [
    "esker_partition_store_snapshots_upload_total",
    "esker_partition_store_snapshots_upload_bytes_total",
    "esker_retention_scans_total",
];

/// How much of it a node has done.
async fn work(cluster: &Cluster, at: usize) -> [f64; 3] {
    let metrics = cluster.http(at).get("/metrics").send().await;
    let metrics = metrics.expect(200).text();
    COUNTERS.map(|name| {
        let of_it = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']))
        };
        let lines = metrics.lines().filter(of_it);
        let values = lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
        values.sum()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leads_nothing_uploads_no_snapshot_and_looks_for_nothing_that_is_due() {
    let repository = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}", repository.path().display());
    let setup = small()
        .set(&destination)
        .set("log.flush-after=64KiB")
        .set("snapshots.snapshot-interval=1s");
    let cluster = Cluster::start(&setup).await;
    let (catalog, leader) = (cluster.keeper_of(0, 0).await, cluster.keeper_of(1, 0).await);
    let third = 3 - catalog - leader;
    let basin = sdk::basin(&cluster.client(0), "test-basin").await;
    let config = StreamConfig::new().with_retention_policy(RetentionPolicy::Age(1));
    let input = CreateStreamInput::new(sdk::stream_name("orders")).with_config(config);
    basin.create_stream(input).await.unwrap();
    let orders = stream(&cluster, third, "orders");
    // A stall of the machine may cause an election, after which another node leads for a while.
    in_time("the leaders stay", async |_| {
        cluster.settle_leaders().await;
        let terms = cluster.terms(leader).await;
        // The rounds that a former leader had begun are over once nothing is done for a second.
        let mut of_third = work(&cluster, third).await;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = work(&cluster, third).await;
            if now == std::mem::replace(&mut of_third, now) {
                break;
            }
        }
        let of_leader = work(&cluster, leader).await;
        let mut number = 0;
        eventually("the leader works", async || {
            sdk::append(&orders, [noise(number, 100_000)]).await;
            number += 1;
            let now = work(&cluster, leader).await;
            let has_done = now.iter().zip(of_leader).all(|(now, before)| *now > before);
            let has_put_again = now[0] >= of_leader[0] + 2.0;
            (has_done && has_put_again).then_some(())
        })
        .await;
        let now = work(&cluster, third).await;
        if cluster.terms(leader).await != terms {
            return Err("another node has led".to_owned());
        }
        assert_eq!(now, of_third, "n{third} leads nothing: {COUNTERS:?}");
        Ok(())
    })
    .await;
}
