//! Repair: objects that are damaged or missing are uploaded again, and the retained snapshots that need them
//! get new descriptions.
//!
//! No object is ever written again under its key. A repair has these steps:
//!
//! 1. *Mark*: a swap notes the objects in every retained snapshot that has them ([`crate::marks`]). No
//!    commit reuses a marked object, so no further snapshot gets it.
//! 2. *Source*: a local file with the same size and checksum, which is read and hashed; else an object of
//!    another incremental snapshot with the same content, which is read and hashed as well. An object without
//!    a source keeps its mark: the next snapshot uploads what it needs of it, because it reuses no marked
//!    object.
//! 3. *Intent*: a swap registers the repair, with one new snapshot id for each snapshot that it will replace.
//!    Its generation is in the keys of what it uploads.
//! 4. *Upload*: files, then a new description of each of these snapshots in a new directory, at the same LSN.
//! 5. *Commit*: one swap puts each new path in the place of the old one. It requires the intent in the root
//!    that it replaces, and every object that is taken from another snapshot must be retained in it. A
//!    snapshot that this root does not retain any more is not replaced. Pins stay: a pinned snapshot keeps its
//!    old directory and its objects until it is unpinned.
//! 6. *Retention*: what was replaced is deleted, as after a put.
//!
//! A crash before the swap leaves an intent and objects, which the next repair of the same node or the sweep
//! removes. `tests/model/repair_protocol.py` checks these rules, and shows that each is needed.
//!
//! Files of full snapshots are only marked: nothing else needs them, and the next full snapshot has them all.
//! A description that is damaged or missing is only marked as well.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, watch};

use crate::checkpoint::Source;
use crate::error::Error;
use crate::ids::{Digest, Generation, SnapshotId};
use crate::layout::{SnapshotDir, shared_file};
use crate::local_copies::Content;
pub use crate::local_copies::{FilesBySize, LocalCopies, LocalCopy, NoCopies};
pub use crate::marks::{BadObject, SoundObjects};
use crate::metadata::{FileMetadata, Kind, SnapshotMetadata};
use crate::part::PART;
use crate::progress::Progress;
use crate::repository::{Change, CurrentRoot, Repository, SWAP_ATTEMPTS, Swapped};
use crate::root::{Intent, Retained, Root};
use crate::store::Store;
use crate::upload::Uploads;

/// Maximum number of times that a repair is started: again if its intent was removed, or an object that it
/// took from another snapshot is not retained any more.
const MAX_STARTS: u32 = 3;
/// Name of the field of a description that names the snapshot which a repair has replaced by this one.
const REPLACES: &str = "replaces";

/// What [`Repository::repair`] did.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Repair {
    /// Objects that have a sound successor now.
    pub repaired: Vec<RepairedObject>,
    /// Snapshots that have another name now.
    pub replaced: Vec<ReplacedSnapshot>,
    /// Objects for which no copy was found. They are marked, and no snapshot reuses them.
    pub marked: Vec<MarkedObject>,
    /// Bytes that were uploaded, without descriptions and root.
    pub bytes_uploaded: u64,
}

/// An object with a sound successor.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RepairedObject {
    /// The key of the damaged or missing object.
    pub key: String,
    /// The key of its successor.
    pub successor: String,
    /// The local file that was uploaded. Absent if another snapshot had the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploaded_from: Option<String>,
}

/// A snapshot that a repair has replaced by one with the same content.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReplacedSnapshot {
    /// Its directory before.
    pub before: String,
    /// Its directory now.
    pub now: String,
}

/// An object that stays damaged or missing.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MarkedObject {
    /// Its key.
    pub key: String,
    /// The retained snapshots that need it.
    pub hurts: Vec<String>,
    /// Why it was not repaired.
    pub why: String,
}

/// Where the content of an object is taken from.
#[derive(Clone, Debug)]
enum CopyFrom {
    File(LocalCopy),
    Object(String),
}

/// A plan, made for a root that has the marks.
#[derive(Default)]
struct Plan {
    /// The source of each object that is repaired, by its key.
    sources: BTreeMap<String, (Content, CopyFrom)>,
    /// The snapshots that need one of them.
    targets: Vec<(Retained, Arc<SnapshotMetadata>)>,
    marked: Vec<MarkedObject>,
}

enum End {
    Committed(Box<Root>, Box<CurrentRoot>, Vec<ReplacedSnapshot>),
    /// The intent or a source is gone, or other writers won.
    Again,
}

impl Repository {
    /// Marks objects that were found damaged or missing, and repairs those for which there is a sound copy.
    /// Returns what was done, and the root.
    ///
    /// # Errors
    ///
    /// [`Error::OtherWriter`] if another incarnation writes to the root; [`Error::Fenced`] if the intent was
    /// removed at each attempt; errors of reading local files and of the store. The marks stay.
    pub async fn repair(
        &self,
        bad: &[BadObject],
        copies: &dyn LocalCopies,
        progress: &Progress,
    ) -> Result<(Repair, CurrentRoot), Error> {
        for _ in 0..MAX_STARTS {
            let current = self.mark(bad, &SoundObjects::default()).await?;
            let store = self.store.operation();
            let plan = self.plan_repair(&store, &current, bad, copies).await?;
            if plan.targets.is_empty() {
                let report = Repair {
                    marked: plan.marked,
                    ..Repair::default()
                };
                return Ok((report, current));
            }
            if let Some(done) = self.repair_once(&store, plan, progress).await? {
                metrics::counter!("esker_partition_store_snapshots_objects_repaired_total")
                    .increment(done.0.repaired.len() as u64);
                return Ok(done);
            }
        }
        Err(Error::Fenced {
            attempts: MAX_STARTS,
        })
    }

    async fn plan_repair(
        &self,
        store: &Store,
        root: &Root,
        bad: &[BadObject],
        copies: &dyn LocalCopies,
    ) -> Result<Plan, Error> {
        let mut described = Vec::new();
        for retained in &root.retained_snapshots {
            if let Some(metadata) = self.description_if_whole(store, retained).await? {
                described.push((retained, metadata));
            }
        }
        let mut unusable = root.marked();
        unusable.extend(bad.iter().map(|object| object.key.as_str()));
        let mut plan = Plan::default();
        let mut found: HashMap<Content, Option<CopyFrom>> = HashMap::new();
        for object in bad {
            let mut hurts = Vec::new();
            let mut content = None;
            for (retained, metadata) in &described {
                let file = metadata
                    .files
                    .iter()
                    .find(|f| metadata.key_of(f) == object.key);
                let Some(file) = file else { continue };
                hurts.push(retained.path.clone());
                if metadata.kind() == Kind::Incremental {
                    content = metadata.checksum_of(file).map(|digest| (digest, file.size));
                }
            }
            for retained in &root.retained_snapshots {
                if retained.dir().metadata() == object.key {
                    hurts.push(retained.path.clone());
                }
            }
            let why = match content {
                None if hurts.is_empty() => continue,
                None => {
                    "it is a description or a file of a full snapshot, or has no checksum: these are not repaired"
                }
                Some(content) => {
                    let from = match found.get(&content) {
                        Some(from) => from.clone(),
                        None => {
                            let from = self
                                .find_copy(store, content, copies, &described, &unusable)
                                .await?;
                            found.insert(content, from.clone());
                            from
                        }
                    };
                    if let Some(from) = from {
                        plan.sources.insert(object.key.clone(), (content, from));
                        continue;
                    }
                    "no file here and no other object has its checksum"
                }
            };
            plan.marked.push(MarkedObject {
                key: object.key.clone(),
                hurts,
                why: why.to_owned(),
            });
        }
        for (retained, metadata) in described {
            let files = metadata.files.iter();
            let mut keys = files.map(|file| metadata.key_of(file));
            if metadata.kind() == Kind::Incremental
                && keys.any(|key| plan.sources.contains_key(&key))
            {
                plan.targets.push((retained.clone(), metadata));
            }
        }
        Ok(plan)
    }

    /// Finds a copy of an object, and hashes it.
    async fn find_copy(
        &self,
        store: &Store,
        (digest, size): Content,
        copies: &dyn LocalCopies,
        described: &[(&Retained, Arc<SnapshotMetadata>)],
        unusable: &HashSet<&str>,
    ) -> Result<Option<CopyFrom>, Error> {
        let limiter = self.options.read_limiter.as_ref();
        for copy in copies.candidates(digest, size) {
            match copy.has((digest, size), limiter, &**store.env()).await {
                Ok(true) => return Ok(Some(CopyFrom::File(copy))),
                Ok(false) => {
                    tracing::debug!(file = copy.shown(), "A local file has another content");
                }
                // Another copy may be readable.
                Err(error) => {
                    tracing::warn!(file = copy.shown(), %error, "A local file cannot be read");
                }
            }
        }
        let mut tried = HashSet::new();
        for (retained, metadata) in described {
            // A commit takes nothing from a snapshot with damage that is not listed.
            if metadata.kind() != Kind::Incremental || retained.damaged_further > 0 {
                continue;
            }
            for file in &metadata.files {
                let key = metadata.key_of(file);
                if file.size != size
                    || metadata.checksum_of(file) != Some(digest)
                    || unusable.contains(key.as_str())
                    || !tried.insert(key.clone())
                {
                    continue;
                }
                match self.hash_object(store, &key, size, limiter).await {
                    Ok(found) if found == digest => return Ok(Some(CopyFrom::Object(key))),
                    Ok(_) => {}
                    Err(error) if error.is_damage() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(None)
    }

    /// Uploads and commits what was planned. `None`: everything has to begin again.
    async fn repair_once(
        &self,
        store: &Store,
        plan: Plan,
        progress: &Progress,
    ) -> Result<Option<(Repair, CurrentRoot)>, Error> {
        let bits = || (u128::from(store.env().random()) << 64) | u128::from(store.env().random());
        let ids: Vec<SnapshotId> = plan
            .targets
            .iter()
            .map(|_| SnapshotId::from_bits(bits()))
            .collect();
        let current = self.register_repair(store, &ids).await?;
        let intent = current.intents.iter().find(|i| i.snapshot_ids == ids);
        let Some(generation) = intent.map(|intent| intent.generation) else {
            return Ok(None);
        };
        let repaired = async {
            let uploading = std::pin::pin!(self.upload_copies(store, &plan, generation, progress));
            let renewing = std::pin::pin!(self.renew(store, generation, &ids));
            match futures::future::select(uploading, renewing).await {
                futures::future::Either::Left((done, _)) => {
                    let bytes = done?;
                    let next = self
                        .describe_repaired(store, &plan, &ids, generation)
                        .await?;
                    let end = self
                        .commit_repair(store, current, generation, &plan, &next)
                        .await?;
                    Ok((bytes, end))
                }
                futures::future::Either::Right(((), _)) => Ok((0, End::Again)),
            }
        };
        let (bytes_uploaded, before, after, replaced) = match repaired.await {
            Ok((bytes, End::Committed(before, after, replaced))) => {
                (bytes, before, after, replaced)
            }
            Ok((_, End::Again)) => {
                self.withdraw(store, generation).await;
                return Ok(None);
            }
            Err(error) => {
                self.withdraw(store, generation).await;
                return Err(error);
            }
        };
        self.retain(store, &before, &after).await;
        // Nothing needs what was uploaded if none of the snapshots is retained any more.
        let sources = plan.sources.into_iter().filter(|_| !replaced.is_empty());
        let repaired = sources.map(|(key, (content, from))| {
            let uploaded_from = match &from {
                CopyFrom::File(copy) => Some(copy.shown()),
                CopyFrom::Object(_) => None,
            };
            RepairedObject {
                key,
                successor: successor(content, &from, generation),
                uploaded_from,
            }
        });
        let report = Repair {
            repaired: repaired.collect(),
            replaced,
            marked: plan.marked,
            bytes_uploaded,
        };
        Ok(Some((report, *after)))
    }

    /// Registers the intent, and removes that of an earlier repair of this node that was interrupted.
    async fn register_repair(
        &self,
        store: &Store,
        ids: &[SnapshotId],
    ) -> Result<CurrentRoot, Error> {
        let node_name = self.cluster()?.node_name.clone();
        let incarnation = self.options.incarnation.as_ref().map(|ours| ours.id);
        self.swap_with(
            store,
            None,
            |root| {
                self.check_repairer(root)?;
                let mut next = root.clone();
                if let Some(ours) = &self.options.incarnation {
                    let follows = |i: &Intent| i.incarnation.is_some_and(|of| ours.follows(of));
                    next.intents.retain(|i| !(i.repair && follows(i)));
                    self.claim_writer(&mut next)?;
                }
                next.intents.push(Intent {
                    snapshot_ids: ids.to_vec(),
                    generation: self.next_generation(store, root)?,
                    node_name: node_name.clone(),
                    incarnation,
                    repair: true,
                    renewed_at: store.env().now(),
                    extra: Map::new(),
                });
                Ok(Change::To(Box::new(next)))
            },
            |root| ids.iter().all(|id| root.intends(id)),
        )
        .await
    }

    /// Uploads each content once. Returns the bytes.
    async fn upload_copies(
        &self,
        store: &Store,
        plan: &Plan,
        generation: Generation,
        progress: &Progress,
    ) -> Result<u64, Error> {
        let mut files: BTreeMap<String, (FileMetadata, Digest, LocalCopy)> = BTreeMap::new();
        for (content, from) in plan.sources.values() {
            let CopyFrom::File(copy) = from else { continue };
            let key = successor(*content, from, generation);
            let file = FileMetadata {
                name: key.clone(),
                size: content.1,
                ..FileMetadata::default()
            };
            files.insert(key, (file, content.0, copy.clone()));
        }
        let bytes = files.values().map(|(file, ..)| file.size).sum();
        progress.expect(files.len() as u64, bytes);
        let paths = files
            .iter()
            .map(|(key, (.., path))| (key.clone(), path.clone()));
        let source: Arc<dyn Source> = Arc::new(Copies(paths.collect()));
        let memory = Semaphore::new(self.options.buffer.max(usize::try_from(PART).unwrap_or(0)));
        let uploads = Uploads {
            store,
            source: &source,
            memory: &memory,
            buffer: self.options.buffer,
            progress,
            stopped: watch::Sender::new(false),
        };
        let uploads = &uploads;
        let mut under_way = Vec::with_capacity(files.len());
        for (key, (file, digest, _)) in &files {
            under_way.push(async move { uploads.upload(file, key, Some(*digest)).await });
        }
        uploads
            .all(under_way, self.options.parallel_files.max(1))
            .await?;
        Ok(bytes)
    }

    /// Writes the new descriptions, and returns the new entries of the root, by the path that each replaces.
    async fn describe_repaired(
        &self,
        store: &Store,
        plan: &Plan,
        ids: &[SnapshotId],
        generation: Generation,
    ) -> Result<HashMap<String, Retained>, Error> {
        let mut next = HashMap::new();
        for ((retained, metadata), id) in plan.targets.iter().zip(ids) {
            let mut described = SnapshotMetadata::clone(metadata);
            described.snapshot_id = id.clone();
            for key in described
                .file_keys
                .iter_mut()
                .flat_map(BTreeMap::values_mut)
            {
                if let Some((content, from)) = plan.sources.get(key) {
                    *key = successor(*content, from, generation);
                }
            }
            let replaces = Value::String(retained.path.clone());
            described.extra.insert(REPLACES.to_owned(), replaces);
            let dir = described.dir();
            store
                .put(&dir.metadata(), Bytes::from(described.to_bytes()?))
                .await?;
            let entry = Retained {
                snapshot_id: id.clone(),
                path: dir.to_string(),
                ..retained.clone()
            };
            next.insert(retained.path.clone(), entry);
        }
        Ok(next)
    }

    /// Replaces the old paths by the new ones in one swap. The decision is made again for every root that is
    /// read back.
    async fn commit_repair(
        &self,
        store: &Store,
        mut current: CurrentRoot,
        generation: Generation,
        plan: &Plan,
        next: &HashMap<String, Retained>,
    ) -> Result<End, Error> {
        let taken: HashSet<String> = plan
            .sources
            .values()
            .filter_map(|(_, from)| match from {
                CopyFrom::Object(key) => Some(key.clone()),
                CopyFrom::File(_) => None,
            })
            .collect();
        for attempt in 1..=SWAP_ATTEMPTS {
            self.check_repairer(&current)?;
            if current.intent(generation).is_none() {
                return Ok(End::Again);
            }
            let gone = self.not_retained(store, &current, taken.clone()).await?;
            if !gone.is_empty() {
                return Ok(End::Again);
            }
            let mut root = current.root().clone();
            let mut replaced = Vec::new();
            for retained in &mut root.retained_snapshots {
                let Some(entry) = next.get(&retained.path) else {
                    continue;
                };
                replaced.push(ReplacedSnapshot {
                    before: retained.path.clone(),
                    now: entry.path.clone(),
                });
                let marks = std::mem::take(&mut retained.damaged);
                retained.snapshot_id = entry.snapshot_id.clone();
                retained.path = entry.path.clone();
                // Marks of objects that were not repaired stay.
                let is_left = |key: &String| !plan.sources.contains_key(key);
                retained.damaged = marks.into_iter().filter(|m| is_left(&m.key)).collect();
            }
            root.intents.retain(|i| i.generation != generation);
            let before = Box::new(current.root().clone());
            let is_done = |after: &Root| {
                let now = replaced.iter().map(|snapshot| &snapshot.now);
                !replaced.is_empty()
                    && now.into_iter().all(|path| {
                        let mut retained = after.retained_snapshots.iter();
                        retained.any(|r| r.path == *path)
                    })
            };
            current = match self.try_swap(store, &current, root).await? {
                Swapped::Done(after) => {
                    return Ok(End::Committed(before, Box::new(after), replaced));
                }
                Swapped::ReadBack(after) if is_done(&after) => {
                    return Ok(End::Committed(before, Box::new(after), replaced));
                }
                Swapped::ReadBack(after) => after,
            };
            self.back_off(store, attempt).await;
        }
        Err(self.contended(store))
    }
}

/// The key of an object's successor.
fn successor((digest, _): Content, from: &CopyFrom, generation: Generation) -> String {
    match from {
        CopyFrom::File(_) => shared_file(digest, generation),
        CopyFrom::Object(key) => key.clone(),
    }
}

/// Whether a description names the snapshot that it has replaced; that snapshot.
pub fn replaces(metadata: &SnapshotMetadata) -> Option<SnapshotDir> {
    SnapshotDir::parse(metadata.extra.get(REPLACES)?.as_str()?)
}

/// Local files, by the key that each is uploaded to. They have no path here, so that they are copied and never
/// linked: a link would be damaged with its file.
#[derive(Debug)]
struct Copies(HashMap<String, LocalCopy>);

#[async_trait]
impl Source for Copies {
    async fn read_at(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        let copy = self.0.get(name).ok_or(io::ErrorKind::NotFound)?;
        copy.source.read_at(&copy.name, offset, len).await
    }
}
