//! The directory tree below a root, reached by descriptors only.
//!
//! Each segment of a key is opened relative to the directory before it and never by way of a symlink,
//! so no key and no symlink leads out of the root. A directory that is made is on disk before anything
//! is put into it.

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Directories that are known to be on disk; more are forgotten and synced again. 16 bytes each.
const KNOWN: usize = 4096;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// See the module.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    /// Device and inode of directories whose own entries were synced. Another process may remove one
    /// and create it again with the same inode, and then syncs it before it uses it.
    durable: Mutex<HashSet<(u64, u64)>>,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Absent,
    /// A regular file.
    Object {
        size: u64,
        modified: SystemTime,
    },
    /// A directory, a symlink, a device: nothing of ours.
    Other,
}

impl Tree {
    /// Nothing is opened or made yet. The path must be absolute.
    pub(super) fn new(root: PathBuf) -> Tree {
        Tree {
            root,
            durable: Mutex::default(),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Opens a directory that is there. The root is found anew each time, so that one that was moved
    /// away is not written to, and its successor is.
    pub(super) fn open<'a>(&self, segments: impl Iterator<Item = &'a str>) -> io::Result<File> {
        let mut dir = self.open_root()?;
        for segment in segments {
            dir = open_dir(&dir, segment)?;
        }
        Ok(dir)
    }

    fn open_root(&self) -> io::Result<File> {
        Ok(File::from(rustix::fs::open(
            &self.root,
            DIRECTORY,
            Mode::empty(),
        )?))
    }

    /// Opens a directory and makes what is missing of it, root included.
    pub(super) fn make<'a>(&self, segments: impl Iterator<Item = &'a str>) -> io::Result<File> {
        let mut dir = match self.open_root() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_root(&self.root)?;
                self.open_root()?
            }
            opened => opened?,
        };
        for segment in segments {
            dir = self.make_in(dir, segment)?;
        }
        Ok(dir)
    }

    fn make_in(&self, parent: File, name: &str) -> io::Result<File> {
        let dir = loop {
            match open_dir(&parent, name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o777)) {
                        // Somebody else was faster, or made and removed it.
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                opened => break opened?,
            }
        };
        let meta = dir.metadata()?;
        let identity = (meta.dev(), meta.ino());
        if !self.durable().contains(&identity) {
            parent.sync_all()?;
            let mut durable = self.durable();
            if durable.len() >= KNOWN {
                durable.clear();
            }
            durable.insert(identity);
        }
        Ok(dir)
    }

    /// Removes the directories of this path that are empty, the innermost first. The root stays.
    pub(super) fn prune(&self, segments: &[&str]) {
        for depth in (1..=segments.len()).rev() {
            let removed = self
                .open(segments[..depth - 1].iter().copied())
                .and_then(|parent| {
                    let dir = open_dir(&parent, segments[depth - 1])?;
                    let meta = dir.metadata()?;
                    rustix::fs::unlinkat(&parent, segments[depth - 1], AtFlags::REMOVEDIR)?;
                    self.durable().remove(&(meta.dev(), meta.ino()));
                    Ok(())
                });
            // It is in use, or somebody else removed it: both are fine.
            if removed.is_err() {
                return;
            }
        }
    }

    fn durable(&self) -> std::sync::MutexGuard<'_, HashSet<(u64, u64)>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the root and what is missing above it, each on disk before the next.
fn make_root(root: &Path) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut existing = root;
    while !existing.exists() {
        missing.push(existing);
        existing = existing.parent().ok_or(io::ErrorKind::NotFound)?;
    }
    let mut parent = existing;
    for dir in missing.into_iter().rev() {
        match std::fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        File::open(parent)?.sync_all()?;
        parent = dir;
    }
    Ok(())
}

/// Opens a directory in a directory, and no symlink to one.
pub(super) fn open_dir(parent: &File, name: &str) -> io::Result<File> {
    let flags = DIRECTORY | OFlags::NOFOLLOW;
    Ok(File::from(rustix::fs::openat(
        parent,
        name,
        flags,
        Mode::empty(),
    )?))
}

/// Opens a regular file for reading; whatever else has the name counts as absent.
pub(super) fn open_object(dir: &File, name: &str) -> io::Result<Option<File>> {
    // Opening a pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        // Absent; a symlink; a socket.
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(file.metadata()?.is_file().then_some(file))
}

/// What a name in a directory stands for.
pub(super) fn look(dir: &File, name: impl rustix::path::Arg) -> io::Result<Entry> {
    let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Entry::Absent),
        Err(error) => return Err(error.into()),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(Entry::Other);
    }
    Ok(Entry::Object {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: modified(&stat),
    })
}

#[allow(clippy::unnecessary_cast, reason = "other systems have other types")]
fn modified(stat: &Stat) -> SystemTime {
    let seconds = stat.st_mtime as i64;
    let nanos = Duration::from_nanos(stat.st_mtime_nsec as u64);
    let whole = Duration::from_secs(seconds.unsigned_abs());
    if seconds >= 0 {
        SystemTime::UNIX_EPOCH + whole + nanos
    } else {
        SystemTime::UNIX_EPOCH - whole + nanos
    }
}

/// The type of an entry of a directory, for file systems that do not tell it with the name.
pub(super) fn type_of(dir: &File, name: &CStr, told: FileType) -> io::Result<FileType> {
    if told != FileType::Unknown {
        return Ok(told);
    }
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode)),
        Err(Errno::NOENT) => Ok(FileType::Unknown),
        Err(error) => Err(error.into()),
    }
}
