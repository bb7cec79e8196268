//! Requests while the leadership moves: what was certainly not proposed goes to the new leader, once.

use std::sync::atomic::Ordering;

use axum::body::Body;
use esker_node::Client;
use http::StatusCode;

use super::{
    Leader, MAX_BODY, Member, SERVED_BY, WHILE, code, eventually, no_side_effects, pair, request,
    text,
};

/// A leader that refuses so many proposals.
fn refuses(member: &Member, proposals: usize) {
    member.handled.refuses.store(proposals, Ordering::SeqCst);
}

fn refused(member: &Member) -> usize {
    member.handled.refused.load(Ordering::SeqCst)
}

#[tokio::test]
async fn a_leader_that_keeps_the_leadership_handles_what_it_had_refused() {
    let (one, two) = pair();
    let body = "x".repeat(MAX_BODY);
    for asked in [&one, &two] {
        refuses(&two, 2);
        let asked = asked.ask(request("PUT", "/v1/streams/a", body.clone()));
        assert_eq!(text(asked.await).await, body);
    }
    assert_eq!((refused(&two), two.handled.count()), (4, 2));
    assert_eq!(one.handled.count(), 0);
}

#[tokio::test]
async fn what_a_leader_refuses_that_gives_the_leadership_away_goes_to_the_new_one() {
    for asks_the_old_leader in [true, false] {
        let (one, two) = pair();
        refuses(&two, usize::MAX);
        let asked = match asks_the_old_leader {
            true => &two,
            false => &one,
        };
        let moves = async {
            eventually("it is refused", || refused(&two) > 0).await;
            one.leads(Leader::Here);
            two.leads(Leader::At(1));
        };
        let asking = asked.ask(request("PUT", "/v1/streams/a", "a body"));
        let (answer, ()) = tokio::join!(asking, moves);
        assert_eq!(answer.status(), StatusCode::CREATED);
        let served_by = answer.headers().get(SERVED_BY).cloned();
        assert_eq!(served_by.is_some(), asks_the_old_leader);
        assert_eq!(text(answer).await, "a body");
        assert_eq!((one.handled.count(), two.handled.count()), (1, 0));
    }
}

#[tokio::test]
async fn nothing_is_handled_while_a_leader_gives_the_leadership_away() {
    let (one, two) = pair();
    two.node.is_moving.store(true, Ordering::SeqCst);
    let moves = async {
        tokio::time::sleep(WHILE).await;
        assert_eq!(two.handled.count(), 0);
        two.node.is_moving.store(false, Ordering::SeqCst);
    };
    let here = two.ask(request("PUT", "/v1/streams/a", "here"));
    let there = one.ask(request("PUT", "/v1/streams/a", "there"));
    let (here, there, ()) = tokio::join!(here, there, moves);
    assert_eq!(text(here).await, "here");
    assert_eq!(text(there).await, "there");
    assert_eq!(two.handled.count(), 2);
}

#[tokio::test]
async fn a_leadership_that_arrives_nowhere_is_waited_for_with_a_deadline() {
    let (one, two) = pair();
    refuses(&two, usize::MAX);
    for asked in [&one, &two] {
        let answer = asked.ask(request("PUT", "/v1/streams/a", "x")).await;
        assert_eq!(code(answer).await, no_side_effects());
    }
    assert!(refused(&two) > 2);
    assert_eq!(two.handled.count(), 0);
}

#[tokio::test]
async fn what_finds_no_place_to_wait_in_is_refused_at_once() {
    let (one, two) = pair();
    refuses(&two, usize::MAX);
    let waiting = one.forwarder.waiting.clone();
    let all = waiting.try_take(Client::default(), waiting.free()).unwrap();
    let answer = one.ask(request("PUT", "/v1/streams/a", "x")).await;
    assert_eq!(code(answer).await.1, "server_draining");
    assert_eq!(refused(&two), 1);
    drop(all);
    refuses(&two, 1);
    let answer = one.ask(request("PUT", "/v1/streams/a", "x")).await;
    assert_eq!(text(answer).await, "x");
}

#[tokio::test]
async fn a_read_that_needs_a_round_waits_for_a_leader_that_confirms_it() {
    let (one, _two) = pair();
    one.node.has_majority.store(false, Ordering::SeqCst);
    let moves = async {
        tokio::time::sleep(WHILE).await;
        assert_eq!(one.handled.count(), 0);
        one.node.has_majority.store(true, Ordering::SeqCst);
    };
    let asking = one.ask(request("GET", "/v1/basins", Body::empty()));
    let (answer, ()) = tokio::join!(asking, moves);
    assert_eq!(answer.status(), StatusCode::CREATED);
}
