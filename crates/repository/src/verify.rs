//! Verification: checks that every object that a kept snapshot needs exists, with the bytes that were
//! written.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::error::Error;
use crate::ids::Digest;
use crate::layout::{ROOT, SnapshotDir};
use crate::marks::{BadObject, SoundObjects};
use crate::metadata::SnapshotMetadata;
use crate::progress::Progress;
use crate::repair::Repair;
use crate::repository::Repository;
use crate::root::Root;
use crate::store::{Sink, Store};

/// What [`Repository::verify`] found.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Verification {
    /// Snapshots that were verified: retained, pinned and abandoned.
    pub snapshots: Vec<String>,
    /// Objects that were verified.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether the bytes were read, and not only the sizes compared.
    pub data: bool,
    /// Snapshots without checksums; only the sizes of their files could be compared.
    pub without_checksums: Vec<String>,
    /// Objects that are damaged or missing.
    pub damaged: Vec<DamagedObject>,
    /// Descriptions that a newer release has written: nothing is known of their snapshots here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub newer: Vec<NewerDescription>,
    /// What was repaired of it; absent if no repair was requested or needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<Repair>,
    /// Marked objects that were read and are as they were written: [`Repository::mark`] removes their marks.
    #[serde(skip)]
    pub sound: SoundObjects,
}

impl Verification {
    /// Whether everything was verified, and nothing is damaged or missing.
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty() && self.newer.is_empty()
    }

    /// What a repair takes: the objects that are damaged or missing.
    pub fn bad_objects(&self) -> Vec<BadObject> {
        let damaged = self.damaged.iter().filter(|object| object.key != ROOT);
        damaged
            .map(|object| BadObject {
                key: object.key.clone(),
                why: object.why.clone(),
            })
            .collect()
    }

    /// Whether everything that was damaged or missing was repaired.
    pub fn is_repaired(&self) -> bool {
        let Some(repair) = &self.repair else {
            return false;
        };
        let is_repaired = |key: &String| repair.repaired.iter().any(|one| one.key == *key);
        self.damaged.iter().all(|object| is_repaired(&object.key))
    }
}

/// The description of a snapshot that a newer release has written.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewerDescription {
    /// The snapshot.
    pub snapshot: String,
    /// The version that it has, and those that are known.
    pub why: String,
}

/// An object that is missing, or whose bytes are not those that were written.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DamagedObject {
    /// Its key, below the partition.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
    /// The snapshots that need it.
    pub hurts: Vec<String>,
}

struct Needed {
    size: u64,
    digest: Option<Digest>,
    by: Vec<String>,
}

impl Repository {
    /// Checks that all objects of all kept snapshots exist and have the right size; with `data` it also
    /// reads every byte and compares checksums.
    ///
    /// Damage is in the report. An error means that an object could not be read now.
    pub async fn verify(&self, data: bool, progress: &Progress) -> Result<Verification, Error> {
        let store = self.store.operation();
        let root = self.read_root(&store).await?;
        let mut report = Verification {
            data,
            ..Verification::default()
        };
        let mut damaged: BTreeMap<String, DamagedObject> = BTreeMap::new();
        let mut needed: BTreeMap<String, Needed> = BTreeMap::new();
        if let Some(root) = contradiction(&root) {
            damaged.insert(ROOT.to_owned(), root);
        }
        for dir in root.kept() {
            report.snapshots.push(dir.to_string());
            self.need(&store, &root, &dir, &mut needed, &mut damaged, &mut report)
                .await?;
        }
        // One list instead of a request for each object.
        let mut sizes = HashMap::new();
        let mut listed = store.list();
        while let Some(object) = listed.next().await {
            let object = object?;
            if needed.contains_key(&object.key) {
                sizes.insert(object.key, object.size);
            }
        }
        let mut to_read = Vec::new();
        for (key, need) in &needed {
            report.objects += 1;
            report.bytes += need.size;
            let why = match sizes.get(key) {
                None => "it is missing".to_owned(),
                Some(size) if *size != need.size => {
                    format!("it has {size} bytes instead of {}", need.size)
                }
                Some(_) => {
                    to_read.push((key, need));
                    continue;
                }
            };
            damaged.insert(key.clone(), harm(key, why, need));
        }
        if data {
            progress.expect(
                to_read.len() as u64,
                to_read.iter().map(|(_, need)| need.size).sum(),
            );
            let mut hashing = Vec::with_capacity(to_read.len());
            for (key, need) in to_read {
                hashing.push(hash(&store, key, need, progress));
            }
            let mut reading =
                stream::iter(hashing).buffer_unordered(self.options.parallel_files.max(1));
            while let Some((key, need, read)) = reading.next().await {
                let why = match read {
                    Ok(digest) if need.digest.is_some_and(|expected| expected != digest) => {
                        format!("its bytes are not what was written (checksum {digest})")
                    }
                    Ok(_) => continue,
                    Err(Error::Damaged { why, .. }) => why,
                    Err(Error::Missing { .. }) => "it is missing".to_owned(),
                    Err(error) => return Err(error),
                };
                damaged.insert(key.clone(), harm(key, why, need));
            }
        }
        if data {
            let marked = root.marked();
            let mut retained = root.retained_snapshots.iter();
            let has_further = retained.any(|r| r.damaged_further > 0);
            let is_newer =
                |dir: &SnapshotDir| report.newer.iter().any(|n| n.snapshot == dir.to_string());
            let kept = root.kept().into_iter().filter(|dir| !is_newer(dir));
            let descriptions = kept.map(|dir| dir.metadata());
            let read = needed.keys().cloned().chain(descriptions);
            let mut sound = SoundObjects::before_reading(&root);
            let sound_keys = read
                .filter(|key| has_further || marked.contains(key.as_str()))
                .filter(|key| !damaged.contains_key(key));
            sound_keys.for_each(|key| sound.insert(key));
            report.sound = sound;
        }
        if !damaged.is_empty() {
            // Objects of snapshots that were released meanwhile may be deleted; that is no damage.
            let kept = self.read_root(&store).await?.kept();
            let kept: HashSet<String> = kept.iter().map(ToString::to_string).collect();
            damaged.retain(|_, object| {
                object.hurts.retain(|snapshot| kept.contains(snapshot));
                !object.hurts.is_empty()
            });
        }
        report.damaged = damaged.into_values().collect();
        Ok(report)
    }

    async fn need(
        &self,
        store: &Store,
        root: &Root,
        dir: &SnapshotDir,
        needed: &mut BTreeMap<String, Needed>,
        damaged: &mut BTreeMap<String, DamagedObject>,
        report: &mut Verification,
    ) -> Result<(), Error> {
        let metadata = match self.fetch_description(store, dir).await {
            Ok(metadata) => {
                if let Some(why) = stranger(root, &metadata) {
                    let key = dir.metadata();
                    let object = DamagedObject {
                        key: key.clone(),
                        why,
                        hurts: vec![dir.to_string()],
                    };
                    damaged.insert(key, object);
                }
                metadata
            }
            Err(Error::NewerFormat { why, .. }) => {
                report.newer.push(NewerDescription {
                    snapshot: dir.to_string(),
                    why,
                });
                return Ok(());
            }
            Err(error) if error.is_damage() || matches!(error, Error::OtherCluster { .. }) => {
                let why = match &error {
                    Error::Damaged { why, .. } => why.clone(),
                    Error::Missing { .. } => "it is missing".to_owned(),
                    other => other.to_string(),
                };
                let key = dir.metadata();
                let object = DamagedObject {
                    key: key.clone(),
                    why,
                    hurts: vec![dir.to_string()],
                };
                damaged.insert(key, object);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if !metadata.has_checksums() {
            report.without_checksums.push(dir.to_string());
        }
        for file in &metadata.files {
            let key = metadata.key_of(file);
            let digest = metadata.checksum_of(file);
            let need = needed.entry(key.clone()).or_insert_with(|| Needed {
                size: file.size,
                digest,
                by: Vec::new(),
            });
            if need.by.last() != Some(&dir.to_string()) {
                need.by.push(dir.to_string());
            }
            let contradicts = need.size != file.size
                || matches!((need.digest, digest), (Some(a), Some(b)) if a != b);
            need.digest = need.digest.or(digest);
            if contradicts {
                let why = "two snapshots say different things about it".to_owned();
                damaged.insert(key.clone(), harm(&key, why, need));
            }
        }
        Ok(())
    }
}

/// Reports a root that names two different newest snapshots.
fn contradiction(root: &Root) -> Option<DamagedObject> {
    let (newest, first) = (root.newest.as_ref()?, root.retained_snapshots.first()?);
    if newest.snapshot_id == first.snapshot_id && newest.path == first.path {
        return None;
    }
    Some(DamagedObject {
        key: ROOT.to_owned(),
        why: format!(
            "it names {} as its newest snapshot, and the first one that it retains is {}",
            newest.path.chars().take(100).collect::<String>(),
            first.path
        ),
        hurts: vec![first.path.clone()],
    })
}

/// Reports a description that names another cluster than the root.
fn stranger(root: &Root, metadata: &SnapshotMetadata) -> Option<String> {
    let same_print = match (root.cluster_fingerprint, metadata.cluster_fingerprint) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    let same = root.cluster_name == metadata.cluster_name && same_print;
    (!same).then(|| {
        format!(
            "it is of cluster {:?}, and the root of cluster {:?}",
            metadata.cluster_name, root.cluster_name
        )
    })
}

struct Hashing<'a> {
    hasher: Xxh3,
    progress: &'a Progress,
}

impl Sink for Hashing<'_> {
    async fn take(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.progress.add_bytes(bytes.len() as u64);
        self.hasher.update(&bytes);
        Ok(())
    }
}

async fn hash<'a>(
    store: &Store,
    key: &'a String,
    need: &'a Needed,
    progress: &Progress,
) -> (&'a String, &'a Needed, Result<Digest, Error>) {
    let mut sink = Hashing {
        hasher: Xxh3::new(),
        progress,
    };
    let read = store.read_all(key, need.size, &mut sink).await;
    progress.add_file();
    (key, need, read.map(|()| Digest(sink.hasher.digest128())))
}

fn harm(key: &str, why: String, need: &Needed) -> DamagedObject {
    DamagedObject {
        key: key.to_owned(),
        why,
        hurts: need.by.clone(),
    }
}
