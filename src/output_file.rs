//! A file that a command writes to a path that the user named.
//!
//! A regular file appears only when it is complete: its content is written to a file without a name, which
//! gets its name at the end, so that nothing else is left however the command ends. A file that is replaced
//! keeps its owner and mode. A path that leads to something else (a device, a FIFO, standard output) is
//! opened and written to. A symbolic link stays, and its target is written.
//!
//! A file that another process writes at the path meanwhile is never replaced, with or without `force`:
//! `force` allows only the replacement of the file that was there when the command began, identified by its
//! inode, its size and the time of its last change. Otherwise the finished file gets a name beside it, and
//! the failure has that name. (If a process opened an empty file before it was replaced and writes to it
//! afterwards, it writes to a file without a name, as after every replacement.)

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Seek as _, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;
use tempfile::{NamedTempFile, TempPath};

use crate::failure::Failure;

/// Most symbolic links that are followed, the same number as Linux's limit.
const MAX_LINKS: usize = 40;
/// Prefix of the names of unfinished files, where a file system has no files without a name.
const SCRATCH_PREFIX: &str = ".esker-output-";
/// Most names that are tried for a file beside one of another process.
const MAX_NAMES: u32 = 100;
/// Mode of a new file: only its owner could see the content so far.
const NEW_MODE: u32 = 0o600;

/// A file that is being written.
pub struct OutputFile {
    /// The path as the user gave it.
    shown: PathBuf,
    to: To,
}

enum To {
    /// Anything but a regular file.
    Through(File),
    Regular {
        scratch: Scratch,
        path: PathBuf,
        found: Found,
    },
}

/// What was at the path when the command began.
#[derive(Clone, Copy, PartialEq)]
enum Found {
    Nothing,
    /// A file without content, such as `mktemp` makes.
    Empty,
    Content {
        device: u64,
        inode: u64,
        size: u64,
        /// Seconds and nanoseconds.
        modified: (i64, i64),
    },
}

impl Found {
    fn of(found: &fs::Metadata) -> Found {
        match found.len() {
            0 => Found::Empty,
            size => Found::Content {
                device: found.dev(),
                inode: found.ino(),
                size,
                modified: (found.mtime(), found.mtime_nsec()),
            },
        }
    }
}

/// The content, before the file has its name.
enum Scratch {
    /// The system removes it when it is closed.
    Unnamed(File),
    /// For file systems without unnamed files. It is removed when it is dropped.
    Named(NamedTempFile),
}

/// What a path leads to.
enum Target {
    Stdout,
    Stderr,
    /// A regular file, or a path where nothing exists yet.
    Regular(PathBuf),
    Other(PathBuf),
}

impl OutputFile {
    /// Begins to write a file. One that exists and is not empty is replaced only with `force`.
    ///
    /// A FIFO is opened, which waits for its reader.
    ///
    /// # Errors
    ///
    /// `file_exists`; `io`, also where a file that is replaced cannot keep its owner.
    pub fn create(path: &Path, force: bool) -> Result<OutputFile, Failure> {
        let failed = |e| cannot(path, &e);
        let to = match target(path).map_err(failed)? {
            Target::Stdout => {
                let stdout = io::stdout().as_fd().try_clone_to_owned();
                To::Through(stdout.map_err(failed)?.into())
            }
            Target::Stderr => {
                let stderr = io::stderr().as_fd().try_clone_to_owned();
                To::Through(stderr.map_err(failed)?.into())
            }
            Target::Other(other) => To::Through(
                OpenOptions::new()
                    .append(true)
                    .open(other)
                    .map_err(failed)?,
            ),
            Target::Regular(regular) => match fs::metadata(&regular) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => To::Regular {
                    scratch: Scratch::create(&regular).map_err(failed)?,
                    path: regular,
                    found: Found::Nothing,
                },
                Err(error) => return Err(failed(error)),
                Ok(found) if found.len() > 0 && !force => {
                    return Err(Failure::wrong(
                        "file_exists",
                        format!("there is a file {} already", path.display()),
                    )
                    .advise("name another, or replace it with --force"));
                }
                Ok(found) => {
                    let scratch = Scratch::create(&regular).map_err(failed)?;
                    keep(scratch.file(), &found).map_err(|e| {
                        let owner = format!("{}:{}", found.uid(), found.gid());
                        let error = io::Error::new(
                            e.kind(),
                            format!("its owner {owner} cannot be kept: {e}"),
                        );
                        failed(error).advise("name another file")
                    })?;
                    To::Regular {
                        scratch,
                        path: regular,
                        found: Found::of(&found),
                    }
                }
            },
        };
        Ok(OutputFile {
            shown: path.to_owned(),
            to,
        })
    }

    /// Lets only the owner read the file, whatever the mode of the one that it replaces.
    ///
    /// # Errors
    ///
    /// `io`.
    pub fn keep_secret(&self) -> Result<(), Failure> {
        match &self.to {
            To::Through(_) => Ok(()),
            To::Regular { scratch, .. } => scratch
                .file()
                .set_permissions(Permissions::from_mode(NEW_MODE))
                .map_err(|e| self.failure(&e)),
        }
    }

    /// Appends bytes to the content.
    ///
    /// # Errors
    ///
    /// The system's; a broken pipe if the reader has gone.
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.to {
            To::Through(file) => file.write_all(bytes),
            To::Regular { scratch, .. } => scratch.file().write_all(bytes),
        }
    }

    /// Syncs the file to the disk, and gives it its name.
    ///
    /// # Errors
    ///
    /// `file_exists` if another process created or wrote the file meanwhile: that one is left unchanged, and
    /// the new content is in a file beside it; `io`.
    pub fn finish(self) -> Result<(), Failure> {
        let (scratch, path, found) = match self.to {
            // A device or a pipe is not synced.
            To::Through(_) => return Ok(()),
            To::Regular {
                scratch,
                path,
                found,
            } => (scratch, path, found),
        };
        let shown = self.shown;
        let finished = match found {
            Found::Nothing => scratch.name(&path),
            found => scratch.replace_found(&path, found),
        };
        let Some(kept) = finished.map_err(|e| cannot(&shown, &e))? else {
            return Ok(());
        };
        // The message has the real path, because the given one may be a link.
        let kept = kept.display();
        Err(Failure::wrong(
            "file_exists",
            format!(
                "{} was made or written by others meanwhile, and is left as it is; what was written is in \
                 {kept}",
                shown.display()
            ),
        )
        .advise("look at both, and keep what you want"))
    }

    /// The failure for an error of the system.
    pub fn failure(&self, error: &io::Error) -> Failure {
        cannot(&self.shown, error)
    }
}

impl Scratch {
    /// Creates it in the directory of the file, so that both are on the same file system.
    fn create(path: &Path) -> io::Result<Scratch> {
        let directory = directory(path);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(directory, flags, Mode::from_raw_mode(NEW_MODE)) {
            Ok(file) => Ok(Scratch::Unnamed(file.into())),
            // Old kernels ignore the flag, and refuse to open a directory for writing.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let named = tempfile::Builder::new()
                    .prefix(SCRATCH_PREFIX)
                    .permissions(Permissions::from_mode(NEW_MODE))
                    .tempfile_in(directory)?;
                Ok(Scratch::Named(named))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn file(&self) -> &File {
        match self {
            Scratch::Unnamed(file) => file,
            Scratch::Named(named) => named.as_file(),
        }
    }

    /// Gives it this name if it is free; otherwise a name beside it, which is returned.
    fn name(self, path: &Path) -> io::Result<Option<PathBuf>> {
        self.file().sync_all()?;
        let kept = match self {
            Scratch::Unnamed(file) => beside(path, |name| link(&file, name))?,
            Scratch::Named(named) => {
                let kept = beside(path, |name| {
                    rustix::fs::linkat(CWD, named.path(), CWD, name, AtFlags::empty())
                        .map_err(io::Error::from)
                })?;
                named.close()?;
                kept
            }
        };
        File::open(directory(path))?.sync_all()?;
        Ok(kept)
    }

    /// Replaces the file that was found at the path. If that was changed or replaced meanwhile, it gets a
    /// name beside it instead, which is returned.
    fn replace_found(self, path: &Path, found: Found) -> io::Result<Option<PathBuf>> {
        let is_found = |path: &Path| fs::symlink_metadata(path).map(|now| Found::of(&now) == found);
        match is_found(path) {
            Ok(true) => {}
            // The file was removed: nothing is replaced.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.name(path),
            Ok(false) => return self.name(path),
            Err(error) => return Err(error),
        }
        self.file().sync_all()?;
        let named = match self {
            Scratch::Named(named) => named.into_temp_path(),
            Scratch::Unnamed(file) => tempfile::Builder::new()
                .prefix(SCRATCH_PREFIX)
                .make_in(directory(path), |name| link(&file, name))?
                .into_temp_path(),
        };
        // The exchange keeps a name for both files, so that the replaced one can still be examined.
        let exchange = || rustix::fs::renameat_with(CWD, &*named, CWD, path, RenameFlags::EXCHANGE);
        match exchange() {
            Ok(()) => match is_found(&named) {
                Ok(true) => {
                    named.close()?;
                    File::open(directory(path))?.sync_all()?;
                    Ok(None)
                }
                looked => match looked.and_then(|_| Ok(exchange()?)) {
                    Ok(()) => Scratch::reopen(named)?.name(path),
                    Err(error) => {
                        // It may contain what another process wrote, so it is kept.
                        let theirs = named.keep()?;
                        let why = format!(
                            "the file that was there before is now {}: {error}",
                            theirs.display()
                        );
                        Err(io::Error::new(error.kind(), why))
                    }
                },
            },
            // The file was removed meanwhile.
            Err(Errno::NOENT) => Scratch::reopen(named)?.name(path),
            // The file system cannot exchange names, or the file is a mount point.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::BUSY) => {
                match is_found(path)? {
                    true => Scratch::reopen(named)?.replace(path).map(|()| None),
                    false => Scratch::reopen(named)?.name(path),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn reopen(named: TempPath) -> io::Result<Scratch> {
        let file = OpenOptions::new().read(true).write(true).open(&named)?;
        Ok(Scratch::Named(NamedTempFile::from_parts(file, named)))
    }

    /// Replaces an existing file.
    fn replace(self, path: &Path) -> io::Result<()> {
        self.file().sync_all()?;
        let mut content = self.file().try_clone()?;
        let replaced = match self {
            Scratch::Unnamed(file) => {
                let named = tempfile::Builder::new()
                    .prefix(SCRATCH_PREFIX)
                    .make_in(directory(path), |name| link(&file, name))?;
                named.into_temp_path().persist(path).map_err(|e| e.error)
            }
            Scratch::Named(named) => named.persist(path).map(drop).map_err(|e| e.error),
        };
        match replaced {
            // A file that is a mount point cannot be renamed over, so the content is copied into it.
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                content.rewind()?;
                let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
                io::copy(&mut content, &mut file)?;
                file.sync_all()
            }
            Err(error) => Err(error),
            Ok(()) => File::open(directory(path))?.sync_all(),
        }
    }
}

/// Gives an unnamed file this name, if it is free.
fn link(file: &File, path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

/// Gives a file this name; if it is taken, the first free one of `NAME.new`, `NAME.new-2` and so on, which is
/// returned.
fn beside(
    path: &Path,
    mut give: impl FnMut(&Path) -> io::Result<()>,
) -> io::Result<Option<PathBuf>> {
    let mut taken = match give(path) {
        Ok(()) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => error,
        Err(error) => return Err(error),
    };
    let name = path.file_name().unwrap_or_default();
    for number in 1..=MAX_NAMES {
        let mut name = name.to_owned();
        name.push(match number {
            1 => ".new".to_owned(),
            n => format!(".new-{n}"),
        });
        let beside = path.with_file_name(name);
        match give(&beside) {
            Ok(()) => return Ok(Some(beside)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => taken = error,
            Err(error) => return Err(error),
        }
    }
    Err(taken)
}

/// Gives a file the owner and the mode of another.
fn keep(file: &File, other: &fs::Metadata) -> io::Result<()> {
    let ours = file.metadata()?;
    if (ours.uid(), ours.gid()) != (other.uid(), other.gid()) {
        let (uid, gid) = (Uid::from_raw(other.uid()), Gid::from_raw(other.gid()));
        rustix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    // The mode is set last, because a change of the owner clears some of its bits.
    file.set_permissions(Permissions::from_mode(other.mode() & 0o7777))
}

/// Follows symbolic links, one by one: `/proc/PID/fd` is recognized only by the directory that a link leads
/// through.
fn target(path: &Path) -> io::Result<Target> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let directory = fs::canonicalize(directory(&path))?;
        let found = directory.join(&name);
        if directory == Path::new(&format!("/proc/{}/fd", std::process::id())) {
            if name == "1" {
                return Ok(Target::Stdout);
            } else if name == "2" {
                return Ok(Target::Stderr);
            }
        }
        let metadata = match fs::symlink_metadata(&found) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Target::Regular(found));
            }
            metadata => metadata?,
        };
        if directory.starts_with("/proc") {
            // A link below `/proc` is no path, but a reference to an open file.
            return Ok(Target::Other(found));
        } else if metadata.is_symlink() {
            path = directory.join(fs::read_link(&found)?);
        } else if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        } else if metadata.is_file() {
            return Ok(Target::Regular(found));
        } else {
            return Ok(Target::Other(found));
        }
    }
    Err(Errno::LOOP.into())
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn cannot(path: &Path, error: &io::Error) -> Failure {
    Failure::wrong("io", format!("writing {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
