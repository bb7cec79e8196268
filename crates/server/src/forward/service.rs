//! Requests of other nodes, at the node that gets them.
//!
//! The connection is authenticated by the transport; the envelope names the sender, whom the other node has
//! identified. What happens for a request happens on the runtime of the server: the threads of the transport pass on
//! bytes alone.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use super::Forwarder;
use super::envelope::{BadEnvelope, Envelope};
use super::hop_headers::{SERVED_BY, strip};
use super::series;
use crate::api::ServiceError;
use crate::auth::{Access, AccessError, Authority, PeerAddress, Principal};
use crate::request_guard::{content_type, is_grpc};
use crate::state;

/// What the listener for other nodes does with requests that are not Raft's.
pub(crate) type PeerRequests = BoxCloneSyncService<
    http::Request<tonic::body::Body>,
    http::Response<tonic::body::Body>,
    Infallible,
>;

/// How long a client may take until the first piece of a body. From then on the bounds of bodies hold.
const FIRST_PIECE_TIMEOUT: Duration = Duration::from_secs(10);

/// Marks a request that another node has sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forwarded {
    /// For how long that node still waits for a leader.
    pub(super) wait: Duration,
}

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
        let request = match timeout(FIRST_PIECE_TIMEOUT, begun(request)).await {
            Ok(Ok(request)) => request,
            // The other node has gone, or the client sends nothing.
            Ok(Err(_)) | Err(_) => return ServiceError::SlowBody.into_response(),
        };
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
        match self.authority.of_claim(&envelope.claim, peer) {
            Err(AccessError::Unauthenticated) => {
                let read = self.forwarder.read_index(0).await;
                read.map_err(AccessError::Unavailable)?;
                self.authority.of_claim(&envelope.claim, peer)
            }
            other => other,
        }
    }
}

/// A request of which the first piece has come, or the end of an empty body: before that, nothing is handled, so
/// the other node knows that nothing has happened if it passed on nothing. Sessions and calls do nothing by
/// themselves before they have read a piece.
async fn begun(request: http::Request<Body>) -> Result<http::Request<Body>, axum::Error> {
    let is_session = content_type(request.headers()).is_some_and(|kind| kind == "s2s/proto");
    if is_session || is_grpc(request.uri().path()) {
        return Ok(request);
    }
    let (head, mut body) = request.into_parts();
    let body = match body.frame().await {
        None => Body::empty(),
        Some(frame) => {
            let first = frame?;
            // The end of a body is a piece without data.
            match first.data_ref().is_some_and(Bytes::is_empty) && body.is_end_stream() {
                true => Body::empty(),
                false => Body::new(Begun {
                    first: Some(first),
                    rest: body,
                }),
            }
        }
    };
    Ok(http::Request::from_parts(head, body))
}

/// A body of which the first piece has been read.
struct Begun {
    first: Option<Frame<Bytes>>,
    rest: Body,
}

impl HttpBody for Begun {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let data = self.first.as_ref().and_then(Frame::data_ref);
        let first = data.map_or(0, Bytes::len) as u64;
        match self.rest.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(first + rest),
            None => SizeHint::default(),
        }
    }
}

fn refused(error: &BadEnvelope) -> Response {
    tracing::warn!(%error, "a request of another node was refused");
    (StatusCode::BAD_REQUEST, error.to_string()).into_response()
}
