//! The data directory.
//!
//! ```text
//! LOCK             held while a process uses the directory; has its pid
//! node.json        identity: format version, node id, cluster id, number of partitions
//! node.json.new    the same, while the directory is being created
//! joined.json      what a cluster has told this node that joins, while the directory is being created
//! joining.json     the number with which this node joins, while the directory is being created
//! log/             the Raft log of all partitions; `esker.json` in it marks the place
//! log.json         which marker that is, and whether a disk is mounted at `log/`
//! db/              RocksDB
//! checkpoints/<p>/ checkpoints of partition p: hard links to files of the database
//! snapshots/       JSON snapshots of the state store
//! restore/<p>/     files of a snapshot, fetched from the repository for the database
//! restore.json     the decisions of a restore under way that may lose data
//! repository/      partition snapshots, if no other destination is configured
//! scratch/         restores that are tested; removed at a start
//! .esker-start/    what a start works in before the directory has an identity; removed
//! damaged/         what a recovery has put aside, and why databases of partitions must not be used
//! incarnations.json  the starts of this directory that other nodes or a repository have seen
//! removed.json     that the cluster has removed this node, and what has become of its replicas
//! recover.json     that the other nodes of the cluster are given up, until this node serves alone
//! bootstrap.json   that a start with --bootstrap restore has served
//! destination.json where snapshots were put, and the id of the marker there
//! restarts.json    the restarts that the node has requested
//! rates.json       the measured speed of this node: replay, restore, scan, start
//! scrub.json       how far the scrub of the repository is
//! reserve          takes space, which is released when the disk is full
//! ```
//!
//! Creating one: write `node.json.new`, create log and database, and when every partition serves, rename it
//! to `node.json`. A crash in between leaves `node.json.new`, and the next start continues with the same
//! identity. From then on a missing part is damage, and is not created again unless the operator accepts the
//! loss.

mod copies;
mod damage;
mod files;
mod identity;
mod log_place;
mod membership;
mod own_names;
mod removed;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

pub(crate) use copies::{checkpoints_in, copies_in};
pub(crate) use damage::MADE_OF_STATE;
use files::{io, is_in_use};
pub(crate) use files::{is_there, or_absent, sync_dir, write_durably};
pub(crate) use identity::UNCHANGED_SINCE;
pub(crate) use identity::now_rfc3339;
pub use identity::{FORMAT, Identity};
use identity::{move_checkpoints, read_identity, write_identity};
pub(crate) use log_place::{is_log_lost, mark_log};
pub(crate) use membership::{read_joined, write_joined};
pub(crate) use removed::{Removed, Stage, Without, noted_now};

use crate::error::StartError;

/// The file that is locked while a process uses the directory.
const LOCK: &str = "LOCK";

/// What a start works in until it has decided what the directory is. Nobody else has a directory of this name.
pub(crate) const UNDECIDED: &str = ".esker-start";

/// A locked data directory that may not have an identity yet.
#[derive(Debug)]
pub struct LockedDir {
    path: PathBuf,
    lock: File,
    /// Its identity, and whether it is still being created.
    found: Option<(Identity, bool)>,
    /// Whether it had no lock file.
    is_lock_new: bool,
    /// Directories that were created for it, the innermost first.
    made: Vec<PathBuf>,
}

/// A locked data directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DataDir {
    path: PathBuf,
    /// The lock file; it is locked for as long as it is open.
    lock: Arc<File>,
    /// Locked while damage is noted, because all notes are written through one temporary file.
    noting: Arc<Mutex<()>>,
    /// Its identity.
    pub identity: Identity,
    /// Whether it is still being created.
    pub is_new: bool,
    /// Whether it belongs to a node that joins a cluster: its partitions begin without members, and wait for what
    /// the others send.
    pub joins: bool,
    /// See [`DataDir::has_peers`]; locked while it is written.
    peers: Arc<Mutex<bool>>,
    /// The format that `node.json` has, until [`DataDir::bring_up_to_date`].
    found_format: Arc<Mutex<u32>>,
}

/// What is removed without a look at it by a start or a restore. A directory that has any of it and no identity is
/// somebody else's.
const REMOVED: [&str; 3] = ["scratch", "restore", "raft"];

impl LockedDir {
    /// Locks the directory, and reads its identity if it has one. Creates it if it is missing.
    pub fn open(path: &Path) -> Result<LockedDir, StartError> {
        is_or_may_be_directory(path)?;
        let missing = path.ancestors().take_while(|dir| !dir.exists());
        let made = missing.map(Path::to_owned).collect();
        fs::create_dir_all(path).map_err(io("creating", path))?;
        let path = fs::canonicalize(path).map_err(io("resolving", path))?;
        if let Some(parent) = path.parent() {
            sync_dir(parent)?;
        }
        let is_lock_new = !is_there(&path.join(LOCK))?;
        let lock = lock(&path)?;
        let final_path = path.join("node.json");
        let new_path = path.join("node.json.new");
        let found = if let Some(identity) = read_identity(&path, &final_path)? {
            Some((identity, false))
        } else {
            read_identity(&path, &new_path)?.map(|identity| (identity, true))
        };
        let locked = LockedDir {
            path,
            lock,
            found,
            is_lock_new,
            made,
        };
        match locked.refusal() {
            Ok(None) => Ok(locked),
            Ok(Some(error)) | Err(error) => {
                locked.leave();
                Err(error)
            }
        }
    }

    /// Why a directory without an identity is not used: it has what a start would mistake for its own.
    fn refusal(&self) -> Result<Option<StartError>, StartError> {
        if !self.is_empty() {
            return Ok(None);
        }
        let has_any = |names: &[&'static str]| {
            let mut found = None;
            for name in names {
                if found.is_none() && is_in_use(&self.path.join(name))? {
                    found = Some(*name);
                }
            }
            Ok::<_, StartError>(found)
        };
        let dir = self.path.clone();
        if let Some(what) = has_any(&["log", "db"])? {
            let what = format!("{what}/");
            return Ok(Some(StartError::NoIdentity { dir, what }));
        }
        Ok(has_any(&REMOVED)?.map(|what| StartError::HoldsOthers {
            dir,
            what: format!("{what}/"),
        }))
    }

    /// Removes what a refused start has created, if the directory has no identity. What cannot be removed
    /// stays, and does no harm.
    pub fn leave(self) {
        if !self.is_empty() || !self.is_lock_new {
            return;
        }
        let removed = fs::remove_file(self.path.join(LOCK));
        if removed.is_ok() {
            let mut made = self.made.iter();
            // A directory that is not empty stays.
            made.try_for_each(fs::remove_dir).ok();
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has no identity yet.
    pub fn is_empty(&self) -> bool {
        self.found.is_none()
    }

    /// Begins to create the directory for `identity`, if it is empty. Its identity must have as many
    /// partitions as are configured. One of an earlier format keeps it until [`DataDir::bring_up_to_date`].
    pub fn belonging_to(
        self,
        identity: impl FnOnce() -> Identity,
        partitions: u32,
    ) -> Result<DataDir, StartError> {
        let (identity, is_new) = match self.found {
            Some(found) => found,
            None => {
                let identity = identity();
                write_identity(&self.path.join("node.json.new"), &identity)?;
                (identity, true)
            }
        };
        if identity.partitions != partitions {
            return Err(StartError::PartitionsChanged {
                dir: self.path,
                made: identity.partitions,
                configured: partitions,
            });
        }
        Ok(DataDir {
            path: self.path,
            lock: Arc::new(self.lock),
            noting: Arc::default(),
            joins: identity.joined,
            peers: Arc::new(Mutex::new(identity.may_have_peers())),
            found_format: Arc::new(Mutex::new(identity.format)),
            // Whatever is written from here on is of this format.
            identity: Identity {
                format: FORMAT,
                ..identity
            },
            is_new,
        })
    }
}

impl DataDir {
    /// Marks a directory whose format is below this one as one of the current format, before anything is written
    /// that an earlier build would not read. A start that is refused before that leaves the directory to the build
    /// that it had. Durable when this returns. Blocking.
    pub fn bring_up_to_date(&self, below: u32) -> Result<(), StartError> {
        let mut found = self.found_format.lock();
        if *found >= below.min(FORMAT) {
            return Ok(());
        }
        if *found < 3 {
            move_checkpoints(&self.path)?;
        }
        let name = if self.is_new {
            "node.json.new"
        } else {
            "node.json"
        };
        write_identity(&self.path.join(name), &self.identity)?;
        tracing::info!(
            path = %self.path.display(),
            "the data directory has format {FORMAT} now, and had {found}: earlier builds do not open it any more"
        );
        *found = FORMAT;
        Ok(())
    }

    /// Completes the creation: from now on a missing part is damage.
    pub fn finish(&mut self) -> Result<(), StartError> {
        if self.is_new {
            sync_dir(&self.path)?;
            let to = self.path.join("node.json");
            fs::rename(self.path.join("node.json.new"), &to).map_err(io("renaming to", &to))?;
            sync_dir(&self.path)?;
            self.is_new = false;
            membership::remove_joined(&self.path)?;
        }
        Ok(())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the log.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The directory of the database.
    pub fn db(&self) -> PathBuf {
        self.path.join("db")
    }

    /// The directory of snapshots that this node sends to and fetches from other nodes.
    pub fn raft(&self) -> PathBuf {
        self.path.join("raft")
    }

    /// The directory of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The directory of JSON snapshots of the state store.
    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// The directory into which snapshots are fetched.
    pub fn restore(&self) -> PathBuf {
        self.path.join("restore")
    }

    /// The directory in which restores are tested.
    pub fn scratch(&self) -> PathBuf {
        self.path.join("scratch")
    }

    /// Checks that a path leads to the directory that is in use, and not to the directory below a mount that
    /// is gone.
    ///
    /// # Errors
    ///
    /// It does not, or cannot be read now.
    pub fn check_in_place(&self, path: &Path) -> Result<(), StartError> {
        let gone = |why: String| StartError::DirectoryGone {
            dir: path.to_owned(),
            why,
        };
        let lock = path.join(LOCK);
        let found = match fs::metadata(&lock) {
            Ok(found) => found,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(gone("it has no LOCK".to_owned()));
            }
            Err(e) => return Err(StartError::unreadable(lock.display().to_string(), &e)),
        };
        let held = self.lock.metadata().map_err(io("looking at", &lock))?;
        match (held.dev(), held.ino()) == (found.dev(), found.ino()) {
            true => Ok(()),
            false => Err(gone("its LOCK is another file".to_owned())),
        }
    }
}

/// Refuses a path that exists and is not a directory.
fn is_or_may_be_directory(path: &Path) -> Result<(), StartError> {
    let none = |what, remedy| {
        Err(StartError::NoDirectory {
            path: path.to_owned(),
            what,
            remedy,
        })
    };
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => none("a file", "`data-dir` has to name a directory"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => match is_there(path)? {
            true => none(
                "a symlink whose target is missing",
                "mount or create the target",
            ),
            false => Ok(()),
        },
        Err(e) => Err(StartError::unreadable(path.display().to_string(), &e)),
    }
}

fn lock(dir: &Path) -> Result<File, StartError> {
    let path = dir.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io("opening", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The owner may not have written it yet.
            let _ = file.read_to_string(&mut pid);
            let pid = match pid.trim() {
                "" => "unknown".to_owned(),
                pid => pid.to_owned(),
            };
            return Err(StartError::InUse {
                dir: dir.to_owned(),
                pid,
            });
        }
        Err(TryLockError::Error(source)) => return Err(io("locking", &path)(source)),
    }
    // A refused start removes the file that it has created: a process that had opened that file before would
    // hold a lock on a removed file.
    let locked = file.metadata().map_err(io("looking at", &path))?;
    let is_the_same = match fs::metadata(&path) {
        Ok(there) => (there.dev(), there.ino()) == (locked.dev(), locked.ino()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(io("looking at", &path)(e)),
    };
    if !is_the_same {
        return Err(StartError::InUse {
            dir: dir.to_owned(),
            pid: "unknown".to_owned(),
        });
    }
    let pid = std::process::id();
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{pid}"))
        .map_err(io("writing", &path))?;
    Ok(file)
}
