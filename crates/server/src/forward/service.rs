//! Requests of other nodes, at the node that gets them.
//!
//! The connection is authenticated by the transport; the envelope names the sender, whom the other node has
//! identified. What happens for a request happens on the runtime of the server: the threads of the transport pass on
//! bytes alone.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use super::Forwarder;
use super::envelope::{BadEnvelope, Envelope};
use super::hop_headers::{SERVED_BY, strip};
use super::series;
use crate::api::ServiceError;
use crate::auth::{Access, AccessError, Authority, PeerAddress, Principal};
use crate::forwarded::Forwarded;
use crate::request_guard::is_grpc;
use crate::state;

/// What the listener for other nodes does with requests that are not Raft's.
pub(crate) type PeerRequests = BoxCloneSyncService<
    http::Request<tonic::body::Body>,
    http::Response<tonic::body::Body>,
    Infallible,
>;

/// Answers requests of other nodes with these routes, which have no identification before them. To be called in the
/// runtime that is to run them.
pub(crate) fn peer_requests(
    router: Router,
    authority: Arc<Authority>,
    forwarder: Forwarder,
) -> PeerRequests {
    let served = Served {
        router,
        authority,
        forwarder,
    };
    let runtime = Handle::current();
    let service = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        let (served, runtime) = (served.clone(), runtime.clone());
        async move { Ok(on_runtime(&runtime, served, request).await) }
    });
    BoxCloneSyncService::new(service)
}

#[derive(Clone)]
struct Served {
    router: Router,
    authority: Arc<Authority>,
    forwarder: Forwarder,
}

/// Handles a request on a runtime. Dropped before it is done, it ends what was begun; so does the answer's body.
async fn on_runtime(
    runtime: &Handle,
    served: Served,
    request: http::Request<tonic::body::Body>,
) -> http::Response<tonic::body::Body> {
    let (head, answered) = oneshot::channel();
    let signing = served.clone();
    runtime.spawn(async move {
        let mut head = head;
        let mut answer = tokio::select! {
            answer = served.answer(request) => answer,
            () = head.closed() => return,
        };
        served.sign(&mut answer);
        let (parts, mut body) = answer.into_parts();
        // What is complete needs nobody who polls it.
        if body.size_hint().exact().is_some() {
            let body = tonic::body::Body::new(body);
            let _ = head.send(http::Response::from_parts(parts, body));
            return;
        }
        let (frames, sent) = mpsc::channel::<Result<Frame<Bytes>, axum::Error>>(1);
        let passed = http_body_util::StreamBody::new(ReceiverStream::new(sent));
        let passed = tonic::body::Body::new(passed);
        if head
            .send(http::Response::from_parts(parts, passed))
            .is_err()
        {
            return;
        }
        loop {
            // A place first: nothing is made that nobody takes.
            let Ok(place) = frames.reserve().await else {
                return;
            };
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = frames.closed() => return,
            };
            match frame {
                Some(frame) => place.send(frame),
                None => return,
            }
        }
    });
    match answered.await {
        Ok(answer) => answer,
        // The runtime has ended, or the handler has panicked.
        Err(_) => {
            let why = "the node has ended the request without an answer".to_owned();
            let mut answer = ServiceError::Lost(why).into_response();
            signing.sign(&mut answer);
            answer.map(tonic::body::Body::new)
        }
    }
}

impl Served {
    /// Shows that an answer comes from here, and not from a listener that has refused the request.
    fn sign(&self, answer: &mut Response) {
        let node = self.forwarder.peers.node();
        answer.headers_mut().insert(SERVED_BY, node.into());
    }

    async fn answer(&self, request: http::Request<tonic::body::Body>) -> Response {
        let mut request = request.map(Body::new);
        let is_call = is_grpc(request.uri().path());
        let envelope = match Envelope::take(request.headers_mut()) {
            Ok(envelope) => envelope,
            Err(error) => return refused(&error),
        };
        strip(request.headers_mut());
        series::served();
        let peer = PeerAddress(envelope.client);
        let principal = match self.principal(&envelope, &peer).await {
            Ok(principal) => principal,
            Err(refusal) if is_call => return state::status::no_access(&refusal).into_http(),
            Err(refusal) => return refusal.into_response(),
        };
        let extensions = request.extensions_mut();
        extensions.insert(peer);
        extensions.insert(principal.clone());
        extensions.insert(Access::new(self.authority.clone(), principal));
        extensions.insert(Forwarded {
            wait: envelope.wait(),
        });
        match self.router.clone().oneshot(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    }

    /// The sender that the other node has identified. A token that this node does not know may have been issued since
    /// what it has applied.
    async fn principal(
        &self,
        envelope: &Envelope,
        peer: &PeerAddress,
    ) -> Result<Principal, AccessError> {
        let find = || self.authority.of_claim(&envelope.claim, peer);
        match self.authority.find_current(find).await {
            Err(AccessError::Unauthenticated) => {
                let read = self.forwarder.read_index(0).await;
                read.map_err(AccessError::Unavailable)?;
                self.authority.find_current(find).await
            }
            other => other,
        }
    }
}

fn refused(error: &BadEnvelope) -> Response {
    tracing::warn!(%error, "a request of another node was refused");
    (StatusCode::BAD_REQUEST, error.to_string()).into_response()
}
