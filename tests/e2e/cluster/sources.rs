//! Where a node that lacks something gets it: from the log of another node, from a snapshot of another one
//! ([`transfers`](super::transfers)), or from the repository.

use std::time::Duration;

use super::writer::{caught_up, create, stream};
use crate::small_disk::{noise, small};
use crate::support::{Cluster, Setup, eventually, sdk};

async fn sent(cluster: &Cluster) -> f64 {
    let mut all = 0.0;
    for at in cluster.all() {
        let http = cluster.server(at).http1();
        let metrics = http.get("/metrics").send().await.expect(200).text();
        let mut lines = metrics.lines();
        let line = lines.find(|line| line.starts_with("esker_raft_snapshot_bytes_sent_total"));
        let value = line.map_or("0", |line| line.rsplit(' ').next().unwrap());
        all += value.parse::<f64>().unwrap();
    }
    all
}

async fn append(cluster: &Cluster, at: usize, numbers: std::ops::Range<u64>) {
    let orders = stream(cluster, at, "orders");
    for number in numbers {
        sdk::append(&orders, [noise(number, 100_000)]).await;
    }
}

/// Puts a snapshot of partition 1 into the repository, by way of the node that leads it.
async fn put(cluster: &Cluster, leader: usize) {
    let http = cluster.server(leader).http1();
    eventually("a snapshot is put", async || {
        let put = http.post("/esker/v1/partitions/1/snapshots");
        let answer = put.try_send().await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
}

/// A node leads the partition and serves all of it.
async fn serves(cluster: &Cluster, at: usize, records: u64) {
    cluster.lead(1, at).await;
    let orders = stream(cluster, at, "orders");
    let read = sdk::bodies(&sdk::read_all(&orders).await);
    let expected: Vec<String> = (0..records).map(|number| noise(number, 100_000)).collect();
    assert!(read == expected, "{} records of {records}", read.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_for_a_moment_gets_entries_alone() {
    let setup = Setup::default().partitions(1);
    let mut cluster = Cluster::start(&setup).await;
    create(&cluster, 0, "orders").await;
    append(&cluster, 0, 0..10).await;
    caught_up(&cluster, 0).await;
    let before = sent(&cluster).await;
    cluster.stop(2).await;
    append(&cluster, 0, 10..40).await;
    cluster.restart(2).await;
    caught_up(&cluster, 0).await;
    assert_eq!(sent(&cluster).await, before, "bytes of snapshots were sent");
    serves(&cluster, 2, 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_while_snapshots_were_put_gets_entries_alone() {
    let repository = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}", repository.path().display());
    // By default only the newest one is retained.
    let setup = Setup::default().partitions(1).set(&destination);
    let mut cluster = Cluster::start(&setup).await;
    create(&cluster, 0, "orders").await;
    append(&cluster, 0, 0..10).await;
    caught_up(&cluster, 0).await;
    let before = sent(&cluster).await;
    cluster.stop(2).await;
    let mut records = 10;
    // The second leader has never heard what the node has that is away.
    for leader in [0, 1] {
        cluster.lead(1, leader).await;
        append(&cluster, leader, records..records + 15).await;
        records += 15;
        put(&cluster, leader).await;
        // Longer than the node counts as one that answers: two election timeouts.
        tokio::time::sleep(Duration::from_secs(3)).await;
        eventually("what is kept for it is shown", async || {
            let view = cluster.view(leader).await.ok()?;
            let kept = &view["partitions"][1]["members"]["kept_for_absent"];
            let mut nodes = view["nodes"].as_array()?.iter();
            let away = nodes.find(|it| it["name"] == "n2")?["node"].clone();
            let is_for_it = *kept["nodes"].as_array()? == [away];
            (is_for_it && kept["entries"].as_u64()? > 0).then_some(())
        })
        .await;
    }
    cluster.restart(2).await;
    caught_up(&cluster, 0).await;
    assert_eq!(sent(&cluster).await, before, "bytes of snapshots were sent");
    serves(&cluster, 2, records).await;
    eventually("nothing is kept any more", async || {
        let view = cluster.view(0).await.ok()?;
        let members = view["partitions"][1]["members"].as_object()?;
        (!members.contains_key("kept_for_absent")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_gets_what_the_repository_has_from_there_and_the_rest_from_the_log() {
    let repository = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}", repository.path().display());
    let mut cluster = Cluster::start(&small().set(&destination)).await;
    create(&cluster, 0, "orders").await;
    append(&cluster, 0, 0..120).await;
    for partition in [0, 1] {
        let http = cluster.server(0).http1();
        let path = format!("/esker/v1/partitions/{partition}/snapshots");
        eventually("a snapshot is put", async || {
            let answer = http.post(&path).try_send().await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
    }
    append(&cluster, 1, 120..140).await;
    let before = sent(&cluster).await;
    let new = cluster.add(|setup| setup).await;
    cluster.voting().await;
    caught_up(&cluster, 0).await;
    let log = cluster.server(new).log().join("\n");
    assert!(log.contains("Loading snapshot from"), "{log}");
    assert_eq!(sent(&cluster).await, before, "bytes of snapshots were sent");
    // An entry may be applied while they answer.
    eventually("all replicas have applied the same", async || {
        let view = cluster.view(new).await.ok()?;
        let replicas = view["partitions"][1]["replicas"].as_array()?;
        let applied: Vec<_> = replicas.iter().map(|it| it["applied"].clone()).collect();
        let are_equal = applied.windows(2).all(|two| two[0] == two[1]);
        (applied.len() == 4 && are_equal).then_some(())
    })
    .await;

    // It takes the place of another one, and serves everything.
    for partition in [0, 1] {
        cluster.lead(partition, 0).await;
    }
    eventually("the node is removed", async || {
        let body = serde_json::json!({});
        let removed = cluster.change(0, "nodes/n2/remove", &body).await;
        (removed.status == 200).then_some(())
    })
    .await;
    eventually("the new node leads", async || {
        let to = serde_json::json!({"to": format!("n{new}")});
        let path = "partitions/1/leader";
        let answer = cluster.change(0, path, &to).await;
        (answer.status == 200).then_some(())
    })
    .await;
    let orders = stream(&cluster, new, "orders");
    let read = sdk::bodies(&sdk::read_all(&orders).await);
    assert_eq!(read.len(), 140);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_joins_although_the_repository_cannot_be_read() {
    let repository = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}", repository.path().display());
    let mut cluster = Cluster::start(&small().set(&destination)).await;
    create(&cluster, 0, "orders").await;
    append(&cluster, 0, 0..120).await;
    let elsewhere = repository.path().join("elsewhere");
    let other = format!("snapshots.destination={}", elsewhere.display());
    // What is there is no snapshot.
    let root = elsewhere.join("1");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("latest.json"), "{").unwrap();
    let new = cluster.add(|setup| setup.set(&other)).await;
    cluster.voting().await;
    caught_up(&cluster, 0).await;
    assert!(sent(&cluster).await > 0.0, "another node has sent it");
    eventually("all replicas are shown", async || {
        let view = cluster.view(new).await.ok()?;
        let replicas = view["partitions"][1]["replicas"].as_array()?;
        (replicas.len() == 4).then_some(())
    })
    .await;
}
