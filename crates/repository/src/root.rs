//! `latest.json`: the root, the only object of a partition that is ever replaced, and only by
//! compare-and-swap.
//!
//! The root decides what exists: which snapshots are retained, which uploads are under way (*intents*),
//! which snapshots a restore reads (*pins*), and which snapshots of a stale lineage are still kept
//! (*abandoned*). Every swap preserves fields that are unknown here, at every level.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cluster::Cluster;
use crate::error::{Error, ParseError};
use crate::ids::{Generation, IncarnationId, LineageId, Lsn, PartitionId, SnapshotId};
use crate::layout::SnapshotDir;

/// Maximum size of a root that is read, in bytes: that of some 60,000 snapshots.
pub const ROOT_BYTES: u64 = 16 << 20;

/// The version that is written. `V1`, which has no list of retained snapshots, is read as well.
const VERSION: &str = "V2";

/// A root.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Root {
    /// `V2`.
    pub version: String,
    /// The partition.
    pub partition_id: PartitionId,
    /// The log behind the partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_id: Option<u32>,
    /// The name of the cluster.
    #[serde(default)]
    pub cluster_name: String,
    /// Distinguishes clusters of the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_fingerprint: Option<u64>,
    /// The node that created the newest snapshot or, if there is none, the root.
    pub node_name: String,
    /// The newest snapshot. It repeats the first retained one, and is absent if none is retained.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<Newest>,
    /// The retained snapshots, newest LSN first.
    #[serde(default)]
    pub retained_snapshots: Vec<Retained>,
    /// Raised by every swap. Roots of Restate have none; a root without a generation is never written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// The lineage of the retained snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<LineageId>,
    /// Where that lineage branched off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// The incarnation that puts snapshots. Absent if none has claimed the root: earlier releases and
    /// commands have no incarnation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<Writer>,
    /// Snapshots of stale lineages, kept until an operator prunes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub abandoned: Vec<Abandoned>,
    /// Uploads under way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub intents: Vec<Intent>,
    /// Snapshots that restores read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// All other fields.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The newest snapshot, as a root repeats it at its top level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Newest {
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Its id.
    pub snapshot_id: SnapshotId,
    /// The last position that it covers.
    pub min_applied_lsn: Lsn,
    /// Its directory.
    pub path: String,
}

/// A retained snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retained {
    /// Its id.
    pub snapshot_id: SnapshotId,
    /// The last position that it covers.
    pub min_applied_lsn: Lsn,
    /// When it was created, by its node's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Its directory.
    pub path: String,
    /// Its objects that were found damaged or missing, and are not repaired. No upload reuses them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<Mark>,
    /// Number of further such objects, which are not listed. If it is not 0, no upload reuses any object of
    /// this snapshot.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub damaged_further: u64,
    /// All other fields.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// An object of a retained snapshot that was found damaged or missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Mark {
    /// Its key, below the partition.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
    /// When it was found, by the finder's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub found_at: OffsetDateTime,
    /// All other fields.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub extra: Map<String, Value>,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Retained {
    /// Number of its objects that are marked as damaged or missing.
    pub fn count_damaged(&self) -> u64 {
        self.damaged.len() as u64 + self.damaged_further
    }

    /// Its directory, from its id and LSN. [`Root::parse`] has checked that `path` is the same.
    pub fn dir(&self) -> SnapshotDir {
        SnapshotDir {
            lsn: self.min_applied_lsn,
            id: self.snapshot_id.clone(),
        }
    }
}

/// Where a lineage branched off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The lineage that it branched off from.
    pub lineage: LineageId,
    /// The last position that both lineages share.
    pub lsn: Lsn,
    /// All other fields; among them the parent's own parent, and when the lineage was begun.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Name of the extra field with the parent's own parent.
const ITS_PARENT: &str = "parent";
/// Name of the extra field with the time at which the lineage was begun.
const BEGUN_AT: &str = "begun_at";
/// Number of earlier forks that a root remembers beside the newest one.
const ANCESTORS: usize = 15;

impl Parent {
    /// Adds `before`, the fork at which the parent lineage began, and the earlier forks that it remembers,
    /// at most [`ANCESTORS`] in all.
    pub(crate) fn with_ancestors(mut self, before: Option<&Parent>) -> Parent {
        fn cut(parent: &Parent, depth: usize) -> Parent {
            let mut parent = parent.clone();
            match parent.its_parent().filter(|_| depth > 1) {
                Some(next) => parent.remember(&cut(&next, depth - 1)),
                None => {
                    parent.extra.remove(ITS_PARENT);
                }
            }
            parent
        }
        if let Some(before) = before {
            self.remember(&cut(before, ANCESTORS));
        }
        self
    }

    fn remember(&mut self, parent: &Parent) {
        // Numbers and strings always serialize.
        if let Ok(value) = serde_json::to_value(parent) {
            self.extra.insert(ITS_PARENT.to_owned(), value);
        }
    }

    pub(crate) fn begun(mut self, at: OffsetDateTime) -> Parent {
        if let Ok(at) = at.format(&Rfc3339) {
            self.extra.insert(BEGUN_AT.to_owned(), Value::String(at));
        }
        self
    }

    /// When this lineage was begun, by its node's clock.
    pub fn begun_at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::parse(self.extra.get(BEGUN_AT)?.as_str()?, &Rfc3339).ok()
    }

    /// Where the parent lineage branched off, if that is remembered.
    pub fn its_parent(&self) -> Option<Parent> {
        serde_json::from_value(self.extra.get(ITS_PARENT)?.clone()).ok()
    }
}

impl Root {
    /// The lineage and its ancestors, each with the last position of it that belongs to this history.
    pub fn ancestry(&self) -> Vec<(LineageId, Lsn)> {
        let mut all = Vec::new();
        let mut bound = Lsn(u64::MAX);
        all.extend(self.lineage.map(|lineage| (lineage, bound)));
        let mut next = self.parent.clone();
        while let Some(parent) = next {
            bound = bound.min(parent.lsn);
            all.push((parent.lineage, bound));
            next = parent.its_parent();
        }
        all
    }
}

/// The writer of a root: one start of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Writer {
    /// The incarnation that this start of the node has drawn.
    pub incarnation: IncarnationId,
    /// The node's name; for operators.
    pub node_name: String,
    /// When it claimed the root, by its own clock.
    #[serde(with = "time::serde::rfc3339")]
    pub claimed_at: OffsetDateTime,
    /// All other fields.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A snapshot of a stale lineage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Abandoned {
    /// Its lineage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<LineageId>,
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: Retained,
}

/// An upload under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// The ids under which the upload may commit. The last is that of the current attempt.
    pub snapshot_ids: Vec<SnapshotId>,
    /// Part of the key of every object that the upload writes; no other upload has it.
    pub generation: Generation,
    /// The node that uploads.
    pub node_name: String,
    /// The incarnation that registered or continued the intent. Absent if its process has none; then no
    /// upload continues it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<IncarnationId>,
    /// Whether the upload is a repair, which no put continues.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repair: bool,
    /// When the intent was registered or last renewed, by that node's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub renewed_at: OffsetDateTime,
    /// All other fields.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A restore's claim on a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pin {
    /// 32 hexadecimal digits.
    pub id: String,
    /// The snapshot's directory.
    pub path: String,
    /// When it expires, by the clock of the process that pinned it. After that, a sweep may remove it.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// All other fields.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Root {
    /// A root without snapshots.
    pub(crate) fn empty(partition: PartitionId, cluster: &Cluster, generation: Generation) -> Root {
        Root {
            version: VERSION.to_owned(),
            partition_id: partition,
            log_id: None,
            cluster_name: cluster.name.clone(),
            cluster_fingerprint: cluster.fingerprint,
            node_name: cluster.node_name.clone(),
            newest: None,
            retained_snapshots: Vec::new(),
            generation: Some(generation),
            lineage: None,
            parent: None,
            writer: None,
            abandoned: Vec::new(),
            intents: Vec::new(),
            pins: Vec::new(),
            extra: Map::new(),
        }
    }

    /// Parses a root, and checks that it is of this partition and consistent in itself. A root that fails
    /// this is damaged: nothing is concluded from it, and it is never overwritten.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(bytes: &[u8], partition: PartitionId) -> Result<Root, ParseError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("no JSON: {e}"))?;
        let version = value.get("version").and_then(Value::as_str);
        let old = match version {
            Some(VERSION) => false,
            Some("V1") => true,
            other => return Err(ParseError::of_version(other, &["V1", VERSION])),
        };
        let names_newest = value.get("snapshot_id").is_some_and(|id| !id.is_null());
        let mut root: Root = serde_json::from_value(value).map_err(|e| e.to_string())?;
        if names_newest != root.newest.is_some() {
            let why = "its newest snapshot is not described as it should be";
            return Err(why.to_owned().into());
        }
        if !old && root.newest.is_some() && root.retained_snapshots.is_empty() {
            let why = "it names a newest snapshot and retains none";
            return Err(why.to_owned().into());
        }
        if old && root.retained_snapshots.is_empty() {
            root.retained_snapshots
                .extend(root.newest.as_ref().map(|newest| Retained {
                    snapshot_id: newest.snapshot_id.clone(),
                    min_applied_lsn: newest.min_applied_lsn,
                    created_at: newest.created_at,
                    path: newest.path.clone(),
                    damaged: Vec::new(),
                    damaged_further: 0,
                    extra: Map::new(),
                }));
        }
        root.check(partition)?;
        Ok(root)
    }

    fn check(&self, partition: PartitionId) -> Result<(), String> {
        if self.partition_id != partition {
            return Err(format!("it is of partition {}", self.partition_id));
        }
        let abandoned = self.abandoned.iter().map(|a| &a.snapshot);
        for snapshot in self.retained_snapshots.iter().chain(abandoned) {
            if snapshot.path != snapshot.dir().to_string() {
                return Err(format!(
                    "the path of {} is {:?}",
                    snapshot.dir(),
                    snapshot.path.chars().take(100).collect::<String>()
                ));
            }
        }
        for pin in &self.pins {
            if SnapshotDir::parse(&pin.path).is_none() {
                return Err(format!(
                    "a pin's path is {:?}",
                    pin.path.chars().take(100).collect::<String>()
                ));
            }
        }
        let newest_first = self
            .retained_snapshots
            .is_sorted_by(|a, b| a.min_applied_lsn >= b.min_applied_lsn);
        if !newest_first {
            return Err("its retained snapshots are not ordered by LSN".to_owned());
        }
        Ok(())
    }

    /// Directories of all snapshots that must stay: retained, pinned and abandoned, each once, newest
    /// first.
    pub fn kept(&self) -> Vec<SnapshotDir> {
        let retained = self.retained_snapshots.iter();
        let named = retained.chain(self.abandoned.iter().map(|a| &a.snapshot));
        let pinned = self.pins.iter().filter_map(|p| SnapshotDir::parse(&p.path));
        let mut seen = HashSet::new();
        let mut kept: Vec<SnapshotDir> = named
            .map(Retained::dir)
            .chain(pinned)
            .filter(|dir| seen.insert(dir.clone()))
            .collect();
        // The sort is stable: of snapshots of one LSN, the first in the root stays first, because it is the
        // newest.
        kept.sort_by_key(|dir| std::cmp::Reverse(dir.lsn));
        kept
    }

    /// Whether a snapshot is retained.
    pub fn retains(&self, id: &SnapshotId) -> bool {
        self.retained_snapshots.iter().any(|r| r.snapshot_id == *id)
    }

    /// The keys that are marked as damaged or missing, of retained and abandoned snapshots.
    pub(crate) fn marked(&self) -> HashSet<&str> {
        let abandoned = self.abandoned.iter().map(|a| &a.snapshot);
        let all = self.retained_snapshots.iter().chain(abandoned);
        all.flat_map(|snapshot| &snapshot.damaged)
            .map(|mark| mark.key.as_str())
            .collect()
    }

    /// The intent with this generation, if the root has it.
    pub fn intent(&self, generation: Generation) -> Option<&Intent> {
        self.intents.iter().find(|i| i.generation == generation)
    }

    /// Whether an intent may still become this snapshot.
    pub fn intends(&self, id: &SnapshotId) -> bool {
        self.intents.iter().any(|i| i.snapshot_ids.contains(id))
    }

    /// Sorts the retained snapshots, newest LSN first, and repeats the first at the top level. Snapshots of
    /// one LSN keep their order: a new one is inserted at the front, so its own commit does not remove it.
    pub(crate) fn settle(&mut self) {
        VERSION.clone_into(&mut self.version);
        self.retained_snapshots
            .sort_by_key(|r| std::cmp::Reverse(r.min_applied_lsn));
        self.newest = self.retained_snapshots.first().map(|first| Newest {
            created_at: first.created_at,
            snapshot_id: first.snapshot_id.clone(),
            min_applied_lsn: first.min_applied_lsn,
            path: first.path.clone(),
        });
    }

    /// The root as JSON.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec_pretty(self).map_err(|e| Error::Invalid(format!("a root: {e}")))
    }
}
