//! The answer of another node, on its way to the client.
//!
//! Nothing of it is kept: the next piece is taken from the other node when the client's connection takes it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;

use super::cut::Cut;
use super::framing::Framing;
use super::outgoing::Sending;
use super::series::{self, Direction, Open};

/// An answer failed before its end.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

/// What an answer is, and when it ends early.
pub(super) struct Answering {
    /// Of an answer that consists of messages.
    pub(super) framing: Option<Framing>,
    /// Whether it answers what the body of the request has: a session of appends.
    pub(super) is_of_appends: bool,
    /// Is done when the answer has to end.
    pub(super) cut: BoxFuture<'static, Cut>,
    /// For gRPC, the status of an answer that is not complete.
    pub(super) incomplete: Option<fn(String) -> Status>,
}

/// The body of another node's answer, or of one from this node's own replica.
pub(super) struct Incoming {
    body: tonic::body::Body,
    framing: Option<Framing>,
    is_of_appends: bool,
    /// `None` once the answer ends.
    cut: Option<BoxFuture<'static, Cut>>,
    ending: Option<Ending>,
    incomplete: Option<fn(String) -> Status>,
    has_ended: bool,
    /// Of an answer of another node. With the answer, the request ends: the other node is not sent the rest of a body
    /// that nobody answers.
    remote: Option<(Sending, Open)>,
}

/// An answer that ends early.
struct Ending {
    cut: Cut,
    /// Whether the other node ends it, once it has answered everything; else it ends with the message that has begun.
    is_awaited: bool,
    late: Pin<Box<Sleep>>,
}

type Polled = Poll<Option<Result<Frame<Bytes>, axum::Error>>>;

impl Incoming {
    pub(super) fn new(
        body: tonic::body::Body,
        answering: Answering,
        remote: Option<(Sending, Open)>,
    ) -> Incoming {
        Incoming {
            body,
            framing: answering.framing,
            is_of_appends: answering.is_of_appends,
            cut: Some(answering.cut),
            ending: None,
            incomplete: answering.incomplete,
            has_ended: false,
            remote,
        }
    }

    /// Begins to end the answer early.
    fn end(&mut self, cut: Cut) {
        self.cut = None;
        let is_awaited = self.is_of_appends && cut.answers_first();
        if is_awaited && let Some((sending, _)) = &self.remote {
            sending.end_input();
        }
        self.ending = Some(Ending {
            is_awaited,
            late: Box::pin(tokio::time::sleep(cut.timeout())),
            cut,
        });
    }

    /// Whether everything that has begun is whole. An answer that does not consist of messages never is.
    fn is_between(&self) -> bool {
        self.framing.as_ref().is_some_and(Framing::is_between)
    }

    /// The end of an answer, in the form of its protocol.
    fn finish(&mut self, cut: &Cut) -> Polled {
        let Some(framing) = self.framing.as_ref().filter(|framing| framing.is_between()) else {
            return self.fail(cut.to_string());
        };
        let frame = (!framing.has_terminal()).then(|| Ok(cut.end(framing)));
        self.stop();
        Poll::Ready(frame)
    }

    /// The end of an answer that is not complete.
    fn fail(&mut self, why: String) -> Polled {
        self.stop();
        Poll::Ready(Some(match self.incomplete {
            None => Err(axum::Error::new(Failed(why))),
            Some(status) => {
                let status = status(why);
                let mut trailers = HeaderMap::new();
                // If the message cannot be a header, only the code is sent.
                if status.add_header(&mut trailers).is_err() {
                    trailers.insert(Status::GRPC_STATUS, (status.code() as i32).into());
                }
                Ok(Frame::trailers(trailers))
            }
        }))
    }

    fn stop(&mut self) {
        self.has_ended = true;
        self.cut = None;
        self.ending = None;
        self.body = tonic::body::Body::empty();
    }

    /// What is decided about the end without more of the answer, if that is the case.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Polled {
        if let Some(cut) = &mut self.cut
            && let Poll::Ready(cut) = cut.as_mut().poll(context)
        {
            if self.framing.is_none() {
                return self.fail(cut.to_string());
            }
            self.end(cut);
        }
        let is_between = self.is_between();
        let Some(ending) = &mut self.ending else {
            return Poll::Pending;
        };
        if is_between && !ending.is_awaited {
            let cut = ending.cut.clone();
            return self.finish(&cut);
        }
        if ending.late.as_mut().poll(context).is_ready() {
            let why = format!("{}, and the node that answers takes long", ending.cut);
            let cut = match self.is_of_appends {
                true => Cut::Lost(why),
                false => Cut::Unanswered(why),
            };
            return self.finish(&cut);
        }
        Poll::Pending
    }

    /// Passes data on, up to where the answer ends.
    fn pass(&mut self, mut data: Bytes) -> Bytes {
        if let Some(framing) = &mut self.framing {
            match &self.ending {
                Some(ending) if !ending.is_awaited => {
                    let passed = framing.pass_to_end_of_message(&data);
                    data.truncate(passed);
                }
                _ => framing.pass(&data),
            }
        }
        if self.remote.is_some() {
            series::passed(Direction::Answer, data.len());
        }
        data
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        if self.has_ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(end) = self.poll_end(context) {
            return Poll::Ready(end);
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
            Poll::Ready(None) => match self.ending.take() {
                Some(ending) => self.finish(&ending.cut),
                None => {
                    self.stop();
                    Poll::Ready(None)
                }
            },
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(match frame.into_data() {
                Ok(data) => Frame::data(self.pass(data)),
                Err(trailers) => trailers,
            }))),
            Poll::Ready(Some(Err(status))) => {
                let why = match self.remote {
                    Some(_) => "the connection to the node that answers was lost",
                    None => "the answer has failed",
                };
                let why = format!("{why}: {}", status.message());
                let cut = match self.is_of_appends {
                    true => Cut::Lost(why),
                    false => Cut::Unanswered(why),
                };
                self.finish(&cut)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        // An answer that ends early has a message more.
        self.has_ended || (self.ending.is_none() && self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self.framing {
            None => self.body.size_hint(),
            Some(_) => SizeHint::default(),
        }
    }
}
