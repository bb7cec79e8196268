//! A node that was away for longer than the log is kept gets a snapshot of another one: what is sent of it, across
//! restarts and connections that are cut, and on a full disk.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::writer::{Writer, caught_up, create, log_begins_after, log_of_leader, stream};
use crate::small_disk::{SmallDisk, noise, small};
use crate::support::http::Http;
use crate::support::{Cluster, Setup, eventually, sdk};

const MIB: f64 = 1024.0 * 1024.0;
/// Bytes of the stream that the node lacks: several files, and more than may be requested ahead.
const BATCHES: u64 = 480;
const BATCH: usize = 100_000;
/// Bytes that a receiver may have requested and not written when it is cut off.
const WINDOW: f64 = 16.0 * MIB;

/// Small logs, so that a node that is away is left behind soon, and a rate at which a transfer takes seconds.
fn setup() -> Setup {
    small()
        .set("snapshots.max-log-bytes=4MiB")
        .set("snapshots.local-snapshot-bytes=2MiB")
        .set("cluster.transfer-rate=8MiB")
}

/// Three nodes, of which the last one is stopped and left behind.
async fn left_behind(cluster: &mut Cluster) {
    create(cluster, 0, "orders").await;
    stop_and_append(cluster, 0..BATCHES).await;
}

/// Stops the last node, and appends more than the log of the leader keeps.
async fn stop_and_append(cluster: &mut Cluster, numbers: std::ops::Range<u64>) {
    cluster.stop(2).await;
    let (_, last) = log_of_leader(cluster, 0, 1).await;
    let orders = stream(cluster, 0, "orders");
    for number in numbers {
        sdk::append(&orders, [noise(number, BATCH)]).await;
    }
    log_begins_after(cluster, 0, 1, last).await;
}

async fn three(links: bool) -> Cluster {
    let cluster = match links {
        true => Cluster::linked(&setup()),
        false => Cluster::empty(&setup()),
    };
    cluster.with_three().await
}

/// What a node fetches of partition 1, as another one shows it.
async fn fetching(cluster: &Cluster, as_of: usize) -> Option<Value> {
    let view = cluster.view(as_of).await.ok()?;
    let replicas = view["partitions"][1]["replicas"].as_array()?;
    let of = replicas.iter().find(|it| it["name"] == "n2")?;
    of["fetching"].is_object().then(|| of["fetching"].clone())
}

/// Waits until so many bytes have come. Returns what is shown then, and how many bytes there are in all.
async fn fetched(cluster: &Cluster, as_of: usize, bytes: f64) -> (Value, f64) {
    eventually("part of the snapshot has come", async || {
        let fetching = fetching(cluster, as_of).await?;
        let total = fetching["bytes_total"].as_f64()?;
        (fetching["bytes_done"].as_f64()? >= bytes).then_some((fetching, total))
    })
    .await
}

async fn metric(http: &Http, name: &str) -> f64 {
    let metrics = http.get("/metrics").send().await.expect(200).text();
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

async fn sent(cluster: &Cluster, nodes: &[usize]) -> f64 {
    let mut all = 0.0;
    for at in nodes {
        let http = cluster.server(*at).http1();
        all += metric(&http, "esker_raft_snapshot_bytes_sent_total").await;
    }
    all
}

async fn received(cluster: &Cluster) -> f64 {
    let http = cluster.server(2).http1();
    metric(
        &http,
        "esker_raft_snapshot_bytes_received_total{group=\"1\"}",
    )
    .await
}

/// The node has what the others have.
async fn is_equal(cluster: &Cluster) {
    caught_up(cluster, 0).await;
    let digest = async |at: usize| {
        let orders = stream(cluster, at, "orders");
        sdk::bodies(&sdk::read_all(&orders).await).concat().len()
    };
    cluster.lead(1, 2).await;
    let read = digest(2).await;
    assert_eq!(read, BATCHES as usize * BATCH);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_killed_goes_on_with_what_it_has() {
    let mut cluster = three(false).await;
    left_behind(&mut cluster).await;
    cluster.restart(2).await;
    let (shown, total) = fetched(&cluster, 0, 24.0 * MIB).await;
    assert!(
        shown["bytes_per_second"].as_f64().unwrap() > 0.0,
        "{shown:#}"
    );
    cluster.kill(2);
    cluster.restart(2).await;
    is_equal(&cluster).await;
    let sent = sent(&cluster, &[0, 1]).await;
    assert!(
        sent <= total + WINDOW + 2.0 * MIB,
        "{sent} bytes of {total} were sent"
    );
    assert!(sent >= total / 2.0, "it was a transfer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_is_killed_goes_on_when_it_is_back() {
    let mut cluster = three(false).await;
    left_behind(&mut cluster).await;
    cluster.restart(2).await;
    let (shown, total) = fetched(&cluster, 0, 24.0 * MIB).await;
    let from = shown["from"].clone();
    let view = cluster.view(0).await.unwrap();
    let nodes = view["nodes"].as_array().unwrap();
    let sender = nodes.iter().find(|node| node["node"] == from).unwrap();
    let sender: usize = sender["name"].as_str().unwrap()[1..].parse().unwrap();
    cluster.kill(sender);
    cluster.restart(sender).await;
    is_equal(&cluster).await;
    let received = received(&cluster).await;
    assert!(
        received <= total + WINDOW + 2.0 * MIB,
        "{received} bytes of {total} have come"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_in_mid_transfer_cost_no_second_one() {
    let mut cluster = three(true).await;
    left_behind(&mut cluster).await;
    cluster.restart(2).await;
    let (_, total) = fetched(&cluster, 0, 24.0 * MIB).await;
    let ways = [(0, 2), (1, 2), (2, 0), (2, 1)];
    cluster.links().cut(ways);
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.links().heal();
    is_equal(&cluster).await;
    let received = received(&cluster).await;
    assert!(
        received <= total + WINDOW + 2.0 * MIB,
        "{received} bytes of {total} have come"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_a_node_has_are_not_sent_again() {
    let mut cluster = three(false).await;
    left_behind(&mut cluster).await;
    let sender = cluster.leader_of(1, 0).await;
    cluster.restart(2).await;
    is_equal(&cluster).await;
    let first = sent(&cluster, &[0, 1]).await;
    assert!(
        first >= 40.0 * MIB,
        "{first} bytes were sent of a whole snapshot"
    );
    // It is left behind again, by little. The files of another node have the same records, and are others.
    cluster.lead(1, sender).await;
    stop_and_append(&mut cluster, 0..100).await;
    cluster.restart(2).await;
    caught_up(&cluster, 0).await;
    let second = sent(&cluster, &[0, 1]).await - first;
    println!("{first} bytes the first time, {second} the second time");
    assert!(second > 0.0, "the log reached back to it");
    assert!(
        second < first / 2.0,
        "{second} bytes were sent of files that it has, mostly"
    );
}

/// The data directory of the node that is left behind is on a small disk.
async fn on_a_small_disk(data_dir: &Path) -> Cluster {
    let mut cluster = Cluster::empty(&setup());
    for _ in 0..2 {
        cluster.add(|setup| setup).await;
    }
    cluster.add_on(data_dir, |setup| setup).await;
    cluster.voting().await;
    // Another leader would send its own files, from the beginning.
    cluster.settle_leaders().await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_a_transfer_waits_and_goes_on_by_itself_when_there_is_space() {
    let Some(disk) = SmallDisk::mount(256) else {
        return;
    };
    let mut cluster = on_a_small_disk(&disk.path("data")).await;
    left_behind(&mut cluster).await;
    cluster.restart(2).await;
    let (_, total) = fetched(&cluster, 0, 8.0 * MIB).await;
    disk.fill_up();
    let http = cluster.server(2).http1();
    eventually("the node says that it waits", async || {
        let status = http.get("/esker/v1/status").try_send().await.ok()?.json();
        let problems = status["problems"].as_array()?;
        let waits = problems
            .iter()
            .any(|it| it["code"] == "replica_waits_for_space");
        let ready = http.get("/health/ready").try_send().await.ok()?;
        let shown = fetching(&cluster, 0).await?;
        (waits && ready.status == 503 && shown["waits_for_space"] == true).then_some(())
    })
    .await;
    // The other nodes, and the other partitions, go on.
    let basin = cluster.client(0).basin(sdk::basin_name("test-basin"));
    sdk::stream(&basin, "others").await;
    let writer = Writer::start(&cluster, "others", 1);
    writer.goes_on(50).await;
    writer.finish().await;
    disk.clear();
    is_equal(&cluster).await;
    let received = received(&cluster).await;
    assert!(
        received <= total + WINDOW + 2.0 * MIB,
        "{received} bytes of {total} have come"
    );
    eventually("the node is ready again", async || {
        let ready = http.get("/health/ready").try_send().await.ok()?;
        (ready.status == 200).then_some(())
    })
    .await;
}
