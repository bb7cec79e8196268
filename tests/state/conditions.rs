//! Compare-and-set.

use esker_proto::state::v1::{CommitRequest, CommitResponse, Expectation, VersionMismatch};
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::pb;

use crate::client::{Read, State, assert_refused, key, object};
use crate::support::soon;

async fn commit(
    state: &State,
    txn: &str,
    expectations: &[(&str, u64)],
) -> Result<CommitResponse, Status> {
    let expectations = expectations.iter().map(|(key, version)| Expectation {
        namespace: "default".into(),
        agent_id: "a".into(),
        key: (*key).into(),
        version: *version,
    });
    let request = CommitRequest {
        txn_id: txn.into(),
        expectations: expectations.collect(),
    };
    Ok(state.esker.clone().commit(request).await?.into_inner())
}

/// A transaction that writes `x` if it has a version.
async fn set(state: &State, json: &str, expected: u64) -> Result<CommitResponse, Status> {
    let txn = state.begin().await;
    let value = Some(object(json));
    state.stage(&txn, key("x"), value, Some(expected)).await?;
    commit(state, &txn, &[]).await
}

#[tokio::test]
async fn a_write_happens_if_the_version_is_the_expected_one() {
    let state = State::fresh().await;
    let done = set(&state, r#"{"n":1}"#, 0).await.unwrap();
    assert_eq!((done.commit_ts, done.versions), (1, vec![1]));
    let done = set(&state, r#"{"n":2}"#, 1).await.unwrap();
    assert_eq!((done.commit_ts, done.versions), (2, vec![2]));
    assert_eq!(state.get(key("x")).await, Read::of(r#"{"n":2}"#, 2, 2));
}

#[tokio::test]
async fn a_mismatch_is_aborted_says_both_versions_and_nothing_happened() {
    let state = State::fresh().await;
    state.put(key("x"), r#"{"n":1}"#).await;
    state.put(key("x"), r#"{"n":2}"#).await;
    let txn = state.begin().await;
    state.write(&txn, key("y"), "{}").await.unwrap();
    let value = Some(object("{}"));
    state.stage(&txn, key("x"), value, Some(1)).await.unwrap();
    let status = commit(&state, &txn, &[]).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("version 2, not 1"), "{status:?}");
    let sent = pb::Status::decode(status.details()).unwrap();
    let detail = sent
        .details
        .iter()
        .find(|it| it.type_url == "type.googleapis.com/esker.state.v1.VersionMismatch");
    let detail = VersionMismatch::decode(detail.unwrap().value.as_slice()).unwrap();
    assert_eq!(
        (detail.key.as_str(), detail.expected, detail.actual),
        ("x", 1, 2)
    );
    assert_eq!(state.get(key("y")).await, Read::none());
    assert_eq!(state.replay_all().await.len(), 2);
    // The transaction is gone.
    assert_refused(
        commit(&state, &txn, &[]).await,
        Code::NotFound,
        "transaction_not_found",
    );
}

#[tokio::test]
async fn a_key_that_must_not_exist_may_have_been_deleted() {
    let state = State::fresh().await;
    state.put(key("x"), "{}").await;
    assert_refused(
        set(&state, "{}", 0).await,
        Code::Aborted,
        "version_mismatch",
    );
    state.remove(key("x")).await;
    let done = set(&state, r#"{"n":3}"#, 0).await.unwrap();
    assert_eq!(done.versions, [3]);
}

#[tokio::test]
async fn the_version_of_a_deletion_can_be_expected() {
    let state = State::fresh().await;
    state.put(key("x"), "{}").await;
    state.remove(key("x")).await;
    let read = state.get(key("x")).await;
    assert_eq!(read, Read::deleted(2, 2));
    let done = set(&state, "{}", read.version).await.unwrap();
    assert_eq!(done.versions, [3]);
}

#[tokio::test]
async fn a_commit_may_expect_versions_of_keys_that_it_does_not_write() {
    let state = State::fresh().await;
    state.put(key("seen"), "{}").await;
    let txn = state.begin().await;
    state.write(&txn, key("x"), "{}").await.unwrap();
    commit(&state, &txn, &[("seen", 1), ("absent", 0)])
        .await
        .unwrap();
    let txn = state.begin().await;
    state.write(&txn, key("x"), "{}").await.unwrap();
    state.put(key("seen"), "{}").await;
    assert_refused(
        commit(&state, &txn, &[("seen", 1)]).await,
        Code::Aborted,
        "version_mismatch",
    );
    assert_eq!(state.get(key("x")).await.version, 1);
}

#[tokio::test]
async fn a_deletion_may_expect_a_version_too() {
    let state = State::fresh().await;
    state.put(key("x"), "{}").await;
    let txn = state.begin().await;
    state.stage(&txn, key("x"), None, Some(7)).await.unwrap();
    assert_refused(
        commit(&state, &txn, &[]).await,
        Code::Aborted,
        "version_mismatch",
    );
    let txn = state.begin().await;
    state.stage(&txn, key("x"), None, Some(1)).await.unwrap();
    commit(&state, &txn, &[]).await.unwrap();
    assert_eq!(state.get(key("x")).await, Read::deleted(2, 2));
}

#[tokio::test]
async fn sixteen_clients_count_without_losing_one() {
    const CLIENTS: u64 = 16;
    const EACH: u64 = 10;
    let state = State::fresh().await;
    let count = async || {
        for _ in 0..EACH {
            loop {
                let read = state.get(key("x")).await;
                let n: u64 = match &read.value {
                    None => 0,
                    Some(json) => json[5..json.len() - 1].parse().unwrap(),
                };
                let next = format!("{{\"n\":{}}}", n + 1);
                match set(&state, &next, read.version).await {
                    Ok(_) => break,
                    Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
                }
            }
        }
    };
    let clients = (0..CLIENTS).map(|_| count());
    soon("160 increments", futures::future::join_all(clients)).await;
    let read = state.get(key("x")).await;
    let total = CLIENTS * EACH;
    assert_eq!(read, Read::of(&format!("{{\"n\":{total}}}"), total, total));
}
