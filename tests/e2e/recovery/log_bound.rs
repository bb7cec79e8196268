//! The log is bounded, even while the repository for which it is kept cannot be reached.

use std::path::Path;
use std::time::{Duration, Instant};

use s2_sdk::S2Stream;
use testkit_s3::Fault;

use super::contents::records;
use super::history::eager;
use super::target::{Kind, Node};
use crate::support::{Server, Setup, eventually, sdk};

const MIB: u64 = 1024 * 1024;
const BOUND: u64 = 6 * MIB;
const SEGMENT: u64 = MIB;

fn bounded() -> Setup {
    eager()
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=2MiB")
        .set("log.flush-after=1MiB")
        .set("snapshots.max-log-bytes=6MiB")
        .set("snapshots.local-snapshot-bytes=1MiB")
}

fn log_bytes(data: &Path) -> u64 {
    let files = std::fs::read_dir(data.join("log")).into_iter().flatten();
    let sizes = files.flatten().filter_map(|file| file.metadata().ok());
    sizes.map(|metadata| metadata.len()).sum()
}

/// A stream, through a client that does not repeat refused appends.
async fn stream(server: &Server) -> S2Stream {
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await
}

/// The stream, through a client that repeats appends that were refused because the log was not trimmed in
/// time.
fn persistent(server: &Server) -> S2Stream {
    super::contents::stream(&server.persistent_sdk(), "test-basin/orders")
}

#[tokio::test]
async fn under_trim_anyway_the_log_stays_within_its_bound_while_the_repository_is_out_of_reach() {
    let node = Node::new(Kind::S3, bounded()).await;
    let mut server = node.setup.start(&node.data()).await;
    node.target.roots().await;
    stream(&server).await;
    let stream = persistent(&server);
    node.target.s3().fail(Fault::Disconnect);
    let mut appended = 0;
    let began = Instant::now();
    // Some seconds of work, up to twenty times the log's bound.
    while appended < 20 * BOUND / (100 * 1024) && began.elapsed() < Duration::from_secs(6) {
        sdk::append(&stream, ["x".repeat(100 * 1024)]).await;
        appended += 1;
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    eventually("the log is within its bound", async || {
        (log_bytes(&node.data()) <= BOUND + 2 * SEGMENT).then_some(())
    })
    .await;
    server.kill();
    server.restart(&node.setup).await;
    let stream = super::contents::stream(&server.sdk(), "test-basin/orders");
    assert_eq!(records(&stream).await.len() as u64, appended);
}

#[tokio::test]
async fn under_refuse_appends_appends_are_refused_until_a_snapshot_is_archived() {
    let setup = bounded().set("snapshots.on-log-full=refuse-appends");
    let node = Node::new(Kind::S3, setup).await;
    let mut server = node.setup.start(&node.data()).await;
    node.target.roots().await;
    let stream = stream(&server).await;
    node.target.s3().fail(Fault::Disconnect);
    let mut appended = 0_u64;
    while stream
        .append(sdk::input(["x".repeat(100 * 1024)]))
        .await
        .is_ok()
    {
        appended += 1;
        assert!(appended < 50 * BOUND / (100 * 1024), "never refused");
    }
    // A refused append had no effect, so it is repeated. Unused files may be deleted late.
    eventually("an append is refused", async || {
        let answer = server
            .http1()
            .post("/v1/streams/orders/records")
            .basin("test-basin")
            .json(&serde_json::json!({"records": [{"body": "x"}]}))
            .send()
            .await;
        if answer.status == 200 {
            appended += 1;
            return None;
        }
        answer.refused(429, "rate_limited");
        Some(())
    })
    .await;
    let bytes = log_bytes(&node.data());
    let most = limit(BOUND, SEGMENT, MIB);
    assert!(bytes <= most, "{bytes} bytes, not {most}");
    // Reads continue, and the refusal stays in force after a restart.
    assert_eq!(records(&stream).await.len() as u64, appended);
    server.kill();
    server.restart(&node.setup).await;
    let stream = super::contents::stream(&server.sdk(), "test-basin/orders");
    eventually("refused again", async || {
        match stream.append(sdk::input(["more"])).await {
            Ok(_) => {
                appended += 1;
                None
            }
            Err(_) => Some(()),
        }
    })
    .await;

    node.target.s3().heal();
    eventually("taken again", async || {
        stream.append(sdk::input(["at last"])).await.ok()
    })
    .await;
    appended += 1;
    assert_eq!(records(&stream).await.len() as u64, appended);
}

/// The bound of the log on disk: see ARCHITECTURE.md.
fn limit(most: u64, segment: u64, inflight: u64) -> u64 {
    (most + 2 * segment) * 5 / 4 + most / 2 + inflight
}

/// Bytes of allocated blocks, as `du` counts them.
fn blocks(data: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let files = std::fs::read_dir(data.join("log")).into_iter().flatten();
    let sizes = files.flatten().filter_map(|file| file.metadata().ok());
    sizes.map(|metadata| metadata.blocks() * 512).sum()
}

#[tokio::test]
async fn the_log_stays_within_its_bound_on_disk_over_restarts_that_find_it_full() {
    const MOST: u64 = 4 * MIB;
    let setup = Setup::default()
        .partitions(1)
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=2MiB")
        .set("log.flush-after=1MiB")
        .set("snapshots.max-log-bytes=4MiB");
    let mut server = setup.start_fresh().await;
    stream(&server).await;
    let mut appended = 0_u64;
    for cycle in 0..6 {
        let stream = persistent(&server);
        let mut largest = 0;
        for _ in 0..120 {
            sdk::append(&stream, ["x".repeat(100 * 1024)]).await;
            appended += 1;
            largest = largest.max(blocks(server.data_dir()));
        }
        let limit = limit(MOST, SEGMENT, MIB);
        assert!(
            largest <= limit,
            "cycle {cycle}: {largest} bytes, not {limit}"
        );
        if cycle % 2 == 0 {
            server.kill();
            server.restart(&setup).await;
        } else {
            server.stop().await;
            server.restart(&setup).await;
        }
    }
    let stream = super::contents::stream(&server.sdk(), "test-basin/orders");
    assert_eq!(records(&stream).await.len() as u64, appended);
}

#[tokio::test]
async fn under_refuse_appends_snapshots_go_on_until_appends_are_taken_again() {
    let setup = bounded()
        .set("snapshots.snapshot-interval=1h")
        .set("snapshots.num-retained=3")
        .set("snapshots.on-log-full=refuse-appends");
    let node = Node::new(Kind::S3, setup).await;
    let server = node.setup.start(&node.data()).await;
    node.target.roots().await;
    let basin = sdk::basin(&server.persistent_sdk(), "test-basin").await;
    // Streams in both partitions; all but one of them are idle from here on.
    for number in 0..8 {
        let idle = sdk::stream(&basin, &format!("idle-{number}")).await;
        for _ in 0..4 {
            sdk::append(&idle, ["x".repeat(100 * 1024)]).await;
        }
    }
    sdk::stream(&basin, "orders").await;
    let stream = super::contents::stream(&server.sdk(), "test-basin/orders");
    for cycle in 0..4 {
        node.target.s3().fail(Fault::Disconnect);
        let mut appended = 0_u64;
        while stream
            .append(sdk::input(["x".repeat(100 * 1024)]))
            .await
            .is_ok()
        {
            appended += 1;
            assert!(appended < 50 * BOUND / (100 * 1024), "never refused");
        }
        node.target.s3().heal();
        eventually(&format!("cycle {cycle}: taken again"), async || {
            stream.append(sdk::input(["y"])).await.ok()
        })
        .await;
    }
}
