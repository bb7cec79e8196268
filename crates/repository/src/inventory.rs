//! The content of a partition's repository: its root, and the descriptions of kept snapshots.

use std::collections::HashMap;
use std::sync::Arc;

use futures::stream::{self, StreamExt as _};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::error::Error;
use crate::ids::{LineageId, Lsn, PartitionId, SnapshotId};
use crate::layout::SnapshotDir;
use crate::metadata::{Kind, SnapshotMetadata};
use crate::repository::Repository;
use crate::root::{Intent, Mark, Pin, Root};

/// A partition's repository at one moment.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Inventory {
    /// The partition.
    #[cfg_attr(feature = "openapi", schema(value_type = u16))]
    pub partition: PartitionId,
    /// The cluster that it belongs to.
    pub cluster_name: String,
    /// The generation of its root. Absent if another program wrote the root; then it is never written to.
    pub generation: Option<u64>,
    /// The lineage of its retained snapshots.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub lineage: Option<LineageId>,
    /// Snapshots that must stay, newest LSN first.
    pub snapshots: Vec<KeptSnapshot>,
    /// Uploads under way.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub uploads: Vec<Intent>,
    /// What restores have pinned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub pins: Vec<Pin>,
}

/// A snapshot that must stay.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeptSnapshot {
    /// Its directory.
    pub snapshot: String,
    /// Its id.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub snapshot_id: SnapshotId,
    /// The last position that it covers.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub lsn: Lsn,
    /// Why it is kept; never empty.
    pub states: Vec<State>,
    /// When it was created, by its node's clock.
    #[serde(with = "time::serde::rfc3339::option")]
    pub created_at: Option<OffsetDateTime>,
    /// Full or incremental.
    pub kind: Option<Kind>,
    /// Its files.
    pub files: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
    /// Bytes of the objects that no other kept snapshot has: what is freed when it alone is released. Absent if a
    /// kept snapshot cannot be described, because that may have any of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone_bytes: Option<u64>,
    /// Bytes of the objects that the kept snapshot before it does not have; absent if that cannot be described.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_bytes: Option<u64>,
    /// The node that created it.
    pub node_name: Option<String>,
    /// Its objects that were found damaged or missing, and are not repaired; at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<Mark>,
    /// The lineage that it is left of, if it is of a stale one and that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub stale_lineage: Option<LineageId>,
    /// Why its description cannot be used. The fields that only a description has are absent then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What kind of problem that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem_kind: Option<ProblemKind>,
}

/// Why the description of a kept snapshot cannot be used. One that could not be read now is an error instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// Its bytes break a rule of the format.
    Damaged,
    /// It does not exist.
    Missing,
    /// It is of another cluster.
    OtherCluster,
    /// A later release has written it.
    NewerFormat,
}

/// Why a snapshot is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is the newest retained one.
    Newest,
    /// It is retained.
    Retained,
    /// A restore reads it.
    Pinned,
    /// It is of a stale lineage, and kept until an operator prunes it.
    Abandoned,
}

impl Root {
    /// Why a snapshot is kept; empty if it is not kept.
    pub fn states(&self, dir: &SnapshotDir) -> Vec<State> {
        let mut states = Vec::new();
        match self.retained_snapshots.iter().position(|r| r.dir() == *dir) {
            Some(0) => states.push(State::Newest),
            Some(_) => states.push(State::Retained),
            None => {}
        }
        if self.abandoned.iter().any(|a| a.snapshot.dir() == *dir) {
            states.push(State::Abandoned);
        }
        let path = dir.to_string();
        if self.pins.iter().any(|p| p.path == path) {
            states.push(State::Pinned);
        }
        states
    }
}

impl Repository {
    /// All kept snapshots, and the uploads under way. A description that is damaged or missing is no error:
    /// it is reported in [`KeptSnapshot::problem`].
    pub async fn inventory(&self) -> Result<Inventory, Error> {
        let root = self.root().await?;
        let root = root.root();
        let mut describing = Vec::new();
        for dir in root.kept() {
            describing.push(async move {
                let described = self.describe(&dir).await;
                let metadata = described.as_ref().ok().cloned();
                kept(root, &dir, described).map(|snapshot| (snapshot, metadata))
            });
        }
        let mut snapshots = Vec::with_capacity(describing.len());
        let mut descriptions = Vec::with_capacity(describing.len());
        let mut described = stream::iter(describing).buffered(self.options.parallel_files.max(1));
        while let Some(one) = described.next().await {
            let (snapshot, metadata) = one?;
            snapshots.push(snapshot);
            descriptions.push(metadata);
        }
        drop(described);
        let shares = shares(&descriptions);
        for (snapshot, (alone, new)) in snapshots.iter_mut().zip(shares) {
            (snapshot.alone_bytes, snapshot.new_bytes) = (alone, new);
        }
        Ok(Inventory {
            partition: self.partition(),
            cluster_name: root.cluster_name.clone(),
            generation: root.generation.map(|g| g.0),
            lineage: root.lineage,
            snapshots,
            uploads: root.intents.clone(),
            pins: root.pins.clone(),
        })
    }
}

/// Of each of the snapshots, newest first: the bytes of objects that no other one has, and of those that the one
/// before it does not have. An object is counted once, however many of a snapshot's files have its content.
fn shares(described: &[Option<Arc<SnapshotMetadata>>]) -> Vec<(Option<u64>, Option<u64>)> {
    let objects: Vec<Option<HashMap<String, u64>>> = described
        .iter()
        .map(|metadata| {
            let metadata = metadata.as_ref()?;
            let files = metadata.files.iter();
            Some(files.map(|it| (metadata.key_of(it), it.size)).collect())
        })
        .collect();
    let mut users: HashMap<&str, u32> = HashMap::new();
    for key in objects.iter().flatten().flat_map(HashMap::keys) {
        *users.entry(key).or_default() += 1;
    }
    let all_described = objects.iter().all(Option::is_some);
    let of = |at: usize| {
        let Some(own) = &objects[at] else {
            return (None, None);
        };
        let sum = |is_counted: &dyn Fn(&str) -> bool| {
            let counted = own.iter().filter(|(key, _)| is_counted(key));
            counted.map(|(_, size)| size).sum::<u64>()
        };
        let alone = all_described.then(|| sum(&|key| users.get(key) == Some(&1)));
        let new = match objects.get(at + 1) {
            None => Some(sum(&|_| true)),
            Some(None) => None,
            Some(Some(before)) => Some(sum(&|key| !before.contains_key(key))),
        };
        (alone, new)
    };
    (0..objects.len()).map(of).collect()
}

fn kept(
    root: &Root,
    dir: &SnapshotDir,
    described: Result<Arc<SnapshotMetadata>, Error>,
) -> Result<KeptSnapshot, Error> {
    let named = root.retained_snapshots.iter();
    let named = named.chain(root.abandoned.iter().map(|a| &a.snapshot));
    let mut snapshot = KeptSnapshot {
        snapshot: dir.to_string(),
        snapshot_id: dir.id.clone(),
        lsn: dir.lsn,
        states: root.states(dir),
        created_at: named
            .clone()
            .find(|r| r.dir() == *dir)
            .map(|r| r.created_at),
        kind: None,
        files: None,
        bytes: None,
        alone_bytes: None,
        new_bytes: None,
        node_name: None,
        damaged: named
            .clone()
            .find(|r| r.dir() == *dir)
            .map(|r| r.damaged.clone())
            .unwrap_or_default(),
        stale_lineage: root
            .abandoned
            .iter()
            .find(|a| a.snapshot.dir() == *dir)
            .and_then(|a| a.lineage),
        problem: None,
        problem_kind: None,
    };
    match described {
        Ok(metadata) => {
            snapshot.created_at = Some(metadata.created_at);
            snapshot.kind = Some(metadata.kind());
            snapshot.files = Some(metadata.files.len() as u64);
            snapshot.bytes = Some(metadata.bytes());
            snapshot.node_name = Some(metadata.node_name.clone());
        }
        Err(error) => {
            let kind = match &error {
                Error::OtherCluster { .. } => ProblemKind::OtherCluster,
                Error::NewerFormat { .. } => ProblemKind::NewerFormat,
                Error::Damaged { .. } => ProblemKind::Damaged,
                Error::Missing { .. } => ProblemKind::Missing,
                _ => return Err(error),
            };
            snapshot.problem = Some(error.to_string());
            snapshot.problem_kind = Some(kind);
        }
    }
    Ok(snapshot)
}
