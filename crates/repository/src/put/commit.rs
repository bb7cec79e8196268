//! The commit of an upload: the description, and the swap that adds the snapshot to the root.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use serde_json::Map;

use super::{End, Put, Upload};
use crate::error::Error;
use crate::ids::{Digest, SnapshotId};
use crate::layout::ROOT;
use crate::metadata::{FileMetadata, Kind, SnapshotMetadata};
use crate::repository::{Change, CurrentRoot, SWAP_ATTEMPTS, Swapped};
use crate::root::{Retained, Root};
use crate::store::Store;

/// How often an upload is repaired while it commits, because files that it reuses were removed. Each time,
/// another snapshot was committed meanwhile.
const MAX_REPAIRS: usize = 16;

enum Committed {
    /// The root that the swap replaced, and the root that it created.
    Yes(Box<Root>, Box<CurrentRoot>),
    Fenced,
    Gone(HashSet<String>),
}

impl Upload<'_> {
    /// Writes the description and adds the snapshot to the root.
    pub(super) async fn commit(&mut self, mut known: CurrentRoot) -> Result<End, Error> {
        for _ in 0..MAX_REPAIRS {
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
                        root: *after,
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
            root: self.store.display_url(ROOT),
            attempts: u32::try_from(MAX_REPAIRS).unwrap_or(u32::MAX),
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
            version: SnapshotMetadata::version_of(&files),
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
            reused_in_a_row: Some(self.reused_in_a_row),
            extra: checkpoint.extra.clone(),
        })
    }

    /// Adds the snapshot to the root by a swap. The decision is made again for every root that is read
    /// back.
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
            // Of those that stay, one makes space for this snapshot.
            let keep = repository.num_retained().saturating_sub(1);
            let newer = repository.newer_beyond(store, &current, keep).await?;
            let next = self.with_snapshot(&current, metadata, &equals, &newer);
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

    /// The retained snapshots with the same content. The new snapshot replaces them, so that it does not
    /// displace others. Snapshots of one LSN of one lineage have the same content, whatever their files
    /// are; without a lineage, the files are compared.
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
                // A snapshot whose description is damaged cannot be restored.
                Err(error) if error.is_damage() => true,
                Err(Error::NewerFormat { .. }) => false,
                Err(error) => return Err(error),
            };
            if same {
                equals.insert(retained.snapshot_id.clone());
            }
        }
        Ok(equals)
    }

    /// The root with the snapshot, without those of the same content, without those beyond the number that
    /// is retained, and without the intent. Those of a `newer` format stay.
    fn with_snapshot(
        &self,
        root: &Root,
        metadata: &SnapshotMetadata,
        equals: &HashSet<SnapshotId>,
        newer: &HashSet<SnapshotId>,
    ) -> Root {
        let mut next = root.clone();
        next.retained_snapshots
            .retain(|r| !equals.contains(&r.snapshot_id));
        let committed = Retained {
            snapshot_id: metadata.snapshot_id.clone(),
            min_applied_lsn: metadata.min_applied_lsn,
            created_at: metadata.created_at,
            path: metadata.dir().to_string(),
            damaged: Vec::new(),
            damaged_further: 0,
            extra: Map::new(),
        };
        // It is inserted before those of the same LSN, because its own commit must not remove it.
        next.retained_snapshots.insert(0, committed);
        next.settle();
        let mut count = 0;
        next.retained_snapshots.retain(|retained| {
            count += 1;
            count <= self.repository.num_retained() || newer.contains(&retained.snapshot_id)
        });
        next.intents.retain(|i| i.generation != self.generation);
        next.node_name.clone_from(&metadata.node_name);
        next
    }

    /// Uploads reused files that were removed, and adds a new snapshot id, because a description is never
    /// written twice. `None` if the upload was fenced.
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
