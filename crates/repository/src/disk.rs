//! Local files of a restore. All blocking work is done on threads that may block.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use xxhash_rust::xxh3::Xxh3;

use crate::error::Error;
use crate::ids::Digest;

/// Bytes that are collected before a write.
const BUFFER: usize = 1 << 20;

/// Runs work on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other)
        .flatten()
        .map_err(|source| Error::Io {
            what: "restore",
            path: PathBuf::new(),
            source,
        })
}

/// The path of a file below a directory. Its name was checked not to lead out of the directory.
pub(crate) fn below(dir: &Path, name: &str) -> PathBuf {
    dir.join(name.trim_start_matches('/'))
}

/// The checksum of a file.
pub(crate) fn digest(path: &Path) -> io::Result<Digest> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Xxh3::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(Digest(hasher.digest128()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// Refuses to begin a restore for which the disk has too little space.
pub(crate) fn check_space(dir: &Path, needed: u64) -> Result<(), Error> {
    // If the file system does not report its free space, the restore is attempted.
    let Ok(stats) = rustix::fs::statvfs(dir) else {
        return Ok(());
    };
    let free = stats.f_bavail.saturating_mul(stats.f_frsize);
    if free < needed {
        return Err(Error::NoSpace {
            path: dir.to_owned(),
            needed,
            free,
        });
    }
    Ok(())
}

/// A file that is written and hashed in order.
pub(crate) struct Writer {
    path: PathBuf,
    state: Option<(fs::File, Xxh3)>,
    buffer: BytesMut,
}

impl Writer {
    /// Creates the file, and the directories above it.
    pub(crate) async fn create(path: PathBuf) -> Result<Writer, Error> {
        let at = path.clone();
        let created = blocking(move || {
            if let Some(parent) = at.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::File::create(&at)
        });
        let file = created.await.map_err(|e| named(e, "create", &path))?;
        Ok(Writer {
            path,
            state: Some((file, Xxh3::new())),
            buffer: BytesMut::new(),
        })
    }

    /// Adds bytes.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        if self.buffer.is_empty() && bytes.len() >= BUFFER {
            return self.flush(bytes, false).await;
        }
        self.buffer.extend_from_slice(&bytes);
        if self.buffer.len() >= BUFFER {
            let gathered = self.buffer.split().freeze();
            self.flush(gathered, false).await?;
        }
        Ok(())
    }

    async fn flush(&mut self, bytes: Bytes, sync: bool) -> Result<(), Error> {
        let Some((mut file, mut hasher)) = self.state.take() else {
            return Err(Error::Invalid(format!(
                "{} failed before",
                self.path.display()
            )));
        };
        let written = blocking(move || {
            hasher.update(&bytes);
            file.write_all(&bytes)?;
            if sync {
                file.sync_data()?;
            }
            Ok((file, hasher))
        });
        self.state = Some(written.await.map_err(|e| named(e, "write", &self.path))?);
        Ok(())
    }

    /// Syncs the file, and returns its checksum.
    pub(crate) async fn finish(mut self) -> Result<Digest, Error> {
        let rest = self.buffer.split().freeze();
        self.flush(rest, true).await?;
        let digest = self.state.as_ref().map(|(_, hasher)| hasher.digest128());
        Ok(Digest(digest.unwrap_or_default()))
    }
}

/// Adds the operation and the file to an error.
pub(crate) fn named(error: Error, what: &'static str, path: &Path) -> Error {
    match error {
        Error::Io { source, .. } => Error::Io {
            what,
            path: path.to_owned(),
            source,
        },
        other => other,
    }
}

/// Syncs a directory's entries.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

/// Syncs the entries of a directory and of all below it.
pub(crate) fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    sync_dir(dir)
}

/// Removes files that do not belong to the snapshot, which an interrupted restore may have left.
pub(crate) fn remove_all_but(dir: &Path, names: &HashSet<String>) -> io::Result<()> {
    fn walk(dir: &Path, prefix: &str, names: &HashSet<String>) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let file_name = entry.file_name();
            let name = format!("{prefix}/{}", file_name.to_string_lossy());
            if entry.file_type()?.is_dir() {
                walk(&entry.path(), &name, names)?;
            } else if !names.contains(&name) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
    walk(dir, "", names)
}
