//! JSON snapshots on this disk: `snapshots/` of the data directory.
//!
//! ```text
//! snapshots/snapshot-<commit_ts>.json              a snapshot, see `document`
//! snapshots/.sums/snapshot-<commit_ts>.json.xxh128 its checksum, as `xxh128sum` writes it
//! snapshots/.tmp-<commit_ts>                       one that was not finished
//! ```
//!
//! A snapshot becomes visible by a rename, after it and its checksum are synced: a visible one is whole,
//! unless it was changed by hand or by the disk. A snapshot that was removed by hand is no error. One
//! without a checksum is read strictly, with a warning; one that does not match its checksum is never used.

mod name;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use esker_partition::checkpoint::{MISSING_TARGET, is_absent};
use esker_partition::state::{StateEntry, StateKey};

use super::document::{self, Header};
use super::error::FileError;
pub(crate) use name::{Written, commit_of, name_of};
pub(crate) use reader::read;
pub(crate) use writer::Writer;
use writer::{RateLimitedFile, has_room};

/// Bytes of the disk that snapshots leave free: commits need space in the log, and can do without snapshots.
const LEAVE_FREE: u64 = 64 * 1024 * 1024;

/// The directory of JSON snapshots.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    leave_free: u64,
}

/// The file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub commit_ts: u64,
    pub path: PathBuf,
    pub bytes: u64,
}

impl Files {
    /// Opens the directory, and creates it if it is missing. Removes unfinished snapshots in it.
    pub fn open(dir: PathBuf) -> io::Result<Files> {
        let files = Files {
            dir,
            leave_free: LEAVE_FREE,
        };
        fs::create_dir_all(files.sums())?;
        sync(&files.dir)?;
        for entry in fs::read_dir(&files.dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(".tmp-") {
                fs::remove_file(entry.path())?;
            }
        }
        files.forget_sums()?;
        Ok(files)
    }

    /// The directory as it is, for reading only: nothing in it is created or removed.
    pub fn at(dir: PathBuf) -> Files {
        Files {
            dir,
            leave_free: LEAVE_FREE,
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn sums(&self) -> PathBuf {
        self.dir.join(".sums")
    }

    pub fn path(&self, commit_ts: u64) -> PathBuf {
        self.dir.join(name_of(commit_ts))
    }

    pub fn sum_path(&self, commit_ts: u64) -> PathBuf {
        self.sums().join(format!("{}.xxh128", name_of(commit_ts)))
    }

    /// Checks that the disk has more free space than what is reserved for the log.
    pub fn has_room(&self) -> io::Result<()> {
        has_room(&File::open(&self.dir)?, self.leave_free)
    }

    /// The snapshots in the directory, newest first.
    pub fn list(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if is_absent(&self.dir, &e) => return Ok(found),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(io::Error::other(MISSING_TARGET));
            }
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let Some(commit_ts) = entry.file_name().to_str().and_then(commit_of) else {
                continue;
            };
            match entry.metadata() {
                Ok(metadata) if metadata.is_file() => found.push(Found {
                    commit_ts,
                    path: entry.path(),
                    bytes: metadata.len(),
                }),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        found.sort_by_key(|one| std::cmp::Reverse(one.commit_ts));
        Ok(found)
    }

    /// Writes a snapshot: whole or not at all, durable when this returns. `entries` passes its entries to
    /// the writer.
    pub fn write<E: From<io::Error>>(
        &self,
        header: Header,
        entries: impl FnOnce(&mut Writer) -> Result<(), E>,
    ) -> Result<Written, E> {
        // The directory may have been removed by hand.
        fs::create_dir_all(self.sums())?;
        let temporary = self.dir.join(format!(".tmp-{}", header.commit_ts));
        let done = self.write_to(&temporary, header, entries);
        if done.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        done
    }

    fn write_to<E: From<io::Error>>(
        &self,
        temporary: &Path,
        header: Header,
        entries: impl FnOnce(&mut Writer) -> Result<(), E>,
    ) -> Result<Written, E> {
        let file = File::create(temporary)?;
        has_room(&file, self.leave_free)?;
        let mut writer = Writer::new(file, self.leave_free);
        document::write_header(&mut writer.to, &header)?;
        entries(&mut writer)?;
        document::write_end(&mut writer.to)?;
        writer.to.flush()?;
        let keys = writer.keys;
        let RateLimitedFile {
            file, bytes, hash, ..
        } = writer
            .to
            .into_inner()
            .map_err(|e| E::from(e.into_error()))?;
        file.sync_all()?;
        let written = Written {
            header,
            keys,
            bytes,
            sum: format!("{:032x}", hash.digest128()),
        };
        let commit_ts = written.header.commit_ts;
        let mut file = File::create(self.sum_path(commit_ts))?;
        file.write_all(written.sum_line().as_bytes())?;
        file.sync_all()?;
        sync(&self.sums())?;
        fs::rename(temporary, self.path(commit_ts))?;
        sync(&self.dir)?;
        Ok(written)
    }

    /// Reads a snapshot to its end, and passes on its entries, which must not be used before this has
    /// succeeded. Returns whether the snapshot has a checksum, which then matched.
    pub fn read(
        &self,
        commit_ts: u64,
        mut take: impl FnMut(StateKey, StateEntry) -> Result<(), String>,
    ) -> Result<(Written, bool), FileError> {
        let path = self.path(commit_ts);
        let file = File::open(&path)?;
        let expected = match fs::read_to_string(self.sum_path(commit_ts)) {
            Ok(text) => Some(
                text.split_whitespace()
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            ),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                let error = io::Error::new(e.kind(), format!("its checksum: {e}"));
                return Err(error.into());
            }
        };
        let written = read(file, |one| take(one.key, one.entry))?;
        match expected {
            Some(expected) if expected != written.sum => Err(FileError::Damaged(format!(
                "its checksum is {}, and {expected} was written",
                written.sum
            ))),
            _ if written.header.commit_ts != commit_ts => Err(FileError::Damaged(format!(
                "it is of commit_ts {}, not of that in its name",
                written.header.commit_ts
            ))),
            expected => Ok((written, expected.is_some())),
        }
    }

    /// The same for a caller that can fail: its error is not damage of the snapshot, and comes first.
    pub fn read_into<E: std::fmt::Display>(
        &self,
        commit_ts: u64,
        mut take: impl FnMut(&StateKey, &StateEntry) -> Result<(), E>,
    ) -> Result<Result<(Written, bool), FileError>, E> {
        let mut failed = None;
        let read = self.read(commit_ts, |key, entry| {
            take(&key, &entry).map_err(|error| {
                let why = error.to_string();
                failed = Some(error);
                why
            })
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(read),
        }
    }

    /// Reads a snapshot to its end, without using its entries.
    pub fn check(&self, commit_ts: u64) -> Result<(Written, bool), FileError> {
        self.read(commit_ts, |_, _| Ok(()))
    }

    /// Moves a snapshot here from another directory of the same file system; it replaces one of that name. A
    /// crash in between leaves one that does not match its checksum, which is never used.
    pub fn adopt(&self, from: &Files, commit_ts: u64) -> io::Result<()> {
        let or_none = |done: io::Result<()>| match done {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        };
        let sum = self.sum_path(commit_ts);
        fs::create_dir_all(self.sums())?;
        let has_sum = or_none(fs::rename(from.sum_path(commit_ts), &sum))?;
        sync(&self.sums())?;
        fs::rename(from.path(commit_ts), self.path(commit_ts))?;
        sync(&self.dir)?;
        // The checksum is removed last: with neither, the old snapshot would be read as a valid one.
        if !has_sum && or_none(fs::remove_file(&sum))? {
            sync(&self.sums())?;
        }
        Ok(())
    }

    /// Renames a file that has a snapshot's name and must be kept. Returns its new path.
    pub fn set_aside(&self, commit_ts: u64) -> io::Result<PathBuf> {
        let path = self.path(commit_ts);
        let free = (1u32..).map(|n| self.dir.join(format!("{}.{n}.aside", name_of(commit_ts))));
        let mut free = free.filter(|aside| !aside.exists());
        let aside = free.next().ok_or(io::ErrorKind::AlreadyExists)?;
        fs::rename(&path, &aside)?;
        sync(&self.dir)?;
        Ok(aside)
    }

    /// Removes the snapshots of these commits. Returns the commits of those that existed.
    pub fn remove(&self, commits: &[u64]) -> io::Result<Vec<u64>> {
        let mut removed = Vec::new();
        for commit_ts in commits {
            match fs::remove_file(self.path(*commit_ts)) {
                Ok(()) => removed.push(*commit_ts),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        if !removed.is_empty() {
            sync(&self.dir)?;
        }
        self.forget_sums()?;
        Ok(removed)
    }

    /// Removes checksums without a snapshot.
    fn forget_sums(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.sums())? {
            let entry = entry?;
            let name = entry.file_name();
            let of = name.to_str().and_then(|name| name.strip_suffix(".xxh128"));
            if of.is_some_and(|of| commit_of(of).is_some() && !self.dir.join(of).exists()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
