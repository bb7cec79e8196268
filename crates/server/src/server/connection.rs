//! One connection: its handshake, the HTTP that it speaks, its requests, and its end.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::response::IntoResponse as _;
use esker_node::ReadBudget;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::corked::corked;
use super::stream::Stream;
use super::vanished::notice_loss;
use crate::activity::Activity;
use crate::api::ServiceError;
use crate::auth::PeerAddress;
use crate::config::LimitsConfig;
use crate::place::Place;
use crate::protocol_detect::{Opened, Protocol, opened};
use crate::tls::{Tls, handshake};
use crate::windows::{Window, Windows};

/// Requests that one HTTP/2 connection may have open.
const H2_STREAMS: u32 = 1024;
/// Bytes of a request's head over HTTP/2, with 32 for each header beside its name and value.
const H2_HEAD: u32 = 16 * 1024;
/// Streams of an HTTP/2 connection that its client may reset before the server has begun to answer them. One more
/// ends the connection: whoever opens streams only to reset them costs a server more than itself.
const H2_EARLY_RESETS: usize = 20;
/// Streams of an HTTP/2 connection that the server may reset because of what the client sent in them. One more ends
/// the connection, for the same reason.
const H2_FAULTS: usize = 1024;
/// Bytes that a connection of HTTP/1.1 reads or writes at a time, and of a request's head.
const H1_BUFFER: usize = 128 * 1024;
/// A silent HTTP/2 connection is sent a ping after this long.
const H2_KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long a client has to take the end of a connection that is closed for being idle.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection of the reserve may be without a request. Probes send theirs at once, and others
/// must not keep the few places of the reserve from them.
const RESERVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long such a connection lasts, unless a request is under way: whoever sends one every second must not keep its
/// place either.
const RESERVE_AGE: Duration = Duration::from_secs(5);
/// How long any other request on such a connection waits for an ordinary place.
const PLACE_TIMEOUT: Duration = Duration::from_secs(10);

/// What serves the connections of a listener.
#[derive(Clone)]
pub(super) struct Connections {
    http: auto::Builder<TokioExecutor>,
    router: axum::Router,
    tls: Option<Tls>,
    header_timeout: Duration,
    idle_timeout: Duration,
    stall_timeout: Duration,
    /// When memory is short, connections are closed that hold some for clients which read nothing.
    reads: ReadBudget,
    windows: Windows,
    stop: CancellationToken,
}

impl Connections {
    /// Serves these routes, with TLS if there is one.
    pub(super) fn new(
        router: axum::Router,
        tls: Option<Tls>,
        limits: &LimitsConfig,
        (reads, windows): (ReadBudget, Windows),
        stop: CancellationToken,
    ) -> Connections {
        let header_timeout = limits.header_timeout.as_duration();
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .max_buf_size(H1_BUFFER)
            .header_read_timeout(header_timeout);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS)
            .max_header_list_size(H2_HEAD)
            .max_pending_accept_reset_streams(H2_EARLY_RESETS)
            .max_local_error_reset_streams(H2_FAULTS)
            .keep_alive_interval(H2_KEEP_ALIVE);
        Connections {
            http,
            router,
            tls,
            header_timeout,
            idle_timeout: limits.idle_timeout.as_duration(),
            stall_timeout: limits.stall_timeout.as_duration(),
            reads,
            windows,
            stop,
        }
    }

    /// Serves a connection until it ends.
    pub(super) async fn serve(mut self, stream: TcpStream, peer: PeerAddress, place: Arc<Place>) {
        if !place.is_ordinary() {
            self.header_timeout = self.header_timeout.min(RESERVE_TIMEOUT);
        }
        notice_loss(&stream, self.stall_timeout);
        let opened = tokio::select! {
            opened = self.open(stream, peer) => opened,
            () = self.stop.cancelled() => return,
        };
        let Some((stream, is_http2)) = opened else {
            return;
        };
        // Held until the connection has ended. HTTP/1.1 has no window.
        let window = is_http2.then(|| self.windows.open(peer.0.ip()));
        if let Some(window) = &window {
            window.apply(&mut self.http);
        }
        let Connections {
            http,
            router,
            header_timeout,
            idle_timeout,
            stall_timeout,
            reads,
            stop,
            ..
        } = self;
        let activity = Arc::new(Activity::new(stall_timeout));
        let of_connection = OfConnection {
            peer,
            activity: activity.clone(),
            place: place.clone(),
            window: window.clone(),
        };
        let service = service(router, of_connection);
        let (stream, cork) = corked(stream);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let graceful = GracefulShutdown::new();
        let mut connection = Box::pin(graceful.watch(connection.into_owned()));
        // Owned, so that it is dropped as soon as it has ended: the graceful shutdown waits for that.
        let mut connection = Box::pin(poll_fn(move |cx| {
            let ended = connection.as_mut().poll(cx);
            match cork.poll_write_out(cx) {
                Poll::Ready(Err(error)) if ended.is_pending() => Poll::Ready(Err(error.into())),
                _ => ended,
            }
        }));
        let idle = async {
            activity.idle(header_timeout.min(idle_timeout)).await;
            // A connection of the reserve is closed sooner.
            if place.is_ordinary() {
                activity.idle(idle_timeout).await;
            }
        };
        let old = async {
            tokio::time::sleep(RESERVE_AGE).await;
            if place.is_ordinary() {
                std::future::pending::<()>().await;
            }
        };
        let reclaimed = async {
            match &window {
                Some(window) => window.reclaimed().await,
                None => std::future::pending().await,
            }
        };
        let ended_early = async {
            tokio::select! {
                () = old => {}
                () = reclaimed => {}
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
            () = ended_early => {
                let closing = async { tokio::join!(connection, graceful.shutdown()).0 };
                tokio::select! {
                    ended = closing => ended,
                    // What was under way is over, and the client does not take the end.
                    () = activity.idle(CLOSE_TIMEOUT) => return,
                }
            }
            () = idle => {
                let closing = async { tokio::join!(connection, graceful.shutdown()).0 };
                match timeout(CLOSE_TIMEOUT, closing).await {
                    Ok(ended) => ended,
                    // The client does not even take the end.
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended");
        }
    }

    /// Waits for the first request of a connection, until the deadline of its head; returns whether it is one
    /// of HTTP/2. A client that sent nothing in time, or has disconnected, gets no answer.
    async fn open(&self, stream: TcpStream, peer: PeerAddress) -> Option<(Opened<Stream>, bool)> {
        let deadline = Instant::now() + self.header_timeout;
        let (stream, agreed) = match &self.tls {
            None => (Stream::Plain(stream), None),
            Some(tls) => {
                let stream = handshake::accept(tls, stream, peer, deadline).await?;
                let alpn = stream.get_ref().1.alpn_protocol();
                let agreed = alpn.map(|name| match name {
                    b"h2" => Protocol::Http2,
                    _ => Protocol::Http1,
                });
                (Stream::Tls(Box::new(stream)), agreed)
            }
        };
        let (stream, protocol) = timeout_at(deadline, opened(stream)).await.ok()?.ok()?;
        match protocol {
            Protocol::Tls => {
                if let Stream::Plain(stream) = stream.into_inner() {
                    handshake::refuse_tls(stream, peer).await;
                }
                None
            }
            // The client does not speak what it has agreed to.
            _ if agreed.is_some_and(|agreed| agreed != protocol) => None,
            _ => Some((stream, protocol == Protocol::Http2)),
        }
    }
}

/// Whether a path is served when all places are taken, too: health, metrics and the admin API.
fn is_of_reserve(path: &str) -> bool {
    let monitored = [
        "/health",
        "/health/live",
        "/health/ready",
        "/ping",
        "/metrics",
    ];
    monitored.contains(&path) || path.starts_with("/esker/v1/")
}

/// What the requests of a connection have in common.
struct OfConnection {
    peer: PeerAddress,
    activity: Arc<Activity>,
    place: Arc<Place>,
    window: Option<Arc<Window>>,
}

/// The routes, for one connection.
fn service(
    router: axum::Router,
    connection: OfConnection,
) -> impl hyper::service::Service<
    http::Request<hyper::body::Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future: Send,
> + Send
+ 'static {
    hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        let extensions = request.extensions_mut();
        extensions.insert(connection.peer);
        if let Some(window) = &connection.window {
            extensions.insert(window.clone());
        }
        let busy = connection.activity.begin();
        let (router, place) = (router.clone(), connection.place.clone());
        async move {
            let answer = match is_of_reserve(request.uri().path())
                || place.become_ordinary(PLACE_TIMEOUT).await
            {
                true => router.oneshot(request.map(axum::body::Body::new)).await?,
                false => ServiceError::NoPlace.into_response(),
            };
            Ok(busy.until_sent(answer))
        }
    })
}
