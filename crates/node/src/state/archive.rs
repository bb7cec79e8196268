//! JSON snapshots in the repository: `state/default/` beside the partitions' snapshots.
//!
//! An object there has the name of its file, and a checksum under `.sums/`. Numbers of commits are never
//! given out twice, so an object is only ever written again with the same content. The repository's
//! sweep does not know these objects, and never touches them.

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
/// Bytes of an object that are read to learn of which history it is; what a snapshot says of itself before
/// its entries has some 200.
const HEAD: u64 = 4096;

/// When an object changed last, and what its beginning holds.
type KnownHead = (String, Result<Header, String>);

/// Most heads that are remembered, some hundred bytes each. Only snapshots of other histories can be so many;
/// those beyond are read again whenever they are needed.
const MAX_HEADS: usize = 4096;

/// Remembers a head; of too many, that of the oldest commit is forgotten.
fn remember(heads: &mut BTreeMap<u64, KnownHead>, commit_ts: u64, head: KnownHead) {
    heads.insert(commit_ts, head);
    if heads.len() > MAX_HEADS {
        heads.pop_first();
    }
}

/// Where they are.
#[derive(Clone, Debug)]
pub(crate) struct StateArchive {
    store: Arc<dyn ObjectStore>,
    base: Path,
    shown: String,
    /// Objects whose beginning was read, by commit.
    heads: Arc<Mutex<BTreeMap<u64, KnownHead>>>,
}

/// An object there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Archived {
    pub commit_ts: u64,
    pub bytes: u64,
    /// Whether its checksum is there.
    pub has_sum: bool,
    /// Which object it is: of another of that name, another.
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

    /// Puts a file there, and its checksum after it. Whatever a crash leaves can be used: the checksum of
    /// what was there before goes first, and an object without one is read strictly and put again.
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

    /// Whether an object is the snapshot of so many bytes that this line of a checksum is of: its name alone
    /// proves nothing.
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

    /// Whether a snapshot of this lineage may be put in the place of an object: not in that of another
    /// lineage's, which stays.
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

    /// What an object says of itself; if it says nothing, why. Each is read once.
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

    /// Removes all but the newest `count` of this history, whose newest commit is `newest`. What is of
    /// another one stays, and takes no place from these: its commits, and why it does not count.
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
