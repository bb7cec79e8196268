//! The partitions of a node that joins a cluster: from the repository, where that has them.
//!
//! A partition is imported before its group starts, with the members as of the snapshot, to which this node does
//! not belong. Its log begins after the snapshot, and the leader, which keeps the log from the oldest retained
//! snapshot on, sends what follows once it has added this node. Whatever goes wrong here costs time alone: a
//! partition without a copy begins empty, and gets a snapshot of another node.

use std::collections::BTreeMap;

use esker_partition::{Checkpoint, Lineage, PartitionId, Store};
use esker_raft::GroupId;
use esker_repository::{Progress, Which};

use super::context::Context;
use super::rebuild;
use crate::blocking::blocking;
use crate::error::StartError;
use crate::snapshots::{lineage_id, restored};

/// Creates the partitions of a new node.
pub(super) async fn create(cx: &Context) -> Result<Store, StartError> {
    let mut ready = BTreeMap::new();
    if cx.data_dir.joins && !cx.archive.is_default {
        for partition in 0..=u64::from(cx.data_dir.identity.partitions) {
            if cx.raft.log().tag(GroupId(partition)).is_some() {
                // An earlier start has created it.
                continue;
            }
            match newest(cx, partition).await {
                Ok(Some(checkpoint)) => {
                    ready.insert(partition, checkpoint);
                }
                Ok(None) => {}
                Err(why) => {
                    tracing::warn!(
                        partition,
                        why,
                        "partitions are not taken from the repository: other nodes send them"
                    );
                    break;
                }
            }
        }
    }
    let leaf = cx.clone();
    blocking(move || {
        let store = rebuild::create(&leaf, &ready)?;
        rebuild::remove_fetched(&leaf.data_dir.restore());
        Ok(store)
    })
    .await
}

/// The newest snapshot that the repository has of a partition, fetched and compared with its checksums; `None` if
/// there is none of its lineage, or if it may have been made of a replica that has diverged.
async fn newest(cx: &Context, partition: u64) -> Result<Option<Checkpoint>, String> {
    let identity = &cx.data_dir.identity;
    let repository = cx.archive.repository(identity, partition);
    let root = match repository.root().await {
        Ok(root) => root,
        Err(esker_repository::Error::NoRoot { .. }) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let Some(retained) = root.retained_snapshots.first() else {
        return Ok(None);
    };
    let dir = retained.dir();
    let described = repository.describe(&dir).await;
    let metadata = described.map_err(|e| e.to_string())?;
    // That with which the log begins. A snapshot of a lineage that began in the log is left to other nodes.
    let first = || {
        Lineage::first(
            &identity.cluster_id,
            identity.partitions,
            PartitionId(partition),
        )
    };
    let begun = cx.joined.get(partition as usize).cloned();
    let begun = begun.unwrap_or_else(first).id();
    if metadata.lineage != Some(lineage_id(begun)) || metadata.term.is_none() {
        return Ok(None);
    }
    let after = cx.snapshots_after.get(partition as usize).copied();
    let after = after.unwrap_or_default();
    if metadata.min_applied_lsn.0 <= after {
        tracing::warn!(
            partition,
            snapshot = %dir,
            diverged_at = after,
            "a snapshot is not used: it may have been made of a replica that has diverged; another node sends the partition"
        );
        return Ok(None);
    }
    tracing::info!(partition, snapshot = %dir, "Loading snapshot from {}", cx.archive.shown());
    let to = cx.data_dir.restore().join(format!("{partition}-{dir}"));
    let place = to.clone();
    let cleared = blocking(move || {
        if place.exists() {
            std::fs::remove_dir_all(&place)?;
        }
        std::fs::create_dir_all(place.parent().unwrap_or(&place))
    });
    cleared
        .await
        .map_err(|e| format!("{}: {e}", to.display()))?;
    let which = Which::Exactly(dir);
    let restore = repository.restore(&which, &to, &Progress::new()).await;
    let found = restore.map_err(|e| e.to_string())?;
    restored(found.dir(), found.metadata()).map(Some)
}
