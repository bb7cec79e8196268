//! A listener: it binds an address, accepts connections within their bounds, and ends them at a stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use esker_node::ReadBudget;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ServeError;
use super::connection::service;
use crate::activity::Activity;
use crate::auth::{self, PeerAddress};
use crate::config::Config;
use crate::place::Place;
use crate::protocol_detect::opened;
use crate::request_guard::{self, RequestGuard};
use crate::windows::Windows;

/// Requests that one HTTP/2 connection may have open.
const H2_STREAMS: u32 = 1024;
/// Bytes that a connection of HTTP/1.1 reads or writes at a time, and of a request's head.
const H1_BUFFER: usize = 128 * 1024;
/// A silent HTTP/2 connection is sent a ping after this long.
const H2_KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Pause after accepting a connection failed, for lack of file descriptors for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections beyond `limits.connections`, for health, metrics and the admin API alone.
pub(super) const RESERVED_CONNECTIONS: usize = 16;
/// How long a client has to take the end of a connection that is closed for being idle.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Binds an address. `taken` is what to do about one that another program uses.
pub(super) async fn bind(
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
pub(super) fn guarded(router: axum::Router, config: &Config, address: SocketAddr) -> axum::Router {
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
pub(super) struct Accepted {
    /// A permit for each connection, over all listeners.
    pub(super) room: Arc<Semaphore>,
    pub(super) header_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) stall_timeout: Duration,
    /// A permit for each connection beyond those of `room`, for clients that monitor the server.
    pub(super) reserve: Arc<Semaphore>,
    /// When memory is short, connections are closed that hold some for clients which read nothing.
    pub(super) reads: ReadBudget,
    pub(super) windows: Windows,
    pub(super) stop: CancellationToken,
    pub(super) grace: Duration,
}

pub(super) async fn accept(listener: TcpListener, router: axum::Router, accepted: Accepted) {
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
