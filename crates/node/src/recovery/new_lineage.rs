//! Begins the lineages that were decided on: in the repository, in the database and in the log.

use esker_partition::{Lineage, LineageId, PartitionId, Store};
use esker_raft::engine::LogFloor;
use esker_raft::runtime::NodeError;
use esker_raft::{GroupId, Lsn, Term};
use esker_repository::Error as RepositoryError;

use super::candidates::Source;
use super::context::Context;
use super::member_copies;
use super::plan::PlannedFork;
use super::search::RecoverySource;
use super::uncommitted::replay_rest;
use crate::blocking::blocking;
use crate::error::StartError;
use crate::snapshots::lineage_id;

/// Begins the lineages of a survivor in the repository.
///
/// # Errors
///
/// A root could not be swapped, or is of another lineage by now. Nothing of this node was changed; the error names the
/// partitions whose roots were swapped before.
pub(super) async fn begin_in_repository(
    cx: &Context,
    sources: &[RecoverySource],
) -> Result<(), StartError> {
    let mut begun = Vec::new();
    for source in sources {
        let Some(fork) = &source.fork else {
            continue;
        };
        let swapped = swap_root(cx, source, fork).await;
        swapped.map_err(|error| with_begun(error, &begun))?;
        if source.has_root {
            begun.push(source.partition);
        }
    }
    Ok(())
}

/// The error, with the partitions whose lineages have begun before.
pub(super) fn with_begun(error: StartError, partitions: &[u64]) -> StartError {
    match error {
        StartError::LineageNotBegun {
            partition,
            repository,
            why,
            ..
        } => StartError::LineageNotBegun {
            partition,
            repository,
            why,
            begun: partitions.to_vec(),
        },
        other => other,
    }
}

fn malformed_plan(cx: &Context, partition: u64) -> StartError {
    StartError::BadIdentity {
        path: cx.data_dir.path().join("restore.json"),
        why: format!("the lineages of partition {partition}"),
    }
}

/// Begins a lineage in the repository, if that has the partition.
async fn swap_root(
    cx: &Context,
    source: &RecoverySource,
    fork: &PlannedFork,
) -> Result<(), StartError> {
    let partition = source.partition;
    let ids = fork.id().zip(fork.parent());
    let (id, parent) = ids.ok_or_else(|| malformed_plan(cx, partition))?;
    if !source.has_root {
        return Ok(());
    }
    let archive = cx.archive.clone();
    blocking(move || archive.begin_to_write()).await?;
    fork_root(cx, partition, parent, fork.lsn, id).await
}

/// Begins a lineage: first in the repository, so that of two restores at once one fails; then in the
/// database; then in the log. That of a survivor has begun in the repository already.
pub(super) async fn begin_lineage(
    cx: &Context,
    store: &Store,
    source: &RecoverySource,
    fork: &PlannedFork,
) -> Result<(), StartError> {
    let partition = source.partition;
    let malformed = || malformed_plan(cx, partition);
    let (id, parent) = fork.id().zip(fork.parent()).ok_or_else(malformed)?;
    let between = fork.between().ok_or_else(malformed)?;
    if !cx.survives {
        swap_root(cx, source, fork).await?;
    }
    let (leaf, store, fork) = (cx.clone(), store.clone(), fork.clone());
    let is_noted = matches!(source.source, Source::State(_) | Source::Empty);
    let begins_without = is_noted || fork.empty;
    let replays_log = source.replays_log;
    blocking(move || {
        let node_id = leaf.data_dir.identity.node_id;
        let part = store.partition_db(PartitionId(partition));
        let mut lineage = part.lineage()?;
        if lineage.id() != id {
            lineage = match fork.empty {
                true => lineage.begin_empty(parent, fork.skipped, id),
                false => lineage.fork_of_descendant(parent, fork.skipped, &between, id, fork.lsn),
            };
            part.fork(&lineage, &[node_id])?;
        }
        if replays_log {
            replay_rest(&leaf, &store, partition)?;
        }
        let applied = part.applied()?.unwrap_or_default();
        let start = LogFloor {
            lsn: Lsn(applied.lsn),
            term: Term(applied.term),
        };
        // The database has what this was made of; once the log has begun, nothing leads back here.
        member_copies::leave(&leaf.data_dir, partition, &lineage, begins_without)?;
        begin_log(&leaf.raft, partition, start, &lineage)?;
        match is_noted {
            true => leaf.data_dir.forget_damage(partition),
            false => Ok(()),
        }
    })
    .await
}

/// Swaps a new lineage into the repository's root, unless it is there already.
async fn fork_root(
    cx: &Context,
    partition: u64,
    parent: LineageId,
    lsn: u64,
    id: LineageId,
) -> Result<(), StartError> {
    let archive = &cx.archive;
    let repository = archive.repository(&cx.data_dir.identity, partition);
    let forked = async {
        if repository.root().await?.lineage == Some(lineage_id(id)) {
            return Ok(());
        }
        let lsn = esker_repository::Lsn(lsn);
        let parent = Some(lineage_id(parent));
        repository.fork(parent, lsn, lineage_id(id)).await?;
        Ok(())
    };
    forked.await.map_err(|error: RepositoryError| match error {
        RepositoryError::OtherLineage { .. } => StartError::OtherLineage {
            partition,
            repository: archive.shown().to_owned(),
            why: error.to_string(),
        },
        other => StartError::LineageNotBegun {
            partition,
            repository: archive.shown().to_owned(),
            why: other.to_string(),
            begun: Vec::new(),
        },
    })
}

/// Begins the log of a partition again, after `start`.
pub(super) fn begin_log(
    raft: &esker_raft::Node,
    partition: u64,
    start: LogFloor,
    lineage: &Lineage,
) -> Result<(), StartError> {
    Ok(raft
        .log()
        .begin_group(GroupId(partition), start, &lineage.to_bytes())
        .map_err(NodeError::from)?)
}
