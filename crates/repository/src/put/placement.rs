//! Where each file of a snapshot is: in an object that is reused, or in one that is uploaded.

use std::collections::{HashMap, HashSet};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::watch;

use super::Upload;
use crate::error::Error;
use crate::ids::Digest;
use crate::layout::shared_file;
use crate::metadata::{FileMetadata, Kind};
use crate::root::Root;
use crate::upload::Uploads;

/// A put reuses files of this many of the newest retained snapshots. A file that was in older ones only is
/// rare, and each further description costs a request and memory.
const REUSED_FROM: usize = 2;

#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) key: String,
    pub(super) digest: Digest,
    /// Whether the object belongs to a retained snapshot.
    pub(super) reused: bool,
    /// Whether the interrupted upload that this one continues has written the object.
    pub(super) found: bool,
}

/// What two files must have in common for one to use the object of the other.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Content {
    digest: Digest,
    size: u64,
    start_key: Option<String>,
    end_key: Option<String>,
}

impl Content {
    pub(super) fn of(file: &FileMetadata, digest: Digest) -> Content {
        Content {
            digest,
            size: file.size,
            start_key: file.start_key.clone(),
            end_key: file.end_key.clone(),
        }
    }
}

impl Upload<'_> {
    /// Places files, and renews the intent meanwhile. Returns false if the intent was removed.
    pub(super) async fn place_while_alive(
        &mut self,
        files: &[&FileMetadata],
        reusable: &HashMap<Content, String>,
    ) -> Result<bool, Error> {
        let placed = {
            let renewed = self
                .repository
                .renew(&self.store, self.generation, &self.ids);
            let placing = self.place(files, reusable, self.repository.options.kind);
            match futures::future::select(std::pin::pin!(placing), std::pin::pin!(renewed)).await {
                futures::future::Either::Left((placed, _)) => placed?,
                futures::future::Either::Right(((), _)) => return Ok(false),
            }
        };
        self.count(&placed);
        self.placed.extend(placed);
        Ok(true)
    }

    pub(super) fn count(&mut self, placed: &[(String, Placed)]) {
        let mut written = HashSet::new();
        let sizes: HashMap<&str, u64> = self
            .checkpoint
            .files
            .iter()
            .map(|f| (f.name.as_str(), f.size))
            .collect();
        for (name, placed) in placed {
            if !placed.reused && !placed.found && written.insert(&placed.key) {
                self.files_uploaded += 1;
                self.bytes_uploaded += sizes.get(name.as_str()).copied().unwrap_or(0);
            }
        }
    }

    /// The objects of files of retained snapshots that may be reused: none if this is the snapshot that
    /// shares nothing with earlier ones ([`Options::full_every`](crate::Options::full_every)). Files of a
    /// snapshot whose description cannot be read are not reused, nor those that are marked as damaged.
    pub(super) async fn reusable(&mut self, root: &Root) -> HashMap<Content, String> {
        let mut reusable = HashMap::new();
        let options = &self.repository.options;
        let may_reuse = options.kind == Kind::Incremental && options.reuse;
        let Some(newest) = root.retained_snapshots.first().filter(|_| may_reuse) else {
            return reusable;
        };
        let dir = newest.dir();
        let newest = self.repository.read_description(&self.store, &dir);
        // How many came before is unknown where a description is unreadable, and then the count starts again.
        let in_a_row = newest
            .await
            .ok()
            .and_then(|m| m.reused_in_a_row)
            .unwrap_or(0);
        let in_a_row = in_a_row.saturating_add(1);
        if options
            .full_every
            .is_some_and(|every| in_a_row >= every.get())
        {
            return reusable;
        }
        self.reused_in_a_row = in_a_row;
        let marked = root.marked();
        for retained in root.retained_snapshots.iter().take(REUSED_FROM) {
            if retained.damaged_further > 0 {
                continue;
            }
            let dir = retained.dir();
            let read = self.repository.read_description(&self.store, &dir);
            let metadata = match read.await {
                Ok(metadata) => metadata,
                Err(error) => {
                    tracing::warn!(%error, "A retained snapshot cannot be read; its files are not reused");
                    continue;
                }
            };
            for file in &metadata.files {
                // Files of full snapshots are deleted with their directory.
                let key = metadata.key_of(file);
                if metadata.kind() == Kind::Incremental
                    && !marked.contains(key.as_str())
                    && let Some(digest) = metadata.checksum_of(file)
                {
                    reusable.entry(Content::of(file, digest)).or_insert(key);
                }
            }
        }
        reusable
    }

    /// Finds an object for every file: reuses one or uploads the file, several at a time.
    pub(super) async fn place(
        &self,
        files: &[&FileMetadata],
        reusable: &HashMap<Content, String>,
        kind: Kind,
    ) -> Result<Vec<(String, Placed)>, Error> {
        let uploads = Uploads {
            store: &self.store,
            source: &self.checkpoint.source,
            memory: &self.memory,
            buffer: self.repository.options.buffer,
            progress: self.progress,
            stopped: watch::Sender::new(false),
        };
        let uploads = &uploads;
        let parallel = self.repository.options.parallel_files.max(1);
        if kind == Kind::Full {
            self.progress
                .expect(files.len() as u64, files.iter().map(|f| f.size).sum());
            let dir = self.dir();
            let mut under_way = Vec::with_capacity(files.len());
            for file in files {
                let key = dir.file(&file.name);
                under_way.push(async move {
                    let known = match uploads.source.known_digest(&file.name) {
                        // Before a file is linked, it is read once for its checksum; nothing is written.
                        None if uploads.store.links() => Some(uploads.digest(file).await?),
                        known => known,
                    };
                    let digest = uploads.upload(file, &key, known).await?;
                    let placed = Placed {
                        key,
                        digest,
                        reused: false,
                        found: false,
                    };
                    Ok((file.name.clone(), placed))
                });
            }
            return uploads.all(under_way, parallel).await;
        }
        let mut hashing = Vec::with_capacity(files.len());
        for file in files {
            hashing.push(uploads.digest(file));
        }
        let digests: Vec<Digest> = stream::iter(hashing)
            .buffered(parallel)
            .try_collect()
            .await?;
        let mut placed = Vec::with_capacity(files.len());
        let mut fresh: HashMap<String, (&FileMetadata, Digest)> = HashMap::new();
        for (file, digest) in files.iter().zip(digests) {
            let reused = reusable.get(&Content::of(file, digest)).cloned();
            let reused = self.unless_unwanted_link(reused, file).await;
            let key = reused
                .clone()
                .unwrap_or_else(|| shared_file(digest, self.generation));
            let sent = match &reused {
                None if self.there.get(&key) == Some(&file.size) => Some(key.clone()),
                _ => None,
            };
            // A link is replaced by a copy under the same key: no snapshot refers to it yet.
            let found = self.unless_unwanted_link(sent, file).await.is_some();
            if reused.is_none() && !found {
                // Two files of the same content share one object.
                fresh.insert(key.clone(), (file, digest));
            }
            let one = Placed {
                key,
                digest,
                reused: reused.is_some(),
                found,
            };
            placed.push((file.name.clone(), one));
        }
        let bytes = fresh.values().map(|(f, _)| f.size).sum();
        self.progress.expect(fresh.len() as u64, bytes);
        let mut fresh: Vec<_> = fresh.into_iter().collect();
        fresh.sort_by(|a, b| a.0.cmp(&b.0));
        let mut under_way = Vec::with_capacity(fresh.len());
        for (key, (file, digest)) in &fresh {
            under_way.push(async move { uploads.upload(file, key, Some(*digest)).await });
        }
        uploads.all(under_way, parallel).await?;
        Ok(placed)
    }

    /// The key of an object that has a file's content. None if the object is a hard link of the file and
    /// copies are required: damage to the file damages its link too, so a link is no second copy.
    pub(super) async fn unless_unwanted_link(
        &self,
        key: Option<String>,
        file: &FileMetadata,
    ) -> Option<String> {
        let key = key?;
        let path = self.checkpoint.source.path(&file.name);
        let is_unwanted = self.store.is_unwanted_link(&key, path.as_deref()).await;
        (!is_unwanted).then_some(key)
    }
}
