//! The directory tree below a root, reached by descriptors only.
//!
//! Each segment of a key is opened relative to the directory before it and never through a symlink, so no
//! key and no symlink leads out of the root. A directory that is created is durable before an entry is put
//! into it.

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

/// Maximum number of directories that are remembered as durable, 16 bytes each; beyond it all are
/// forgotten, and synced again.
const KNOWN: usize = 4096;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// The tree below a root. See the module.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    /// Device and inode of directories whose entries in their parents were synced. If another process
    /// removes a directory and creates it again with the same inode, that process syncs it before it uses
    /// it.
    durable: Mutex<HashSet<(u64, u64)>>,
}

/// What kind of file has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Absent,
    /// A regular file.
    Object {
        size: u64,
        modified: SystemTime,
    },
    /// A directory, a symlink, a device: not an object.
    Other,
}

impl Tree {
    /// Opens and creates nothing. The path must be absolute.
    pub(super) fn new(root: PathBuf) -> Tree {
        Tree {
            root,
            durable: Mutex::default(),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Opens an existing directory. The root is resolved by its path each time, so a root that was moved
    /// away is not written to, and a directory that replaces it is used.
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

    /// Opens a directory, and creates the missing directories of its path, the root included.
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
                        // Another process created it first, or created it and removed it again.
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

    /// Removes the directories of this path that are empty, the innermost first. The root is kept.
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
            // It is not empty, or another process removed it; both are fine.
            if removed.is_err() {
                return;
            }
        }
    }

    fn durable(&self) -> std::sync::MutexGuard<'_, HashSet<(u64, u64)>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates the root and its missing parents; each is durable before the next is created.
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

/// Opens a directory in a directory. A symlink is not followed.
pub(super) fn open_dir(parent: &File, name: &str) -> io::Result<File> {
    let flags = DIRECTORY | OFlags::NOFOLLOW;
    Ok(File::from(rustix::fs::openat(
        parent,
        name,
        flags,
        Mode::empty(),
    )?))
}

/// Opens a regular file for reading; any other kind of file counts as absent.
pub(super) fn open_object(dir: &File, name: &str) -> io::Result<Option<File>> {
    // Without `NONBLOCK`, opening a pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        // The name is absent, a symlink, or a socket.
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(file.metadata()?.is_file().then_some(file))
}

/// Determines what kind of file has a name in a directory.
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

/// The type of an entry of a directory; it is looked up if the file system does not return it with the
/// name.
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
