//! Answers to reads of the S2 API, which are held as bytes until their clients have taken them.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{Method, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Collected};

use super::ServiceError;
use crate::answers::Answers;
use crate::client::client;

/// Holds the answer to a read as bytes, which count. An answer of unknown length is left as it is.
pub async fn hold(State(answers): State<Answers>, request: Request, next: Next) -> Response {
    let is_read = request.method() == Method::GET;
    let client = client(request.extensions());
    let response = next.run(request).await;
    match response.body().size_hint().exact() {
        Some(bytes) if is_read && bytes > 0 => {}
        _ => return response,
    }
    let (head, answer) = response.into_parts();
    let Ok(answer) = answer.collect().await.map(Collected::to_bytes) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    match answers.hold(client, answer.len()) {
        Ok(permit) => Response::from_parts(head, answers.body(answer, None, permit)),
        Err(error) => ServiceError::Exhausted(error).into_response(),
    }
}
