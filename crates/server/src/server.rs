//! The listener: HTTP/1.1 and HTTP/2 with prior knowledge on one port.
//!
//! The port is taken first, so that a taken one is an error before anything else happens; then the
//! node recovers; then connections are accepted.
//!
//! Bounds, each from the configuration: connections (beyond them new ones wait in the kernel's
//! queue), bytes of a request's body, bytes of appends in flight, the time to send the first bytes
//! and a request's head. HTTP/2 lets a client have at most [`H2_STREAMS`] requests open and [`H2_CONNECTION_WINDOW`]
//! bytes on their way.
//!
//! A stop refuses what is new, ends sessions, waits for what is in flight, and then lets the node
//! stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use esker_node::{Node, NodeOptions, StartError, StoreOptions};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::api::{self, App, Limits};
use crate::config::Config;
use crate::opening::opened;
use crate::telemetry;

/// Requests that one HTTP/2 connection may have open.
const H2_STREAMS: u32 = 1024;
/// Bytes of one request that a client may send ahead: one frame of an append session and the next.
const H2_STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of one connection that a client may send ahead.
const H2_CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// A silent HTTP/2 connection is asked whether it lives after this long.
const H2_KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Pause after accepting failed, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}{hint}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What happened.
        source: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The node.
    #[error(transparent)]
    Node(#[from] StartError),
}

impl ServeError {
    /// A stable code, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            ServeError::Listen { .. } => "listen",
            ServeError::Node(e) => e.code(),
        }
    }
}

/// A running server.
pub struct Server {
    address: SocketAddr,
    node: Node,
    grace: Duration,
    stop: CancellationToken,
    accepting: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Takes the port, recovers, and serves.
    pub async fn start(config: &Config) -> Result<Server, ServeError> {
        let listener = TcpListener::bind(config.listen).await.map_err(|source| {
            let hint = match source.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "; stop the program that uses it, or choose another with --listen"
                }
                std::io::ErrorKind::PermissionDenied => "; choose a port above 1023",
                _ => "",
            };
            ServeError::Listen {
                address: config.listen,
                source,
                hint,
            }
        })?;
        let address = listener.local_addr().unwrap_or(config.listen);
        let metrics = telemetry::metrics();
        let node = Node::start(node_options(config)).await?;
        let app = App {
            node: node.clone(),
            metrics,
            limits: Arc::new(Limits {
                request_body: config.limits.request_body.as_usize(),
                append_session_inflight: config.limits.append_session_inflight.as_usize(),
            }),
        };
        let stop = CancellationToken::new();
        let grace = config.shutdown_grace.as_duration();
        let accepting = tokio::spawn(accept(
            listener,
            api::router(app),
            config.limits.connections as usize,
            config.limits.header_timeout.as_duration(),
            stop.clone(),
            grace,
        ));
        Ok(Server {
            address,
            node,
            grace,
            stop,
            accepting,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The node behind it.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Stops gracefully; takes at most about twice the grace period.
    pub async fn stop(self) {
        tracing::info!("stopping");
        self.stop.cancel();
        // Sessions end because the node does; the connections that carried them end then.
        self.node.stop(self.grace).await;
        // A panic in it has been reported by the panic hook.
        let _ = self.accepting.await;
    }
}

async fn accept(
    listener: TcpListener,
    router: axum::Router,
    connections: usize,
    header_timeout: Duration,
    stop: CancellationToken,
    grace: Duration,
) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .keep_alive_interval(H2_KEEP_ALIVE);
    let room = Arc::new(Semaphore::new(connections));
    let graceful = GracefulShutdown::new();
    loop {
        let permit = tokio::select! {
            permit = room.clone().acquire_owned() => permit,
            () = stop.cancelled() => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream: TcpStream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Acknowledgements are small and must not wait for more to send.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let (http, watcher, stop) = (http.clone(), graceful.watcher(), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let opened = tokio::select! {
                opened = tokio::time::timeout(header_timeout, opened(stream)) => opened,
                () = stop.cancelled() => return,
            };
            // One that said nothing in time, or has gone again, hears nothing.
            let Ok(Ok(stream)) = opened else {
                return;
            };
            let connection = http.serve_connection(TokioIo::new(stream), service);
            if let Err(error) = watcher.watch(connection.into_owned()).await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(
            ?grace,
            "connections were still open when the grace period ended"
        );
    }
}

fn node_options(config: &Config) -> NodeOptions {
    NodeOptions {
        cluster_name: config.cluster_name.clone(),
        partitions: config.partitions,
        log_segment_size: config.log.segment_size.as_u64(),
        log_purge_threshold: config.log.purge_threshold.as_u64(),
        log_max_group_size: config.log.max_group_size.as_u64(),
        flush_after: config.log.flush_after.as_u64(),
        store: StoreOptions {
            block_cache: config.store.block_cache.as_usize(),
            write_buffer: config.store.write_buffer.as_usize(),
            write_buffers_total: config.store.write_buffers_total.as_usize(),
            max_open_files: i32::try_from(config.store.max_open_files).unwrap_or(i32::MAX),
            background_jobs: i32::try_from(config.store.background_jobs).unwrap_or(i32::MAX),
        },
        append_inflight: config.limits.append_inflight.as_usize(),
        follower_buffer: config.limits.follower_buffer.as_usize(),
        follower_buffers_total: config.limits.follower_buffers_total.as_usize(),
        retention_interval: config.retention.interval.as_duration(),
        streams_per_round: config.retention.streams_per_round as usize,
        ..NodeOptions::new(&config.data_dir)
    }
}
