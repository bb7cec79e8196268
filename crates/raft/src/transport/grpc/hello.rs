//! Who is at the other end: before a node sends messages over a new connection, it asks who has accepted it.
//!
//! ```text
//! POST /esker.raft.v1.Peers/Hello   head: secret, claim of the caller, and the address at which it is reached
//!                                   answer: status, and the claim of the node that answers
//! ```
//!
//! The node at an address need not be the one that was there before: a node that is restarted may get the address of
//! another. Votes and entries must not go to it. A node that answers without a claim is of an earlier version, which
//! has none: messages go to it as they always did, and it refuses those that are for another node.
//!
//! Requests of the host name their receiver in their head instead ([`RECEIVER`]), and another node refuses them with
//! its claim, before it uses anything of them.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::claim::Claim;
use super::{Credentials, chain};
use crate::ids::NodeId;

/// The path.
pub(super) const HELLO: &str = "/esker.raft.v1.Peers/Hello";
/// The header of the node that a request is for: its number.
const RECEIVER: &str = "esker-receiver";
/// The header of the address at which the caller is reached: `host:port`, or a URL.
const ADDRESS: &str = "esker-address";
/// How long the other end may take to answer: a round trip, and what its threads do before.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// What was found at the other end instead of the node that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotTheNode {
    /// Another node, which has this claim.
    Another(Box<Claim>),
    /// One that refuses this node.
    Refuses(String),
    /// There was no answer.
    Silent(String),
}

/// Who answers at an address of which nothing else is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answering {
    /// A node, which has this claim.
    Node(Box<Claim>),
    /// A node, or what stands in front of one, that refuses this node's secret; with what it answers. Which cluster it
    /// belongs to is not shown to whoever does not have its secret.
    OtherSecret(String),
    /// Whoever answers has not shown to be a node; with what it answers.
    Stranger(String),
    /// There was no answer.
    Nobody(String),
}

/// Asks who is at the other end of a connection, without looking for anybody.
pub(super) async fn identify(channel: &mut Channel, credentials: &Credentials) -> Answering {
    let nobody = |why: String| Answering::Nobody(why);
    let request = match request(credentials) {
        Ok(request) => request,
        Err(why) => return nobody(why.to_owned()),
    };
    let mut answer = match exchange(channel, request).await {
        Ok(answer) => answer,
        Err(why) => return nobody(why),
    };
    match Claim::take_from(answer.headers_mut()) {
        Ok(claim) => Answering::Node(Box::new(claim)),
        Err(_) => match Status::from_header_map(answer.headers()) {
            Some(status) if status.code() == Code::Unauthenticated => {
                Answering::OtherSecret(status.message().to_owned())
            }
            Some(status) => Answering::Stranger(status.message().to_owned()),
            None => Answering::Stranger(answer.status().to_string()),
        },
    }
}

fn request(credentials: &Credentials) -> Result<http::Request<Body>, &'static str> {
    let mut request = http::Request::new(Body::empty());
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(HELLO);
    let headers = request.headers_mut();
    let kind = HeaderValue::from_static("application/grpc");
    headers.insert(header::CONTENT_TYPE, kind);
    credentials.add_to(headers)?;
    Ok(request)
}

/// The answer to a request; an error if there was none in time.
async fn exchange(
    channel: &mut Channel,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, String> {
    let asked = async {
        std::future::poll_fn(|cx| channel.poll_ready(cx)).await?;
        channel.call(request).await
    };
    match tokio::time::timeout(HELLO_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(|error| chain(&error)),
        Err(_) => {
            let seconds = HELLO_TIMEOUT.as_secs();
            Err(format!("there was no answer within {seconds} s"))
        }
    }
}

/// Asks who is at the other end of a connection. Ready if it is the node, or one of a version that does not answer.
pub(super) async fn ask(
    channel: &mut Channel,
    credentials: &Credentials,
    node: NodeId,
    own_address: &str,
) -> Result<(), NotTheNode> {
    let silent = |why: String| NotTheNode::Silent(why);
    let mut request = request(credentials).map_err(|why| silent(why.to_owned()))?;
    if let Ok(address) = own_address.parse() {
        request.headers_mut().insert(ADDRESS, address);
    }
    let mut answer = exchange(channel, request).await.map_err(silent)?;
    let status = Status::from_header_map(answer.headers());
    let refusal = status.filter(|status| status.code() != Code::Ok);
    let refuses = |status: Status| NotTheNode::Refuses(status.message().to_owned());
    match (Claim::take_from(answer.headers_mut()), refusal) {
        (Ok(claim), _) if !is_it(&claim, node, credentials) => {
            Err(NotTheNode::Another(Box::new(claim)))
        }
        (Ok(_), None) => Ok(()),
        (Ok(_), Some(refusal)) => Err(refuses(refusal)),
        (Err(_), Some(refusal)) if refusal.code() == Code::Unauthenticated => Err(refuses(refusal)),
        // An earlier version. It knows no such path, and what it answers to it is of no importance.
        (Err(_), _) => Ok(()),
    }
}

fn is_it(claim: &Claim, node: NodeId, credentials: &Credentials) -> bool {
    let own = credentials.claim;
    claim.node == node && own.is_none_or(|own| own.cluster == claim.cluster)
}

/// Names the receiver of a request in its head.
pub(super) fn address_to(node: NodeId, headers: &mut HeaderMap) {
    headers.insert(RECEIVER, HeaderValue::from(node.0));
}

/// Removes what is in the head of a request about its receiver. An error if this node is another one.
pub(super) fn check_receiver(me: Option<&Claim>, headers: &mut HeaderMap) -> Result<(), Status> {
    let (Some(receiver), Some(me)) = (headers.remove(RECEIVER), me) else {
        return Ok(());
    };
    let receiver = receiver.to_str().unwrap_or_default();
    match receiver.parse() == Ok(me.node.0) {
        true => Ok(()),
        false => Err(Status::unavailable(format!(
            "this is node {}, and not node {receiver}",
            me.node
        ))),
    }
}

/// Removes the address of the caller from the head of a request.
pub(super) fn take_address(headers: &mut HeaderMap) -> Option<String> {
    let address = headers.remove(ADDRESS)?;
    address.to_str().ok().map(str::to_owned)
}

/// An answer with the claim of this node.
pub(super) fn answer(status: Status, me: Option<&Claim>) -> http::Response<Body> {
    let mut answer = status.into_http();
    if let Some(me) = me {
        me.add_to(answer.headers_mut());
    }
    answer
}
