//! Putting a checkpoint into the repository.
//!
//! 0. *Owner*: the destination has to belong to the cluster, see [`crate::ownership`].
//! 1. *Intent*: a swap registers the upload. The generation that this swap makes is its own, and
//!    every object that it writes carries it.
//! 2. *Upload*: files that a retained snapshot has are reused, by checksum, size and key range; the
//!    others are written. Nothing is ever adopted because it happens to be there.
//! 3. *Commit*: the description is written, and a swap makes the snapshot the repository's. It
//!    does so only if the intent still lives and every reused file is one of a snapshot that is
//!    retained in the very root that is replaced. A reused file that went meanwhile is uploaded
//!    after all, and the snapshot gets another id.
//! 4. *Retention*: see [`crate::retention`].
//!
//! An upload whose intent was removed, because it has expired, begins again.
//!
//! An upload that was interrupted leaves its intent. The next put of the same node, known by its
//! incarnations, goes on with it instead of registering another one: it adds an id for its own snapshot,
//! lists what carries the generation, and does not send a file again whose content is there. That is no
//! adoption of what happens to be there: no sweep takes what belongs to an intent that lives, the list is
//! made after the swap that has shown that it lives, and the commit requires that it still does. A key has
//! the checksum of its content in it, so whoever wrote it has written the same.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::Map;
use tokio::sync::{Semaphore, watch};

use crate::checkpoint::Checkpoint;
use crate::env::within;
use crate::error::Error;
use crate::ids::{Digest, Generation, SnapshotId};
use crate::layout::{Object, ROOT, SnapshotDir, is_full_name, shared_file};
use crate::metadata::{FileMetadata, Kind, SnapshotMetadata};
use crate::ownership;
use crate::progress::Progress;
use crate::repository::{Change, CurrentRoot, Repository, SWAP_ATTEMPTS, Swapped};
use crate::retention::Retention;
use crate::root::{Intent, Retained, Root};
use crate::store::Store;
use crate::upload::{PART, Uploads};

/// How often an upload begins again after it has expired.
const BEGINNINGS: u32 = 3;
/// How often a root that is not there is made, while the store answers neither yes nor no.
const CREATIONS: u32 = 6;
/// How often files that were to be reused may go while an upload commits. Each time, another
/// snapshot was committed meanwhile.
const REPAIRS: usize = 16;

/// A put reuses files of so many of the newest retained snapshots. A file that left and came back is
/// rare, and each further description is a request and memory.
const REUSED_FROM: usize = 2;
/// How long an upload that failed tries to remove its intent.
const WITHDRAWAL: Duration = Duration::from_secs(20);

/// What [`Repository::put`] did.
#[derive(Clone, Debug)]
pub struct Put {
    /// The snapshot.
    pub snapshot: SnapshotDir,
    /// Files of the snapshot.
    pub files: u64,
    /// Bytes of the snapshot.
    pub bytes: u64,
    /// Files that were written.
    pub files_uploaded: u64,
    /// Bytes that were written, descriptions and root apart.
    pub bytes_uploaded: u64,
    /// What was deleted, because newer snapshots took its place.
    pub retention: Retention,
}

/// An upload under way.
struct Upload<'a> {
    repository: &'a Repository,
    store: Store,
    checkpoint: &'a Checkpoint,
    progress: &'a Progress,
    memory: Semaphore,
    generation: Generation,
    ids: Vec<SnapshotId>,
    /// Where every file is, by name.
    placed: HashMap<String, Placed>,
    /// Objects that an interrupted upload has left under the same generation, and their sizes.
    there: HashMap<String, u64>,
    files_uploaded: u64,
    bytes_uploaded: u64,
}

#[derive(Clone, Debug)]
struct Placed {
    key: String,
    digest: Digest,
    /// It is a retained snapshot's.
    reused: bool,
    /// It was sent before this upload was interrupted.
    found: bool,
}

/// A file by what counts for reuse.
#[derive(PartialEq, Eq, Hash)]
struct Content {
    digest: Digest,
    size: u64,
    start_key: Option<String>,
    end_key: Option<String>,
}

impl Content {
    fn of(file: &FileMetadata, digest: Digest) -> Content {
        Content {
            digest,
            size: file.size,
            start_key: file.start_key.clone(),
            end_key: file.end_key.clone(),
        }
    }
}

/// How one beginning ended.
enum End {
    Put(Box<Put>),
    Fenced,
}

impl Repository {
    /// Puts a checkpoint. When this is done, its snapshot is in the root, and every byte is durable
    /// as far as the store promises.
    ///
    /// There has to be a root, or nothing at all: a root that is missing beside snapshots is an
    /// error. Dropping the future leaves an intent behind, which a sweep removes a day later; nothing
    /// that is in use is harmed.
    pub async fn put(&self, checkpoint: &Checkpoint, progress: &Progress) -> Result<Put, Error> {
        let result = match self.put_until_done(checkpoint, progress).await {
            // A root that is gone may mean that all is: then the marker is missing too.
            Err(Error::NoRoot { root, others }) => Err(self
                .check_marker()
                .await
                .err()
                .unwrap_or(Error::NoRoot { root, others })),
            result => result,
        };
        match &result {
            Ok(put) => {
                metrics::counter!("esker_partition_store_snapshots_upload_total").increment(1);
                metrics::counter!("esker_partition_store_snapshots_upload_bytes_total")
                    .increment(put.bytes_uploaded);
                metrics::counter!(
                    "esker_partition_store_snapshots_upload_bytes_deduplicated_total"
                )
                .increment(put.bytes - put.bytes_uploaded);
            }
            Err(_) => {
                metrics::counter!("esker_partition_store_snapshots_upload_failed_total")
                    .increment(1);
            }
        }
        result
    }

    async fn check_marker(&self) -> Result<(), Error> {
        let store = self.store.operation();
        ownership::check_with(&store, self.cluster()?).await
    }

    async fn put_until_done(
        &self,
        checkpoint: &Checkpoint,
        progress: &Progress,
    ) -> Result<Put, Error> {
        checkpoint.check()?;
        let started = self.store.env().now();
        if self.options.kind == Kind::Full
            && let Some(file) = checkpoint
                .files
                .iter()
                .find(|f| !is_full_name(f.name.trim_start_matches('/')))
        {
            return Err(Error::Invalid(format!(
                "a full snapshot takes only files named like 000028.sst, not {}: \
                 put it as an incremental one",
                file.name
            )));
        }
        for _ in 0..BEGINNINGS {
            match self.put_once(checkpoint, progress).await? {
                End::Put(put) => {
                    let took = (self.store.env().now() - started).as_seconds_f64();
                    metrics::histogram!("esker_partition_store_snapshots_upload_duration_seconds")
                        .record(took.max(0.0));
                    return Ok(*put);
                }
                End::Fenced => {
                    tracing::warn!(
                        partition = %self.partition,
                        "The upload of a snapshot has expired; it begins again"
                    );
                }
            }
        }
        Err(Error::Fenced {
            attempts: BEGINNINGS,
        })
    }

    async fn put_once(&self, checkpoint: &Checkpoint, progress: &Progress) -> Result<End, Error> {
        let store = self.store.operation();
        ownership::claim_with(&store, self.cluster()?).await?;
        let bits = || (u128::from(store.env().random()) << 64) | u128::from(store.env().random());
        let id = SnapshotId::from_bits(bits());
        let current = self.register(&store, checkpoint, &id).await?;
        let Some(intent) = current
            .intents
            .iter()
            .find(|i| i.snapshot_ids.contains(&id))
        else {
            return Ok(End::Fenced);
        };
        let generation = intent.generation;
        let there = match intent.snapshot_ids.len() {
            1 => HashMap::new(),
            _ => self.left_there(&store, generation).await?,
        };
        let mut upload = Upload {
            repository: self,
            memory: Semaphore::new(self.options.buffer.max(usize::try_from(PART).unwrap_or(0))),
            store,
            checkpoint,
            progress,
            generation,
            ids: vec![id],
            placed: HashMap::new(),
            there,
            files_uploaded: 0,
            bytes_uploaded: 0,
        };
        let result = upload.run(current).await;
        if result.is_err() {
            upload.withdraw().await;
        }
        result
    }

    /// Swaps an intent in. The root that comes back holds it, unless it was fenced already.
    async fn register(
        &self,
        store: &Store,
        checkpoint: &Checkpoint,
        id: &SnapshotId,
    ) -> Result<CurrentRoot, Error> {
        let intend = |root: &mut Root, generation: Generation| -> Result<(), Error> {
            let node_name = self.cluster()?.node_name.clone();
            if root.lineage.is_none() && root.retained_snapshots.is_empty() {
                root.lineage = checkpoint.lineage;
            }
            root.log_id = root.log_id.or(checkpoint.log_id);
            self.claim_writer(root)?;
            let goes_on = self.options.kind == Kind::Incremental && self.options.reuse;
            let left = self.left_behind(root).filter(|_| goes_on);
            let left = left.map(|left| left.generation);
            let left = root
                .intents
                .iter_mut()
                .find(|intent| Some(intent.generation) == left);
            let incarnation = self.options.incarnation.as_ref().map(|ours| ours.id);
            if let Some(left) = left {
                left.snapshot_ids.push(id.clone());
                left.incarnation = incarnation;
                left.renewed_at = store.env().now();
                return Ok(());
            }
            root.intents.push(Intent {
                snapshot_ids: vec![id.clone()],
                generation,
                node_name,
                incarnation,
                renewed_at: store.env().now(),
                extra: Map::new(),
            });
            Ok(())
        };
        let mut attempt = 0;
        let known = loop {
            attempt += 1;
            match self.read_root(store).await {
                Ok(current) => break current,
                Err(Error::NoRoot { others: false, .. }) if attempt <= CREATIONS => {}
                Err(error) => return Err(error),
            }
            self.back_off(store, attempt).await;
            let mut filled = Ok(());
            let created = self
                .create_root(
                    store,
                    |root| {
                        let generation = root.generation.unwrap_or_default();
                        filled = intend(root, generation);
                    },
                    |root| root.intends(id),
                )
                .await;
            filled?;
            // None: somebody else made it, or the store failed and nobody did.
            if let Some(created) = created? {
                return Ok(created);
            }
        };
        self.swap_with(
            store,
            Some(known),
            |root| {
                self.check_writer(root)?;
                self.check_fits(root, checkpoint)?;
                let mut next = root.clone();
                intend(&mut next, self.next_generation(store, root)?)?;
                Ok(Change::To(Box::new(next)))
            },
            |root| root.intends(id),
        )
        .await
    }

    /// What an interrupted upload has left under a generation whose intent lives.
    async fn left_there(
        &self,
        store: &Store,
        generation: Generation,
    ) -> Result<HashMap<String, u64>, Error> {
        let mut there = HashMap::new();
        let mut listed = store.list();
        while let Some(object) = listed.next().await {
            let object = object?;
            let of = match Object::of(&object.key) {
                Object::Shared { generation } => generation,
                _ => None,
            };
            if of == Some(generation) {
                there.insert(object.key, object.size);
            }
        }
        tracing::info!(
            partition = %self.partition,
            files = there.len(),
            bytes = there.values().sum::<u64>(),
            "An upload that was interrupted is gone on with"
        );
        Ok(there)
    }

    /// How many snapshots a commit leaves.
    fn num_retained(&self) -> usize {
        self.options.num_retained.map_or(1, |n| n.get() as usize)
    }

    /// Whether a root takes this checkpoint at all.
    fn check_fits(&self, root: &Root, checkpoint: &Checkpoint) -> Result<(), Error> {
        let fresh = root.lineage.is_none() && root.retained_snapshots.is_empty();
        if !fresh && root.lineage != checkpoint.lineage {
            return Err(Error::OtherLineage {
                theirs: root.lineage,
                ours: checkpoint.lineage,
            });
        }
        // What is retained beyond the number goes with this commit, and an older snapshot with it.
        let retained = &root.retained_snapshots;
        let count = retained.len().min(self.num_retained());
        match retained[..count].last() {
            Some(oldest) if checkpoint.lsn < oldest.min_applied_lsn => Err(Error::Superseded {
                lsn: checkpoint.lsn,
                oldest: oldest.min_applied_lsn,
            }),
            _ => Ok(()),
        }
    }
}

impl Upload<'_> {
    fn id(&self) -> &SnapshotId {
        // There is one from the beginning.
        &self.ids[self.ids.len() - 1]
    }

    fn dir(&self) -> SnapshotDir {
        SnapshotDir {
            lsn: self.checkpoint.lsn,
            id: self.id().clone(),
        }
    }

    async fn run(&mut self, registered: CurrentRoot) -> Result<End, Error> {
        let reusable = self.reusable(&registered).await;
        let files: Vec<&FileMetadata> = self.checkpoint.files.iter().collect();
        if !self.place_while_alive(&files, &reusable).await? {
            return Ok(End::Fenced);
        }
        self.commit(registered).await
    }

    /// Places files, and renews the intent for as long as that takes; false if it was removed.
    async fn place_while_alive(
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

    fn count(&mut self, placed: &[(String, Placed)]) {
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

    /// What retained snapshots have. One whose description cannot be read has nothing to offer.
    async fn reusable(&self, root: &Root) -> HashMap<Content, String> {
        let mut reusable = HashMap::new();
        if self.repository.options.kind == Kind::Full || !self.repository.options.reuse {
            return reusable;
        }
        for retained in root.retained_snapshots.iter().take(REUSED_FROM) {
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
                // Files of full snapshots go with their directory.
                if metadata.kind() == Kind::Incremental
                    && let Some(digest) = metadata.checksum_of(file)
                {
                    reusable
                        .entry(Content::of(file, digest))
                        .or_insert_with(|| metadata.key_of(file));
                }
            }
        }
        reusable
    }

    /// Finds a place for every file: reuses it or uploads it, several at a time.
    async fn place(
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
                        // To link a file is to read it once, for its checksum, and to write nothing.
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
            // A link is replaced by a copy, under the same key: nobody refers to it yet.
            let found = self.unless_unwanted_link(sent, file).await.is_some();
            if reused.is_none() && !found {
                // Two files of one content are one object.
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

    /// The key of an object that holds a file, unless the object is a hard link of it and copies are
    /// wanted: what happens to the file happens to a link of it, which is no second copy.
    async fn unless_unwanted_link(
        &self,
        key: Option<String>,
        file: &FileMetadata,
    ) -> Option<String> {
        let key = key?;
        let path = self.checkpoint.source.path(&file.name);
        let is_unwanted = self.store.is_unwanted_link(&key, path.as_deref()).await;
        (!is_unwanted).then_some(key)
    }

    /// Writes the description and makes the snapshot the repository's.
    async fn commit(&mut self, mut known: CurrentRoot) -> Result<End, Error> {
        for _ in 0..REPAIRS {
            let metadata = self.describe()?;
            let dir = self.dir();
            self.store
                .put(&dir.metadata(), Bytes::from(metadata.to_bytes()?))
                .await?;
            match self.swap_in(&metadata, known).await? {
                Committed::Yes(before, after) => {
                    let retention = self.repository.retain(&self.store, &before, &after).await;
                    return Ok(End::Put(Box::new(Put {
                        snapshot: dir,
                        files: metadata.files.len() as u64,
                        bytes: metadata.bytes(),
                        files_uploaded: self.files_uploaded,
                        bytes_uploaded: self.bytes_uploaded,
                        retention,
                    })));
                }
                Committed::Fenced => return Ok(End::Fenced),
                Committed::Gone(keys) => {
                    let root = self.repository.read_root(&self.store).await?;
                    match self.repair(root, &keys).await? {
                        Some(next) => known = next,
                        None => return Ok(End::Fenced),
                    }
                }
            }
        }
        Err(Error::Contended {
            root: self.store.shown(ROOT),
            attempts: u32::try_from(REPAIRS).unwrap_or(u32::MAX),
        })
    }

    fn describe(&self) -> Result<SnapshotMetadata, Error> {
        let cluster = self.repository.cluster()?;
        let checkpoint = self.checkpoint;
        let keys = |name: &String| self.placed.get(name).map(|p| p.key.clone());
        let incremental = self.repository.options.kind == Kind::Incremental;
        let files: Vec<FileMetadata> = checkpoint
            .files
            .iter()
            .map(|file| FileMetadata {
                directory: String::new(),
                ..file.clone()
            })
            .collect();
        Ok(SnapshotMetadata {
            version: SnapshotMetadata::current_version(),
            cluster_name: cluster.name.clone(),
            cluster_fingerprint: cluster.fingerprint,
            partition_id: self.repository.partition,
            node_name: cluster.node_name.clone(),
            created_at: self.store.env().now(),
            snapshot_id: self.id().clone(),
            key_range: checkpoint.key_range,
            log_id: checkpoint.log_id,
            min_applied_lsn: checkpoint.lsn,
            db_comparator_name: checkpoint.db_comparator_name.clone(),
            file_keys: incremental.then(|| {
                files
                    .iter()
                    .filter_map(|f| Some((f.name.clone(), keys(&f.name)?)))
                    .collect::<BTreeMap<_, _>>()
            }),
            checksums: Some(
                self.placed
                    .iter()
                    .map(|(name, placed)| (name.clone(), placed.digest))
                    .collect(),
            ),
            files,
            lineage: checkpoint.lineage,
            term: checkpoint.term,
            membership: checkpoint.membership.clone(),
            partitions: checkpoint.partitions,
            extra: checkpoint.extra.clone(),
        })
    }

    /// The swap that commits. It decides anew for every root that it meets.
    async fn swap_in(
        &self,
        metadata: &SnapshotMetadata,
        known: CurrentRoot,
    ) -> Result<Committed, Error> {
        let (repository, store) = (self.repository, &self.store);
        let reused: HashSet<String> = self
            .placed
            .values()
            .filter(|p| p.reused)
            .map(|p| p.key.clone())
            .collect();
        let id = self.id();
        let mut current = known;
        for attempt in 1..=SWAP_ATTEMPTS {
            if current.intent(self.generation).is_none() {
                return Ok(Committed::Fenced);
            }
            repository.check_claim(store, &current)?;
            repository.check_fits(&current, self.checkpoint)?;
            let gone = repository
                .not_retained(store, &current, reused.clone())
                .await?;
            if !gone.is_empty() {
                return Ok(Committed::Gone(gone));
            }
            let equals = self.equals(store, &current, metadata).await?;
            let next = self.with_snapshot(&current, metadata, &equals);
            let before = Box::new(current.root().clone());
            current = match repository.try_swap(store, &current, next).await? {
                Swapped::Done(after) => return Ok(Committed::Yes(before, Box::new(after))),
                Swapped::ReadBack(after) if after.retains(id) => {
                    return Ok(Committed::Yes(before, Box::new(after)));
                }
                Swapped::ReadBack(after) => after,
            };
            repository.back_off(store, attempt).await;
        }
        Err(repository.contended(store))
    }

    /// Retained snapshots of the same content, whose place this one takes: it must not push out others.
    /// Those of one position of one history hold the same, whatever their files; where no history is
    /// named, the files decide.
    async fn equals(
        &self,
        store: &Store,
        root: &Root,
        metadata: &SnapshotMetadata,
    ) -> Result<HashSet<SnapshotId>, Error> {
        let mut equals = HashSet::new();
        for retained in &root.retained_snapshots {
            if retained.min_applied_lsn != metadata.min_applied_lsn {
                continue;
            }
            let dir = retained.dir();
            let same = match self.repository.read_description(store, &dir).await {
                Ok(other) if metadata.lineage.is_some() => other.lineage == metadata.lineage,
                Ok(other) => same_files(&other, metadata),
                // What cannot be read holds nothing.
                Err(error) if error.is_damage() => true,
                Err(error) => return Err(error),
            };
            if same {
                equals.insert(retained.snapshot_id.clone());
            }
        }
        Ok(equals)
    }

    /// The root with the snapshot in it, without those of the same content, cut to what is retained, and without the intent.
    fn with_snapshot(
        &self,
        root: &Root,
        metadata: &SnapshotMetadata,
        equals: &HashSet<SnapshotId>,
    ) -> Root {
        let mut next = root.clone();
        next.retained_snapshots
            .retain(|r| !equals.contains(&r.snapshot_id));
        let committed = Retained {
            snapshot_id: metadata.snapshot_id.clone(),
            min_applied_lsn: metadata.min_applied_lsn,
            created_at: metadata.created_at,
            path: metadata.dir().to_string(),
            extra: Map::new(),
        };
        // In front of those of the same LSN: it must not be cut off by its own commit.
        next.retained_snapshots.insert(0, committed);
        next.settle();
        next.retained_snapshots
            .truncate(self.repository.num_retained());
        next.intents.retain(|i| i.generation != self.generation);
        next.node_name.clone_from(&metadata.node_name);
        next
    }

    /// Uploads files that were to be reused and are gone, and takes a new snapshot id for the
    /// description that names them: none is ever written twice. `None` if it was fenced.
    async fn repair(
        &mut self,
        current: CurrentRoot,
        gone: &HashSet<String>,
    ) -> Result<Option<CurrentRoot>, Error> {
        let bits =
            (u128::from(self.store.env().random()) << 64) | u128::from(self.store.env().random());
        let id = SnapshotId::from_bits(bits);
        let current = {
            let generation = self.generation;
            let added = self.repository.swap_with(
                &self.store,
                Some(current),
                |root| {
                    let mut next = root.clone();
                    let now = self.store.env().now();
                    Ok(
                        match next.intents.iter_mut().find(|i| i.generation == generation) {
                            Some(intent) if self.repository.holds(intent) => {
                                intent.snapshot_ids.push(id.clone());
                                intent.renewed_at = now;
                                Change::To(Box::new(next))
                            }
                            _ => Change::Nothing,
                        },
                    )
                },
                |root| root.intends(&id),
            );
            added.await?
        };
        if !current.intends(&id) {
            return Ok(None);
        }
        self.ids.push(id);
        let files: Vec<&FileMetadata> = self
            .checkpoint
            .files
            .iter()
            .filter(|f| {
                self.placed
                    .get(&f.name)
                    .is_some_and(|p| p.reused && gone.contains(&p.key))
            })
            .collect();
        let nothing = HashMap::new();
        let alive = self.place_while_alive(&files, &nothing).await?;
        Ok(alive.then_some(current))
    }

    /// Removes the intent of an upload that failed, so that what it left behind can go. Only
    /// tidiness: a sweep does it a day later.
    async fn withdraw(&self) {
        if within(&**self.store.env(), WITHDRAWAL, self.store.aborted())
            .await
            .is_none()
        {
            tracing::warn!("Unfinished multipart uploads may be left behind");
        }
        let generation = self.generation;
        let store = self.store.operation();
        let removed = self.repository.swap_with(
            &store,
            None,
            |root| {
                Ok(match root.intent(generation) {
                    // A later start of the node goes on with it.
                    Some(intent) if !self.repository.holds(intent) => Change::Nothing,
                    None => Change::Nothing,
                    Some(_) => {
                        let mut next = root.clone();
                        next.intents.retain(|i| i.generation != generation);
                        Change::To(Box::new(next))
                    }
                })
            },
            |root| {
                let left = root.intent(generation);
                left.is_none_or(|intent| !self.repository.holds(intent))
            },
        );
        match within(&**store.env(), WITHDRAWAL, removed).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(%error, "The intent of a failed upload stays for now");
            }
            None => tracing::debug!("The intent of a failed upload stays for now: no answer"),
        }
    }
}

/// Whether two snapshots have the same files.
fn same_files(one: &SnapshotMetadata, other: &SnapshotMetadata) -> bool {
    let files = |metadata: &SnapshotMetadata| -> Option<BTreeMap<String, Digest>> {
        let files = metadata.files.iter();
        files
            .map(|file| Some((file.name.clone(), metadata.checksum_of(file)?)))
            .collect()
    };
    files(one).is_some_and(|one| Some(one) == files(other))
}

enum Committed {
    /// The root that it replaced, and the root that it made.
    Yes(Box<Root>, Box<CurrentRoot>),
    Fenced,
    Gone(HashSet<String>),
}

impl Repository {
    /// Renews an intent for as long as it lives. Returns when it does not.
    async fn renew(&self, store: &Store, generation: Generation, ids: &[SnapshotId]) {
        let mut wait = self.options.renew_every;
        loop {
            store.env().sleep(wait).await;
            let store = store.operation();
            let now = store.env().now();
            let renewed = self.swap_with(
                &store,
                None,
                |root| {
                    let mut next = root.clone();
                    Ok(
                        match next.intents.iter_mut().find(|i| i.generation == generation) {
                            Some(intent) if self.holds(intent) => {
                                intent.renewed_at = now;
                                Change::To(Box::new(next))
                            }
                            _ => Change::Nothing,
                        },
                    )
                },
                |root| root.intent(generation).is_none_or(|i| i.renewed_at == now),
            );
            match renewed.await {
                // The next beginning is refused, and says why.
                Ok(root) if !self.has_claimed(&root) => return,
                Ok(root) if root.intent(generation).is_none() => {
                    tracing::warn!(snapshots = ?ids, "The intent of an upload was removed");
                    return;
                }
                Ok(_) => wait = self.options.renew_every,
                // There is time for more attempts before anybody takes it for dead.
                Err(error) => {
                    tracing::warn!(%error, "The intent of an upload could not be renewed");
                    wait = (self.options.renew_every / 4).max(Duration::from_secs(1));
                }
            }
        }
    }
}
