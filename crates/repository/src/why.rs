//! Why an object is kept or deleted, and how two snapshots differ.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{Generation, Lsn};
use crate::layout::{Object, ROOT, SnapshotDir};
use crate::repository::Repository;
use crate::store::{Listed, Store};
use crate::sweep::{ObjectStatus, OrphanClassifier, OrphanReason};

/// Why an object is kept or deleted.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Why {
    /// The object's key, below the partition.
    pub key: String,
    /// Its bytes; absent if there is no such object.
    pub size: Option<u64>,
    /// Whether it stays or is deleted.
    pub verdict: Verdict,
    /// Everything that keeps it.
    pub kept_by: Vec<Holder>,
}

/// Whether an object is kept or deleted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// It is the root.
    Root,
    /// It does not belong to a snapshot, and is never deleted.
    Foreign,
    /// It is kept; see `kept_by`.
    Kept,
    /// Nothing refers to it; a sweep deletes it once it is old enough.
    TooYoung {
        /// Why it will be deleted.
        why: OrphanReason,
        /// Seconds until a sweep may delete it.
        seconds_left: u64,
    },
    /// Nothing refers to it; the next sweep deletes it.
    #[serde(rename = "condemned")]
    Orphan {
        /// Why it is deleted.
        why: OrphanReason,
    },
    /// There is no such object, and nothing refers to it.
    Absent,
    /// There is no such object, but something refers to it: see `kept_by`.
    Lost,
}

/// What keeps an object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum Holder {
    /// A retained snapshot.
    Retained {
        /// Its directory.
        snapshot: String,
        /// The files of it whose content is this object.
        files: Vec<String>,
    },
    /// A pinned snapshot.
    Pinned {
        /// Its directory.
        snapshot: String,
        /// The pin.
        pin: String,
        /// The files of it whose content is this object.
        files: Vec<String>,
    },
    /// A snapshot of a stale lineage.
    Abandoned {
        /// Its directory.
        snapshot: String,
        /// The files of it whose content is this object.
        files: Vec<String>,
    },
    /// An upload under way.
    Intent {
        /// Its generation.
        #[cfg_attr(feature = "openapi", schema(value_type = u64))]
        generation: Generation,
        /// The node that uploads.
        node_name: String,
    },
}

impl Repository {
    /// Finds what keeps an object, or why it is deleted. `key` is below the partition, or a whole URL.
    pub async fn why(&self, key: &str) -> Result<Why, Error> {
        let store = self.store.operation();
        let base = self.display_url("");
        let key = key.strip_prefix(&base).unwrap_or(key).to_owned();
        // Before the root is read, as a sweep does it.
        let found = match Object::of(&key) {
            Object::Foreign => find_in_list(&store, &key).await?,
            // The key of an object of a repository means one object; a list of all could be long.
            _ => store.look_up(&key).await?,
        };
        let root = self.read_root(&store).await?;
        let (root, refs) = self.refs_of_now(&store, root).await?;
        let mut kept_by = Vec::new();
        let files_in = async |dir: &SnapshotDir| -> Result<Option<Vec<String>>, Error> {
            let metadata = self.read_description(&store, dir).await?;
            let files: Vec<String> = metadata
                .files
                .iter()
                .filter(|f| metadata.key_of(f) == key)
                .map(|f| f.name.clone())
                .collect();
            Ok((!files.is_empty() || dir.metadata() == key).then_some(files))
        };
        for retained in &root.retained_snapshots {
            if let Some(files) = files_in(&retained.dir()).await? {
                let snapshot = retained.path.clone();
                kept_by.push(Holder::Retained { snapshot, files });
            }
        }
        for pin in &root.pins {
            if let Some(dir) = SnapshotDir::parse(&pin.path)
                && let Some(files) = files_in(&dir).await?
            {
                let (snapshot, pin) = (pin.path.clone(), pin.id.clone());
                kept_by.push(Holder::Pinned {
                    snapshot,
                    pin,
                    files,
                });
            }
        }
        for abandoned in &root.abandoned {
            if let Some(files) = files_in(&abandoned.snapshot.dir()).await? {
                let snapshot = abandoned.snapshot.path.clone();
                kept_by.push(Holder::Abandoned { snapshot, files });
            }
        }
        let classifier = OrphanClassifier {
            root: &root,
            refs: &refs,
            now: store.env().now_for_ages(),
            min_age: self.options.orphan_min_age,
        };
        let size = found.as_ref().map(|o| o.size);
        let verdict = match &found {
            None if key == ROOT || kept_by.is_empty() => Verdict::Absent,
            None => Verdict::Lost,
            Some(object) => match classifier.classify(object) {
                ObjectStatus::Root => Verdict::Root,
                ObjectStatus::Foreign => Verdict::Foreign,
                ObjectStatus::Referenced => Verdict::Kept,
                ObjectStatus::Intended(generation) => {
                    if let Some(intent) = root.intent(generation) {
                        kept_by.push(Holder::Intent {
                            generation,
                            node_name: intent.node_name.clone(),
                        });
                    }
                    Verdict::Kept
                }
                ObjectStatus::Orphan(why) => Verdict::Orphan { why },
                ObjectStatus::Young(why) => {
                    let now_ms = classifier.now.unix_timestamp_nanos() / 1_000_000;
                    let age_ms = now_ms - i128::from(object.modified_ms);
                    let least_ms =
                        i128::try_from(classifier.min_age.as_millis()).unwrap_or(i128::MAX);
                    let left = least_ms.saturating_sub(age_ms) / 1000;
                    Verdict::TooYoung {
                        why,
                        seconds_left: u64::try_from(left).unwrap_or(0),
                    }
                }
            },
        };
        Ok(Why {
            key,
            size,
            verdict,
            kept_by,
        })
    }

    /// Compares the files of two snapshots.
    pub async fn diff(&self, old: &SnapshotDir, new: &SnapshotDir) -> Result<Diff, Error> {
        let store = self.store.operation();
        let old = self.read_description(&store, old).await?;
        let new = self.read_description(&store, new).await?;
        let mut diff = Diff {
            old: old.dir().to_string(),
            new: new.dir().to_string(),
            old_lsn: old.min_applied_lsn,
            new_lsn: new.min_applied_lsn,
            ..Diff::default()
        };
        let mut before: BTreeMap<&str, _> =
            old.files.iter().map(|f| (f.name.as_str(), f)).collect();
        for file in &new.files {
            let Some(was) = before.remove(file.name.as_str()) else {
                diff.added.push(FileSize::of(&file.name, file.size));
                diff.added_bytes += file.size;
                continue;
            };
            let same = match (old.checksum_of(was), new.checksum_of(file)) {
                (Some(a), Some(b)) => a == b && was.size == file.size,
                // Without checksums, files of the same object have the same content.
                _ => old.key_of(was) == new.key_of(file),
            };
            if same {
                diff.same += 1;
                diff.same_bytes += file.size;
            } else {
                diff.changed.push(FileSize::of(&file.name, file.size));
                diff.changed_bytes += file.size;
            }
        }
        for file in before.into_values() {
            diff.removed.push(FileSize::of(&file.name, file.size));
            diff.removed_bytes += file.size;
        }
        Ok(diff)
    }
}

async fn find_in_list(store: &Store, key: &str) -> Result<Option<Listed>, Error> {
    let mut listed = store.list();
    while let Some(object) = listed.next().await {
        let object = object?;
        if object.key == key {
            return Ok(Some(object));
        }
    }
    Ok(None)
}

/// The differences between two snapshots, by files.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Diff {
    /// The directory of the old snapshot.
    pub old: String,
    /// The directory of the new snapshot.
    pub new: String,
    /// The last position that the old one covers.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub old_lsn: Lsn,
    /// The last position that the new one covers.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub new_lsn: Lsn,
    /// Files only in the new one.
    pub added: Vec<FileSize>,
    /// Files only in the old one.
    pub removed: Vec<FileSize>,
    /// Files in both, with different bytes; sizes are those in the new one.
    pub changed: Vec<FileSize>,
    /// Files with the same bytes in both.
    pub same: u64,
    /// Bytes of `added`.
    pub added_bytes: u64,
    /// Bytes of `removed`.
    pub removed_bytes: u64,
    /// Bytes of `changed`.
    pub changed_bytes: u64,
    /// Bytes of the files with the same bytes.
    pub same_bytes: u64,
}

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileSize {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub size: u64,
}

impl FileSize {
    fn of(name: &str, size: u64) -> FileSize {
        FileSize {
            name: name.to_owned(),
            size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_for_a_verdict_stay_what_they_are() {
        let word = |verdict: Verdict| {
            let json = serde_json::to_value(verdict).unwrap();
            json["verdict"].as_str().unwrap().to_owned()
        };
        let why = OrphanReason::UnreferencedFile;
        let young = Verdict::TooYoung {
            why,
            seconds_left: 1,
        };
        let words = [
            (Verdict::Root, "root"),
            (Verdict::Foreign, "foreign"),
            (Verdict::Kept, "kept"),
            (young, "too-young"),
            (Verdict::Orphan { why }, "condemned"),
            (Verdict::Absent, "absent"),
            (Verdict::Lost, "lost"),
        ];
        for (verdict, expected) in words {
            assert_eq!(word(verdict), expected);
        }
        assert_eq!(serde_json::to_value(why).unwrap(), "unreferenced-file");
    }
}
