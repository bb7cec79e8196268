//! `damaged/`: why databases of partitions must not be used, and what recoveries have put aside.

use std::fs;
use std::path::{Path, PathBuf};

use super::DataDir;
use super::files::{io, is_there, or_absent, sync_dir, write_durably};
use crate::error::StartError;

/// Reported as damage of a partition's database until its new lineage has begun.
pub(crate) const MADE_OF_STATE: &str = "it is being made of a state snapshot";

impl DataDir {
    /// The note that a partition's database must not be used, with the reason.
    pub fn damage(&self, partition: u64) -> PathBuf {
        self.path
            .join("damaged")
            .join(format!("partition-{partition}"))
    }

    /// Why a partition's database must not be used, if an earlier start or a running server has found it
    /// damaged.
    pub fn known_damage(&self, partition: u64) -> Result<Option<String>, StartError> {
        let path = self.damage(partition);
        let why = or_absent(fs::read(&path), &path)?;
        Ok(why.map(|why| String::from_utf8_lossy(&why).into_owned()))
    }

    /// Notes durably, for the next start, that a partition's database must not be used.
    pub fn report_damage(&self, partition: u64, why: &str) -> Result<(), StartError> {
        let _noting = self.noting.lock();
        // Nothing is written below a mount that is gone: that directory would look like one in use.
        self.check_in_place(&self.path)?;
        let path = self.damage(partition);
        let dir = self.path.join("damaged");
        fs::create_dir_all(&dir).map_err(io("creating", &dir))?;
        write_durably(&path, why.as_bytes())?;
        sync_dir(&self.path)
    }

    /// Removes the note, once the partition has another database that is durable.
    pub fn forget_damage(&self, partition: u64) -> Result<(), StartError> {
        let _noting = self.noting.lock();
        let path = self.damage(partition);
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.path.join("damaged")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(io("removing", &path)(source)),
        }
    }

    /// Moves one of its directories to `damaged/`; returns the new path.
    pub fn put_aside(&self, what: &str) -> Result<PathBuf, StartError> {
        self.put_aside_as(&self.path.join(what), what)
    }

    /// Moves a directory to `damaged/`, under this name and a number; returns the new path.
    pub fn put_aside_as(&self, from: &Path, name: &str) -> Result<PathBuf, StartError> {
        put_aside_in(&self.path, from, name)
    }

    /// The path for something that is put aside under this name and a number; creates its parent directory.
    pub fn place_aside(&self, name: &str) -> Result<PathBuf, StartError> {
        let to = place_in(&self.path, name)?;
        sync_dir(&self.path)?;
        Ok(to)
    }

    /// Moves a partition's checkpoint to `damaged/`; returns the new path.
    pub fn put_checkpoint_aside(&self, partition: u64, from: &Path) -> Result<PathBuf, StartError> {
        let to = self.place_for_checkpoint_aside(partition)?;
        fs::rename(from, &to).map_err(io("moving", from))?;
        sync_dir(&self.path.join("damaged"))?;
        if let Some(parent) = from.parent() {
            sync_dir(parent)?;
        }
        Ok(to)
    }

    /// The path for the next checkpoint of a partition that is put aside; creates its parent directory.
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

/// Moves a file or directory to `damaged/` of a data directory, under this name and a number; returns the new
/// path.
pub(super) fn put_aside_in(
    data_dir: &Path,
    from: &Path,
    name: &str,
) -> Result<PathBuf, StartError> {
    let to = place_in(data_dir, name)?;
    match fs::rename(from, &to) {
        Ok(()) => {}
        // A disk is mounted there: it stays, and what is on it stays on it.
        Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => {
            return put_contents_aside(from);
        }
        Err(e) => return Err(io("moving", from)(e)),
    }
    to.parent().map_or(Ok(()), sync_dir)?;
    from.parent().map_or(Ok(()), sync_dir)?;
    Ok(to)
}

/// What begins the names of directories into which the contents of a directory were moved.
const CONTENTS: &str = "put-aside-";

/// Moves what is in a directory into one in it; returns the path of that. What was moved before stays where it is, and
/// so does the directory that a file system has of its own.
pub(super) fn put_contents_aside(dir: &Path) -> Result<PathBuf, StartError> {
    let (mut contents, mut number) = (Vec::new(), 1);
    for entry in fs::read_dir(dir).map_err(io("reading", dir))? {
        let entry = entry.map_err(io("reading", dir))?;
        let name = entry.file_name();
        match name.to_string_lossy().strip_prefix(CONTENTS) {
            Some(before) => number = number.max(1 + before.parse().unwrap_or(0)),
            None if name == "lost+found" => {}
            None => contents.push(name),
        }
    }
    if contents.is_empty() {
        return Ok(dir.to_owned());
    }
    let to = dir.join(format!("{CONTENTS}{number}"));
    fs::create_dir(&to).map_err(io("creating", &to))?;
    for name in contents {
        let from = dir.join(&name);
        fs::rename(&from, to.join(&name)).map_err(io("moving", &from))?;
    }
    sync_dir(&to)?;
    sync_dir(dir)?;
    Ok(to)
}

/// A path in `damaged/` that nothing has yet.
fn place_in(data_dir: &Path, name: &str) -> Result<PathBuf, StartError> {
    let dir = data_dir.join("damaged");
    fs::create_dir_all(&dir).map_err(io("creating", &dir))?;
    let mut number = 1;
    loop {
        let to = dir.join(format!("{name}-{number}"));
        if !is_there(&to)? {
            return Ok(to);
        }
        number += 1;
    }
}
