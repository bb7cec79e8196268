//! The cluster of a running node, for forwarding.

use std::time::Duration;

use async_trait::async_trait;
use esker_node::{Client, Cluster, Node};
use tokio_util::sync::CancellationToken;

use super::peers::{Connection, Leader, Peers};

/// The cluster of a node.
pub(super) struct NodePeers {
    node: Node,
    cluster: Cluster,
}

impl NodePeers {
    /// `None` on a node that is in no cluster.
    pub(super) fn of(node: &Node) -> Option<NodePeers> {
        Some(NodePeers {
            cluster: node.cluster()?,
            node: node.clone(),
        })
    }
}

impl From<esker_node::Leader> for Leader {
    fn from(leader: esker_node::Leader) -> Leader {
        match leader {
            esker_node::Leader::Here => Leader::Here,
            esker_node::Leader::At(node) => Leader::At(node),
            esker_node::Leader::Unknown => Leader::Unknown,
        }
    }
}

#[async_trait]
impl Peers for NodePeers {
    fn node(&self) -> u64 {
        self.cluster.me()
    }

    fn others(&self) -> Vec<u64> {
        let nodes = self.cluster.nodes().into_iter().map(|node| node.id);
        nodes.filter(|node| *node != self.cluster.me()).collect()
    }

    fn refusal(&self) -> Option<String> {
        self.cluster.refusal()
    }

    fn follows(&self, partition: u64) -> bool {
        self.cluster.follows(partition)
    }

    async fn has_stream(&self, client: Client, basin: &str, stream: &str) -> bool {
        self.node.has_stream(client, basin, stream).await
    }

    fn stopping(&self) -> &CancellationToken {
        self.node.stopping()
    }

    fn leader(&self, partition: u64) -> Leader {
        self.cluster.leader(partition).into()
    }

    fn is_moving(&self, partition: u64) -> bool {
        self.cluster.is_moving(partition)
    }

    async fn wait_for_leader(&self, partition: u64, longest: Duration) -> Leader {
        let leader = self.cluster.wait_for_leader(partition, longest);
        leader.await.into()
    }

    async fn read_index(&self, partition: u64) -> Result<(), String> {
        let read = self.cluster.read_index(partition).await;
        read.map_err(|error| error.to_string())
    }

    fn connection(&self, node: u64) -> Result<Connection, String> {
        let channel = self.cluster.channel(node);
        channel
            .map(Connection::new)
            .map_err(|error| error.to_string())
    }

    fn connection_in_lane(&self, node: u64, lane: u32) -> Result<Connection, String> {
        let channel = self.cluster.channel_in_lane(node, lane);
        channel
            .map(Connection::new)
            .map_err(|error| error.to_string())
    }

    fn stream_partition(&self, basin: &str, stream: &str) -> Option<u64> {
        self.node.stream_partition(basin, stream)
    }

    fn state_partition(&self) -> u64 {
        self.node.state_partition()
    }

    fn partitions(&self) -> u64 {
        u64::from(self.node.identity().partitions) + 1
    }
}
