//! What serves one connection: the routes, within the places of connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse as _;
use tower::ServiceExt as _;

use crate::activity::Activity;
use crate::api::ServiceError;
use crate::auth::PeerAddress;
use crate::place::Place;

/// How long any other request on such a connection waits for an ordinary place.
const PLACE_TIMEOUT: Duration = Duration::from_secs(10);

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

/// The routes, for one connection.
pub(super) fn service(
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
