//! Brings database and log into the shape that was decided on.
//!
//! Each step can be done again: a crash leaves a plan, and copies that are made ready anew.

use std::time::{Duration, Instant};

use esker_partition::command::Kind;
use esker_partition::streams::{StreamOptions, StreamPartition};
use esker_partition::{ClusterInit, Lineage, PartitionId, Store, StoreOptions};
use esker_raft::engine::LogFloor;
use esker_raft::runtime::NodeError;
use esker_raft::{GroupId, Lsn, StateMachine as _, Term};
use esker_repository::Error as RepositoryError;
use tokio::runtime::Handle;

use super::attempts::Attempts;
use super::candidates::Source;
use super::copies::RecoverySource;
use super::inspect::Facts;
use super::plan::{Plan, PlannedFork};
use super::report::RecoveryReport;
use crate::data_dir::{DataDir, MADE_OF_STATE};
use crate::error::StartError;
use crate::snapshots::{Archive, lineage_id};
use crate::state::files::{Files, name_of};

/// Bytes of the log that are read at a time.
const REPLAY_BYTES: u64 = 4 << 20;

/// What came of it.
pub(super) struct Rebuilt {
    pub store: Store,
    pub report: RecoveryReport,
    pub forked: Vec<u64>,
    pub took: Duration,
}

/// Makes the partitions of a new node.
pub(super) fn create(
    raft: &esker_raft::Node,
    data_dir: &DataDir,
    options: &StoreOptions,
) -> Result<Store, StartError> {
    let identity = &data_dir.identity;
    let store = Store::create(&data_dir.db(), options, &cluster_init(data_dir))?;
    for partition in 0..=u64::from(identity.partitions) {
        if raft.log().tag(GroupId(partition)).is_none() {
            let id = PartitionId(partition);
            let lineage = Lineage::first(&identity.cluster_id, identity.partitions, id);
            begin_log(raft, partition, LogFloor::default(), &lineage)?;
        }
    }
    Ok(store)
}

fn cluster_init(data_dir: &DataDir) -> ClusterInit {
    let identity = &data_dir.identity;
    ClusterInit {
        partitions: identity.partitions,
        voters: vec![identity.node_id],
        cluster_id: identity.cluster_id.clone(),
    }
}

fn begin_log(
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

#[expect(clippy::too_many_arguments, reason = "all of what a start has open")]
pub(super) fn rebuild(
    handle: &Handle,
    facts: Facts,
    ways: Vec<RecoverySource>,
    data_dir: &DataDir,
    raft: &esker_raft::Node,
    archive: &Archive,
    options: &StoreOptions,
    plan: &mut Plan,
    attempts: &Attempts,
) -> Result<Rebuilt, StartError> {
    let started = Instant::now();
    let mut report = RecoveryReport::default();
    let mut forked = Vec::new();
    let store = match facts.store {
        Ok(store) if facts.to_drop.is_empty() => store,
        Ok(store) => without(store, &facts.to_drop, data_dir, options)?,
        Err(why) => {
            if data_dir.db().exists() {
                let aside = data_dir.put_aside("db")?;
                tracing::warn!(
                    why,
                    aside = %aside.display(),
                    "the database was put aside, and is rebuilt from snapshots; remove it when you no longer want it"
                );
            }
            Store::open_any(&data_dir.db(), options)?
        }
    };
    for way in ways {
        let partition = way.partition;
        let id = PartitionId(partition);
        if way.keeps_database {
            // Before it is dropped. Not where local snapshots are: the one in use may be of the same LSN. After
            // a crash it is there already.
            let known = data_dir.checkpoints_aside(partition)?;
            let to = data_dir.place_for_checkpoint_aside(partition)?;
            let kept = store.part(id).begin_checkpoint().take_to(&to, &known)?;
            tracing::warn!(
                partition,
                lsn = kept.meta.lsn,
                aside = %kept.dir.display(),
                "what the database has of the partition is kept as a local snapshot that is put aside"
            );
        }
        if let Some(ready) = &way.ready {
            let begun = Instant::now();
            report.restored_bytes += ready.bytes();
            store.drop_part(id)?;
            attempts.uses(partition, &way.source);
            if let Err(error) = store.import(id, ready) {
                if !error.is_unreadable() {
                    attempts.rule_out(partition, way.source, error.to_string());
                }
                return Err(error.into());
            }
            data_dir.forget_damage(partition)?;
            tracing::info!(
                partition,
                source = %way.source,
                lsn = ready.meta.lsn,
                files = ready.meta.files.len(),
                bytes = ready.bytes(),
                took = ?begun.elapsed(),
                "Snapshot loaded"
            );
        }
        if way.source == Source::Empty {
            attempts.uses(partition, &way.source);
            // Until the lineage has begun, what is made here must not be taken for what was lost.
            data_dir.report_damage(partition, "it is being made empty")?;
            store.drop_part(id)?;
            store.create_partition(id, &cluster_init(data_dir))?;
            let checkpoints = data_dir.checkpoints().join(partition.to_string());
            if checkpoints.exists() {
                let name = format!("checkpoints-{partition}");
                let aside = data_dir.put_aside_as(&checkpoints, &name)?;
                tracing::warn!(
                    partition,
                    aside = %aside.display(),
                    "local snapshots that cannot be used were put aside; remove them when you no longer want them"
                );
            }
        }
        if way.source == Source::Log {
            store.drop_part(id)?;
            attempts.uses(partition, &way.source);
            store.create_partition(id, &cluster_init(data_dir))?;
            data_dir.forget_damage(partition)?;
        }
        if let (Source::State(commit_ts), Some(fork)) = (&way.source, &way.fork) {
            attempts.uses(partition, &way.source);
            report.state_commits =
                from_state(&store, *commit_ts, fork.lsn, partition, data_dir, raft)?;
        }
        if let Some(lineage) = &way.adopt {
            store.part(id).fork(lineage, data_dir.identity.node_id)?;
        }
        if let Some(fork) = &way.fork {
            begin_lineage(handle, &store, fork, &way, data_dir, raft, archive)?;
            if matches!(way.source, Source::State(_) | Source::Empty) {
                data_dir.forget_damage(partition)?;
            }
            forked.push(partition);
        }
        if way.source != Source::Database || way.fork.is_some() {
            let lost_after = way.fork.as_ref().map(|fork| fork.lsn);
            report.came_from(partition, way.source, lost_after);
        }
    }
    let restore = data_dir.restore();
    if restore.exists()
        && let Err(error) = std::fs::remove_dir_all(&restore)
    {
        tracing::warn!(%error, dir = %restore.display(), "what was restored is not removed");
    }
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
        tracing::warn!(
            partition,
            lineage = fork.lineage,
            parent = fork.parent,
            lsn = fork.lsn,
            "a new lineage begins: whatever was acknowledged after LSN {} is lost",
            fork.lsn
        );
    }
    Ok(Rebuilt {
        store,
        report,
        forked,
        took: started.elapsed(),
    })
}

/// The database without the partitions whose files keep it from being opened as it should be. What is
/// dropped has another copy, or its loss was accepted.
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
        damaged.drop_part(PartitionId(*partition))?;
    }
    damaged.close();
    drop(damaged);
    let opened = Store::open_any(&data_dir.db(), options);
    opened.map_err(|why| match why.is_unreadable() {
        true => why.into(),
        // Whose damage it is goes into the report, for the next attempt.
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

/// Makes the state store's partition of a JSON snapshot, and of the commits that the log has after it: how
/// many these are. Other streams are not known any more, so what the log has of them is passed over.
fn from_state(
    store: &Store,
    commit_ts: u64,
    up_to: u64,
    partition: u64,
    data_dir: &DataDir,
    raft: &esker_raft::Node,
) -> Result<u64, StartError> {
    let broken = |why: String| StartError::NothingUsable {
        partition,
        tried: format!("{}: {why}", name_of(commit_ts)),
        remedy: "Start again: another copy is tried".into(),
    };
    let id = PartitionId(partition);
    let path = data_dir.snapshots();
    let files = Files::open(path.clone()).map_err(|source| StartError::Io {
        operation: "opening",
        path,
        source,
    })?;
    let checked = files.check(commit_ts);
    let (checked, _) = checked.map_err(|e| broken(e.to_string()))?;
    let lsn = checked.header.lsn;
    tracing::info!(
        source = "json",
        commit_ts,
        bytes = checked.bytes,
        keys = checked.keys,
        "Loading snapshot: {}",
        name_of(commit_ts)
    );
    // Until the lineage has begun, what is made here must not be taken for what was lost.
    data_dir.report_damage(partition, MADE_OF_STATE)?;
    store.drop_part(id)?;
    store.create_partition(id, &cluster_init(data_dir))?;
    // The commits that follow in the log get the numbers that they had: those of that lineage.
    let part = store.part(id);
    let lineage = part.lineage()?.after_forks(checked.header.forks);
    part.fork(&lineage, data_dir.identity.node_id)?;
    let mut rebuild = store.part(id).rebuild_state()?;
    rebuild.commit_forks(checked.header.commit_forks);
    files
        .read(commit_ts, |key, entry| {
            rebuild.entry(&key, &entry).map_err(|e| e.to_string())
        })
        .map_err(|e| broken(e.to_string()))?;
    rebuild.applied(lsn, 1)?;
    rebuild.finish(commit_ts)?;
    let log = raft.log().reader(GroupId(partition));
    let mut machine = StreamPartition::open(store, id, StreamOptions::default())?;
    let (mut next, mut commits) = (lsn + 1, 0u64);
    while next <= up_to {
        let entries = log
            .entries(Lsn(next), Lsn(up_to + 1), REPLAY_BYTES)
            .map_err(|e| match e.is_unreadable() {
                true => StartError::unreadable("the log", &e),
                false => broken(e.to_string()),
            })?
            .into_committed()
            .map_err(broken)?;
        let Some(last) = entries.last() else {
            return Err(broken(format!("the log has no entry at LSN {next}")));
        };
        next = last.lsn.0 + 1;
        let of_state = |mut entry: esker_raft::Committed| {
            let kind = entry.command.clone().map(Kind::from_bytes);
            let is_of_state = matches!(
                kind,
                Some(Ok(Kind::StateCommit(_)
                    | Kind::StatePrune(_)
                    | Kind::StateImport(_)))
            );
            commits += u64::from(matches!(kind, Some(Ok(Kind::StateCommit(_)))));
            entry.command = entry.command.filter(|_| is_of_state);
            entry
        };
        let entries: Vec<_> = entries.into_iter().map(of_state).collect();
        for step in entries.chunks(1024) {
            machine
                .apply(step, &mut Vec::new())
                .map_err(|e| broken(e.to_string()))?;
        }
    }
    drop(machine);
    store.part(id).flush()?;
    Ok(commits)
}

/// Begins a lineage: first in the repository, so that of two restores at once one loses; then in the
/// database; then in the log.
fn begin_lineage(
    handle: &Handle,
    store: &Store,
    fork: &PlannedFork,
    way: &RecoverySource,
    data_dir: &DataDir,
    raft: &esker_raft::Node,
    archive: &Archive,
) -> Result<(), StartError> {
    let partition = way.partition;
    let malformed = || StartError::BadIdentity {
        path: data_dir.path().join("restore.json"),
        why: format!("the lineages of partition {partition}"),
    };
    let (id, parent) = fork.id().zip(fork.parent()).ok_or_else(malformed)?;
    let between = fork.between().ok_or_else(malformed)?;
    if way.has_root {
        archive.begin_to_write()?;
        let repository = archive.repository(&data_dir.identity, partition);
        let parent = Some(lineage_id(parent));
        handle
            .block_on(async {
                if repository.root().await?.lineage == Some(lineage_id(id)) {
                    return Ok(());
                }
                let lsn = esker_repository::Lsn(fork.lsn);
                repository.fork(parent, lsn, lineage_id(id)).await?;
                Ok(())
            })
            .map_err(|error: RepositoryError| match error {
                RepositoryError::OtherLineage { .. } => StartError::OtherLineage {
                    partition,
                    repository: archive.shown().to_owned(),
                    why: error.to_string(),
                },
                other => StartError::RepositoryUnreadable {
                    repository: archive.shown().to_owned(),
                    why: other.to_string(),
                },
            })?;
    }
    let part = store.part(PartitionId(partition));
    let lineage = part.lineage()?;
    let lineage = match lineage.id() == id {
        true => lineage,
        false => {
            let next = match fork.empty {
                true => lineage.begin_empty(parent, fork.skipped, id),
                false => lineage.fork_of_descendant(parent, fork.skipped, &between, id, fork.lsn),
            };
            part.fork(&next, data_dir.identity.node_id)?;
            next
        }
    };
    let applied = part.applied()?.unwrap_or_default();
    let start = LogFloor {
        lsn: Lsn(applied.lsn),
        term: Term(applied.term),
    };
    begin_log(raft, partition, start, &lineage)
}
