//! Compares each file with the log's note of how far it reached: see [`extents`](crate::log::extents).

use std::path::{Path, PathBuf};

use super::InspectError;
use crate::log::extents::{Extent, Extents, FileKey, decode, file_name};

/// The files that were found, and the notes in them.
#[derive(Debug, Default)]
pub(super) struct Reached {
    /// Each file's path, and where its valid part ends.
    files: std::collections::BTreeMap<FileKey, (PathBuf, u64)>,
    noted: Extents,
}

impl Reached {
    pub(super) fn add(&mut self, file: FileKey, path: &Path, valid: u64) {
        self.files.insert(file, (path.to_owned(), valid));
    }

    /// Takes a note; returns false if it is not one. All notes stay true, so the largest length counts.
    pub(super) fn note(&mut self, bytes: &[u8]) -> bool {
        let Some(extents) = decode(bytes) else {
            return false;
        };
        for (file, extent) in extents {
            let known = self.noted.entry(file).or_insert(extent);
            if known.len < extent.len {
                *known = extent;
            }
        }
        true
    }

    /// The last file of the rewrite queue, and where its valid part ends.
    pub(super) fn rewrite_end(&self) -> Option<(u64, u64)> {
        let mut rewrite = self.files.iter().rev();
        let ((_, seq), (_, valid)) = rewrite.find(|((q, _), _)| *q == super::Queue::Rewrite)?;
        Some((*seq, *valid))
    }

    /// Compares the files with the notes.
    ///
    /// # Errors
    ///
    /// The first file that is missing, too short, or another.
    pub(super) fn check(&self, dir: &Path) -> Result<(), InspectError> {
        for ((queue, seq), noted) in &self.noted {
            if let Some((path, valid)) = self.files.get(&(*queue, *seq)) {
                check_one(path, *valid, noted)?;
                continue;
            }
            // Files are deleted oldest first: what is older than all that are there is purged.
            let first = self.files.keys().find(|(other, _)| other == queue);
            if first.is_none_or(|(_, first)| seq > first) {
                return Err(InspectError::MissingFile {
                    path: dir.join(file_name(*queue, *seq)),
                    why: format!("the log noted that it has {} bytes at least", noted.len),
                });
            }
        }
        Ok(())
    }
}

fn check_one(path: &Path, valid: u64, noted: &Extent) -> Result<(), InspectError> {
    if valid < noted.len {
        return Err(InspectError::OlderCopy {
            path: path.to_owned(),
            offset: valid,
            noted: noted.len,
        });
    }
    let found = Extent::of(path, noted.len).map_err(|source| InspectError::Io {
        operation: "read",
        path: path.to_owned(),
        source,
    })?;
    if found.tail != noted.tail {
        return Err(InspectError::OtherCopy {
            path: path.to_owned(),
            offset: noted.len,
            what: "what is before it is not what the log noted".to_owned(),
        });
    }
    Ok(())
}
