//! A file that a command writes because somebody named it.
//!
//! A regular file is there only when it is whole: it is written without a name and gets its name at the
//! end, so that however the command ends, nothing else is left. One that it replaces keeps its owner and
//! mode. What is no regular file (a device, a FIFO, standard output by its path) is written through, and a
//! link stays: what it points to is written.
//!
//! What others write to the path meanwhile is never replaced, with `force` or without: `force` is about
//! what was there when the command began, known by its inode, its size and the time of its last change. The finished file then gets a name beside it, and the failure
//! has that name. (A process that had an empty file open before it was replaced, and writes to it only
//! afterwards, writes to what has no name any more, as after every replacement.)

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

/// Links that are followed to the file, as many as the system follows.
const MAX_LINKS: usize = 40;
/// How names of files begin that are not finished, where there has to be a name.
const SCRATCH_PREFIX: &str = ".esker-output-";
/// Names that are tried for a file beside one that others have made.
const MAX_NAMES: u32 = 100;
/// What a new file may: it holds what only its owner was to see so far.
const NEW_MODE: u32 = 0o600;

/// A file that is being written.
pub struct OutputFile {
    /// As it was named.
    shown: PathBuf,
    to: To,
}

enum To {
    /// What is no regular file.
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
    /// For file systems that have no files without a name. It is removed when it is dropped.
    Named(NamedTempFile),
}

/// What a path leads to.
enum Target {
    Stdout,
    Stderr,
    /// A regular file, or nothing yet.
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

    /// Writes some more.
    ///
    /// # Errors
    ///
    /// The system's; a broken pipe if whoever reads has gone.
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.to {
            To::Through(file) => file.write_all(bytes),
            To::Regular { scratch, .. } => scratch.file().write_all(bytes),
        }
    }

    /// Gives it its name, when all of it is on the disk.
    ///
    /// # Errors
    ///
    /// `file_exists` if others have made or written the file meanwhile: theirs is left as it is, and what
    /// was written is beside it; `io`.
    pub fn finish(self) -> Result<(), Failure> {
        let (scratch, path, found) = match self.to {
            // What it is decides about syncs.
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
        // The name that was given may be a link.
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

    /// What failed.
    pub fn failure(&self, error: &io::Error) -> Failure {
        cannot(&self.shown, error)
    }
}

impl Scratch {
    /// In the directory of the file, so that it is on the same file system.
    fn create(path: &Path) -> io::Result<Scratch> {
        let directory = directory(path);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(directory, flags, Mode::from_raw_mode(NEW_MODE)) {
            Ok(file) => Ok(Scratch::Unnamed(file.into())),
            // Old kernels take it for an attempt to write to the directory.
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

    /// Gives it this name, if nothing has it; else one beside it, which is returned.
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

    /// Gives it the name of a file that was found there; if others have written to that or put another in
    /// its place, one beside it, which is returned.
    fn replace_found(self, path: &Path, found: Found) -> io::Result<Option<PathBuf>> {
        let is_found = |path: &Path| fs::symlink_metadata(path).map(|now| Found::of(&now) == found);
        match is_found(path) {
            Ok(true) => {}
            // Somebody has removed it: then nothing is replaced.
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
        // Both files have a name all the time, so that what was replaced can be looked at.
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
                        // It may have what others wrote: it stays.
                        let theirs = named.keep()?;
                        let why = format!("what was there is in {} now: {error}", theirs.display());
                        Err(io::Error::new(error.kind(), why))
                    }
                },
            },
            // Somebody has removed it meanwhile.
            Err(Errno::NOENT) => Scratch::reopen(named)?.name(path),
            // A file system that cannot exchange, or a file that is mounted by itself.
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

    /// Gives it the name of a file that exists.
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
            // A file that is mounted by itself takes no other's place: it takes the content.
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

/// Gives a file without a name this one, if nothing has it.
fn link(file: &File, path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

/// Gives a file this name; if something has it, the first free one of `NAME.new`, `NAME.new-2` and so on,
/// which is returned.
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
    // Afterwards: a change of the owner takes some of it away.
    file.set_permissions(Permissions::from_mode(other.mode() & 0o7777))
}

/// Follows links, one by one: some are only told by where they lead.
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
            // A link there is no path, but a way to what is open.
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
