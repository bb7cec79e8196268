//! The directory that a restore writes.
//!
//! A directory that does not exist is fetched as `<directory>.partial` beside it, which is renamed when it
//! is complete: the directory has everything, or does not exist. One that exists is not replaced (it may be
//! a mount point, or the working directory of a process): files are fetched into [`INSIDE`] in it, and the
//! entries at the top of that are renamed into the directory at the end. As long as [`INSIDE`] is there, the
//! directory is incomplete, and the next restore continues.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk;
use crate::error::Error;
use crate::layout::{RESTORE_MARKER, SnapshotDir};
use crate::metadata::SnapshotMetadata;

/// Temporary name of the marker while it is written.
const MARKER_WRITTEN: &str = ".esker-restore.json.new";
/// The partial directory in a directory that exists.
pub(crate) const INSIDE: &str = ".esker-restore.partial";
/// Directory that a file system creates at its top.
const LOST_AND_FOUND: &str = "lost+found";

#[derive(Serialize, Deserialize)]
struct Marker {
    snapshot: String,
    /// All files are complete, and are being renamed into the directory that holds the partial one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    placing: bool,
}

/// A directory that a snapshot is restored into.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The path as given.
    to: PathBuf,
    /// The directory that is synced after the last rename: the parent, or the directory itself.
    around: PathBuf,
    partial: PathBuf,
    /// Whether the partial directory is in the directory.
    inside: bool,
}

impl Target {
    /// Inspects the directory. Changes nothing in it, except that a directory with the marker of an
    /// interrupted restore is renamed to the partial directory again.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if it is not empty or not a directory.
    pub(crate) fn new(to: &Path) -> Result<Target, Error> {
        let invalid =
            |why: &str| Error::Invalid(format!("cannot restore to {}: {why}", to.display()));
        let unreadable = |source| Error::Io {
            what: "restore to",
            path: to.to_owned(),
            source,
        };
        let beside = beside(to);
        if let Some((_, partial)) = &beside
            && to.join(RESTORE_MARKER).is_file()
            && !partial.exists()
        {
            // A restore was killed after its rename and before it removed the marker: this one continues it.
            fs::rename(to, partial).map_err(unreadable)?;
        }
        match fs::metadata(to) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(invalid("it is no directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(to).is_ok() {
                    return Err(invalid("it is a symlink whose target is missing"));
                }
                let (around, partial) =
                    beside.ok_or_else(|| invalid("it has no name of its own"))?;
                return Ok(Target {
                    to: to.to_owned(),
                    around,
                    partial,
                    inside: false,
                });
            }
            Err(error) => return Err(unreadable(error)),
        }
        let around = fs::canonicalize(to).map_err(unreadable)?;
        let partial = around.join(INSIDE);
        let target = Target {
            to: to.to_owned(),
            around,
            inside: true,
            partial,
        };
        let placing = target.marker().is_some_and(|marker| marker.placing);
        if !placing && let Some(other) = target.others(&BTreeSet::new()).map_err(unreadable)? {
            return Err(invalid(&format!(
                "it is not empty, there is {}; name a directory that does not exist yet, or an \
                 empty one",
                Path::new(&other).display()
            )));
        }
        Ok(target)
    }

    /// The path as given.
    pub(crate) fn to(&self) -> &Path {
        &self.to
    }

    /// Creates the partial directory, or continues with the files in it if they are of the same snapshot.
    pub(crate) async fn begin(
        &self,
        dir: &SnapshotDir,
        metadata: &SnapshotMetadata,
    ) -> Result<PathBuf, Error> {
        let (this, snapshot, names) = (self.clone(), dir.to_string(), tops(metadata));
        if self.inside && names.contains(&OsString::from(INSIDE)) {
            return Err(Error::Invalid(format!(
                "cannot restore to {}: the snapshot has {INSIDE} itself; name a directory that does \
                 not exist yet",
                self.to.display()
            )));
        }
        disk::blocking(move || this.begin_blocking(snapshot, &names))
            .await
            .map_err(|e| disk::named(e, "restore into", &self.partial))
    }

    fn begin_blocking(&self, snapshot: String, names: &BTreeSet<OsString>) -> io::Result<PathBuf> {
        let occupied = |why: String| io::Error::new(io::ErrorKind::AlreadyExists, why);
        let found = self.marker();
        if let Some(marker) = found.as_ref().filter(|marker| marker.placing) {
            // The directory contains only what an interrupted restore has renamed into it.
            let ours = match marker.snapshot == snapshot {
                true => names.clone(),
                false => BTreeSet::new(),
            };
            if let Some(other) = self.others(&ours)? {
                return Err(occupied(format!(
                    "{} is beside what a restore of {} left; empty the directory, or name another",
                    Path::new(&other).display(),
                    marker.snapshot
                )));
            }
            for name in &ours {
                match fs::rename(self.around.join(name), self.partial.join(name)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    moved => moved?,
                }
            }
            disk::sync_dir(&self.partial)?;
            disk::sync_dir(&self.around)?;
        }
        let is_empty = match fs::read_dir(&self.partial) {
            Ok(mut entries) => entries.all(|e| e.is_ok_and(|e| e.file_name() == MARKER_WRITTEN)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        match found {
            Some(found) if found.snapshot == snapshot => {
                if found.placing {
                    self.mark(&snapshot, false)?;
                }
                return Ok(self.partial.clone());
            }
            // The files that a restore of another snapshot left are not needed.
            Some(_) => fs::remove_dir_all(&self.partial)?,
            None if is_empty => {}
            None => {
                return Err(occupied(
                    "it holds something that no restore left there; move it away".to_owned(),
                ));
            }
        }
        fs::create_dir_all(&self.partial)?;
        self.mark(&snapshot, false)?;
        Ok(self.partial.clone())
    }

    /// Moves the complete files into the directory that was asked for.
    pub(crate) async fn finish(
        &self,
        dir: &SnapshotDir,
        metadata: &SnapshotMetadata,
    ) -> Result<(), Error> {
        let mut files: HashSet<String> = metadata.files.iter().map(|f| f.name.clone()).collect();
        files.insert(format!("/{RESTORE_MARKER}"));
        let (this, snapshot, names) = (self.clone(), dir.to_string(), tops(metadata));
        disk::blocking(move || {
            disk::remove_all_but(&this.partial, &files)?;
            disk::sync_tree(&this.partial)?;
            match this.inside {
                true => this.place_inside(&snapshot, &names),
                false => this.rename_beside(),
            }
        })
        .await
        .map_err(|e| disk::named(e, "restore to", &self.to))
    }

    fn rename_beside(&self) -> io::Result<()> {
        fs::rename(&self.partial, &self.to)?;
        disk::sync_dir(&self.around)?;
        // The marker is removed last: while it is there, the next restore continues one that was killed
        // here.
        fs::remove_file(self.to.join(RESTORE_MARKER))?;
        disk::sync_dir(&self.to)
    }

    fn place_inside(&self, snapshot: &str, names: &BTreeSet<OsString>) -> io::Result<()> {
        if let Some(other) = self.others(&BTreeSet::new())? {
            return Err(io::Error::new(
                io::ErrorKind::DirectoryNotEmpty,
                format!(
                    "{} was made in it meanwhile; move it away, and run the same command again",
                    Path::new(&other).display()
                ),
            ));
        }
        self.mark(snapshot, true)?;
        for name in names {
            fs::rename(self.partial.join(name), self.around.join(name))?;
        }
        disk::sync_dir(&self.around)?;
        // Last, for the same reason as above.
        fs::remove_file(self.partial.join(RESTORE_MARKER))?;
        fs::remove_dir_all(&self.partial)?;
        disk::sync_dir(&self.around)
    }

    fn marker(&self) -> Option<Marker> {
        let bytes = fs::read(self.partial.join(RESTORE_MARKER)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Writes the marker atomically.
    fn mark(&self, snapshot: &str, placing: bool) -> io::Result<()> {
        let marker = Marker {
            snapshot: snapshot.to_owned(),
            placing,
        };
        let written = self.partial.join(MARKER_WRITTEN);
        fs::write(&written, serde_json::to_vec(&marker)?)?;
        fs::File::open(&written)?.sync_all()?;
        fs::rename(&written, self.partial.join(RESTORE_MARKER))?;
        disk::sync_dir(&self.partial)
    }

    /// An entry of the directory that is not in `ours`, and that no restore and no file system created.
    fn others(&self, ours: &BTreeSet<OsString>) -> io::Result<Option<OsString>> {
        for entry in fs::read_dir(&self.around)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_made = name == INSIDE || (name == LOST_AND_FOUND && entry.file_type()?.is_dir());
            if !is_made && !ours.contains(&name) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

/// The parent of a directory, and the partial directory in it. None for `.`, `/` and other paths without a
/// name.
fn beside(to: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut name = to.file_name()?.to_owned();
    let parent = match to.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    name.push(".partial");
    let partial = parent.join(name);
    Some((parent, partial))
}

/// The names at the top of a snapshot's directory.
fn tops(metadata: &SnapshotMetadata) -> BTreeSet<OsString> {
    let names = metadata.files.iter().map(|file| file.name.as_str());
    let tops = names.filter_map(|name| name.trim_start_matches('/').split('/').next());
    tops.map(OsString::from).collect()
}
