//! Reads and discards the rest of a request that was answered before it was read.
//!
//! Many clients do not read an answer before they have sent everything, and lose it if the connection is
//! closed before that. So the rest of a refused request is read and discarded, up to [`MAX_BYTES`] and
//! for [`DRAIN_TIMEOUT`], while the answer is being sent.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::runtime::Handle;

/// Bytes that are discarded at most: enough for a body that was sent by mistake.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// How long bytes are discarded; a stop may have to wait for this.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads the rest of a request after an early answer.
pub async fn read_on(request: Request, next: Next) -> Response {
    next.run(request.map(|body| Body::new(DrainedBody(body))))
        .await
}

/// A request's body, the rest of which is read when its handler drops it.
struct DrainedBody(Body);

impl HttpBody for DrainedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for DrainedBody {
    fn drop(&mut self) {
        if self.0.is_end_stream() {
            return;
        }
        // Without a runtime there is no connection either.
        if let Ok(runtime) = Handle::try_current() {
            let rest = std::mem::take(&mut self.0).into_data_stream();
            // At its end or its limit the body is dropped, which the connection notices.
            runtime.spawn(tokio::time::timeout(DRAIN_TIMEOUT, throw_away(rest)));
        }
    }
}

async fn throw_away(mut rest: BodyDataStream) {
    let mut thrown = 0;
    while let Some(Ok(bytes)) = rest.next().await {
        thrown += bytes.len();
        if thrown > MAX_BYTES {
            return;
        }
    }
}
