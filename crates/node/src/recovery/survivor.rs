//! A node that goes on alone after a majority of its cluster was lost for good.
//!
//! An operator decides that, with `esker cluster recover` on the stopped node, which leaves `recover.json`. The
//! next start applies all that the node's log has, also what it does not know to be committed: most of that was
//! ([`super::uncommitted`]). Where the repository's newest snapshot is ahead of the log, it goes on from there. In
//! every partition a new lineage begins, with this node as the only member, because acknowledged entries may be
//! missing. The lineages keep out the nodes that were given up, and so does the catalog, for which they count as
//! removed.
//!
//! What this node itself has lost is another matter. A log that is damaged, missing or cut, and a database that does
//! not connect with it, end the start as on a node that is alone, unless `--bootstrap restore` accepts that loss too.
//! So does a snapshot that may have more and cannot be read now.
//!
//! The decisions are written down as those of every loss (`restore.json`), so a start after a crash continues with
//! the same lineages. `recover.json` goes once the node serves.

use std::fs;
use std::path::{Path, PathBuf};

use esker_partition::command::{Kind, Outcome};
use esker_partition::streams::StreamPartition;
use esker_partition::{Catalog, Checkpoint, LineageId, PartitionId, Store};
use esker_raft::{GroupId, Lsn, StateMachine};
use esker_repository::{Error as RepositoryError, Repository};
use serde::{Deserialize, Serialize};

use super::candidates::{Candidate, Source, connects, is_whole};
use super::context::Context;
use super::inspect::copy_in;
use super::lineage_after_log::forked;
use super::search::{RecoverySource, Search};
use crate::cluster::Diverged;
use crate::data_dir::{LockedDir, Stage, now_rfc3339, sync_dir, write_durably};
use crate::error::StartError;

const FILE: &str = "recover.json";
/// Bytes of the log that are read at a time.
const REPLAY_BYTES: u64 = 4 << 20;
/// Entries that are applied in one step.
const STEP: usize = 1024;

/// What an operator has decided.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct GivenUp {
    /// When, in RFC 3339.
    #[serde(default)]
    given_up_at: String,
    /// Whether replicas are used that are known to differ from the others', where nothing else is left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    accepts_diverged: bool,
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// Notes that the other nodes of the cluster are given up, and that the node goes on alone at its next start; with
/// `accepts_diverged` also with replicas that are known to differ from the others'. Returns its number.
///
/// # Errors
///
/// The directory is none of a node with others, or a process uses it; or replicas of it have diverged.
pub fn give_up_others(data_dir: &Path, accepts_diverged: bool) -> Result<u64, StartError> {
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
    if let Some(removed) = locked.removed()?
        && removed.stage >= Stage::Deleting
    {
        return Err(StartError::NodeRemoved {
            dir: locked.path().to_owned(),
            what: removed.describe(),
        });
    }
    let path = path(locked.path());
    let given_up = GivenUp {
        given_up_at: now_rfc3339(),
        accepts_diverged,
    };
    diverged(locked.path(), member.node_id, &given_up)?;
    let text = serde_json::to_vec_pretty(&given_up).map_err(|e| StartError::BadIdentity {
        path: path.clone(),
        why: e.to_string(),
    })?;
    write_durably(&path, &text)?;
    Ok(member.node_id)
}

/// What was decided, if the other nodes are given up.
pub(super) fn given_up(data_dir: &Path) -> Result<Option<GivenUp>, StartError> {
    let path = path(data_dir);
    match fs::read(&path) {
        // The file counts even if it cannot be parsed.
        Ok(text) => Ok(Some(serde_json::from_slice(&text).unwrap_or_default())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StartError::unreadable(path.display().to_string(), &e)),
    }
}

/// Whether the other nodes are given up.
pub(super) fn is_alone(data_dir: &Path) -> Result<bool, StartError> {
    Ok(given_up(data_dir)?.is_some())
}

/// The partitions of which the replicas here are known to differ from the others', and are used where nothing else
/// is left.
///
/// # Errors
///
/// The operator has not accepted that.
pub(super) fn diverged(
    data_dir: &Path,
    node: u64,
    given_up: &GivenUp,
) -> Result<Vec<u64>, StartError> {
    let partitions = Diverged::open(data_dir, node)?.partitions();
    match partitions.is_empty() || given_up.accepts_diverged {
        true => Ok(partitions),
        false => Err(StartError::Diverged {
            dir: data_dir.to_owned(),
            partitions,
        }),
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
    pub(super) async fn survive(&mut self) -> Result<RecoverySource, StartError> {
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
        if let (Some(planned), Ok(found)) = (planned, &facts.database)
            && planned.id() == Some(found.lineage)
        {
            // An earlier start has begun the lineage in the database already.
            let source = self.recovery_source(&copy_in(found), None, None, has_root);
            return Ok(RecoverySource {
                fork: Some(planned.clone()),
                replays_log: self.replays_log,
                adopt: None,
                ..source
            });
        }
        let mut committed = self.committed();
        let mut others_copies = Vec::new();
        if let Some(root) = &root {
            for copy in self.archived(&repository, root).await? {
                let Some(after) = self.restart_after(&copy) else {
                    committed = committed.max(self.committed_by(&copy));
                    others_copies.push(copy);
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
        let source = match self.cx.diverged.contains(&facts.partition) {
            true => self.without_replica(&repository, &others_copies).await?,
            false => None,
        };
        let source = match source {
            Some(source) => source,
            None => self.search().await?,
        };
        let log = self.log.clone();
        let Some(log) = log.filter(|_| source.fork.is_none()) else {
            return Ok(source);
        };
        // One of a later term would be ahead of what is not known to be committed.
        self.all_was_read_beyond(committed)?;
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
        let begins_after = self.lineage_begins_after(&source, &log, committed);
        let source = RecoverySource {
            has_root,
            replays_log: true,
            ..source
        };
        Ok(forked(source, log.lineage.id(), begins_after, planned))
    }
}

impl Search<'_> {
    /// Where a replica differs from the others', what leads to the present without it: a snapshot that another node
    /// has put, or the log if that has everything. What the replica has applied is in neither.
    async fn without_replica(
        &mut self,
        repository: &Repository,
        copies: &[Candidate],
    ) -> Result<Option<RecoverySource>, StartError> {
        let partition = self.facts.partition;
        let mine = format!("node-{}", self.cx.data_dir.identity.node_id);
        for copy in copies {
            let Source::Repository(dir) = &copy.source else {
                continue;
            };
            let described = repository.describe(dir).await;
            let described = described.map_err(|e| self.unreadable_repository(&e))?;
            let put_by = &described.node_name;
            if *put_by == mine || connects(self.log.as_ref(), copy).is_err() {
                continue;
            }
            if let Some(ready) = self.fetch(repository, copy).await? {
                tracing::warn!(partition, snapshot = %copy.source, put_by, "the replica here differs from the others': the partition goes on from what another node has put");
                return Ok(Some(self.beside_replica(copy, Some(ready))));
            }
        }
        if is_whole(self.log.as_ref()) && !self.is_ruled_out(&Source::Log) {
            tracing::warn!(
                partition,
                "the replica here differs from the others': the partition is made of its log"
            );
            let id = PartitionId(partition);
            let first = LineageId::first(&self.cx.data_dir.identity.cluster_id, id);
            let nothing = Candidate::at(Source::Log, first, 0);
            return Ok(Some(self.beside_replica(&nothing, None)));
        }
        tracing::warn!(
            partition,
            "the replica here differs from the others', and nothing else is left of the partition: it is used as it is"
        );
        Ok(None)
    }

    /// A copy as the source, where the replica is kept for whoever looks for the cause.
    fn beside_replica(&self, copy: &Candidate, ready: Option<Checkpoint>) -> RecoverySource {
        RecoverySource {
            keeps_database: self.facts.database.is_ok(),
            ..self.recovery_source(copy, ready, None, true)
        }
    }
}

/// Applies what the log has of a partition up to an LSN. Changes of the members have no effect: a new lineage begins
/// behind them. Blocking.
pub(super) fn replay_log(
    cx: &Context,
    store: &Store,
    partition: u64,
    up_to: u64,
) -> Result<(), StartError> {
    let id = PartitionId(partition);
    let up_to = Lsn(up_to);
    match partition {
        0 => apply_up_to(cx, partition, Catalog::open(store)?, up_to)?,
        _ => {
            let options = cx.options.stream_options();
            let machine = StreamPartition::open(store, id, options)?;
            apply_up_to(cx, partition, machine, up_to)?;
        }
    }
    Ok(store.partition_db(id).flush()?)
}

/// Applies entries of the log. Comparisons of replicas have no effect: there are none any more.
pub(super) fn apply_up_to<S: StateMachine<Output = Outcome>>(
    cx: &Context,
    partition: u64,
    mut machine: S,
    last: Lsn,
) -> Result<(), StartError> {
    let halted = |why: String| StartError::Halted { partition, why };
    let log = cx.raft.log().reader(GroupId(partition));
    let mut next = machine.applied().0 + 1;
    while next <= last.0 {
        let entries = log.entries(Lsn(next), Lsn(last.0 + 1), REPLAY_BYTES);
        let entries = entries.map_err(|e| match e.is_unreadable() {
            true => StartError::unreadable("the log", &e),
            false => halted(e.to_string()),
        })?;
        let mut entries = entries.into_committed().map_err(halted)?;
        for entry in &mut entries {
            let command = entry.command.clone().map(Kind::from_bytes);
            if matches!(
                command,
                Some(Ok(Kind::NoteDigests(_) | Kind::TrustReplica(_)))
            ) {
                entry.command = None;
            }
        }
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
