//! Who sends a request: tokens that a node does not know yet, and connections that are not of a node.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::routing::get;
use axum::{Router, middleware};
use http::{StatusCode, header};
use tower::{ServiceExt as _, service_fn};

use super::{Leader, Member, ROOT, WHILE, pair, request, text};
use crate::auth::token::hash;
use crate::auth::{Claim, PeerAddress, Principal};
use crate::forward::envelope::Envelope;
use crate::forward::service::PeerRequests;
use crate::identification::{Learning, identify, learn};

/// What clients reach of a node: it looks a token up again that it does not know yet.
struct Listener {
    router: Router,
}

impl Listener {
    fn of(member: &Member) -> Listener {
        let learning = Learning::new(member.on.clone(), member.forwarder.clone());
        let identifying = middleware::from_fn_with_state(member.on.clone(), identify);
        let router = Router::new()
            .route("/v1/basins", get(async || "answered"))
            .layer(identifying)
            .layer(middleware::from_fn_with_state(learning, learn));
        Listener { router }
    }

    /// The status of the answer to a request with this token.
    async fn ask(&self, token: &str) -> StatusCode {
        let mut asked = request("GET", "/v1/basins", Body::empty());
        let bearer = format!("Bearer {token}").parse().unwrap();
        asked.headers_mut().insert(header::AUTHORIZATION, bearer);
        let peer: SocketAddr = "192.0.2.8:4711".parse().unwrap();
        asked.extensions_mut().insert(PeerAddress(peer));
        let answer = self.router.clone().oneshot(asked).await;
        answer.unwrap().status()
    }
}

#[tokio::test]
async fn a_token_stays_at_the_node_that_the_client_has_sent_it_to() {
    let (one, two) = pair();
    let mut asked = request("PUT", "/v1/streams/a", "x");
    let bearer = format!("Bearer {ROOT}").parse().unwrap();
    asked.headers_mut().insert(header::AUTHORIZATION, bearer);
    let cookie = "esker-session=secret".parse().unwrap();
    asked.headers_mut().insert(header::COOKIE, cookie);
    assert_eq!(one.ask(asked).await.status(), StatusCode::CREATED);
    let (head, _) = two.handled.requests.lock().unwrap().remove(0);
    for name in [header::AUTHORIZATION, header::COOKIE] {
        assert!(!head.headers.contains_key(&name), "{name}");
    }
    let principal: &Principal = head.extensions.get().unwrap();
    assert!(
        matches!(principal, Principal::Root(_)),
        "it is who has sent it"
    );
}

#[tokio::test]
async fn an_address_that_has_failed_too_often_costs_no_round_of_the_catalog() {
    let one = Member::new(1, Leader::Here);
    let listener = Listener::of(&one);
    let mut refused = StatusCode::OK;
    for number in 0..100 {
        refused = listener.ask(&format!("guess-{number}")).await;
    }
    assert_eq!(refused, StatusCode::TOO_MANY_REQUESTS);
    // One for each failure that an address may have, and for those that time gives back.
    assert!(one.rounds() < 50, "{} rounds", one.rounds());
    assert_eq!(listener.ask(ROOT).await, StatusCode::OK);
}

#[tokio::test]
async fn a_token_that_a_node_does_not_know_yet_is_looked_up_once_more() {
    let one = Member::new(1, Leader::Here);
    let listener = Listener::of(&one);
    assert_eq!(listener.ask(ROOT).await, StatusCode::OK);
    assert_eq!(one.rounds(), 0);
    assert_eq!(listener.ask("newer").await, StatusCode::UNAUTHORIZED);
    one.has_newer_token("newer");
    assert_eq!(listener.ask("newer").await, StatusCode::OK);
    assert_eq!(one.rounds(), 2);
    assert_eq!(listener.ask("newer").await, StatusCode::OK);
    assert_eq!(one.rounds(), 2, "it is known now");
    // Without a majority, nobody knows whether it is valid.
    one.node.has_majority.store(false, Ordering::SeqCst);
    let unknown = listener.ask("another").await;
    assert_eq!(unknown, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(listener.ask("newer").await, StatusCode::OK);
}

#[tokio::test]
async fn a_token_of_another_node_is_looked_up_once_more_and_has_to_be_valid_here() {
    let (_, two) = pair();
    let ask = async || {
        let client = "192.0.2.7:4711".parse().unwrap();
        let claim = Claim::Token(hash("newer").0);
        let mut asked = request("PUT", "/v1/streams/a", "x").map(tonic::body::Body::new);
        Envelope::new(1, claim, client, 1, WHILE).write(asked.headers_mut());
        two.requests.clone().oneshot(asked).await.unwrap().status()
    };
    assert_eq!(ask().await, StatusCode::UNAUTHORIZED);
    assert_eq!(two.handled.count(), 0);
    two.has_newer_token("newer");
    assert_eq!(ask().await, StatusCode::CREATED);
    let (head, _) = two.handled.requests.lock().unwrap().remove(0);
    let principal: &Principal = head.extensions.get().unwrap();
    assert!(matches!(principal, Principal::Token(token) if token.hash == hash("newer")));
}

#[tokio::test]
async fn a_listener_that_refuses_a_request_has_not_answered_it() {
    let (one, two) = pair();
    // As the listener for nodes refuses one that it does not know.
    let refusing = service_fn(|_: http::Request<tonic::body::Body>| async {
        Ok(tonic::Status::permission_denied("another cluster").into_http())
    });
    let refusing = Member {
        requests: PeerRequests::new(refusing),
        ..two
    };
    one.connect(&refusing);
    let answer = one.ask(request("PUT", "/v1/streams/a", "x")).await;
    let body = text(answer).await;
    assert!(
        body.contains("server_draining") && body.contains("another cluster"),
        "{body}"
    );
}

#[tokio::test]
async fn a_request_without_an_envelope_is_refused_by_the_listener_for_nodes() {
    let (_, two) = pair();
    let asked = request("PUT", "/v1/streams/a", "x").map(tonic::body::Body::new);
    let answer = two.requests.clone().oneshot(asked).await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(two.handled.count(), 0);
}
