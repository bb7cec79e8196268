//! Messages between nodes over gRPC.
//!
//! ```text
//! /esker.raft.v1.Peers/Messages     a stream of envelopes, from one node to another
//! /esker.raft.v1.Peers/Chunks       the same, for transfers, on a connection of its own
//! ```
//!
//! Every node calls every other one, so that each direction has its own two streams. What travels is
//! what [`Envelope::encode`](crate::message::Envelope::encode) made, one envelope in a gRPC message;
//! there is no schema to compile. A stream that breaks is opened anew, later after each failure in a
//! row; what was queued meanwhile is dropped.
//!
//! The transport has threads of its own, so that a host's asynchronous work never delays a heartbeat.
//!
//! Where the network is not trusted, [`tls`](GrpcConfig::tls) keeps strangers and listeners out: both ends
//! of every connection show a certificate. The shared [`secret`](GrpcConfig::secret) alone keeps strangers
//! out, not listeners. Both together are fine: the secret then tells apart clusters that share an
//! authority.

mod codec;
mod link;
mod queued;
mod service;
mod tls;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Weak;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::{Inbox, MAX_QUEUED_CHUNKS, MAX_QUEUED_MESSAGES, Permit, Transport};
use crate::ids::NodeId;
use crate::message::Envelope;
use link::Link;
use service::PeerService;
use tls::Tls;
pub use tls::{TlsConfig, TlsError};

const MESSAGES: &str = "/esker.raft.v1.Peers/Messages";
const CHUNKS: &str = "/esker.raft.v1.Peers/Chunks";
/// The header of the shared secret.
const SECRET: &str = "esker-cluster-secret";

/// Threads: one may wait for an engine's lock, one for a disk; heartbeats still pass.
const THREADS: usize = 3;
/// How far a stream may be ahead of its reader, in bytes: a few chunks, for throughput on a network
/// with some latency.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// The same for a whole connection, which has one stream.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Most bytes of one HTTP/2 frame, which its reader takes as a whole: with the default of 16 KiB, a
/// chunk is cut into 64.
const MAX_FRAME_BYTES: u32 = 256 * 1024;
/// Messages that may be on their way from a link's queue to its stream: those that are there together
/// leave together.
const MAX_BATCH: usize = 32;
/// A connection that is silent for so long is asked whether it lives, and given up if it does not say
/// so in the same time again.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// What the transport is told.
#[derive(Clone, Default)]
pub struct GrpcConfig {
    /// Where the others are: `host:port`, or a URL. May have this node as well.
    pub peers: BTreeMap<NodeId, String>,
    /// If set, calls that do not name it are refused.
    pub secret: Option<String>,
    /// If set, nothing is said or heard without TLS, and without a certificate of either end. A URL of a
    /// peer has to begin with `https://` then, and with `http://` otherwise.
    pub tls: Option<TlsConfig>,
}

/// See the [module's head](self).
pub struct GrpcTransport {
    address: SocketAddr,
    secret: Option<String>,
    tls: Option<Tls>,
    state: Mutex<State>,
}

struct State {
    listener: Option<std::net::TcpListener>,
    peers: BTreeMap<NodeId, String>,
    links: BTreeMap<NodeId, [Link; 2]>,
    running: Option<(Runtime, Weak<dyn Inbox>)>,
}

impl GrpcTransport {
    /// Listens; port 0 is any that is free. Connections are taken from [`Transport::start`] on.
    ///
    /// # Errors
    ///
    /// The listener's; or one of kind `InvalidInput` with a [`TlsError`] that says which part of the
    /// [`TlsConfig`] is wrong, and how.
    pub fn bind(listen: SocketAddr, config: GrpcConfig) -> io::Result<GrpcTransport> {
        let tls = config.tls.as_ref().map(Tls::new).transpose();
        let tls = tls.map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        Ok(GrpcTransport {
            address: listener.local_addr()?,
            secret: config.secret,
            tls,
            state: Mutex::new(State {
                listener: Some(listener),
                peers: config.peers,
                links: BTreeMap::new(),
                running: None,
            }),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A node is there from now on, or is somewhere else: `host:port`, or a URL.
    pub fn set_peer(&self, node: NodeId, address: impl Into<String>) {
        let address = address.into();
        let mut state = self.state.lock();
        if let Some(links) = state.links.get(&node) {
            links.iter().for_each(|link| link.set_address(&address));
        }
        state.peers.insert(node, address);
    }

    /// A node is nowhere any more.
    pub fn remove_peer(&self, node: NodeId) {
        let mut state = self.state.lock();
        state.peers.remove(&node);
        let links = state.links.remove(&node);
        drop(state);
        drop(links);
    }

    /// The link to a node, made when it is first needed.
    fn link(&self, to: NodeId, which: usize) -> Option<Link> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if !state.links.contains_key(&to) {
            let (address, (runtime, inbox)) = (state.peers.get(&to)?, state.running.as_ref()?);
            let open = |path, queued| {
                let opening = link::Opening {
                    node: to,
                    path,
                    secret: self.secret.clone(),
                    tls: self.tls.as_ref().map(|tls| tls.client.clone()),
                    inbox: inbox.clone(),
                };
                Link::open(runtime, opening, address, queued)
            };
            let both = [
                open(MESSAGES, MAX_QUEUED_MESSAGES),
                open(CHUNKS, MAX_QUEUED_CHUNKS),
            ];
            state.links.insert(to, both);
        }
        state.links.get(&to).map(|links| links[which].clone())
    }

    /// What is dropped here is dropped without the lock: a permit may send something more.
    fn queue(&self, message: Envelope, permit: Option<Permit>, which: usize) {
        if let Some(link) = self.link(message.to, which) {
            link.push(message, permit);
        }
    }
}

impl Transport for GrpcTransport {
    fn start(&self, inbox: Weak<dyn Inbox>) -> io::Result<()> {
        let mut state = self.state.lock();
        let Some(listener) = state.listener.take() else {
            return Err(io::Error::other("the transport was started before"));
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("raft-net")
            .enable_all()
            .build()?;
        let service = PeerService::new(inbox.clone(), self.secret.clone());
        let mut server = Server::builder();
        if let Some(tls) = &self.tls {
            let with_tls = server.tls_config(tls.server.clone());
            server = with_tls.map_err(io::Error::other)?;
        }
        let entered = runtime.enter();
        let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?);
        drop(entered);
        let incoming = incoming.with_nodelay(Some(true));
        runtime.spawn(async move {
            let served = server
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_frame_size(Some(MAX_FRAME_BYTES))
                .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
                .http2_keepalive_timeout(Some(KEEP_ALIVE_INTERVAL))
                .serve_with_incoming(service, incoming)
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the listener for peers has ended");
            }
        });
        state.running = Some((runtime, inbox));
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
        if let Some((runtime, _)) = running {
            // A thread of its own: a runtime must not be ended from within another.
            let end = move || runtime.shutdown_timeout(Duration::from_secs(2));
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

/// An error, and what led to it: tonic's own say "transport error" and nothing more.
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
