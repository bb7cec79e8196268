//! Calls between nodes: one message there, one answer back.
//!
//! ```text
//! /esker.raft.v1.Peers/Call/NAME     the body of a call; its meaning is the host's
//! ```

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Code, Request, Response, Status};

use super::chain;
use super::claim::Claim;
use super::codec::Incoming;
use super::requests::PeerChannel;
use crate::ids::ClusterId;

/// What the path of a call begins with.
pub(super) const CALL: &str = "/esker.raft.v1.Peers/Call/";
/// Most bytes of a call or its answer.
pub const MAX_CALL_BYTES: usize = 4 * 1024 * 1024;

/// Answers the calls of other nodes.
pub trait Calls: Send + Sync + 'static {
    /// Answers a call. The future runs on the threads of the transport, so it must not block.
    fn answer(&self, from: Claim, name: &str, body: Bytes) -> CallAnswer;
}

/// The answer to a call.
pub type CallAnswer = Pin<Box<dyn Future<Output = Result<Bytes, CallError>> + Send>>;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The other node refuses it: repeating it will not help.
    #[error("{0}")]
    Refused(String),
    /// Whoever answers at the address refuses the call, and has not shown that it is a node of the caller's cluster: it
    /// has another secret, belongs to another cluster, or is no node at all. What it answers is not the cluster's answer.
    #[error("{0}")]
    Stranger(String),
    /// The other node cannot be reached, or cannot answer now. Whether the call had an effect is not known.
    #[error("{0}")]
    Unavailable(String),
}

impl CallError {
    fn into_status(self) -> Status {
        match self {
            CallError::Refused(why) => Status::failed_precondition(why),
            // The refusal of a stranger is not that of this node, which has only not reached whom it asked.
            CallError::Stranger(why) | CallError::Unavailable(why) => Status::unavailable(why),
        }
    }

    /// What an answer without success means to a caller of this cluster.
    fn of(status: &Status, own: Option<ClusterId>) -> CallError {
        let said = match status.message() {
            "" => chain(status),
            message => message.to_owned(),
        };
        // A refusal names the cluster of the node that refuses; that by another secret does not, nor does what is no node.
        let mut head = status.metadata().clone().into_headers();
        let refusing = Claim::take_from(&mut head).map(|claim| claim.cluster);
        let is_own = match own {
            None => true,
            // Who belongs to no cluster yet is refused by that which it asks.
            Some(own) if own == ClusterId::default() => refusing.is_ok(),
            Some(own) => refusing == Ok(own),
        };
        match status.code() {
            // Who answers so has admitted the call.
            Code::FailedPrecondition | Code::InvalidArgument => CallError::Refused(said),
            Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => match is_own {
                true => CallError::Refused(said),
                false => CallError::Stranger(said),
            },
            _ => CallError::Unavailable(said),
        }
    }
}

/// The host's answers, once it has begun to give them.
#[derive(Clone, Default)]
pub(super) struct Answers {
    calls: Arc<OnceLock<Arc<dyn Calls>>>,
}

impl Answers {
    pub fn set(&self, calls: Arc<dyn Calls>) {
        // The first one stays.
        let _ = self.calls.set(calls);
    }

    /// Answers the call that a request is.
    pub async fn answer(
        self,
        from: Option<Claim>,
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        let name = request.uri().path().strip_prefix(CALL);
        let name = name.unwrap_or_default().to_owned();
        let mut grpc = Grpc::new(Incoming).max_decoding_message_size(MAX_CALL_BYTES);
        let service = Answering {
            calls: self.calls.get().cloned(),
            from,
            name,
        };
        grpc.unary(service, request).await
    }
}

struct Answering {
    calls: Option<Arc<dyn Calls>>,
    from: Option<Claim>,
    name: String,
}

impl UnaryService<Bytes> for Answering {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (Some(calls), Some(from)) = (&self.calls, self.from) else {
            let early = Status::unavailable("the node does not answer calls yet");
            return Box::pin(async { Err(early) });
        };
        let answer = calls.answer(from, &self.name, request.into_inner());
        Box::pin(async {
            answer
                .await
                .map(Response::new)
                .map_err(CallError::into_status)
        })
    }
}

/// Sends a call, and waits for its answer for so long.
pub(super) async fn call(
    channel: PeerChannel,
    name: &str,
    body: Bytes,
    longest: Duration,
) -> Result<Bytes, CallError> {
    let path = PathAndQuery::from_maybe_shared(format!("{CALL}{name}"))
        .map_err(|_| CallError::Refused(format!("{name} is not the name of a call")))?;
    let own = channel.claim().map(|claim| claim.cluster);
    let sent = async {
        let mut client = tonic::client::Grpc::new(channel)
            .max_decoding_message_size(MAX_CALL_BYTES)
            .max_encoding_message_size(MAX_CALL_BYTES);
        (client.ready().await).map_err(|e| CallError::Unavailable(chain(&e)))?;
        let answer = client.unary(Request::new(body), path, Incoming).await;
        answer
            .map(Response::into_inner)
            .map_err(|status| CallError::of(&status, own))
    };
    match tokio::time::timeout(longest, sent).await {
        Ok(answer) => answer,
        Err(_) => Err(CallError::Unavailable(format!(
            "there was no answer within {} s",
            longest.as_secs()
        ))),
    }
}
