//! The snapshot that is being fetched: its directory, its files as prefixes, and how it becomes a stored
//! snapshot.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::linking::directories;
use super::{
    FILES, METADATA, SnapshotStore, StoreError, Stored, StoredSnapshot, file_path, metadata,
};
use crate::ids::CheckpointId;
use crate::transfer::{Checksum, Content, Held, Manifest};

/// The directory of a fetch: a durable manifest, and prefixes of the files.
pub struct Partial {
    store: Arc<SnapshotStore>,
    manifest: Manifest,
    path: PathBuf,
}

impl SnapshotStore {
    /// The manifest of the fetch that was under way when the process ended, if any.
    pub fn fetch_under_way(&self) -> Result<Option<Manifest>, StoreError> {
        for name in self.disk.names(&self.dir)? {
            if name.starts_with("fetch-")
                && let Some(manifest) = self.valid_metadata(&self.dir.join(name))?
            {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    /// The manifest in a directory; `None` if it is damaged or absent. An error if it cannot be read now.
    fn valid_metadata(&self, dir: &Path) -> Result<Option<Manifest>, StoreError> {
        match self.read_metadata(dir) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) if error.is_unreadable() => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Begins or resumes a fetch. Files that stored snapshots have are linked; files of another fetch are
    /// reused, and that fetch is removed.
    pub fn begin_fetch(self: &Arc<Self>, manifest: &Manifest) -> Result<Partial, StoreError> {
        let path = self.fetch_path(manifest.checkpoint);
        let there = self.valid_metadata(&path)?.is_some_and(|m| m == *manifest);
        if !there {
            self.disk.remove_dir_all(&path)?;
            let temporary = self.dir.join(format!("tmp-fetch-{}", manifest.checkpoint));
            self.disk.remove_dir_all(&temporary)?;
            self.disk.create_dir_all(&temporary)?;
            if let Content::Files(files) = &manifest.content {
                let names = files.iter().map(|f| f.name.as_str());
                let dirs = directories(&temporary.join(FILES), names);
                for dir in &dirs {
                    self.disk.create_dir_all(dir)?;
                }
                for dir in &dirs {
                    self.disk.sync_dir(dir)?;
                }
            }
            let metadata = metadata::encode(self.identity, manifest)?;
            self.disk
                .write_whole(&temporary.join(METADATA), &metadata)?;
            self.link_known(&temporary, manifest)?;
            self.disk.sync_dir(&temporary)?;
            self.disk.rename(&temporary, &path)?;
            self.disk.sync_dir(&self.dir)?;
        }
        for name in self.disk.names(&self.dir)? {
            let other = self.dir.join(&name);
            if name.starts_with("fetch-") && other != path {
                self.remove_dir(&other)?;
            }
        }
        Ok(Partial {
            store: self.clone(),
            manifest: manifest.clone(),
            path,
        })
    }

    /// Links complete files of stored snapshots, or of another fetch, that have the right checksum. They
    /// are verified like all other files.
    fn link_known(&self, to: &Path, manifest: &Manifest) -> Result<(), StoreError> {
        let mut known = std::collections::BTreeMap::new();
        let mut note = |manifest: &Manifest, dir: &Path| {
            for file in 0..manifest.file_count() {
                let (size, sum) = (manifest.file_size(file), manifest.file_checksum(file));
                if let (Some(size), Some(sum), Some(path)) =
                    (size, sum, file_path(dir, manifest, file))
                    && size > 0
                    && self.disk.length(&path).is_ok_and(|length| length == size)
                {
                    known.insert((sum, size), path);
                }
            }
        };
        for stored in self.all() {
            note(&stored.manifest, &stored.path);
        }
        for name in self.disk.names(&self.dir)? {
            let dir = self.dir.join(&name);
            if name.starts_with("fetch-")
                && let Some(manifest) = self.valid_metadata(&dir)?
            {
                note(&manifest, &dir);
            }
        }
        for file in 0..manifest.file_count() {
            let (size, sum) = (manifest.file_size(file), manifest.file_checksum(file));
            if let (Some(size), Some(sum), Some(path)) = (size, sum, file_path(to, manifest, file))
                && let Some(from) = known.get(&(sum, size))
            {
                // If it was removed meanwhile, it is fetched.
                let _ = self.disk.link(from, &path);
            }
        }
        Ok(())
    }

    /// Ends a fetch and removes its files.
    pub fn discard_fetch(&self, checkpoint: CheckpointId) -> Result<(), StoreError> {
        self.remove_dir(&self.fetch_path(checkpoint))
    }

    /// A complete fetch as a snapshot. Its files were verified one by one.
    pub fn fetched(&self, checkpoint: CheckpointId) -> Result<StoredSnapshot, StoreError> {
        let path = self.fetch_path(checkpoint);
        let manifest = self.read_metadata(&path)?;
        self.read_back(&manifest, &path)
    }

    /// Whether a fetch is complete, durable and matches its manifest. Reads all of its files.
    pub fn is_whole(self: &Arc<Self>, checkpoint: CheckpointId) -> Result<bool, StoreError> {
        let path = self.fetch_path(checkpoint);
        let partial = Partial {
            store: self.clone(),
            manifest: self.read_metadata(&path)?,
            path,
        };
        for file in 0..partial.manifest.file_count() {
            let Some(checksum) = partial.manifest.file_checksum(file) else {
                return Ok(false);
            };
            match partial.verify(file as u32, checksum) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    /// Makes a fetched and installed snapshot a stored one, with one rename. May be repeated after an
    /// error.
    pub fn keep_fetched(&self, checkpoint: CheckpointId) -> Result<Arc<Stored>, StoreError> {
        let fetched = self.fetch_path(checkpoint);
        let kept = self.kept_path(checkpoint)?;
        let stored = match kept.filter(|_| !fetched.exists()) {
            Some(kept) => {
                // An earlier attempt renamed it and could not sync the directory.
                let manifest = self.read_metadata(&kept)?;
                self.disk.sync_dir(&self.dir)?;
                self.own(manifest, kept)
            }
            None => {
                let manifest = self.read_metadata(&fetched)?;
                let path = self.path(manifest.last_included_index, checkpoint);
                if path.exists() {
                    // The existing one is damaged: otherwise it would not have been fetched again.
                    self.remove_dir(&path)?;
                }
                self.make_visible(&fetched, &manifest)?
            }
        };
        let stored = Arc::new(stored);
        self.insert(stored.clone());
        Ok(stored)
    }

    /// The stored snapshot that was fetched as that checkpoint.
    fn kept_path(&self, checkpoint: CheckpointId) -> Result<Option<PathBuf>, StoreError> {
        let name = format!("-{checkpoint}");
        let names = self.disk.names(&self.dir)?;
        let mut kept = names
            .iter()
            .filter(|n| n.starts_with("snap-") && n.ends_with(&name));
        Ok(kept.next().map(|name| self.dir.join(name)))
    }

    fn fetch_path(&self, checkpoint: CheckpointId) -> PathBuf {
        self.dir.join(format!("fetch-{checkpoint}"))
    }

    /// Called at the open: keeps at most one fetch, the one that covers most.
    pub(super) fn sweep_partials(&self) -> Result<(), StoreError> {
        let mut partials = Vec::new();
        for name in self.disk.names(&self.dir)? {
            let path = self.dir.join(&name);
            if !name.starts_with("fetch-") {
                continue;
            }
            match self.valid_metadata(&path)? {
                Some(manifest) => partials.push((manifest.last_included_index, path)),
                None => self.remove_dir(&path)?,
            }
        }
        partials.sort();
        partials.pop();
        partials
            .iter()
            .try_for_each(|(_, path)| self.remove_dir(path))
    }
}

impl Partial {
    /// The length of each file, unverified.
    pub fn held(&self) -> Vec<Held> {
        let length = |file| {
            let path = file_path(&self.path, &self.manifest, file)?;
            self.store.disk.length(&path).ok()
        };
        (0..self.manifest.file_count())
            .map(|file| Held::Prefix(length(file).unwrap_or(0)))
            .collect()
    }

    /// Writes at the end of a prefix; see [`Write`](crate::transfer::ReceiverAction::Write).
    pub fn write(&self, file: u32, offset: u64, bytes: &[Bytes]) -> io::Result<()> {
        self.store
            .disk
            .write_at(&self.path_of(file)?, offset, bytes)
    }

    /// Whether so many bytes fit onto the disk now. False if that cannot be determined.
    pub fn has_space(&self, bytes: u64) -> bool {
        self.store.disk.has_space(&self.path, bytes)
    }

    /// Syncs a file, and returns whether it matches the manifest.
    pub fn verify(&self, file: u32, checksum: Checksum) -> io::Result<bool> {
        let path = self.path_of(file)?;
        self.store.disk.sync_file(&path)?;
        let size = self.manifest.file_size(file as usize);
        let found = self.store.checksum(&path)?;
        let good = (size, checksum) == (Some(found.0), found.1);
        if good && let Some(parent) = path.parent() {
            self.store.disk.sync_dir(parent)?;
        }
        Ok(good)
    }

    fn path_of(&self, file: u32) -> io::Result<PathBuf> {
        file_path(&self.path, &self.manifest, file as usize)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
