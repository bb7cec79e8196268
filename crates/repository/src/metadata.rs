//! `metadata.json`: the description of a snapshot, and the list of its files.
//!
//! The field names are those of Restate's partition snapshots, with additions; fields that Restate does not
//! write are optional here. A description is written once and never changed.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::error::{Error, ParseError};
use crate::ids::{Digest, LineageId, Lsn, PartitionId, SnapshotId};
use crate::layout::{Object, RESTORE_MARKER, SnapshotDir, digest_of_key, is_full_name};

/// Maximum size of a description that is read, in bytes: that of some 150,000 files.
pub const METADATA_BYTES: u64 = 64 << 20;

/// The version of a description whose files are all of one column family.
const VERSION: &str = "V1";
/// The version of a description whose files are of several column families. It is otherwise the same; builds
/// that know only `V1` would import all files into one.
const VERSION_OF_SEVERAL: &str = "V2";

/// A snapshot's description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotMetadata {
    /// `V1`, or `V2` if its files are of several column families.
    pub version: String,
    /// The name of the cluster.
    pub cluster_name: String,
    /// Distinguishes clusters of the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_fingerprint: Option<u64>,
    /// The partition.
    pub partition_id: PartitionId,
    /// The node that created it.
    pub node_name: String,
    /// When it was created, by that node's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Its id.
    pub snapshot_id: SnapshotId,
    /// The partition keys that the partition held.
    pub key_range: KeyRange,
    /// The log behind the partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_id: Option<u32>,
    /// The last position that it is known to cover.
    pub min_applied_lsn: Lsn,
    /// RocksDB's name of the order of its keys.
    pub db_comparator_name: String,
    /// Its files.
    pub files: Vec<FileMetadata>,
    /// The key of every file, by name. Absent for full snapshots: their files are beside the description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_keys: Option<BTreeMap<String, String>>,
    /// The checksum of every file, by name. Snapshots of Restate have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksums: Option<BTreeMap<String, Digest>>,
    /// The lineage that its LSN belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<LineageId>,
    /// The Raft term of its LSN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    /// The Raft membership as of its LSN, in the format of its writer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub membership: Option<Value>,
    /// Number of partitions of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
    /// Number of snapshots in a row, up to this one, that were allowed to reuse objects of the one before; 0
    /// for one that shares no object with earlier ones. Absent if an earlier release has put it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reused_in_a_row: Option<u32>,
    /// All other fields.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A range of partition keys, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// The first key.
    pub start: u64,
    /// The last key.
    pub end: u64,
}

impl KeyRange {
    /// All partition keys.
    pub const ALL: KeyRange = KeyRange {
        start: 0,
        end: u64::MAX,
    };
}

/// One file of a snapshot. All fields but name and size come from RocksDB, and are given back to it by an
/// import.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMetadata {
    /// Its column family.
    #[serde(default)]
    pub column_family_name: String,
    /// `/` and its path below the snapshot's directory, with `/` between segments.
    pub name: String,
    /// Empty: the path on the node that wrote the file is not published.
    #[serde(default)]
    pub directory: String,
    /// Its size, in bytes.
    pub size: u64,
    /// Its level in RocksDB's tree.
    #[serde(default)]
    pub level: i32,
    /// Its first key, in hexadecimal digits.
    #[serde(default)]
    pub start_key: Option<String>,
    /// Its last key, in hexadecimal digits.
    #[serde(default)]
    pub end_key: Option<String>,
    /// The lowest sequence number in it.
    #[serde(default)]
    pub smallest_seqno: u64,
    /// The highest sequence number in it.
    #[serde(default)]
    pub largest_seqno: u64,
    /// Number of its entries.
    #[serde(default)]
    pub num_entries: u64,
    /// Number of its entries that are deletions.
    #[serde(default)]
    pub num_deletions: u64,
    /// All other fields.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl FileMetadata {
    /// A file of which only name and size are known.
    pub fn plain(name: String, size: u64) -> FileMetadata {
        FileMetadata {
            name,
            size,
            ..FileMetadata::default()
        }
    }
}

/// Maximum length of a file's name, in bytes.
pub const NAME_BYTES: usize = 1024;

/// Checks that a file's name is `/` and a path that stays below its directory: no empty segment, no `.` or
/// `..`, no backslash, no control character, at most [`NAME_BYTES`] bytes. The name of a restore's marker
/// is refused as well.
///
/// # Errors
///
/// The rule that the name violates.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let Some(path) = name.strip_prefix('/') else {
        return Err("it does not begin with `/`");
    };
    if name.len() > NAME_BYTES {
        return Err("it is longer than 1,024 bytes");
    }
    if path.chars().any(|c| c.is_control() || c == '\\') {
        return Err("it has a control character or a backslash");
    }
    for segment in path.split('/') {
        match segment {
            "" => return Err("it has an empty segment"),
            "." | ".." => return Err("it has `.` or `..` as a segment"),
            _ => {}
        }
    }
    if path == RESTORE_MARKER {
        return Err("a restore keeps its own notes under this name");
    }
    Ok(())
}

/// Refuses a name that is also a directory of another name: no file system can hold both. The error is that
/// name.
pub(crate) fn check_tree<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<(), &'a str> {
    let names: HashSet<&str> = names.into_iter().collect();
    for name in &names {
        let above = name.match_indices('/').skip(1).map(|(at, _)| &name[..at]);
        if let Some(clash) = above.into_iter().find(|dir| names.contains(dir)) {
            return Err(clash);
        }
    }
    Ok(())
}

/// The kind of a snapshot: where its files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// All files are beside its description.
    Full,
    /// Files are named by their content, and shared among snapshots.
    Incremental,
}

impl SnapshotMetadata {
    /// Parses a description, and checks what can be checked without other objects: its version; that it
    /// describes this directory and partition; that every file has a safe name that no other file has; and
    /// that every file's key is that of a shared file or, in a full snapshot, its name is `<number>.sst`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(
        bytes: &[u8],
        partition: PartitionId,
        dir: &SnapshotDir,
    ) -> Result<SnapshotMetadata, ParseError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("no JSON: {e}"))?;
        match value.get("version").and_then(Value::as_str) {
            Some(VERSION | VERSION_OF_SEVERAL) => {}
            other => {
                return Err(ParseError::of_version(
                    other,
                    &[VERSION, VERSION_OF_SEVERAL],
                ));
            }
        }
        let mut metadata: SnapshotMetadata =
            serde_json::from_value(value).map_err(|e| e.to_string())?;
        // Restate writes an empty map for a full snapshot. A description with checksums is not Restate's:
        // there, an empty map means an incremental snapshot without files.
        if metadata.checksums.is_none() {
            metadata.file_keys = metadata.file_keys.filter(|keys| !keys.is_empty());
        }
        metadata.check(partition, dir)?;
        Ok(metadata)
    }

    fn check(&self, partition: PartitionId, dir: &SnapshotDir) -> Result<(), String> {
        if self.partition_id != partition {
            return Err(format!("it is of partition {}", self.partition_id));
        }
        if self.snapshot_id != dir.id || self.min_applied_lsn != dir.lsn {
            let own = SnapshotDir {
                lsn: self.min_applied_lsn,
                id: self.snapshot_id.clone(),
            };
            return Err(format!("it describes {own}"));
        }
        let mut names = HashMap::with_capacity(self.files.len());
        for (i, file) in self.files.iter().enumerate() {
            let quoted = || file.name.chars().take(100).collect::<String>();
            if let Err(why) = check_name(&file.name) {
                return Err(format!("file {i} is named {:?}: {why}", quoted()));
            }
            if names.insert(file.name.as_str(), ()).is_some() {
                return Err(format!("two files are named {:?}", quoted()));
            }
            if let Some(keys) = &self.file_keys {
                let Some(key) = keys.get(&file.name) else {
                    return Err(format!("no key for {:?}", quoted()));
                };
                if !matches!(Object::of(key), Object::Shared { .. }) {
                    return Err(format!("the key of {:?} is none of ours", quoted()));
                }
                let checksums = self.checksums.as_ref();
                let written = checksums.and_then(|sums| sums.get(&file.name));
                if let (Some(written), Some(named)) = (written, digest_of_key(key))
                    && *written != named
                {
                    return Err(format!(
                        "the key of {:?} is that of another checksum than the one it has",
                        quoted()
                    ));
                }
            } else if !is_full_name(&file.name[1..]) {
                return Err(format!("a full snapshot has no file named {:?}", quoted()));
            }
            if let Some(checksums) = &self.checksums
                && !checksums.contains_key(&file.name)
            {
                return Err(format!("no checksum for {:?}", quoted()));
            }
        }
        if let Err(name) = check_tree(names.into_keys()) {
            return Err(format!("{name:?} is a file and a directory"));
        }
        let mut sizes = self.files.iter().map(|f| f.size);
        let total = sizes.try_fold(0_u64, u64::checked_add);
        if total.is_none() {
            return Err("its files have more bytes than can be counted".to_owned());
        }
        Ok(())
    }

    /// Its directory.
    pub fn dir(&self) -> SnapshotDir {
        SnapshotDir {
            lsn: self.min_applied_lsn,
            id: self.snapshot_id.clone(),
        }
    }

    /// Full or incremental.
    pub fn kind(&self) -> Kind {
        match self.file_keys {
            None => Kind::Full,
            Some(_) => Kind::Incremental,
        }
    }

    /// The key of one of its files.
    pub fn key_of(&self, file: &FileMetadata) -> String {
        self.file_keys
            .as_ref()
            .and_then(|keys| keys.get(&file.name).cloned())
            .unwrap_or_else(|| self.dir().file(&file.name))
    }

    /// The checksum of one of its files, if it is known: from the checksums, or from the file's key.
    pub fn checksum_of(&self, file: &FileMetadata) -> Option<Digest> {
        match &self.checksums {
            Some(checksums) => checksums.get(&file.name).copied(),
            None => digest_of_key(self.file_keys.as_ref()?.get(&file.name)?),
        }
    }

    /// Whether every file has a checksum.
    pub fn has_checksums(&self) -> bool {
        self.files
            .iter()
            .all(|file| self.checksum_of(file).is_some())
    }

    /// Total size of its files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).sum()
    }

    /// The description as JSON.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec_pretty(self)
            .map_err(|e| Error::Invalid(format!("a snapshot's description: {e}")))
    }

    /// The version of a description of these files.
    pub(crate) fn version_of(files: &[FileMetadata]) -> String {
        let mut names = files.iter().map(|file| &file.column_family_name);
        let first = names.next();
        match names.all(|name| Some(name) == first) {
            true => VERSION.to_owned(),
            false => VERSION_OF_SEVERAL.to_owned(),
        }
    }
}
