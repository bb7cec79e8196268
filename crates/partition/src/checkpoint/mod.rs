//! Checkpoints: a partition's files as of one moment, and the LSN that they cover.
//!
//! ```text
//! <checkpoints>/<partition>/lsn_<020>/checkpoint.json    what it covers; its files with their checksums
//! <checkpoints>/<partition>/lsn_<020>/NNNNNN.sst         hard links to the database's own
//! <checkpoints>/<partition>/tmp-…/                       one that was not finished
//! ```
//!
//! A checkpoint costs a flush, links, and a read of the files that the previous one does not have, for
//! their checksums. What it covers is read from the linked files themselves: a flush that ran meanwhile
//! may have added to what there was when the checkpoint was requested. The files of both column families are
//! those of one moment.

mod blocks;
mod capture;
mod import;
mod install;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::ids::{LineageId, PartitionId};
use crate::log_tail::LogTail;
use crate::members::Members;
use crate::store::{StoreError, cf_name, is_of_segments, segments_cf_name};

pub use capture::Capture;

/// Newest version of `checkpoint.json`. A checkpoint without files of segments has version 1, which earlier
/// builds read.
pub const FORMAT: u32 = 2;
/// The file that describes a checkpoint.
const DESCRIPTION: &str = "checkpoint.json";
/// Most bytes of a description: enough for as many files as RocksDB can have.
const DESCRIPTION_BYTES: u64 = 64 << 20;
/// Bytes that are read at a time for a checksum.
const CHUNK: usize = 1 << 20;

/// What a checkpoint covers, and its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointMeta {
    /// [`format_of`] its files.
    pub format: u32,
    /// The partition.
    pub partition: u64,
    /// LSN of the last entry whose effects are in it.
    pub lsn: u64,
    /// Its term.
    pub term: u64,
    /// The members of the group, as of `lsn`.
    #[serde(flatten)]
    pub members: Members,
    /// The lineage of `lsn`, in hexadecimal digits.
    pub lineage: String,
    /// Checksums of the entries up to `lsn`; absent if an earlier build applied them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_tail: Option<LogTail>,
    /// The name of the comparator that orders keys.
    pub comparator: String,
    /// The files.
    pub files: Vec<CheckpointFile>,
}

/// A file of a checkpoint, as RocksDB describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointFile {
    /// `/` and its name.
    pub name: String,
    /// Which of the partition's column families it belongs to.
    #[serde(default, skip_serializing_if = "ColumnFamily::is_rows")]
    pub column_family: ColumnFamily,
    /// Its size in bytes.
    pub size: u64,
    /// Its level in the tree.
    pub level: i32,
    /// Its first key, in hexadecimal digits.
    pub start_key: Option<String>,
    /// Its last key, in hexadecimal digits.
    pub end_key: Option<String>,
    /// Lowest sequence number in it.
    pub smallest_seqno: u64,
    /// Highest sequence number in it.
    pub largest_seqno: u64,
    /// Number of its entries.
    pub num_entries: u64,
    /// Number of entries that are deletions.
    pub num_deletions: u64,
    /// xxh3-128 of its bytes, in hexadecimal digits. Empty if it was not computed.
    #[serde(default)]
    pub checksum: String,
    /// The identity of the local file when the checksum was computed.
    #[serde(default)]
    pub identity: FileIdentity,
}

/// A column family of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnFamily {
    /// Everything but the batches of segments.
    #[default]
    Rows,
    /// Batches.
    Segments,
}

impl ColumnFamily {
    /// The name of this column family of a partition.
    pub fn name(self, partition: PartitionId) -> String {
        match self {
            ColumnFamily::Rows => cf_name(partition),
            ColumnFamily::Segments => segments_cf_name(partition),
        }
    }

    /// The column family of a name.
    pub fn of_name(name: &str) -> ColumnFamily {
        match is_of_segments(name) {
            true => ColumnFamily::Segments,
            false => ColumnFamily::Rows,
        }
    }

    fn is_rows(&self) -> bool {
        *self == ColumnFamily::Rows
    }
}

/// The version of a description of these files.
pub fn format_of(files: &[CheckpointFile]) -> u32 {
    match files.iter().all(|file| file.column_family.is_rows()) {
        true => 1,
        false => FORMAT,
    }
}

/// The identity of a file on the local file system. These files are immutable, so one with the same
/// identity has the same contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Its inode.
    pub inode: u64,
    /// When it was last modified, nanoseconds since the epoch.
    pub modified_ns: i64,
}

/// Immutable files, and what they cover. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The directory of the files.
    pub dir: PathBuf,
    /// The description.
    pub meta: Arc<CheckpointMeta>,
}

impl Checkpoint {
    /// Reads a checkpoint's description, whatever its files are.
    ///
    /// # Errors
    ///
    /// It is damaged or missing, or cannot be read now ([`StoreError::is_unreadable`]).
    pub fn described(dir: &Path) -> Result<Checkpoint, StoreError> {
        let bad = |why: String| StoreError::Checkpoint {
            path: dir.to_owned(),
            why,
        };
        let path = dir.join(DESCRIPTION);
        let size = fs::metadata(&path).map_err(io("looking at", &path))?.len();
        if size > DESCRIPTION_BYTES {
            return Err(bad(format!("{DESCRIPTION} has {size} bytes")));
        }
        let text = fs::read(&path).map_err(io("reading", &path))?;
        let version: Version = serde_json::from_slice(&text)
            .map_err(|e| bad(format!("{DESCRIPTION} is not a description: {e}")))?;
        if version.format > FORMAT {
            return Err(StoreError::NewerCheckpoint {
                path: dir.to_owned(),
                found: version.format,
                known: FORMAT,
            });
        }
        let meta: CheckpointMeta = serde_json::from_slice(&text)
            .map_err(|e| bad(format!("{DESCRIPTION} is not a description: {e}")))?;
        Ok(Checkpoint {
            dir: dir.to_owned(),
            meta: Arc::new(meta),
        })
    }

    /// Reads a checkpoint's description, and checks that its files exist with their sizes.
    pub fn open(dir: &Path) -> Result<Checkpoint, StoreError> {
        let checkpoint = Checkpoint::described(dir)?;
        let bad = |why: String| StoreError::Checkpoint {
            path: dir.to_owned(),
            why,
        };
        for file in &checkpoint.meta.files {
            let path = checkpoint.path_of(file)?;
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_file() && found.len() == file.size => {}
                Ok(found) => {
                    let (has, wants) = (found.len(), file.size);
                    return Err(bad(format!("{} has {has} bytes, not {wants}", file.name)));
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Err(bad(format!("{} is missing", file.name)));
                }
                Err(e) => return Err(io("looking at", &path)(e)),
            }
        }
        Ok(checkpoint)
    }

    /// The path of one of its files.
    pub fn path_of(&self, file: &CheckpointFile) -> Result<PathBuf, StoreError> {
        let plain = file.name.strip_prefix('/').filter(|name| {
            !name.is_empty() && !name.contains(['/', '\\', '\0']) && !name.starts_with('.')
        });
        match plain {
            Some(name) => Ok(self.dir.join(name)),
            None => Err(StoreError::Checkpoint {
                path: self.dir.clone(),
                why: format!("{:?} is no name of a file", file.name),
            }),
        }
    }

    /// Reads every byte, and compares checksums.
    pub fn verify(&self) -> Result<(), StoreError> {
        for file in &self.meta.files {
            let path = self.path_of(file)?;
            let found = checksum(&path)?;
            if found != file.checksum {
                return Err(StoreError::Checkpoint {
                    path: self.dir.clone(),
                    why: format!(
                        "the checksum of {} is {found}, and {} was written",
                        file.name, file.checksum
                    ),
                });
            }
        }
        Ok(())
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.meta.files.iter().map(|f| f.size).sum()
    }

    /// The lineage that it is of; `None` if the description does not have one.
    pub fn lineage(&self) -> Option<LineageId> {
        u128::from_str_radix(&self.meta.lineage, 16)
            .ok()
            .map(LineageId)
    }

    /// Creates hard links to the files in another directory, for an import, which moves the files that it
    /// gets.
    pub fn link_to(&self, dir: &Path) -> Result<Checkpoint, StoreError> {
        fs::create_dir_all(dir).map_err(io("creating", dir))?;
        let linked = Checkpoint {
            dir: dir.to_owned(),
            meta: self.meta.clone(),
        };
        for file in &self.meta.files {
            let to = linked.path_of(file)?;
            fs::hard_link(self.path_of(file)?, &to).map_err(io("linking", &to))?;
        }
        Ok(linked)
    }
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// The newest checkpoint in a directory that can be used.
pub fn newest(base: &Path) -> Result<Option<Checkpoint>, StoreError> {
    Ok(all(base)?
        .into_iter()
        .find_map(|dir| Checkpoint::open(&dir).ok()))
}

/// The directories of checkpoints below a directory, newest first.
///
/// # Errors
///
/// It cannot be listed now. A symlink whose target is missing is such an error: its disk may not be mounted.
pub fn all(base: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(base) {
        Ok(entries) => entries,
        Err(e) if is_absent(base, &e) => return Ok(found),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let error = std::io::Error::other(MISSING_TARGET);
            return Err(io("listing", base)(error));
        }
        Err(e) => return Err(io("listing", base)(e)),
    };
    for entry in entries {
        let path = entry.map_err(io("listing", base))?.path();
        let name = path.file_name().and_then(|n| n.to_str());
        if name.is_some_and(|n| n.starts_with("lsn_")) {
            found.push(path);
        }
    }
    found.sort();
    found.reverse();
    Ok(found)
}

/// The LSN in the name of a checkpoint's directory.
pub fn lsn_of(dir: &Path) -> Option<u64> {
    let name = dir.file_name()?.to_str()?;
    name.strip_prefix("lsn_")?.parse().ok()
}

/// Why a path is not absent although nothing can be opened there: see [`is_absent`].
pub const MISSING_TARGET: &str =
    "it is, or is below, a symlink whose target is missing: mount or create the target";

/// Whether an error means that nothing is at a path. A symlink whose target is missing, at the path or above it, is
/// something: what it leads to may be on a disk that is not mounted.
pub fn is_absent(path: &Path, error: &std::io::Error) -> bool {
    if error.kind() != std::io::ErrorKind::NotFound {
        return false;
    }
    for one in path.ancestors() {
        match fs::symlink_metadata(one) {
            Ok(found) => return !found.is_symlink() || fs::metadata(one).is_ok(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => return false,
        }
    }
    true
}

/// Removes checkpoints that a crash left unfinished.
pub fn remove_unfinished(base: &Path) -> Result<(), StoreError> {
    if !base.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(base).map_err(io("listing", base))? {
        let path = entry.map_err(io("listing", base))?.path();
        let name = path.file_name().and_then(|n| n.to_str());
        if name.is_some_and(|n| n.starts_with("tmp-")) {
            fs::remove_dir_all(&path).map_err(io("removing", &path))?;
        }
    }
    Ok(())
}

fn checksum(path: &Path) -> Result<String, StoreError> {
    let mut file = File::open(path).map_err(io("opening", path))?;
    let mut hash = Xxh3::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk).map_err(io("reading", path))? {
            0 => return Ok(format!("{:032x}", hash.digest128())),
            read => hash.update(&chunk[..read]),
        }
    }
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_behind_a_link_that_leads_nowhere_is_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        let (mounted, link) = (dir.path().join("mounted"), dir.path().join("checkpoints"));
        let base = link.join("1");
        let absent = |path: &Path| is_absent(path, &fs::read_dir(path).unwrap_err());
        assert!(absent(&base));
        assert!(all(&base).unwrap().is_empty());
        symlink(&mounted, &link).unwrap();
        for path in [&link, &base, &base.join("further/below")] {
            assert!(!absent(path), "{}", path.display());
        }
        let error = all(&base).unwrap_err();
        assert!(error.is_unreadable(), "{error}");
        assert!(error.to_string().contains("target is missing"), "{error}");
        // Once it is mounted, what is not there is absent.
        fs::create_dir(&mounted).unwrap();
        assert!(absent(&base));
        fs::create_dir(&base).unwrap();
        symlink(dir.path().join("elsewhere"), base.join("2")).unwrap();
        assert!(absent(&base.join("1")));
        assert!(!absent(&base.join("2")));
    }
}
