//! The times at which snapshots are put.

use std::time::Duration;

use super::history::{caught_up, eager, log_ends, quiet, work};
use super::target::{Kind, Node, PARTITIONS, Root};
use crate::support::{Setup, eventually, sdk};

/// The LSN of the newest snapshot of each partition.
fn newest(roots: &[Root]) -> Vec<u64> {
    roots.iter().map(Root::newest).collect()
}

#[tokio::test]
async fn a_partition_with_nothing_new_is_not_snapshotted_again() {
    let node = Node::new(Kind::Directory, eager()).await;
    let server = node.setup.start(&node.data()).await;
    work(&server.sdk(), 1).await;
    caught_up(&server, &node.target).await;
    let covered = newest(&node.target.roots().await);
    // What is no longer retained may still be removed.
    eventually("the roots come to rest", async || {
        let before = node.target.roots().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = node.target.roots().await;
        assert_eq!(newest(&after), covered, "another snapshot of the same");
        let mut pairs = before.iter().zip(&after);
        pairs.all(|(a, b)| a.json == b.json).then_some(())
    })
    .await;
}

#[tokio::test]
async fn no_more_snapshots_are_retained_than_configured() {
    let node = Node::new(Kind::Directory, eager().set("snapshots.num-retained=2")).await;
    let server = node.setup.start(&node.data()).await;
    for phase in 1..=3 {
        work(&server.sdk(), phase).await;
        caught_up(&server, &node.target).await;
    }
    for root in node.target.roots().await {
        assert_eq!(root.retained().len(), 2);
    }
    eventually("the others are deleted", async || {
        let keys = node.target.keys();
        let described = keys.iter().filter(|key| key.ends_with("/metadata.json"));
        (described.count() as u64 == 2 * (PARTITIONS + 1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stop_puts_what_is_new_if_that_is_configured() {
    for (on_stop, covered) in [(true, true), (false, false)] {
        let setup = quiet().set(&format!("snapshots.snapshot-on-stop={on_stop}"));
        let node = Node::new(Kind::Directory, setup).await;
        let mut server = node.setup.start(&node.data()).await;
        node.target.roots().await;
        work(&server.sdk(), 1).await;
        let ends = log_ends(&server).await;
        server.stop().await;
        for (root, end) in node.target.roots().await.iter().zip(ends) {
            assert_eq!(root.newest() >= end, covered, "{root:?}, {end}");
        }
    }
}

/// The interval is short, so that the number of records decides when a snapshot is due.
fn by_records(records: u64) -> Setup {
    let count = format!("snapshots.snapshot-interval-num-records={records}");
    eager().set("snapshots.snapshot-interval=100ms").set(&count)
}

#[tokio::test]
async fn a_number_of_records_is_waited_for_and_then_enough() {
    let node = Node::new(Kind::Directory, by_records(60)).await;
    let server = node.setup.start(&node.data()).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    // The first snapshots, and one of the catalog that these need, do not count records.
    let before = eventually("the first snapshots are put", async || {
        let before = newest(&node.target.roots().await);
        tokio::time::sleep(Duration::from_secs(2)).await;
        (newest(&node.target.roots().await) == before).then_some(before)
    })
    .await;
    for _ in 0..30 {
        sdk::append(&stream, ["x"]).await;
    }
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let after = newest(&node.target.roots().await);
    assert_eq!(after, before, "too early");
    for _ in 0..50 {
        sdk::append(&stream, ["x"]).await;
    }
    eventually("one of the partitions is snapshotted", async || {
        let roots = (0..=PARTITIONS).filter_map(|p| node.target.root(p));
        let mut newest = roots.map(|r| r.newest());
        newest.any(|lsn| lsn >= 60).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_recovery_budget_that_is_exceeded_is_reason_enough() {
    let setup = quiet().set("snapshots.recovery-budget=100ms");
    let node = Node::new(Kind::Directory, setup).await;
    let server = node.setup.start(&node.data()).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    node.target.roots().await;
    let appending = tokio::spawn(async move {
        loop {
            let bodies = (0..100).map(|_| "x".repeat(2000));
            sdk::append(&stream, bodies).await;
        }
    });
    let line = server
        .logged("replay would exceed the recovery budget")
        .await;
    assert!(line.contains("a snapshot was put"), "{line}");
    appending.abort();
}

#[tokio::test]
async fn a_snapshot_of_a_clock_that_was_ahead_is_reported_and_puts_off_nothing() {
    let node = Node::new(Kind::Directory, quiet()).await;
    let mut server = node.setup.start(&node.data()).await;
    node.target.roots().await;
    work(&server.sdk(), 1).await;
    server.stop().await;
    for partition in 0..=PARTITIONS {
        let key = format!("{partition}/latest.json");
        let root = String::from_utf8(node.target.get(&key).unwrap()).unwrap();
        let mut root: serde_json::Value = serde_json::from_str(&root).unwrap();
        root["created_at"] = "2999-01-01T00:00:00Z".into();
        root["retained_snapshots"][0]["created_at"] = "2999-01-01T00:00:00Z".into();
        node.target.replace(&key, root.to_string().into_bytes());
    }
    server.restart(&node.setup).await;
    server
        .logged("the newest snapshot is from the future")
        .await;
    // New content is put at once, although the interval is an hour.
    caught_up(&server, &node.target).await;
    eventually("no snapshot is from the future", async || {
        let status = server.http1().get("/esker/v1/status").send().await.json();
        let problems = status["problems"].as_array()?.clone();
        let of_clock = |p: &serde_json::Value| p["code"] == "snapshot_from_future";
        (!problems.iter().any(of_clock)).then_some(())
    })
    .await;
}
