//! Files of a store that are not objects: unfinished files, and the locks that make compare-and-swap
//! atomic. All of them are in `.tmp` below the root, on the file system of the objects, and are never
//! listed.
//!
//! A temporary file is locked (`flock`) as long as its writer exists, so a file that another process can
//! lock was left behind by a crash.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use super::tree::{Entry, Tree, look};

/// Directory of the files that are not objects.
pub(super) const DIR: &str = ".tmp";

/// Number of lock files. The hash of a key selects one of them, so their number is bounded; two keys with
/// the same lock only wait for each other.
const LOCKS: u64 = 256;

/// Temporary files without a lock are removed when they are older than this. Between its creation and its
/// lock, a file is unlocked for an instant; the age only has to exceed that.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

const PREFIX: &str = "put-";

/// An unfinished file. Removed when dropped, unless it became an object by a rename.
#[derive(Debug)]
pub(super) struct TempFile {
    pub(super) file: File,
    pub(super) dir: File,
    pub(super) name: String,
    pub(super) renamed: bool,
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.renamed
            && let Err(error) = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty())
        {
            tracing::debug!(%error, name = self.name, "A temporary file was not removed");
        }
    }
}

/// A key's lock. It excludes other tasks and other processes until it is dropped.
#[must_use]
#[derive(Debug)]
pub(super) struct KeyLock {
    _file: File,
}

/// Creates a temporary file and locks it.
pub(super) fn temp(tree: &Tree) -> io::Result<TempFile> {
    // Process id and count make a name unique on this machine. If other machines share the directory, or a
    // crash left a file of this name behind, the next count is tried.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let process = std::process::id();
    let dir = tree.make([DIR].into_iter())?;
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{process}-{count}");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&dir, &name, flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => File::from(file),
            Err(Errno::EXIST) => continue,
            Err(error) => return Err(error.into()),
        };
        let temp = TempFile {
            file,
            dir,
            name,
            renamed: false,
        };
        // No other process locks a file this young, so this does not wait.
        rustix::fs::flock(&temp.file, FlockOperation::LockExclusive)?;
        return Ok(temp);
    }
}

/// Waits for a key's lock. Blocks the thread.
pub(super) fn lock(tree: &Tree, key: &str) -> io::Result<KeyLock> {
    let name = format!("lock-{:02x}", xxh3_64(key.as_bytes()) % LOCKS);
    loop {
        let dir = tree.make([DIR].into_iter())?;
        let file = open_lock(&dir, &name)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        if is_still(&dir, &name, &file)? {
            return Ok(KeyLock { _file: file });
        }
        // `.tmp` was emptied meanwhile: other processes lock a new file now.
    }
}

fn open_lock(dir: &File, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::from_raw_mode(0o666);
    Ok(File::from(rustix::fs::openat(dir, name, flags, mode)?))
}

fn is_still(dir: &File, name: &str, file: &File) -> io::Result<bool> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        #[allow(clippy::useless_conversion, reason = "other systems have other types")]
        Ok(stat) => Ok(u64::from(stat.st_ino) == file.metadata()?.ino()),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes what crashed processes left behind, unless another process is cleaning. Returns the number of
/// files removed.
pub(super) fn clean(tree: &Tree) -> io::Result<usize> {
    let dir = match tree.open([DIR].into_iter()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        opened => opened?,
    };
    let cleaning = open_lock(&dir, "cleaning")?;
    match rustix::fs::flock(&cleaning, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(0),
        Err(error) => return Err(error.into()),
    }
    // Ages are computed by the file system's clock, because it set the times of the files as well.
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    rustix::fs::futimens(&cleaning, &times)?;
    let now = cleaning.metadata()?.modified()?;
    let mut removed = 0;
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let Entry::Object { modified, .. } = look(&dir, name)? else {
            continue;
        };
        if now
            .duration_since(modified)
            .is_ok_and(|age| age > ABANDONED)
            && is_abandoned(&dir, name)?
        {
            match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
                Ok(()) => removed += 1,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(removed)
}

fn is_abandoned(dir: &File, name: &std::ffi::CStr) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => Ok(rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
