//! A group's Raft snapshots on disk: those that a member can offer to others, and the one that it is
//! fetching.
//!
//! ```text
//! <dir>/snap-<lsn>-<checkpoint>/metadata     what it covers, who belongs, checksums of the data
//!                               data         of bytes: all of them
//!                               files/…      of files: these
//!       fetch-<checkpoint>/…                 the same, the data as far as it is there
//!       tmp-… gone-…                         being made, being removed: swept at the next open
//! ```
//!
//! - **Metadata has the checksums of its data**, and both become visible with one rename of their
//!   directory. A crash between any two operations leaves the complete state before or after.
//! - **A fetch begins with its durable manifest**; the lengths of the files are its progress. When it is
//!   complete, one rename makes it a stored snapshot.
//! - **Files are hard links**, or copies where the file system has no hard links: a host may remove its own
//!   files at any time.
//! - **A snapshot is verified completely** before a host gets it.
//!
//! The store keeps the newest snapshot, older ones as long as a peer fetches them, and one partial fetch.
//! All operations block; the store knows neither threads nor consensus.

mod disk;
mod linking;
mod metadata;
mod partial;
mod snapshot;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

use crate::ids::{CheckpointId, Lsn, NodeId};
use crate::message::Identity;
use crate::transfer::{Checksum, Content, Manifest, OFFER_FORMAT};
use disk::Disk;
pub use disk::DiskFaults;
pub use partial::Partial;
pub use snapshot::{SnapshotData, SnapshotDir, StoredSnapshot};

const METADATA: &str = "metadata";
const DATA: &str = "data";
const FILES: &str = "files";

/// Why a snapshot could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk failed. The message names operation and file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The host's snapshot cannot be offered to peers.
    #[error("the snapshot cannot be offered: {0}")]
    Manifest(String),
    /// The snapshot on disk is damaged.
    #[error("the snapshot in {path} is damaged: {why}")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// How.
        why: String,
    },
    /// It is not there.
    #[error("checkpoint {0} is not stored")]
    Unknown(CheckpointId),
}

impl StoreError {
    /// Whether the operating system refused, so that nothing is known about what is stored. The same may
    /// work later.
    pub fn is_unreadable(&self) -> bool {
        match self {
            StoreError::Io(error) => !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
            ),
            StoreError::Manifest(_) | StoreError::Damaged { .. } | StoreError::Unknown(_) => false,
        }
    }
}

/// A stored snapshot, complete and durable.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The manifest with which this node offers it.
    pub manifest: Manifest,
    /// Whether it came from a peer.
    pub fetched: bool,
    path: PathBuf,
}

/// See the [module's head](self). One for each group; cheap to share.
pub struct SnapshotStore {
    dir: PathBuf,
    identity: Identity,
    disk: Disk,
    /// Sorted by their last entry, oldest first.
    stored: Mutex<Vec<Entry>>,
}

/// A snapshot on disk, and what the store has learnt of it since the open.
struct Entry {
    stored: Arc<Stored>,
    /// Part of it is missing: it is not used any more, only removed.
    gone: bool,
    /// Its files may have changed since their checksums were computed: see [`SnapshotStore::doubt`].
    doubted: bool,
}

impl SnapshotStore {
    /// Opens or creates a group's directory, and removes incomplete snapshots. Damaged snapshots are
    /// logged, left in place, and not listed.
    ///
    /// # Errors
    ///
    /// The directory cannot be created, listed or cleaned, or the metadata of a snapshot or a fetch cannot
    /// be read now ([`StoreError::is_unreadable`]): then nothing is known of it, and it stays as it is.
    pub fn open(
        dir: &Path,
        identity: Identity,
        faults: DiskFaults,
    ) -> Result<SnapshotStore, StoreError> {
        let disk = Disk::new(faults);
        disk.create_dir_all(dir)?;
        if let Some(parent) = dir.parent() {
            disk.sync_dir(parent)?;
        }
        let store = SnapshotStore {
            dir: dir.to_owned(),
            identity,
            disk,
            stored: Mutex::default(),
        };
        let mut stored = Vec::new();
        for name in store.disk.names(dir)? {
            let path = dir.join(&name);
            if name.starts_with("tmp-") || name.starts_with("gone-") {
                store.disk.remove_dir_all(&path)?;
            } else if name.starts_with("snap-") {
                match store.read_metadata(&path) {
                    Ok(manifest) => stored.push(Entry::new(Arc::new(store.own(manifest, path)))),
                    Err(error) if error.is_unreadable() => return Err(error),
                    Err(error) => tracing::error!(%error, "a stored snapshot cannot be used"),
                }
            }
        }
        stored.sort_by_key(Entry::covers);
        *store.stored.lock() = stored;
        store.sweep_partials()?;
        Ok(store)
    }

    /// All stored snapshots, oldest first.
    pub fn all(&self) -> Vec<Arc<Stored>> {
        let stored = self.stored.lock();
        let there = stored.iter().filter(|e| !e.gone);
        there.map(|e| e.stored.clone()).collect()
    }

    /// The stored snapshot that covers most.
    pub fn newest(&self) -> Option<Arc<Stored>> {
        let stored = self.stored.lock();
        let newest = stored.iter().rfind(|e| !e.gone)?;
        Some(newest.stored.clone())
    }

    /// Stores a snapshot durably; older ones stay. Files are linked, so the host's directory is not needed
    /// any more when this returns. Reads every file once, except those that a stored snapshot has already
    /// (the same inode and size, not written to since).
    ///
    /// # Errors
    ///
    /// The disk failed, the snapshot cannot be offered, or a file has changed without being written to. The
    /// snapshot is not listed; after a failed sync of the directory, the next open may find it.
    pub fn store(&self, snapshot: &StoredSnapshot) -> Result<Arc<Stored>, StoreError> {
        let checkpoint = CheckpointId(rand::random());
        let temporary = self.dir.join(format!("tmp-{checkpoint}"));
        let stored = self.fill(&temporary, checkpoint, snapshot);
        if stored.is_err() {
            // If this fails, the next open removes it.
            let _ = self.disk.remove_dir_all(&temporary);
            // If only the last step failed, the snapshot is visible already.
            let _ = self.remove_dir(&self.path(snapshot.last_included_index, checkpoint));
        }
        let stored = Arc::new(stored?);
        self.insert(stored.clone());
        Ok(stored)
    }

    fn fill(
        &self,
        temporary: &Path,
        checkpoint: CheckpointId,
        snapshot: &StoredSnapshot,
    ) -> Result<Stored, StoreError> {
        self.disk.create_dir_all(temporary)?;
        let content = match &snapshot.data {
            SnapshotData::Bytes(bytes) => {
                let path = temporary.join(DATA);
                self.disk.write_whole(&path, bytes)?;
                Content::Bytes {
                    size: bytes.len() as u64,
                    checksum: Checksum::of(bytes),
                }
            }
            SnapshotData::Files(SnapshotDir { path }) => {
                let to = temporary.join(FILES);
                self.disk.create_dir_all(&to)?;
                Content::Files(self.link_files(path, &to)?)
            }
        };
        let manifest = Manifest {
            format: OFFER_FORMAT,
            checkpoint,
            source: self.identity.node,
            last_included_index: snapshot.last_included_index,
            term: snapshot.term,
            peers: snapshot.peers.clone(),
            content,
        };
        let metadata = metadata::encode(self.identity, &manifest)?;
        self.disk
            .write_whole(&temporary.join(METADATA), &metadata)?;
        self.disk.sync_dir(temporary)?;
        self.make_visible(temporary, &manifest)
    }

    /// The directory of a stored snapshot, by the checkpoint that its source gave it.
    fn path(&self, lsn: Lsn, checkpoint: CheckpointId) -> PathBuf {
        self.dir.join(format!("snap-{:020}-{checkpoint}", lsn.0))
    }

    /// Makes a snapshot visible with one rename.
    fn make_visible(&self, from: &Path, manifest: &Manifest) -> Result<Stored, StoreError> {
        let path = self.path(manifest.last_included_index, manifest.checkpoint);
        self.disk.rename(from, &path)?;
        self.disk.sync_dir(&self.dir)?;
        Ok(self.own(manifest.clone(), path))
    }

    fn checksum(&self, path: &Path) -> io::Result<(u64, Checksum)> {
        let mut hash = Xxh3::new();
        let size = self.disk.scan(path, |piece| hash.update(piece))?;
        Ok((size, Checksum(hash.digest128())))
    }

    /// Reads a snapshot back and verifies it completely.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] if it does not match its checksums, [`StoreError::Io`] if it cannot be read.
    pub fn load(&self, stored: &Stored) -> Result<StoredSnapshot, StoreError> {
        let read = self.read_back(&stored.manifest, &stored.path)?;
        if let Content::Files(files) = &stored.manifest.content {
            let dir = stored.path.join(FILES);
            for file in files {
                if self.checksum(&dir.join(&file.name))? != (file.size, file.checksum) {
                    return Err(StoreError::Damaged {
                        path: dir.join(&file.name),
                        why: "it does not match its checksum".to_owned(),
                    });
                }
            }
        }
        Ok(read)
    }

    /// Reads and verifies bytes; of files, only returns the directory.
    fn read_back(&self, manifest: &Manifest, path: &Path) -> Result<StoredSnapshot, StoreError> {
        let damaged = |why: String| StoreError::Damaged {
            path: path.to_owned(),
            why,
        };
        let data = match &manifest.content {
            Content::Bytes { size, checksum } => {
                let bytes = self.disk.read(&path.join(DATA))?;
                if (bytes.len() as u64, Checksum::of(&bytes)) != (*size, *checksum) {
                    return Err(damaged("its bytes do not match their checksum".to_owned()));
                }
                SnapshotData::Bytes(bytes)
            }
            Content::Files(_) => SnapshotData::Files(SnapshotDir {
                path: path.join(FILES),
            }),
        };
        Ok(StoredSnapshot {
            last_included_index: manifest.last_included_index,
            term: manifest.term,
            peers: manifest.peers.clone(),
            data,
        })
    }

    /// Reads `length` bytes from `offset` of a file of a stored snapshot; `file` is its index in the
    /// manifest.
    ///
    /// # Errors
    ///
    /// Of kind `NotFound` if the snapshot or the file is not stored (any more), `UnexpectedEof` if the file
    /// is shorter.
    pub fn read_chunk(
        &self,
        checkpoint: CheckpointId,
        file: u32,
        offset: u64,
        length: u32,
    ) -> io::Result<Bytes> {
        let stored = {
            let stored = self.stored.lock();
            let mut there = stored.iter().filter(|e| !e.gone);
            there.find(|e| e.is(checkpoint)).map(|e| e.stored.clone())
        };
        let stored = stored.ok_or(io::ErrorKind::NotFound)?;
        let path = file_path(&stored.path, &stored.manifest, file as usize)
            .ok_or(io::ErrorKind::NotFound)?;
        self.disk.read_at(&path, offset, length as usize)
    }

    /// Part of a stored snapshot is missing: it is not listed any more. The rest stays on disk until it is
    /// removed or the next open checks it.
    pub fn forget(&self, checkpoint: CheckpointId) {
        let mut stored = self.stored.lock();
        let it = stored.iter_mut().filter(|e| e.is(checkpoint));
        it.for_each(|e| e.gone = true);
    }

    /// Removes a stored snapshot: first its name, by a rename, then its files.
    pub fn remove(&self, checkpoint: CheckpointId) -> Result<(), StoreError> {
        let mut stored = self.stored.lock();
        let Some(at) = stored.iter().position(|e| e.is(checkpoint)) else {
            return Ok(());
        };
        let removed = stored.remove(at).stored;
        drop(stored);
        self.remove_dir(&removed.path)
    }

    fn remove_dir(&self, path: &Path) -> Result<(), StoreError> {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("it");
        let gone = self.dir.join(format!("gone-{name}"));
        self.disk.remove_dir_all(&gone)?;
        match self.disk.rename(path, &gone) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        Ok(self.disk.remove_dir_all(&gone)?)
    }

    fn insert(&self, new: Arc<Stored>) {
        let mut stored = self.stored.lock();
        // One of the same path is the same snapshot, or a damaged one that was replaced.
        stored.retain(|e| e.stored.path != new.path);
        stored.push(Entry::new(new));
        stored.sort_by_key(Entry::covers);
    }

    fn read_metadata(&self, path: &Path) -> Result<Manifest, StoreError> {
        let bytes = self.disk.read(&path.join(METADATA))?;
        metadata::decode(self.identity, &bytes).map_err(|why| StoreError::Damaged {
            path: path.to_owned(),
            why,
        })
    }

    /// A snapshot that came from a peer is offered under another checkpoint, because checkpoints of two
    /// nodes must differ. It is derived from the peer's, so it is the same after a restart.
    fn own(&self, mut manifest: Manifest, path: PathBuf) -> Stored {
        let me = self.identity.node;
        let fetched = manifest.source != me;
        if fetched {
            manifest.checkpoint = renamed(manifest.checkpoint, me);
            manifest.source = me;
        }
        Stored {
            manifest,
            fetched,
            path,
        }
    }
}

impl Entry {
    fn new(stored: Arc<Stored>) -> Entry {
        Entry {
            stored,
            gone: false,
            doubted: false,
        }
    }

    fn covers(&self) -> Lsn {
        self.stored.manifest.last_included_index
    }

    fn is(&self, checkpoint: CheckpointId) -> bool {
        self.stored.manifest.checkpoint == checkpoint
    }
}

fn renamed(checkpoint: CheckpointId, node: NodeId) -> CheckpointId {
    let mut name = checkpoint.0.to_vec();
    name.extend_from_slice(&node.0.to_be_bytes());
    CheckpointId(Checksum::of(&name).0.to_be_bytes())
}

/// The path of a file of a snapshot.
fn file_path(dir: &Path, manifest: &Manifest, file: usize) -> Option<PathBuf> {
    match &manifest.content {
        Content::Bytes { .. } => (file == 0).then(|| dir.join(DATA)),
        Content::Files(files) => files.get(file).map(|f| dir.join(FILES).join(&f.name)),
    }
}
