//! Requests to any node of a cluster.
//!
//! A node answers what it leads and sends the rest to the node that leads it, over HTTP/2 by the connection between
//! the two.
//!
//! | module | what it holds |
//! |---|---|
//! | [`targets`] | for each route, what decides which node answers |
//! | [`peers`] | what is needed of the cluster |
//! | [`node_peers`] | the same of the cluster of a running node |
//! | [`layer`] | the layer that answers here, or sends a request on |
//! | [`replica`] | reads of a stream that this node answers without leading its partition |
//! | [`contact`] | whether this node is in contact with a partition's leader, and who that is |
//! | [`outgoing`] | the request that is sent, again if nothing of it can have happened |
//! | [`incoming`] | the answer on its way to the client |
//! | [`cut`], [`framing`] | why an answer ends early, and where in it that is possible |
//! | [`others`] | the answers of all other nodes to one request |
//! | [`service`] | requests of other nodes, at the node that gets them |
//! | [`envelope`] | the header by which a node names the sender of a request |
//! | [`hop_headers`] | headers that are for one connection alone |
//! | [`series`] | metrics |
//!
//! # Flow
//!
//! The layer is behind the gate: the sender is known, and has what the route needs. It finds the partition and its
//! leader. If that is this node, the handler runs, after a round of ReadIndex if the request reads: a leader that
//! was cut off must not answer. Else the request goes to the leader with an [`Envelope`](envelope::Envelope) that
//! names the sender. There the same router runs, behind the service of this module instead of identification; the
//! gate and the handlers check the scope again, and bodies count against that node's budgets.
//!
//! # What is sent twice, and what is not
//!
//! A node that gets a request of another and does not lead answers so before it reads the body. A node that gets
//! one handles nothing before the first piece of the body, or its end, has come. So nothing has happened if
//! no connection could be made, if nothing of the body had been passed on when it broke, or if the other node
//! does not lead: the request is sent to the leader that is named then, or that becomes known within
//! [`LEADER_TIMEOUT`]; after that it is refused with a code that means "no side effects". In any other case
//! the outcome is unknown, and the answer is an error without such a code. Reads change nothing and are sent again
//! until the answer has begun.
//!
//! A leader that is giving its leadership away takes no proposals. What it gets then waits here as well. A request
//! whose proposal such a node has refused, or whose entry another leader has replaced, is sent to the new leader in
//! the same way ([`NotProposed`](crate::forwarded::NotProposed)): the client sees that its request takes longer. Sessions
//! of appends and gRPC calls are not sent again once they were begun: their state is at the node that they began with.
//!
//! A leader keeps nothing of an append that it gets: it would do so for each of them, for the few that arrive while its
//! leadership moves. The handler, which has head and body anyway, gives them back with an answer that nothing was
//! proposed ([`GivenBack`](crate::forwarded::GivenBack)).
//!
//! # Bounds
//!
//! Of a request's body [`outgoing::MAX_KEPT`] bytes are kept until the answer begins, or [`outgoing::MAX_KEPT_WHOLE`]
//! if its length is known and is no more; they count against `limits.request-bodies` and are not kept where that has
//! no memory. So does an append that is given back; it is refused where there is no memory. Of an answer nothing is kept; beyond that the flow control of both connections stops whoever sends. A
//! request is sent from node to node [`envelope::MAX_HOPS`] times at most. [`MAX_WAITING`] requests wait for a leader.

mod contact;
mod cut;
mod envelope;
mod framing;
mod hop_headers;
mod incoming;
mod lanes;
mod layer;
mod node_peers;
mod others;
mod outgoing;
mod peers;
mod replica;
mod series;
mod service;
mod targets;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use esker_node::{FairBudget, HostProblems, Node, SharePolicy};
use tokio::time::Instant;

use crate::api::Bodies;
use crate::auth::CatalogCheck;
use contact::Contacts;
pub(crate) use layer::forward;
use node_peers::NodePeers;
pub(crate) use others::Others;
use peers::Peers;
pub(crate) use service::peer_requests;

/// How long a request waits for a leader: two election timeouts.
const LEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// Requests that wait for a leader at one time. Each holds its head, some KiB, and what is kept of its body, which
/// counts elsewhere; beyond it requests are refused at once. A principal has three times as many as are free at most.
const MAX_WAITING: usize = 8192;

/// Sends requests to the nodes that answer them. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Forwarder {
    peers: Arc<dyn Peers>,
    contacts: Arc<Contacts>,
    leader_timeout: Duration,
    /// Places of requests that wait for a leader.
    waiting: FairBudget,
    /// Where the beginnings of bodies count that are kept.
    bodies: Bodies,
}

impl Forwarder {
    /// For a node; `None` if it is in no cluster, and answers everything itself.
    pub(crate) fn of(node: &Node, bodies: &Bodies) -> Option<Forwarder> {
        let peers = NodePeers::of(node)?;
        Some(Forwarder::with(Arc::new(peers), LEADER_TIMEOUT, bodies))
    }

    fn with(peers: Arc<dyn Peers>, leader_timeout: Duration, bodies: &Bodies) -> Forwarder {
        series::register();
        Forwarder {
            contacts: Contacts::new(peers.clone()),
            peers,
            leader_timeout,
            waiting: FairBudget::new(MAX_WAITING, SharePolicy::OverFree),
            bodies: bodies.clone(),
        }
    }

    /// Waits until this node has applied what a partition had committed when this was called.
    ///
    /// # Errors
    ///
    /// The reason why that could not be learned in time.
    pub(crate) async fn read_index(&self, partition: u64) -> Result<(), String> {
        let deadline = Instant::now() + self.leader_timeout;
        let read = peers::read_index_by(&*self.peers, partition, deadline).await;
        read.map_err(|why| format!("partition {partition} is not known now: {why}"))
    }

    /// Checks that this node's copy of the catalog is current.
    pub(crate) fn catalog_check(&self, problems: HostProblems) -> Arc<CatalogCheck> {
        let forwarder = self.clone();
        let read = move || {
            let forwarder = forwarder.clone();
            async move { forwarder.read_index(0).await }
        };
        CatalogCheck::new(read, problems)
    }
}
