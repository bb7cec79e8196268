//! Bounds, agents, watching.

use esker_proto::state::v1::{Agent, ReplayRequest, WatchRequest};

use crate::client::{Name, State, collect, json, key};
use crate::support::soon;

#[tokio::test]
async fn bounds_are_inclusive_and_the_end_is_the_present() {
    let state = State::fresh().await;
    for n in 1..=5 {
        state.put(key("x"), &format!("{{\"n\":{n}}}")).await;
    }
    let commits = async |start, end| {
        let events = state.replay("a", start, end).await;
        events.iter().map(|it| it.commit_ts).collect::<Vec<_>>()
    };
    assert_eq!(commits(None, None).await, [1, 2, 3, 4, 5]);
    assert_eq!(commits(Some(2), Some(4)).await, [2, 3, 4]);
    assert_eq!(commits(Some(3), Some(3)).await, [3]);
    assert_eq!(commits(Some(4), None).await, [4, 5]);
    assert_eq!(commits(None, Some(2)).await, [1, 2]);
    assert_eq!(commits(Some(0), Some(u64::MAX)).await, [1, 2, 3, 4, 5]);
    assert!(commits(Some(6), None).await.is_empty());
    assert!(commits(Some(4), Some(2)).await.is_empty());
    let events = state.replay("a", Some(2), Some(2)).await;
    let operation = &events[0].operations[0];
    assert_eq!((operation.key.as_str(), operation.version), ("x", 2));
    assert_eq!(json(operation.value.as_ref().unwrap()), r#"{"n":2}"#);
}

#[tokio::test]
async fn an_agent_sees_its_own_operations_and_no_others() {
    let state = State::fresh().await;
    let txn = state.begin().await;
    for (namespace, agent) in [("default", "a"), ("default", "b"), ("n", "a")] {
        let name = Name(namespace, agent, "x");
        state.write(&txn, name, "{}").await.unwrap();
    }
    state.commit(&txn).await.unwrap();
    state.put(Name("default", "b", "y"), "{}").await;
    let events = state.replay("a", None, None).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].operations.len(), 1);
    assert_eq!(state.replay("b", None, None).await.len(), 2);
    assert!(state.replay("c", None, None).await.is_empty());

    let all = state.replay_all().await;
    let agents: Vec<_> = all[0]
        .operations
        .iter()
        .map(|it| (it.namespace.as_str(), it.agent_id.as_str()))
        .collect();
    assert_eq!(agents, [("default", "a"), ("default", "b"), ("n", "a")]);
    assert!(all[0].committed_at_ms > 1_500_000_000_000);
}

#[tokio::test]
async fn a_replay_may_be_of_one_key() {
    let state = State::fresh().await;
    state.put(key("x"), "{}").await;
    state.put(key("y"), "{}").await;
    state.remove(key("x")).await;
    let request = ReplayRequest {
        agent: Some(Agent {
            namespace: "default".into(),
            agent_id: "a".into(),
        }),
        key: Some("x".into()),
        ..ReplayRequest::default()
    };
    let events = state.esker.clone().replay(request).await.unwrap();
    let events = collect(events.into_inner()).await.unwrap();
    let commits: Vec<_> = events.iter().map(|it| it.commit_ts).collect();
    assert_eq!(commits, [1, 3]);
    assert!(events[1].operations[0].value.is_none());
}

#[tokio::test]
async fn watching_goes_on_from_where_it_is_asked_to_and_from_now() {
    let state = State::fresh().await;
    state.put(key("x"), r#"{"n":1}"#).await;
    state.put(key("x"), r#"{"n":2}"#).await;
    let watch = async |start_ts| {
        let request = WatchRequest {
            start_ts,
            ..WatchRequest::default()
        };
        let events = state.esker.clone().watch(request).await.unwrap();
        events.into_inner()
    };
    let mut from_two = watch(Some(2)).await;
    let mut from_now = watch(None).await;
    let mut from_ahead = watch(Some(4)).await;
    let next = async |events: &mut tonic::Streaming<_>| {
        let event: esker_proto::state::v1::ReplayEvent =
            soon("an event", events.message()).await.unwrap().unwrap();
        event.commit_ts
    };
    assert_eq!(next(&mut from_two).await, 2);
    state.put(key("x"), r#"{"n":3}"#).await;
    assert_eq!(next(&mut from_two).await, 3);
    assert_eq!(next(&mut from_now).await, 3);
    state.put(key("x"), r#"{"n":4}"#).await;
    assert_eq!(next(&mut from_two).await, 4);
    assert_eq!(next(&mut from_ahead).await, 4);
}

#[tokio::test]
async fn a_commit_can_be_followed_by_any_client_of_streams() {
    let state = State::fresh().await;
    state.put(key("x"), "{}").await;
    // The record at sequence number n is the commit n + 1.
    let http = state.server.http2();
    let request = http.get("/v1/streams/default/records?seq_num=0&count=1");
    let answer = request.basin("esker-state").send().await.expect(200);
    let records = answer.json()["records"].as_array().unwrap().len();
    assert_eq!(records, 1);
}
