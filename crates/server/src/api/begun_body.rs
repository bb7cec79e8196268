//! A body of which the first piece has come.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// The request, once the first piece of its body has come, or the end of an empty body.
///
/// # Errors
///
/// That of the body.
pub(super) async fn begun(
    request: http::Request<Body>,
) -> Result<http::Request<Body>, axum::Error> {
    let (head, mut body) = request.into_parts();
    let body = match body.frame().await {
        None => Body::empty(),
        Some(frame) => {
            let first = frame?;
            // The end of a body is a piece without data.
            match first.data_ref().is_some_and(Bytes::is_empty) && body.is_end_stream() {
                true => Body::empty(),
                false => Body::new(Begun {
                    first: Some(first),
                    rest: body,
                }),
            }
        }
    };
    Ok(http::Request::from_parts(head, body))
}

struct Begun {
    first: Option<Frame<Bytes>>,
    rest: Body,
}

impl HttpBody for Begun {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let data = self.first.as_ref().and_then(Frame::data_ref);
        let first = data.map_or(0, Bytes::len) as u64;
        match self.rest.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(first + rest),
            None => SizeHint::default(),
        }
    }
}
