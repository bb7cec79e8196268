//! The server side of the streams: it checks the secret and hands messages to the inbox.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{ClientStreamingService, Grpc};
use tonic::{Request, Response, Status, Streaming};

use super::codec::Incoming;
use super::{CHUNKS, MESSAGES, SECRET};
use crate::message::MAX_ENVELOPE_BYTES;
use crate::transport::Inbox;

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

#[derive(Clone)]
pub(super) struct PeerService {
    inbox: Weak<dyn Inbox>,
    secret: Option<Arc<str>>,
}

impl PeerService {
    pub fn new(inbox: Weak<dyn Inbox>, secret: Option<String>) -> PeerService {
        let secret = secret.map(Into::into);
        PeerService { inbox, secret }
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

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !self.admits(&request) {
            let refused = Status::unauthenticated("the cluster secret is missing or wrong");
            return Box::pin(async { Ok(refused.into_http()) });
        }
        if ![MESSAGES, CHUNKS].contains(&request.uri().path()) {
            let unknown = Status::unimplemented("there is no such call");
            return Box::pin(async { Ok(unknown.into_http()) });
        }
        let inbox = self.inbox.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(Incoming).max_decoding_message_size(MAX_ENVELOPE_BYTES);
            Ok(grpc.client_streaming(Receive { inbox }, request).await)
        })
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
