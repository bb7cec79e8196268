//! Brings database and log into the state that was decided on.
//!
//! Each step can be repeated: a crash leaves the plan, and the next start prepares the copies again.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use esker_partition::{Checkpoint, Lineage, PartitionId, Store, StoreOptions};
use esker_raft::engine::LogFloor;
use esker_raft::runtime::NodeError;
use esker_raft::{GroupId, Lsn, Term};

use super::candidates::Source;
use super::context::{Context, cluster_init, log_state};
use super::inspect::Facts;
use super::new_lineage::{begin_in_repository, begin_lineage, begin_log, with_begun};
use super::plan::Plan;
use super::rebuild_state::from_state;
use super::report::RecoveryReport;
use super::running_cluster::none_runs;
use super::search::RecoverySource;
use super::survivor::replay_log;
use crate::blocking::blocking;
use crate::data_dir::{DataDir, is_there};
use crate::error::StartError;

/// The rebuilt database.
pub(super) struct Rebuilt {
    pub store: Store,
    pub report: RecoveryReport,
    pub forked: Vec<u64>,
    pub took: Duration,
}

/// Creates the partitions of a new node, those that are `ready` from their checkpoints; of one that joins, with the
/// lineages of the groups that there are. Blocking.
pub(super) fn create(cx: &Context, ready: &BTreeMap<u64, Checkpoint>) -> Result<Store, StartError> {
    let Context { data_dir, raft, .. } = cx;
    let identity = &data_dir.identity;
    let (store, init) = (
        Store::open_any(&data_dir.db(), &cx.store)?,
        cluster_init(data_dir),
    );
    let partitions = 0..=u64::from(identity.partitions);
    let empty = partitions
        .clone()
        .filter(|number| !ready.contains_key(number));
    store.prepare_partitions(empty.map(PartitionId))?;
    for partition in partitions {
        let id = PartitionId(partition);
        match ready.get(&partition) {
            Some(checkpoint) if store.applied(id)?.is_none() => {
                // Of a creation that a kill has interrupted, there are column families without a position.
                store.drop_partition(id)?;
                store.import(id, checkpoint)?;
            }
            _ => store.create_partition(id, &init)?,
        }
        if raft.log().tag(GroupId(partition)).is_some() {
            continue;
        }
        let first = || Lineage::first(&identity.cluster_id, identity.partitions, id);
        let joined = cx.joined.get(partition as usize).cloned();
        let lineage = joined.unwrap_or_else(first);
        // In this order: a crash in between leaves a log without the partition, and it is done again.
        let part = store.partition_db(id);
        let applied = part.applied()?.unwrap_or_default();
        // One from a checkpoint has its lineage.
        if applied.lsn == 0 && part.lineage()? != lineage {
            part.join(&lineage)?;
        }
        let start = LogFloor {
            lsn: Lsn(applied.lsn),
            term: Term(applied.term),
        };
        begin_log(raft, partition, start, &lineage)?;
    }
    Ok(store)
}

/// Makes each partition from the source that was found for it.
pub(super) async fn rebuild(
    cx: &Context,
    facts: Facts,
    sources: Vec<RecoverySource>,
    plan: &Plan,
) -> Result<Rebuilt, StartError> {
    let started = Instant::now();
    if cx.survives {
        none_runs(cx, facts.catalog()).await?;
        // Of all partitions, before anything here is changed: where a root cannot be swapped, this node is what it was.
        begin_in_repository(cx, &sources).await?;
    }
    let leaf = cx.clone();
    let keep = sources.iter().filter(|source| source.keeps_files);
    let keep: Vec<u64> = keep.map(|source| source.partition).collect();
    let store = blocking(move || open_store(&leaf, facts, &keep)).await?;
    let mut report = RecoveryReport::default();
    let mut forked = Vec::new();
    let goes_on = sources.iter().filter(|source| source.replays_log);
    let goes_on: Vec<u64> = goes_on.map(|source| source.partition).collect();
    // Until a restored directory serves for the first time, nothing is lost by waiting for an answer.
    let mut may_be_second =
        !cx.survives && (cx.data_dir.is_new || sources.iter().any(|source| source.fork.is_some()));
    for source in sources {
        let partition = source.partition;
        let (leaf, opened) = (cx.clone(), store.clone());
        let making = blocking(move || {
            let made = make_partition(&leaf, &opened, &source)?;
            Ok::<_, StartError>((source, made))
        });
        let (source, made) = making.await?;
        report.restored_bytes += made.restored_bytes;
        report.state_commits += made.state_commits;
        if std::mem::take(&mut may_be_second) {
            // The catalog is made first.
            none_runs(cx, Some(&store)).await?;
        }
        if let Some(fork) = &source.fork {
            let begun = begin_lineage(cx, &store, &source, fork).await;
            begun.map_err(|error| with_begun(error, &forked))?;
            forked.push(partition);
        }
        if source.source != Source::Database || source.fork.is_some() {
            let lost_after = source.fork.as_ref().map(|fork| fork.lsn);
            report.came_from(partition, source.source, lost_after);
        }
    }
    let restore = cx.data_dir.restore();
    blocking(move || remove_fetched(&restore)).await;
    log_forks(plan, &goes_on);
    Ok(Rebuilt {
        store,
        report,
        forked,
        took: started.elapsed(),
    })
}

/// Opens the database without its damaged partitions, of some of which the files are kept; an empty one, if it
/// cannot be used.
fn open_store(cx: &Context, facts: Facts, keep: &[u64]) -> Result<Store, StartError> {
    let data_dir = &cx.data_dir;
    if let Ok(store) = &facts.store {
        for partition in keep {
            keep_files(data_dir, store, *partition)?;
        }
    }
    match facts.store {
        Ok(store) if facts.to_drop.is_empty() => Ok(store),
        Ok(store) => without(store, &facts.to_drop, data_dir, &cx.store),
        Err(why) => {
            if is_there(&data_dir.db())? {
                let aside = data_dir.put_aside("db")?;
                tracing::warn!(
                    why,
                    aside = %aside.display(),
                    "the database was put aside, and is rebuilt from snapshots; remove it when you no longer want it"
                );
            }
            Ok(Store::open_any(&data_dir.db(), &cx.store)?)
        }
    }
}

/// Measurements of making a partition.
#[derive(Default)]
struct Made {
    restored_bytes: u64,
    /// Commits that were replayed on a JSON snapshot.
    state_commits: u64,
}

/// Makes a partition from its source. Blocking.
fn make_partition(
    cx: &Context,
    store: &Store,
    source: &RecoverySource,
) -> Result<Made, StartError> {
    let partition = source.partition;
    let mut made = Made::default();
    if source.keeps_database {
        keep_database(cx, store, partition)?;
    }
    if let Some(after) = source.restarts_log {
        restart_log(cx, partition, after)?;
    }
    if let Some(ready) = &source.ready {
        import(cx, store, source, ready)?;
        made.restored_bytes = ready.bytes();
    }
    match (&source.source, &source.fork) {
        (Source::Empty, _) => make_empty(cx, store, partition)?,
        (Source::Log, _) => {
            store.drop_partition(PartitionId(partition))?;
            cx.attempts.uses(partition, &source.source);
            store.create_partition(PartitionId(partition), &cluster_init(&cx.data_dir))?;
            cx.data_dir.forget_damage(partition)?;
        }
        (Source::State(commit_ts), Some(fork)) => {
            cx.attempts.uses(partition, &source.source);
            made.state_commits = from_state(cx, store, partition, *commit_ts, fork.lsn)?;
        }
        _ => {}
    }
    if let Some(lineage) = &source.adopt {
        let part = store.partition_db(PartitionId(partition));
        // The log begins with this node alone, or, if it waits for its first snapshot, without it.
        let waits = cx.data_dir.joins
            && cx.data_dir.has_peers()
            && log_state(&cx.raft, partition)?.last == Lsn(0);
        let me = [cx.data_dir.identity.node_id];
        let voters: &[u64] = if waits { &[] } else { &me };
        part.fork(lineage, voters)?;
    }
    if source.replays_log
        && let Some(fork) = &source.fork
    {
        replay_log(cx, store, partition, fork.lsn)?;
    }
    Ok(made)
}

/// Restarts the log of a member after a snapshot that covers more than the log has. Before the snapshot is
/// imported: after a crash in between, the snapshot, or a newer one, connects with the log.
fn restart_log(cx: &Context, partition: u64, after: LogFloor) -> Result<(), StartError> {
    let (group, log) = (GroupId(partition), cx.raft.log());
    if log_state(&cx.raft, partition)?.start == after {
        return Ok(());
    }
    tracing::info!(partition, lsn = %after.lsn, "the log is restarted after a snapshot of the repository");
    Ok(log.restart_group(group, after).map_err(NodeError::from)?)
}

/// Keeps the database's files of a partition that the log contradicts, before they are dropped. They are not
/// put where local snapshots are: the one in use may have the same LSN. After a crash they are there
/// already.
fn keep_database(cx: &Context, store: &Store, partition: u64) -> Result<(), StartError> {
    let known = cx.data_dir.checkpoints_aside(partition)?;
    let to = cx.data_dir.place_for_checkpoint_aside(partition)?;
    let part = store.partition_db(PartitionId(partition));
    let kept = part.begin_checkpoint().take_to(&to, &known)?;
    tracing::warn!(
        partition,
        lsn = kept.meta.lsn,
        aside = %kept.dir.display(),
        "what the database has of the partition is kept as a local snapshot that is put aside"
    );
    Ok(())
}

/// Keeps what is left of a damaged partition's files, before they are dropped for a copy that may have less.
fn keep_files(data_dir: &DataDir, store: &Store, partition: u64) -> Result<(), StartError> {
    let to = data_dir.place_aside(&format!("db-partition-{partition}"))?;
    let part = store.partition_db(PartitionId(partition));
    let files = part.link_what_is_left(&to)?;
    if files > 0 {
        tracing::warn!(
            partition,
            files,
            aside = %to.display(),
            "the damaged files of the partition were put aside: they may have what no copy has; remove them when you no longer want them"
        );
    }
    Ok(())
}

/// Replaces the database's files of a partition with those of a checkpoint.
fn import(
    cx: &Context,
    store: &Store,
    source: &RecoverySource,
    ready: &Checkpoint,
) -> Result<(), StartError> {
    let partition = source.partition;
    let begun = Instant::now();
    store.drop_partition(PartitionId(partition))?;
    cx.attempts.uses(partition, &source.source);
    if let Err(error) = store.import(PartitionId(partition), ready) {
        if !error.is_unreadable() {
            let attempts = &cx.attempts;
            attempts.rule_out(partition, source.source.clone(), error.to_string());
        }
        return Err(error.into());
    }
    cx.data_dir.forget_damage(partition)?;
    tracing::info!(
        partition,
        source = %source.source,
        lsn = ready.meta.lsn,
        files = ready.meta.files.len(),
        bytes = ready.bytes(),
        took = ?begun.elapsed(),
        "Snapshot loaded"
    );
    Ok(())
}

/// Makes an empty partition, and puts its local snapshots aside, which cannot be used.
fn make_empty(cx: &Context, store: &Store, partition: u64) -> Result<(), StartError> {
    let data_dir = &cx.data_dir;
    cx.attempts.uses(partition, &Source::Empty);
    // Until the lineage has begun, the new empty partition must not be mistaken for the lost one.
    data_dir.report_damage(partition, "it is being made empty")?;
    store.drop_partition(PartitionId(partition))?;
    store.create_partition(PartitionId(partition), &cluster_init(data_dir))?;
    let checkpoints = data_dir.checkpoints().join(partition.to_string());
    if is_there(&checkpoints)? {
        let name = format!("checkpoints-{partition}");
        let aside = data_dir.put_aside_as(&checkpoints, &name)?;
        tracing::warn!(
            partition,
            aside = %aside.display(),
            "local snapshots that cannot be used were put aside; remove them when you no longer want them"
        );
    }
    Ok(())
}

/// Removes what was fetched, once the database has it.
pub(super) fn remove_fetched(dir: &Path) {
    if dir.exists()
        && let Err(error) = std::fs::remove_dir_all(dir)
    {
        tracing::warn!(%error, dir = %dir.display(), "what was restored is not removed");
    }
}

/// Logs the lineages that begin. In those of `goes_on`, what the log has behind the fork is kept.
fn log_forks(plan: &Plan, goes_on: &[u64]) {
    for (partition, fork) in &plan.forks {
        if fork.empty {
            tracing::warn!(
                partition,
                lineage = fork.lineage,
                parent = fork.parent,
                "the partition begins empty, and a new lineage with it: all that was in it is lost"
            );
            continue;
        }
        if goes_on.contains(partition) {
            tracing::warn!(
                partition,
                lineage = fork.lineage,
                parent = fork.parent,
                lsn = fork.lsn,
                "a new lineage begins: what the log here has after LSN {} goes on in it, and whatever the other nodes alone had is lost",
                fork.lsn
            );
            continue;
        }
        tracing::warn!(
            partition,
            lineage = fork.lineage,
            parent = fork.parent,
            lsn = fork.lsn,
            "a new lineage begins: whatever was acknowledged after LSN {} is lost",
            fork.lsn
        );
    }
}

/// The database without the partitions whose damaged files prevent opening it for use. Each dropped
/// partition has another copy, or its loss was accepted.
fn without(
    damaged: Store,
    partitions: &[u64],
    data_dir: &DataDir,
    options: &StoreOptions,
) -> Result<Store, StartError> {
    for partition in partitions {
        tracing::warn!(
            partition,
            "the partition's part of the database is damaged and is replaced"
        );
        damaged.drop_partition(PartitionId(*partition))?;
    }
    damaged.close();
    drop(damaged);
    let opened = Store::open_any(&data_dir.db(), options);
    opened.map_err(|why| match why.is_unreadable() {
        true => why.into(),
        // The report notes which partition's damage it is, for the next attempt.
        false => match Store::open_damaged(&data_dir.db(), options, why) {
            Ok(store) => {
                store.close();
                StartError::DatabaseDamaged {
                    path: data_dir.db(),
                }
            }
            Err(why) => why.into(),
        },
    })
}
