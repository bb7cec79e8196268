//! `/partitions/{partition}`: the snapshots of a partition.

use std::num::NonZeroU32;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use esker_node::{
    CreatedSnapshot, Diff, Inventory, Proof, PruneOptions, PrunePlan, Pruned, RepositoryError,
    SharedFile, SnapshotMetadata, SweepStatus, Verification, Why,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use super::error::Failures;
use super::request::{Body, InPath, InQuery, ReadNode, WriteNode, page_limit};
use super::{Admin, AdminError};
use crate::client::OfClient;

/// The name that means the newest retained snapshot.
pub const NEWEST: &str = "newest";

/// A snapshot that was put.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Created {
    /// The partition.
    pub partition: u64,
    /// Its directory in the repository: LSN and id.
    pub snapshot: String,
    /// The last LSN that it covers.
    pub lsn: u64,
    /// LSN of the oldest retained snapshot: the log is kept from there on.
    pub archived_lsn: u64,
    /// Its files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that had to be uploaded; the others were there.
    pub bytes_uploaded: u64,
    /// How long it took.
    pub seconds: f64,
}

impl From<CreatedSnapshot> for Created {
    fn from(created: CreatedSnapshot) -> Created {
        Created {
            partition: created.partition,
            snapshot: created.snapshot,
            lsn: created.lsn,
            archived_lsn: created.archived_lsn,
            files: created.files,
            bytes: created.bytes,
            bytes_uploaded: created.bytes_uploaded,
            seconds: created.took.as_secs_f64(),
        }
    }
}

/// A snapshot, as the repository describes it.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Described {
    /// The repository's URL.
    pub repository: String,
    /// The partition.
    pub partition: u64,
    /// Its directory: LSN and id.
    pub snapshot: String,
    /// Why it stays; never empty.
    pub states: Vec<esker_node::State>,
    /// Full or incremental.
    pub kind: esker_node::SnapshotKind,
    /// Its files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// `metadata.json`, as it is in the repository.
    #[schema(value_type = Object)]
    pub metadata: SnapshotMetadata,
}

/// A snapshot that was restored, brought up to date, and found equal to the live partition.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Proven {
    /// The partition.
    pub partition: u64,
    /// The snapshot's directory: LSN and id.
    pub snapshot: String,
    /// The last LSN that it covers.
    pub lsn: u64,
    /// The LSN at which both were compared.
    pub compared_at: u64,
    /// The digest of both, in hexadecimal digits.
    pub digest: String,
    /// Bytes restored.
    pub bytes: u64,
    /// Log entries replayed.
    pub replayed: u64,
    /// Fetching, checking and importing.
    pub restore_seconds: f64,
    /// Replaying.
    pub replay_seconds: f64,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

impl From<Proof> for Proven {
    fn from(proof: Proof) -> Proven {
        Proven {
            partition: proof.partition,
            snapshot: proof.snapshot,
            lsn: proof.lsn,
            compared_at: proof.compared_at,
            digest: proof.digest,
            bytes: proof.bytes,
            replayed: proof.replayed,
            restore_seconds: proof.restore.as_secs_f64(),
            replay_seconds: proof.replay.as_secs_f64(),
            at: proof.at,
        }
    }
}

/// What to verify.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Verify {
    /// Also read and hash every byte.
    pub data: bool,
    /// Repair what is damaged or missing: upload it again from a local file with the same bytes, or mark it.
    pub repair: bool,
}

/// What to prune.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Prune {
    /// Delete; otherwise only the plan is answered.
    pub apply: bool,
    /// Delete only while the root is at this generation, which the plan names. Needed to release
    /// snapshots.
    pub generation: Option<u64>,
    /// Release all but this many of the newest retained snapshots.
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub keep: Option<NonZeroU32>,
    /// Release the snapshots that forks have abandoned.
    pub abandoned: bool,
    /// Keep younger objects, seconds; the server's `orphan-min-age`, if it is absent.
    #[schema(minimum = 0)]
    pub min_age_seconds: Option<f64>,
}

/// What would be deleted, or was.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PruneAnswer {
    /// What would be deleted.
    Plan(PrunePlan),
    /// What was deleted.
    Done(Pruned),
}

/// Which object.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    /// The object's key below the partition, or its URL.
    key: String,
}

/// What the repository keeps of a partition, and the uploads under way.
#[utoipa::path(
    get,
    path = "/esker/v1/partitions/{partition}/snapshots",
    operation_id = "list_snapshots",
    tag = "snapshots",
    params(("partition" = u64, Path, description = "The partition; 0 is the catalog")),
    responses((status = 200, description = "Newest LSN first", body = Inventory), Failures)
)]
pub(super) async fn list(
    State(admin): State<Admin>,
    ReadNode(node): ReadNode,
    OfClient(client): OfClient,
    InPath(partition): InPath<u64>,
) -> Result<Json<Inventory>, AdminError> {
    let read = async move { node.snapshots(partition).await };
    Ok(Json(admin.repository.run_async(client, read).await?))
}

/// Put a snapshot of a partition into the repository now, and wait for it.
///
/// It covers everything applied before. A request that arrives while one is being put gets the next one.
#[utoipa::path(
    post,
    path = "/esker/v1/partitions/{partition}/snapshots",
    operation_id = "create_snapshot",
    tag = "snapshots",
    params(("partition" = u64, Path, description = "The partition; 0 is the catalog")),
    responses((status = 200, description = "It is retained", body = Created), Failures)
)]
pub(super) async fn create(
    WriteNode(node): WriteNode,
    InPath(partition): InPath<u64>,
) -> Result<Json<Created>, AdminError> {
    Ok(Json(node.create_snapshot(partition).await?.into()))
}

/// One snapshot and its files.
#[utoipa::path(
    get,
    path = "/esker/v1/partitions/{partition}/snapshots/{snapshot}",
    operation_id = "show_snapshot",
    tag = "snapshots",
    params(
        ("partition" = u64, Path, description = "The partition; 0 is the catalog"),
        ("snapshot" = String, Path, description = "Its id, its directory's name, its LSN, or `newest`"),
    ),
    responses((status = 200, description = "Its description", body = Described), Failures)
)]
pub(super) async fn show(
    State(admin): State<Admin>,
    ReadNode(node): ReadNode,
    OfClient(client): OfClient,
    InPath((partition, name)): InPath<(u64, String)>,
) -> Result<Json<Described>, AdminError> {
    let repository = node.repository_url().to_owned();
    let read = async move { node.describe_snapshot(partition, named(&name)).await };
    let found = admin.repository.run_async(client, read).await?;
    Ok(Json(Described {
        repository,
        partition,
        snapshot: found.snapshot,
        states: found.states,
        kind: found.metadata.kind(),
        files: found.metadata.files.len() as u64,
        bytes: found.metadata.bytes(),
        metadata: (*found.metadata).clone(),
    }))
}

/// Some files of a snapshot, and who shares them.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct SnapshotFiles {
    /// The repository's URL.
    pub repository: String,
    /// The partition.
    pub partition: u64,
    /// The snapshot's directory: LSN and id.
    pub snapshot: String,
    /// Its id.
    pub snapshot_id: String,
    /// The last LSN that it covers.
    pub lsn: u64,
    /// Why it stays; never empty.
    pub states: Vec<esker_node::State>,
    /// Full or incremental.
    pub kind: esker_node::SnapshotKind,
    /// When it was created, by its node's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The node that created it.
    pub node_name: String,
    /// The history that it is of.
    pub lineage: Option<String>,
    /// All of its files.
    pub total_files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The files of this page, in the order of the description.
    pub files: Vec<SharedFile>,
    /// How many files come before the next page; absent if there is none.
    pub next: Option<u64>,
    /// Other kept snapshots whose description cannot be used. They may share files, too.
    pub undescribed: Vec<String>,
}

/// What the sweeps of a partition's repository have found.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Sweeps {
    /// The last complete one since the start of the node; absent if there was none, or it is turned off.
    pub last: Option<Swept>,
}

/// What a sweep has found: it deletes objects that nothing refers to.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Swept {
    /// When it ended.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Objects that were there, with what it has deleted.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Orphans that it has deleted.
    pub deleted: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Orphans that could not be deleted; the next sweep tries again.
    pub failed: u64,
    /// Orphans that are too young to be deleted.
    pub young: u64,
    /// Their bytes.
    pub young_bytes: u64,
    /// Objects that are none of a repository; they are never deleted.
    pub foreign: u64,
    /// Uploads that had given up: their intents were removed.
    pub fenced: u64,
    /// Pins that had expired, and were removed.
    pub unpinned: u64,
}

impl From<SweepStatus> for Swept {
    fn from(status: SweepStatus) -> Swept {
        let found = status.found;
        Swept {
            at: status.at,
            objects: found.listed,
            bytes: found.listed_bytes,
            deleted: found.deleted,
            deleted_bytes: found.bytes,
            failed: found.failed,
            young: found.young,
            young_bytes: found.young_bytes,
            foreign: found.foreign,
            fenced: found.fenced,
            unpinned: found.unpinned,
        }
    }
}

/// Which files.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichFiles {
    /// How many files to leave out at the beginning; 0 by default.
    #[serde(default)]
    skip: usize,
    /// Most files to return, 1 to 1000; 100 by default.
    limit: Option<usize>,
}

/// The files of a snapshot, page by page, and which other kept snapshots share each.
#[utoipa::path(
    get,
    path = "/esker/v1/partitions/{partition}/snapshots/{snapshot}/files",
    operation_id = "snapshot_files",
    tag = "snapshots",
    params(
        ("partition" = u64, Path, description = "The partition; 0 is the catalog"),
        ("snapshot" = String, Path, description = "Its id, its directory's name, its LSN, or `newest`"),
        WhichFiles
    ),
    responses((status = 200, description = "A page", body = SnapshotFiles), Failures)
)]
pub(super) async fn files(
    State(admin): State<Admin>,
    ReadNode(node): ReadNode,
    OfClient(client): OfClient,
    InPath((partition, name)): InPath<(u64, String)>,
    InQuery(which): InQuery<WhichFiles>,
) -> Result<Json<SnapshotFiles>, AdminError> {
    let limit = page_limit(which.limit)?;
    let repository = node.repository_url().to_owned();
    let read = async move {
        let found = node.snapshot_files(partition, named(&name), which.skip, limit);
        found.await
    };
    let found = admin.repository.run_async(client, read).await?;
    let metadata = &found.described.metadata;
    Ok(Json(SnapshotFiles {
        repository,
        partition,
        snapshot: found.described.snapshot,
        snapshot_id: metadata.snapshot_id.to_string(),
        lsn: metadata.min_applied_lsn.0,
        states: found.described.states,
        kind: metadata.kind(),
        created_at: metadata.created_at,
        node_name: metadata.node_name.clone(),
        lineage: metadata.lineage.map(|it| it.to_string()),
        total_files: metadata.files.len() as u64,
        bytes: metadata.bytes(),
        files: found.page.files,
        next: found.page.next,
        undescribed: found.page.undescribed,
    }))
}

/// What the last sweep of a partition's repository has found and deleted.
#[utoipa::path(
    get,
    path = "/esker/v1/partitions/{partition}/sweep",
    operation_id = "last_sweep",
    tag = "snapshots",
    params(("partition" = u64, Path, description = "The partition; 0 is the catalog")),
    responses((status = 200, description = "Of this start of the node", body = Sweeps), Failures)
)]
pub(super) async fn last_sweep(
    ReadNode(node): ReadNode,
    InPath(partition): InPath<u64>,
) -> Result<Json<Sweeps>, AdminError> {
    let last = node.last_sweep(partition)?;
    Ok(Json(Sweeps {
        last: last.map(Swept::from),
    }))
}

/// How two snapshots differ, by files.
#[utoipa::path(
    get,
    path = "/esker/v1/partitions/{partition}/snapshots/{old}/diff/{new}",
    operation_id = "diff_snapshots",
    tag = "snapshots",
    params(
        ("partition" = u64, Path, description = "The partition; 0 is the catalog"),
        ("old" = String, Path, description = "The one: an id, a directory's name or an LSN"),
        ("new" = String, Path, description = "The other"),
    ),
    responses((status = 200, description = "By checksum", body = Diff), Failures)
)]
pub(super) async fn diff(
    State(admin): State<Admin>,
    ReadNode(node): ReadNode,
    OfClient(client): OfClient,
    InPath((partition, old, new)): InPath<(u64, String, String)>,
) -> Result<Json<Diff>, AdminError> {
    let read = async move { node.diff_snapshots(partition, &old, &new).await };
    Ok(Json(admin.repository.run_async(client, read).await?))
}

/// Whether everything is there that the kept snapshots need.
///
/// What is damaged is in the answer, which is a success all the same.
#[utoipa::path(
    post,
    path = "/esker/v1/partitions/{partition}/snapshots/verify",
    operation_id = "verify_snapshots",
    tag = "snapshots",
    params(("partition" = u64, Path, description = "The partition; 0 is the catalog")),
    request_body = Verify,
    responses((status = 200, description = "What was found", body = Verification), Failures)
)]
pub(super) async fn verify(
    State(admin): State<Admin>,
    WriteNode(node): WriteNode,
    OfClient(client): OfClient,
    InPath(partition): InPath<u64>,
    Body(Verify { data, repair }): Body<Verify>,
) -> Result<Json<Verification>, AdminError> {
    let work = async move { Ok(node.verify_snapshots(partition, data, repair).await?) };
    Ok(Json(admin.long.run(client, partition, work).await?))
}

/// Restore a snapshot into a scratch directory, replay what came after it, and compare it with the live
/// partition.
#[utoipa::path(
    post,
    path = "/esker/v1/partitions/{partition}/snapshots/{snapshot}/prove",
    operation_id = "prove_snapshot",
    tag = "snapshots",
    params(
        ("partition" = u64, Path, description = "The partition; 0 is the catalog"),
        ("snapshot" = String, Path, description = "Its id, its directory's name, its LSN, or `newest`"),
    ),
    responses((status = 200, description = "It was found equal", body = Proven), Failures)
)]
pub(super) async fn prove(
    State(admin): State<Admin>,
    WriteNode(node): WriteNode,
    OfClient(client): OfClient,
    InPath((partition, name)): InPath<(u64, String)>,
) -> Result<Json<Proven>, AdminError> {
    let work = async move {
        let proof = node.prove_snapshot(partition, named(&name)).await;
        proof.map_err(AdminError::of_proof)
    };
    Ok(Json(admin.long.run(client, partition, work).await?.into()))
}

/// What keeps an object in the repository, or why it will be deleted.
#[utoipa::path(
    get,
    path = "/esker/v1/partitions/{partition}/objects/why",
    operation_id = "why",
    tag = "snapshots",
    params(("partition" = u64, Path, description = "The partition; 0 is the catalog"), Key),
    responses((status = 200, description = "The whole chain", body = Why), Failures)
)]
pub(super) async fn why(
    State(admin): State<Admin>,
    ReadNode(node): ReadNode,
    OfClient(client): OfClient,
    InPath(partition): InPath<u64>,
    InQuery(Key { key }): InQuery<Key>,
) -> Result<Json<Why>, AdminError> {
    let read = async move { node.why(partition, &key).await };
    Ok(Json(admin.repository.run_async(client, read).await?))
}

/// Delete what no kept snapshot needs, or list it.
///
/// With a generation, nothing is deleted if the repository has changed since the plan that named it;
/// objects that were too young for that plan may be deleted as well.
#[utoipa::path(
    post,
    path = "/esker/v1/partitions/{partition}/prune",
    operation_id = "prune",
    tag = "snapshots",
    params(("partition" = u64, Path, description = "The partition; 0 is the catalog")),
    request_body = Prune,
    responses((status = 200, description = "The plan, or what was done", body = PruneAnswer), Failures)
)]
pub(super) async fn prune(
    State(admin): State<Admin>,
    WriteNode(node): WriteNode,
    OfClient(client): OfClient,
    InPath(partition): InPath<u64>,
    Body(asked): Body<Prune>,
) -> Result<Json<PruneAnswer>, AdminError> {
    let min_age = asked.min_age_seconds.map(Duration::try_from_secs_f64);
    let min_age = min_age.transpose().map_err(|_| {
        AdminError::invalid("min_age_seconds is no number of seconds that could be waited for")
    })?;
    if asked.apply && asked.generation.is_none() && (asked.keep.is_some() || asked.abandoned) {
        return Err(AdminError::invalid(
            "releasing snapshots takes the generation of the plan that names them: \
             ask with \"apply\": false first",
        ));
    }
    let options = PruneOptions {
        min_age,
        keep: asked.keep,
        abandoned: asked.abandoned,
    };
    let work = async move {
        let plan = node.plan_prune(partition, &options).await?;
        if !asked.apply {
            return Ok(PruneAnswer::Plan(plan));
        }
        if let Some(planned) = asked.generation.filter(|g| *g != plan.generation.0) {
            let actual = plan.generation.0;
            let moved = RepositoryError::RootMoved { planned, actual };
            return Err(esker_node::Error::from(moved).into());
        }
        Ok(PruneAnswer::Done(node.prune(partition, &plan).await?))
    };
    Ok(Json(admin.long.run(client, partition, work).await?))
}

/// The name of a snapshot; `None` for the newest.
fn named(name: &str) -> Option<&str> {
    (name != NEWEST).then_some(name)
}
