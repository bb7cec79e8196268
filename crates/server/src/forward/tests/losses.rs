//! A leader that is lost, or loses the leadership, while it answers.

use std::sync::atomic::Ordering;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::BodyExt as _;

use super::{Leader, Member, code, pair, request, sent_body, session, state_call, unknown_outcome};

/// Sends an append by way of `one` to its leader `two`, which does not answer it, and does `then` once `two` has begun
/// to handle it: the answer is that the outcome is unknown.
async fn check_unknown_after(one: &Member, two: &Member, then: impl FnOnce()) {
    let asked = one.ask(request("POST", "/v1/streams/a/records", "wait"));
    let (answer, ()) = tokio::join!(asked, async {
        two.has_begun(1).await;
        then();
    });
    assert_eq!(code(answer).await, unknown_outcome());
}

#[tokio::test]
async fn what_was_passed_on_is_never_repeated_when_the_leader_is_lost() {
    let (one, two) = pair();
    let three = Member::new(3, Leader::Here);
    one.connect(&three);
    check_unknown_after(&one, &two, || {
        one.leads(Leader::At(3));
        two.kill();
    })
    .await;
    assert_eq!(three.handled.begun.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_leader_that_is_silent_after_its_leadership_is_not_waited_for() {
    let (one, two) = pair();
    let three = Member::new(3, Leader::Here);
    one.connect(&three);
    check_unknown_after(&one, &two, || one.leads(Leader::At(3))).await;
    two.has_ended(1).await;
}

#[tokio::test]
async fn an_answer_that_was_begun_fails_with_its_node() {
    let (one, two) = pair();
    let answer = one
        .ask(request("GET", "/v1/streams/a/records", Body::empty()))
        .await;
    let mut pieces = answer.into_body().into_data_stream();
    pieces.next().await.unwrap().unwrap();
    two.kill();
    let end = loop {
        match pieces.next().await {
            Some(Ok(_)) => {}
            end => break end,
        }
    };
    assert!(matches!(end, Some(Err(_))), "{end:?}");
}

#[tokio::test]
async fn a_call_that_was_begun_ends_with_a_status() {
    for (method, status) in [("Commit", "2"), ("GetState", "14")] {
        let (one, two) = pair();
        let answer = one.ask(state_call(method, "wait")).await;
        let mut body = answer.into_body();
        let message = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(message, "wait");
        two.kill();
        let trailers = body.frame().await.unwrap().unwrap().into_trailers();
        assert_eq!(trailers.unwrap()["grpc-status"], status, "{method}");
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test]
async fn a_session_of_appends_ends_with_the_leadership_of_its_node() {
    let (one, two) = pair();
    let (client, body) = sent_body();
    let answer = one.ask(session(body)).await;
    let mut echoed = answer.into_body().into_data_stream();
    client.send(Ok(Bytes::from_static(b"x"))).unwrap();
    echoed.next().await.unwrap().unwrap();
    one.leads(Leader::At(3));
    let end = echoed.next().await;
    assert!(matches!(end, Some(Err(_))), "{end:?}");
    drop(echoed);
    two.has_ended(1).await;
}

#[test]
fn what_had_no_effect_has_a_code_that_promises_it_and_what_may_have_happened_has_none() {
    use s2_api::v1::error::{ErrorCode, ErrorResponse};

    use crate::api::ServiceError;

    let of = |error: ServiceError| match error.to_response() {
        ErrorResponse::Standard(error) => {
            let code: ErrorCode = error.info.code.parse().unwrap();
            assert_eq!(code.status(), error.status);
            assert!(code.is_retryable(), "the official clients send it again");
            code.has_no_side_effects()
        }
        other => panic!("{other:?}"),
    };
    assert!(of(ServiceError::NoLeader("x".to_owned())));
    let deposed = esker_node::Error::NotLeader("x".to_owned());
    assert!(of(ServiceError::Node(deposed)));
    assert!(!of(ServiceError::Lost("x".to_owned())));
}
