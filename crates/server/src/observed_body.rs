//! A body with something that lives as long as it, and may look at its frames.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

/// What looks at the frames of a body, and is dropped with it.
pub(crate) trait Observer: Unpin {
    /// A frame, or the error that there is instead of one.
    fn frame(&mut self, _frame: Result<&Frame<Bytes>, &axum::Error>) {}
}

/// A body that is observed.
pub(crate) struct Observed<T> {
    body: Body,
    observer: T,
}

impl<T: Observer> Observed<T> {
    pub(crate) fn new(body: Body, observer: T) -> Observed<T> {
        Observed { body, observer }
    }
}

impl<T: Observer> HttpBody for Observed<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(frame)) = &polled {
            self.observer.frame(frame.as_ref());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
