//! Creation of a checkpoint: a flush, hard links, the position that the files cover, checksums, a
//! description.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use esker_raft::priority::{DiskPriority, at_low_priority};
use esker_raft::{Lsn, Membership, SnapshotData, SnapshotDir, SnapshotError, StoredSnapshot, Term};
use rust_rocksdb::LiveFile;

use super::{
    Checkpoint, CheckpointFile, CheckpointMeta, ColumnFamily, DESCRIPTION, FileIdentity, checksum,
    format_of, io, newest,
};
use crate::ids::PartitionId;
use crate::keys;
use crate::lineage::Lineage;
use crate::log_tail::LogTail;
use crate::members::Members;
use crate::store::partitions::sync_dir;
use crate::store::{Applied, PartitionDb, Store, StoreError, StoreOptions};

/// RocksDB's name of the order of keys.
const COMPARATOR: &str = "leveldb.BytewiseComparator";

/// A checkpoint that was begun between two applies and is not written yet.
pub struct Capture {
    part: PartitionDb,
}

impl PartitionDb {
    /// Begins a checkpoint that covers at least what is applied now.
    pub fn begin_checkpoint(&self) -> Capture {
        Capture {
            part: self.pinned(),
        }
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
    /// Creates the checkpoint; durable when this returns. If there is one of the same LSN and history,
    /// returns that one.
    pub fn take(self) -> Result<Checkpoint, StoreError> {
        self.make(None)
    }

    /// Creates the checkpoint at `to`, durable when this returns, without a change to those that
    /// [`Capture::take`] creates. `to` must not exist yet; its parent must, on the database's file
    /// system. If one of `known` is intact and the same, returns that one.
    pub fn take_to(self, to: &Path, known: &[PathBuf]) -> Result<Checkpoint, StoreError> {
        self.make(Some((to, known)))
    }

    fn make(self, apart: Option<(&Path, &[PathBuf])>) -> Result<Checkpoint, StoreError> {
        let part = &self.part;
        let base = part.store().checkpoints(part.partition());
        // A checkpoint of damaged files would replace one that may be sound.
        if let Some(why) = part.store().damage(part.partition()) {
            return Err(StoreError::Checkpoint {
                path: base,
                why: format!("none is made while the database is damaged: {why}"),
            });
        }
        part.store().check_in_place()?;
        // One level at a time: where the data directory has disappeared since the check, nothing is created in its
        // place.
        for dir in base.parent().into_iter().chain([base.as_path()]) {
            match fs::create_dir(dir) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => made.map_err(io("creating", dir))?,
            }
        }
        let temporary = Temporary::create(&base)?;
        let exported = temporary.path.join("files");
        let (comparator, files) = part.export(&exported)?;
        let (applied, lineage) = covered(
            part.partition(),
            &files,
            &comparator,
            &exported,
            &temporary.path,
        )?;
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
                let there = Checkpoint::open(&to);
                if there.as_ref().is_err_and(StoreError::is_unreadable) {
                    // What is there may be sound, and have what this one does not have.
                    return there;
                }
                if let Ok(there) = there
                    && there.lineage() == Some(lineage.id())
                    && LogTail::agree(there.meta.log_tail.as_ref(), applied.log_tail.as_ref())
                {
                    return Ok(there);
                }
                to
            }
        };
        let previous = newest(&base)?;
        // New files are read for their checksums, while appends need processor and disk.
        let files = at_low_priority(DiskPriority::Lowest, || {
            let files = files.into_iter();
            files
                .map(|file| with_checksum(file, &exported, previous.as_ref()))
                .collect::<Result<Vec<_>, _>>()
        })?;
        let meta = CheckpointMeta {
            format: format_of(&files),
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
            // It is damaged or of another history.
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

/// A directory that is removed when this is dropped.
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
        // If this fails, the next start removes it.
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl PartitionDb {
    /// Links the present files of both column families, after a flush, into a directory that does not exist
    /// yet. RocksDB lists the files of one moment; its own export would flush one column family alone.
    fn export(&self, to: &Path) -> Result<(String, Vec<CheckpointFile>), StoreError> {
        self.flush()?;
        fs::create_dir(to).map_err(io("creating", to))?;
        let failed = |e| self.error("listing the files of a checkpoint", e);
        let _kept = self.keep_files()?;
        let listed = self.store().db().live_files().map_err(failed)?;
        let families = self.families();
        let mut files = Vec::new();
        for file in listed {
            let family = ColumnFamily::of_name(&file.column_family_name);
            let of_part = match family {
                ColumnFamily::Rows => &families.rows,
                ColumnFamily::Segments => &families.segments,
            };
            if file.column_family_name != *of_part {
                continue;
            }
            let name = file.name.trim_start_matches('/');
            let link = to.join(name);
            fs::hard_link(self.store().path().join(name), &link).map_err(io("linking", &link))?;
            files.push(described(family, file));
        }
        Ok((COMPARATOR.to_owned(), files))
    }

    /// Links the present files into a directory that does not exist yet, to verify their blocks
    /// ([`Checkpoint::verify_blocks`]). No checksums are computed, so the result is not a checkpoint to
    /// keep.
    ///
    /// # Errors
    ///
    /// A file is missing; or links cannot be created now.
    pub fn link_files(&self, to: &Path) -> Result<Checkpoint, StoreError> {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(io("creating", parent))?;
        }
        let (comparator, files) = self.export(to)?;
        Ok(without_position(self.partition(), to, &comparator, files))
    }

    /// Links those of the present files that are left into a directory that does not exist yet, before the
    /// partition is dropped because of damage: they may have what no other copy has. Memtables are not flushed.
    /// Returns how many files were linked; with none, the directory is not created.
    ///
    /// # Errors
    ///
    /// The files cannot be listed, or links cannot be created now.
    pub fn link_what_is_left(&self, to: &Path) -> Result<usize, StoreError> {
        let failed = |e| self.error("listing the files of the partition", e);
        let _kept = self.keep_files()?;
        let listed = self.store().db().live_files().map_err(failed)?;
        let families = self.families();
        let mut linked = 0;
        for file in listed {
            let name = &file.column_family_name;
            if *name != families.rows && *name != families.segments {
                continue;
            }
            let from = (self.store().path()).join(file.name.trim_start_matches('/'));
            let Some(name) = from.file_name().filter(|_| from.exists()) else {
                continue;
            };
            fs::create_dir_all(to).map_err(io("creating", to))?;
            let link = to.join(name);
            fs::hard_link(&from, &link).map_err(io("linking", &link))?;
            linked += 1;
        }
        if linked > 0 {
            sync_dir(to)?;
        }
        Ok(linked)
    }
}

fn described(column_family: ColumnFamily, file: LiveFile) -> CheckpointFile {
    CheckpointFile {
        name: file.name,
        column_family,
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
    }
}

/// A checkpoint of exported files, without the position that they cover.
fn without_position(
    partition: PartitionId,
    dir: &Path,
    comparator: &str,
    files: Vec<CheckpointFile>,
) -> Checkpoint {
    Checkpoint {
        dir: dir.to_owned(),
        meta: Arc::new(CheckpointMeta {
            format: format_of(&files),
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

/// The position and the lineage that the files in `exported` cover: the files that can have these keys are imported
/// into a scratch database in `temporary` and read.
pub(super) fn covered(
    partition: PartitionId,
    files: &[CheckpointFile],
    comparator: &str,
    exported: &Path,
    temporary: &Path,
) -> Result<(Applied, Lineage), StoreError> {
    let last = hex(&keys::LINEAGE);
    let with_position = |file: &&CheckpointFile| {
        let is_rows = file.column_family == ColumnFamily::Rows;
        is_rows && file.start_key.as_ref().is_none_or(|k| *k <= last)
    };
    let files = files.iter().filter(with_position).cloned().collect();
    let whole = without_position(partition, exported, comparator, files);
    let linked = whole.link_to(&temporary.join("links"))?;
    let store = Store::open_any(&temporary.join("db"), &StoreOptions::for_inspection())?;
    store.import(partition, &linked)?;
    let scratch = store.partition_db(partition);
    let applied = scratch.applied()?.ok_or_else(|| StoreError::Checkpoint {
        path: exported.to_owned(),
        why: "it has no position".to_owned(),
    })?;
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

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}
