//! What a commit does, all of it or nothing; what ends a transaction.

use std::time::Duration;

use tonic::Code;

use crate::client::{Name, Read, State, assert_refused, key};
use crate::support::{eventually, soon};

#[tokio::test]
async fn what_a_transaction_staged_is_there_at_once_and_not_before() {
    let state = State::fresh().await;
    let txn = state.begin().await;
    state.write(&txn, key("x"), r#"{"n":1}"#).await.unwrap();
    state.write(&txn, key("y"), r#"{"n":2}"#).await.unwrap();
    assert_eq!(state.get(key("x")).await, Read::none());
    assert_eq!(state.commit(&txn).await.unwrap(), 1);
    assert_eq!(state.get(key("x")).await, Read::of(r#"{"n":1}"#, 1, 1));
    assert_eq!(state.get(key("y")).await, Read::of(r#"{"n":2}"#, 1, 1));
}

#[tokio::test]
async fn an_aborted_transaction_leaves_nothing() {
    let state = State::fresh().await;
    let txn = state.begin().await;
    state.write(&txn, key("x"), "{}").await.unwrap();
    state.abort(&txn).await.unwrap();
    assert_refused(
        state.commit(&txn).await,
        Code::NotFound,
        "transaction_not_found",
    );
    assert_eq!(state.get(key("x")).await, Read::none());
    assert!(state.replay_all().await.is_empty());
}

#[tokio::test]
async fn aborting_what_is_not_known_succeeds() {
    let state = State::fresh().await;
    for txn in ["", "never", "6fa459ea-ee8a-4ca4-894e-db77e160355e"] {
        state.abort(txn).await.unwrap();
    }
    let txn = state.begin().await;
    state.commit(&txn).await.unwrap();
    state.abort(&txn).await.unwrap();
}

#[tokio::test]
async fn a_transaction_that_was_committed_or_never_was_is_not_known() {
    let state = State::fresh().await;
    let txn = state.begin().await;
    state.write(&txn, key("x"), "{}").await.unwrap();
    state.commit(&txn).await.unwrap();
    for txn in [txn.as_str(), "never", ""] {
        let refused = [
            state.commit(txn).await.map(|_| ()),
            state.write(txn, key("x"), "{}").await,
            state.delete(txn, key("x")).await,
        ];
        for refused in refused {
            let status = refused.expect_err("there is none");
            assert!(
                matches!(status.code(), Code::NotFound | Code::InvalidArgument),
                "{status:?}"
            );
        }
    }
    assert_eq!(state.replay_all().await.len(), 1);
}

#[tokio::test]
async fn an_expired_transaction_says_so_and_leaves_nothing() {
    let state = State::fresh().await;
    let txn = eventually("a write in time", async || {
        let txn = state.begin_for(Some(50)).await.unwrap();
        let staged = state.write(&txn, key("x"), "{}").await;
        if staged.is_err() {
            assert_refused(staged, Code::DeadlineExceeded, "transaction_expired");
            return None;
        }
        Some(txn)
    })
    .await;
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_refused(
        state.write(&txn, key("y"), "{}").await,
        Code::DeadlineExceeded,
        "transaction_expired",
    );
    let late = state.begin_for(Some(50)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_refused(
        state.commit(&late).await,
        Code::DeadlineExceeded,
        "transaction_expired",
    );
    assert_eq!(state.get(key("x")).await, Read::none());
}

#[tokio::test]
async fn a_timeout_of_nothing_is_refused_and_a_long_one_is_cut() {
    let state = State::with(&[
        "state.transaction-timeout=100ms",
        "state.transaction-timeout-max=100ms",
    ])
    .await;
    assert_refused(
        state.begin_for(Some(0)).await,
        Code::InvalidArgument,
        "invalid",
    );
    for timeout in [None, Some(u64::MAX)] {
        let txn = state.begin_for(timeout).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_refused(
            state.commit(&txn).await,
            Code::DeadlineExceeded,
            "transaction_expired",
        );
    }
}

#[tokio::test]
async fn an_empty_commit_takes_its_place_in_the_order() {
    let state = State::fresh().await;
    let txn = state.begin().await;
    assert_eq!(state.commit(&txn).await.unwrap(), 1);
    assert_eq!(state.put(key("x"), "{}").await, 2);
    assert!(state.replay("a", None, None).await.len() == 1);
    let all = state.replay_all().await;
    assert_eq!(all.len(), 2);
    assert!(all[0].operations.is_empty());
}

#[tokio::test]
async fn a_key_written_twice_in_a_transaction_gets_two_versions() {
    let state = State::fresh().await;
    let txn = state.begin().await;
    state.write(&txn, key("x"), r#"{"n":1}"#).await.unwrap();
    state.delete(&txn, key("x")).await.unwrap();
    state.write(&txn, key("x"), r#"{"n":2}"#).await.unwrap();
    state.commit(&txn).await.unwrap();
    assert_eq!(state.get(key("x")).await, Read::of(r#"{"n":2}"#, 3, 1));
    let events = state.replay("a", None, None).await;
    let versions: Vec<_> = events[0].operations.iter().map(|it| it.version).collect();
    assert_eq!(versions, [1, 2, 3]);
    assert!(events[0].operations[1].value.is_none());
}

#[tokio::test]
async fn both_services_share_transactions_and_txn_ids_are_uuids() {
    let state = State::fresh().await;
    let request = esker_proto::state::v1::BeginTransactionRequest::default();
    let begun = state.esker.clone().begin_transaction(request).await;
    let txn = begun.unwrap().into_inner().txn_id;
    let id: uuid::Uuid = txn.parse().unwrap();
    assert_eq!(id.get_version_num(), 4);
    state.write(&txn, key("x"), "{}").await.unwrap();
    // The other transaction has committed.
    assert_eq!(state.commit(&txn).await.unwrap(), 1);
    assert_eq!(state.replay_all().await[0].txn_id, txn);
}

#[tokio::test]
async fn readers_never_see_a_part_of_a_commit() {
    const KEYS: usize = 50;
    let state = State::fresh().await;
    let names: Vec<String> = (0..KEYS).map(|n| format!("k{n:03}")).collect();
    let writer = async {
        for round in 0..40 {
            let txn = state.begin().await;
            for name in &names {
                let json = format!("{{\"round\":{round}}}");
                let name = Name("default", "torn", name);
                state.write(&txn, name, &json).await.unwrap();
            }
            state.commit(&txn).await.unwrap();
        }
    };
    let reader = async {
        loop {
            let entries = state.scan("torn", "").await;
            let commits: Vec<_> = entries.iter().map(|it| it.commit_ts).collect();
            assert!(
                entries.is_empty() || entries.len() == KEYS,
                "{} keys",
                entries.len()
            );
            assert!(
                commits.windows(2).all(|two| two[0] == two[1]),
                "{commits:?}"
            );
        }
    };
    let both = async {
        tokio::select! {
            () = writer => {}
            () = reader => {}
        }
    };
    soon("forty commits", both).await;
}

#[tokio::test]
async fn too_many_open_transactions_are_refused_until_one_ends() {
    // One principal alone has three quarters.
    let state = State::with(&["state.transactions=4"]).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(state.begin().await);
    }
    assert_refused(
        state.begin_for(None).await,
        Code::ResourceExhausted,
        "exhausted",
    );
    state.abort(&open[0]).await.unwrap();
    state.begin_for(None).await.unwrap();
}
