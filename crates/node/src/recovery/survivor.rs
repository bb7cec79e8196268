//! A node that goes on alone after a majority of its cluster was lost for good.
//!
//! An operator decides that, with `esker cluster recover` on the stopped node, which leaves `recover.json`. The
//! next start applies all that the node's log has, also what it does not know to be committed: most of that was.
//! Where the repository's newest snapshot covers more than the log, it goes on from there. In every partition a new
//! lineage begins then, with this node as the only member, because acknowledged entries may be missing. The
//! lineages keep out the nodes that were given up, and so does the catalog, for which they count as removed.
//!
//! What this node itself has lost is another matter. A log that is damaged, missing or cut, and a database that does
//! not connect with it, end the start as on a node that is alone, unless `--bootstrap restore` accepts that loss too.
//! So does a snapshot that may have more and cannot be read now.
//!
//! The decisions are written down as those of every loss (`restore.json`), so a start after a crash continues with
//! the same lineages. `recover.json` goes once the node serves.

use std::fs;
use std::path::{Path, PathBuf};

use esker_partition::command::Outcome;
use esker_partition::streams::StreamPartition;
use esker_partition::{Catalog, PartitionId, Store};
use esker_raft::{GroupId, Lsn, StateMachine};
use esker_repository::Error as RepositoryError;
use serde::Serialize;

use super::context::{Context, log_state};
use super::lineage_after_log::forked;
use super::search::{RecoverySource, Search};
use crate::data_dir::{LockedDir, now_rfc3339, sync_dir, write_durably};
use crate::error::StartError;

const FILE: &str = "recover.json";
/// Bytes of the log that are read at a time.
const REPLAY_BYTES: u64 = 4 << 20;
/// Entries that are applied in one step.
const STEP: usize = 1024;

/// What an operator has decided.
#[derive(Serialize)]
struct GivenUp {
    /// When, in RFC 3339.
    given_up_at: String,
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// Notes that the other nodes of the cluster are given up, and that the node goes on alone at its next start.
/// Returns its number.
///
/// # Errors
///
/// The directory is none of a node with others, or a process uses it.
pub fn give_up_others(data_dir: &Path) -> Result<u64, StartError> {
    let identity = data_dir.join("node.json");
    fs::metadata(&identity).map_err(|source| StartError::Io {
        operation: "looking at",
        path: identity,
        source,
    })?;
    let locked = LockedDir::open(data_dir)?;
    let Some(member) = locked.member() else {
        return Err(StartError::NoPeers {
            dir: locked.path().to_owned(),
        });
    };
    let path = path(locked.path());
    let given_up = GivenUp {
        given_up_at: now_rfc3339(),
    };
    let text = serde_json::to_vec_pretty(&given_up).map_err(|e| StartError::BadIdentity {
        path: path.clone(),
        why: e.to_string(),
    })?;
    write_durably(&path, &text)?;
    Ok(member.node_id)
}

/// Whether the other nodes are given up.
pub(super) fn is_alone(data_dir: &Path) -> Result<bool, StartError> {
    let path = path(data_dir);
    match fs::metadata(&path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(StartError::unreadable(path.display().to_string(), &e)),
    }
}

/// The node serves alone: the decision has had its effect.
pub(super) fn remove(data_dir: &Path) -> Result<(), StartError> {
    let path = path(data_dir);
    match fs::remove_file(&path) {
        Ok(()) => sync_dir(data_dir),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StartError::Io {
            operation: "removing",
            path,
            source,
        }),
    }
}

impl Search<'_> {
    /// The source that covers most, and the lineage that begins behind it.
    pub(super) async fn survive(mut self) -> Result<RecoverySource, StartError> {
        let (cx, facts, planned) = (self.cx, self.facts, self.planned);
        let begun = |log: &super::candidates::LogFacts| {
            planned.is_some_and(|planned| planned.id() == Some(log.lineage.id()))
        };
        if facts.log.as_ref().is_some_and(begun) {
            return self.search().await;
        }
        let repository = cx
            .archive
            .repository(&cx.data_dir.identity, facts.partition);
        let root = match repository.root().await {
            Ok(root) => Some(root),
            Err(RepositoryError::NoRoot { others: false, .. }) => None,
            Err(error) => return Err(self.unreadable_repository(&error)),
        };
        let has_root = root.is_some();
        if let Some(root) = &root {
            for copy in self.archived(&repository, root).await? {
                let Some(after) = self.restart_after(&copy) else {
                    continue;
                };
                self.all_was_read_beyond(copy.lsn)?;
                if let Some(ready) = self.fetch(&repository, &copy).await? {
                    let source = RecoverySource {
                        restarts_log: Some(after),
                        ..self.recovery_source(&copy, Some(ready), None, has_root)
                    };
                    return Ok(forked(source, copy.lineage, copy.lsn, planned));
                }
            }
        }
        let source = self.search().await?;
        let log = self.log.clone();
        let Some(log) = log.filter(|_| source.fork.is_none()) else {
            return Ok(source);
        };
        self.all_was_read_beyond(log.last)?;
        if log.last == 0 {
            return Err(StartError::NothingUsable {
                partition: facts.partition,
                tried: "this node was waiting for its first snapshot of it".to_owned(),
                remedy:
                    "Go on with another node, or restore the repository into an empty directory"
                        .into(),
            });
        }
        self.begins_with_whole(&source).await?;
        let source = RecoverySource {
            has_root,
            replays_log: true,
            ..source
        };
        Ok(forked(source, log.lineage.id(), log.last, planned))
    }
}

/// Applies all that the log has of a partition. Changes of the members have no effect: a new lineage begins
/// behind them. Blocking.
pub(super) fn replay_log(cx: &Context, store: &Store, partition: u64) -> Result<(), StartError> {
    let id = PartitionId(partition);
    match partition {
        0 => apply_all(cx, partition, Catalog::open(store)?)?,
        _ => {
            let options = cx.options.stream_options();
            apply_all(cx, partition, StreamPartition::open(store, id, options)?)?;
        }
    }
    Ok(store.partition_db(id).flush()?)
}

fn apply_all<S: StateMachine<Output = Outcome>>(
    cx: &Context,
    partition: u64,
    mut machine: S,
) -> Result<(), StartError> {
    let halted = |why: String| StartError::Halted { partition, why };
    let last = log_state(&cx.raft, partition)?.last;
    let log = cx.raft.log().reader(GroupId(partition));
    let mut next = machine.applied().0 + 1;
    while next <= last.0 {
        let entries = log.entries(Lsn(next), Lsn(last.0 + 1), REPLAY_BYTES);
        let entries = entries.map_err(|e| match e.is_unreadable() {
            true => StartError::unreadable("the log", &e),
            false => halted(e.to_string()),
        })?;
        let entries = entries.into_committed().map_err(halted)?;
        let Some(end) = entries.last() else {
            return Err(halted(format!("the log has no entry at LSN {next}")));
        };
        next = end.lsn.0 + 1;
        for step in entries.chunks(STEP) {
            let applied = machine.apply(step, &mut Vec::new());
            applied.map_err(|e| halted(e.to_string()))?;
        }
    }
    Ok(())
}
