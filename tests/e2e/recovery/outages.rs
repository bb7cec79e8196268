//! A repository that cannot be reached, is slow or fails: nobody who appends is kept waiting.

use std::time::{Duration, Instant};

use super::past::{caught_up, eager};
use super::place::{Kind, Scene};
use crate::support::s3::Mood;
use crate::support::{Server, sdk};

/// No append takes longer, whatever the repository does: one that waited for it would take longer still.
const LONGEST: Duration = Duration::from_secs(15);
/// Nor do most of them take longer than that; the machine may be busy for a moment.
const MOSTLY: Duration = Duration::from_secs(1);

async fn append_for(server: &Server, stream: &str, time: Duration) -> usize {
    let stream = super::contents::stream(&server.sdk(), stream);
    let began = Instant::now();
    let mut count = 0;
    let mut slow = Vec::new();
    // So many at least that some are not most.
    while began.elapsed() < time || count < 20 {
        let asked = Instant::now();
        sdk::append(&stream, ["x".repeat(200)]).await;
        let took = asked.elapsed();
        assert!(took < LONGEST, "an append took {took:?}");
        count += 1;
        if took >= MOSTLY {
            slow.push(took);
        }
    }
    assert!(slow.len() * 10 <= count, "of {count}: {slow:?}");
    count
}

#[tokio::test]
async fn a_node_that_starts_without_its_repository_serves_and_catches_up_when_it_is_back() {
    let scene = Scene::new(Kind::S3, eager()).await;
    scene.place.s3().be(Mood::Gone);
    let new = scene.setup.clone().bootstrap("new");
    let mut server = new.start(&scene.data()).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let mut count = append_for(&server, "test-basin/orders", Duration::from_millis(500)).await;
    // A restart makes no difference.
    server.kill();
    server.restart(&scene.setup).await;
    count += append_for(&server, "test-basin/orders", Duration::from_millis(500)).await;
    assert!(scene.place.keys().is_empty());
    scene.place.s3().be(Mood::Well);
    caught_up(&server, &scene.place).await;
    let stream = super::contents::stream(&server.sdk(), "test-basin/orders");
    assert_eq!(super::contents::records(&stream).await.len(), count);
}

async fn appends_go_on(mood: Mood, comes_back: bool) {
    let scene = Scene::new(Kind::S3, eager()).await;
    let server = scene.setup.start(&scene.data()).await;
    scene.place.roots().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    scene.place.s3().be(mood);
    let before = scene.place.s3().requests();
    append_for(&server, "test-basin/orders", Duration::from_millis(2500)).await;
    let asked = scene.place.s3().requests() - before;
    assert!(asked > 0, "{mood:?}: nothing was tried");
    if comes_back {
        caught_up(&server, &scene.place).await;
    }
}

#[tokio::test]
async fn a_slow_repository_keeps_no_append_waiting_and_has_everything_in_the_end() {
    appends_go_on(Mood::Slow(Duration::from_millis(100)), true).await;
}

#[tokio::test]
async fn a_repository_that_fails_half_the_time_keeps_no_append_waiting_and_has_everything_in_the_end()
 {
    appends_go_on(Mood::Failing, true).await;
}

#[tokio::test]
async fn a_silent_repository_keeps_no_append_waiting() {
    appends_go_on(Mood::Silent, false).await;
}
