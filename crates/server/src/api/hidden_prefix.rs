//! Errors for the holder of a token whose prefix is put before the names of streams.
//!
//! The holder uses names without the prefix, and answers have none. Handlers and the node know whole names, and an error
//! of theirs has one. [`hide`] is around all routes of the S2 API and answers such an error again without the prefix;
//! sessions, whose errors come after the answer has begun, do so themselves.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::ServiceError;
use super::error::NamesStream;
use crate::auth::Access;

/// Answers an error that names a stream without the prefix of the sender's token.
pub(super) async fn hide(request: Request, next: Next) -> Response {
    let access = Access::of(request.extensions()).ok();
    let prefix = access.as_ref().and_then(Access::auto_prefix);
    let Some(prefix) = prefix.map(str::to_owned) else {
        return next.run(request).await;
    };
    drop(access);
    let answer = next.run(request).await;
    match answer.extensions().get::<NamesStream>() {
        Some(NamesStream(error)) => {
            ServiceError::Node(error.clone().without_prefix(&prefix)).into_response()
        }
        None => answer,
    }
}
