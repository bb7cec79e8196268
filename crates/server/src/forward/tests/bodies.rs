//! Bodies of requests and answers on their way, and clients that do not take or send them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower::ServiceExt as _;

use super::{WHILE, pair, request, sent_body, session, state_call, text};

#[tokio::test]
async fn a_session_goes_both_ways_at_once() {
    let (one, two) = pair();
    let (client, body) = sent_body();
    // Its head is answered before anything is sent.
    let answer = one.ask(session(body)).await;
    let mut echoed = answer.into_body().into_data_stream();
    for number in 0..3 {
        let piece = Bytes::from(format!("piece {number}"));
        client.send(Ok(piece.clone())).unwrap();
        assert_eq!(echoed.next().await.unwrap().unwrap(), piece);
    }
    drop(client);
    let end = echoed.next().await;
    assert!(end.is_none(), "{end:?}");
    two.has_ended(1).await;
}

#[tokio::test]
async fn trailers_are_passed_on() {
    let (one, two) = pair();
    let answer = one.ask(state_call("GetState", "message")).await;
    let body = answer.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body.to_bytes(), "message");
    let (head, _) = two.handled.requests.lock().unwrap().remove(0);
    assert_eq!(head.headers[header::TE], "trailers");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_request_at_the_other_node() {
    let (one, two) = pair();
    // Before the answer.
    let asked = one.router.clone();
    let waiting = asked.oneshot(request("POST", "/v1/streams/a/records", "wait"));
    let waiting = tokio::spawn(waiting);
    two.has_begun(1).await;
    waiting.abort();
    two.has_ended(1).await;
    // While it is answered.
    let answer = one
        .ask(request("GET", "/v1/streams/a/records", Body::empty()))
        .await;
    let mut pieces = answer.into_body().into_data_stream();
    pieces.next().await.unwrap().unwrap();
    drop(pieces);
    two.has_ended(2).await;
}

#[tokio::test]
async fn an_answer_that_a_client_does_not_take_is_not_made() {
    let (one, two) = pair();
    let answer = one
        .ask(request("GET", "/v1/streams/a/records", Body::empty()))
        .await;
    let produced = || two.handled.produced.load(Ordering::SeqCst);
    tokio::time::sleep(WHILE).await;
    let before = produced();
    tokio::time::sleep(WHILE).await;
    assert_eq!(produced(), before);
    // Windows of HTTP/2, and what is between the two.
    assert!(before * 16 * 1024 <= 4 << 20, "{before} pieces");
    let mut pieces = answer.into_body().into_data_stream();
    for _ in 0..2 * before {
        pieces.next().await.unwrap().unwrap();
    }
    assert!(produced() > before);
}

#[tokio::test]
async fn a_body_that_the_other_node_does_not_read_is_not_read() {
    let (one, _two) = pair();
    let (pieces, sent) = mpsc::channel::<Result<Bytes, axum::Error>>(1);
    let asked = session(Body::from_stream(ReceiverStream::new(sent)));
    // Of an echo, whose answer is not taken, no more is read.
    let answer = one.ask(asked).await;
    let mut count = 0;
    let sending = async {
        loop {
            let piece = Ok(Bytes::from(vec![7; 16 * 1024]));
            if pieces.send(piece).await.is_err() {
                return;
            }
            count += 1;
        }
    };
    assert!(tokio::time::timeout(3 * WHILE, sending).await.is_err());
    assert!(count * 16 * 1024 <= 4 << 20, "{count} pieces");
    drop(answer);
}

#[tokio::test]
async fn a_client_that_sends_its_body_late_is_answered_by_the_leader() {
    let (one, two) = pair();
    let (client, body) = sent_body();
    let asked = one.ask(request("POST", "/v1/streams/a/records", body));
    let (answer, ()) = tokio::join!(asked, async {
        // Longer than a request waits for a leader.
        tokio::time::sleep(Duration::from_secs(1)).await;
        client.send(Ok(Bytes::from_static(b"late"))).unwrap();
        drop(client);
    });
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(text(answer).await, "late");
    assert_eq!(two.handled.begun.load(Ordering::SeqCst), 1);
}
