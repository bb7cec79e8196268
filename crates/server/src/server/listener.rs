//! A listener: it binds an address, accepts connections within their bounds, and ends them at a stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::from_fn_with_state;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ServeError;
use super::connection::Connections;
use crate::auth::{Authority, PeerAddress};
use crate::config::Config;
use crate::cors::{self, Cors};
use crate::forward::Forwarder;
use crate::identification::{self, Learning};
use crate::place::{CONNECTIONS_REFUSED, Places, Taken};
use crate::request_guard::{self, RequestGuard};
use crate::shared_service::ShareLayer;

/// Pause after accepting a connection failed, for lack of file descriptors for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection waits for a place before anything of it is read.
const WAITING_TIMEOUT: Duration = Duration::from_secs(10);

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
pub(super) fn guarded(
    router: axum::Router,
    (authority, forwarder): (Arc<Authority>, Option<Forwarder>),
    config: &Config,
    address: SocketAddr,
) -> axum::Router {
    let guard = Arc::new(RequestGuard::new(config, address));
    let check = from_fn_with_state(guard, request_guard::check);
    let identify = from_fn_with_state(authority.clone(), identification::identify);
    // One call for all: see `api::finished`.
    let router = match forwarder {
        Some(forwarder) => router.layer((
            check,
            ShareLayer,
            from_fn_with_state(Learning::new(authority, forwarder), identification::learn),
            ShareLayer,
            identify,
            ShareLayer,
        )),
        None => router.layer((check, ShareLayer, identify, ShareLayer)),
    };
    // Around everything that refuses: a page may read why it was refused.
    match Cors::new(config) {
        None => router,
        Some(cors) => router.layer((from_fn_with_state(Arc::new(cors), cors::answer), ShareLayer)),
    }
}

/// What all listeners share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) places: Places,
    pub(super) stop: CancellationToken,
    pub(super) grace: Duration,
}

/// Accepts connections until `stop`, and then waits for them, `grace` at most.
pub(super) async fn accept(listener: TcpListener, shared: Shared, served: Connections) {
    let Shared {
        places,
        stop,
        grace,
    } = shared;
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
        let place = places.take(peer.0.ip());
        // Acknowledgements are small and must not wait for more to send.
        let _ = stream.set_nodelay(true);
        let served = served.clone();
        match place {
            Taken::Place(place) => {
                connections.spawn(served.serve(stream, peer, Arc::new(place)));
            }
            Taken::Later(place) => {
                let stop = stop.clone();
                connections.spawn(async move {
                    let place = tokio::select! {
                        place = tokio::time::timeout(WAITING_TIMEOUT, place) => place,
                        () = stop.cancelled() => return,
                    };
                    match place {
                        Ok(place) => served.serve(stream, peer, Arc::new(place)).await,
                        _ => metrics::counter!(CONNECTIONS_REFUSED).increment(1),
                    }
                });
            }
            Taken::None => metrics::counter!(CONNECTIONS_REFUSED).increment(1),
        }
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
