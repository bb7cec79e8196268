//! The listener: HTTP/1.1 and HTTP/2 with prior knowledge on one port; and a second one for the state
//! service, if `state.listen` is set.
//!
//! The ports are bound first, so that a port in use is an error before anything else happens; then the
//! node recovers; then connections are accepted.
//!
//! Bounds, each from the configuration: connections (beyond them [`RESERVED_CONNECTIONS`] for health,
//! metrics and the admin API; more wait in the kernel's queue), bytes of a request's body and of all
//! bodies, bytes of appends in flight, the time to send the first bytes, a request's head and its body,
//! the time without a request, and the time in which nothing of an answer is taken. HTTP/2 lets a client
//! have at most [`H2_STREAMS`] requests open, and what clients send ahead is bounded by [`windows`](crate::windows).
//!
//! A stop refuses new requests, ends sessions, waits for what is in flight, and then stops the node.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse as _;
pub use esker_node::Bootstrap;
use esker_node::{
    DestinationOptions, Node, NodeOptions, ReadBudget, SnapshotOptions, StartError, StateOptions,
    StoreOptions, ValueCheck,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::activity::{self, Activity};
use crate::api::{self, App, Limits, ServiceError};
use crate::auth::{self, PeerAddress};
use crate::config::{
    Config, HumanDuration, OnLogFull, Secret, SnapshotKind, SnapshotsConfig, StateConfig,
};
use crate::open_files::OpenFiles;
use crate::place::{CONNECTIONS, Place};
use crate::protocol_detect::opened;
use crate::request_guard::{self, RequestGuard};
use crate::windows::Windows;
use crate::{state, telemetry};

/// Requests that one HTTP/2 connection may have open.
const H2_STREAMS: u32 = 1024;
/// Bytes that a connection of HTTP/1.1 reads or writes at a time, and of a request's head.
const H1_BUFFER: usize = 128 * 1024;
/// A silent HTTP/2 connection is sent a ping after this long.
const H2_KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Pause after accepting a connection failed, for lack of file descriptors for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections beyond `limits.connections`, for health, metrics and the admin API alone.
const RESERVED_CONNECTIONS: usize = 16;
/// How long any other request on such a connection waits for an ordinary place.
const PLACE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client has to take the end of a connection that is closed for being idle.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for what is in flight when the server restarts itself.
pub const RESTART_GRACE: Duration = Duration::from_secs(2);
/// How long connections may take for the answers that are ready by then.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_millis(500);

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
    /// The node could not start.
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

/// Checks for what a start with this configuration would refuse, without access to disk, network or
/// store.
///
/// # Errors
///
/// Those of such a start.
pub fn check(config: &Config) -> Result<(), ServeError> {
    Ok(esker_node::check_destination(&node_options(config, None))?)
}

/// A running server.
pub struct Server {
    address: SocketAddr,
    state_address: Option<SocketAddr>,
    node: Node,
    grace: Duration,
    stop: CancellationToken,
    accepting: Vec<tokio::task::JoinHandle<()>>,
}

impl Server {
    /// Binds the ports, recovers, and serves.
    pub async fn start(config: &Config) -> Result<Server, ServeError> {
        Server::start_with(config, None, BTreeSet::new(), false).await
    }

    /// The same, given what an empty data directory means, which partitions begin empty if a restore
    /// finds no copy of them, and whether this start continues from a server that restarts itself
    /// ([`NodeOptions::restarted`]).
    pub async fn start_with(
        config: &Config,
        bootstrap: Option<Bootstrap>,
        empty_partitions: BTreeSet<u64>,
        restarted: bool,
    ) -> Result<Server, ServeError> {
        let (listener, address) = bind(
            config.listen,
            "; stop the program that uses it, or choose another with --listen",
        )
        .await?;
        // The main listener serves it anyway.
        let own = |address: &SocketAddr| *address != config.listen || address.port() == 0;
        let state_listener = match config.state.listen.filter(own) {
            None => None,
            Some(listen) => Some(
                bind(
                    listen,
                    "; stop the program that uses it, or choose another with `state.listen`",
                )
                .await?,
            ),
        };
        let config = &OpenFiles::raise(config).within(config);
        let metrics = telemetry::metrics();
        let options = NodeOptions {
            empty_partitions,
            restarted,
            ..node_options(config, bootstrap)
        };
        let node = Node::start(options).await?;
        let app = App {
            node: node.clone(),
            metrics,
            limits: Arc::new(Limits::new(&config.limits)),
        };
        let stop = CancellationToken::new();
        let grace = config.shutdown_grace.as_duration();
        let accepted = Accepted {
            room: Arc::new(Semaphore::new(config.limits.connections as usize)),
            header_timeout: config.limits.header_timeout.as_duration(),
            idle_timeout: config.limits.idle_timeout.as_duration(),
            stall_timeout: config.limits.stall_timeout.as_duration(),
            reserve: Arc::new(Semaphore::new(RESERVED_CONNECTIONS)),
            reads: node.reads().clone(),
            windows: Windows::new(config.limits.http2_windows.as_usize()),
            stop: stop.clone(),
            grace,
        };
        activity::describe();
        metrics::gauge!(CONNECTIONS).increment(0.0);
        api::series::register();
        state::layer::register();
        telemetry::upkeep(&telemetry::metrics());
        tokio::spawn(look_after_metrics(telemetry::metrics(), stop.clone()));
        let mut accepting = vec![tokio::spawn(accept(
            listener,
            guarded(api::router(app.clone()), config, address),
            accepted.clone(),
        ))];
        let mut state_address = None;
        if let Some((listener, address)) = state_listener {
            let router = guarded(api::state_router(app), config, address);
            accepting.push(tokio::spawn(accept(listener, router, accepted)));
            state_address = Some(address);
        }
        Ok(Server {
            address,
            state_address,
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

    /// Where the state service listens, if it has an address of its own.
    pub fn state_address(&self) -> Option<SocketAddr> {
        self.state_address
    }

    /// The node behind it.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Waits until the process has to be started again, and returns why. The restart has been counted by
    /// then: call [`Server::stop_for_restart`], and start the same program with the same arguments.
    /// `may_restart` returns why the host cannot do that at the moment, if so.
    pub async fn restart_wanted(
        &self,
        may_restart: impl AsyncFn() -> Result<(), String>,
    ) -> String {
        loop {
            let cause = self.node.restart_wanted().await;
            let noted = match may_restart().await {
                Ok(()) => self.node.note_restart(&cause).await,
                Err(why) => Err(why),
            };
            match noted {
                Ok(()) => return cause,
                Err(why) => self.node.hold_restart_back(format!("{cause}; {why}")),
            }
        }
    }

    /// Stops gracefully; takes at most about twice the grace period.
    pub async fn stop(self) {
        tracing::info!("stopping");
        self.stop.cancel();
        // Sessions end because the node does; the connections that carried them end then.
        self.node.stop(self.grace).await;
        self.end_connections().await;
    }

    /// Stops as [`Server::stop`] does, within [`RESTART_GRACE`] and the time to close the database: what
    /// needs longer may be waiting for the restart.
    pub async fn stop_for_restart(self) {
        tracing::info!("stopping for a restart");
        self.stop.cancel();
        let grace = self.grace.min(RESTART_GRACE);
        self.node.stop_for_restart(grace).await;
        // Their last answers are on their way. The connection of a client that does not take them ends
        // with the process.
        let _ = tokio::time::timeout(LAST_ANSWERS_TIMEOUT, self.end_connections()).await;
    }

    async fn end_connections(self) {
        for accepting in self.accepting {
            // A panic in it has been reported by the panic hook.
            let _ = accepting.await;
        }
    }
}

async fn look_after_metrics(metrics: PrometheusHandle, stop: CancellationToken) {
    let every = telemetry::UPKEEP_EVERY;
    while tokio::time::timeout(every, stop.cancelled()).await.is_err() {
        telemetry::upkeep(&metrics);
    }
}

/// Binds an address. `taken` is what to do about one that another program uses.
async fn bind(
    address: SocketAddr,
    taken: &'static str,
) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source: std::io::Error| ServeError::Listen {
        address,
        hint: match source.kind() {
            std::io::ErrorKind::AddrInUse => taken,
            std::io::ErrorKind::PermissionDenied => "; choose a port above 1023",
            _ => "",
        },
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().unwrap_or(address);
    Ok((listener, bound))
}

/// A router that accepts only requests for the server that listens on this address.
fn guarded(router: axum::Router, config: &Config, address: SocketAddr) -> axum::Router {
    let guard = Arc::new(RequestGuard::new(config, address));
    router
        .layer(axum::middleware::from_fn(auth::layer::identify))
        .layer(axum::middleware::from_fn_with_state(
            guard,
            request_guard::check,
        ))
}

/// What all listeners share.
#[derive(Clone)]
struct Accepted {
    /// A permit for each connection, over all listeners.
    room: Arc<Semaphore>,
    header_timeout: Duration,
    idle_timeout: Duration,
    stall_timeout: Duration,
    /// A permit for each connection beyond those of `room`, for clients that monitor the server.
    reserve: Arc<Semaphore>,
    /// When memory is short, connections are closed that hold some for clients which read nothing.
    reads: ReadBudget,
    windows: Windows,
    stop: CancellationToken,
    grace: Duration,
}

async fn accept(listener: TcpListener, router: axum::Router, accepted: Accepted) {
    let Accepted {
        room,
        header_timeout,
        idle_timeout,
        stall_timeout,
        reserve,
        reads,
        windows,
        stop,
        grace,
    } = accepted;
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .max_buf_size(H1_BUFFER)
        .header_read_timeout(header_timeout);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS)
        .keep_alive_interval(H2_KEEP_ALIVE);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, peer): (TcpStream, _) = match accepted {
            Ok((stream, peer)) => (stream, PeerAddress(peer)),
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // After accepting: a listener that waits for connections must not keep a place that another one
        // could use.
        let place = tokio::select! {
            place = Place::take(&room, &reserve) => Arc::new(place),
            () = stop.cancelled() => break,
        };
        // Acknowledgements are small and must not wait for more to send.
        let _ = stream.set_nodelay(true);
        let (mut http, router, stop) = (http.clone(), router.clone(), stop.clone());
        let (reads, windows) = (reads.clone(), windows.clone());
        connections.spawn(async move {
            let opened = tokio::select! {
                opened = tokio::time::timeout(header_timeout, opened(stream)) => opened,
                () = stop.cancelled() => return,
            };
            // A client that sent nothing in time, or has disconnected, gets no answer.
            let Ok(Ok((stream, is_http2))) = opened else {
                return;
            };
            // Held until the connection has ended. HTTP/1.1 has no window.
            let window = is_http2.then(|| windows.open());
            if let Some(window) = &window {
                window.apply(&mut http);
            }
            let activity = Arc::new(Activity::default());
            let service = service(router, peer, activity.clone(), place.clone(), stall_timeout);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            let graceful = GracefulShutdown::new();
            let connection = graceful.watch(connection.into_owned());
            // Owned, so that it is dropped as soon as it has ended: the graceful shutdown waits for that.
            let mut connection = Box::pin(connection);
            let idle = async {
                activity.idle(header_timeout.min(idle_timeout)).await;
                // A connection of the reserve is closed sooner.
                if place.is_ordinary() {
                    activity.idle(idle_timeout).await;
                }
            };
            let abandoned = activity.abandoned(stall_timeout, || reads.waiting() > 0);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = abandoned => {
                    tracing::debug!("a connection was closed whose client takes nothing of what it holds");
                    return;
                }
                () = stop.cancelled() => tokio::join!(connection, graceful.shutdown()).0,
                () = idle => {
                    let closing = async { tokio::join!(connection, graceful.shutdown()).0 };
                    match tokio::time::timeout(CLOSE_TIMEOUT, closing).await {
                        Ok(ended) => ended,
                        // The client does not even take the end.
                        Err(_) => return,
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(grace, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            ?grace,
            "connections were still open when the grace period ended"
        );
    }
}

/// Whether a path is served when all places are taken, too: health, metrics and the admin API.
fn is_of_reserve(path: &str) -> bool {
    ["/health", "/ping", "/metrics"].contains(&path) || path.starts_with("/esker/v1/")
}

/// The routes, for one connection.
fn service(
    router: axum::Router,
    peer: PeerAddress,
    activity: Arc<Activity>,
    place: Arc<Place>,
    stall_timeout: Duration,
) -> impl hyper::service::Service<
    http::Request<hyper::body::Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future: Send,
> + Send
+ 'static {
    hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        let busy = activity.begin();
        let (router, place) = (router.clone(), place.clone());
        async move {
            let answer = match is_of_reserve(request.uri().path())
                || place.become_ordinary(PLACE_TIMEOUT).await
            {
                true => router.oneshot(request.map(axum::body::Body::new)).await?,
                false => ServiceError::NoPlace.into_response(),
            };
            Ok(busy.until_sent(answer, stall_timeout))
        }
    })
}

fn node_options(config: &Config, bootstrap: Option<Bootstrap>) -> NodeOptions {
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
            ..StoreOptions::default()
        },
        // Space is reclaimed in steps of what a partition has in memory.
        compact_garbage: 2 * config.store.write_buffer.as_u64(),
        append_inflight: config.limits.append_inflight.as_usize(),
        follower_buffer: config.limits.follower_buffer.as_usize(),
        follower_buffers_total: config.limits.follower_buffers_total.as_usize(),
        read_sessions: config.limits.read_sessions.as_usize(),
        retention_interval: config.retention.interval.as_duration(),
        streams_per_round: config.retention.streams_per_round as usize,
        snapshots: snapshot_options(&config.snapshots),
        state: state_options(&config.state),
        check_value: ValueCheck(crate::state::check_value),
        bootstrap,
        ..NodeOptions::new(&config.data_dir)
    }
}

fn snapshot_options(config: &SnapshotsConfig) -> SnapshotOptions {
    let exposed = |secret: &Option<Secret>| secret.as_ref().map(|it| it.expose().to_owned());
    SnapshotOptions {
        destination: config.destination.clone(),
        destination_options: DestinationOptions {
            aws_profile: config.aws_profile.clone(),
            aws_region: config.aws_region.clone(),
            aws_access_key_id: exposed(&config.aws_access_key_id),
            aws_secret_access_key: exposed(&config.aws_secret_access_key),
            aws_session_token: exposed(&config.aws_session_token),
            aws_endpoint_url: config.aws_endpoint_url.clone(),
            aws_allow_http: config.aws_allow_http,
            ..DestinationOptions::default()
        },
        interval: config.snapshot_interval.map(HumanDuration::as_duration),
        interval_records: config.snapshot_interval_num_records,
        recovery_budget: config.recovery_budget.map(HumanDuration::as_duration),
        kind: match config.snapshot_kind {
            SnapshotKind::Full => esker_node::SnapshotKind::Full,
            SnapshotKind::Incremental => esker_node::SnapshotKind::Incremental,
        },
        // The bounds of the configuration do not allow 0.
        num_retained: config.num_retained.and_then(NonZeroU32::new),
        orphan_cleanup: config.orphan_cleanup,
        orphan_min_age: config.orphan_min_age.as_duration(),
        // 0 is no bound.
        upload_rate: NonZeroU64::new(config.upload_rate.as_u64()),
        max_log_bytes: config.max_log_bytes.as_u64(),
        on_log_full: match config.on_log_full {
            OnLogFull::TrimAnyway => esker_node::OnLogFull::TrimAnyway,
            OnLogFull::RefuseAppends => esker_node::OnLogFull::RefuseAppends,
        },
        restore_test_interval: config.restore_test_interval.map(HumanDuration::as_duration),
        on_stop: config.snapshot_on_stop,
        local_threshold_entries: config.local_snapshot_num_records,
        local_threshold_bytes: config.local_snapshot_bytes.as_u64(),
    }
}

fn state_options(config: &StateConfig) -> StateOptions {
    StateOptions {
        snapshot_interval: config.snapshot_interval,
        snapshots_retained: config.snapshots_retained,
        archive_snapshots: config.archive_snapshots,
        default_timeout: config.transaction_timeout.as_duration(),
        max_timeout: config.transaction_timeout_max.as_duration(),
        max_transactions: config.transactions as usize,
        max_operations: config.transaction_operations as usize,
        max_transaction_bytes: config.transactions_bytes.as_usize(),
        keep_versions: config.keep_versions,
        keep_history_commits: config.keep_history,
        keep_history_age: config.keep_history_age.map(HumanDuration::as_duration),
    }
}

#[cfg(test)]
mod tests;
