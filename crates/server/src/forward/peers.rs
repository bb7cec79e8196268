//! What forwarding needs of the cluster that this node is a member of.

use std::time::Duration;

use async_trait::async_trait;
use esker_node::Client;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::util::BoxCloneSyncService;

/// HTTP/2 to a node. It adds what this node identifies itself with.
pub(crate) type Connection = BoxCloneSyncService<
    http::Request<tonic::body::Body>,
    http::Response<tonic::body::Body>,
    tonic::transport::Error,
>;

/// Why a partition did not answer.
pub(super) const SILENT: &str = "a majority of its nodes does not answer";

/// Which node leads a partition, as far as this node knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Leader {
    /// This node.
    Here,
    /// The node of this id.
    At(u64),
    /// None, or one that is not known.
    Unknown,
}

/// Pause before another attempt at a leader that could not be reached, or that does not lead.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Waits until this node has applied what the partition had committed when this was called. While the leadership
/// moves, no member answers for the partition: it is asked again until `deadline`.
///
/// # Errors
///
/// The reason why that could not be learned in time.
pub(super) async fn read_index_by(
    peers: &dyn Peers,
    partition: u64,
    deadline: Instant,
) -> Result<(), String> {
    loop {
        let why = match timeout_at(deadline, peers.read_index(partition)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => why,
            Err(_) => return Err(SILENT.to_owned()),
        };
        if Instant::now() + RETRY_PAUSE >= deadline || peers.stopping().is_cancelled() {
            return Err(why);
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// The cluster of a node.
#[async_trait]
pub(crate) trait Peers: Send + Sync + 'static {
    /// The id of this node.
    fn node(&self) -> u64;

    /// The other nodes of the cluster, as this node knows them.
    fn others(&self) -> Vec<u64>;

    /// Why the cluster does not take this node, if it does not: it was removed, for instance.
    fn refusal(&self) -> Option<String>;

    /// Whether this node has a replica of the partition that follows a leader, so that it gets to know of what is
    /// committed.
    fn follows(&self, partition: u64) -> bool;

    /// Whether this node has a stream of this name, as far as it has applied the stream's partition. It is looked up
    /// for this client.
    async fn has_stream(&self, client: Client, basin: &str, stream: &str) -> bool;

    /// Is cancelled when this node stops.
    fn stopping(&self) -> &CancellationToken;

    /// The leader of a partition, as this node knows it now.
    fn leader(&self, partition: u64) -> Leader;

    /// Whether this node leads the partition and takes no proposals for a moment, because it is giving the leadership
    /// to another node.
    fn is_moving(&self, partition: u64) -> bool;

    /// Waits until a leader of the partition is known, `longest` at most.
    async fn wait_for_leader(&self, partition: u64, longest: Duration) -> Leader;

    /// Waits until this node has applied what the partition had committed when this was called.
    ///
    /// # Errors
    ///
    /// The reason why that cannot be learned now.
    async fn read_index(&self, partition: u64) -> Result<(), String>;

    /// The connection to a node.
    ///
    /// # Errors
    ///
    /// Its address is not known, or is none.
    fn connection(&self, node: u64) -> Result<Connection, String>;

    /// The connection to a node for requests of a lane; see `lanes`.
    ///
    /// # Errors
    ///
    /// As [`Peers::connection`].
    fn connection_in_lane(&self, node: u64, _lane: u32) -> Result<Connection, String> {
        self.connection(node)
    }

    /// The partition of a stream; `None` if the basin is not in the catalog as this node has applied it.
    fn stream_partition(&self, basin: &str, stream: &str) -> Option<u64>;

    /// The partition of the state store.
    fn state_partition(&self) -> u64;

    /// The number of partitions, with the catalog.
    fn partitions(&self) -> u64;
}
