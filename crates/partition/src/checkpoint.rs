//! Checkpoints: a partition's files as of one moment, and what they cover.
//!
//! ```text
//! <checkpoints>/<partition>/lsn_<020>/checkpoint.json    what it covers; its files with their checksums
//! <checkpoints>/<partition>/lsn_<020>/NNNNNN.sst         hard links to the database's own
//! <checkpoints>/<partition>/tmp-…/                       one that was not finished
//! ```
//!
//! Making one costs a flush, links, and reading what is new since the one before for its checksum.
//! What it covers is read from the linked files themselves: a flush that ran meanwhile may have put
//! more into them than there was when the checkpoint was asked for.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use esker_raft::{Lsn, Membership, SnapshotData, SnapshotDir, SnapshotError, StoredSnapshot, Term};
use rust_rocksdb::LiveFile;
use rust_rocksdb::checkpoint::Checkpoint as RocksCheckpoint;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::ids::{LineageId, PartitionId};
use crate::keys;
use crate::lineage::Lineage;
use crate::log_tail::LogTail;
use crate::members::Members;
use crate::store::partitions::sync_dir;
use crate::store::{Applied, PartitionDb, Store, StoreError, StoreOptions};

/// Version of `checkpoint.json`.
pub const FORMAT: u32 = 1;
/// What describes a checkpoint.
const DESCRIPTION: &str = "checkpoint.json";
/// Most bytes of a description; what RocksDB can have files for.
const DESCRIPTION_BYTES: u64 = 64 << 20;
/// Levels of a database; RocksDB's default.
const LEVELS: i32 = 7;
/// Bytes that are read at a time for a checksum.
const CHUNK: usize = 1 << 20;

/// What a checkpoint covers, and its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointMeta {
    /// [`FORMAT`].
    pub format: u32,
    /// The partition.
    pub partition: u64,
    /// Last entry whose effects are in it.
    pub lsn: u64,
    /// Its term.
    pub term: u64,
    /// Who belongs to the group, as of `lsn`.
    #[serde(flatten)]
    pub members: Members,
    /// The history that `lsn` is of, in hexadecimal digits.
    pub lineage: String,
    /// Checksums of the entries up to `lsn`; absent if an earlier build applied them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_tail: Option<LogTail>,
    /// How keys are ordered.
    pub comparator: String,
    /// The files.
    pub files: Vec<CheckpointFile>,
}

/// A file of a checkpoint, as RocksDB describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointFile {
    /// `/` and its name.
    pub name: String,
    /// In bytes.
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
    /// How many entries it has.
    pub num_entries: u64,
    /// How many of them are deletions.
    pub num_deletions: u64,
    /// xxh3-128 of its bytes, in hexadecimal digits. Empty if it was not computed.
    #[serde(default)]
    pub checksum: String,
    /// Which file of this machine it was when the checksum was computed.
    #[serde(default)]
    pub identity: FileIdentity,
}

/// Tells whether a file is still the same one: these are immutable.
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
    /// Where the files are.
    pub dir: PathBuf,
    /// What they are.
    pub meta: Arc<CheckpointMeta>,
}

impl Checkpoint {
    /// Reads a checkpoint's description, and looks whether its files are there.
    pub fn open(dir: &Path) -> Result<Checkpoint, StoreError> {
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
            return Err(bad(format!(
                "it has format {}, this version knows up to {FORMAT}: use a newer esker",
                version.format
            )));
        }
        let meta: CheckpointMeta = serde_json::from_slice(&text)
            .map_err(|e| bad(format!("{DESCRIPTION} is not a description: {e}")))?;
        let checkpoint = Checkpoint {
            dir: dir.to_owned(),
            meta: Arc::new(meta),
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

    /// Where a file of it is.
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

    /// The history that it is of.
    pub fn lineage(&self) -> Option<LineageId> {
        u128::from_str_radix(&self.meta.lineage, 16)
            .ok()
            .map(LineageId)
    }

    /// The same files under another directory, by hard links: for who uses them up.
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

    /// As RocksDB wants them for an import.
    pub(crate) fn live_files(&self, column_family: &str) -> Result<Vec<LiveFile>, StoreError> {
        let bad = |why: String| StoreError::Checkpoint {
            path: self.dir.clone(),
            why,
        };
        let dir = self.dir.to_str().ok_or_else(|| bad("not UTF-8".into()))?;
        let mut files = Vec::with_capacity(self.meta.files.len());
        for file in &self.meta.files {
            self.path_of(file)?;
            // RocksDB takes it for an index without looking.
            if !(0..LEVELS).contains(&file.level) {
                return Err(bad(format!(
                    "{}: there is no level {}",
                    file.name, file.level
                )));
            }
            let key = |digits: &Option<String>| {
                let parsed = digits.as_deref().map(from_hex);
                match parsed {
                    Some(None) => Err(bad(format!("{}: a key is not hexadecimal", file.name))),
                    Some(Some(key)) => Ok(Some(key)),
                    None => Ok(None),
                }
            };
            files.push(LiveFile {
                column_family_name: column_family.to_owned(),
                name: file.name.clone(),
                directory: dir.to_owned(),
                size: usize::try_from(file.size).map_err(|e| bad(e.to_string()))?,
                level: file.level,
                start_key: key(&file.start_key)?,
                end_key: key(&file.end_key)?,
                smallest_seqno: file.smallest_seqno,
                largest_seqno: file.largest_seqno,
                num_entries: file.num_entries,
                num_deletions: file.num_deletions,
            });
        }
        Ok(files)
    }
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// What begins a checkpoint between two applies.
pub struct Capture {
    part: PartitionDb,
}

impl PartitionDb {
    /// Begins a checkpoint that covers at least what is applied now.
    pub fn begin_checkpoint(&self) -> Capture {
        Capture { part: self.clone() }
    }
}

impl esker_raft::Capture for Capture {
    fn write(self) -> Result<StoredSnapshot, SnapshotError> {
        let checkpoint = self.take().map_err(|e| SnapshotError(e.to_string()))?;
        let meta = &checkpoint.meta;
        Ok(StoredSnapshot {
            last_included_index: Lsn(meta.lsn),
            term: Term(meta.term),
            peers: Membership::from(&meta.members),
            data: SnapshotData::Files(SnapshotDir {
                path: checkpoint.dir,
            }),
        })
    }
}

impl Capture {
    /// Makes the checkpoint, durable when this returns. If there is one of the same LSN, that one is
    /// the answer.
    pub fn take(self) -> Result<Checkpoint, StoreError> {
        self.make(None)
    }

    /// Makes the checkpoint at `to`, durable when this returns, and leaves those where [`Capture::take`]
    /// makes them as they are. `to` is not there yet, its directory is, on the database's file system. If
    /// one of `known` is whole and the same, that one is the answer.
    pub fn take_to(self, to: &Path, known: &[PathBuf]) -> Result<Checkpoint, StoreError> {
        self.make(Some((to, known)))
    }

    fn make(self, apart: Option<(&Path, &[PathBuf])>) -> Result<Checkpoint, StoreError> {
        let part = &self.part;
        let base = part.store().checkpoints(part.partition());
        // A checkpoint of damaged files would take the place of one that may be whole.
        if let Some(why) = part.store().damage(part.partition()) {
            return Err(StoreError::Checkpoint {
                path: base,
                why: format!("none is made while the database is damaged: {why}"),
            });
        }
        fs::create_dir_all(&base).map_err(io("creating", &base))?;
        let temporary = Temporary::create(&base)?;
        let exported = temporary.path.join("files");
        let (comparator, files) = part.export(&exported)?;
        let (applied, lineage) = covered(part, &files, &comparator, &exported, &temporary.path)?;
        let to = match apart {
            Some((to, known)) => {
                let is_same = |there: &Checkpoint| {
                    (there.meta.lsn, there.meta.term) == (applied.lsn, applied.term)
                        && there.lineage() == Some(lineage.id())
                        && there.meta.log_tail.is_some()
                        && there.meta.log_tail == applied.log_tail
                };
                let known = known.iter().filter_map(|dir| Checkpoint::open(dir).ok());
                let mut same = known.filter(is_same);
                if let Some(there) = same.find(|there| there.verify().is_ok()) {
                    return Ok(there);
                }
                to.to_owned()
            }
            None => {
                let to = base.join(format!("lsn_{:020}", applied.lsn));
                if let Ok(there) = Checkpoint::open(&to)
                    && there.lineage() == Some(lineage.id())
                    && LogTail::agree(there.meta.log_tail.as_ref(), applied.log_tail.as_ref())
                {
                    return Ok(there);
                }
                to
            }
        };
        let previous = newest(&base)?;
        let files = files
            .into_iter()
            .map(|file| with_checksum(file, &exported, previous.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        let meta = CheckpointMeta {
            format: FORMAT,
            partition: part.partition().0,
            lsn: applied.lsn,
            term: applied.term,
            log_tail: applied.log_tail.clone(),
            members: applied.into(),
            lineage: lineage.id().to_string(),
            comparator,
            files,
        };
        let path = exported.join(DESCRIPTION);
        let text = serde_json::to_vec_pretty(&meta).map_err(|e| StoreError::Checkpoint {
            path: path.clone(),
            why: e.to_string(),
        })?;
        fs::write(&path, text)
            .and_then(|()| File::open(&path)?.sync_all())
            .map_err(io("writing", &path))?;
        sync_dir(&exported)?;
        if apart.is_none() && to.exists() {
            // Not one that can be used.
            fs::remove_dir_all(&to).map_err(io("removing", &to))?;
        }
        fs::rename(&exported, &to).map_err(io("renaming to", &to))?;
        sync_dir(to.parent().unwrap_or(&base))?;
        Ok(Checkpoint {
            dir: to,
            meta: Arc::new(meta),
        })
    }
}

/// The newest checkpoint in a directory that can be used.
pub fn newest(base: &Path) -> Result<Option<Checkpoint>, StoreError> {
    Ok(all(base)?
        .into_iter()
        .find_map(|dir| Checkpoint::open(&dir).ok()))
}

/// The directories of checkpoints below a directory, newest first.
pub fn all(base: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(base) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
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

/// Removes what attempts that a crash ended have left.
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

/// A directory that goes with this.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn create(base: &Path) -> Result<Temporary, StoreError> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = base.join(format!("tmp-{}-{number}", std::process::id()));
        if path.exists() {
            fs::remove_dir_all(&path).map_err(io("removing", &path))?;
        }
        fs::create_dir(&path).map_err(io("creating", &path))?;
        Ok(Temporary { path })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What stays is removed at the next start.
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl PartitionDb {
    /// Links the files of now into a directory that is not there yet.
    fn export(&self, to: &Path) -> Result<(String, Vec<CheckpointFile>), StoreError> {
        // RocksDB flushes too, and waits until that works, whatever a flush meets.
        self.flush()?;
        let failed = |e| self.error("exporting", e);
        let exported = RocksCheckpoint::new(self.store().db())
            .and_then(|checkpoint| checkpoint.export_column_family(&self.cf(), to))
            .map_err(failed)?;
        let file = |file: LiveFile| CheckpointFile {
            name: file.name,
            size: file.size as u64,
            level: file.level,
            start_key: file.start_key.as_deref().map(hex),
            end_key: file.end_key.as_deref().map(hex),
            smallest_seqno: file.smallest_seqno,
            largest_seqno: file.largest_seqno,
            num_entries: file.num_entries,
            num_deletions: file.num_deletions,
            checksum: String::new(),
            identity: FileIdentity::default(),
        };
        let files = exported.get_files().into_iter().map(file).collect();
        Ok((exported.get_db_comparator_name(), files))
    }

    /// Links the files of now into a directory that is not there yet, to verify their blocks
    /// ([`Checkpoint::verify_blocks`]). No checksums are computed, so it is no checkpoint to keep.
    ///
    /// # Errors
    ///
    /// A file is missing; or links cannot be made now.
    pub fn link_files(&self, to: &Path) -> Result<Checkpoint, StoreError> {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(io("creating", parent))?;
        }
        let (comparator, files) = self.export(to)?;
        Ok(without_position(self.partition(), to, &comparator, files))
    }
}

/// Exported files of which it is not known what they cover.
fn without_position(
    partition: PartitionId,
    dir: &Path,
    comparator: &str,
    files: Vec<CheckpointFile>,
) -> Checkpoint {
    Checkpoint {
        dir: dir.to_owned(),
        meta: Arc::new(CheckpointMeta {
            format: FORMAT,
            partition: partition.0,
            lsn: 0,
            term: 0,
            members: Members::default(),
            lineage: String::new(),
            log_tail: None,
            comparator: comparator.to_owned(),
            files,
        }),
    }
}

/// What the files say about themselves: those that can hold the position are imported into a
/// database of their own, and asked.
fn covered(
    part: &PartitionDb,
    files: &[CheckpointFile],
    comparator: &str,
    exported: &Path,
    temporary: &Path,
) -> Result<(Applied, Lineage), StoreError> {
    let last = hex(&keys::LINEAGE);
    let with_position = |file: &&CheckpointFile| file.start_key.as_ref().is_none_or(|k| *k <= last);
    let files = files.iter().filter(with_position).cloned().collect();
    let whole = without_position(part.partition(), exported, comparator, files);
    let linked = whole.link_to(&temporary.join("links"))?;
    let store = Store::open_any(&temporary.join("db"), &StoreOptions::for_a_look())?;
    store.import(part.partition(), &linked)?;
    let scratch = store.part(part.partition());
    let applied = scratch
        .applied()?
        .ok_or_else(|| part.malformed("a checkpoint", &"it has no position"))?;
    let lineage = scratch.lineage()?;
    store.close();
    Ok((applied, lineage))
}

fn with_checksum(
    mut file: CheckpointFile,
    dir: &Path,
    previous: Option<&Checkpoint>,
) -> Result<CheckpointFile, StoreError> {
    let path = dir.join(file.name.trim_start_matches('/'));
    let found = fs::metadata(&path).map_err(io("looking at", &path))?;
    file.identity = FileIdentity {
        inode: found.ino(),
        modified_ns: found.mtime().wrapping_mul(1_000_000_000) + found.mtime_nsec(),
    };
    let known = previous.and_then(|previous| {
        let same = |f: &&CheckpointFile| {
            f.name == file.name && f.size == file.size && f.identity == file.identity
        };
        previous.meta.files.iter().find(same)
    });
    file.checksum = match known {
        Some(known) if !known.checksum.is_empty() => known.checksum.clone(),
        _ => checksum(&path)?,
    };
    Ok(file)
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

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    match digits.len() % 2 {
        0 => digits.as_bytes().chunks(2).map(byte).collect(),
        _ => None,
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
