//! A directory that joins a cluster, at its first start and after its log was lost.

use std::path::Path;

use crate::blocking::blocking;
use crate::cluster::{ClusterOptions, Joined, join};
use crate::data_dir::{Identity, LockedDir, read_joined, write_joined};
use crate::error::StartError;
use crate::options::NodeOptions;

/// A member that lost its log joins again, as another node. Nothing is changed here before the cluster has taken
/// it.
pub(super) async fn join_again(
    options: &NodeOptions,
    cluster: &ClusterOptions,
    locked: &mut LockedDir,
    before: &Identity,
) -> Result<Joined, StartError> {
    tracing::warn!(
        node = before.node_id,
        "this node's log is missing, and other nodes have replicas of its partitions: it joins again under a new number"
    );
    let (name, partitions) = (&options.cluster_name, options.partitions);
    let (mine, told) = join(cluster, name, partitions, Some(before)).await?;
    note_joined(locked.path(), &told).await?;
    let number = mine.node_id;
    locked.begin_again(mine)?;
    tracing::warn!(
        node = number,
        before = before.node_id,
        "this node has a new number"
    );
    Ok(told)
}

/// What the cluster has told an earlier start that joined it.
pub(super) fn told_before(dir: &Path) -> Result<Option<Joined>, StartError> {
    let Some((told, path)) = read_joined(dir)? else {
        return Ok(None);
    };
    let malformed = |e: serde_json::Error| StartError::BadIdentity {
        path,
        why: format!("not what a cluster tells a node that joins: {e}"),
    };
    serde_json::from_slice(&told).map(Some).map_err(malformed)
}

/// Writes down what the cluster has told, before the directory has an identity in it.
pub(super) async fn note_joined(dir: &Path, told: &Joined) -> Result<(), StartError> {
    let path = dir.to_owned();
    let text = serde_json::to_vec(told).map_err(|e| StartError::BadIdentity {
        path: path.clone(),
        why: e.to_string(),
    })?;
    blocking(move || write_joined(&path, &text)).await
}
