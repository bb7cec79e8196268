//! Answers to reads of the S2 API, which are held as bytes until their clients have taken them.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{Method, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Collected};
use tower_http::compression::Predicate;

use super::ServiceError;
use crate::answers::Answers;
use crate::client::client;

/// An answer whose size is known: one that is in memory as a whole.
#[derive(Clone, Copy, Debug)]
pub struct OfKnownSize;

impl Predicate for OfKnownSize {
    fn should_compress<B: http_body::Body>(&self, response: &http::Response<B>) -> bool {
        response.body().size_hint().exact().is_some()
    }
}

/// Holds the answer to a read as bytes, which count. An answer of unknown length is left as it is, unless it is
/// compressed: what had a known size was ([`OfKnownSize`]), and is encoded here as a whole, so that no answer that
/// waits for its client keeps an encoder, which takes some 0.85 MiB.
pub async fn hold(State(answers): State<Answers>, request: Request, next: Next) -> Response {
    let is_read = request.method() == Method::GET;
    let client = client(request.extensions());
    let response = next.run(request).await;
    let is_encoded = response.headers().contains_key(header::CONTENT_ENCODING);
    match response.body().size_hint().exact() {
        Some(bytes) if is_read && bytes > 0 => {}
        _ if is_encoded => {}
        _ => return response,
    }
    let (head, answer) = response.into_parts();
    let Ok(answer) = answer.collect().await.map(Collected::to_bytes) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    if !is_read {
        // Answers to writes are small and never refused.
        return Response::from_parts(head, Body::from(answer));
    }
    match answers.hold(client, answer.len()) {
        Ok(permit) => Response::from_parts(head, answers.body(answer, None, permit)),
        Err(error) => ServiceError::Exhausted(error).into_response(),
    }
}
