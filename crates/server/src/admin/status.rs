//! `GET /status`: the status of a node.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use esker_node::cluster::KeptFor;
use esker_node::{
    Measured, NodeStatus, NotReady, PartitionStatus, Prediction, Problem, RecoveryReport, Role,
    SnapshotStatus, Source,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::error::ErrorBody;
use super::replicas::KeptForAbsent;
use super::snapshots::{Proven, Swept};
use super::{Admin, AdminError};
use crate::auth::Access;
use crate::auth::operation::Effect;
use crate::client::OfClient;

/// The status of a node.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Status {
    /// Whether appends are taken.
    pub serving: bool,
    /// Why not.
    pub not_serving: Option<String>,
    /// Its cluster's name.
    pub cluster_name: String,
    /// Its cluster's id.
    pub cluster_id: String,
    /// Its own.
    pub node_id: u64,
    /// Whether it shares the cluster with other nodes, or waits for some.
    #[serde(default)]
    pub in_cluster: bool,
    /// The repository's URL.
    pub repository: String,
    /// Whether the repository does not survive the disk of the data directory.
    pub repository_is_local: bool,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
    /// The most that they may become for the sake of archived snapshots.
    pub max_log_bytes: u64,
    /// How long a start would take after a crash now.
    pub restart: Predicted,
    /// How long it would take to restore everything from the repository.
    pub restore: Predicted,
    /// The measurements of this node on which that is based.
    pub measured: Rates,
    /// What the last start did.
    pub recovery: Option<Recovery>,
    /// The partitions, the catalog first.
    pub partitions: Vec<Partition>,
    /// What is wrong, and what to do.
    pub problems: Vec<Wrong>,
    /// When the node started.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[schema(required = false)]
    pub started_at: Option<OffsetDateTime>,
}

/// A time that was predicted.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
pub struct Predicted {
    /// How long.
    pub seconds: f64,
    /// Whether something in it was not measured on this node.
    pub assumed: bool,
}

/// What was measured; absent if nothing was.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
pub struct Rates {
    /// Entries replayed in a second.
    pub replay_entries_per_second: Option<f64>,
    /// Bytes of them.
    pub replay_bytes_per_second: Option<f64>,
    /// Bytes restored in a second, from the repository into the database.
    pub restore_bytes_per_second: Option<f64>,
    /// Seconds of a start that depend on neither.
    pub start_seconds: Option<f64>,
}

/// What the last start did.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Recovery {
    /// Log entries that were replayed.
    pub entries: u64,
    /// Bytes that came from checkpoints and snapshots.
    pub restored_bytes: u64,
    /// Finding, fetching, checking and importing them.
    pub restore_seconds: f64,
    /// Replaying.
    pub replay_seconds: f64,
    /// From the beginning to serving.
    pub total_seconds: f64,
    /// A JSON snapshot of the lineage before a restore that has a newer state store than what was restored: its
    /// name, and where it is.
    #[serde(default)]
    pub newer_state: Option<String>,
    /// What each partition came from, the catalog first.
    pub partitions: Vec<Recovered>,
}

/// What a partition came from at the last start.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Recovered {
    /// The partition.
    pub partition: u64,
    /// Which copy.
    pub source: CopyKind,
    /// The snapshot's directory in the repository, if it came from there.
    pub snapshot: Option<String>,
    /// The last LSN that the copy covered.
    pub lsn: u64,
    /// Log entries that were replayed on it.
    pub replayed: u64,
    /// The LSN after which something may be lost: a new lineage began there.
    pub lost_after: Option<u64>,
}

/// A copy of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CopyKind {
    /// The database.
    Database,
    /// A checkpoint on the node's disk.
    LocalSnapshot,
    /// A snapshot in the repository.
    Repository,
    /// The log alone: it went back to the beginning.
    Log,
    /// A JSON snapshot of the state store; the partition's other streams are lost.
    StateSnapshot,
    /// None: nothing was left of the partition, and it began empty because the operator named it.
    Empty,
}

/// The status of a partition.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Partition {
    /// The partition.
    pub partition: u64,
    /// Role of this node.
    pub role: RoleName,
    /// Who leads it; absent if no leader is known, and on a node that is not in a cluster.
    #[serde(default)]
    pub leader: Option<LeaderName>,
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
    /// What of the log is kept for nodes that are away; absent if nothing is, and on a node that does not lead the
    /// partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_for_absent: Option<KeptForAbsent>,
    /// The newest snapshot in the repository.
    pub newest: Option<Newest>,
    /// The newest snapshot that was restored and compared, since the start.
    pub proven: Option<Proven>,
    /// Snapshots that are retained.
    pub retained: u64,
    /// Snapshots of stale lineages.
    pub abandoned: u64,
    /// The last complete sweep of its repository since the start of the node.
    #[serde(default)]
    pub sweep: Option<Swept>,
    /// Retained snapshots that have a damaged or missing object, which is not repaired.
    #[serde(default)]
    pub damaged: u64,
    /// When all objects of the retained snapshots were last read and compared; absent while they never were.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[schema(required = false)]
    pub scrubbed_at: Option<OffsetDateTime>,
    /// Log entries that the repository does not have.
    pub entries_at_risk: u64,
    /// How long ago the repository had everything that was applied.
    pub seconds_at_risk: u64,
    /// Bytes of the database's files.
    pub database_bytes: u64,
    /// How long this partition's replay would take after a crash now.
    pub restart: Predicted,
    /// How long it would take to restore this partition from the repository.
    pub restore: Predicted,
}

/// The node that leads a partition.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct LeaderName {
    /// Its number.
    pub node: u64,
    /// Its name.
    pub name: String,
}

/// Role of a node in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoleName {
    /// Takes appends.
    Leader,
    /// Follows.
    Follower,
    /// Candidate in an election.
    Candidate,
    /// Follows, and has no vote.
    Learner,
}

/// A snapshot in the repository.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Newest {
    /// Its id.
    pub id: String,
    /// The last LSN that it covers.
    pub lsn: u64,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// How long ago, by the server's clock.
    pub age_seconds: f64,
}

/// Something that is wrong.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Wrong {
    /// Stable, for programs.
    pub code: String,
    /// Whether it is advice: nothing fails, and nothing is newly at risk.
    pub advice: bool,
    /// The partitions that it is about; empty for all.
    pub partitions: Vec<u64>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// Where the node stands: positions, predicted recovery, what is at risk, what is wrong.
///
/// Sends no request to the repository: its state is that of the last attempt.
#[utoipa::path(
    get,
    path = "/esker/v1/status",
    operation_id = "status",
    tag = "status",
    responses(
        (status = 200, description = "Also if something is wrong", body = Status),
        (status = 500, description = "It could not be found out", body = ErrorBody),
        (status = 503, description = "The server is stopping, or reads the status for others", body = ErrorBody),
    )
)]
pub(super) async fn status(
    State(admin): State<Admin>,
    OfClient(client): OfClient,
    access: Access,
) -> Result<Json<Status>, AdminError> {
    let granted = access.admin(Effect::Read)?;
    let node = admin.node.open(&granted).clone();
    let cluster = node.cluster();
    // This accesses files of the databases.
    let read = move || (node.health(), node.recovery_status());
    let (health, status) = admin.status.run(client, read).await?;
    let leaders: Vec<_> = status.partitions.iter().map(|one| one.leader).collect();
    let mut status = Status::new(health, status);
    status.started_at = Some(admin.started_at);
    if let Some(cluster) = cluster {
        status.in_cluster = true;
        let nodes = cluster.nodes();
        let named = |id: u64| {
            let known = nodes.iter().find(|node| node.id == id);
            LeaderName {
                node: id,
                name: known.map_or_else(|| format!("node {id}"), |node| node.name.clone()),
            }
        };
        for (one, leader) in status.partitions.iter_mut().zip(leaders) {
            one.leader = leader.map(named);
        }
    }
    Ok(Json(status))
}

impl Status {
    fn new(health: Result<(), NotReady>, status: NodeStatus) -> Status {
        let recovery = status.recovery.as_ref();
        Status {
            serving: health.is_ok(),
            not_serving: health.err().map(|not_ready| not_ready.why),
            cluster_name: status.cluster_name,
            cluster_id: status.cluster_id,
            node_id: status.node_id,
            in_cluster: false,
            repository: status.repository,
            repository_is_local: status.repository_is_local,
            log_bytes: status.log_bytes,
            max_log_bytes: status.max_log_bytes,
            restart: status.restart.into(),
            restore: status.restore.into(),
            measured: status.measured.into(),
            recovery: recovery.map(Into::into),
            partitions: status.partitions.into_iter().map(Into::into).collect(),
            problems: status.problems.into_iter().map(Into::into).collect(),
            started_at: None,
        }
    }
}

impl From<Prediction> for Predicted {
    fn from(prediction: Prediction) -> Predicted {
        Predicted {
            seconds: prediction.time.as_secs_f64(),
            assumed: prediction.assumed,
        }
    }
}

impl From<Measured> for Rates {
    fn from(measured: Measured) -> Rates {
        Rates {
            replay_entries_per_second: measured.replay_entries,
            replay_bytes_per_second: measured.replay_bytes,
            restore_bytes_per_second: measured.restore_bytes,
            start_seconds: measured.start,
        }
    }
}

impl From<&Arc<RecoveryReport>> for Recovery {
    fn from(report: &Arc<RecoveryReport>) -> Recovery {
        let partitions = report.partitions.iter().map(|one| Recovered {
            partition: one.partition,
            source: match &one.source {
                Source::Database => CopyKind::Database,
                Source::Local(_) => CopyKind::LocalSnapshot,
                Source::Repository(_) => CopyKind::Repository,
                Source::Log => CopyKind::Log,
                Source::State(_) => CopyKind::StateSnapshot,
                Source::Empty => CopyKind::Empty,
            },
            snapshot: match &one.source {
                Source::Repository(dir) => Some(dir.to_string()),
                _ => None,
            },
            lsn: one.lsn,
            replayed: one.replayed,
            lost_after: one.lost_after,
        });
        Recovery {
            entries: report.entries,
            restored_bytes: report.restored_bytes,
            restore_seconds: report.restore.as_secs_f64(),
            replay_seconds: report.replay.as_secs_f64(),
            total_seconds: report.total.as_secs_f64(),
            newer_state: report.newer_state.clone(),
            partitions: partitions.collect(),
        }
    }
}

impl From<PartitionStatus> for Partition {
    fn from(one: PartitionStatus) -> Partition {
        Partition {
            partition: one.partition,
            role: match one.role {
                Role::Leader => RoleName::Leader,
                Role::Follower if !one.votes => RoleName::Learner,
                Role::Follower => RoleName::Follower,
                Role::Candidate => RoleName::Candidate,
            },
            leader: None,
            lineage: one.lineage,
            log_head: one.log_head,
            last: one.last,
            applied: one.applied,
            durable: one.durable,
            floor: one.floor,
            archived: one.archived,
            kept_for_absent: one.kept_for_absent.map(|kept| KeptFor::from(kept).into()),
            newest: one.newest.map(Into::into),
            proven: one.proven.map(Into::into),
            retained: one.retained as u64,
            abandoned: one.abandoned as u64,
            sweep: one.sweep.map(Into::into),
            damaged: one.damaged as u64,
            scrubbed_at: one.scrubbed_at,
            entries_at_risk: one.entries_at_risk,
            seconds_at_risk: one.seconds_at_risk,
            database_bytes: one.database_bytes,
            restart: one.restart.into(),
            restore: one.restore.into(),
        }
    }
}

impl From<SnapshotStatus> for Newest {
    fn from(newest: SnapshotStatus) -> Newest {
        let age = OffsetDateTime::now_utc() - newest.created_at;
        // The clock of another node may be ahead.
        let age = Duration::try_from(age).unwrap_or_default();
        Newest {
            id: newest.id,
            lsn: newest.lsn,
            created_at: newest.created_at,
            age_seconds: age.as_secs_f64(),
        }
    }
}

impl From<Problem> for Wrong {
    fn from(problem: Problem) -> Wrong {
        Wrong {
            code: problem.code.to_owned(),
            advice: problem.is_advice(),
            partitions: problem.partitions,
            what: problem.what,
            remedy: problem.remedy.to_owned(),
        }
    }
}
