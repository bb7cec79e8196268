//! JSON snapshots in the repository: `state/default/` beside the partitions' snapshots.
//!
//! An object there has the name of its file, and a checksum under `.sums/`. Numbers of commits are never
//! given out twice, so an object is only ever written again with the same content. The repository's
//! sweep does not know these objects, and never touches them.

use std::io;
use std::path::Path as FsPath;
use std::sync::Arc;

use esker_repository::destination::Destination;
use futures::TryStreamExt as _;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::files::{commit_of, name_of};

/// Bytes that are read and sent at a time.
const PIECE: usize = 5 * 1024 * 1024;

/// Where they are.
#[derive(Clone, Debug)]
pub(crate) struct StateArchive {
    store: Arc<dyn ObjectStore>,
    base: Path,
    shown: String,
}

/// An object there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Archived {
    pub commit_ts: u64,
    pub bytes: u64,
}

impl StateArchive {
    pub fn new(destination: &Destination) -> StateArchive {
        StateArchive {
            store: destination.store().clone(),
            base: destination.prefix().clone().join("state").join("default"),
            shown: destination.shown().to_owned(),
        }
    }

    /// For people.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    fn path(&self, commit_ts: u64) -> Path {
        self.base.clone().join(name_of(commit_ts))
    }

    fn sum_path(&self, commit_ts: u64) -> Path {
        let name = format!("{}.xxh128", name_of(commit_ts));
        self.base.clone().join(".sums").join(name)
    }

    /// What is there, newest first.
    pub async fn list(&self) -> object_store::Result<Vec<Archived>> {
        let listed = self.store.list_with_delimiter(Some(&self.base)).await?;
        let mut found: Vec<Archived> = listed
            .objects
            .iter()
            .filter_map(|object| {
                Some(Archived {
                    commit_ts: commit_of(object.location.filename()?)?,
                    bytes: object.size,
                })
            })
            .collect();
        found.sort_by_key(|one| std::cmp::Reverse(one.commit_ts));
        Ok(found)
    }

    /// Puts a file there, and its checksum before it.
    pub async fn put(&self, commit_ts: u64, file: &FsPath, sum: String) -> io::Result<()> {
        self.store
            .put(&self.sum_path(commit_ts), sum.into())
            .await
            .map_err(io::Error::other)?;
        let mut from = tokio::fs::File::open(file).await?;
        let mut to = BufWriter::with_capacity(self.store.clone(), self.path(commit_ts), PIECE);
        let mut piece = vec![0; 256 * 1024];
        loop {
            let count = from.read(&mut piece).await?;
            if count == 0 {
                break;
            }
            if let Err(error) = to.write_all(&piece[..count]).await {
                let _ = to.abort().await;
                return Err(error);
            }
        }
        to.shutdown().await
    }

    /// Fetches one into a directory, under the names that it has on a disk.
    pub async fn fetch(&self, commit_ts: u64, dir: &FsPath) -> io::Result<()> {
        let sums = dir.join(".sums");
        tokio::fs::create_dir_all(&sums).await?;
        match self.store.get(&self.sum_path(commit_ts)).await {
            Ok(sum) => {
                let sum = sum.bytes().await.map_err(io::Error::other)?;
                let name = format!("{}.xxh128", name_of(commit_ts));
                tokio::fs::write(sums.join(name), sum).await?;
            }
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(io::Error::other(error)),
        }
        let object = self.store.get(&self.path(commit_ts)).await;
        let mut pieces = object.map_err(io::Error::other)?.into_stream();
        let mut to = tokio::fs::File::create(dir.join(name_of(commit_ts))).await?;
        while let Some(piece) = pieces.try_next().await.map_err(io::Error::other)? {
            to.write_all(&piece).await?;
        }
        to.sync_all().await
    }

    /// Removes all but the newest `count`; how many that were.
    pub async fn retain(&self, count: usize) -> object_store::Result<usize> {
        let old: Vec<_> = self.list().await?.into_iter().skip(count).collect();
        for one in &old {
            for path in [self.path(one.commit_ts), self.sum_path(one.commit_ts)] {
                match self.store.delete(&path).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(old.len())
    }
}
