//! The data directory.
//!
//! ```text
//! LOCK             held while a process uses the directory; has its pid
//! node.json        who this is: format version, node id, cluster id, number of partitions
//! node.json.new    the same, while the directory is being made for the first time
//! log/             the Raft log of all partitions
//! db/              RocksDB
//! checkpoints/<p>/ checkpoints of partition p: hard links to files of the database
//! snapshots/       JSON snapshots of the state store
//! restore/<p>/     files of a snapshot on their way from the repository into the database
//! restore.json     a restore under way that may lose something: what was decided
//! repository/      partition snapshots, if no other destination is configured
//! scratch/         restores that are tested; removed at a start
//! damaged/         what was put aside by a recovery, and why partitions are not to be used
//! incarnations.json  which starts of this directory have put snapshots
//! bootstrap.json   that --bootstrap restore was said for a start that has served
//! destination.json where they were put, and the id of the marker there
//! restarts.json    which restarts the node has asked for itself
//! rates.json       how fast this node was at its last recovery
//! reserve          takes space, so that there is some when the disk is full
//! ```
//!
//! Making one: write `node.json.new`, make log and database, and when every partition serves, rename
//! to `node.json`. A crash in between leaves `node.json.new`, and the next start goes on with the
//! same identity. From then on a missing part is damage, and is never created again without being asked
//! for.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::{StartError, in_words};

/// Version of the layout of a data directory, and of everything in it. 1 was never released.
pub const FORMAT: u32 = 3;

/// Reported as damage of a partition's database until its new lineage has begun.
pub(crate) const MADE_OF_STATE: &str = "it is being made of a state snapshot";

/// Held while a process uses the directory.
const LOCK: &str = "LOCK";

/// Who a data directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the directory's layout, and of everything in it.
    pub format: u32,
    /// This node. Never 0.
    pub node_id: u64,
    /// Random, the same for all nodes of a cluster.
    pub cluster_id: String,
    /// For people.
    pub cluster_name: String,
    /// Stream partitions; the catalog comes on top.
    pub partitions: u32,
    /// RFC 3339.
    pub created_at: String,
}

impl Identity {
    /// Somebody new.
    pub fn new(cluster_name: &str, partitions: u32) -> Identity {
        Identity {
            format: FORMAT,
            node_id: rand::random_range(1..=u64::from(u32::MAX)),
            cluster_id: uuid::Uuid::new_v4().to_string(),
            cluster_name: cluster_name.to_owned(),
            partitions,
            created_at: now_rfc3339(),
        }
    }

    /// A new node of a cluster that there was before.
    pub fn of_cluster(cluster_id: &str, cluster_name: &str, partitions: u32) -> Identity {
        Identity {
            cluster_id: cluster_id.to_owned(),
            ..Identity::new(cluster_name, partitions)
        }
    }

    /// Tells clusters of one name apart, in a repository.
    pub fn fingerprint(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(self.cluster_id.as_bytes())
    }
}

/// A locked data directory that may not belong to anybody yet.
#[derive(Debug)]
pub struct LockedDir {
    path: PathBuf,
    lock: File,
    /// Who it belongs to, and whether it is still being made.
    found: Option<(Identity, bool)>,
    /// Whether it had no lock file.
    is_lock_new: bool,
    /// Directories that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

/// A locked data directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the lock for as long as it is open.
    lock: Arc<File>,
    /// Damage is noted by one at a time: what is written goes through one temporary file.
    noting: Arc<Mutex<()>>,
    /// Who it belongs to.
    pub identity: Identity,
    /// Whether it is still being made.
    pub is_new: bool,
}

impl LockedDir {
    /// Locks the directory, and reads its identity if it has one. It is made if it is missing.
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
        } else if let Some(identity) = read_identity(&path, &new_path)? {
            Some((identity, true))
        } else {
            for what in ["log", "db"] {
                if is_in_use(&path.join(what))? {
                    return Err(StartError::NoIdentity {
                        dir: path,
                        what: format!("{what}/"),
                    });
                }
            }
            None
        };
        Ok(LockedDir {
            path,
            lock,
            found,
            is_lock_new,
            made,
        })
    }

    /// The start is refused: removes what it has made, if nobody has used the directory so far. What cannot
    /// be removed stays; it says nothing about anybody.
    pub fn leave(self) {
        if !self.is_empty() || !self.is_lock_new {
            return;
        }
        let removed = fs::remove_file(self.path.join(LOCK));
        if removed.is_ok() {
            let mut made = self.made.iter();
            // What is not empty has something to be looked at.
            made.try_for_each(fs::remove_dir).ok();
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nobody has used it so far.
    pub fn is_empty(&self) -> bool {
        self.found.is_none()
    }

    /// Begins to make it for `identity`, if it is empty. Whoever it belongs to must have as many
    /// partitions as are configured.
    pub fn belonging_to(
        self,
        identity: impl FnOnce() -> Identity,
        partitions: u32,
    ) -> Result<DataDir, StartError> {
        let (identity, is_new) = match self.found {
            Some((identity, is_new)) if identity.format < FORMAT => {
                (brought_up_to_date(&self.path, identity, is_new)?, is_new)
            }
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
            identity,
            is_new,
        })
    }
}

impl DataDir {
    /// Everything has been made: from now on a missing part is damage.
    pub fn finish(&mut self) -> Result<(), StartError> {
        if self.is_new {
            sync_dir(&self.path)?;
            let to = self.path.join("node.json");
            fs::rename(self.path.join("node.json.new"), &to).map_err(io("renaming to", &to))?;
            sync_dir(&self.path)?;
            self.is_new = false;
        }
        Ok(())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the log is.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where the database is.
    pub fn db(&self) -> PathBuf {
        self.path.join("db")
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Where JSON snapshots of the state store are.
    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// Where snapshots come in.
    pub fn restore(&self) -> PathBuf {
        self.path.join("restore")
    }

    /// Where restores are tested.
    pub fn scratch(&self) -> PathBuf {
        self.path.join("scratch")
    }

    /// What says why a partition's database is not to be used.
    pub fn damage(&self, partition: u64) -> PathBuf {
        self.path
            .join("damaged")
            .join(format!("partition-{partition}"))
    }

    /// Why a partition's database is not to be used, if an earlier start or a running server has found
    /// it damaged.
    pub fn known_damage(&self, partition: u64) -> Result<Option<String>, StartError> {
        let path = self.damage(partition);
        match fs::read(&path) {
            Ok(why) => Ok(Some(String::from_utf8_lossy(&why).into_owned())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StartError::unreadable(path.display().to_string(), &e)),
        }
    }

    /// Whether a path leads to the directory that is in use, and not to what shows through where a mount
    /// is gone.
    ///
    /// # Errors
    ///
    /// It does not, or cannot be looked at now.
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

    /// Remembers, for the next start, that a partition's database is not to be used.
    pub fn report_damage(&self, partition: u64, why: &str) -> Result<(), StartError> {
        let _noting = self.noting.lock();
        // Nothing is written where a mount is gone: it would look like a directory that is in use.
        self.check_in_place(&self.path)?;
        let path = self.damage(partition);
        let dir = self.path.join("damaged");
        fs::create_dir_all(&dir).map_err(io("creating", &dir))?;
        write_durably(&path, why.as_bytes())?;
        sync_dir(&self.path)
    }

    /// A partition has another database, which is durable.
    pub fn forget_damage(&self, partition: u64) -> Result<(), StartError> {
        let _noting = self.noting.lock();
        let path = self.damage(partition);
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.path.join("damaged")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(io("removing", &path)(source)),
        }
    }

    /// Puts one of its directories aside, where it is in nobody's way; where it is now.
    pub fn put_aside(&self, what: &str) -> Result<PathBuf, StartError> {
        self.put_aside_as(&self.path.join(what), what)
    }

    /// Puts a directory aside under this name and a number; where it is now.
    pub fn put_aside_as(&self, from: &Path, name: &str) -> Result<PathBuf, StartError> {
        let dir = self.path.join("damaged");
        fs::create_dir_all(&dir).map_err(io("creating", &dir))?;
        let mut number = 1;
        let to = loop {
            let to = dir.join(format!("{name}-{number}"));
            if !to.exists() {
                break to;
            }
            number += 1;
        };
        fs::rename(from, &to).map_err(io("moving", from))?;
        sync_dir(&dir)?;
        from.parent().map_or(Ok(()), sync_dir)?;
        Ok(to)
    }
}

impl DataDir {
    /// Moves a partition's checkpoint to what is put aside.
    pub fn put_checkpoint_aside(&self, partition: u64, from: &Path) -> Result<PathBuf, StartError> {
        let to = self.place_for_checkpoint_aside(partition)?;
        fs::rename(from, &to).map_err(io("moving", from))?;
        sync_dir(&self.path.join("damaged"))?;
        if let Some(parent) = from.parent() {
            sync_dir(parent)?;
        }
        Ok(to)
    }

    /// Where the next checkpoint of a partition that is put aside goes; the directory it goes into is there.
    pub fn place_for_checkpoint_aside(&self, partition: u64) -> Result<PathBuf, StartError> {
        let dir = self.path.join("damaged");
        fs::create_dir_all(&dir).map_err(io("creating", &dir))?;
        sync_dir(&self.path)?;
        let number = (1..).find(|number| {
            !dir.join(format!("checkpoint-{partition}-{number}"))
                .exists()
        });
        Ok(dir.join(format!("checkpoint-{partition}-{}", number.unwrap_or(0))))
    }

    /// The checkpoints of a partition that were put aside.
    pub fn checkpoints_aside(&self, partition: u64) -> Result<Vec<PathBuf>, StartError> {
        let dir = self.path.join("damaged");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(io("reading", &dir)(e)),
        };
        let prefix = format!("checkpoint-{partition}-");
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io("reading", &dir))?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }
}

/// Makes the layout of an earlier format the present one. A crash leaves it at the earlier one, and the
/// next start does the rest.
fn brought_up_to_date(
    path: &Path,
    identity: Identity,
    is_new: bool,
) -> Result<Identity, StartError> {
    // Checkpoints were in `snapshots` up to format 2.
    let (from, to) = (path.join("snapshots"), path.join("checkpoints"));
    if from.exists() {
        fs::create_dir_all(&to).map_err(io("creating", &to))?;
        for entry in fs::read_dir(&from).map_err(io("reading", &from))? {
            let entry = entry.map_err(io("reading", &from))?;
            let name = entry.file_name();
            if name.to_string_lossy().parse::<u64>().is_ok() {
                let there = to.join(&name);
                fs::rename(entry.path(), &there).map_err(io("renaming to", &there))?;
            }
        }
        sync_dir(&to)?;
        sync_dir(&from)?;
        sync_dir(path)?;
    }
    let name = if is_new { "node.json.new" } else { "node.json" };
    let before = identity.format;
    let identity = Identity {
        format: FORMAT,
        ..identity
    };
    write_identity(&path.join(name), &identity)?;
    tracing::info!(
        path = %path.display(),
        "the data directory has format {FORMAT} now, and had {before}: earlier builds do not open it any more"
    );
    Ok(identity)
}

/// Replaces a file: whole or not at all, durable when this returns.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), StartError> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(io("creating", &temporary))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(io("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(io("renaming to", path))?;
    path.parent().map_or(Ok(()), sync_dir)
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
            // The owner may be about to write it.
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
    // A start that is refused removes the file that it has made: whoever had opened it by then has locked
    // nothing.
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

/// The checkpoints below a directory, newest first, by partition; partitions without any are left out.
pub(crate) fn checkpoints_in(base: &Path) -> Result<Vec<(u64, Vec<PathBuf>)>, StartError> {
    let entries = match fs::read_dir(base) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(StartError::unreadable(base.display().to_string(), &e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io("listing", base))?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let there = esker_partition::checkpoint::all(&entry.path())?;
        if !there.is_empty() {
            found.push((number, there));
        }
    }
    found.sort();
    Ok(found)
}

/// Copies of somebody's partitions in a directory, in words. An empty one may have some, if the rest is gone.
pub(crate) fn copies_in(dir: &Path) -> Result<Option<String>, StartError> {
    let found = checkpoints_in(&dir.join("checkpoints"))?;
    if found.is_empty() {
        return Ok(None);
    }
    let numbers: Vec<u64> = found.iter().map(|(number, _)| *number).collect();
    Ok(Some(format!(
        "checkpoints/ has local snapshots of {}",
        in_words(&numbers)
    )))
}

/// Refuses what is there and no directory.
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
                "a link that leads nowhere",
                "mount or make the directory that it leads to",
            ),
            false => Ok(()),
        },
        Err(e) => Err(StartError::unreadable(path.display().to_string(), &e)),
    }
}

/// Whether something is there that is more than an empty directory, as a disk is that was just mounted.
fn is_in_use(path: &Path) -> Result<bool, StartError> {
    if !is_there(path)? {
        return Ok(false);
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(_) => return Ok(true),
    };
    for entry in entries {
        let entry = entry.map_err(io("listing", path))?;
        if entry.file_name() != "lost+found" {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether there is something of a name, be it a link that leads nowhere.
fn is_there(path: &Path) -> Result<bool, StartError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io("looking at", path)(e)),
    }
}

/// Who a directory belongs to; `None` if it has no such file.
fn read_identity(dir: &Path, path: &Path) -> Result<Option<Identity>, StartError> {
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
        // A link that leads nowhere is not the same as no file.
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

fn write_identity(path: &Path, identity: &Identity) -> Result<(), StartError> {
    let text = serde_json::to_string_pretty(identity).map_err(|e| StartError::BadIdentity {
        path: path.to_owned(),
        why: e.to_string(),
    })?;
    // A torn file is not taken for an identity: it goes through a name of its own.
    write_durably(path, text.as_bytes())
}

pub(crate) fn sync_dir(dir: &Path) -> Result<(), StartError> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(io("syncing", dir))
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StartError {
    let path = path.to_owned();
    move |source| StartError::Io {
        operation,
        path,
        source,
    }
}

pub(crate) fn now_rfc3339() -> String {
    time::OffsetDateTime::now_utc()
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, partitions: u32) -> Result<DataDir, StartError> {
        LockedDir::open(dir)?.belonging_to(|| Identity::new("test", partitions), partitions)
    }

    fn made(dir: &Path) -> Identity {
        let mut made = open(dir, 8).unwrap();
        made.finish().unwrap();
        made.identity.clone()
    }

    #[test]
    fn identity_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = made(dir.path());
        let again = open(dir.path(), 8).unwrap();
        assert_eq!(again.identity, first);
        assert!(!again.is_new);
    }

    #[test]
    fn a_crash_while_it_is_made_keeps_the_identity() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), 8).unwrap().identity.clone();
        let again = open(dir.path(), 8).unwrap();
        assert!(again.is_new);
        assert_eq!(again.identity, first);
    }

    #[test]
    fn a_second_process_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open(dir.path(), 8).unwrap();
        let error = open(dir.path(), 8).unwrap_err();
        let pid = std::process::id().to_string();
        assert!(
            matches!(&error, StartError::InUse { pid: p, .. } if *p == pid),
            "{error}"
        );
    }

    #[test]
    fn a_refused_start_removes_what_it_has_made_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/data");
        LockedDir::open(&path).unwrap().leave();
        assert!(!dir.path().join("made").exists());
        // A directory that was there stays.
        fs::create_dir_all(&path).unwrap();
        LockedDir::open(&path).unwrap().leave();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        // So does what is in it, and who it belongs to.
        fs::write(path.join("mine"), "").unwrap();
        LockedDir::open(&path).unwrap().leave();
        assert!(path.join("mine").exists());
        let identity = made(&path);
        LockedDir::open(&path).unwrap().leave();
        assert_eq!(open(&path, 8).unwrap().identity, identity);
    }

    #[test]
    fn a_lock_file_that_was_removed_since_it_was_opened_locks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK);
        let first = lock(dir.path()).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = lock(dir.path()).unwrap();
        let is_same =
            |file: &File| file.metadata().unwrap().ino() == fs::metadata(&path).unwrap().ino();
        assert!(!is_same(&first));
    }

    #[test]
    fn a_directory_that_is_gone_from_its_path_gets_no_note_of_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (path, away) = (dir.path().join("data"), dir.path().join("away"));
        let data_dir = open(&path, 8).unwrap();
        data_dir.check_in_place(&path).unwrap();
        // As if it had been a mount: what is below is empty, then somebody else's.
        fs::rename(&path, &away).unwrap();
        data_dir.check_in_place(&path).unwrap_err();
        fs::create_dir(&path).unwrap();
        fs::write(path.join(LOCK), "").unwrap();
        let error = data_dir.report_damage(1, "why").unwrap_err();
        assert!(matches!(error, StartError::DirectoryGone { .. }), "{error}");
        assert!(!path.join("damaged").exists());
        fs::remove_dir_all(&path).unwrap();
        fs::rename(&away, &path).unwrap();
        data_dir.report_damage(1, "why").unwrap();
    }

    #[test]
    fn damage_is_noted_by_several_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = open(dir.path(), 8).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let data_dir = data_dir.clone();
                scope.spawn(move || data_dir.report_damage(1, "why").unwrap());
            }
        });
        assert_eq!(data_dir.known_damage(1).unwrap().as_deref(), Some("why"));
    }

    #[test]
    fn checkpoints_of_format_2_are_found_where_they_are_now() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity {
            format: 2,
            ..made(dir.path())
        };
        let path = dir.path().join("node.json");
        write_identity(&path, &identity).unwrap();
        let before = dir.path().join("snapshots");
        for file in ["3/lsn_5", "x"] {
            fs::create_dir_all(before.join(file)).unwrap();
        }
        // A crash came after some of them were moved.
        fs::create_dir_all(dir.path().join("checkpoints/1")).unwrap();
        let opened = open(dir.path(), 8).unwrap();
        assert_eq!(opened.identity.format, FORMAT);
        assert!(opened.checkpoints().join("3/lsn_5").exists());
        assert!(before.join("x").exists());
        drop(opened);
        assert_eq!(
            open(dir.path(), 8).unwrap().identity.node_id,
            identity.node_id
        );
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path());
        let path = dir.path().join("node.json");
        fs::write(&path, r#"{"format": 99, "what": "ever"}"#).unwrap();
        let error = open(dir.path(), 8).unwrap_err();
        assert!(
            matches!(error, StartError::NewerFormat { found: 99, .. }),
            "{error}"
        );
    }

    #[test]
    fn an_unreleased_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path());
        fs::write(dir.path().join("node.json"), r#"{"format": 1}"#).unwrap();
        let error = open(dir.path(), 8).unwrap_err();
        assert!(matches!(error, StartError::OlderFormat { .. }), "{error}");
    }

    #[test]
    fn what_is_put_aside_takes_no_earlier_one_s_place() {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path());
        let data_dir = open(dir.path(), 8).unwrap();
        for number in 1..=3 {
            fs::create_dir(data_dir.db()).unwrap();
            let to = data_dir.put_aside("db").unwrap();
            assert!(to.ends_with(format!("damaged/db-{number}")));
            assert!(!data_dir.db().exists());
        }
    }

    #[test]
    fn another_number_of_partitions_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path());
        let error = open(dir.path(), 9).unwrap_err();
        assert!(
            matches!(
                error,
                StartError::PartitionsChanged {
                    made: 8,
                    configured: 9,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn data_without_an_identity_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("db");
        fs::create_dir(&db).unwrap();
        fs::write(db.join("CURRENT"), "MANIFEST-000004\n").unwrap();
        let error = open(dir.path(), 8).unwrap_err();
        assert!(matches!(error, StartError::NoIdentity { .. }), "{error}");
        assert!(!dir.path().join("node.json.new").exists());
    }

    #[test]
    fn disks_that_are_mounted_before_the_first_start_are_no_data() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["log", "db"] {
            fs::create_dir_all(dir.path().join(name).join("lost+found")).unwrap();
        }
        made(dir.path());
    }

    #[test]
    fn what_is_no_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "text").unwrap();
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        for (path, what) in [(&file, "is a file"), (&link, "leads nowhere")] {
            let error = open(path, 8).unwrap_err();
            assert!(matches!(error, StartError::NoDirectory { .. }), "{error}");
            assert!(error.to_string().contains(what), "{error}");
        }
        assert!(!dir.path().join("nowhere").exists());
    }

    #[test]
    fn a_truncated_identity_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path());
        fs::write(dir.path().join("node.json"), "{\"format\"").unwrap();
        let error = open(dir.path(), 8).unwrap_err();
        assert!(matches!(error, StartError::BadIdentity { .. }), "{error}");
    }
}
