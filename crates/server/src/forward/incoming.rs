//! The answer of another node, on its way to the client.
//!
//! Nothing of it is kept: the next piece is taken from the other node when the client's connection takes it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;

use super::outgoing::Sending;
use super::series::{self, Direction, Open};

/// Why an answer ends before the other node has ended it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Cut(pub(super) String);

/// The body of another node's answer.
pub(super) struct Incoming {
    body: tonic::body::Body,
    /// Is done when the answer has to end: the sender may not go on, or the node has lost its leadership.
    cut: Option<BoxFuture<'static, Cut>>,
    /// For gRPC, the status of an answer that is not complete.
    incomplete: Option<fn(String) -> Status>,
    has_ended: bool,
    /// With the answer, the request ends: the other node is not sent the rest of a body that nobody answers.
    _sending: Sending,
    _open: Open,
}

impl Incoming {
    pub(super) fn new(
        body: tonic::body::Body,
        cut: BoxFuture<'static, Cut>,
        incomplete: Option<fn(String) -> Status>,
        (sending, open): (Sending, Open),
    ) -> Incoming {
        Incoming {
            body,
            cut: Some(cut),
            incomplete,
            has_ended: false,
            _sending: sending,
            _open: open,
        }
    }

    /// The end of an answer that is not complete.
    fn fail(&mut self, why: String) -> Result<Frame<Bytes>, axum::Error> {
        self.has_ended = true;
        self.cut = None;
        self.body = tonic::body::Body::empty();
        match self.incomplete {
            None => Err(axum::Error::new(Cut(why))),
            Some(status) => {
                let status = status(why);
                let mut trailers = HeaderMap::new();
                // If the message cannot be a header, only the code is sent.
                if status.add_header(&mut trailers).is_err() {
                    trailers.insert(Status::GRPC_STATUS, (status.code() as i32).into());
                }
                Ok(Frame::trailers(trailers))
            }
        }
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        if let Some(cut) = &mut self.cut
            && let Poll::Ready(Cut(why)) = cut.as_mut().poll(context)
        {
            return Poll::Ready(Some(self.fail(why)));
        }
        // The end of a body may be a piece without data.
        let polled = loop {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                polled => break polled,
            }
        };
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                self.has_ended = true;
                self.cut = None;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    series::passed(Direction::Answer, data.len());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(status))) => {
                let why = format!(
                    "the connection to the node that answers was lost: {}",
                    status.message()
                );
                Poll::Ready(Some(self.fail(why)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
