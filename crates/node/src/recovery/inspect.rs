//! Inspects what a data directory has: the log, and the database.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use esker_partition::{Lineage, LineageId, LogTail, PartitionId, Store, StoreError, StoreOptions};
use esker_raft::log::{Faults, LogConfig};
use esker_raft::runtime::{NodeConfig, NodeError};
use esker_raft::{GroupId, Lsn, NodeId, Transport};

use super::candidates::{Candidate, LogFacts, Source};
use super::context::{Context, log_state};
use super::plan::Plan;
use super::{MAX_PENDING, TICK};
use crate::cluster::{Peers, cluster_number};
use crate::data_dir::{DataDir, MADE_OF_STATE, or_absent};
use crate::error::StartError;
use crate::log_files::kept_for_absent;
use crate::options::NodeOptions;

/// What a data directory has.
pub(super) struct Facts {
    pub partitions: Vec<PartitionFacts>,
    /// The database; or why it cannot be used.
    pub store: Result<Store, String>,
    /// Partitions whose files are damaged: the database is open for inspection only, and has to be opened
    /// again without them. Empty if it is open for use.
    pub to_drop: Vec<u64>,
    /// Why the log does not have everything, whichever partition shows it: see [`super::cut_log`].
    pub cut: Option<String>,
}

impl Facts {
    /// The database, if its catalog can be read.
    pub fn catalog(&self) -> Option<&Store> {
        let lacks = |of: &PartitionFacts| of.partition == 0 && of.database.is_err();
        let store = self.store.as_ref().ok();
        store.filter(|_| !self.partitions.iter().any(lacks))
    }
}

/// What a data directory has of a partition.
pub(super) struct PartitionFacts {
    pub partition: u64,
    pub log: Option<LogFacts>,
    pub database: Result<DatabaseFacts, String>,
    /// Whether its files in the database are damaged. Files of copies may be links to the same files, so
    /// they are checked block by block then.
    pub is_damaged: bool,
    /// Why the log does not have everything of it, where a copy on this disk shows that.
    pub cut: Option<String>,
}

/// What the database has of a partition.
#[derive(Clone, Debug)]
pub(super) struct DatabaseFacts {
    pub lsn: u64,
    pub term: u64,
    pub lineage: LineageId,
    pub tail: Option<LogTail>,
}

/// What the database has of a partition, as a copy.
pub(super) fn copy_in(database: &DatabaseFacts) -> Candidate {
    Candidate {
        source: Source::Database,
        lineage: database.lineage,
        lsn: database.lsn,
        term: Some(database.term),
        tail: database.tail.clone(),
    }
}

/// Opens the log. A damaged one is put aside if the operator accepts that.
pub(super) fn open_log(
    options: &NodeOptions,
    data_dir: &DataDir,
    accepts_loss: bool,
    peers: Option<&Peers>,
) -> Result<esker_raft::Node, StartError> {
    let transport = || peers.map(|peers| -> Arc<dyn Transport> { peers.transport.clone() });
    let open = || {
        esker_raft::Node::start_with(
            NodeConfig {
                id: NodeId(data_dir.identity.node_id),
                log: LogConfig {
                    dir: data_dir.log(),
                    segment_size: options.log_segment_size,
                    purge_threshold: options.log_purge_threshold,
                    max_group_size: options.log_max_group_size,
                    direct_writes: peers.is_none(),
                },
                tick_interval: TICK,
                // The log's keeper purges files, once no archived snapshot needs them.
                purge_interval: Duration::ZERO,
                max_pending_proposals: MAX_PENDING,
                snapshot_hint_threshold_entries: options.snapshots.local_threshold_entries,
                snapshot_hint_threshold_bytes: options.snapshots.local_threshold_bytes,
                max_log_entries: 0,
                parallel_snapshots: 1,
                // A node that had others has what an interrupted install needs there.
                dir: Some(data_dir.raft()).filter(|dir| peers.is_some() || dir.exists()),
                max_snapshot_bytes_per_second: options
                    .cluster
                    .as_ref()
                    .map_or(0, |cluster| cluster.transfer_rate),
                cluster: cluster_number(&data_dir.identity.cluster_id),
                // The catalog has a group, too.
                kept_for_absent: kept_for_absent(
                    options.snapshots.max_log_bytes,
                    options.partitions as usize + 1,
                ),
                ..NodeConfig::new(NodeId(data_dir.identity.node_id), data_dir.path())
            },
            Faults::default(),
            transport(),
        )
    };
    // What the log has of each group is part of the log: damage of it is handled in the same way.
    let start = || {
        let (raft, inspection) = open()?;
        for partition in 0..=u64::from(options.partitions) {
            if let Err(error) = raft.log().state(GroupId(partition)) {
                raft.stop();
                return Err(NodeError::from(error));
            }
        }
        Ok((raft, inspection))
    };
    let started = match start() {
        Err(error) if accepts_loss && error.is_damage() => {
            let aside = data_dir.put_aside("log")?;
            tracing::warn!(
                %error,
                aside = %aside.display(),
                "the log is damaged and was put aside: what only it had is lost"
            );
            start()
        }
        other => other,
    };
    let (raft, inspection) = started.map_err(|error| match error.is_unreadable() {
        true => StartError::unreadable("the log", &error),
        false => StartError::Raft(error),
    })?;
    for torn in &inspection.torn {
        tracing::warn!(
            file = %torn.path.display(),
            offset = torn.offset,
            bytes = torn.bytes,
            "the log ended in a write that was cut short and never acknowledged: {} bytes removed",
            torn.bytes
        );
    }
    Ok(raft)
}

/// Reads what log and database have, and changes nothing but a note that is out of date. `plan` is what an
/// earlier start has decided. Blocking.
pub(super) fn inspect(cx: &Context, plan: &Plan) -> Result<Facts, StartError> {
    let Context {
        options,
        data_dir,
        accepted,
        raft,
        store: store_options,
        ..
    } = cx;
    let may_lack = |partition| accepted.loss || plan.forks.contains_key(&partition);
    let planned = |partition| plan.forks.get(&partition)?.id();
    let (store, is_whole) = open_database(&data_dir.db(), store_options)?;
    if let Err(why) = &store {
        tracing::warn!(%why, "the database cannot be used");
    }
    let mut to_drop = Vec::new();
    let mut partitions = Vec::new();
    for partition in 0..=u64::from(options.partitions) {
        if let Ok(store) = &store {
            complete_install(cx, store, partition)?;
        }
        let mut log = log_facts(raft, partition)?;
        if log.is_none() && !may_lack(partition) {
            return Err(StartError::LogIncomplete {
                dir: data_dir.path().to_owned(),
                partition,
            });
        }
        let id = PartitionId(partition);
        let mut noted = data_dir.known_damage(partition)?;
        let (database, is_damaged) = match &store {
            Err(why) => (Err(why.clone()), noted.is_some() || data_dir.db().exists()),
            Ok(store) => {
                let facts = database_facts(store, partition)?;
                if let (Some(log), Ok(_)) = (&mut log, &facts) {
                    log.lineage = lineage_of_log(store, id, log)?;
                }
                // The partition has begun its lineage, so it was completed, and the log continues after it:
                // a crash came before the note was removed.
                if noted.as_deref() == Some(MADE_OF_STATE)
                    && let Ok(found) = &facts
                    && planned(partition) == Some(found.lineage)
                {
                    data_dir.forget_damage(partition)?;
                    noted = None;
                }
                let met = store_options.damage.of(id);
                // The damage is noted now; damage that is met later is another copy's.
                store_options.damage.forget(id);
                if !is_whole && met.is_some() {
                    to_drop.push(partition);
                }
                let noted = noted.map(|why| {
                    let note = data_dir.damage(partition);
                    format!(
                        "it was found damaged: {why} (if its files were brought back since then, remove {})",
                        note.display()
                    )
                });
                match noted.or(met) {
                    Some(why) => (Err(why), true),
                    None => (facts, false),
                }
            }
        };
        partitions.push(PartitionFacts {
            partition,
            log,
            database,
            is_damaged,
            cut: None,
        });
    }
    Ok(Facts {
        cut: None,
        partitions,
        store,
        to_drop,
    })
}

/// The database, or why it cannot be used: it is missing, or damaged. And whether it is open for use, rather
/// than for inspection only.
fn open_database(
    path: &Path,
    options: &StoreOptions,
) -> Result<(Result<Store, String>, bool), StartError> {
    let current = path.join("CURRENT");
    if or_absent(std::fs::metadata(&current), &current)?.is_none() {
        let none = format!("there is none in {}", path.display());
        return Ok((Err(none), true));
    }
    let unreadable = |error: &StoreError| StartError::unreadable("the database", error);
    match Store::open_any(path, options) {
        Ok(store) => {
            store.inspect_files().map_err(|error| unreadable(&error))?;
            Ok((Ok(store), true))
        }
        Err(error) if error.is_unreadable() => Err(unreadable(&error)),
        Err(error) => Ok((sound(Store::open_damaged(path, options, error))?, false)),
    }
}

/// What was read of the database, or how it is damaged. The outer error: it could not be read now.
fn sound<T>(read: Result<T, StoreError>) -> Result<Result<T, String>, StartError> {
    match read {
        Ok(read) => Ok(Ok(read)),
        Err(error) if error.is_unreadable() => Err(StartError::unreadable("the database", &error)),
        Err(error) => Ok(Err(error.to_string())),
    }
}

pub(super) fn log_facts(
    raft: &esker_raft::Node,
    partition: u64,
) -> Result<Option<LogFacts>, StartError> {
    let state = log_state(raft, partition)?;
    let Some(tag) = raft.log().tag(GroupId(partition)) else {
        return Ok(None);
    };
    let lineage = Lineage::from_bytes(&tag).map_err(|why| StartError::BadIdentity {
        path: raft.log().config().dir.clone(),
        why: format!("the lineage of partition {partition}: {why}"),
    })?;
    Ok(Some(LogFacts {
        start: state.start.lsn.0,
        start_term: state.start.term.0,
        last: state.last.0,
        last_term: state.last_term.0,
        commit: state.commit().0,
        lineage,
    }))
}

/// The lineage that the log goes on with: entries of it may have begun the one that the database is of.
fn lineage_of_log(store: &Store, id: PartitionId, log: &LogFacts) -> Result<Lineage, StartError> {
    let of_database = store.partition_db(id).lineage()?;
    Ok(match of_database.log_id() == log.lineage.id() {
        true => of_database,
        false => log.lineage.clone(),
    })
}

/// Completes an install of a member's snapshot that a crash interrupted: the database has it, and the log is
/// restarted after it.
fn complete_install(cx: &Context, store: &Store, partition: u64) -> Result<(), StartError> {
    let id = PartitionId(partition);
    // What is damaged is found by those who look for that.
    let Ok(Some(applied)) = store.applied(id) else {
        return Ok(());
    };
    let Ok(lineage) = store.partition_db(id).lineage() else {
        return Ok(());
    };
    let group = lineage.log_id().0.to_be_bytes();
    let completed = cx.raft.complete_install(
        GroupId(partition),
        esker_raft::Lineage(group),
        Lsn(applied.lsn),
    );
    completed.map_err(|error| match error.is_unreadable() {
        true => StartError::unreadable("a snapshot of another member", &error),
        false => StartError::Raft(error),
    })
}

fn database_facts(
    store: &Store,
    partition: u64,
) -> Result<Result<DatabaseFacts, String>, StartError> {
    let id = PartitionId(partition);
    let facts = || -> Result<Option<DatabaseFacts>, StoreError> {
        let Some(applied) = store.applied(id)? else {
            return Ok(None);
        };
        Ok(Some(DatabaseFacts {
            lsn: applied.lsn,
            term: applied.term,
            lineage: store.partition_db(id).lineage()?.id(),
            tail: applied.log_tail,
        }))
    };
    let facts = sound(facts())?;
    Ok(facts.and_then(|facts| facts.ok_or_else(|| "the database has nothing of it".to_owned())))
}
