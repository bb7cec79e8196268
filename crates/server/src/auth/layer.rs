//! The layer that finds out who sends a request.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

use super::{PeerAddress, Principal};

/// Puts the [`Principal`] into the request's extensions.
pub(crate) async fn identify(mut request: Request, next: Next) -> Response {
    let principal = Principal::anonymous(request.extensions().get::<PeerAddress>());
    request.extensions_mut().insert(principal);
    next.run(request).await
}
