//! The server side of the connections: it checks the secret and the claim, hands messages to the inbox, and
//! requests to the host.

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
use tonic::{Request, Response, Status, Streaming};

use super::calls::{Answers, CALL};
use super::claim::{Admission, Claim, Gatekeeper};
use super::codec::Incoming;
use super::listener::Arrival;
use super::requests::Requests;
use super::{CHUNKS, MESSAGES, SECRET};
use crate::message::MAX_ENVELOPE_BYTES;
use crate::transport::Inbox;

/// Longest time of a call: whoever waits for it has a shorter one.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

#[derive(Clone)]
pub(super) struct PeerService {
    inbox: Weak<dyn Inbox>,
    secret: Option<Arc<str>>,
    gatekeeper: Option<Arc<dyn Gatekeeper>>,
    requests: Requests,
    answers: Answers,
}

/// What a gatekeeper keeps for as long as a stream or a request lasts.
type Kept = Option<Box<dyn Send + Sync>>;

impl PeerService {
    pub fn new(
        inbox: Weak<dyn Inbox>,
        secret: Option<String>,
        gatekeeper: Option<Arc<dyn Gatekeeper>>,
        requests: Requests,
        answers: Answers,
    ) -> PeerService {
        let secret = secret.map(Into::into);
        PeerService {
            inbox,
            secret,
            gatekeeper,
            requests,
            answers,
        }
    }

    /// Asks the gatekeeper, if there is one, about the claim in the head of the request, which becomes an
    /// extension of it.
    fn admit<T>(&self, request: &mut http::Request<T>, what: Admission) -> Result<Kept, Status> {
        request.headers_mut().remove(SECRET);
        let Some(gatekeeper) = &self.gatekeeper else {
            return Ok(None);
        };
        let refused = |refusal: super::Refusal| Status::permission_denied(refusal.0);
        let claim = Claim::take_from(request.headers_mut()).map_err(refused)?;
        let arrival = request.extensions().get::<Arrival>();
        let certificate = arrival.and_then(|arrival| arrival.certificate.as_ref());
        let path = request.uri().path();
        let kept = gatekeeper.admit(&claim, what, path, certificate);
        let kept = kept.map_err(refused)?;
        request.extensions_mut().insert(claim);
        Ok(Some(kept))
    }

    fn admits<T>(&self, request: &http::Request<T>) -> bool {
        let Some(secret) = &self.secret else {
            return true;
        };
        let given = request
            .headers()
            .get(SECRET)
            .map_or(&[][..], |s| s.as_bytes());
        // In constant time, so that the duration reveals nothing of the secret.
        let differs = |(a, b): (&u8, &u8)| a ^ b;
        given.len() == secret.len()
            && given
                .iter()
                .zip(secret.as_bytes())
                .map(differs)
                .fold(0, |a, b| a | b)
                == 0
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
        let arrival = request.extensions().get::<Arrival>().cloned();
        let refuse = |status: Status| -> Self::Future {
            if let Some(arrival) = &arrival {
                arrival.visit.refuse();
            }
            Box::pin(async { Ok(status.into_http()) })
        };
        if !self.admits(&request) {
            let refused = Status::unauthenticated("the cluster secret is missing or wrong");
            return refuse(refused);
        }
        let what = match [MESSAGES, CHUNKS].contains(&request.uri().path()) {
            true => Admission::Messages,
            false => Admission::Request,
        };
        let kept = match self.admit(&mut request, what) {
            Ok(kept) => kept,
            Err(status) => return refuse(status),
        };
        if arrival.as_ref().is_some_and(|it| !it.visit.admit()) {
            return refuse(Status::resource_exhausted(
                "too many connections of nodes are open here",
            ));
        }
        request.extensions_mut().remove::<Arrival>();
        match what {
            Admission::Messages => {
                let inbox = self.inbox.clone();
                Box::pin(async move {
                    let mut grpc =
                        Grpc::new(Incoming).max_decoding_message_size(MAX_ENVELOPE_BYTES);
                    let answer = grpc.client_streaming(Receive { inbox }, request).await;
                    drop(kept);
                    Ok(answer)
                })
            }
            Admission::Request if request.uri().path().starts_with(CALL) => {
                let answers = self.answers.clone();
                let from = request.extensions().get().copied();
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
}

impl ClientStreamingService<Bytes> for Receive {
    type Response = Bytes;
    type Future = Answer<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let inbox = self.inbox.clone();
        Box::pin(async move {
            let mut messages = request.into_inner();
            while let Some(message) = messages.message().await? {
                let Some(inbox) = inbox.upgrade() else {
                    return Err(Status::unavailable("the node has stopped"));
                };
                inbox.receive(message);
            }
            Ok(Response::new(Bytes::new()))
        })
    }
}
