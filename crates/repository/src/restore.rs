//! Restores a snapshot into a directory, and checks every byte.
//!
//! Files are fetched into a partial directory, several at a time. Files there that an interrupted restore
//! has completed are checked and kept. When all files are complete and durable, they are renamed into their
//! place (`restore_target`).
//!
//! A snapshot that turns out to be damaged is reported, and the next older retained one is tried.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use crate::disk;
use crate::error::Error;
use crate::ids::Lsn;
use crate::layout::SnapshotDir;
use crate::metadata::{FileMetadata, SnapshotMetadata};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::restore_target::Target;
use crate::root::{Retained, Root};
use crate::store::{Sink, Store};

/// Maximum number of times that a restore reads the root; it reads it again if the snapshot was deleted
/// meanwhile.
const PLANS: usize = 5;

/// The snapshot to restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The newest usable one.
    Newest,
    /// This one and no other.
    Exactly(SnapshotDir),
}

/// How the files of a restored snapshot were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checked {
    /// Sizes and checksums.
    Checksums,
    /// Sizes only: the snapshot has no checksums.
    SizesOnly,
}

/// A snapshot on the local disk, checked. Only a restore creates one.
#[derive(Debug)]
pub struct Restored {
    dir: PathBuf,
    metadata: Arc<SnapshotMetadata>,
    checked: Checked,
    passed_over: Vec<(SnapshotDir, Error)>,
    unpinned: Option<Error>,
    resumed: u64,
}

impl Restored {
    /// The directory that the snapshot was restored into.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The snapshot's description.
    pub fn metadata(&self) -> &SnapshotMetadata {
        &self.metadata
    }

    /// How the files were checked.
    pub fn checked(&self) -> Checked {
        self.checked
    }

    /// Newer snapshots that were not usable, and why.
    pub fn passed_over(&self) -> &[(SnapshotDir, Error)] {
        &self.passed_over
    }

    /// Why the snapshot was not pinned, if it was not: its root is damaged or missing, or the repository
    /// cannot be written to.
    pub fn unpinned(&self) -> Option<&Error> {
        self.unpinned.as_ref()
    }

    /// Number of files that an earlier restore had completed.
    pub fn resumed(&self) -> u64 {
        self.resumed
    }
}

impl Repository {
    /// Finds a kept snapshot by its id, its directory's name, or its LSN.
    pub fn find(&self, root: &Root, name: &str) -> Result<SnapshotDir, Error> {
        let kept = root.kept();
        kept.iter()
            .find(|dir| dir.id.as_str() == name || dir.to_string() == name)
            .or_else(|| {
                let lsn: u64 = name.parse().ok()?;
                kept.iter().find(|dir| dir.lsn == Lsn(lsn))
            })
            .cloned()
            .ok_or_else(|| Error::NoSnapshot(name.to_owned()))
    }

    /// Restores a snapshot into `to`, which must not exist or be empty. A directory that does not exist is
    /// created complete or not at all. An existing directory is not replaced, and is complete when this
    /// returns.
    ///
    /// The snapshot is pinned during the restore, if the repository can be written to. [`Which::Exactly`]
    /// also works if the root is damaged or missing; see [`Restored::unpinned`].
    pub async fn restore(
        &self,
        which: &Which,
        to: &Path,
        progress: &Progress,
    ) -> Result<Restored, Error> {
        let started = self.store.env().now();
        let result = self.restore_planned(which, to, progress).await;
        match &result {
            Ok(restored) => {
                let took = (self.store.env().now() - started).as_seconds_f64();
                metrics::histogram!("esker_partition_store_snapshots_download_duration_seconds")
                    .record(took.max(0.0));
                metrics::counter!("esker_partition_store_snapshots_download_fallback_total")
                    .increment(u64::from(!restored.passed_over.is_empty()));
            }
            Err(_) => {
                metrics::counter!("esker_partition_store_snapshots_download_failed_total")
                    .increment(1);
            }
        }
        result
    }

    async fn restore_planned(
        &self,
        which: &Which,
        to: &Path,
        progress: &Progress,
    ) -> Result<Restored, Error> {
        let target = Target::new(to)?;
        let mut passed_over: Vec<(SnapshotDir, Error)> = Vec::new();
        'plan: for plan in 1..=PLANS {
            let root = match (self.root().await, which) {
                (Ok(root), _) => root,
                // A full name is sufficient to find the snapshot without its root. Without a root it cannot
                // be pinned.
                (Err(error), Which::Exactly(dir)) if is_rootless(&error) => {
                    tracing::warn!(%error, "The snapshot is restored without its root");
                    let restored = self.fetch(dir, &target, progress).await?;
                    return Ok(Restored {
                        unpinned: Some(error),
                        ..restored
                    });
                }
                (Err(error), _) => return Err(error),
            };
            let candidates = match which {
                Which::Newest => root.retained_snapshots.iter().map(Retained::dir).collect(),
                Which::Exactly(dir) if root.kept().contains(dir) => vec![dir.clone()],
                Which::Exactly(dir) => return Err(Error::NoSnapshot(dir.to_string())),
            };
            for dir in candidates {
                if passed_over.iter().any(|(tried, _)| *tried == dir) {
                    continue;
                }
                let restored = match self.unless_marked(&root, which, &dir).await? {
                    Some(error) => Err(error),
                    None => self.restore_pinned(&dir, &target, progress).await,
                };
                match restored {
                    Ok(restored) => {
                        return Ok(Restored {
                            passed_over,
                            ..restored
                        });
                    }
                    Err(error) if error.is_damage() || matches!(error, Error::NoSnapshot(_)) => {
                        // If the snapshot is not kept any more, a sweep has deleted it: the root is read
                        // again.
                        if plan < PLANS && !self.root().await?.kept().contains(&dir) {
                            continue 'plan;
                        }
                        tracing::warn!(snapshot = %dir, %error, "A snapshot cannot be restored");
                        passed_over.push((dir, error));
                    }
                    Err(error) => return Err(error),
                }
            }
            break;
        }
        let tried = passed_over.into_iter();
        Err(Error::Unusable(
            tried.map(|(dir, error)| (dir, Box::new(error))).collect(),
        ))
    }

    /// The damage that a mark in the root names, if it is still there: then nothing else is fetched. A
    /// snapshot that the caller has named is fetched all the same.
    async fn unless_marked(
        &self,
        root: &Root,
        which: &Which,
        dir: &SnapshotDir,
    ) -> Result<Option<Error>, Error> {
        match which {
            Which::Newest => self.still_marked(root, dir).await,
            Which::Exactly(_) => Ok(None),
        }
    }

    async fn restore_pinned(
        &self,
        dir: &SnapshotDir,
        target: &Target,
        progress: &Progress,
    ) -> Result<Restored, Error> {
        let (pin, unpinned) = match self.options.cluster {
            None => (None, None),
            Some(_) => match self.pin(dir).await {
                Ok(pin) => (Some(pin), None),
                Err(
                    error @ (Error::Denied { .. } | Error::NotOurs { .. } | Error::Store { .. }),
                ) => {
                    tracing::info!(%error, "The snapshot is restored without a pin");
                    (None, Some(error))
                }
                Err(error) => return Err(error),
            },
        };
        let fetched = match &pin {
            None => self.fetch(dir, target, progress).await,
            Some(pin) => {
                let fetching = std::pin::pin!(self.fetch(dir, target, progress));
                let renewing = std::pin::pin!(self.keep_pinned(pin, dir));
                match futures::future::select(fetching, renewing).await {
                    futures::future::Either::Left((fetched, _)) => fetched,
                    futures::future::Either::Right((never, _)) => match never {},
                }
            }
        };
        if let Some(pin) = pin
            && let Err(error) = self.unpin(&pin).await
        {
            tracing::warn!(%error, "A pin stays until it expires");
        }
        fetched.map(|restored| Restored {
            unpinned,
            ..restored
        })
    }

    async fn keep_pinned(&self, pin: &str, dir: &SnapshotDir) -> std::convert::Infallible {
        loop {
            self.store.env().sleep(self.options.pin_for / 2).await;
            if let Err(error) = self.renew_pin(pin, dir).await {
                // If the pin was removed, reading a missing object fails and reports it.
                tracing::warn!(%error, "A pin could not be renewed");
            }
        }
    }

    async fn fetch(
        &self,
        dir: &SnapshotDir,
        target: &Target,
        progress: &Progress,
    ) -> Result<Restored, Error> {
        let store = self.store.operation();
        let metadata = self.read_description(&store, dir).await?;
        let partial = target.begin(dir, &metadata).await?;
        let mut wanted = Vec::new();
        let mut resumed = 0;
        progress.expect(metadata.files.len() as u64, metadata.bytes());
        for file in &metadata.files {
            if is_whole(&partial, file, &metadata).await? {
                resumed += 1;
                progress.add_bytes(file.size);
                progress.add_file();
            } else {
                wanted.push(file);
            }
        }
        let needed = wanted.iter().map(|f| f.size).sum();
        disk::check_space(&partial, needed)?;
        let mut fetching = Vec::with_capacity(wanted.len());
        for file in wanted {
            fetching.push(fetch_file(&store, &metadata, file, &partial, progress));
        }
        stream::iter(fetching)
            .buffer_unordered(self.options.parallel_files.max(1))
            .try_collect::<()>()
            .await?;
        target.finish(dir, &metadata).await?;
        Ok(Restored {
            dir: target.to().to_owned(),
            checked: match metadata.has_checksums() {
                true => Checked::Checksums,
                false => Checked::SizesOnly,
            },
            metadata,
            passed_over: Vec::new(),
            unpinned: None,
            resumed,
        })
    }
}

/// Whether the root is missing beside snapshots, damaged, or of a newer release, so that it cannot be used.
fn is_rootless(error: &Error) -> bool {
    matches!(
        error,
        Error::Damaged { .. } | Error::NewerFormat { .. } | Error::NoRoot { others: true, .. }
    )
}

async fn is_whole(
    partial: &Path,
    file: &FileMetadata,
    metadata: &SnapshotMetadata,
) -> Result<bool, Error> {
    let path = disk::below(partial, &file.name);
    let shown = path.clone();
    let (size, expected) = (file.size, metadata.checksum_of(file));
    disk::blocking(move || {
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() && meta.len() == size => {}
            _ => return Ok(false),
        }
        // Without a checksum, the content of the file is unknown.
        let Some(expected) = expected else {
            return Ok(false);
        };
        Ok(disk::digest(&path).is_ok_and(|digest| digest == expected))
    })
    .await
    .map_err(|e| disk::named(e, "check", &shown))
}

async fn fetch_file(
    store: &Store,
    metadata: &SnapshotMetadata,
    file: &FileMetadata,
    partial: &Path,
    progress: &Progress,
) -> Result<(), Error> {
    let key = metadata.key_of(file);
    let path = disk::below(partial, &file.name);
    let mut writer = Counted {
        writer: disk::Writer::create(path).await?,
        progress,
    };
    store.read_all(&key, file.size, &mut writer).await?;
    let digest = writer.writer.finish().await?;
    match metadata.checksum_of(file) {
        Some(expected) if expected != digest => Err(Error::Damaged {
            object: store.display_url(&key),
            why: format!("its checksum is {digest}, and {expected} was written"),
        }),
        _ => {
            progress.add_file();
            Ok(())
        }
    }
}

struct Counted<'a> {
    writer: disk::Writer,
    progress: &'a Progress,
}

impl Sink for Counted<'_> {
    async fn take(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.progress.add_bytes(bytes.len() as u64);
        self.writer.write(bytes).await
    }
}
