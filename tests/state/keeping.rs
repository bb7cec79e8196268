//! What the store keeps of its own accord: archived snapshots, and snapshots again after they failed.

use std::fs;

use crate::client::{Read, State, key};
use crate::damage::wreck;
use crate::support::{Setup, eventually};

#[tokio::test]
async fn an_archived_snapshot_makes_the_store_anew_where_the_disk_has_none() {
    let backups = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}", backups.path().display());
    let setup = || {
        Setup::default()
            .set(&destination)
            .set("state.snapshot-interval=0")
    };
    let state = State::of(setup().start_fresh().await);
    for n in 1..=4 {
        state.put(key("a"), &format!("{{\"n\":{n}}}")).await;
    }
    assert_eq!(state.snapshot().await, 4);
    eventually("it is archived", async || {
        let listed = state.snapshots().await;
        listed[0].archived.then_some(())
    })
    .await;
    state.put(key("a"), "{\"n\":5}").await;
    let mut server = state.server;
    server.stop().await;
    wreck(server.data_dir());
    fs::remove_dir_all(server.data_dir().join("snapshots")).unwrap();
    server.restart(&setup()).await;
    let log = server.log().join("\n");
    assert!(log.contains("Loading snapshot: snapshot-4.json"), "{log}");
    assert!(log.contains("Replaying 1 events since snapshot"), "{log}");
    let state = State::of(server);
    assert_eq!(state.get(key("a")).await, Read::of("{\"n\":5}", 5, 5));
}

#[tokio::test]
async fn a_snapshot_that_fails_is_reported_and_tried_again_and_commits_go_on() {
    let state = State::with(&["state.snapshot-interval=3"]).await;
    let snapshots = state.server.data_dir().join("snapshots");
    fs::remove_dir_all(&snapshots).unwrap();
    // Nothing can be written into a file that stands where the directory should.
    fs::write(&snapshots, "in the way").unwrap();
    for n in 1..=5 {
        assert_eq!(state.put(key("a"), "{}").await, n);
    }
    state
        .server
        .logged("no snapshot of the state store was written")
        .await;
    assert_eq!(state.put(key("a"), "{}").await, 6);
    fs::remove_file(&snapshots).unwrap();
    eventually("it is written after all", async || {
        snapshots.join("snapshot-6.json").exists().then_some(())
    })
    .await;
    assert_eq!(state.verify().await.snapshot_commit_ts, 6);
}
