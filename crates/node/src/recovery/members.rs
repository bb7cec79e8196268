//! What is different at the start of a node of a cluster: other nodes have replicas of its partitions.
//!
//! - Nothing is given up here: what is lost on this node is on the others, and a lineage that begins on this node
//!   alone would be a second history, with a majority of its own.
//! - The repository's snapshots are put by whichever member leads, so one may cover entries that have not reached
//!   this node's log. That is no sign of a log that was cut. All that such a snapshot covers is committed, so the
//!   node goes on from it, and the log is restarted after it, as after a snapshot that a member has sent.

use std::path::Path;

use esker_partition::PartitionId;

use super::context::Context;
use super::inspect::Facts;
use crate::error::StartError;

/// Why a member did not start, where a node without others could accept a loss: it cannot.
pub(super) fn explain(dir: &Path, error: StartError) -> StartError {
    let what = match error {
        StartError::LogMissing { .. } => "its log is missing".to_owned(),
        StartError::LogIncomplete { partition, .. } => {
            format!("its log has nothing of partition {partition}: a file of it is missing")
        }
        StartError::Raft(error) if error.is_damage() => error.to_string(),
        other => return other,
    };
    StartError::MemberLostLog {
        dir: dir.to_owned(),
        what,
    }
}

/// Whether other nodes may have replicas: it was noted, or the database has them as members.
pub(super) fn has_others(cx: &Context, facts: &Facts) -> Result<bool, StartError> {
    if cx.data_dir.is_new {
        return Ok(false);
    }
    if cx.data_dir.has_peers() {
        return Ok(true);
    }
    let Ok(store) = &facts.store else {
        return Ok(false);
    };
    let me = [cx.data_dir.identity.node_id];
    for facts in facts.partitions.iter().filter(|it| it.database.is_ok()) {
        let applied = store.applied(PartitionId(facts.partition))?;
        if applied.is_some_and(|it| it.voters != me || !it.learners.is_empty()) {
            return Ok(true);
        }
    }
    Ok(false)
}
