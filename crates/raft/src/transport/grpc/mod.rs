//! Messages between nodes over gRPC.
//!
//! ```text
//! /esker.raft.v1.Peers/Hello        who is at the other end, before anything is sent to it
//! /esker.raft.v1.Peers/Messages     a stream of envelopes, from one node to another
//! /esker.raft.v1.Peers/Chunks       the same, for transfers, on a connection of its own
//! /esker.raft.v1.Peers/Call/NAME    a call of the host: one message, one answer
//! any other path                    a request of the host, on connections of its own
//! ```
//!
//! Every node calls every other node, so each direction has its own two streams. A gRPC message is one
//! envelope, as [`Envelope::encode`](crate::message::Envelope::encode) makes it; there is no schema to
//! compile. A broken stream is opened again, with growing pauses after each failure in a row; messages
//! queued meanwhile are dropped.
//!
//! The transport has threads of its own, so that a host's asynchronous tasks never delay a heartbeat: one that sends
//! messages, and some for all the rest.
//!
//! On an untrusted network use [`tls`](GrpcConfig::tls): both ends of every connection present a
//! certificate, and the traffic is encrypted. The shared [`secret`](GrpcConfig::secret) alone refuses
//! unknown callers, but does not encrypt. With both, the secret distinguishes clusters that share an
//! authority.
//!
//! Each request has the [`Claim`] of its sender in its head: cluster, node, and process. A [`Gatekeeper`]
//! decides about it before anything of the request is used. What comes over a stream of messages has to be of the
//! node that was admitted, and for this one; else the connection is ended. Before a stream is opened, the node at
//! the address shows that it is the one that the messages are for (`hello`); what else was found there is noted
//! (`whereabouts`).

mod calls;
mod claim;
mod codec;
mod connector;
mod hello;
mod link;
mod listener;
mod queued;
mod requests;
mod secrets;
mod service;
mod tls;
mod whereabouts;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tonic::transport::Server;

use super::{Inbox, MAX_QUEUED_CHUNKS, MAX_QUEUED_MESSAGES, Permit, Transport};
use crate::drops::DropReason;
use crate::ids::NodeId;
use crate::message::Envelope;
use crate::priority::shorten_time_slice_once;
use calls::Answers;
pub use calls::{CallAnswer, CallError, Calls, MAX_CALL_BYTES};
pub use claim::{Admission, Admitted, Claim, EarlierProcesses, Gatekeeper, MAX_EARLIER, Refusal};
use connector::Dial;
pub use hello::Answering;
use link::Link;
use listener::OpenConnections;
pub use requests::{ChannelError, PeerBody, PeerChannel, PeerRequests};
use requests::{Channels, Lane, Requests};
pub use rustls::pki_types::CertificateDer;
use secrets::Secrets;
use service::PeerService;
use tls::Tls;
pub use tls::{TlsConfig, TlsError, is_for_host};
use whereabouts::Whereabouts;

const MESSAGES: &str = "/esker.raft.v1.Peers/Messages";
const CHUNKS: &str = "/esker.raft.v1.Peers/Chunks";
/// The header of the shared secret.
const SECRET: &str = "esker-cluster-secret";

/// Number of threads for all but sending messages: one may wait for an engine's lock and one for a disk, and heartbeats
/// still pass.
const THREADS: usize = 3;
/// Number of threads that send messages. Other threads wake them for each message or batch. Where there are several, the
/// one that is woken wakes the next one before it works, which then finds nothing to do.
const SENDING_THREADS: usize = 1;
/// Flow-control window of a stream, in bytes: a chunk, for throughput on a network with some latency. A request of the
/// host whose body is not read holds as much.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// The same for a connection for messages, which has one stream.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// The same for the bodies of all requests of the host on a connection: 16 of them that are not read hold up no
/// other, and this is the most that they hold. Others have a connection of another lane.
const BODIES_WINDOW: u32 = 16 * STREAM_WINDOW;
/// The same for the answer to a request of the host.
const ANSWER_WINDOW: u32 = 256 * 1024;
/// The same for all answers on a connection: 64 whose clients take nothing hold up no other of their lane.
const ANSWERS_WINDOW: u32 = 64 * ANSWER_WINDOW;
/// Requests of the host that one connection may have open.
const MAX_REQUESTS: u32 = 65_536;
/// Requests of the host that may be cancelled before this node has seen them, at one time. Clients that go away
/// cancel theirs.
const MAX_CANCELLED_REQUESTS: usize = 4096;
/// Most bytes of the head of a request: as much as the listener for clients takes, and what nodes add.
const MAX_HEAD_BYTES: u32 = 160 * 1024;
/// Most bytes of one HTTP/2 frame, which its reader takes as a whole. With the default of 16 KiB, a chunk
/// of 1 MiB would be 64 frames.
const MAX_FRAME_BYTES: u32 = 256 * 1024;
/// Time without traffic after which a connection is pinged. It is closed if there is no answer within the
/// same time again.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// How long what the threads do may take when the transport stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The configuration of the transport.
#[derive(Clone, Default)]
pub struct GrpcConfig {
    /// Addresses of the other nodes: `host:port`, or a URL. May include this node.
    pub peers: BTreeMap<NodeId, String>,
    /// If set, calls without this secret are refused.
    pub secret: Option<String>,
    /// Secrets that are accepted as well, while one replaces another.
    pub other_secrets: Vec<String>,
    /// Where other nodes reach this one: `host:port`, or a URL; `None` for the address on which it listens.
    pub advertise: Option<String>,
    /// If set, all traffic uses TLS, with certificates of both ends. URLs of peers have to begin with
    /// `https://` then, and with `http://` otherwise.
    pub tls: Option<TlsConfig>,
    /// What this node claims to be in every request.
    pub claim: Option<Claim>,
    /// Decides about the claims of others. Without one, every claim is accepted, and none is needed.
    pub gatekeeper: Option<Arc<dyn Gatekeeper>>,
}

/// What goes in the head of every request.
#[derive(Clone)]
struct Credentials {
    secrets: Secrets,
    claim: Option<Claim>,
}

impl Credentials {
    fn of(config: &GrpcConfig) -> Credentials {
        let secrets = config.secret.iter().chain(&config.other_secrets);
        Credentials {
            secrets: Secrets::new(secrets.cloned().collect()),
            claim: config.claim,
        }
    }

    /// Adds them to the head of a request.
    fn add_to(&self, headers: &mut http::HeaderMap) -> Result<(), &'static str> {
        if let Some(secret) = self.secrets.presented() {
            let mut secret: http::HeaderValue =
                secret.parse().map_err(|_| "the secret is no header")?;
            secret.set_sensitive(true);
            headers.insert(SECRET, secret);
        }
        if let Some(claim) = &self.claim {
            claim.add_to(headers);
        }
        Ok(())
    }
}

/// See the [module's head](self).
pub struct GrpcTransport {
    address: SocketAddr,
    /// Where other nodes reach this one.
    advertised: String,
    credentials: Credentials,
    whereabouts: Whereabouts,
    gatekeeper: Option<Arc<dyn Gatekeeper>>,
    connections: Arc<Mutex<OpenConnections>>,
    tls: Option<Arc<Tls>>,
    requests: Requests,
    answers: Answers,
    channels: Channels,
    state: Mutex<State>,
}

struct State {
    listener: Option<std::net::TcpListener>,
    peers: BTreeMap<NodeId, String>,
    links: BTreeMap<NodeId, [Link; 2]>,
    running: Option<Running>,
}

impl GrpcTransport {
    /// Listens; port 0 is any free port. Connections are accepted from [`Transport::start`] on.
    ///
    /// # Errors
    ///
    /// Those of the listener; or one of kind `InvalidInput` with a [`TlsError`] that names the wrong part
    /// of the [`TlsConfig`] and the reason.
    pub fn bind(listen: SocketAddr, config: GrpcConfig) -> io::Result<GrpcTransport> {
        let tls = config.tls.as_ref().map(Tls::new).transpose();
        let tls = tls.map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let tls = tls.map(Arc::new);
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let credentials = Credentials::of(&config);
        Ok(GrpcTransport {
            address,
            advertised: config.advertise.unwrap_or_else(|| address.to_string()),
            credentials,
            whereabouts: Whereabouts::default(),
            gatekeeper: config.gatekeeper,
            connections: Arc::default(),
            channels: Channels::default(),
            requests: Requests::default(),
            answers: Answers::default(),
            tls,
            state: Mutex::new(State {
                listener: Some(listener),
                peers: config.peers,
                links: BTreeMap::new(),
                running: None,
            }),
        })
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What this node claims to be.
    pub fn claim(&self) -> Option<Claim> {
        self.credentials.claim
    }

    /// Uses other certificates for new connections, accepted ones and others. Connections that are open stay.
    ///
    /// # Errors
    ///
    /// What is wrong with them; or the transport was created without TLS. Nothing changes then.
    pub fn set_tls(&self, config: &TlsConfig) -> Result<(), TlsError> {
        match &self.tls {
            Some(tls) => tls.replace(config),
            None => Err(TlsError::Off),
        }
    }

    /// Presents another secret from now on, and accepts these others as well. Streams of messages that are open stay.
    /// Returns false, and changes nothing, if the transport was created without a secret.
    pub fn set_secrets(&self, secret: String, others: Vec<String>) -> bool {
        let secrets = &self.credentials.secrets;
        let is_on = secrets.are_required();
        if is_on {
            secrets.replace(std::iter::once(secret).chain(others).collect());
        }
        is_on
    }

    /// Sets or changes the address of a node: `host:port`, or a URL.
    pub fn set_peer(&self, node: NodeId, address: impl Into<String>) {
        let address = address.into();
        let mut state = self.state.lock();
        if let Some(links) = state.links.get(&node) {
            links.iter().for_each(|link| link.set_address(&address));
        }
        let before = state.peers.insert(node, address.clone());
        drop(state);
        if before.is_none_or(|before| before != address) {
            self.whereabouts.note_set(node);
        }
    }

    /// The address of a node, if it is known.
    pub fn peer(&self, node: NodeId) -> Option<String> {
        self.state.lock().peers.get(&node).cloned()
    }

    /// The node that answers at the address of another one, as was found when this node last connected to it.
    pub fn answers_as(&self, node: NodeId) -> Option<NodeId> {
        let address = self.peer(node)?;
        self.whereabouts.stranger_at(node, &address)
    }

    /// Where a node has shown last that it is there, if no other one has since. It may be another address than the one
    /// that is set.
    pub fn seen_at(&self, node: NodeId) -> Option<String> {
        self.whereabouts.seen_at(node)
    }

    /// What answers the requests of other nodes that are not messages between members. Until this is set they
    /// are refused with 503. Only the first call has an effect.
    pub fn serve_requests(&self, service: PeerRequests) {
        self.requests.set(service);
    }

    /// What answers the calls of other nodes. Until this is set they are refused as unavailable. Only the first
    /// call of this function has an effect.
    pub fn answer_calls(&self, calls: Arc<dyn Calls>) {
        self.answers.set(calls);
    }

    /// Calls a node, and waits for its answer for so long.
    ///
    /// # Errors
    ///
    /// See [`CallError`]: the node refuses, or there was no answer in time.
    pub async fn call(
        &self,
        node: NodeId,
        name: &str,
        body: Bytes,
        longest: Duration,
    ) -> Result<Bytes, CallError> {
        let channel = self.channel_on(node, Lane::Calls);
        let channel = channel.map_err(|e| CallError::Unavailable(e.to_string()))?;
        calls::call(channel, name, body, longest).await
    }

    /// A channel for requests to a node: HTTP/2 to the listener of its transport, on connections apart from
    /// those of messages. It connects when it is first used, and again after a failure.
    ///
    /// # Errors
    ///
    /// The node has no address, or its address is not one. A channel is used within a runtime.
    pub fn channel(&self, node: NodeId) -> Result<PeerChannel, ChannelError> {
        self.channel_in_lane(node, 0)
    }

    /// The same, over a connection that is shared by the requests of this lane alone. What is not read of them, here or
    /// there, holds up no request of another lane, and no call. The host bounds the number of lanes: each is a connection
    /// to each node, over which 16 MiB of bodies and 16 MiB of answers may be under way.
    ///
    /// # Errors
    ///
    /// As [`GrpcTransport::channel`].
    pub fn channel_in_lane(&self, node: NodeId, lane: u32) -> Result<PeerChannel, ChannelError> {
        self.channel_on(node, Lane::Requests(lane))
    }

    fn channel_on(&self, node: NodeId, lane: Lane) -> Result<PeerChannel, ChannelError> {
        let Some(set) = self.peer(node) else {
            return Err(ChannelError::Unknown(node));
        };
        let found = || {
            self.whereabouts.stranger_at(node, &set)?;
            self.whereabouts.found_beside(node, &set)
        };
        let seen = self.whereabouts.seen_at(node).or_else(found);
        let address = seen.unwrap_or(set);
        self.channels
            .of((node, lane), &address, || self.channel_to(node, &address))
            .map_err(|why| ChannelError::Address { address, why })
    }

    /// Most connections that were open at one time and over which no request had been admitted.
    #[cfg(test)]
    pub(super) fn most_strangers(&self) -> usize {
        self.connections.lock().most_strangers
    }

    fn channel_to(&self, node: NodeId, address: &str) -> Result<PeerChannel, String> {
        let mut dial = Dial::to(address, self.tls.clone())?;
        dial.endpoint = (dial.endpoint)
            .initial_stream_window_size(ANSWER_WINDOW)
            .initial_connection_window_size(ANSWERS_WINDOW);
        Ok(PeerChannel::new(
            dial.connect_lazy(),
            self.credentials.clone(),
            Some(node),
        ))
    }

    /// Removes a node; its connections are closed.
    pub fn remove_peer(&self, node: NodeId) {
        let mut state = self.state.lock();
        state.peers.remove(&node);
        let links = state.links.remove(&node);
        drop(state);
        drop(links);
        self.channels.forget(node);
        self.whereabouts.forget(node);
    }

    /// The link to a node, created when it is first needed.
    fn link(&self, to: NodeId, which: usize) -> Option<Link> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if !state.links.contains_key(&to) {
            let (address, running) = (state.peers.get(&to)?, state.running.as_ref()?);
            let open = |runtime, path, queued| {
                let opening = link::Opening {
                    node: to,
                    path,
                    credentials: self.credentials.clone(),
                    own_address: self.advertised.clone(),
                    whereabouts: self.whereabouts.clone(),
                    tls: self.tls.clone(),
                    inbox: running.inbox.clone(),
                    receiving: running.runtime.handle().clone(),
                };
                Link::open(runtime, opening, address, queued)
            };
            let both = [
                open(&running.sending, MESSAGES, MAX_QUEUED_MESSAGES),
                open(&running.runtime, CHUNKS, MAX_QUEUED_CHUNKS),
            ];
            state.links.insert(to, both);
        }
        state.links.get(&to).map(|links| links[which].clone())
    }

    /// The message may be dropped, always without the lock: dropping a permit may send another message.
    fn queue(&self, message: Envelope, permit: Option<Permit>, which: usize) {
        match self.link(message.to, which) {
            Some(link) => link.push(message, permit),
            None => DropReason::NoAddress.count(1),
        }
    }
}

/// What runs between start and stop.
struct Running {
    runtime: Runtime,
    /// Sends messages.
    sending: Runtime,
    inbox: Weak<dyn Inbox>,
}

/// Threads that are woken soon, as others on the path of a request are.
fn threads(number: usize, name: &str) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(number)
        .thread_name(name)
        .on_thread_park(shorten_time_slice_once)
        .enable_all()
        .build()
}

/// Calls the node at an address, without a transport of one's own: as a node does that joins. `config` has what
/// this node presents.
///
/// # Errors
///
/// See [`CallError`].
pub async fn call_at(
    address: &str,
    config: &GrpcConfig,
    name: &str,
    body: Bytes,
    longest: Duration,
) -> Result<Bytes, CallError> {
    let refused = |e: String| CallError::Refused(format!("the address {address}: {e}"));
    let tls = config.tls.as_ref().map(Tls::new).transpose();
    let tls = tls.map_err(|e| CallError::Refused(e.to_string()))?;
    let dial = Dial::to(address, tls.map(Arc::new)).map_err(refused)?;
    let channel = PeerChannel::new(dial.connect_lazy(), Credentials::of(config), None);
    calls::call(channel, name, body, longest).await
}

/// Asks who answers at an address, without a transport of one's own. `config` has what this node presents; a claim that
/// the other end refuses is no hindrance.
pub async fn identify(address: &str, config: &GrpcConfig) -> Answering {
    let tls = config.tls.as_ref().map(Tls::new).transpose();
    let dial = tls
        .map_err(|e| e.to_string())
        .and_then(|tls| Dial::to(address, tls.map(Arc::new)));
    match dial {
        Ok(dial) => hello::identify(&mut dial.connect_lazy(), &Credentials::of(config)).await,
        Err(why) => Answering::Nobody(format!("the address {address}: {why}")),
    }
}

impl Transport for GrpcTransport {
    fn start(&self, inbox: Weak<dyn Inbox>) -> io::Result<()> {
        let mut state = self.state.lock();
        let Some(listener) = state.listener.take() else {
            return Err(io::Error::other("the transport was started before"));
        };
        let runtime = threads(THREADS, "raft-net")?;
        let sending = threads(SENDING_THREADS, "raft-send")?;
        let service = PeerService {
            inbox: inbox.clone(),
            credentials: self.credentials.clone(),
            whereabouts: self.whereabouts.clone(),
            gatekeeper: self.gatekeeper.clone(),
            requests: self.requests.clone(),
            answers: self.answers.clone(),
        };
        let (tls, connections) = (self.tls.clone(), self.connections.clone());
        let entered = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        drop(entered);
        runtime.spawn(async move {
            let incoming = listener::incoming(listener, tls, connections);
            let served = Server::builder()
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(BODIES_WINDOW)
                .max_concurrent_streams(MAX_REQUESTS)
                .http2_max_pending_accept_reset_streams(Some(MAX_CANCELLED_REQUESTS))
                .http2_max_header_list_size(MAX_HEAD_BYTES)
                .max_frame_size(Some(MAX_FRAME_BYTES))
                .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
                .http2_keepalive_timeout(Some(KEEP_ALIVE_INTERVAL))
                .serve_with_incoming(service, incoming)
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the listener for peers has ended");
            }
        });
        state.running = Some(Running {
            runtime,
            sending,
            inbox,
        });
        Ok(())
    }

    fn send(&self, message: Envelope) {
        self.queue(message, None, 0);
    }

    fn send_bulk(&self, message: Envelope, permit: Option<Permit>) {
        self.queue(message, permit, 1);
    }

    fn stop(&self) {
        let mut state = self.state.lock();
        let (links, running) = (std::mem::take(&mut state.links), state.running.take());
        state.listener = None;
        drop(state);
        drop(links);
        if let Some(Running {
            runtime, sending, ..
        }) = running
        {
            // On a thread of its own, because a runtime must not be shut down from within another one.
            let end = move || {
                sending.shutdown_timeout(STOP_TIMEOUT);
                runtime.shutdown_timeout(STOP_TIMEOUT);
            };
            if let Ok(ending) = std::thread::Builder::new().spawn(end) {
                let _ = ending.join();
            }
        }
    }
}

impl Drop for GrpcTransport {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An error with its sources: tonic's own message is only "transport error".
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !said.ends_with(&more) {
            said = format!("{said}: {more}");
        }
        next = error.source();
    }
    said
}
