//! An object store that is strongly consistent and otherwise as unreliable as a network can make it:
//! requests fail before or after they take effect, take effect long after their callers have given up, or
//! are never answered.
//!
//! It checks every change: nothing that the root keeps may ever be missing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use esker_repository::layout::{Object, SnapshotDir, digest_of_key};
use esker_repository::{Digest, Generation, PartitionId, Root, SnapshotId, SnapshotMetadata};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::clock::{Clock, epoch};

pub const PARTITION: PartitionId = PartitionId(7);
/// Number of keys in a page of a list.
const PAGE: usize = 5;

#[derive(Clone)]
struct Stored {
    bytes: Bytes,
    tag: u64,
    at: Duration,
}

/// The stored objects, and what was seen of them.
#[derive(Default)]
pub struct Contents {
    objects: BTreeMap<String, Stored>,
    tags: u64,
    generations: HashSet<Generation>,
    registered: HashSet<Generation>,
    /// Snapshots that were ever in a root.
    pub committed: HashSet<SnapshotId>,
    /// Their descriptions, in the order in which a root first retained them.
    pub history: Vec<SnapshotMetadata>,
    /// The keys that the current root keeps, with their checksums.
    kept: BTreeMap<String, Option<Digest>>,
    /// The root before the current one.
    last: Option<Root>,
    /// Keys that were damaged or lost, which is no fault of the protocol.
    pub hurt: BTreeSet<String>,
    /// The first violation.
    pub broken: Option<String>,
    /// Number of requests, by kind.
    pub requests: BTreeMap<&'static str, u64>,
    pub deleted: u64,
}

impl Contents {
    fn below(key: &str) -> Option<&str> {
        key.strip_prefix("7/")
    }

    fn put(&mut self, key: &str, bytes: Bytes, mode: &PutMode, at: Duration) -> Result<u64> {
        let there = self.objects.get(key);
        let precondition = |what: &str| Error::Precondition {
            path: key.to_owned(),
            source: what.to_owned().into(),
        };
        match mode {
            PutMode::Overwrite => {}
            PutMode::Create if there.is_some() => {
                return Err(Error::AlreadyExists {
                    path: key.to_owned(),
                    source: "it exists".into(),
                });
            }
            PutMode::Create => {}
            PutMode::Update(version) => {
                let tag = there.map(|s| s.tag.to_string());
                if tag.is_none() || tag != version.e_tag {
                    return Err(precondition("another version"));
                }
            }
        }
        self.tags += 1;
        let tag = self.tags;
        let stored = Stored { bytes, tag, at };
        let was = self.objects.insert(key.to_owned(), stored);
        if Self::below(key) == Some("latest.json") {
            self.check_root();
        } else if let Some(was) = was
            && was.bytes != self.objects[key].bytes
        {
            self.blame(format!("{key} was replaced by something else"));
        }
        Ok(tag)
    }

    fn delete(&mut self, key: &str) {
        self.deleted += 1;
        self.objects.remove(key);
        if let Some(below) = Self::below(key)
            && self.kept.contains_key(below)
        {
            self.blame(format!("{below} was deleted, and the root keeps it"));
        }
    }

    fn blame(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub fn root(&self) -> Option<Root> {
        let stored = self.objects.get("7/latest.json")?;
        Some(Root::parse(&stored.bytes, PARTITION).unwrap())
    }

    fn description(&self, dir: &SnapshotDir) -> Option<SnapshotMetadata> {
        let stored = self.objects.get(&format!("7/{}", dir.metadata()))?;
        Some(SnapshotMetadata::parse(&stored.bytes, PARTITION, dir).unwrap())
    }

    fn check_root(&mut self) {
        let root = self.root().unwrap();
        // A commit or a repair adds a snapshot, and removes no pin: its reader still needs it.
        if let Some(last) = self.last.replace(root.clone()) {
            let mut retained = root.retained_snapshots.iter();
            let adds = retained.any(|r| !last.retains(&r.snapshot_id));
            let mut pins = last.pins.iter();
            if adds && pins.any(|pin| root.pins.iter().all(|left| left.id != pin.id)) {
                self.blame("a swap that added a snapshot removed a pin".to_owned());
            }
        }
        self.kept.clear();
        for intent in &root.intents {
            let known = !self.generations.insert(intent.generation);
            // An intent that is already registered keeps its generation; a new one must have a new
            // generation.
            if known && !self.registered.contains(&intent.generation) {
                self.blame(format!(
                    "generation {} was registered twice",
                    intent.generation
                ));
            }
        }
        self.registered = root.intents.iter().map(|i| i.generation).collect();
        for retained in &root.retained_snapshots {
            if self.committed.insert(retained.snapshot_id.clone()) {
                self.history.extend(self.description(&retained.dir()));
            }
        }
        if let Some(first) = root.retained_snapshots.first()
            && root.newest.as_ref().map(|n| &n.snapshot_id) != Some(&first.snapshot_id)
        {
            self.blame("the newest snapshot is not the first retained one".to_owned());
        }
        for dir in root.kept() {
            let Some(metadata) = self.description(&dir) else {
                self.blame(format!("{dir} is kept and has no description"));
                continue;
            };
            self.kept.insert(dir.metadata(), None);
            for file in &metadata.files {
                self.kept
                    .insert(metadata.key_of(file), metadata.checksum_of(file));
            }
        }
        for (key, digest) in self.kept.clone() {
            if self.hurt.contains(&key) {
                continue;
            }
            match self.objects.get(&format!("7/{key}")) {
                None => self.blame(format!("{key} is kept and missing")),
                Some(stored) if digest.is_some_and(|d| d != Digest::of(&stored.bytes)) => {
                    self.blame(format!("{key} is kept and is something else"));
                }
                Some(_) => {}
            }
        }
    }

    /// Damages or removes one of the shared objects that the root keeps; `dice` decides.
    pub fn hurt_one(&mut self, dice: &mut StdRng) {
        let kept = self.kept.keys().filter(|key| key.starts_with("ssts/"));
        let kept: Vec<String> = kept.cloned().collect();
        if kept.is_empty() {
            return;
        }
        let key = &kept[dice.random_range(0..kept.len())];
        self.hurt.insert(key.clone());
        let path = format!("7/{key}");
        if dice.random_range(0..2) == 0 {
            self.objects.remove(&path);
        } else if let Some(stored) = self.objects.get_mut(&path) {
            let mut bytes = stored.bytes.to_vec();
            bytes[0] ^= 1;
            stored.bytes = bytes.into();
        }
    }

    /// Keys that retained snapshots need and that are damaged or lost. A late request may have written one
    /// again.
    pub fn hurts(&self) -> BTreeSet<String> {
        let is_whole = |key: &String| {
            let stored = self.objects.get(&format!("7/{key}"));
            stored.map(|stored| Digest::of(&stored.bytes)) == digest_of_key(key)
        };
        let root = self.root();
        let retained = root.map_or_else(Vec::new, |root| root.retained_snapshots);
        let described = retained.iter().filter_map(|r| self.description(&r.dir()));
        let keys = described.flat_map(|m| m.files.iter().map(|f| m.key_of(f)).collect::<Vec<_>>());
        keys.filter(|key| !is_whole(key)).collect()
    }

    /// Keys below the partition that the root does not keep.
    pub fn garbage(&self) -> BTreeSet<String> {
        self.objects
            .keys()
            .filter_map(|key| Self::below(key))
            .filter(|key| !self.kept.contains_key(*key))
            .filter(|key| !matches!(Object::of(key), Object::Root | Object::Foreign))
            .map(str::to_owned)
            .collect()
    }
}

/// The rate of faults: one in so many requests is not answered as it should be. 0 means never.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    pub one_in: u32,
}

/// See the module. Clones are the same store.
#[derive(Clone)]
pub struct SimStore {
    pub contents: Arc<Mutex<Contents>>,
    clock: Clock,
    dice: Arc<Mutex<StdRng>>,
    trouble: Arc<Mutex<Trouble>>,
    reading: Reading,
}

/// How one machine reads roots. If an incarnation is set, roots name it as their writer, as if it had
/// claimed them.
#[derive(Clone, Default)]
pub struct Reading(pub Arc<Mutex<Option<String>>>);

impl Reading {
    fn read(&self, root: Bytes) -> Bytes {
        let Some(incarnation) = self.0.lock().unwrap().clone() else {
            return root;
        };
        let mut root: serde_json::Value = serde_json::from_slice(&root).unwrap();
        if let Some(writer) = root.get_mut("writer") {
            writer["incarnation"] = incarnation.into();
        }
        root.to_string().into()
    }
}

impl fmt::Debug for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimStore")
    }
}

impl fmt::Display for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sim")
    }
}

enum Fault {
    None,
    /// The request fails, and has no effect.
    Before,
    /// The request takes effect, and its answer is an error.
    After,
    /// The request takes effect after this time, and is not answered.
    Late(Duration),
    /// The request has no effect and is not answered.
    Never,
}

fn failure() -> Error {
    Error::Generic {
        store: "sim",
        source: "500 internal server error".into(),
    }
}

impl SimStore {
    pub fn new(clock: &Clock, seed: u64, trouble: Trouble) -> SimStore {
        SimStore {
            contents: Arc::default(),
            clock: clock.clone(),
            dice: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))),
            trouble: Arc::new(Mutex::new(trouble)),
            reading: Reading::default(),
        }
    }

    /// The same store, with this machine's way of reading roots.
    pub fn reading(&self, reading: Reading) -> SimStore {
        SimStore {
            reading,
            ..self.clone()
        }
    }

    /// From now on, every request works.
    pub fn calm(&self) {
        self.is_to_fail(0);
    }

    /// From now on, one in so many requests is not answered as it should be.
    pub fn is_to_fail(&self, one_in: u32) {
        self.trouble.lock().unwrap().one_in = one_in;
    }

    fn draw(&self) -> (Duration, Fault) {
        let mut dice = self.dice.lock().unwrap();
        let wait = Duration::from_millis(dice.random_range(0..40));
        let one_in = self.trouble.lock().unwrap().one_in;
        let fault = if one_in == 0 || dice.random_range(0..one_in) != 0 {
            Fault::None
        } else {
            match dice.random_range(0..8) {
                0..3 => Fault::Before,
                3..5 => Fault::After,
                5..7 => Fault::Late(Duration::from_secs(1 << dice.random_range(0..18))),
                _ => Fault::Never,
            }
        };
        (wait, fault)
    }

    /// A request that changes something.
    async fn change<T: Send + 'static>(
        &self,
        kind: &'static str,
        effect: impl FnOnce(&mut Contents, Duration) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (wait, fault) = self.draw();
        self.clock.sleep(wait).await;
        let (contents, clock) = (self.contents.clone(), self.clock.clone());
        let apply = move || {
            let mut contents = contents.lock().unwrap();
            *contents.requests.entry(kind).or_default() += 1;
            effect(&mut contents, clock.now())
        };
        match fault {
            Fault::Before => Err(failure()),
            Fault::Never => std::future::pending().await,
            Fault::After => {
                let _ = apply();
                Err(failure())
            }
            Fault::Late(after) => {
                self.clock.later(after, move || {
                    let _ = apply();
                });
                std::future::pending().await
            }
            Fault::None => {
                let done = apply();
                let (wait, _) = self.draw();
                self.clock.sleep(wait).await;
                done
            }
        }
    }

    /// A request that reads something.
    async fn look<T>(
        &self,
        kind: &'static str,
        look: impl FnOnce(&Contents) -> Result<T>,
    ) -> Result<T> {
        let (wait, fault) = self.draw();
        self.clock.sleep(wait).await;
        match fault {
            Fault::Before | Fault::After => return Err(failure()),
            Fault::Late(_) | Fault::Never => std::future::pending().await,
            Fault::None => {}
        }
        let seen = {
            let mut contents = self.contents.lock().unwrap();
            *contents.requests.entry(kind).or_default() += 1;
            look(&contents)
        };
        let (wait, _) = self.draw();
        self.clock.sleep(wait).await;
        seen
    }

    fn meta(key: &str, stored: &Stored) -> ObjectMeta {
        let at = epoch() + stored.at;
        ObjectMeta {
            location: Path::from(key),
            last_modified: std::time::SystemTime::from(at).into(),
            size: stored.bytes.len() as u64,
            e_tag: Some(stored.tag.to_string()),
            version: None,
        }
    }

    async fn page(&self, prefix: String, after: String) -> Result<Vec<ObjectMeta>> {
        self.look("list", |contents| {
            Ok(contents
                .objects
                .range(after.clone()..)
                .filter(|(key, _)| **key > after && key.starts_with(&prefix))
                .take(PAGE)
                .map(|(key, stored)| Self::meta(key, stored))
                .collect())
        })
        .await
    }
}

#[async_trait]
impl ObjectStore for SimStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let key = location.to_string();
        let bytes = Bytes::from(payload.iter().flat_map(|b| b.to_vec()).collect::<Vec<u8>>());
        let tag = self
            .change("put", move |contents, at| {
                contents.put(&key, bytes, &opts.mode, at)
            })
            .await?;
        Ok(PutResult {
            e_tag: Some(tag.to_string()),
            version: None,
            extensions: Default::default(),
        })
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        unreachable!("files are small here")
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let key = location.to_string();
        let stored = self
            .look("get", |contents| {
                contents
                    .objects
                    .get(&key)
                    .cloned()
                    .ok_or_else(|| Error::NotFound {
                        path: key.clone(),
                        source: "no such key".into(),
                    })
            })
            .await?;
        let stored = match Contents::below(&key) {
            Some("latest.json") => Stored {
                bytes: self.reading.read(stored.bytes),
                ..stored
            },
            _ => stored,
        };
        let size = stored.bytes.len() as u64;
        let (from, to) = match options.range {
            Some(GetRange::Offset(offset)) => (offset, size),
            Some(GetRange::Bounded(range)) => (range.start, range.end.min(size)),
            _ => (0, size),
        };
        let bytes = stored.bytes.slice(from as usize..to as usize);
        let body = match options.head {
            true => stream::empty().boxed(),
            false => stream::once(async move { Ok(bytes) }).boxed(),
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(body),
            meta: Self::meta(&key, &stored),
            range: from..to,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .ready_chunks(3)
            .then(move |chunk| {
                let store = store.clone();
                async move {
                    let paths: Vec<Path> = chunk.into_iter().map(Result::unwrap).collect();
                    let keys: Vec<String> = paths.iter().map(Path::to_string).collect();
                    let done = store
                        .change("delete", move |contents, _| {
                            keys.iter().for_each(|key| contents.delete(key));
                            Ok(())
                        })
                        .await;
                    let answers: Vec<Result<Path>> = paths
                        .into_iter()
                        .map(|path| match &done {
                            Ok(()) => Ok(path),
                            Err(_) => Err(failure()),
                        })
                        .collect();
                    stream::iter(answers)
                }
            })
            .flatten()
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.list_with_offset(prefix, &Path::default())
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.map_or_else(String::new, |p| format!("{p}/"));
        let state = (self.clone(), prefix, Some(offset.to_string()));
        stream::try_unfold(state, |(store, prefix, after)| async move {
            let Some(after) = after else {
                return Ok::<_, Error>(None);
            };
            let page = store.page(prefix.clone(), after).await?;
            let next = match page.len() {
                PAGE => page.last().map(|m| m.location.to_string()),
                _ => None,
            };
            Ok(Some((
                stream::iter(page.into_iter().map(Ok)),
                (store, prefix, next),
            )))
        })
        .try_flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.map(Path::to_string).unwrap_or_default();
        let above = match prefix.as_str() {
            "" => String::new(),
            some => format!("{some}/"),
        };
        let (mut directories, mut after) = (BTreeSet::new(), String::new());
        loop {
            let page = self.page(above.clone(), after).await?;
            let Some(last) = page.last() else { break };
            after = last.location.to_string();
            for meta in &page {
                let below = &meta.location.as_ref()[above.len()..];
                if let Some((directory, _)) = below.split_once('/') {
                    directories.insert(format!("{above}{directory}"));
                }
            }
        }
        Ok(ListResult {
            common_prefixes: directories.into_iter().map(Path::from).collect(),
            objects: Vec::new(),
            extensions: Default::default(),
        })
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        unreachable!("nobody asks")
    }
}
