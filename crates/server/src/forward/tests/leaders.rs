//! Which node answers: the leader, whoever gets the request.

use std::sync::atomic::Ordering;

use axum::body::Body;
use http::StatusCode;

use super::{
    Leader, MAX_BODY_UNKNOWN, Member, SERVED_BY, WHILE, code, no_side_effects, pair, request,
    state_call, text,
};
use crate::auth::{PeerAddress, Principal};
use crate::forward::hop_headers::ENVELOPE;

#[tokio::test]
async fn a_request_is_answered_by_the_leader_as_if_it_had_got_it() {
    let (one, two) = pair();
    let mut asked = request("PUT", "/v1/streams/a%2Fb?x=1", "a body");
    let headers = asked.headers_mut();
    headers.insert("x-of-client", "7".parse().unwrap());
    headers.insert("connection", "x-of-connection".parse().unwrap());
    headers.insert("x-of-connection", "7".parse().unwrap());
    headers.insert("host", "one.example".parse().unwrap());
    // A client cannot say who it is, nor how far its request has come.
    headers.insert(ENVELOPE, "forged".parse().unwrap());
    let answer = one.ask(asked).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["x-of-handler"], "1");
    assert_eq!(answer.headers()[SERVED_BY], "2");
    assert_eq!(text(answer).await, "a body");
    assert_eq!(one.handled.count(), 0);
    let (head, body) = two.handled.requests.lock().unwrap().remove(0);
    assert_eq!(body, "a body");
    assert_eq!(head.uri.path_and_query().unwrap(), "/v1/streams/a%2Fb?x=1");
    assert_eq!(head.headers["x-of-client"], "7");
    for gone in ["x-of-connection", "host", ENVELOPE.as_str()] {
        assert!(!head.headers.contains_key(gone), "{gone}");
    }
    let PeerAddress(client) = head.extensions.get().unwrap();
    assert_eq!(*client, "192.0.2.7:4711".parse().unwrap());
    let principal: &Principal = head.extensions.get().unwrap();
    assert!(matches!(principal, Principal::Root(_)), "{principal:?}");
}

#[tokio::test]
async fn a_leader_answers_itself_and_what_concerns_one_node_is_answered_by_it() {
    let (one, two) = pair();
    let answer = two.ask(request("PUT", "/v1/streams/a", "x")).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(!answer.headers().contains_key(SERVED_BY));
    one.ask(request("GET", "/health", Body::empty())).await;
    assert_eq!((one.handled.count(), two.handled.count()), (1, 1));
}

#[tokio::test]
async fn the_stream_that_a_body_names_decides_where_it_is_created() {
    let (one, two) = pair();
    let text = r#"{"stream":"a"}"#;
    let answer = one.ask(request("POST", "/v1/streams", text)).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(two.handled.requests.lock().unwrap()[0].1, text);
}

#[tokio::test]
async fn without_a_leader_nothing_happens_and_the_client_may_try_again() {
    let (one, two) = pair();
    one.leads(Leader::Unknown);
    let answer = one.ask(request("PUT", "/v1/streams/a", "x")).await;
    assert_eq!(code(answer).await, no_side_effects());
    let answer = one.ask(state_call("Commit", "x")).await;
    assert_eq!(answer.headers()["grpc-status"], "14");
    // A leader that becomes known in time gets it.
    let (asked, ()) = tokio::join!(one.ask(request("PUT", "/v1/streams/a", "x")), async {
        tokio::time::sleep(WHILE).await;
        one.leads(Leader::At(2));
    });
    assert_eq!(asked.status(), StatusCode::CREATED);
    assert_eq!((one.handled.count(), two.handled.count()), (0, 1));
}

#[tokio::test]
async fn a_leader_that_cannot_be_reached_is_as_none() {
    let (one, two) = pair();
    two.kill();
    for method in ["PUT", "DELETE", "GET"] {
        let answer = one
            .ask(request(method, "/v1/streams/a", Body::empty()))
            .await;
        assert_eq!(code(answer).await, no_side_effects(), "{method}");
    }
    // The next leader gets it, if it is elected in time.
    let three = Member::new(3, Leader::Here);
    one.connect(&three);
    let (asked, ()) = tokio::join!(one.ask(request("PUT", "/v1/streams/a", "body")), async {
        tokio::time::sleep(WHILE).await;
        one.leads(Leader::At(3));
    });
    assert_eq!(asked.status(), StatusCode::CREATED);
    assert_eq!(three.handled.requests.lock().unwrap()[0].1, "body");
}

#[tokio::test]
async fn the_leader_that_another_node_names_gets_the_whole_request() {
    let (one, two) = pair();
    let three = Member::new(3, Leader::Here);
    one.connect(&three);
    two.leads(Leader::At(3));
    let answer = one.ask(request("PUT", "/v1/streams/a", "a body")).await;
    assert_eq!(answer.headers()[SERVED_BY], "3");
    assert_eq!(text(answer).await, "a body");
    assert_eq!((two.handled.count(), three.handled.count()), (0, 1));
}

#[tokio::test]
async fn nodes_that_name_each_other_do_not_send_a_request_around() {
    let (one, two) = pair();
    let three = Member::new(3, Leader::At(2));
    one.connect(&three);
    two.leads(Leader::At(3));
    for body in [Body::empty(), Body::from(vec![7; MAX_BODY_UNKNOWN + 1])] {
        let answer = one.ask(request("PUT", "/v1/streams/a", body)).await;
        assert_eq!(code(answer).await, no_side_effects());
    }
    assert_eq!(
        one.handled.count() + two.handled.count() + three.handled.count(),
        0
    );
}

#[tokio::test]
async fn a_node_that_has_become_the_leader_answers_what_it_was_about_to_send() {
    let (one, two) = pair();
    two.leads(Leader::Unknown);
    let (answer, ()) = tokio::join!(one.ask(request("PUT", "/v1/streams/a", "a body")), async {
        tokio::time::sleep(WHILE).await;
        one.leads(Leader::Here);
    });
    assert_eq!(text(answer).await, "a body");
    assert_eq!((one.handled.count(), two.handled.count()), (1, 0));
}

#[tokio::test]
async fn a_leader_that_was_cut_off_answers_no_read() {
    let (_, two) = pair();
    two.node.has_majority.store(false, Ordering::SeqCst);
    for path in ["/v1/streams/a", "/v1/streams", "/v1/basins"] {
        let answer = two.ask(request("GET", path, Body::empty())).await;
        assert_eq!(code(answer).await, no_side_effects(), "{path}");
    }
    assert_eq!(two.handled.count(), 0);
    two.node.has_majority.store(true, Ordering::SeqCst);
    for (path, rounds) in [("/v1/streams/a", 1), ("/v1/streams", 3), ("/v1/basins", 1)] {
        let before = two.node.rounds.load(Ordering::SeqCst);
        two.ask(request("GET", path, Body::empty())).await;
        let after = two.node.rounds.load(Ordering::SeqCst);
        assert_eq!(after - before, rounds, "{path}");
    }
    // The log itself decides on what changes something.
    let before = two.node.rounds.load(Ordering::SeqCst);
    two.ask(request("PUT", "/v1/streams/a", "x")).await;
    assert_eq!(two.node.rounds.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn a_basin_that_a_node_does_not_know_yet_is_looked_up_once_more() {
    let (one, two) = pair();
    one.node.has_basin.store(false, Ordering::SeqCst);
    // It does not exist: this node has the error.
    one.ask(request("PUT", "/v1/streams/a", "x")).await;
    assert_eq!((one.handled.count(), two.handled.count()), (1, 0));
    one.node.learns_basin.store(true, Ordering::SeqCst);
    one.ask(request("PUT", "/v1/streams/a", "x")).await;
    assert_eq!((one.handled.count(), two.handled.count()), (1, 1));
}
