//! Answers that end before the other node has ended them: what their clients get at the end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use http::{StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;

use super::{Ends, Handled, Leader, Member, Pieces, request, sent_body, state_call};
use crate::answers::AtStall;

/// The deadline of what is to happen at once.
const SOON: Duration = Duration::from_secs(20);

/// A message with this byte is not answered.
const SILENT: u8 = 77;

/// A message of a session, with a payload of two bytes.
fn message(byte: u8) -> Bytes {
    Bytes::from(vec![0, 0, 3, 0, byte, byte])
}

/// A session of appends, with what sends its messages.
fn session() -> (Pieces, Request) {
    let (client, body) = sent_body();
    (client, super::session(body))
}

/// Acknowledges each piece with the same, a moment later, as `s2s/proto`.
async fn acked(State(handled): State<Handled>, request: Request) -> Response {
    let ends = Ends(handled.ended.clone());
    let pieces = request.into_body().into_data_stream();
    let pieces = pieces.filter(|piece| {
        let is_end = piece.as_ref().is_ok_and(Bytes::is_empty);
        std::future::ready(!is_end)
    });
    let answers = pieces.then(move |piece| {
        let _ends = &ends;
        async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if piece.as_ref().is_ok_and(|piece| piece.contains(&SILENT)) {
                std::future::pending::<()>().await;
            }
            piece
        }
    });
    let kind = [(header::CONTENT_TYPE, "s2s/proto")];
    (kind, Body::from_stream(answers)).into_response()
}

/// An event, and nothing more.
async fn events(State(handled): State<Handled>) -> Response {
    let ends = Ends(handled.ended.clone());
    let first = stream::once(async { Ok::<_, axum::Error>(Bytes::from("data: 1\n\n")) });
    let events = first.chain(stream::pending()).inspect(move |_| {
        let _ends = &ends;
    });
    let kind = [(header::CONTENT_TYPE, "text/event-stream")];
    (kind, Body::from_stream(events)).into_response()
}

/// A message, and nothing more.
async fn watch(State(handled): State<Handled>) -> Response {
    let ends = Ends(handled.ended.clone());
    let first = Frame::data(Bytes::from(vec![0, 0, 0, 0, 1, 7]));
    let first = stream::once(async { Ok::<_, axum::Error>(first) });
    let frames = first.chain(stream::pending()).inspect(move |_| {
        let _ends = &ends;
    });
    let mut response = Response::new(Body::new(StreamBody::new(frames.boxed())));
    let kind = "application/grpc".parse().unwrap();
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Waits for ever.
async fn silent(State(handled): State<Handled>, body: Body) -> Response {
    handled.begun.fetch_add(1, Ordering::SeqCst);
    let _ends = Ends(handled.ended.clone());
    if handled.finds_slow.load(Ordering::SeqCst) {
        let mut body = body;
        // It has got something, and waits in vain for more.
        let _ = body.frame().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        return StatusCode::REQUEST_TIMEOUT.into_response();
    }
    let _body = body;
    std::future::pending().await
}

/// A member with the routes of this module.
fn member(id: u64, leader: Leader) -> Member {
    let routes = Router::new()
        .route("/v1/streams/{stream}/records", get(events).post(acked))
        .route("/v1/streams/{stream}", any(silent))
        .route("/statehouse.v1.StatehouseService/{method}", post(watch));
    Member::with_routes(id, leader, routes)
}

fn two() -> (Member, Member) {
    let (one, two) = (member(1, Leader::At(2)), member(2, Leader::Here));
    one.connect(&two);
    (one, two)
}

/// What comes until the end.
async fn rest(body: Body) -> Result<Bytes, axum::Error> {
    let all = tokio::time::timeout(SOON, body.collect()).await;
    all.expect("it ends").map(|all| all.to_bytes())
}

/// The code in the message that ends a session, behind what was acknowledged.
#[track_caller]
fn ended_with(received: &[u8], acked: &[Bytes], status: u16, code: &str) {
    let acked = acked.concat();
    assert_eq!(received[..acked.len()], acked);
    let end = &received[acked.len()..];
    assert_eq!(end[3], 0b1000_0000, "{end:?}");
    assert_eq!(u16::from_be_bytes([end[4], end[5]]), status);
    let body = String::from_utf8_lossy(&end[6..]);
    assert!(body.contains(&format!("\"{code}\"")), "{body}");
}

#[tokio::test]
async fn at_a_stop_a_session_of_appends_is_answered_what_it_has_sent_and_ends() {
    let (one, two) = two();
    let (client, asked) = session();
    let answer = one.ask(asked).await;
    client.send(Ok(message(1))).unwrap();
    client.send(Ok(message(2))).unwrap();
    // Half of a message, whose rest comes after the stop; and one behind it.
    client.send(Ok(message(3).slice(..4))).unwrap();
    let mut body = answer.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, message(1));
    one.node.stopping.cancel();
    let more = [message(3).slice(4..), message(4)].concat();
    client.send(Ok(more.into())).unwrap();
    let received = rest(body).await.unwrap();
    ended_with(&received, &[message(2), message(3)], 503, "server_draining");
    two.has_ended(1).await;
}

#[tokio::test]
async fn at_a_stop_a_session_that_is_silent_ends_at_once() {
    let (one, two) = two();
    let (client, asked) = session();
    let answer = one.ask(asked).await;
    one.node.stopping.cancel();
    let received = rest(answer.into_body()).await.unwrap();
    ended_with(&received, &[], 503, "server_draining");
    two.has_ended(1).await;
    drop(client);
}

#[tokio::test]
async fn a_session_that_ends_within_a_message_does_not_pretend_that_nothing_happened() {
    let (one, _two) = two();
    let (client, asked) = session();
    let answer = one.ask(asked).await;
    client.send(Ok(message(1).slice(..4))).unwrap();
    let mut body = answer.into_body();
    let half = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(half.len(), 4);
    one.node.stopping.cancel();
    // The rest never comes: neither to the other node, nor to the client.
    rest(body).await.unwrap_err();
}

#[tokio::test]
async fn at_a_stop_readers_of_any_protocol_get_its_end() {
    let (one, two) = two();
    let asked = request("GET", "/v1/streams/a/records", Body::empty());
    let answer = one.ask(asked).await;
    let mut body = answer.into_body();
    body.frame().await.unwrap().unwrap();
    one.node.stopping.cancel();
    let end = rest(body).await.unwrap();
    let end = String::from_utf8_lossy(&end);
    assert!(
        end.starts_with("event: error\ndata: {") && end.ends_with("}\n\n"),
        "{end}"
    );
    assert!(end.contains("\"server_draining\""), "{end}");
    two.has_ended(1).await;

    let (one, two) = self::two();
    let answer = one.ask(state_call("Replay", "x")).await;
    let mut body = answer.into_body();
    body.frame().await.unwrap().unwrap();
    one.node.stopping.cancel();
    let trailers = tokio::time::timeout(SOON, body.frame()).await.unwrap();
    let trailers = trailers.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "14");
    assert!(body.frame().await.is_none());
    two.has_ended(1).await;
}

#[tokio::test]
async fn a_body_that_lies_between_the_nodes_is_not_the_clients_slowness() {
    let (one, two) = two();
    two.handled.finds_slow.store(true, Ordering::SeqCst);
    let answer = one.ask(request("PUT", "/v1/streams/a", "whole")).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    // A client that sends no more is slow.
    let (client, body) = sent_body();
    client.send(Ok(Bytes::from("x"))).unwrap();
    let answer = one.ask(request("PUT", "/v1/streams/a", body)).await;
    assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn at_a_stop_what_waits_for_an_answer_gets_one_if_nothing_has_happened() {
    let (one, two) = two();
    let read = one.ask(request("GET", "/v1/streams/a", Body::empty()));
    // Of this one, the end of the body never comes.
    let (client, body) = sent_body();
    client.send(Ok(Bytes::from("x"))).unwrap();
    let partial = one.ask(request("PUT", "/v1/streams/a", body));
    let stop = async {
        two.has_begun(2).await;
        one.node.stopping.cancel();
    };
    let both = async { tokio::join!(read, partial, stop) };
    let both = tokio::time::timeout(SOON, both).await;
    let (read, partial, ()) = both.expect("they are answered");
    for answer in [read, partial] {
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = rest(answer.into_body()).await.unwrap();
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains("\"server_draining\""), "{body}");
    }
}

#[tokio::test]
async fn at_a_stop_what_may_have_happened_is_waited_for() {
    let (one, two) = two();
    let asked = one.ask(request("PUT", "/v1/streams/a", "whole"));
    let mut asked = std::pin::pin!(asked);
    tokio::select! {
        _ = &mut asked => panic!("it waits for ever"),
        () = two.has_begun(1) => {}
    }
    one.node.stopping.cancel();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(asked.as_mut().now_or_never().is_none());
    two.kill();
    let answer = asked.await;
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn a_session_whose_client_takes_nothing_ends_as_one_with_this_node() {
    let (one, two) = two();
    let (client, asked) = session();
    let mut answer = one.ask(asked).await;
    client.send(Ok(message(1))).unwrap();
    let Some(AtStall::Cancel(stalled)) = answer.extensions_mut().remove() else {
        panic!("nobody could end it in order");
    };
    let mut body = answer.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, message(1));
    stalled.cancel();
    let received = rest(body).await.unwrap();
    ended_with(&received, &[], 503, "server_draining");
    two.has_ended(1).await;
}

#[tokio::test]
async fn a_session_whose_leader_is_replaced_is_answered_what_that_got_and_ends() {
    let (one, two) = two();
    let (client, asked) = session();
    let answer = one.ask(asked).await;
    client.send(Ok(message(1))).unwrap();
    let mut body = answer.into_body();
    body.frame().await.unwrap().unwrap();
    client.send(Ok(message(2))).unwrap();
    one.leads(Leader::At(3));
    let received = rest(body).await.unwrap();
    ended_with(&received, &[message(2)], 503, "server_draining");
    two.has_ended(1).await;
}

#[tokio::test]
async fn a_session_whose_replaced_leader_is_silent_ends_without_the_promise_that_nothing_happened()
{
    let (one, two) = two();
    let (client, asked) = session();
    let answer = one.ask(asked).await;
    client.send(Ok(message(1))).unwrap();
    let mut body = answer.into_body();
    body.frame().await.unwrap().unwrap();
    client.send(Ok(message(SILENT))).unwrap();
    one.leads(Leader::At(3));
    let received = rest(body).await.unwrap();
    ended_with(&received, &[], 500, "other");
    two.has_ended(1).await;
}

#[tokio::test]
async fn a_session_that_the_other_node_has_ended_gets_no_second_end() {
    let (one, _two) = two();
    let (client, asked) = session();
    let answer = one.ask(asked).await;
    let end = Bytes::from(vec![0, 0, 3, 0b1000_0000, 1, 0xf4]);
    client.send(Ok(end.clone())).unwrap();
    let mut body = answer.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, end);
    one.node.stopping.cancel();
    assert!(rest(body).await.unwrap().is_empty());
    drop(client);
}

#[tokio::test]
async fn a_session_whose_node_is_lost_ends_behind_its_last_message() {
    let (one, two) = self::two();
    let asked = request("GET", "/v1/streams/a/records", Body::empty());
    let mut reads = one.ask(asked).await.into_body();
    reads.frame().await.unwrap().unwrap();
    let (client, asked) = session();
    let mut appends = one.ask(asked).await.into_body();
    client.send(Ok(message(1))).unwrap();
    appends.frame().await.unwrap().unwrap();
    two.kill();
    // A reader connects again; what was appended may be there.
    let end = rest(reads).await.unwrap();
    let end = String::from_utf8_lossy(&end);
    assert!(end.contains("\"server_draining\""), "{end}");
    let received = rest(appends).await.unwrap();
    ended_with(&received, &[], 500, "other");
}
