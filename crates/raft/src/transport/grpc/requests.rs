//! Requests of the host between nodes: those that this node answers, and channels for those that it sends.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tonic::codegen::Service;
use tonic::transport::Channel;
use tower::util::BoxCloneSyncService;

use super::{Claim, Credentials, hello};
use crate::ids::NodeId;

/// The body of a request between nodes, or of its answer.
pub type PeerBody = tonic::body::Body;

/// What answers requests of other nodes. The request's extensions have the [`Claim`](super::Claim) of the sender.
pub type PeerRequests =
    BoxCloneSyncService<http::Request<PeerBody>, http::Response<PeerBody>, Infallible>;

/// Why there is no channel to a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The node has no address.
    #[error("the address of node {0} is not known")]
    Unknown(NodeId),
    /// The address cannot be used.
    #[error("the address {address}: {why}")]
    Address {
        /// The address.
        address: String,
        /// What is wrong with it.
        why: String,
    },
}

/// The host's answers, once it has begun to serve.
#[derive(Clone, Default)]
pub(super) struct Requests {
    service: Arc<OnceLock<PeerRequests>>,
}

impl Requests {
    pub fn set(&self, service: PeerRequests) {
        // The first one stays.
        let _ = self.service.set(service);
    }

    pub fn get(&self) -> Option<PeerRequests> {
        self.service.get().cloned()
    }
}

/// Which of the connections to a node: what is sent over one of them holds up nothing on the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// Calls of the host, which nobody else's requests may hold up.
    Calls,
    /// Requests, by a number that the host chooses.
    Requests(u32),
}

/// One channel per node and lane, to the address that the node had last.
#[derive(Default)]
pub(super) struct Channels {
    open: Mutex<BTreeMap<(NodeId, Lane), (String, PeerChannel)>>,
}

impl Channels {
    /// The channel to a node at an address, made when it is first needed.
    pub fn of(
        &self,
        to: (NodeId, Lane),
        address: &str,
        make: impl FnOnce() -> Result<PeerChannel, String>,
    ) -> Result<PeerChannel, String> {
        let mut open = self.open.lock();
        if let Some((_, channel)) = open.get(&to).filter(|(at, _)| at == address) {
            return Ok(channel.clone());
        }
        let channel = make()?;
        open.insert(to, (address.to_owned(), channel.clone()));
        Ok(channel)
    }

    /// The node has gone.
    pub fn forget(&self, node: NodeId) {
        self.open.lock().retain(|(to, _), _| *to != node);
    }
}

/// A channel to a node. Cheap to clone; a clone has the same connection. It adds this node's secret and claim
/// to each request, and the node that the request is for: another one that answers at its address refuses it.
#[derive(Clone)]
pub struct PeerChannel {
    channel: Channel,
    credentials: Credentials,
    to: Option<NodeId>,
}

impl PeerChannel {
    /// `to` is `None` where only the address is known.
    pub(super) fn new(
        channel: Channel,
        credentials: Credentials,
        to: Option<NodeId>,
    ) -> PeerChannel {
        PeerChannel {
            channel,
            credentials,
            to,
        }
    }

    /// What this node claims to be in each request.
    pub(super) fn claim(&self) -> Option<Claim> {
        self.credentials.claim
    }
}

impl Service<http::Request<PeerBody>> for PeerChannel {
    type Response = http::Response<PeerBody>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<PeerBody>) -> Self::Future {
        if let Err(why) = self.credentials.add_to(request.headers_mut()) {
            tracing::error!(why, "a request to another node is sent without its secret");
        }
        if let Some(to) = self.to {
            hello::address_to(to, request.headers_mut());
        }
        Box::pin(self.channel.call(request))
    }
}
