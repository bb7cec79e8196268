//! The state after a stop and after a kill.

use tonic::Code;

use crate::client::{Read, State, assert_refused, key};

#[tokio::test]
async fn a_kill_loses_nothing_that_was_acknowledged_and_reuses_no_number() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut expected = 0;
    for round in 0..3 {
        let mut state = State::on(&data).await;
        if expected > 0 {
            let read = Read::of(&format!("{{\"n\":{expected}}}"), expected, expected);
            assert_eq!(state.get(key("x")).await, read, "round {round}");
            let commits: Vec<_> = state
                .replay("a", None, None)
                .await
                .iter()
                .map(|it| it.commit_ts)
                .collect();
            assert_eq!(commits, (1..=expected).collect::<Vec<_>>());
        }
        for _ in 0..5 {
            expected += 1;
            let commit_ts = state.put(key("x"), &format!("{{\"n\":{expected}}}")).await;
            assert_eq!(commit_ts, expected);
        }
        state.server.kill();
    }
}

#[tokio::test]
async fn a_deleted_key_goes_on_counting_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut state = State::on(&data).await;
    state.put(key("x"), "{}").await;
    state.remove(key("x")).await;
    state.server.kill();
    let state = State::on(&data).await;
    assert_eq!(state.get(key("x")).await, Read::deleted(2, 2));
    state.put(key("x"), "{}").await;
    assert_eq!(state.get(key("x")).await, Read::of("{}", 3, 3));
}

#[tokio::test]
async fn an_open_transaction_does_not_survive_a_restart_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut state = State::on(&data).await;
    let txn = state.begin().await;
    state.write(&txn, key("x"), "{}").await.unwrap();
    state.server.kill();
    let state = State::on(&data).await;
    let status = state.commit(&txn).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::Aborted | Code::NotFound),
        "{status:?}"
    );
    assert_eq!(state.get(key("x")).await, Read::none());
}

#[tokio::test]
async fn after_a_graceful_stop_everything_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut state = State::on(&data).await;
    state.put(key("x"), r#"{"n":1}"#).await;
    state.server.signal(rustix::process::Signal::TERM);
    assert!(state.server.wait().await.success());
    let state = State::on(&data).await;
    assert_eq!(state.get(key("x")).await, Read::of(r#"{"n":1}"#, 1, 1));
    assert_refused(
        state.commit("6fa459ea-ee8a-4ca4-894e-db77e160355e").await,
        Code::NotFound,
        "transaction_not_found",
    );
}

#[tokio::test]
async fn a_start_reports_what_the_store_was_loaded_from_and_the_commits_that_it_replays() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut state = State::on(&data).await;
    for _ in 0..7 {
        state.put(key("x"), "{}").await;
    }
    // Over several starts: the entries that partitions replay grow with each start, the commits do not.
    for _ in 0..3 {
        state.server.kill();
        state = State::on(&data).await;
        let log = state.server.log().join("\n");
        assert!(log.contains("Loading snapshot: none"), "{log}");
        assert!(log.contains("Replaying 7 events since snapshot"), "{log}");
        let complete = log.lines().find(|l| l.contains("Recovery complete"));
        assert!(complete.unwrap().contains("commit_ts=7 keys=1"), "{log}");
    }
    state.server.signal(rustix::process::Signal::TERM);
    assert!(state.server.wait().await.success());
    let mut state = State::on(&data).await;
    state.put(key("y"), "{}").await;
    state.server.kill();
    let state = State::on(&data).await;
    let log = state.server.log().join("\n");
    let loaded = "Loading snapshot: state store at commit_ts=7 source=database";
    assert!(log.contains(loaded), "{log}");
    assert!(log.contains("Replaying 1 events since snapshot"), "{log}");
}
