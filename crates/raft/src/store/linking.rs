//! Links a host's files into a snapshot, makes them durable and computes their checksums.
//!
//! A file that a stored snapshot has already is not read again if it is the same inode and was not written
//! to since. If that snapshot is *doubted*, the file is read, and must still match its checksum.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{FILES, SnapshotStore, StoreError, Stored};
use crate::ids::CheckpointId;
use crate::transfer::{Checksum, Content, FileEntry};

/// A file that a stored snapshot has already.
struct Known {
    size: u64,
    checksum: Checksum,
    /// The snapshot that has the file is doubted.
    doubted: bool,
}

impl SnapshotStore {
    pub(super) fn link_files(&self, from: &Path, to: &Path) -> Result<Vec<FileEntry>, StoreError> {
        let mut names = Vec::new();
        self.walk(from, "", &mut names)?;
        let dirs = directories(to, names.iter().map(String::as_str));
        for dir in &dirs {
            self.disk.create_dir_all(dir)?;
        }
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let (source, target) = (from.join(&name), to.join(&name));
            let known = self.known(&source, &name);
            self.disk.link(&source, &target)?;
            self.disk.sync_file(&target)?;
            let (size, checksum) = match known {
                Some(known) if !known.doubted => (known.size, known.checksum),
                Some(known) => {
                    let found = self.checksum(&target)?;
                    if found != (known.size, known.checksum) {
                        // With a new checksum the damaged file would be sent to peers unnoticed.
                        return Err(StoreError::Damaged {
                            path: source,
                            why: "nobody wrote to it, and it is not what it was".to_owned(),
                        });
                    }
                    found
                }
                None => self.checksum(&target)?,
            };
            files.push(FileEntry {
                name,
                size,
                checksum,
            });
        }
        for dir in &dirs {
            self.disk.sync_dir(dir)?;
        }
        Ok(files)
    }

    /// Names of all files below a directory, parts separated by `/`, sorted.
    fn walk(&self, base: &Path, below: &str, names: &mut Vec<String>) -> Result<(), StoreError> {
        for name in self.disk.names(&base.join(below))? {
            let name = match below {
                "" => name,
                below => format!("{below}/{name}"),
            };
            match base.join(&name).is_dir() {
                true => self.walk(base, &name, names)?,
                false => names.push(name),
            }
        }
        Ok(())
    }

    /// The known size and checksum of a file, if a stored snapshot has the same inode and it was not
    /// written to since.
    fn known(&self, source: &Path, name: &str) -> Option<Known> {
        let found = std::fs::metadata(source).ok()?;
        let is = |stored: &Stored, size: u64| {
            let file = std::fs::metadata(stored.path.join(FILES).join(name));
            // The rename was the last change of the directory.
            let since = std::fs::metadata(&stored.path);
            file.is_ok_and(|f| (f.dev(), f.ino()) == (found.dev(), found.ino()))
                && size == found.size()
                && since.is_ok_and(|since| {
                    (found.mtime(), found.mtime_nsec()) < (since.ctime(), since.ctime_nsec())
                })
        };
        // Without the lock, which is taken while an engine's lock is held: the disk may be slow.
        let stored: Vec<_> = {
            let stored = self.stored.lock();
            let there = stored.iter().filter(|e| !e.gone);
            there.map(|e| (e.stored.clone(), e.doubted)).collect()
        };
        stored.iter().rev().find_map(|(stored, doubted)| {
            let Content::Files(files) = &stored.manifest.content else {
                return None;
            };
            let file = files.iter().find(|f| f.name == name);
            let file = file.filter(|f| is(stored, f.size))?;
            Some(Known {
                size: file.size,
                checksum: file.checksum,
                doubted: *doubted,
            })
        })
    }

    /// A peer got bytes that do not match a stored snapshot, or a file of it could not be read. From now on
    /// the next snapshot reads all of its files again instead of reusing checksums: snapshots that were
    /// stored meanwhile may share the damaged files.
    pub fn doubt(&self, checkpoint: CheckpointId) {
        let mut stored = self.stored.lock();
        if stored.iter().any(|e| e.is(checkpoint)) {
            stored.iter_mut().for_each(|e| e.doubted = true);
        }
    }
}

/// The directory of these files and all directories in their names. Each of them has to be synced.
pub(super) fn directories<'a>(
    base: &Path,
    names: impl Iterator<Item = &'a str>,
) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::from([base.to_owned()]);
    for name in names {
        let slashes = name.match_indices('/');
        all.extend(slashes.map(|(at, _)| base.join(&name[..at])));
    }
    all
}
