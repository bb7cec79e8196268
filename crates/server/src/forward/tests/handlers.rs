//! What the nodes do with requests, and the requests.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest as _, Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use esker_node::Error;
use futures::StreamExt as _;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use prost::Message as _;
use s2_api::v1::stream::proto;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::api::{AppendBody, Bodies, ServiceError};

/// What a node has handled, and who has sent it.
#[derive(Clone, Default)]
pub(super) struct Handled {
    pub(super) requests: Arc<Mutex<Vec<(http::request::Parts, Bytes)>>>,
    pub(super) begun: Arc<AtomicUsize>,
    pub(super) ended: Arc<AtomicUsize>,
    pub(super) produced: Arc<AtomicUsize>,
    /// Requests whose proposals are refused, because this node does not lead any more.
    pub(super) refuses: Arc<AtomicUsize>,
    pub(super) refused: Arc<AtomicUsize>,
    /// Whether it finds bodies too slow.
    pub(super) finds_slow: Arc<AtomicBool>,
    /// What counts kept bodies at this node, and the most that it has counted while an append was handled.
    pub(super) bodies: Option<Bodies>,
    pub(super) most_kept: Arc<AtomicUsize>,
}

impl Handled {
    pub(super) fn of(bodies: &Bodies) -> Handled {
        Handled {
            bodies: Some(bodies.clone()),
            ..Handled::default()
        }
    }

    /// Takes one of the refusals that are left.
    pub(super) fn refuses(&self) -> bool {
        let one_less = |left: usize| left.checked_sub(1);
        let left = (self.refuses).fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        if left.is_ok() {
            self.refused.fetch_add(1, Ordering::SeqCst);
        }
        left.is_ok()
    }

    pub(super) fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

/// Counts itself as ended when its handler is dropped.
pub(super) struct Ends(pub(super) Arc<AtomicUsize>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Keeps a request with its whole body, and answers with the body.
pub(super) async fn keep(State(handled): State<Handled>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return StatusCode::BAD_REQUEST.into_response(),
    };
    if handled.refuses() {
        return not_leader().into_response();
    }
    handled.requests.lock().unwrap().push((head, body.clone()));
    (StatusCode::CREATED, [("x-of-handler", "1")], body).into_response()
}

pub(super) fn not_leader() -> ServiceError {
    ServiceError::Node(Error::NotLeader(
        "this node does not lead the partition".to_owned(),
    ))
}

/// One append, read as the handler of the server reads it.
pub(super) async fn append(handled: Handled, request: Request) -> Response {
    let kept = handled.bodies.as_ref().map_or(0, Bodies::held);
    handled.most_kept.fetch_max(kept, Ordering::SeqCst);
    let Ok(AppendBody::One(append, whole)) = AppendBody::from_request(request, &()).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let kept = handled.bodies.as_ref().map_or(0, Bodies::held);
    handled.most_kept.fetch_max(kept, Ordering::SeqCst);
    if handled.refuses() {
        return whole.answer(not_leader());
    }
    let records = append.input.records.len();
    let head = http::Request::new(()).into_parts().0;
    let mut requests = handled.requests.lock().unwrap();
    requests.push((head, Bytes::from(records.to_string())));
    StatusCode::CREATED.into_response()
}

/// Answers each piece of a session's body with the same; waits for ever if the first is `wait`.
pub(super) async fn records(State(handled): State<Handled>, request: Request) -> Response {
    handled.begun.fetch_add(1, Ordering::SeqCst);
    let ends = Ends(handled.ended.clone());
    if request.headers()[header::CONTENT_TYPE] == "application/protobuf" {
        return append(handled, request).await;
    }
    if request.headers()[header::CONTENT_TYPE] != "s2s/proto" {
        let mut body = request.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        if first == "wait" {
            std::future::pending::<()>().await;
        }
        drop(ends);
        return first.into_response();
    }
    let pieces = request.into_body().into_data_stream();
    // The end of a body is a piece without data.
    let pieces = pieces.filter(|piece| {
        let is_end = piece.as_ref().is_ok_and(Bytes::is_empty);
        std::future::ready(!is_end)
    });
    let echoed = pieces.map(move |piece| {
        let _ends = &ends;
        piece
    });
    Body::from_stream(echoed).into_response()
}

/// An answer without end.
pub(super) async fn endless(State(handled): State<Handled>) -> Response {
    let ends = Ends(handled.ended.clone());
    let pieces = futures::stream::repeat_with(move || {
        let _ends = &ends;
        handled.produced.fetch_add(1, Ordering::SeqCst);
        Ok::<_, axum::Error>(Bytes::from(vec![7; 16 * 1024]))
    });
    Body::from_stream(pieces).into_response()
}

/// A call with a message and trailers.
pub(super) async fn call(State(handled): State<Handled>, request: Request) -> Response {
    handled.begun.fetch_add(1, Ordering::SeqCst);
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let waits = body == "wait";
    handled.requests.lock().unwrap().push((head, body.clone()));
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let frames = [Frame::data(body), Frame::trailers(trailers)];
    let frames = futures::stream::iter(frames).enumerate();
    let frames = frames.then(move |(number, frame)| async move {
        if waits && number == 1 {
            std::future::pending::<()>().await;
        }
        Ok::<_, axum::Error>(frame)
    });
    Response::new(Body::new(StreamBody::new(frames.boxed())))
}

pub(super) fn request(method: &str, path: &str, body: impl Into<Body>) -> Request {
    Request::builder()
        .method(method)
        .uri(path)
        .header("s2-basin", "test-basin")
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .unwrap()
}

/// Sends the pieces of a body; its end is that of the body.
pub(super) type Pieces = mpsc::UnboundedSender<Result<Bytes, axum::Error>>;

/// A body whose pieces are sent while its request is under way.
pub(super) fn sent_body() -> (Pieces, Body) {
    let (client, pieces) = mpsc::unbounded_channel();
    let body = Body::from_stream(UnboundedReceiverStream::new(pieces));
    (client, body)
}

pub(super) fn session(body: Body) -> Request {
    let mut request = request("POST", "/v1/streams/a/records", body);
    let kind = "s2s/proto".parse().unwrap();
    request.headers_mut().insert(header::CONTENT_TYPE, kind);
    request
}

pub(super) async fn text(response: Response) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

pub(super) async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    assert!(waited.is_ok(), "{what}");
}

/// The code of an error, and whether it says when to try again.
pub(super) async fn code(response: Response) -> (StatusCode, String, bool) {
    let status = response.status();
    let retries = response.headers().contains_key(header::RETRY_AFTER)
        && response.headers().contains_key("retry-after-ms");
    let body: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
    (status, body["code"].as_str().unwrap().to_owned(), retries)
}

/// What [`code`] finds in the answer to a request that certainly had no effect.
pub(super) fn no_side_effects() -> (StatusCode, String, bool) {
    let code = "server_draining".to_owned();
    (StatusCode::SERVICE_UNAVAILABLE, code, true)
}

/// What [`code`] finds in the answer to a request whose outcome is unknown.
pub(super) fn unknown_outcome() -> (StatusCode, String, bool) {
    (StatusCode::INTERNAL_SERVER_ERROR, "other".to_owned(), false)
}

pub(super) fn state_call(method: &str, message: &'static str) -> Request {
    let path = format!("/statehouse.v1.StatehouseService/{method}");
    let mut call = request("POST", &path, message);
    let kind = "application/grpc".parse().unwrap();
    call.headers_mut().insert(header::CONTENT_TYPE, kind);
    call.headers_mut()
        .insert(header::TE, "trailers".parse().unwrap());
    call
}

/// A request to append so many records.
pub(super) fn appends(records: usize) -> Request {
    let record = proto::AppendRecord {
        body: Bytes::from_static(b"a record"),
        ..proto::AppendRecord::default()
    };
    let input = proto::AppendInput {
        records: vec![record; records],
        ..proto::AppendInput::default()
    };
    let mut request = request("POST", "/v1/streams/a/records", input.encode_to_vec());
    let kind = "application/protobuf".parse().unwrap();
    request.headers_mut().insert(header::CONTENT_TYPE, kind);
    request
}
