//! The server side of the connections: it checks the secret and the claim, hands messages to the inbox, and
//! requests to the host. A message that is not of the node that was admitted ends its connection.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{ClientStreamingService, Grpc};
use tonic::{Code, Request, Response, Status, Streaming};

use super::calls::{Answers, CALL};
use super::claim::{Admission, Admitted, Claim, Gatekeeper};
use super::codec::Incoming;
use super::hello::{self, HELLO};
use super::listener::{AcceptedConnection, ConnectionInfo};
use super::requests::Requests;
use super::whereabouts::Whereabouts;
use super::{CHUNKS, Credentials, MESSAGES, SECRET};
use crate::message::MAX_ENVELOPE_BYTES;
use crate::transport::{Inbox, ProvenSender};

/// Longest time of a call: whoever waits for it has a shorter one.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

#[derive(Clone)]
pub(super) struct PeerService {
    pub inbox: Weak<dyn Inbox>,
    pub credentials: Credentials,
    pub whereabouts: Whereabouts,
    pub gatekeeper: Option<Arc<dyn Gatekeeper>>,
    pub requests: Requests,
    pub answers: Answers,
}

/// What a gatekeeper keeps for as long as a stream or a request lasts.
type Kept = Option<Box<dyn Admitted>>;

impl PeerService {
    /// Asks the gatekeeper, if there is one, about the claim in the head of the request, which becomes an
    /// extension of it.
    fn admit<T>(&self, request: &mut http::Request<T>, what: Admission) -> Result<Kept, Status> {
        request.headers_mut().remove(SECRET);
        let Some(gatekeeper) = &self.gatekeeper else {
            return Ok(None);
        };
        let refused = |refusal: super::Refusal| Status::permission_denied(refusal.0);
        let claim = Claim::take_from(request.headers_mut()).map_err(refused)?;
        let info = request.extensions().get::<ConnectionInfo>();
        let certificate = info.and_then(|info| info.certificate.as_ref());
        let path = request.uri().path();
        let kept = gatekeeper.admit(&claim, what, path, certificate);
        let kept = kept.map_err(refused)?;
        request.extensions_mut().insert(claim);
        Ok(Some(kept))
    }

    fn admits<T>(&self, request: &http::Request<T>) -> bool {
        let given = request.headers().get(SECRET);
        let given = given.map_or(&[][..], |given| given.as_bytes());
        self.credentials.secrets.accept(given)
    }
}

impl Service<http::Request<Body>> for PeerService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let info = request.extensions().get::<ConnectionInfo>().cloned();
        let me = self.credentials.claim;
        let refuse = |status: Status| -> Self::Future {
            if let Some(info) = &info {
                info.connection.refuse();
            }
            // The answer to whoever has the secret names the node that was reached.
            let me = me.filter(|_| status.code() != Code::Unauthenticated);
            let answer = hello::answer(status, me.as_ref());
            Box::pin(async { Ok(answer) })
        };
        if !self.admits(&request) {
            let refused = Status::unauthenticated("the cluster secret is missing or wrong");
            return refuse(refused);
        }
        if let Err(another) = hello::check_receiver(me.as_ref(), request.headers_mut()) {
            return refuse(another);
        }
        let address = hello::take_address(request.headers_mut());
        let what = match [HELLO, MESSAGES, CHUNKS].contains(&request.uri().path()) {
            true => Admission::Messages,
            false => Admission::Request,
        };
        let kept = match self.admit(&mut request, what) {
            Ok(kept) => kept,
            Err(status) => return refuse(status),
        };
        if info.as_ref().is_some_and(|it| !it.connection.admit()) {
            return refuse(Status::resource_exhausted(
                "too many connections of nodes are open here",
            ));
        }
        request.extensions_mut().remove::<ConnectionInfo>();
        let from: Option<Claim> = request.extensions().get().copied();
        if request.uri().path() == HELLO {
            if let (Some(from), Some(address)) = (from, address) {
                self.whereabouts.note_found(from.node, &address);
            }
            let answer = hello::answer(Status::ok(""), me.as_ref());
            return Box::pin(async { Ok(answer) });
        }
        match what {
            Admission::Messages => {
                let receive = Receive {
                    inbox: self.inbox.clone(),
                    from: from.map(|from| ProvenSender::new(from.cluster, from.node)),
                    connection: info.map(|info| info.connection),
                    kept,
                };
                Box::pin(async move {
                    let mut grpc =
                        Grpc::new(Incoming).max_decoding_message_size(MAX_ENVELOPE_BYTES);
                    Ok(grpc.client_streaming(receive, request).await)
                })
            }
            Admission::Request if request.uri().path().starts_with(CALL) => {
                let answers = self.answers.clone();
                Box::pin(async move {
                    let answer = answers.answer(from, request);
                    let answer = tokio::time::timeout(CALL_TIMEOUT, answer).await;
                    drop(kept);
                    Ok(answer.unwrap_or_else(|_| {
                        Status::deadline_exceeded("the call took too long").into_http()
                    }))
                })
            }
            Admission::Request => match self.requests.get() {
                Some(mut service) => Box::pin(async move {
                    let answer = service.call(request).await;
                    drop(kept);
                    answer
                }),
                None => refuse(Status::unavailable("the node does not serve yet")),
            },
        }
    }
}

struct Receive {
    inbox: Weak<dyn Inbox>,
    from: Option<ProvenSender>,
    connection: Option<Arc<AcceptedConnection>>,
    kept: Kept,
}

impl ClientStreamingService<Bytes> for Receive {
    type Response = Bytes;
    type Future = Answer<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let inbox = self.inbox.clone();
        let (mut from, connection) = (self.from, self.connection.clone());
        let kept = self.kept.take();
        Box::pin(async move {
            let mut messages = request.into_inner();
            while let Some(message) = messages.message().await? {
                let Some(inbox) = inbox.upgrade() else {
                    return Err(Status::unavailable("the node has stopped"));
                };
                if let Some(refusal) = kept.as_ref().and_then(|kept| kept.is_over()) {
                    connection.inspect(|connection| connection.close_soon());
                    return Err(Status::permission_denied(refusal.0));
                }
                if let Err(foreign) = inbox.receive(message, from.as_mut()) {
                    connection.inspect(|connection| connection.close_soon());
                    return Err(Status::permission_denied(foreign.to_string()));
                }
            }
            Ok(Response::new(Bytes::new()))
        })
    }
}
