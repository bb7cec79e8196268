//! The status for operators: positions, the predicted time of a recovery, how much data a loss of the disk
//! would cost, and problems.

use std::sync::Arc;

use esker_raft::Role;
use esker_raft::engine::KeptLog;
use time::OffsetDateTime;

use super::rates::{Measured, Prediction};
use super::state::{Proof, SweepStatus};
use crate::clock::{age_of, past_age};
use crate::core::Inner;
use crate::problem::Problem;
use crate::recovery::RecoveryReport;

/// The status of a node.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// Its cluster's name.
    pub cluster_name: String,
    /// Its cluster's id.
    pub cluster_id: String,
    /// The node's id.
    pub node_id: u64,
    /// The repository's URL.
    pub repository: String,
    /// Whether the repository is on the disk of the data directory, and lost with it.
    pub repository_is_local: bool,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
    /// Most bytes of the log that are kept for archived snapshots.
    pub max_log_bytes: u64,
    /// How long a start would take after a crash at this moment.
    pub restart: Prediction,
    /// How long it would take to restore everything from the repository.
    pub restore: Prediction,
    /// The measurements that the predictions are based on.
    pub measured: Measured,
    /// The report of the last start.
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
    /// Whether this node votes. One that does not is a learner.
    pub votes: bool,
    /// The node that leads it, as far as this node knows.
    pub leader: Option<u64>,
    /// The lineage that it belongs to.
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
    /// What of the log is kept for members that are away, beside what snapshots need, if this node leads the partition.
    pub kept_for_absent: Option<KeptLog>,
    /// The newest snapshot in the repository.
    pub newest: Option<SnapshotStatus>,
    /// The newest snapshot that was restored and compared.
    pub proven: Option<Proof>,
    /// Snapshots that are retained.
    pub retained: usize,
    /// Those of them that have a damaged or missing object.
    pub damaged: usize,
    /// When the last complete scrub of them ended.
    pub scrubbed_at: Option<OffsetDateTime>,
    /// Snapshots of stale lineages.
    pub abandoned: usize,
    /// The last complete sweep of its repository since the start.
    pub sweep: Option<SweepStatus>,
    /// Log entries that the repository lacks.
    pub entries_at_risk: u64,
    /// Seconds since the repository had all entries.
    pub seconds_at_risk: u64,
    /// Bytes of the database's files.
    pub database_bytes: u64,
    /// How long this partition's replay would take after a crash at this moment.
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
        let details = inner.group(partition).details();
        let part = inner.partition_db(partition);
        let durable = part.durable_as_of(group.applied.0);
        let durable = durable.ok().flatten().map_or(0, |d| d.lsn);
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
        let (proven, sweep) = (known.proven.clone(), known.last_sweep.clone());
        let (retained, abandoned) = (known.retained.len(), known.abandoned);
        let damaged = known
            .retained
            .iter()
            .filter(|r| r.damaged.is_some())
            .count();
        drop(known);
        let covered = newest.as_ref().map_or(0, |n| n.lsn);
        let (entries, bytes) = inner.after(partition, durable);
        let (to_replay, bytes_to_replay) = inner.after(partition, covered + empty);
        // Streams without their basins could not be found again, so they are at risk although a snapshot has
        // them.
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
            votes: details.membership.voters.contains(&details.id),
            leader: details.leader.map(|leader| leader.0),
            lineage: lineage.unwrap_or_default(),
            log_head: group.log_start.0 + 1,
            last: group.last.0,
            applied: group.applied.0,
            durable,
            floor: group.floor.0,
            archived,
            kept_for_absent: inner.log_kept_for_absent(partition),
            proven,
            retained,
            damaged,
            scrubbed_at: inner.snapshots.scrub_file.completed_at(partition),
            abandoned,
            sweep,
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
}

/// Publishes the gauges of the status.
pub(crate) fn publish(status: &NodeStatus) {
    let seconds = |name: &'static str, predicted: Prediction| {
        metrics::gauge!(name).set(predicted.time.as_secs_f64());
    };
    seconds("esker_predicted_restart_seconds", status.restart);
    seconds("esker_predicted_restore_seconds", status.restore);
    let advice = status.problems.iter().filter(|it| it.is_advice()).count();
    let urgent = status.problems.len() - advice;
    metrics::gauge!("esker_problems", "kind" => "action").set(urgent as f64);
    metrics::gauge!("esker_problems", "kind" => "advice").set(advice as f64);
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
        let kept = one.kept_for_absent.as_ref();
        gauge(
            "esker_partition_log_kept_for_absent_entries",
            kept.map_or(0, |kept| kept.entries),
        );
        gauge(
            "esker_partition_log_kept_for_absent_bytes",
            kept.map_or(0, |kept| kept.bytes),
        );
        gauge("esker_snapshots_retained", one.retained as u64);
        gauge("esker_snapshots_damaged", one.damaged as u64);
        if let Some(at) = one.scrubbed_at {
            gauge("esker_snapshot_scrub_age_seconds", age_of(at).as_secs());
        }
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
