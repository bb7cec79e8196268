//! A node with its connections, of which each test decides who leads.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::{any, get};
use axum::{Extension, Router, middleware};
use esker_node::{Client, TokenScope};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tower::{ServiceExt as _, service_fn};

use super::handlers::{Handled, call, endless, eventually, keep, records};
use crate::api::Bodies;
use crate::auth::authority::tests::{Issued, authority, stored};
use crate::auth::token::hash;
use crate::auth::{Access, Authority, PeerAddress, Principal};
use crate::forward::peers::{Connection, Leader, Peers};
use crate::forward::service::{PeerRequests, peer_requests};
use crate::forward::{Forwarder, forward};

pub(super) const ROOT: &str = "the-root-token-of-this-test-of-forwarding";

/// A node of a cluster of which each test says who leads.
pub(super) struct Node {
    pub(super) id: u64,
    pub(super) leader: Mutex<Leader>,
    pub(super) channels: Mutex<HashMap<u64, Channel>>,
    /// Whether a majority answers.
    pub(super) has_majority: AtomicBool,
    /// Whether it takes no proposals, because it gives the leadership away.
    pub(super) is_moving: AtomicBool,
    /// Whether the catalog of this node has the basin, and whether it has after a round of ReadIndex.
    pub(super) has_basin: AtomicBool,
    pub(super) learns_basin: AtomicBool,
    pub(super) rounds: AtomicUsize,
    pub(super) stopping: CancellationToken,
    /// Whether the replica here has the stream.
    pub(super) has_stream: AtomicBool,
    /// Why the cluster does not take the node, if so.
    pub(super) refusal: Mutex<Option<String>>,
    /// What a round of ReadIndex brings.
    pub(super) learns: Mutex<Option<Box<dyn Fn() + Send>>>,
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

    async fn has_stream(&self, _: Client, _: &str, _: &str) -> bool {
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

/// A node, its routes, and what it has handled.
pub(super) struct Member {
    pub(super) node: Arc<Node>,
    pub(super) handled: Handled,
    pub(super) router: Router,
    pub(super) requests: PeerRequests,
    pub(super) forwarder: Forwarder,
    /// Its tokens, and what knows them.
    pub(super) issued: Issued,
    pub(super) on: Arc<Authority>,
    /// Ends its connections; none is made until it is replaced.
    pub(super) up: Arc<Mutex<CancellationToken>>,
}

impl Member {
    pub(super) fn new(id: u64, leader: Leader) -> Member {
        let routes = Router::new()
            .route("/v1/basins", any(keep))
            .route("/v1/streams", any(keep))
            .route("/v1/streams/{stream}", any(keep))
            // Nested, as all of them are: its handlers get a shorter address.
            .nest(
                "/v1/streams/{stream}",
                Router::new().route("/records", get(endless).post(records)),
            )
            .route("/statehouse.v1.StatehouseService/{method}", any(call))
            .route("/health", any(keep));
        Member::with_routes(id, leader, routes)
    }

    /// A member with routes of its own, behind the layers of all.
    pub(super) fn with_routes(id: u64, leader: Leader, routes: Router<Handled>) -> Member {
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
        let bodies = Bodies::new(1 << 26, 1 << 22, Duration::from_secs(10));
        let handled = Handled::of(&bodies);
        let forwarder = Forwarder::with(node.clone(), Duration::from_millis(500), &bodies);
        let router = routes
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
    pub(super) fn has_newer_token(&self, text: &'static str) {
        let issued = self.issued.clone();
        let learns = move || issued.set(Ok(vec![stored(text, TokenScope::default())]));
        *self.node.learns.lock().unwrap() = Some(Box::new(learns));
    }

    /// Waits until it has begun to handle so many requests.
    pub(super) async fn has_begun(&self, requests: usize) {
        let begun = || self.handled.begun.load(Ordering::SeqCst) == requests;
        eventually("the node begins to handle the requests", begun).await;
    }

    /// Waits until it handles so many requests no more.
    pub(super) async fn has_ended(&self, requests: usize) {
        let ended = || self.handled.ended.load(Ordering::SeqCst) == requests;
        eventually("the node ends the requests", ended).await;
    }

    pub(super) fn rounds(&self) -> usize {
        self.node.rounds.load(Ordering::SeqCst)
    }

    pub(super) fn leads(&self, leader: Leader) {
        *self.node.leader.lock().unwrap() = leader;
    }

    /// Ends all connections to it, and refuses new ones.
    pub(super) fn kill(&self) {
        self.up.lock().unwrap().cancel();
    }

    /// Connects this node with another.
    pub(super) fn connect(&self, to: &Member) {
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

    pub(super) async fn ask(&self, request: Request) -> Response {
        let asked = self.router.clone().oneshot(request);
        let asked = tokio::time::timeout(Duration::from_secs(20), asked);
        asked.await.expect("an answer").unwrap()
    }
}

pub(super) async fn serve(stream: DuplexStream, requests: PeerRequests) {
    let service = hyper::service::service_fn(move |request: http::Request<_>| {
        let request = request.map(|body: hyper::body::Incoming| tonic::body::Body::new(body));
        requests.clone().oneshot(request)
    });
    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    // It ends with an error when the other side is dropped.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

/// Two nodes; the second leads, as both know.
pub(super) fn pair() -> (Member, Member) {
    let (one, two) = (Member::new(1, Leader::At(2)), Member::new(2, Leader::Here));
    one.connect(&two);
    two.connect(&one);
    (one, two)
}
