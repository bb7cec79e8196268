//! What a node answers without leading the partition, and what it refuses.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::get;
use bytes::Bytes;
use http::{StatusCode, header};
use http_body_util::BodyExt as _;

use super::{Leader, Member, ROOT, code, pair, peer_requests, request, text};
use crate::auth::token::hash;
use crate::auth::{Access, PeerAddress, Principal};
use crate::forward::Others;

fn read(path: &str) -> Request {
    request("GET", path, Body::empty())
}

const SERVER_DRAINING: &str = "server_draining";

#[tokio::test]
async fn a_read_is_answered_by_the_replica_after_a_round_if_it_has_the_stream() {
    let (one, two) = pair();
    one.node.has_stream.store(true, Ordering::SeqCst);
    let answer = one.ask(read("/v1/streams/a")).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!((one.handled.count(), two.handled.count()), (1, 0));
    assert_eq!((one.rounds(), two.rounds()), (1, 0));
    // What changes something is the leader's.
    one.ask(request("PUT", "/v1/streams/a", "x")).await;
    assert_eq!((one.handled.count(), two.handled.count()), (1, 1));
    // So is a stream that is not here: it may have to be created.
    one.node.has_stream.store(false, Ordering::SeqCst);
    one.ask(read("/v1/streams/a")).await;
    assert_eq!((one.handled.count(), two.handled.count()), (1, 2));
}

#[tokio::test]
async fn without_a_round_the_replica_answers_nothing() {
    let (one, two) = pair();
    one.node.has_stream.store(true, Ordering::SeqCst);
    one.node.has_majority.store(false, Ordering::SeqCst);
    one.ask(read("/v1/streams/a")).await;
    assert_eq!((one.handled.count(), two.handled.count()), (0, 1));
    one.leads(Leader::Unknown);
    let answer = one.ask(read("/v1/streams/a")).await;
    let refused = (
        StatusCode::SERVICE_UNAVAILABLE,
        SERVER_DRAINING.to_owned(),
        true,
    );
    assert_eq!(code(answer).await, refused);
    assert_eq!(one.handled.count(), 0);
}

#[tokio::test]
async fn a_read_that_another_node_has_sent_is_answered_by_the_leader_alone() {
    let (one, two) = pair();
    let three = Member::new(3, Leader::At(1));
    three.connect(&one);
    three.connect(&two);
    // One does not lead, although it could answer.
    one.node.has_stream.store(true, Ordering::SeqCst);
    let answer = three.ask(read("/v1/streams/a")).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!((one.handled.count(), two.handled.count()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_session_of_a_replica_ends_when_it_follows_no_leader_and_stays_otherwise() {
    let (one, _) = pair();
    let mut body = follow(&one).await;
    // An election is no reason.
    one.leads(Leader::Unknown);
    assert!(has_no_end(&mut body, Duration::from_secs(2)).await);
    one.leads(Leader::At(3));
    assert!(has_no_end(&mut body, Duration::from_secs(3600)).await);
    one.leads(Leader::Unknown);
    ends_with_an_error(body).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_of_a_leader_that_is_cut_off_ends() {
    let (one, _) = pair();
    one.leads(Leader::Here);
    let mut body = follow(&one).await;
    assert!(has_no_end(&mut body, Duration::from_secs(3600)).await);
    // It does not know of another leader, and takes itself for one.
    one.node.has_majority.store(false, Ordering::SeqCst);
    ends_with_an_error(body).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_of_a_member_that_is_cut_off_and_remembers_its_leader_ends() {
    let (one, _) = pair();
    let body = follow(&one).await;
    // A member without a vote never begins an election, so the leader that it knew stays.
    one.node.has_majority.store(false, Ordering::SeqCst);
    ends_with_an_error(body).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_of_a_leader_that_was_removed_ends() {
    let (one, _) = pair();
    one.leads(Leader::Here);
    let body = follow(&one).await;
    *one.node.refusal.lock().unwrap() = Some("it was removed".to_owned());
    ends_with_an_error(body).await;
}

#[tokio::test(start_paused = true)]
async fn sessions_that_wait_share_their_rounds_and_leave_nothing_behind() {
    let (one, _) = pair();
    let before = one.rounds();
    let bodies: Vec<_> = futures::future::join_all((0..50).map(|_| follow(&one))).await;
    let answered = one.rounds();
    assert_eq!(answered, before + bodies.len());
    tokio::time::sleep(Duration::from_secs(60)).await;
    // At most one a second, however many there are.
    assert!((30..=60).contains(&(one.rounds() - answered)));
    drop(bodies);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ended = one.rounds();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(one.rounds(), ended);
}

/// Follows a stream that has no records, as the replica of this node has it.
async fn follow(one: &Member) -> Body {
    one.node.has_stream.store(true, Ordering::SeqCst);
    let router = Router::new()
        .route("/v1/streams/{stream}/records", get(silent))
        .route_layer(axum::middleware::from_fn_with_state(
            one.forwarder.clone(),
            crate::forward::forward,
        ))
        .layer(axum::Extension(Access::new(
            one.on.clone(),
            Principal::Root(hash(ROOT)),
        )));
    let asked = tower::ServiceExt::oneshot(router, read("/v1/streams/a/records"));
    asked.await.unwrap().into_body()
}

async fn has_no_end(body: &mut Body, time: Duration) -> bool {
    tokio::time::timeout(time, body.frame()).await.is_err()
}

async fn ends_with_an_error(body: Body) {
    let end = tokio::time::timeout(Duration::from_secs(60), body.collect()).await;
    let end = end.expect("it ends").unwrap().to_bytes();
    let end = String::from_utf8_lossy(&end);
    assert!(
        end.starts_with("event: error\n") && end.contains(SERVER_DRAINING),
        "{end}"
    );
}

/// Events that never come.
async fn silent() -> impl axum::response::IntoResponse {
    let events = futures::stream::pending::<Result<Bytes, axum::Error>>();
    let kind = [(header::CONTENT_TYPE, "text/event-stream")];
    (kind, Body::from_stream(events))
}

#[tokio::test]
async fn a_node_that_the_cluster_does_not_take_refuses_at_once_and_says_why() {
    let (one, two) = pair();
    *one.node.refusal.lock().unwrap() = Some("it was removed".to_owned());
    // It is in contact until it has left the group.
    one.node.has_stream.store(true, Ordering::SeqCst);
    let begun = std::time::Instant::now();
    for (method, path) in [
        ("PUT", "/v1/streams/a"),
        ("GET", "/v1/streams/a"),
        ("GET", "/v1/basins"),
    ] {
        let answer = one.ask(request(method, path, Body::empty())).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = text(answer).await;
        assert!(
            body.contains(SERVER_DRAINING) && body.contains("it was removed"),
            "{body}"
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!((one.handled.count(), two.handled.count()), (0, 0));
}

#[tokio::test]
async fn all_other_nodes_are_asked_under_the_whole_path_and_those_that_fail_are_left_out() {
    let (one, two) = pair();
    let three = Member::new(3, Leader::Here);
    one.connect(&three);
    let answered = |id: &'static str| {
        Router::new().route(
            "/v1/metrics",
            get(move |request: Request| async move {
                let query = request.uri().query().unwrap_or_default().to_owned();
                let (head, _) = request.into_parts();
                // That node asks nobody.
                assert!(crate::forwarded::is_forwarded(&head.extensions));
                assert!(!head.headers.contains_key(header::ACCEPT_ENCODING));
                format!("{id} {query}")
            }),
        )
    };
    let with = |member: Member, id| {
        let requests = peer_requests(answered(id), member.on.clone(), member.forwarder.clone());
        Member { requests, ..member }
    };
    let (two, three) = (with(two, "two"), with(three, "three"));
    one.connect(&two);
    one.connect(&three);
    let mut asked = read("/v1/metrics?set=x");
    asked
        .headers_mut()
        .insert(header::ACCEPT_ENCODING, "gzip".parse().unwrap());
    let access = Access::new(one.on.clone(), Principal::Root(hash(ROOT)));
    let peer: PeerAddress = PeerAddress("192.0.2.7:4711".parse().unwrap());
    asked.extensions_mut().insert(access);
    asked.extensions_mut().insert(peer);
    let (head, _) = asked.into_parts();
    let others = Others::of(Some(&one.forwarder), &head).expect("there are others");
    let mut answers = others.answers().await;
    answers.sort();
    assert_eq!(answers, ["three set=x", "two set=x"]);
    two.kill();
    assert_eq!(others.answers().await, ["three set=x"]);
    assert!(Others::of(None, &head).is_none());
}
