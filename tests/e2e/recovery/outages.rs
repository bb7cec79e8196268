//! A repository that cannot be reached, is slow or fails: appends do not wait for it.

use std::time::{Duration, Instant};

use testkit_s3::Fault;

use super::history::{caught_up, eager};
use super::target::{Kind, Node};
use crate::support::{SOON, Server, sdk};

/// No append takes this long, whatever the repository does: one that waited for a silent repository would
/// wait until the request to it times out.
const MAX_APPEND_TIME: Duration = Duration::from_secs(55);
/// Half of the appends take less than this, which is the time of a few requests to a slow repository.
const USUAL: Duration = Duration::from_secs(1);

/// Appends for some time, and until a condition holds. Returns the number of appends.
async fn append_for(
    server: &Server,
    stream: &str,
    time: Duration,
    mut until: impl FnMut() -> bool,
) -> usize {
    let stream = super::contents::stream(&server.sdk(), stream);
    let began = Instant::now();
    let mut took = Vec::new();
    while began.elapsed() < time || took.len() < 20 || !until() {
        assert!(began.elapsed() < SOON, "not within {SOON:?}");
        let asked = Instant::now();
        sdk::append(&stream, ["x".repeat(200)]).await;
        took.push(asked.elapsed());
    }
    took.sort_unstable();
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    assert!(longest < MAX_APPEND_TIME, "an append took {longest:?}");
    assert!(median < USUAL, "half of the appends took {median:?}");
    took.len()
}

#[tokio::test]
async fn a_node_that_starts_without_its_repository_serves_and_catches_up_when_it_is_back() {
    let node = Node::new(Kind::S3, eager()).await;
    node.target.s3().fail(Fault::Disconnect);
    let new = node.setup.clone().bootstrap("new");
    let mut server = new.start(&node.data()).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let time = Duration::from_millis(500);
    let mut count = append_for(&server, "test-basin/orders", time, || true).await;
    // The same holds after a restart.
    server.kill();
    server.restart(&node.setup).await;
    count += append_for(&server, "test-basin/orders", time, || true).await;
    assert!(node.target.keys().is_empty());
    node.target.s3().heal();
    caught_up(&server, &node.target).await;
    let stream = super::contents::stream(&server.sdk(), "test-basin/orders");
    assert_eq!(super::contents::records(&stream).await.len(), count);
}

async fn appends_go_on(fault: Fault, comes_back: bool) {
    let node = Node::new(Kind::S3, eager()).await;
    let server = node.setup.start(&node.data()).await;
    node.target.roots().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    node.target.s3().fail(fault);
    let before = node.target.s3().total();
    let time = Duration::from_millis(2500);
    let is_asked = || node.target.s3().total() > before;
    append_for(&server, "test-basin/orders", time, is_asked).await;
    if comes_back {
        caught_up(&server, &node.target).await;
    }
}

#[tokio::test]
async fn a_slow_repository_keeps_no_append_waiting_and_has_everything_in_the_end() {
    appends_go_on(Fault::Late(Duration::from_millis(100)), true).await;
}

#[tokio::test]
async fn a_repository_that_fails_half_the_time_keeps_no_append_waiting_and_has_everything_in_the_end()
 {
    appends_go_on(Fault::Overloaded, true).await;
}

#[tokio::test]
async fn a_silent_repository_keeps_no_append_waiting() {
    appends_go_on(Fault::Silence, false).await;
}
