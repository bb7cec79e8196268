//! A node whose log or disk is lost, and the one that joins in its place.
//!
//! What a node has voted for and acknowledged is in its log. Without it, the node must not serve under its number
//! again: it joins under a new one, and the old number is removed. That happens by itself if a node joins
//!
//! - that names the number which its directory had before its log was lost, or
//! - that has the name and the address of a node: its disk is empty,
//!
//! and if nobody is there under the old number, and every partition keeps its majority without it. Removing it is
//! safe whatever it still has: consensus decides on it like on any other change of the members. So what is at
//! stake is only that a node has to copy everything again.

use std::time::Duration;

use bytes::Bytes;
use esker_partition::ClusterNode;
use esker_partition::command::NodeState;
use esker_raft::NodeId;
use esker_raft::transport::grpc::CallError;

use super::contact::{GONE_TICKS, is_heard};
use super::directory::Nodes;
use super::wire::{GROUPS, Join};
use crate::core::Inner;

/// How long a node has to answer before it counts as gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The nodes in whose place another one joins.
fn replaced<'a>(join: &Join, me: u64, nodes: &'a Nodes) -> Vec<&'a ClusterNode> {
    let is_replaced = |node: &&ClusterNode| {
        let is_named = join.replaces == Some(node.id);
        let is_in_its_place = node.name == join.name && node.peer_address == join.peer_address;
        // A registration that was never of use is replaced by the registration itself.
        let has_run = !node.incarnations.is_empty() || node.state != NodeState::Joining;
        node.state != NodeState::Removed
            && node.id != join.id
            && node.id != me
            && (is_named || is_in_its_place && has_run)
    };
    nodes.values().filter(is_replaced).collect()
}

impl Inner {
    /// Removes the nodes in whose place another one joins. To be called on the node that leads the catalog.
    ///
    /// # Errors
    ///
    /// A node is still there, or a partition would lose its majority without it: the caller may try again.
    pub(super) async fn remove_replaced(&self, join: &Join) -> Result<(), CallError> {
        let Some(peers) = &self.peers else {
            return Ok(());
        };
        let nodes = self.catalog_reader.nodes();
        if join.replaces.is_some()
            && join.of_cluster.as_deref() != Some(self.identity.cluster_id.as_str())
        {
            return Err(CallError::Refused(
                "the data directory belongs to another cluster of this name".to_owned(),
            ));
        }
        for node in replaced(join, peers.me(), &nodes) {
            if self.is_there(node.id).await {
                return Err(CallError::Unavailable(format!(
                    "node {} runs as node {}: of two processes with one data directory, or with one name and \
                     address, only one can belong to the cluster",
                    node.name, node.id
                )));
            }
            self.check_removal(node.id)
                .await
                .map_err(|error| match error {
                    CallError::Refused(why)
                    | CallError::Stranger(why)
                    | CallError::Unavailable(why) => CallError::Unavailable(format!(
                        "node {} is to be replaced: {why}",
                        node.name
                    )),
                })?;
            self.propose_node(self.removing(node.id)).await?;
            tracing::warn!(
                node = node.id,
                name = node.name,
                by = join.id,
                "a node has lost its log or its disk, and was removed: it joins again under another number"
            );
        }
        Ok(())
    }

    /// Whether a process runs under a node's number, as far as this node can know.
    async fn is_there(&self, node: u64) -> bool {
        let details = self.catalog.details();
        let is_heard = is_heard(&details.peers, NodeId(node), GONE_TICKS);
        let Some(peers) = self.peers.as_ref().filter(|_| !is_heard) else {
            return is_heard;
        };
        let transport = &peers.transport;
        let asked = transport.call(NodeId(node), GROUPS, Bytes::new(), ANSWER_TIMEOUT);
        // A refusal is an answer too, but for that of a stranger.
        matches!(asked.await, Ok(_) | Err(CallError::Refused(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, state: NodeState) -> ClusterNode {
        ClusterNode {
            id,
            name: format!("n{id}"),
            peer_address: format!("host-{id}:1"),
            client_address: String::new(),
            zone: String::new(),
            state,
            registered_at_ms: 0,
            reads_format: 1,
            incarnations: vec![1],
            removed_at_ms: None,
            given_up: false,
        }
    }

    fn nodes(all: impl IntoIterator<Item = ClusterNode>) -> Nodes {
        all.into_iter().map(|node| (node.id, node)).collect()
    }

    fn join(name: &str, address: &str, replaces: Option<u64>) -> Join {
        Join {
            cluster_name: "c".to_owned(),
            partitions: None,
            id: 9,
            name: name.to_owned(),
            peer_address: address.to_owned(),
            client_address: "a:1".to_owned(),
            zone: String::new(),
            reads_format: 1,
            incarnation: None,
            earlier_incarnations: Vec::new(),
            hops: 0,
            replaces,
            of_cluster: None,
            clock_ms: None,
        }
    }

    fn ids(join: &Join, nodes: &Nodes) -> Vec<u64> {
        replaced(join, 1, nodes)
            .iter()
            .map(|node| node.id)
            .collect()
    }

    #[test]
    fn a_node_is_replaced_by_one_in_its_place_or_by_one_that_names_it() {
        let all = nodes((1..=3).map(|id| node(id, NodeState::Active)));
        assert_eq!(ids(&join("n2", "host-2:1", None), &all), [2]);
        assert_eq!(ids(&join("new", "new:1", Some(2)), &all), [2]);
        // Only its name, or only its address, may be a mistake.
        assert!(ids(&join("n2", "new:1", None), &all).is_empty());
        assert!(ids(&join("new", "host-2:1", None), &all).is_empty());
        // The node that decides runs.
        assert!(ids(&join("n1", "host-1:1", Some(1)), &all).is_empty());
        assert!(ids(&join("new", "new:1", Some(7)), &all).is_empty());
    }

    #[test]
    fn what_is_removed_or_never_ran_is_not_replaced() {
        let never_ran = ClusterNode {
            incarnations: Vec::new(),
            ..node(2, NodeState::Joining)
        };
        let all = nodes([never_ran, node(3, NodeState::Removed)]);
        assert!(ids(&join("n2", "host-2:1", None), &all).is_empty());
        assert!(ids(&join("n3", "host-3:1", Some(3)), &all).is_empty());
        let joining = nodes([node(2, NodeState::Joining)]);
        assert_eq!(ids(&join("n2", "host-2:1", None), &joining), [2]);
    }
}
