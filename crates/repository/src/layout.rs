//! The layout of a repository: its keys, and which of them a sweep may delete.
//!
//! ```text
//! <destination>/cluster.json                                            whose it is, see [`crate::ownership`]
//! <destination>/<partition>/latest.json                                  the root
//! <destination>/<partition>/lsn_<20 digits>-snap_1<base62>/metadata.json
//! <destination>/<partition>/lsn_<20 digits>-snap_1<base62>/<number>.sst  a file of a full snapshot
//! <destination>/<partition>/ssts/<xxh3-128><generation>.sst              a file of incremental ones
//! ```
//!
//! In this crate a *key* is the part below `<partition>/`. An object whose key matches none of these
//! patterns is foreign and is never touched.

use std::fmt;

use crate::ids::{Digest, Generation, Lsn, PartitionId, SnapshotId};

/// Key of the root.
pub const ROOT: &str = "latest.json";
/// Name of a snapshot's description in its directory.
pub const METADATA: &str = "metadata.json";
/// Directory of the files that snapshots share.
pub const SHARED: &str = "ssts/";
/// The file in a partial directory of a restore that names the snapshot. No file of a snapshot has this
/// name.
pub(crate) const RESTORE_MARKER: &str = ".esker-restore.json";

/// A snapshot's directory: its LSN and id. Sorts by LSN.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotDir {
    /// The last position that it covers.
    pub lsn: Lsn,
    /// Its id.
    pub id: SnapshotId,
}

impl SnapshotDir {
    /// Parses `lsn_<20 digits>-snap_1<base62>`.
    pub fn parse(text: &str) -> Option<SnapshotDir> {
        let rest = text.strip_prefix("lsn_")?;
        let (digits, id) = rest.split_once('-')?;
        if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Some(SnapshotDir {
            lsn: Lsn(digits.parse().ok()?),
            id: id.parse().ok()?,
        })
    }

    /// The key of its description.
    pub fn metadata(&self) -> String {
        format!("{self}/{METADATA}")
    }

    /// The key of a file of a full snapshot, which is named `/<number>.sst`.
    pub fn file(&self, name: &str) -> String {
        format!("{self}/{}", name.trim_start_matches('/'))
    }
}

impl fmt::Display for SnapshotDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lsn_{:020}-{}", self.lsn.0, self.id)
    }
}

/// The key of a shared file: the checksum of its content, and the generation of the upload that wrote it.
pub fn shared_file(digest: Digest, generation: Generation) -> String {
    format!("{SHARED}{digest}{:016x}.sst", generation.0)
}

/// The checksum at the beginning of a shared file's key; `None` if the key has no xxh3-128.
pub fn digest_of_key(key: &str) -> Option<Digest> {
    let hex = key.strip_prefix(SHARED)?.strip_suffix(".sst")?;
    match hex.len() {
        // Restate's keys are a checksum; Esker's have a generation after it.
        32 | 48 => hex.get(..32)?.parse().ok(),
        _ => None,
    }
}

/// What a key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The root.
    Root,
    /// A file that incremental snapshots share. Keys of other programs may have no generation.
    Shared {
        /// The generation of the upload that wrote it.
        generation: Option<Generation>,
    },
    /// A snapshot's description.
    Metadata(SnapshotDir),
    /// A file of a full snapshot.
    File(SnapshotDir),
    /// An object that is not part of a repository.
    Foreign,
}

impl Object {
    /// The object that a key (below `<partition>/`) names.
    pub fn of(key: &str) -> Object {
        if key == ROOT {
            return Object::Root;
        }
        if let Some(name) = key.strip_prefix(SHARED) {
            let Some(hex) = name.strip_suffix(".sst") else {
                return Object::Foreign;
            };
            let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            if hex.is_empty() || !hex.bytes().all(is_hex) {
                return Object::Foreign;
            }
            let generation = (hex.len() == 48)
                .then(|| u64::from_str_radix(&hex[32..], 16).ok())
                .flatten()
                .map(Generation);
            return Object::Shared { generation };
        }
        let Some((dir, name)) = key.split_once('/') else {
            return Object::Foreign;
        };
        let Some(dir) = SnapshotDir::parse(dir) else {
            return Object::Foreign;
        };
        if name == METADATA {
            Object::Metadata(dir)
        } else if is_full_name(name) {
            Object::File(dir)
        } else {
            Object::Foreign
        }
    }
}

/// Whether a full snapshot may have a file of this name: `<number>.sst`.
pub fn is_full_name(name: &str) -> bool {
    name.strip_suffix(".sst")
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The partition of a directory directly below the destination; `None` if it is not a partition's number.
pub fn parse_partition(segment: &str) -> Option<PartitionId> {
    let id = segment.parse().ok()?;
    // Numbers like `007` or `+7` are refused.
    (segment == format!("{id}")).then_some(PartitionId(id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_sweep_may_delete_matches_one_of_three_patterns_and_nothing_else_does() {
        let dir = "lsn_00000000000000000042-snap_1abcXYZ09";
        let digest = Digest::of(b"x");
        let shared = shared_file(digest, Generation(7));
        assert_eq!(
            Object::of(&shared),
            Object::Shared {
                generation: Some(Generation(7))
            }
        );
        assert_eq!(
            Object::of(&format!("ssts/{digest}.sst")),
            Object::Shared { generation: None }
        );
        let parsed = SnapshotDir::parse(dir).unwrap();
        assert_eq!(parsed.to_string(), dir);
        assert_eq!(
            Object::of(&parsed.metadata()),
            Object::Metadata(parsed.clone())
        );
        assert_eq!(
            Object::of(&parsed.file("/000028.sst")),
            Object::File(parsed)
        );
        for foreign in [
            "latest.json.bak".to_owned(),
            "readme".to_owned(),
            format!("ssts/{digest}.sst.tmp"),
            "ssts/.sst".to_owned(),
            "ssts/ABCDEF.sst".to_owned(),
            "ssts/sub/00.sst".to_owned(),
            format!("{dir}/notes.txt"),
            format!("{dir}/metadata.json.bak"),
            format!("{dir}/sub/metadata.json"),
            format!("{dir}/12a.sst"),
            format!("{dir}/.sst"),
            format!("x{dir}/metadata.json"),
            "lsn_42-snap_1abc/metadata.json".to_owned(),
            "lsn_00000000000000000042-snap_2abc/metadata.json".to_owned(),
            "lsn_99999999999999999999-snap_1abc/metadata.json".to_owned(),
        ] {
            assert_eq!(Object::of(&foreign), Object::Foreign, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn any_key_has_an_answer(key in ".{0,90}") {
            let _ = Object::of(&key);
        }
    }
}
