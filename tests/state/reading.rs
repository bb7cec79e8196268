//! Versions, deletions, reads as of a commit.

use esker_proto::state::v1::{GetStateRequest, ScanRequest, WatchRequest, get_state_request::At};

use crate::client::{Read, State, collect, json, key};
use crate::support::{Setup, soon};

#[tokio::test]
async fn every_version_can_be_read_and_what_never_was_is_no_error() {
    let state = State::fresh().await;
    for n in 1..=3 {
        state.put(key("x"), &format!("{{\"n\":{n}}}")).await;
    }
    assert_eq!(state.get(key("x")).await, Read::of(r#"{"n":3}"#, 3, 3));
    for n in 1..=3 {
        let read = state.get_version(key("x"), n).await;
        assert_eq!(read, Read::of(&format!("{{\"n\":{n}}}"), n, n));
    }
    for version in [0, 4, u64::MAX] {
        assert_eq!(state.get_version(key("x"), version).await, Read::none());
    }
    assert_eq!(state.get(key("never")).await, Read::none());
    assert_eq!(state.get_version(key("never"), 1).await, Read::none());
}

#[tokio::test]
async fn a_deleted_key_is_left_out_and_keeps_counting() {
    let state = State::fresh().await;
    state.put(key("x"), r#"{"n":1}"#).await;
    state.put(key("y"), "{}").await;
    assert_eq!(state.remove(key("x")).await, 3);
    assert_eq!(state.get(key("x")).await, Read::deleted(2, 3));
    assert_eq!(state.keys("default", "a").await, ["y"]);
    assert_eq!(state.scan("a", "").await.len(), 1);
    assert_eq!(
        state.get_version(key("x"), 1).await,
        Read::of(r#"{"n":1}"#, 1, 1)
    );
    assert_eq!(state.get_version(key("x"), 2).await, Read::deleted(2, 3));
    state.put(key("x"), r#"{"n":2}"#).await;
    assert_eq!(state.get(key("x")).await, Read::of(r#"{"n":2}"#, 3, 4));
}

#[tokio::test]
async fn deleting_what_never_was_is_a_commit_like_any_other() {
    let state = State::fresh().await;
    assert_eq!(state.remove(key("x")).await, 1);
    assert!(state.get(key("x")).await.value.is_none());
    assert!(state.keys("default", "a").await.is_empty());
    assert_eq!(state.put(key("x"), "{}").await, 2);
}

#[tokio::test]
async fn a_key_can_be_read_as_of_any_commit() {
    let state = State::fresh().await;
    state.put(key("other"), "{}").await;
    state.put(key("x"), r#"{"n":1}"#).await;
    state.put(key("other"), "{}").await;
    state.remove(key("x")).await;
    state.put(key("x"), r#"{"n":2}"#).await;
    for (commit_ts, read) in [
        (1, Read::none()),
        (2, Read::of(r#"{"n":1}"#, 1, 2)),
        (3, Read::of(r#"{"n":1}"#, 1, 2)),
        (4, Read::deleted(2, 4)),
        (5, Read::of(r#"{"n":2}"#, 3, 5)),
    ] {
        assert_eq!(state.get_at(key("x"), commit_ts).await.unwrap(), read);
        let request = GetStateRequest {
            namespace: "default".into(),
            agent_id: "a".into(),
            key: "x".into(),
            at: Some(At::CommitTs(commit_ts)),
        };
        let answer = state.esker.clone().get_state(request).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!(answer.value.as_ref().map(json), read.value);
        assert_eq!(
            (answer.version, answer.commit_ts),
            (read.version, read.commit_ts)
        );
    }
}

#[tokio::test]
async fn a_scan_goes_by_pages_that_are_all_of_the_same_moment() {
    let state = State::fresh().await;
    let txn = state.begin().await;
    for n in 0..25 {
        let name = format!("k{n:02}");
        state
            .write(&txn, key(&name), r#"{"old":true}"#)
            .await
            .unwrap();
    }
    state.commit(&txn).await.unwrap();
    let mut request = ScanRequest {
        namespace: "default".into(),
        agent_id: "a".into(),
        prefix: "k".into(),
        page_size: 10,
        ..ScanRequest::default()
    };
    let mut pages = Vec::new();
    loop {
        let messages = state.esker.clone().scan(request.clone()).await.unwrap();
        let messages = collect(messages.into_inner()).await.unwrap();
        let next = messages.last().unwrap().next_page_token.clone();
        let entries = messages.into_iter().flat_map(|it| it.entries);
        pages.push(entries.collect::<Vec<_>>());
        if next.is_empty() {
            break;
        }
        request.page_token = next;
        // A key that is added meanwhile does not belong to that moment.
        state.put(key("k00x"), "{}").await;
        state.put(key("k24"), r#"{"old":false}"#).await;
    }
    let sizes: Vec<_> = pages.iter().map(Vec::len).collect();
    assert_eq!(sizes, [10, 10, 5]);
    let all: Vec<_> = pages.concat();
    let expected: Vec<_> = (0..25).map(|n| format!("k{n:02}")).collect();
    let found: Vec<_> = all.iter().map(|it| it.key.clone()).collect();
    assert_eq!(found, expected);
    for entry in &all {
        assert_eq!(json(entry.value.as_ref().unwrap()), r#"{"old":true}"#);
    }
}

#[tokio::test]
async fn a_scan_may_be_of_names_alone_and_of_the_past() {
    let state = State::fresh().await;
    state.put(key("x"), r#"{"n":1}"#).await;
    state.put(key("y"), r#"{"n":1}"#).await;
    state.remove(key("x")).await;
    let scan = async |commit_ts: Option<u64>, keys_only: bool| {
        let request = ScanRequest {
            namespace: "default".into(),
            agent_id: "a".into(),
            commit_ts,
            keys_only,
            ..ScanRequest::default()
        };
        let messages = state.esker.clone().scan(request).await.unwrap();
        let messages = collect(messages.into_inner()).await.unwrap();
        let entries = messages.into_iter().flat_map(|it| it.entries);
        let entries = entries.map(|it| (it.key, it.value.map(|it| json(&it))));
        entries.collect::<Vec<_>>()
    };
    let one = Some(r#"{"n":1}"#.to_owned());
    assert_eq!(scan(None, false).await, [("y".into(), one.clone())]);
    assert_eq!(scan(Some(1), false).await, [("x".into(), one.clone())]);
    assert_eq!(
        scan(Some(2), true).await,
        [("x".into(), None), ("y".into(), None)]
    );
}

#[tokio::test]
async fn the_first_page_and_a_watch_after_a_start_wait_for_no_snapshot_on_the_disk() {
    let mut state = State::fresh().await;
    for name in ["x", "y", "z"] {
        state.put(key(name), "{}").await;
    }
    state.snapshot().await;
    let mut server = state.server;
    server.kill();
    // Reading the snapshot's checksum blocks, because its file is a pipe without a writer.
    let sums = server.data_dir().join("snapshots/.sums");
    let sum = std::fs::read_dir(sums).unwrap().next().unwrap().unwrap();
    std::fs::remove_file(sum.path()).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(sum.path())
        .status();
    assert!(made.unwrap().success());
    server.restart(&Setup::default()).await;
    state = State::of(server);

    let page = ScanRequest {
        namespace: "default".into(),
        agent_id: "a".into(),
        page_size: 2,
        ..ScanRequest::default()
    };
    let page = soon("a page", state.esker.clone().scan(page)).await;
    let page = collect(page.unwrap().into_inner()).await.unwrap();
    let keys = page.iter().flat_map(|it| &it.entries);
    assert_eq!(keys.map(|it| &it.key).collect::<Vec<_>>(), ["x", "y"]);

    let watch = soon(
        "a watch",
        state.esker.clone().watch(WatchRequest::default()),
    )
    .await;
    let mut watch = watch.unwrap().into_inner();
    let commit_ts = state.put(key("w"), "{}").await;
    let event = soon("an event", watch.message()).await.unwrap().unwrap();
    assert_eq!(event.commit_ts, commit_ts);
}
