//! A partition's repository: its root, its snapshots' descriptions, and the swap.
//!
//! Everything that changes a repository goes through [`Repository::try_swap`]: it replaces the root if it
//! is still the one that was read. An answer that is not a plain success proves nothing: then the root is
//! read back, and the caller decides whether it contains the change.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::UpdateVersion;
use tokio::sync::Mutex;

pub use crate::cluster::Cluster;
use crate::description_cache::DescriptionCache;
use crate::destination::Destination;
use crate::env::{Env, System};
use crate::error::{Error, ParseError};
use crate::ids::{Generation, PartitionId, SnapshotId};
use crate::layout::{Object, ROOT, SnapshotDir};
use crate::metadata::SnapshotMetadata;
pub use crate::options::Options;
use crate::root::{ROOT_BYTES, Root};
use crate::store::{Store, Swap};

/// What the operator has to do about a damaged root.
const BRING_BACK: &str = "Bring it back from an earlier version or a backup of the bucket; until then nothing is written or deleted there, and a snapshot that is named in full (lsn_…-snap_…) can be restored";

/// Maximum number of attempts at a swap while other writers win. With back-off, these are minutes of steady
/// contention on an object that is swapped a few times per upload.
pub(crate) const SWAP_ATTEMPTS: u32 = 40;

/// A partition's snapshots at a destination.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(crate) store: Store,
    pub(crate) partition: PartitionId,
    pub(crate) options: Arc<Options>,
    /// Descriptions of kept snapshots. A description never changes, so a cached one cannot be stale.
    pub(crate) descriptions: Arc<Mutex<HashMap<SnapshotDir, Arc<SnapshotMetadata>>>>,
    /// Large descriptions that repositories of other operations have read.
    pub(crate) shared: Option<DescriptionCache>,
}

/// A root, and the version of the object that it was read from, which a swap replaces.
#[derive(Clone, Debug)]
pub struct CurrentRoot {
    root: Root,
    version: UpdateVersion,
}

impl CurrentRoot {
    /// The root.
    pub fn root(&self) -> &Root {
        &self.root
    }
}

impl std::ops::Deref for CurrentRoot {
    type Target = Root;

    fn deref(&self) -> &Root {
        &self.root
    }
}

/// What the caller of [`Repository::swap_with`] decides.
pub(crate) enum Change {
    /// Replaces the root by this one. The swap raises its generation.
    To(Box<Root>),
    /// Leaves the root as it is.
    Nothing,
}

/// The outcome of [`Repository::try_swap`].
pub(crate) enum Swapped {
    /// The swap was done; the new root.
    Done(CurrentRoot),
    /// The swap may have been done; the root that was read back.
    ReadBack(CurrentRoot),
}

/// All keys that must stay.
#[derive(Debug, Default)]
pub(crate) struct Refs {
    keys: HashSet<String>,
}

impl Refs {
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    pub(crate) fn add(&mut self, snapshot: &SnapshotMetadata) {
        self.keys.insert(snapshot.dir().metadata());
        self.keys
            .extend(snapshot.files.iter().map(|f| snapshot.key_of(f)));
    }
}

impl Repository {
    /// Opens a partition's repository. Reads nothing.
    pub fn new(destination: &Destination, partition: PartitionId, options: Options) -> Repository {
        Repository::with_env(destination, partition, options, Arc::new(System))
    }

    /// As [`Repository::new`], with another clock and other random numbers.
    pub fn with_env(
        destination: &Destination,
        partition: PartitionId,
        options: Options,
        env: Arc<dyn Env>,
    ) -> Repository {
        Repository {
            store: Store::new(destination, partition, env, &options),
            partition,
            options: Arc::new(options),
            descriptions: Arc::default(),
            shared: None,
        }
    }

    /// The same repository, which shares large descriptions with others of the same destination.
    pub fn with_descriptions(self, shared: &DescriptionCache) -> Repository {
        Repository {
            shared: Some(shared.clone()),
            ..self
        }
    }

    /// The partition.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// An object's URL, as it is printed.
    pub fn display_url(&self, key: &str) -> String {
        self.store.display_url(key)
    }

    pub(crate) fn cluster(&self) -> Result<&Cluster, Error> {
        self.options.cluster.as_ref().ok_or_else(|| {
            Error::Invalid("this repository was opened for reading: it names no cluster".to_owned())
        })
    }

    /// Reads the root. If there is none, returns [`Error::NoRoot`], which reports whether there are
    /// snapshots.
    pub async fn root(&self) -> Result<CurrentRoot, Error> {
        self.read_root(&self.store.operation()).await
    }

    pub(crate) async fn read_root(&self, store: &Store) -> Result<CurrentRoot, Error> {
        if let Some(current) = self.try_read_root(store).await? {
            return Ok(current);
        }
        let mut listed = store.list();
        let mut others = false;
        while let Some(object) = listed.next().await {
            others |= !matches!(Object::of(&object?.key), Object::Foreign | Object::Root);
            if others {
                break;
            }
        }
        Err(Error::NoRoot {
            root: store.display_url(ROOT),
            others,
        })
    }

    /// Reads the root; `None` if there is none.
    async fn try_read_root(&self, store: &Store) -> Result<Option<CurrentRoot>, Error> {
        let (bytes, version) = match store.get(ROOT, ROOT_BYTES).await {
            Ok(found) => found,
            Err(Error::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let root = Root::parse(&bytes, self.partition).map_err(|why| match why {
            ParseError::Damaged(why) => Error::Damaged {
                object: store.display_url(ROOT),
                why: format!("{why}. {BRING_BACK}"),
            },
            newer @ ParseError::Newer(_) => newer.of(store.display_url(ROOT)),
        })?;
        self.check_cluster(
            &store.display_url(ROOT),
            &root.cluster_name,
            root.cluster_fingerprint,
        )?;
        Ok(Some(CurrentRoot { root, version }))
    }

    /// Refuses an object that another cluster wrote.
    pub(crate) fn check_cluster(
        &self,
        object: &str,
        name: &str,
        fingerprint: Option<u64>,
    ) -> Result<(), Error> {
        match &self.options.cluster {
            Some(cluster) => cluster.check(object, name, fingerprint),
            None => Ok(()),
        }
    }

    /// All keys that a root keeps: of retained, pinned and abandoned snapshots. Fails if one of their
    /// descriptions cannot be read: then it is not known which keys must stay.
    pub(crate) async fn refs(&self, store: &Store, root: &Root) -> Result<Refs, Error> {
        let kept = root.kept();
        let mut refs = Refs::default();
        for dir in &kept {
            refs.add(&*self.read_description(store, dir).await?);
        }
        self.forget_all_but(&kept).await;
        Ok(refs)
    }

    /// The refs of a root. If descriptions are missing because other writers have changed the root
    /// meanwhile, the current root and its refs.
    pub(crate) async fn refs_of_now(
        &self,
        store: &Store,
        mut root: CurrentRoot,
    ) -> Result<(CurrentRoot, Refs), Error> {
        for _ in 1..SWAP_ATTEMPTS {
            match self.refs(store, &root).await {
                Err(error) if error.is_damage() => {
                    let now = self.read_root(store).await?;
                    if now.root == root.root {
                        return Err(error);
                    }
                    root = now;
                }
                refs => return Ok((root, refs?)),
            }
        }
        let refs = self.refs(store, &root).await?;
        Ok((root, refs))
    }

    /// Those of the retained snapshots after the first `keep` that a newer release has described. This release
    /// knows nothing of them, so it removes none from the root.
    pub(crate) async fn newer_beyond(
        &self,
        store: &Store,
        root: &Root,
        keep: usize,
    ) -> Result<HashSet<SnapshotId>, Error> {
        let mut newer = HashSet::new();
        for retained in root.retained_snapshots.iter().skip(keep) {
            match self.read_description(store, &retained.dir()).await {
                Ok(_) => {}
                Err(Error::NewerFormat { .. }) => {
                    newer.insert(retained.snapshot_id.clone());
                }
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(newer)
    }

    /// The keys that no retained snapshot has, or that are marked as damaged. Reads descriptions newest first, and only until all keys are
    /// found, because each description that is not cached costs a request.
    pub(crate) async fn not_retained(
        &self,
        store: &Store,
        root: &Root,
        mut keys: HashSet<String>,
    ) -> Result<HashSet<String>, Error> {
        let marked = root.marked();
        for retained in &root.retained_snapshots {
            if keys.is_empty() {
                break;
            }
            if retained.damaged_further > 0 {
                continue;
            }
            match self.read_description(store, &retained.dir()).await {
                Ok(description) => {
                    for file in &description.files {
                        let key = description.key_of(file);
                        if !marked.contains(key.as_str()) {
                            keys.remove(&key);
                        }
                    }
                }
                // None of its files is reused; they are uploaded again.
                Err(error) if error.is_damage() || matches!(error, Error::NewerFormat { .. }) => {
                    tracing::warn!(%error, "A retained snapshot cannot be read");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(keys)
    }

    /// Replaces a root, once, if it is still the one that was read. If the answer is not a plain success,
    /// the root is read back: an attempt with a failed answer may have succeeded, and only the caller can
    /// decide that.
    pub(crate) async fn try_swap(
        &self,
        store: &Store,
        current: &CurrentRoot,
        mut next: Root,
    ) -> Result<Swapped, Error> {
        next.generation = Some(self.next_generation(store, current)?);
        next.settle();
        let bytes = Bytes::from(next.to_bytes()?);
        match store.swap(ROOT, bytes, Some(&current.version)).await? {
            Swap::Done(version) if version.e_tag.is_some() => {
                let root = next;
                return Ok(Swapped::Done(CurrentRoot { root, version }));
            }
            // The swap was done, but the store does not report the new version.
            Swap::Done(_) | Swap::Lost => {}
            Swap::Unknown(failure) => {
                tracing::debug!(%failure, "A swap of the root got no plain answer");
            }
        }
        Ok(Swapped::ReadBack(self.read_root(store).await?))
    }

    /// The generation that the next swap sets.
    pub(crate) fn next_generation(&self, store: &Store, root: &Root) -> Result<Generation, Error> {
        let generation = root.generation.ok_or_else(|| Error::NotOurs {
            root: store.display_url(ROOT),
        })?;
        let next = generation.0.checked_add(1).ok_or_else(|| Error::Damaged {
            object: store.display_url(ROOT),
            why: "its generation is the largest that there is".to_owned(),
        })?;
        Ok(Generation(next))
    }

    /// Replaces the root: reads it (or begins with `known`, which may be old), calls `decide` for the next
    /// one, and tries until the swap is done, `decide` fails or returns [`Change::Nothing`], or
    /// [`SWAP_ATTEMPTS`] were lost to other writers. `is_done` returns whether a root that was read back
    /// contains the change.
    pub(crate) async fn swap_with(
        &self,
        store: &Store,
        known: Option<CurrentRoot>,
        mut decide: impl FnMut(&Root) -> Result<Change, Error> + Send,
        is_done: impl Fn(&Root) -> bool + Send,
    ) -> Result<CurrentRoot, Error> {
        let mut current = match known {
            Some(known) => known,
            None => self.read_root(store).await?,
        };
        for attempt in 1..=SWAP_ATTEMPTS {
            // This check comes first: a root of another program is never changed.
            self.next_generation(store, &current)?;
            let next = match decide(&current.root)? {
                Change::To(next) => *next,
                Change::Nothing => return Ok(current),
            };
            current = match self.try_swap(store, &current, next).await? {
                Swapped::Done(current) => return Ok(current),
                Swapped::ReadBack(current) if is_done(&current.root) => return Ok(current),
                Swapped::ReadBack(current) => current,
            };
            self.back_off(store, attempt).await;
        }
        Err(self.contended(store))
    }

    /// Waits before the next attempt, longer each time, so that other writers finish.
    pub(crate) async fn back_off(&self, store: &Store, attempt: u32) {
        if attempt > 1 {
            store.env().sleep(store.wait_after(attempt - 1)).await;
        }
    }

    pub(crate) fn contended(&self, store: &Store) -> Error {
        Error::Contended {
            root: store.display_url(ROOT),
            attempts: SWAP_ATTEMPTS,
        }
    }

    /// Creates a root where there is none. Its generation is far above that of every existing object, so
    /// that no generation of a former root is registered again.
    ///
    /// `None` if another writer created one meanwhile.
    pub(crate) async fn create_root(
        &self,
        store: &Store,
        fill: impl FnOnce(&mut Root),
        is_done: impl Fn(&Root) -> bool,
    ) -> Result<Option<CurrentRoot>, Error> {
        let mut largest = 0;
        let mut listed = store.list();
        while let Some(object) = listed.next().await {
            if let Object::Shared {
                generation: Some(generation),
            } = Object::of(&object?.key)
            {
                largest = largest.max(generation.0);
            }
        }
        let jump = (1 << 32) + (store.env().random() >> 33);
        let generation = largest.checked_add(jump).ok_or_else(|| {
            Error::Invalid(format!(
                "{} has generations without end",
                store.display_url("")
            ))
        })?;
        let mut root = Root::empty(self.partition, self.cluster()?, Generation(generation));
        fill(&mut root);
        root.settle();
        let bytes = Bytes::from(root.to_bytes()?);
        if let Swap::Done(version) = store.swap(ROOT, bytes, None).await?
            && version.e_tag.is_some()
        {
            return Ok(Some(CurrentRoot { root, version }));
        }
        let current = self.try_read_root(store).await?;
        Ok(current.filter(|current| is_done(&current.root)))
    }
}
