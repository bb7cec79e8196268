//! The answers of all other nodes to a request that each of them answers for itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::extract::NestedPath;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Limited};
use tower::ServiceExt as _;

use super::Forwarder;
use super::envelope::Envelope;
use super::hop_headers::{SERVED_BY, strip_request};
use crate::auth::{Access, Claim, PeerAddress};
use crate::forwarded::is_forwarded;

/// How long another node has for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of an answer.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// A request for all other nodes.
pub(crate) struct Others {
    forwarder: Forwarder,
    uri: Uri,
    headers: HeaderMap,
    claim: Claim,
    client: SocketAddr,
}

impl Others {
    /// The request of a client; `None` if it is one of another node, which asks each by itself.
    pub(crate) fn of(forwarder: Option<&Forwarder>, request: &Parts) -> Option<Others> {
        if is_forwarded(&request.extensions) {
            return None;
        }
        let mut headers = request.headers.clone();
        strip_request(&mut headers);
        // The answers are read here.
        headers.remove(http::header::ACCEPT_ENCODING);
        let access = request.extensions.get::<Access>()?;
        let client = request.extensions.get::<PeerAddress>();
        Some(Others {
            forwarder: forwarder?.clone(),
            // What a router matches within another one lacks the beginning of the path.
            uri: original(request),
            headers,
            claim: access.principal().claim()?,
            client: client.map_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), |peer| peer.0),
        })
    }

    /// The bodies of the answers that have come in time and are no errors. A node that is away has none.
    pub(crate) async fn answers(&self) -> Vec<Bytes> {
        let others = self.forwarder.peers.others().into_iter();
        let asked = others.map(|node| async move {
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.ask(node)).await;
            match answer.unwrap_or_else(|_| Err("there was no answer in time".to_owned())) {
                Ok(answer) => Some(answer),
                Err(why) => {
                    tracing::debug!(node, why, "a node has not answered what all are asked");
                    None
                }
            }
        });
        let answers = futures::future::join_all(asked).await;
        answers.into_iter().flatten().collect()
    }

    async fn ask(&self, node: u64) -> Result<Bytes, String> {
        let peers = &self.forwarder.peers;
        let connection = peers.connection(node)?;
        let mut request = http::Request::new(tonic::body::Body::empty());
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let wait = self.forwarder.leader_timeout;
        let envelope = Envelope::new(peers.node(), self.claim, self.client, 1, wait);
        envelope.write(request.headers_mut());
        let answer = connection.oneshot(request).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.status() != StatusCode::OK || !answer.headers().contains_key(SERVED_BY) {
            return Err(answer.status().to_string());
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        body.map(|body| body.to_bytes()).map_err(|e| e.to_string())
    }
}

/// Path and query as the client has sent them.
fn original(request: &Parts) -> Uri {
    let path = request
        .uri
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let nested = request.extensions.get::<NestedPath>();
    let nested = nested.map_or("", NestedPath::as_str);
    let whole = match path.starts_with(nested) {
        true => path.to_owned(),
        false => format!("{nested}{path}"),
    };
    whole.parse().unwrap_or_default()
}
