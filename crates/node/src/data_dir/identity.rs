//! The identity of a data directory: `node.json`.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files::{io, is_there, or_absent, sync_dir, write_durably};
use crate::error::StartError;

/// Version of the layout of a data directory, and of everything in it. 1 was never released.
///
/// Format 4 has the batches of streams in segments. A database of format 2 or 3 is read as it is, and its
/// partitions move their batches into segments while they serve.
///
/// Format 5 has what the members of a cluster need: column families that a member's snapshot has replaced, and
/// entries that earlier builds would not apply, or apply otherwise. A directory of format 4 is marked as one of
/// format 5 once a start has passed its checks, and nothing else in it is changed.
pub const FORMAT: u32 = 5;

/// The first format of which a database is opened without a change to it: a database of an earlier one gets column
/// families when it is opened.
pub(crate) const UNCHANGED_SINCE: u32 = 4;

/// The identity of a data directory: the node and the cluster that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the directory's layout, and of everything in it.
    pub format: u32,
    /// The node's id. Never 0.
    pub node_id: u64,
    /// The cluster's id: random, and the same for all nodes of a cluster.
    pub cluster_id: String,
    /// The cluster's name, for display.
    pub cluster_name: String,
    /// Number of stream partitions; the catalog is one more.
    pub partitions: u32,
    /// When it was created, in RFC 3339.
    pub created_at: String,
    /// Whether the node has joined a cluster that there was already.
    #[serde(default, skip_serializing_if = "is_false")]
    pub joined: bool,
    /// Whether other nodes may have replicas of its partitions. Absent until the first other node is added: it is
    /// so then if the node has joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_peers: Option<bool>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

impl Identity {
    /// The identity of the first node of a new cluster.
    pub fn new(cluster_name: &str, partitions: u32) -> Identity {
        Identity {
            format: FORMAT,
            node_id: rand::random_range(1..=u64::from(u32::MAX)),
            cluster_id: uuid::Uuid::new_v4().to_string(),
            cluster_name: cluster_name.to_owned(),
            partitions,
            created_at: now_rfc3339(),
            joined: false,
            has_peers: None,
        }
    }

    /// Whether other nodes may have replicas of its partitions.
    pub fn may_have_peers(&self) -> bool {
        self.has_peers.unwrap_or(self.joined)
    }

    /// The identity of a new node of an existing cluster.
    pub fn of_cluster(cluster_id: &str, cluster_name: &str, partitions: u32) -> Identity {
        Identity {
            cluster_id: cluster_id.to_owned(),
            ..Identity::new(cluster_name, partitions)
        }
    }

    /// Distinguishes clusters of the same name in a repository.
    pub fn fingerprint(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(self.cluster_id.as_bytes())
    }
}

/// Moves local snapshots to where they are since format 3. A crash leaves some of them where they were, and the next
/// start moves the others.
pub(super) fn move_checkpoints(path: &Path) -> Result<(), StartError> {
    // Checkpoints were in `snapshots` up to format 2.
    let (from, to) = (path.join("snapshots"), path.join("checkpoints"));
    let Some(entries) = or_absent(fs::read_dir(&from), &from)? else {
        return Ok(());
    };
    fs::create_dir_all(&to).map_err(io("creating", &to))?;
    for entry in entries {
        let entry = entry.map_err(io("reading", &from))?;
        let name = entry.file_name();
        if name.to_string_lossy().parse::<u64>().is_ok() {
            let there = to.join(&name);
            fs::rename(entry.path(), &there).map_err(io("renaming to", &there))?;
        }
    }
    sync_dir(&to)?;
    sync_dir(&from)?;
    sync_dir(path)
}

/// Reads the identity of a directory; `None` if it has no such file.
pub(super) fn read_identity(dir: &Path, path: &Path) -> Result<Option<Identity>, StartError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let bad = |why: String| StartError::BadIdentity {
        path: path.to_owned(),
        why,
    };
    let text = match fs::read(path) {
        Ok(text) => text,
        // A symlink whose target is missing is not the same as no file.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !is_there(path)? => return Ok(None),
        Err(e) => return Err(StartError::unreadable(path.display().to_string(), &e)),
    };
    let Format { format } =
        serde_json::from_slice(&text).map_err(|e| bad(format!("not an identity: {e}")))?;
    if format > FORMAT {
        return Err(StartError::NewerFormat {
            dir: dir.to_owned(),
            found: format,
            known: FORMAT,
        });
    }
    if format == 1 {
        return Err(StartError::OlderFormat {
            dir: dir.to_owned(),
            found: format,
        });
    }
    let identity: Identity =
        serde_json::from_slice(&text).map_err(|e| bad(format!("not an identity: {e}")))?;
    if identity.format == 0 || identity.node_id == 0 || identity.partitions == 0 {
        return Err(bad(
            "format, node_id and partitions must not be 0".to_owned()
        ));
    }
    Ok(Some(identity))
}

pub(super) fn write_identity(path: &Path, identity: &Identity) -> Result<(), StartError> {
    let text = serde_json::to_string_pretty(identity).map_err(|e| StartError::BadIdentity {
        path: path.to_owned(),
        why: e.to_string(),
    })?;
    // A crash leaves no torn identity: the file is written under another name first.
    write_durably(path, text.as_bytes())
}

pub(crate) fn now_rfc3339() -> String {
    time::OffsetDateTime::now_utc()
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}
