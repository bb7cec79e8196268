//! Why an answer ends before the other node has ended it, and what its client gets at the end.
//!
//! A session gets the same at the end as one with this node: the message that ends it, behind what has been
//! answered. What cannot be ended in order ends with an error of the connection.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::Frame;
use s2_api::v1::stream::s2s::{SessionMessage, TerminalMessage};
use tonic::Status;

use super::framing::Framing;
use crate::answers::Exhausted;
use crate::api::ServiceError;
use crate::auth::AccessError;
use crate::state::status;

/// Of a session of appends whose leader has answered everything that it got.
const MOVED: &str =
    "the node that answers has lost the leadership; what it has not acknowledged was not made";

/// Why an answer ends early.
#[derive(Clone, Debug)]
pub(super) enum Cut {
    /// This node stops.
    Stopping,
    /// The client takes nothing.
    Stalled,
    /// The sender may not go on.
    NoAccess(AccessError),
    /// The node that answers has lost the leadership. It knows what became of what was passed on to it.
    Moved,
    /// The node that answers was lost, or takes too long to end: what was passed on and is not
    /// answered may have happened.
    Lost(String),
    /// The same of what only reads: it may be asked again.
    Unanswered(String),
}

impl Cut {
    /// Whether what has been passed on is answered before the end.
    pub(super) fn answers_first(&self) -> bool {
        match self {
            Cut::Stopping | Cut::Stalled | Cut::NoAccess(_) | Cut::Moved => true,
            Cut::Lost(_) | Cut::Unanswered(_) => false,
        }
    }

    /// How long the other node has for the rest of an answer that ends early: for what it has to answer, and for the
    /// message that it has begun. One that has lost the leadership may be cut off, and what it got before is known
    /// soon.
    pub(super) fn timeout(&self) -> Duration {
        match self {
            Cut::Moved => Duration::from_secs(1),
            _ => Duration::from_secs(3),
        }
    }

    fn error(&self) -> ServiceError {
        match self {
            Cut::Stopping => ServiceError::Node(esker_node::Error::Stopping),
            Cut::Stalled => ServiceError::Exhausted(Exhausted::Stalled),
            Cut::NoAccess(error) => ServiceError::Access(error.clone()),
            Cut::Moved => ServiceError::NoLeader(MOVED.to_owned()),
            Cut::Lost(why) => ServiceError::Lost(why.clone()),
            Cut::Unanswered(why) => ServiceError::NoLeader(why.clone()),
        }
    }

    fn status(&self) -> Status {
        match self {
            Cut::Stopping => status::status(&esker_node::StateError::Stopping),
            Cut::Stalled => status::refused(Exhausted::Stalled),
            Cut::NoAccess(error) => status::no_access(error),
            Cut::Moved => status::unavailable(MOVED.to_owned()),
            Cut::Lost(why) => status::unknown(why.clone()),
            Cut::Unanswered(why) => status::unavailable(why.clone()),
        }
    }

    /// The frame that ends a body of messages.
    pub(super) fn end(&self, framing: &Framing) -> Frame<Bytes> {
        match framing {
            Framing::Session(_) => {
                let (status, body) = self.error().to_response().to_parts();
                let end = TerminalMessage {
                    status: status.as_u16(),
                    body,
                };
                Frame::data(SessionMessage::from(end).encode())
            }
            Framing::Events { .. } => {
                let (_, body) = self.error().to_response().to_parts();
                // The form in which the S2 API writes events of errors; the body is JSON without line breaks.
                Frame::data(format!("event: error\ndata: {body}\n\n").into())
            }
            Framing::Call(_) => Frame::trailers(trailers(&self.status())),
        }
    }

    /// The answer to a request of which nothing was answered yet.
    pub(super) fn answer(&self, is_call: bool) -> axum::response::Response {
        use axum::response::IntoResponse as _;
        match is_call {
            true => self.status().into_http(),
            false => self.error().into_response(),
        }
    }
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error().fmt(f)
    }
}

/// The end of a call.
fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // If the message cannot be a header, only the code is sent.
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(Status::GRPC_STATUS, (status.code() as i32).into());
    }
    trailers
}
