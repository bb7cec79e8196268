//! What of a request is sent again, and what is not.

use esker_node::Client;
use futures::FutureExt as _;
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;
use crate::api::Bodies;

type Sender = mpsc::UnboundedSender<Result<Bytes, axum::Error>>;

fn streamed() -> (Sender, Outgoing) {
    let (sender, pieces) = mpsc::unbounded_channel();
    let body = Body::from_stream(UnboundedReceiverStream::new(pieces));
    (sender, outgoing(body))
}

fn bodies() -> Bodies {
    let timeout = std::time::Duration::from_secs(10);
    Bodies::new(1 << 20, 1 << 20, timeout)
}

fn outgoing(body: Body) -> Outgoing {
    Outgoing::new(Request::new(body), bodies().kept(Client::default()))
}

fn send(to: &Sender, text: &'static str) {
    to.send(Ok(Bytes::from_static(text.as_bytes()))).unwrap();
}

async fn next(body: &mut Passing) -> Bytes {
    body.frame().await.unwrap().unwrap().into_data().unwrap()
}

#[tokio::test]
async fn a_body_is_sent_again_from_its_beginning_and_goes_on_where_it_was() {
    let (client, outgoing) = streamed();
    let mut first = outgoing.begin().unwrap();
    send(&client, "one");
    assert_eq!(next(&mut first).await, "one");
    assert!(!outgoing.withdraw(), "it has happened, perhaps");
    let mut second = outgoing.begin().unwrap();
    assert!(first.frame().await.unwrap().is_err(), "it was taken back");
    send(&client, "two");
    assert_eq!(next(&mut second).await, "one");
    drop(client);
    let request = outgoing.into_request().unwrap();
    assert!(second.frame().await.unwrap().is_err());
    let whole = request.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(whole, "onetwo");
}

#[tokio::test]
async fn an_attempt_that_waits_for_the_client_ends_when_another_begins() {
    let (_client, outgoing) = streamed();
    let mut first = outgoing.begin().unwrap();
    let waiting = tokio::spawn(async move { first.frame().await.unwrap().is_err() });
    tokio::task::yield_now().await;
    let _second = outgoing.begin().unwrap();
    assert!(waiting.await.unwrap());
}

#[tokio::test]
async fn what_is_longer_than_what_is_kept_is_sent_once() {
    let body = vec![7; MAX_KEPT_WHOLE + 1];
    let whole = outgoing(Body::from(body));
    let mut only = whole.begin().unwrap();
    assert_eq!(next(&mut only).await.len(), MAX_KEPT_WHOLE + 1);
    assert!(whole.begin().is_none());
    assert!(only.frame().await.is_none());
    // How long it will be is not known.
    let (client, streamed) = streamed();
    let piece = Bytes::from(vec![7; MAX_KEPT + 1]);
    client.send(Ok(piece)).unwrap();
    let mut only = streamed.begin().unwrap();
    assert_eq!(next(&mut only).await.len(), MAX_KEPT + 1);
    assert!(streamed.begin().is_none());
}

#[tokio::test]
async fn a_request_that_this_node_does_not_take_goes_to_another_whole() {
    let body = Bytes::from(vec![7; MAX_KEPT + 1]);
    // One request may have a part of it.
    let bodies = Bodies::new(1 << 26, 1 << 22, std::time::Duration::from_secs(10));
    let request = Request::new(Body::from(body.clone()));
    let outgoing = Outgoing::new(request, bodies.kept(Client::default()));
    let here = outgoing.request_here().unwrap();
    assert_eq!(here.into_body().collect().await.unwrap().to_bytes(), body);
    let mut there = outgoing.begin().unwrap();
    assert_eq!(next(&mut there).await, body);
    assert!(there.frame().await.is_none());
}

#[tokio::test]
async fn the_end_of_an_empty_body_is_passed_on_like_a_byte() {
    let outgoing = outgoing(Body::empty());
    let mut body = outgoing.begin().unwrap();
    assert!(!body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
    assert!(body.frame().await.is_none());
    assert!(body.is_end_stream() && !outgoing.withdraw());
    let request = outgoing.into_request().unwrap();
    assert!(request.body().is_end_stream());
}

#[tokio::test]
async fn an_attempt_that_was_withdrawn_passes_on_nothing() {
    let outgoing = outgoing(Body::from("body"));
    let mut first = outgoing.begin().unwrap();
    assert!(outgoing.withdraw());
    assert!(first.frame().await.unwrap().is_err());
    let mut second = outgoing.begin().unwrap();
    assert_eq!(next(&mut second).await, "body");
}

#[tokio::test]
async fn a_client_that_fails_is_noticed() {
    let (client, outgoing) = streamed();
    let mut body = outgoing.begin().unwrap();
    assert!(body.frame().now_or_never().is_none());
    client.send(Err(axum::Error::new(TakenBack))).unwrap();
    assert!(body.frame().await.unwrap().is_err());
    assert!(outgoing.has_failed());
}

#[tokio::test]
async fn what_is_kept_counts_among_all_bodies_until_the_answer_begins() {
    let bodies = bodies();
    let request = |bytes: usize| {
        let body = Body::from(vec![7; bytes]);
        Outgoing::new(Request::new(body), bodies.kept(Client::default()))
    };
    let outgoing = request(1000);
    let mut first = outgoing.begin().unwrap();
    assert_eq!(bodies.held(), 0, "nothing has come yet");
    next(&mut first).await;
    assert_eq!(bodies.held(), 1000);
    // What is read again is the same memory.
    let mut second = outgoing.begin().unwrap();
    assert_eq!(bodies.held(), 1000);
    outgoing.release();
    assert_eq!(bodies.held(), 1000, "it is not passed on yet");
    next(&mut second).await;
    assert_eq!(bodies.held(), 0);
    // Larger ones are not kept.
    let large = request(MAX_KEPT_WHOLE + 1);
    next(&mut large.begin().unwrap()).await;
    assert_eq!(bodies.held(), 0);
}

#[tokio::test]
async fn without_memory_nothing_is_kept_and_all_is_passed_on() {
    let bodies = bodies();
    let request = || {
        let body = Body::from(vec![7; MAX_KEPT]);
        Outgoing::new(Request::new(body), bodies.kept(Client::default()))
    };
    let mut all = Vec::new();
    let refused = loop {
        let outgoing = request();
        let read = next(&mut outgoing.begin().unwrap()).await;
        assert_eq!(read.len(), MAX_KEPT);
        if outgoing.begin().is_none() {
            break all.len();
        }
        all.push(outgoing);
        assert!(all.len() < 1000, "they are not counted");
    };
    assert_eq!(bodies.held(), refused * MAX_KEPT);
    drop(all);
    assert_eq!(bodies.held(), 0);
}

#[tokio::test]
async fn a_session_ends_behind_the_message_that_has_begun() {
    let message = |byte: u8| Bytes::from(vec![0, 0, 3, 0, byte, byte]);
    let (client, mut outgoing) = streamed();
    let kind = http::HeaderValue::from_static("s2s/proto");
    (outgoing.head.headers).insert(http::header::CONTENT_TYPE, kind);
    let mut body = outgoing.begin().unwrap();
    let sending = outgoing.sending();
    let both = [message(1), message(2)].concat();
    client.send(Ok(Bytes::copy_from_slice(&both[..8]))).unwrap();
    assert_eq!(next(&mut body).await, both[..8]);
    sending.end_input();
    assert!(
        body.frame().now_or_never().is_none(),
        "the message is not whole"
    );
    let rest = [&both[8..], &message(3)].concat();
    client.send(Ok(rest.into())).unwrap();
    assert_eq!(next(&mut body).await, both[8..]);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_session_between_messages_ends_at_once() {
    let (client, outgoing) = streamed();
    let mut body = outgoing.begin().unwrap();
    let waiting = tokio::spawn(async move { body.frame().await.is_none() });
    tokio::task::yield_now().await;
    let sending = outgoing.sending();
    sending.end_input();
    assert!(waiting.await.unwrap());
    drop((client, sending));
}

#[tokio::test]
async fn a_request_that_is_given_back_counts_and_is_sent_whole_as_often_as_it_has_to_be() {
    let bodies = Bodies::new(8 << 20, 1 << 20, std::time::Duration::from_secs(10));
    let body = Bytes::from(vec![7; 3 * MAX_KEPT]);
    let memory = bodies.kept(Client::default());
    let given_back = http::Request::new(body.clone());
    let outgoing = Outgoing::given_back(given_back, memory).unwrap();
    assert_eq!(bodies.held(), body.len());
    for _ in 0..2 {
        let mut sent = outgoing.begin().unwrap();
        assert_eq!(sent.size_hint().exact(), Some(body.len() as u64));
        assert_eq!(next(&mut sent).await, body);
        assert!(sent.frame().await.is_none());
    }
    let here = outgoing.request_here().unwrap().into_body();
    assert_eq!(here.collect().await.unwrap().to_bytes(), body);
    drop(outgoing);
    assert_eq!(bodies.held(), 0);
    // Without memory, it is not kept.
    let large = http::Request::new(Bytes::from(vec![7; 8 << 20]));
    let memory = bodies.kept(Client::default());
    assert!(Outgoing::given_back(large, memory).is_none());
}
