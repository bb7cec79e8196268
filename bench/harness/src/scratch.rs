//! The directories that measured servers write to.
//!
//! A [`Scratch`] owns one directory on a real disk and removes it with everything below it when it is
//! dropped. A directory in memory (tmpfs) is refused, because an fsync costs nothing there, and the figures
//! would mean something else.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::machine;

/// A directory that is removed when this value is dropped.
pub struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    /// Makes a new directory below `parent`, or below the user's cache directory.
    ///
    /// # Errors
    ///
    /// If `parent` cannot be made, or lies on a file system that lives in memory.
    pub fn new(parent: Option<&Path>) -> anyhow::Result<Self> {
        let parent = match parent {
            Some(parent) => parent.to_path_buf(),
            None => cache_directory()?.join("bench"),
        };
        std::fs::create_dir_all(&parent)
            .with_context(|| format!("cannot make the directory {}", parent.display()))?;
        let kind = machine::file_system(&parent)?;
        if kind.starts_with("tmpfs") || kind.starts_with("ramfs") {
            bail!(
                "{} lies in memory ({kind}), where durability costs nothing; \
                 name a directory on a disk with --scratch",
                parent.display()
            );
        }
        let directory = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(&parent)
            .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        Ok(Self { directory })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Makes and returns a new directory `name` below this one.
    ///
    /// # Errors
    ///
    /// If it exists already or cannot be made.
    pub fn subdirectory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path().join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Releases the directory, so that it is not removed.
    pub fn keep(self) -> PathBuf {
        self.directory.keep()
    }
}

/// `$XDG_CACHE_HOME/esker`, or `~/.cache/esker`.
///
/// # Errors
///
/// If neither variable is set.
pub fn cache_directory() -> anyhow::Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(cache) = set("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(cache).join("esker"));
    }
    let home = set("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache").join("esker"))
}
