//! Two nodes and more in one process, with connections of HTTP/2 in memory between them.

mod endings;
mod moves;
mod replicas;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use axum::{Extension, Router, middleware};
use bytes::Bytes;
use esker_node::{Error, TokenScope};
use futures::StreamExt as _;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tower::{ServiceExt as _, service_fn};

use super::envelope::Envelope;
use super::hop_headers::{ENVELOPE, SERVED_BY};
use super::peers::{Connection, Leader, Peers};
use super::service::{PeerRequests, peer_requests};
use super::{Forwarder, forward};
use crate::api::{Bodies, ServiceError};
use crate::auth::authority::tests::{Issued, authority, stored};
use crate::auth::token::hash;
use crate::auth::{Access, Authority, Claim, PeerAddress, Principal};
use crate::identification::{Learning, identify, learn};

const ROOT: &str = "the-root-token-of-this-test-of-forwarding";
/// A body that is kept whole.
const MAX_BODY: usize = super::outgoing::MAX_KEPT_WHOLE;
/// A time in which nothing more happens that was to happen.
const WHILE: Duration = Duration::from_millis(100);

/// A node of a cluster of which each test says who leads.
struct Node {
    id: u64,
    leader: Mutex<Leader>,
    channels: Mutex<HashMap<u64, Channel>>,
    /// Whether a majority answers.
    has_majority: AtomicBool,
    /// Whether it takes no proposals, because it gives the leadership away.
    is_moving: AtomicBool,
    /// Whether the catalog of this node has the basin, and whether it has after a round of ReadIndex.
    has_basin: AtomicBool,
    learns_basin: AtomicBool,
    rounds: AtomicUsize,
    stopping: CancellationToken,
    /// Whether the replica here has the stream.
    has_stream: AtomicBool,
    /// Why the cluster does not take the node, if so.
    refusal: Mutex<Option<String>>,
    /// What a round of ReadIndex brings.
    learns: Mutex<Option<Box<dyn Fn() + Send>>>,
}

#[async_trait]
impl Peers for Node {
    fn node(&self) -> u64 {
        self.id
    }

    fn others(&self) -> Vec<u64> {
        self.channels.lock().unwrap().keys().copied().collect()
    }

    fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap().clone()
    }

    fn follows(&self, partition: u64) -> bool {
        self.leader(partition) != Leader::Unknown
    }

    async fn has_stream(&self, _: &str, _: &str) -> bool {
        self.has_stream.load(Ordering::SeqCst)
    }

    fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    fn leader(&self, _: u64) -> Leader {
        *self.leader.lock().unwrap()
    }

    fn is_moving(&self, _: u64) -> bool {
        self.is_moving.load(Ordering::SeqCst)
    }

    async fn wait_for_leader(&self, partition: u64, longest: Duration) -> Leader {
        let known = async {
            while self.leader(partition) == Leader::Unknown {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(longest, known).await;
        self.leader(partition)
    }

    async fn read_index(&self, partition: u64) -> Result<(), String> {
        self.rounds.fetch_add(1, Ordering::SeqCst);
        if let Some(learns) = &*self.learns.lock().unwrap() {
            learns();
        }
        if partition == 0 && self.learns_basin.load(Ordering::SeqCst) {
            self.has_basin.store(true, Ordering::SeqCst);
        }
        match self.has_majority.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err("no majority".to_owned()),
        }
    }

    fn connection(&self, node: u64) -> Result<Connection, String> {
        let channel = self.channels.lock().unwrap().get(&node).cloned();
        let channel = channel.ok_or_else(|| "its address is not known".to_owned())?;
        Ok(Connection::new(channel))
    }

    fn stream_partition(&self, _: &str, _: &str) -> Option<u64> {
        self.has_basin.load(Ordering::SeqCst).then_some(1)
    }

    fn state_partition(&self) -> u64 {
        2
    }

    fn partitions(&self) -> u64 {
        3
    }
}

/// What a node has handled, and who has sent it.
#[derive(Clone, Default)]
struct Handled {
    requests: Arc<Mutex<Vec<(http::request::Parts, Bytes)>>>,
    begun: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    produced: Arc<AtomicUsize>,
    /// Requests whose proposals are refused, because this node does not lead any more.
    refuses: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    /// Whether it finds bodies too slow.
    finds_slow: Arc<AtomicBool>,
}

impl Handled {
    fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

/// A node, its routes, and what it has handled.
struct Member {
    node: Arc<Node>,
    handled: Handled,
    router: Router,
    requests: PeerRequests,
    forwarder: Forwarder,
    /// Its tokens, and what knows them.
    issued: Issued,
    on: Arc<Authority>,
    /// Ends its connections; none is made until it is replaced.
    up: Arc<Mutex<CancellationToken>>,
}

impl Member {
    fn new(id: u64, leader: Leader) -> Member {
        let node = Arc::new(Node {
            id,
            leader: Mutex::new(leader),
            channels: Mutex::default(),
            has_majority: AtomicBool::new(true),
            is_moving: AtomicBool::new(false),
            has_basin: AtomicBool::new(true),
            learns_basin: AtomicBool::new(false),
            rounds: AtomicUsize::new(0),
            stopping: CancellationToken::new(),
            has_stream: AtomicBool::new(false),
            refusal: Mutex::default(),
            learns: Mutex::default(),
        });
        let handled = Handled::default();
        let bodies = Bodies::new(1 << 26, 1 << 22, Duration::from_secs(10));
        let forwarder = Forwarder::with(node.clone(), Duration::from_millis(500), &bodies);
        let router = Router::new()
            .route("/v1/basins", any(keep))
            .route("/v1/streams", any(keep))
            .route("/v1/streams/{stream}", any(keep))
            .route("/v1/streams/{stream}/records", get(endless).post(records))
            .route("/statehouse.v1.StatehouseService/{method}", any(call))
            .route("/health", any(keep))
            .with_state(handled.clone())
            .route_layer(middleware::from_fn_with_state(forwarder.clone(), forward));
        let issued = Issued::default();
        let on = Arc::new(authority(Some(ROOT), &issued));
        let requests = peer_requests(router.clone(), on.clone(), forwarder.clone());
        let principal = Principal::Root(hash(ROOT));
        let peer: SocketAddr = "192.0.2.7:4711".parse().unwrap();
        let router = router
            .layer(Extension(Access::new(on.clone(), principal.clone())))
            .layer(Extension(principal))
            .layer(Extension(PeerAddress(peer)));
        Member {
            node,
            handled,
            router,
            requests,
            forwarder,
            issued,
            on,
            up: Arc::default(),
        }
    }

    /// A token that the catalog has, and this node only after a round of ReadIndex.
    fn has_newer_token(&self, text: &'static str) {
        let issued = self.issued.clone();
        let learns = move || issued.set(Ok(vec![stored(text, TokenScope::default())]));
        *self.node.learns.lock().unwrap() = Some(Box::new(learns));
    }

    fn rounds(&self) -> usize {
        self.node.rounds.load(Ordering::SeqCst)
    }

    fn leads(&self, leader: Leader) {
        *self.node.leader.lock().unwrap() = leader;
    }

    /// Ends all connections to it, and refuses new ones.
    fn kill(&self) {
        self.up.lock().unwrap().cancel();
    }

    /// Connects this node with another.
    fn connect(&self, to: &Member) {
        let (up, requests) = (to.up.clone(), to.requests.clone());
        let connector = service_fn(move |_: http::Uri| {
            let (up, requests) = (up.lock().unwrap().clone(), requests.clone());
            async move {
                if up.is_cancelled() {
                    return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
                }
                let (ours, theirs) = tokio::io::duplex(64 * 1024);
                tokio::spawn(async move {
                    tokio::select! {
                        () = serve(theirs, requests) => {}
                        () = up.cancelled() => {}
                    }
                });
                Ok(TokioIo::new(ours))
            }
        });
        let endpoint = Endpoint::from_static("http://a-peer");
        let channel = endpoint.connect_with_connector_lazy(connector);
        let mut channels = self.node.channels.lock().unwrap();
        channels.insert(to.node.id, channel);
    }

    async fn ask(&self, request: Request) -> Response {
        let asked = self.router.clone().oneshot(request);
        let asked = tokio::time::timeout(Duration::from_secs(20), asked);
        asked.await.expect("an answer").unwrap()
    }
}

async fn serve(stream: DuplexStream, requests: PeerRequests) {
    let service = hyper::service::service_fn(move |request: http::Request<_>| {
        let request = request.map(|body: hyper::body::Incoming| tonic::body::Body::new(body));
        requests.clone().oneshot(request)
    });
    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    // It ends with an error when the other side is dropped.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

/// Two nodes; the second leads, as both know.
fn pair() -> (Member, Member) {
    let (one, two) = (Member::new(1, Leader::At(2)), Member::new(2, Leader::Here));
    one.connect(&two);
    two.connect(&one);
    (one, two)
}

/// Counts itself as ended when its handler is dropped.
struct Ends(Arc<AtomicUsize>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Keeps a request with its whole body, and answers with the body.
async fn keep(State(handled): State<Handled>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return StatusCode::BAD_REQUEST.into_response(),
    };
    let refuses = |left: usize| left.checked_sub(1);
    let refused = (handled.refuses).fetch_update(Ordering::SeqCst, Ordering::SeqCst, refuses);
    if refused.is_ok() {
        handled.refused.fetch_add(1, Ordering::SeqCst);
        let error = Error::NotLeader("this node does not lead the partition".to_owned());
        return ServiceError::Node(error).into_response();
    }
    handled.requests.lock().unwrap().push((head, body.clone()));
    (StatusCode::CREATED, [("x-of-handler", "1")], body).into_response()
}

/// Answers each piece of a session's body with the same; waits for ever if the first is `wait`.
async fn records(State(handled): State<Handled>, request: Request) -> Response {
    handled.begun.fetch_add(1, Ordering::SeqCst);
    let ends = Ends(handled.ended.clone());
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
async fn endless(State(handled): State<Handled>) -> Response {
    let ends = Ends(handled.ended.clone());
    let pieces = futures::stream::repeat_with(move || {
        let _ends = &ends;
        handled.produced.fetch_add(1, Ordering::SeqCst);
        Ok::<_, axum::Error>(Bytes::from(vec![7; 16 * 1024]))
    });
    Body::from_stream(pieces).into_response()
}

/// A call with a message and trailers.
async fn call(State(handled): State<Handled>, request: Request) -> Response {
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

fn request(method: &str, path: &str, body: impl Into<Body>) -> Request {
    Request::builder()
        .method(method)
        .uri(path)
        .header("s2-basin", "test-basin")
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .unwrap()
}

fn session(body: Body) -> Request {
    let mut request = request("POST", "/v1/streams/a/records", body);
    let kind = "s2s/proto".parse().unwrap();
    request.headers_mut().insert(header::CONTENT_TYPE, kind);
    request
}

async fn text(response: Response) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    assert!(waited.is_ok(), "{what}");
}

/// The code of an error, and whether it says when to try again.
async fn code(response: Response) -> (StatusCode, String, bool) {
    let status = response.status();
    let retries = response.headers().contains_key(header::RETRY_AFTER)
        && response.headers().contains_key("retry-after-ms");
    let body: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
    (status, body["code"].as_str().unwrap().to_owned(), retries)
}

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
async fn a_session_goes_both_ways_at_once() {
    let (one, two) = pair();
    let (client, pieces) = mpsc::unbounded_channel::<Result<Bytes, axum::Error>>();
    let body = Body::from_stream(UnboundedReceiverStream::new(pieces));
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
    eventually("the session ends", || {
        two.handled.ended.load(Ordering::SeqCst) == 1
    })
    .await;
}

fn state_call(method: &str, message: &'static str) -> Request {
    let path = format!("/statehouse.v1.StatehouseService/{method}");
    let mut call = request("POST", &path, message);
    let kind = "application/grpc".parse().unwrap();
    call.headers_mut().insert(header::CONTENT_TYPE, kind);
    call.headers_mut()
        .insert(header::TE, "trailers".parse().unwrap());
    call
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
    eventually("it begins", || {
        two.handled.begun.load(Ordering::SeqCst) == 1
    })
    .await;
    waiting.abort();
    eventually("it ends", || two.handled.ended.load(Ordering::SeqCst) == 1).await;
    // While it is answered.
    let answer = one
        .ask(request("GET", "/v1/streams/a/records", Body::empty()))
        .await;
    let mut pieces = answer.into_body().into_data_stream();
    pieces.next().await.unwrap().unwrap();
    drop(pieces);
    eventually("it ends", || two.handled.ended.load(Ordering::SeqCst) == 2).await;
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
async fn without_a_leader_nothing_happens_and_the_client_may_try_again() {
    let (one, two) = pair();
    one.leads(Leader::Unknown);
    let answer = one.ask(request("PUT", "/v1/streams/a", "x")).await;
    let refused = (
        StatusCode::SERVICE_UNAVAILABLE,
        "server_draining".to_owned(),
        true,
    );
    assert_eq!(code(answer).await, refused);
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
        let refused = (
            StatusCode::SERVICE_UNAVAILABLE,
            "server_draining".to_owned(),
            true,
        );
        assert_eq!(code(answer).await, refused, "{method}");
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
async fn what_was_passed_on_is_never_repeated_when_the_leader_is_lost() {
    let (one, two) = pair();
    let three = Member::new(3, Leader::Here);
    one.connect(&three);
    let asked = one.ask(request("POST", "/v1/streams/a/records", "wait"));
    let (answer, ()) = tokio::join!(asked, async {
        eventually("it begins", || {
            two.handled.begun.load(Ordering::SeqCst) == 1
        })
        .await;
        one.leads(Leader::At(3));
        two.kill();
    });
    let unknown = (StatusCode::INTERNAL_SERVER_ERROR, "other".to_owned(), false);
    assert_eq!(code(answer).await, unknown);
    assert_eq!(three.handled.begun.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_client_that_sends_its_body_late_is_answered_by_the_leader() {
    let (one, two) = pair();
    let (client, pieces) = mpsc::unbounded_channel();
    let body = Body::from_stream(UnboundedReceiverStream::new(pieces));
    let asked = one.ask(request("POST", "/v1/streams/a/records", body));
    let (answer, ()) = tokio::join!(asked, async {
        // Longer than a request waits for a leader.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let piece = Bytes::from_static(b"late");
        client.send(Ok::<_, axum::Error>(piece)).unwrap();
        drop(client);
    });
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(text(answer).await, "late");
    assert_eq!(two.handled.begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_leader_that_is_silent_after_its_leadership_is_not_waited_for() {
    let (one, two) = pair();
    let three = Member::new(3, Leader::Here);
    one.connect(&three);
    let asked = one.ask(request("POST", "/v1/streams/a/records", "wait"));
    let (answer, ()) = tokio::join!(asked, async {
        eventually("it begins", || {
            two.handled.begun.load(Ordering::SeqCst) == 1
        })
        .await;
        one.leads(Leader::At(3));
    });
    let unknown = (StatusCode::INTERNAL_SERVER_ERROR, "other".to_owned(), false);
    assert_eq!(code(answer).await, unknown);
    eventually("it ends there", || {
        two.handled.ended.load(Ordering::SeqCst) == 1
    })
    .await;
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
    let (client, pieces) = mpsc::unbounded_channel::<Result<Bytes, axum::Error>>();
    let body = Body::from_stream(UnboundedReceiverStream::new(pieces));
    let answer = one.ask(session(body)).await;
    let mut echoed = answer.into_body().into_data_stream();
    client.send(Ok(Bytes::from_static(b"x"))).unwrap();
    echoed.next().await.unwrap().unwrap();
    one.leads(Leader::At(3));
    let end = echoed.next().await;
    assert!(matches!(end, Some(Err(_))), "{end:?}");
    drop(echoed);
    eventually("it ends there", || {
        two.handled.ended.load(Ordering::SeqCst) == 1
    })
    .await;
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
    for body in [
        Body::empty(),
        Body::from(vec![7; super::outgoing::MAX_KEPT + 1]),
    ] {
        let answer = one.ask(request("PUT", "/v1/streams/a", body)).await;
        let refused = (
            StatusCode::SERVICE_UNAVAILABLE,
            "server_draining".to_owned(),
            true,
        );
        assert_eq!(code(answer).await, refused);
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
        let refused = (
            StatusCode::SERVICE_UNAVAILABLE,
            "server_draining".to_owned(),
            true,
        );
        assert_eq!(code(answer).await, refused, "{path}");
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
    let learning = Learning::new(one.on.clone(), one.forwarder.clone());
    let router = Router::new()
        .route("/v1/basins", get(async || "answered"))
        .layer(middleware::from_fn_with_state(one.on.clone(), identify))
        .layer(middleware::from_fn_with_state(learning, learn));
    let ask = async |token: &str| {
        let mut asked = request("GET", "/v1/basins", Body::empty());
        let bearer = format!("Bearer {token}").parse().unwrap();
        asked.headers_mut().insert(header::AUTHORIZATION, bearer);
        let peer: SocketAddr = "192.0.2.8:4711".parse().unwrap();
        asked.extensions_mut().insert(PeerAddress(peer));
        router.clone().oneshot(asked).await.unwrap().status()
    };
    let mut refused = StatusCode::OK;
    for number in 0..100 {
        refused = ask(&format!("guess-{number}")).await;
    }
    assert_eq!(refused, StatusCode::TOO_MANY_REQUESTS);
    // One for each failure that an address may have, and for those that time gives back.
    assert!(one.rounds() < 50, "{} rounds", one.rounds());
    assert_eq!(ask(ROOT).await, StatusCode::OK);
}

#[tokio::test]
async fn a_token_that_a_node_does_not_know_yet_is_looked_up_once_more() {
    let one = Member::new(1, Leader::Here);
    let learning = Learning::new(one.on.clone(), one.forwarder.clone());
    let router = Router::new()
        .route("/v1/basins", get(async || "answered"))
        .layer(middleware::from_fn_with_state(one.on.clone(), identify))
        .layer(middleware::from_fn_with_state(learning, learn));
    let ask = async |token: &str| {
        let mut asked = request("GET", "/v1/basins", Body::empty());
        let bearer = format!("Bearer {token}").parse().unwrap();
        asked.headers_mut().insert(header::AUTHORIZATION, bearer);
        router.clone().oneshot(asked).await.unwrap().status()
    };
    assert_eq!(ask(ROOT).await, StatusCode::OK);
    assert_eq!(one.rounds(), 0);
    assert_eq!(ask("newer").await, StatusCode::UNAUTHORIZED);
    one.has_newer_token("newer");
    assert_eq!(ask("newer").await, StatusCode::OK);
    assert_eq!(one.rounds(), 2);
    assert_eq!(ask("newer").await, StatusCode::OK);
    assert_eq!(one.rounds(), 2, "it is known now");
    // Without a majority, nobody knows whether it is valid.
    one.node.has_majority.store(false, Ordering::SeqCst);
    let unknown = ask("another").await;
    assert_eq!(unknown, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ask("newer").await, StatusCode::OK);
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
