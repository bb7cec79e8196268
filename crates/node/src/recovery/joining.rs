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
    let (mine, told) = join_as_drawn(options, cluster, locked, Some(before)).await?;
    let number = mine.node_id;
    locked.begin_again(mine)?;
    tracing::warn!(
        node = number,
        before = before.node_id,
        "this node has a new number"
    );
    Ok(told)
}

/// Joins the cluster, under the same number at every start until the directory is complete. Returns this node's
/// identity in it and what the cluster has told, which is written down.
pub(super) async fn join_as_drawn(
    options: &NodeOptions,
    cluster: &ClusterOptions,
    locked: &LockedDir,
    before: Option<&Identity>,
) -> Result<(Identity, Joined), StartError> {
    let (name, partitions) = (&options.cluster_name, options.partitions);
    let drawn = locked.draw_number(name, partitions, before)?;
    match join(cluster, name, drawn, before).await {
        Ok((mine, told)) => {
            note_joined(locked.path(), &told).await?;
            Ok((mine, told))
        }
        Err(error) => {
            if matches!(error, StartError::JoinRefused { .. })
                && let Err(kept) = locked.forget_number()
            {
                tracing::warn!(error = %kept, "the number that the cluster has refused is not removed");
            }
            Err(error)
        }
    }
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
async fn note_joined(dir: &Path, told: &Joined) -> Result<(), StartError> {
    let path = dir.to_owned();
    let text = serde_json::to_vec(told).map_err(|e| StartError::BadIdentity {
        path: path.clone(),
        why: e.to_string(),
    })?;
    blocking(move || write_joined(&path, &text)).await
}
