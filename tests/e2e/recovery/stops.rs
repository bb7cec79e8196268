//! A stop while the repository does not answer, and the status of idle partitions after a restart.

use std::time::{Duration, Instant};

use testkit_s3::Fault;

use super::history::eager;
use super::target::{Kind, Node};
use crate::support::{Server, eventually, sdk};

/// How long the server waits for an answer of the repository.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_stop_keeps_to_its_grace_although_the_repository_hangs_and_names_what_it_gave_up() {
    let setup = eager()
        .set("shutdown-grace=1s")
        .set("snapshots.snapshot-interval=1h")
        .set("snapshots.snapshot-on-stop=true");
    let node = Node::new(Kind::S3, setup).await;
    let mut server = node.setup.start(&node.data()).await;
    node.target.roots().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["x"]).await;
    node.target.s3().fail(Fault::Silence);
    let began = Instant::now();
    server.stop().await;
    let took = began.elapsed();
    // Without the grace period, only this ends the wait.
    assert!(took < REQUEST_TIMEOUT, "{took:?}");
    let log = server.log();
    let named = log
        .iter()
        .any(|line| line.contains("the grace period ended before a snapshot of the partition"));
    assert!(named, "{log:#?}");
}

/// Entries at risk over all partitions, once snapshots of all are known.
async fn at_risk(server: &Server) -> u64 {
    eventually("the repository is known", async || {
        let status = server.http1().get("/esker/v1/status").send().await;
        let status = (status.status == 200).then(|| status.json())?;
        let partitions = status["partitions"].as_array()?;
        let known = partitions.iter().all(|one| !one["newest"].is_null());
        let at_risk = |one: &serde_json::Value| one["entries_at_risk"].as_u64();
        known.then(|| partitions.iter().filter_map(at_risk).sum())
    })
    .await
}

#[tokio::test]
async fn partitions_that_are_idle_show_nothing_at_risk_after_restarts() {
    let setup = eager().set("snapshots.snapshot-interval=1h");
    let node = Node::new(Kind::Directory, setup).await;
    let mut server = node.setup.start(&node.data()).await;
    node.target.roots().await;
    for _ in 0..2 {
        server.kill();
        server.restart(&node.setup).await;
        assert_eq!(at_risk(&server).await, 0);
    }
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::append(&sdk::stream(&basin, "orders").await, ["x"]).await;
    eventually("what was appended is at risk", async || {
        (at_risk(&server).await > 0).then_some(())
    })
    .await;
}
