//! The status for operators: positions, the predicted time of a recovery, what a loss would cost, and
//! problems.

use std::sync::Arc;
use std::time::Duration;

use esker_raft::Role;
use esker_repository::env::steady_now;
use time::OffsetDateTime;

use super::failure::Failure;
use super::rates::{Measured, Prediction};
use super::state::{Proof, RepositoryState};
use crate::clock::{age_of, past_age};
use crate::core::Inner;
use crate::recovery::RecoveryReport;

/// A proof older than this, or of a snapshot that is no longer retained, has to be renewed.
const PROOF_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Snapshots are late when the newest is this many intervals old and something came after it.
const LATE: u32 = 3;

/// The status of a node.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// Its cluster's name.
    pub cluster_name: String,
    /// Its cluster's id.
    pub cluster_id: String,
    /// Its own.
    pub node_id: u64,
    /// The repository's URL.
    pub repository: String,
    /// Whether the repository does not survive the disk of the data directory.
    pub repository_is_local: bool,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
    /// Bytes that the log may have while it is kept for archived snapshots.
    pub max_log_bytes: u64,
    /// How long a start would take after a crash of this moment.
    pub restart: Prediction,
    /// How long it would take to restore everything from the repository.
    pub restore: Prediction,
    /// The measurements that the predictions rest on.
    pub measured: Measured,
    /// What the last start did.
    pub recovery: Option<Arc<RecoveryReport>>,
    /// The partitions, the catalog first.
    pub partitions: Vec<PartitionStatus>,
    /// What is wrong, and what to do.
    pub problems: Vec<Problem>,
}

/// The status of a partition.
#[derive(Clone, Debug)]
pub struct PartitionStatus {
    /// The partition.
    pub partition: u64,
    /// Role of this node.
    pub role: Role,
    /// The history that it is of.
    pub lineage: String,
    /// First entry of the log.
    pub log_head: u64,
    /// Last entry of the log.
    pub last: u64,
    /// Last LSN in the database.
    pub applied: u64,
    /// Last LSN in the database's files.
    pub durable: u64,
    /// Last LSN of the newest local snapshot.
    pub floor: u64,
    /// LSN of the oldest retained snapshot in the repository.
    pub archived: Option<u64>,
    /// The newest snapshot in the repository.
    pub newest: Option<SnapshotStatus>,
    /// The newest snapshot that was restored and compared.
    pub proven: Option<Proof>,
    /// Snapshots that are retained.
    pub retained: usize,
    /// Snapshots of stale lineages.
    pub abandoned: usize,
    /// Log entries that the repository does not have.
    pub entries_at_risk: u64,
    /// How long ago the repository had all there was.
    pub seconds_at_risk: u64,
    /// Bytes of the database's files.
    pub database_bytes: u64,
    /// How long this partition's replay would take after a crash of this moment.
    pub restart: Prediction,
    /// How long it would take to restore this partition from the repository.
    pub restore: Prediction,
}

/// A snapshot in the repository.
#[derive(Clone, Debug)]
pub struct SnapshotStatus {
    /// Its id.
    pub id: String,
    /// The last LSN that it covers.
    pub lsn: u64,
    /// When it was made.
    pub created_at: OffsetDateTime,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A stable code.
    pub code: &'static str,
    /// The partitions that it is about; empty for all.
    pub partitions: Vec<u64>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: &'static str,
}

impl Inner {
    pub(crate) fn recovery_status(&self) -> NodeStatus {
        let inner = self;
        let snapshots = &inner.snapshots;
        let count = snapshots.known.len() as u64;
        let partitions: Vec<_> = (0..count).map(|p| self.partition_status(p)).collect();
        let mut after_durable = (0, 0);
        let mut after_archived = (0, 0);
        let mut archived_bytes = 0;
        for one in &partitions {
            let (entries, bytes) = inner.after(one.partition, one.durable);
            after_durable = (after_durable.0 + entries, after_durable.1 + bytes);
            let newest = one.newest.as_ref().map_or(0, |n| n.lsn);
            let (entries, bytes) = inner.after(one.partition, newest);
            after_archived = (after_archived.0 + entries, after_archived.1 + bytes);
            let known = snapshots.known[one.partition as usize].lock();
            archived_bytes += known.newest_bytes.unwrap_or(one.database_bytes);
        }
        let rates = &snapshots.rates;
        let mut status = NodeStatus {
            cluster_name: inner.identity.cluster_name.clone(),
            cluster_id: inner.identity.cluster_id.clone(),
            node_id: inner.identity.node_id,
            repository: snapshots.archive.shown().to_owned(),
            repository_is_local: snapshots.archive.is_default,
            log_bytes: inner.log_bytes(),
            max_log_bytes: inner.options.snapshots.max_log_bytes,
            restart: rates.start()
                + rates.scan(inner.log_bytes())
                + rates.replay(after_durable.0, after_durable.1),
            restore: rates.start()
                + rates.restore(archived_bytes)
                + rates.replay(after_archived.0, after_archived.1),
            measured: rates.measured(),
            recovery: snapshots.recovery(),
            partitions,
            problems: Vec::new(),
        };
        status.problems = self.problems(&status);
        status
    }

    fn partition_status(&self, partition: u64) -> PartitionStatus {
        let inner = self;
        let rates = &inner.snapshots.rates;
        let group = inner.group(partition).status();
        let part = inner.part(partition);
        let durable = part.durable().ok().flatten().map_or(0, |d| d.lsn);
        let lineage = part.lineage().map(|l| l.id().to_string());
        let known = inner.snapshots.known[partition as usize].lock();
        let newest = known.newest().map(|newest| SnapshotStatus {
            id: newest.id.clone(),
            lsn: newest.lsn,
            created_at: newest.created_at,
        });
        let archived = known.oldest().map(|oldest| oldest.lsn);
        let newest_bytes = known.newest_bytes;
        let empty = known.empty_entries();
        let proven = known.proven.clone();
        let (retained, abandoned) = (known.retained.len(), known.abandoned);
        drop(known);
        let covered = newest.as_ref().map_or(0, |n| n.lsn);
        let (entries, bytes) = inner.after(partition, durable);
        let (to_replay, bytes_to_replay) = inner.after(partition, covered + empty);
        // Streams without their basins could not be found again, so they are at risk although a snapshot has them.
        let (covered, lacks_basins) = inner.covered(partition, covered);
        let empty = if lacks_basins { 0 } else { empty };
        let (at_risk, _) = inner.after(partition, covered + empty);
        let catalog = lacks_basins.then(|| inner.snapshots.known[0].lock());
        let oldest_needed = match &catalog {
            Some(catalog) => catalog.newest().map(|n| n.created_at),
            None => newest.as_ref().map(|n| n.created_at),
        };
        drop(catalog);
        let database_bytes = part.file_bytes();
        PartitionStatus {
            partition,
            role: group.role,
            lineage: lineage.unwrap_or_default(),
            log_head: group.log_start.0 + 1,
            last: group.last.0,
            applied: group.applied.0,
            durable,
            floor: group.floor.0,
            archived,
            proven,
            retained,
            abandoned,
            entries_at_risk: at_risk,
            seconds_at_risk: match (at_risk, oldest_needed) {
                (0, _) => 0,
                (_, Some(created_at)) => past_age(created_at)
                    .unwrap_or_else(|| inner.started.elapsed())
                    .as_secs(),
                (_, None) => inner.started.elapsed().as_secs(),
            },
            newest,
            database_bytes,
            restart: rates.replay(entries, bytes),
            restore: rates.restore(newest_bytes.unwrap_or(database_bytes))
                + rates.replay(to_replay, bytes_to_replay),
        }
    }

    fn problems(&self, status: &NodeStatus) -> Vec<Problem> {
        let inner = self;
        let mut problems = Problems::default();
        let options = &inner.options.snapshots;
        if status.repository_is_local {
            problems.add(
                "repository_on_this_disk",
                None,
                format!(
                    "snapshots are kept in {} and do not survive this disk",
                    status.repository
                ),
                "set snapshots.destination to another disk or to object storage",
            );
        }
        if options.num_retained.is_none() {
            problems.add(
                "one_snapshot_retained",
                None,
                "only the newest snapshot is retained: there is none to fall back to".to_owned(),
                "set snapshots.num-retained to 3 or so",
            );
        }
        if inner.log_is_full() {
            problems.add(
                "log_full",
                None,
                format!(
                    "the log has {} bytes, more than max-log-bytes = {}",
                    status.log_bytes, status.max_log_bytes
                ),
                "see whether snapshots are put; raise snapshots.max-log-bytes",
            );
        }
        for ignored in &inner.state.progress.lock().ignored {
            problems.add(
                "state_snapshot_ignored",
                Some(inner.state.partition.0),
                format!("a file in snapshots/ does not count: {ignored}"),
                "move it away; esker state import takes its state over, if that is wanted",
            );
        }
        let (_, ahead) = steady_now();
        if !ahead.is_zero() {
            problems.add(
                "clock_jumped",
                None,
                format!(
                    "the machine's clock has jumped ahead by {} s: until a day has passed since, nothing is deleted for its age because of that",
                    ahead.as_secs()
                ),
                "if the clock is wrong, put it right before that; if it is right now, do nothing",
            );
        }
        if let Some(why) = inner
            .restarts
            .held_back()
            .or_else(|| inner.restarts.unread())
        {
            problems.add(
                "restart_held_back",
                None,
                why,
                "bring back a copy that the cause names, or look for a failing disk or memory; then restart the server",
            );
        }
        if let Some(what) = inner.restarts.lately() {
            problems.add(
                "restarted",
                None,
                what,
                "look at the disk and the memory of the machine; what was damaged is recovered",
            );
        }
        for unknown in inner.unknown_basins() {
            let counted = unknown.streams;
            let what = format!(
                "the catalog does not know basin {}, which {counted} stream{} in, such as {:?}: it was restored as of before the basin was made",
                unknown.id,
                if counted == 1 { " is" } else { "s are" },
                unknown.example,
            );
            for partition in unknown.partitions {
                problems.add(
                    "basin_unknown",
                    Some(partition),
                    what.clone(),
                    "esker stream adopt BASIN ID makes the basin again, and its streams are there as they were",
                );
            }
        }
        let shortage = inner.shortage();
        for one in &status.partitions {
            let partition = one.partition;
            let known = inner.snapshots.known[partition as usize].lock();
            known_problems(&mut problems, partition, &known, one);
            drop(known);
            if let Some(why) = inner.snapshots.local.failure(partition) {
                problems.add(
                    "local_snapshot_failed",
                    Some(partition),
                    why,
                    "the log is kept meanwhile; look at free space in the data directory",
                );
            }
            if let Some(why) = inner.damage(partition) {
                problems.add(
                    "database_damaged",
                    Some(partition),
                    why,
                    "the server makes a copy ready and restarts itself, unless the problem restart_held_back tells why not",
                );
            }
            if let Some(halted) = inner.group(partition).halted() {
                problems.add(
                    "partition_halted",
                    Some(partition),
                    halted.why,
                    match halted.reopens {
                        true => "mend the cause: it is tried again after 1 s to 60 s, and the partition goes on by itself",
                        false => "mend the cause, then start the server again: what was acknowledged is in the log",
                    },
                );
            }
            if let Some(why) = &shortage {
                problems.add(
                    "disk_takes_no_writes",
                    Some(partition),
                    why.clone(),
                    "make room on the disk of the data directory, trim streams, or delete them",
                );
            } else if inner.group(partition).status().stalled {
                problems.add(
                    "disk_takes_no_writes",
                    Some(partition),
                    format!("appends are refused: {}", inner.stall_cause(partition)),
                    "mend what the cause names: space, permissions or open files of the data directory",
                );
            }
            // Where appends are refused for it, that has been said.
            let writes = inner.group(partition).status();
            if let Some(why) = inner.store.write_failure()
                && !writes.stalled
                && shortage.is_none()
            {
                problems.add(
                    "database_not_written",
                    Some(partition),
                    format!("the log is kept meanwhile: {why}"),
                    "mend what the cause names: open files, permissions or space of the data directory",
                );
            }
            // A new lineage's log begins where it forked: that older snapshots do not reach the present
            // is what the restore has cost, and not the bound of the log.
            let lineage = inner.part(partition).lineage().ok();
            let forked_at = lineage.filter(|l| l.forks > 0).map_or(0, |l| l.fork_lsn);
            let known = inner.snapshots.known[partition as usize].lock();
            let of_this_line = known.retained.iter().rev().find(|r| r.lsn >= forked_at);
            let is_trimmed = of_this_line.is_some_and(|oldest| oldest.lsn + 1 < one.log_head);
            let why_none_is_put = known.failure.is_some();
            drop(known);
            if is_trimmed {
                problems.add(
                    "log_trimmed",
                    Some(partition),
                    "the log no longer reaches back to the oldest retained snapshot: that one can be restored, and not brought up to date".to_owned(),
                    "raise snapshots.max-log-bytes, or put snapshots more often",
                );
            }
            if let Some(newest) = &one.newest
                && past_age(newest.created_at).is_none()
            {
                problems.add(
                    "snapshot_from_future",
                    Some(partition),
                    "the newest snapshot is from the future: a clock was ahead when it was made, or this machine's is behind".to_owned(),
                    "put the clock right; the next snapshot is due as soon as there is anything new, and ages are right from then on",
                );
            }
            if let (Some(interval), Some(newest)) = (options.interval, &one.newest)
                && one.entries_at_risk > 0
                && options.interval_records.is_none()
                // Where it is known why, that is the problem.
                && !why_none_is_put
                && age_of(newest.created_at) > interval * LATE
            {
                problems.add(
                    "snapshots_late",
                    Some(partition),
                    format!(
                        "the newest snapshot is {} s old",
                        age_of(newest.created_at).as_secs()
                    ),
                    "see the server's log for why none was put",
                );
            }
        }
        problems.list
    }
}

/// Publishes the gauges of the status.
pub(crate) fn publish(status: &NodeStatus) {
    let seconds = |name: &'static str, predicted: Prediction| {
        metrics::gauge!(name).set(predicted.time.as_secs_f64());
    };
    seconds("esker_predicted_restart_seconds", status.restart);
    seconds("esker_predicted_restore_seconds", status.restore);
    metrics::gauge!("esker_problems").set(status.problems.len() as f64);
    for one in &status.partitions {
        let partition = one.partition.to_string();
        let gauge = |name: &'static str, value: u64| {
            metrics::gauge!(name, "partition" => partition.clone()).set(value as f64);
        };
        gauge("esker_entries_at_risk", one.entries_at_risk);
        gauge("esker_seconds_at_risk", one.seconds_at_risk);
        gauge(
            "esker_partition_log_entries_above_floor",
            one.last.saturating_sub(one.floor),
        );
        gauge(
            "esker_partition_archived_lag",
            one.last.saturating_sub(one.archived.unwrap_or_default()),
        );
        gauge("esker_snapshots_retained", one.retained as u64);
        if let Some(newest) = &one.newest {
            gauge(
                "esker_snapshot_age_seconds",
                age_of(newest.created_at).as_secs(),
            );
        }
        if let Some(proven) = &one.proven {
            gauge(
                "esker_snapshot_proof_age_seconds",
                age_of(proven.at).as_secs(),
            );
        }
    }
}

fn known_problems(
    problems: &mut Problems,
    partition: u64,
    known: &RepositoryState,
    one: &PartitionStatus,
) {
    let partition = Some(partition);
    if let Some(Failure { code, what, remedy }) = &known.failure {
        problems.add(code, partition, what.clone(), remedy);
    }
    if let Some(why) = &known.sweep_failure {
        problems.add(
            "sweep_failing",
            partition,
            why.clone(),
            "nothing is deleted meanwhile, so storage grows; esker snapshot verify says what is damaged",
        );
    }
    if let Some(why) = &known.proof_failure {
        problems.add(
            "proof_failed",
            partition,
            why.clone(),
            "do not rely on this snapshot: esker snapshot create makes another, esker snapshot verify --restore tests it",
        );
    }
    if known.abandoned > 0 {
        problems.add(
            "abandoned_snapshots",
            partition,
            format!("{} snapshots of stale lineages are kept", known.abandoned),
            "when nothing in them is wanted any more: esker snapshot prune --abandoned",
        );
    }
    if known.failure.is_none() && known.proof_failure.is_none() && one.newest.is_some() {
        let proven = known.proven.as_ref();
        if proven.is_none_or(|proof| past_age(proof.at).is_none_or(|age| age > PROOF_AGE)) {
            problems.add(
                "unproven",
                partition,
                "no snapshot was restored and compared since the start, or for a month".to_owned(),
                "esker snapshot verify --restore, or set snapshots.restore-test-interval",
            );
        }
    }
}

#[derive(Default)]
struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    /// The same problem of several partitions is one.
    fn add(
        &mut self,
        code: &'static str,
        partition: Option<u64>,
        what: String,
        remedy: &'static str,
    ) {
        let same = |p: &&mut Problem| p.code == code && p.what == what;
        match (self.list.iter_mut().find(same), partition) {
            (Some(known), Some(partition)) => known.partitions.push(partition),
            _ => self.list.push(Problem {
                code,
                partitions: partition.into_iter().collect(),
                what,
                remedy,
            }),
        }
    }
}
