//! What was decided about a restore that may lose something.
//!
//! It is written down before anything is done, so that the start after a crash continues in the same way:
//! the same lineage is begun, after the same LSN, and the operator need not accept the loss again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use esker_partition::LineageId;
use serde::{Deserialize, Serialize};

use crate::data_dir::{sync_dir, write_durably};
use crate::error::StartError;

/// A restore under way: `restore.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Whether the directory was empty: everything comes from the repository.
    #[serde(default)]
    pub everything: bool,
    /// Whether the log was found to be cut: of no partition it is known then that the log has everything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log_is_cut: bool,
    /// The lineages that are begun, by partition.
    #[serde(default)]
    pub forks: BTreeMap<u64, PlannedFork>,
    /// Those of these partitions in which the rest of the log is applied after the lineage has begun.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub replays_log: BTreeSet<u64>,
}

/// A lineage that is begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlannedFork {
    /// Its id, in hexadecimal digits.
    pub lineage: String,
    /// The id of the lineage that it branches off from.
    pub parent: String,
    /// The last LSN that both share.
    pub lsn: u64,
    /// Forks between the copy that it continues from and the parent, of which no snapshot is left.
    #[serde(default)]
    pub skipped: u64,
    /// The lineages that those forks began, oldest first, but for the parent; empty if an earlier build
    /// decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub between: Vec<String>,
    /// Whether the partition begins empty, because nothing of it is left and the operator named it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty: bool,
}

impl PlannedFork {
    pub fn id(&self) -> Option<LineageId> {
        parse(&self.lineage)
    }

    pub fn parent(&self) -> Option<LineageId> {
        parse(&self.parent)
    }

    pub fn between(&self) -> Option<Vec<LineageId>> {
        self.between.iter().map(|digits| parse(digits)).collect()
    }
}

fn parse(digits: &str) -> Option<LineageId> {
    u128::from_str_radix(digits, 16).ok().map(LineageId)
}

impl Plan {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("restore.json")
    }

    /// The restore that is under way, if one is.
    pub fn read(data_dir: &Path) -> Result<Option<Plan>, StartError> {
        let path = Plan::path(data_dir);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(StartError::Io {
                    operation: "reading",
                    path,
                    source,
                });
            }
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| StartError::BadIdentity {
                path,
                why: format!("not a plan of a restore: {e}"),
            })
    }

    /// Writes it down. Durable when this returns.
    pub fn write(&self, data_dir: &Path) -> Result<(), StartError> {
        let path = Plan::path(data_dir);
        let text = serde_json::to_vec_pretty(self).map_err(|e| StartError::BadIdentity {
            path: path.clone(),
            why: e.to_string(),
        })?;
        write_durably(&path, &text)
    }

    /// Removes it, once the restore is complete.
    pub fn remove(data_dir: &Path) -> Result<(), StartError> {
        let path = Plan::path(data_dir);
        match std::fs::remove_file(&path) {
            Ok(()) => sync_dir(data_dir),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(StartError::Io {
                operation: "removing",
                path,
                source,
            }),
        }
    }
}
