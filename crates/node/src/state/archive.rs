//! JSON snapshots in the repository: `state/default/` beside the partitions' snapshots.
//!
//! An object there has the name of its file, and a checksum under `.sums/`. Numbers of commits are never
//! given out twice, so an object is only ever written again with the same content. The repository's sweep
//! deletes only what matches its own patterns, and these objects do not.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path as FsPath;
use std::sync::Arc;

use esker_partition::Lineage;
use esker_repository::destination::Destination;
use futures::TryStreamExt as _;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::document::{Header, read_head};
use super::files::{commit_of, name_of};
use super::lineage::is_of;

/// Bytes that are read and sent at a time.
const PIECE: usize = 5 * 1024 * 1024;
/// Bytes of an object that are read for its header; the header has some 200.
const HEAD: u64 = 4096;

/// When an object changed last, and the header that it had then, or why that was not valid.
type KnownHead = (String, Result<Header, String>);

/// Most headers that are remembered, some hundred bytes each. Only snapshots of other histories can be so
/// many; the others are read again whenever they are needed.
const MAX_HEADS: usize = 4096;

/// Remembers a header; beyond [`MAX_HEADS`], that of the oldest commit is forgotten.
fn remember(heads: &mut BTreeMap<u64, KnownHead>, commit_ts: u64, head: KnownHead) {
    heads.insert(commit_ts, head);
    if heads.len() > MAX_HEADS {
        heads.pop_first();
    }
}

/// The JSON snapshots of a store in the repository. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct StateArchive {
    store: Arc<dyn ObjectStore>,
    base: Path,
    shown: String,
    /// Objects whose header was read, by commit.
    heads: Arc<Mutex<BTreeMap<u64, KnownHead>>>,
}

/// A snapshot's object in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Archived {
    pub commit_ts: u64,
    pub bytes: u64,
    /// Whether the repository has its checksum.
    pub has_sum: bool,
    /// The version of the object: it differs once another object of that name was put.
    changed: String,
}

impl StateArchive {
    pub fn new(destination: &Destination) -> StateArchive {
        StateArchive {
            store: destination.store().clone(),
            base: destination.prefix().clone().join("state").join("default"),
            shown: destination.display_url().to_owned(),
            heads: Arc::default(),
        }
    }

    /// The place of the snapshots, for display.
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

    /// The snapshots in the repository, newest first.
    pub async fn list(&self) -> object_store::Result<Vec<Archived>> {
        let listed = self.store.list_with_delimiter(Some(&self.base)).await?;
        let sums = self.base.clone().join(".sums");
        let sums = self.store.list_with_delimiter(Some(&sums)).await?;
        let sums: BTreeSet<&str> = sums
            .objects
            .iter()
            .filter_map(|object| object.location.filename()?.strip_suffix(".xxh128"))
            .collect();
        let mut found: Vec<Archived> = listed
            .objects
            .iter()
            .filter_map(|object| {
                let name = object.location.filename()?;
                let stamp = (&object.e_tag, object.last_modified, object.size);
                Some(Archived {
                    commit_ts: commit_of(name)?,
                    bytes: object.size,
                    has_sum: sums.contains(name),
                    changed: format!("{stamp:?}"),
                })
            })
            .collect();
        found.sort_by_key(|one| std::cmp::Reverse(one.commit_ts));
        Ok(found)
    }

    /// Puts a file into the repository, and its checksum after it. The state after a crash can be used: the
    /// checksum of the previous object is removed first, and an object without one is read strictly and put
    /// again.
    pub async fn put(&self, commit_ts: u64, file: &FsPath, sum: String) -> io::Result<()> {
        self.remove(&self.sum_path(commit_ts))
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
        to.shutdown().await?;
        let put = self.store.put(&self.sum_path(commit_ts), sum.into()).await;
        put.map(|_| ()).map_err(io::Error::other)
    }

    /// Whether an object is the snapshot of this size with this line as its checksum. The name alone proves
    /// nothing.
    pub async fn is(&self, one: &Archived, bytes: u64, sum: &str) -> object_store::Result<bool> {
        if !one.has_sum || one.bytes != bytes {
            return Ok(false);
        }
        match self.store.get(&self.sum_path(one.commit_ts)).await {
            Ok(there) => Ok(there.bytes().await? == sum.as_bytes()),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a snapshot of this lineage may replace an object: an object of another lineage stays.
    pub async fn may_replace(&self, one: &Archived, lineage: &str) -> object_store::Result<bool> {
        let head = self.head(one).await?;
        Ok(head.map_or(true, |head| head.lineage == lineage))
    }

    /// Removes an object, if it is there.
    async fn remove(&self, path: &Path) -> object_store::Result<()> {
        match self.store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The header of an object; the inner error is the reason why it is not valid. Each object is read once.
    pub async fn head(&self, one: &Archived) -> object_store::Result<Result<Header, String>> {
        if let Some((changed, head)) = self.heads.lock().get(&one.commit_ts)
            && *changed == one.changed
        {
            return Ok(head.clone());
        }
        let range = 0..one.bytes.min(HEAD);
        let head = match range.is_empty() {
            true => Err("it is empty".to_owned()),
            false => {
                let path = self.path(one.commit_ts);
                read_head(&self.store.get_range(&path, range).await?)
            }
        };
        let read = (one.changed.clone(), head.clone());
        remember(&mut self.heads.lock(), one.commit_ts, read);
        Ok(head)
    }

    /// Fetches a snapshot into a directory, under the names that it has on a disk.
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
        let object = object.map_err(|error| match error {
            gone @ object_store::Error::NotFound { .. } => {
                io::Error::new(io::ErrorKind::NotFound, gone)
            }
            other => io::Error::other(other),
        });
        let mut pieces = object?.into_stream();
        let mut to = tokio::fs::File::create(dir.join(name_of(commit_ts))).await?;
        while let Some(piece) = pieces.try_next().await.map_err(io::Error::other)? {
            to.write_all(&piece).await?;
        }
        to.sync_all().await
    }

    /// Removes all but the newest `count` of this history, whose newest commit is `newest`. Snapshots of
    /// other histories stay, and are not counted in `count`. Returns their commits, and why they are not of
    /// this history.
    pub async fn retain(
        &self,
        count: usize,
        lineage: &Lineage,
        newest: u64,
    ) -> object_store::Result<Vec<(u64, String)>> {
        let (mut kept, mut others) = (0, Vec::new());
        let all = self.list().await?;
        let there: BTreeSet<u64> = all.iter().map(|one| one.commit_ts).collect();
        self.heads.lock().retain(|known, _| there.contains(known));
        for one in all {
            let commit_ts = one.commit_ts;
            let why = match self.head(&one).await? {
                Err(why) => Some(why),
                Ok(head) if head.commit_ts != commit_ts => {
                    Some(format!("it is of commit_ts {}", head.commit_ts))
                }
                Ok(head) => match is_of(lineage, &head) {
                    Err(why) => Some(why),
                    Ok(()) if commit_ts > newest => Some(format!(
                        "the newest commit of this store is {newest}: it is of another copy of it"
                    )),
                    Ok(()) => None,
                },
            };
            if let Some(why) = why {
                others.push((commit_ts, why));
                continue;
            }
            kept += 1;
            if kept > count {
                self.remove(&self.path(commit_ts)).await?;
                self.remove(&self.sum_path(commit_ts)).await?;
            }
        }
        Ok(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_are_remembered_are_bounded_and_those_of_the_newest_commits() {
        let mut heads = BTreeMap::new();
        for commit_ts in (0..3 * MAX_HEADS as u64).rev() {
            remember(&mut heads, commit_ts, (String::new(), Err(String::new())));
        }
        assert_eq!(heads.len(), MAX_HEADS);
        assert_eq!(heads.keys().next().copied(), Some(2 * MAX_HEADS as u64));
    }
}
