//! Large descriptions of snapshots, kept between the requests of those who look at a repository.
//!
//! A [`Repository`](crate::Repository) is opened anew for each page and each request of the admin API, because each
//! reads the root anew, and it forgets with the request what it has read. The description of a snapshot with 50,000
//! files has some 25 MB: to fetch and to parse it takes more than all the rest of a page. Repositories that share a
//! cache ([`Repository::with_descriptions`](crate::Repository::with_descriptions)) fetch it once.
//!
//! # Why what is in it is never stale
//!
//! A description is found by partition and directory, and the directory's name means one description for all time.
//! No key is ever used twice: the snapshot id in it belongs to one intent, an intent has a generation of its own,
//! and generations are never registered again. Under its key a description is written before its commit, and never
//! again afterwards: a commit that has to repair what it reuses takes another snapshot id, and so does each
//! snapshot that [`repair`](crate::repair) replaces. So no other description can follow under the same name.
//!
//! What ends is its existence. A snapshot that is pruned, or cut off by retention, leaves the root by a swap, and
//! then its description is deleted. Nothing tells this cache, and nothing has to: before a cached description is
//! used, the store is asked for the object's size, time and ETag (a HEAD, which has no body), and one of which
//! anything differs from what was read is fetched again. Then a deleted description is missing, a damaged one
//! is damaged, and while the store does not answer, neither is known: the same three answers as without a cache.
//! That covers also what the protocol does not: an object that somebody has deleted or replaced by hand. Damage
//! that leaves size, time and ETag as they were is found by those who read the object itself: the scrub, and
//! `verify`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ids::{Digest, PartitionId};
use crate::layout::SnapshotDir;
use crate::metadata::{FileMetadata, SnapshotMetadata};
use crate::store::ObjectVersion;

/// Descriptions of fewer bytes are not kept: those of up to some 2,000 files, which are fetched and parsed in less
/// than 10 ms. So a description that is damaged or deleted by hand is noticed at once, as ever.
pub(crate) const MIN_OBJECT_BYTES: u64 = 1 << 20;

/// Most memory of all descriptions in a cache, by estimate: two with 50,000 files each, at some 600 bytes a file.
/// One is enough for whoever turns the pages of its files. A larger one is fetched for each request.
const MAX_BYTES: usize = 64 << 20;

/// What an allocation and an entry of a map take beside their content, by estimate.
const OVERHEAD: usize = 16;

/// Descriptions that were read. Cheap to clone; clones share them.
#[derive(Clone, Debug)]
pub struct DescriptionCache {
    known: Arc<Mutex<Known>>,
    /// Held by whoever parses: a description and what it is parsed by way of take several times its memory in the end.
    parsing: Arc<Semaphore>,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Known {
    entries: HashMap<(PartitionId, SnapshotDir), Entry>,
    /// Bytes of all entries.
    bytes: usize,
    /// Counts uses, to find the entry that was not used for longest.
    uses: u64,
    /// The number of uses at the last [`DescriptionCache::forget_unused`].
    forgotten_at: u64,
}

#[derive(Debug)]
struct Entry {
    metadata: Arc<SnapshotMetadata>,
    /// The object that it was read from.
    version: ObjectVersion,
    bytes: usize,
    used: u64,
}

impl Default for DescriptionCache {
    fn default() -> DescriptionCache {
        DescriptionCache::of(MAX_BYTES)
    }
}

impl DescriptionCache {
    fn of(max_bytes: usize) -> DescriptionCache {
        DescriptionCache {
            known: Arc::default(),
            parsing: Arc::new(Semaphore::new(1)),
            max_bytes,
        }
    }

    /// Removes what was not used since the previous call. Called at intervals, it gives the memory back when nobody
    /// looks any more.
    pub fn forget_unused(&self) {
        let mut known = self.lock();
        let since = known.forgotten_at;
        known.entries.retain(|_, entry| entry.used > since);
        known.bytes = known.entries.values().map(|entry| entry.bytes).sum();
        known.forgotten_at = known.uses;
    }

    /// Waits until nobody else parses a large description, which takes a part of a second.
    pub(crate) async fn turn_to_parse(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        self.parsing.clone().acquire_owned().await.ok()
    }

    /// A description, and the object that it was read from.
    pub(crate) fn get(
        &self,
        partition: PartitionId,
        dir: &SnapshotDir,
    ) -> Option<(Arc<SnapshotMetadata>, ObjectVersion)> {
        let mut known = self.lock();
        known.uses += 1;
        let uses = known.uses;
        let entry = known.entries.get_mut(&(partition, dir.clone()))?;
        entry.used = uses;
        Some((entry.metadata.clone(), entry.version.clone()))
    }

    /// Keeps a description if it fits without the others, and removes those that were not used for
    /// longest until there is.
    pub(crate) fn insert(
        &self,
        partition: PartitionId,
        metadata: &Arc<SnapshotMetadata>,
        version: ObjectVersion,
    ) {
        let key = (partition, metadata.dir());
        let bytes = memory_of(metadata);
        let mut known = self.lock();
        known.remove(&key);
        if bytes > self.max_bytes {
            return;
        }
        while known.bytes + bytes > self.max_bytes {
            let oldest = known.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                break;
            };
            known.remove(&oldest);
        }
        known.uses += 1;
        let entry = Entry {
            metadata: metadata.clone(),
            version,
            bytes,
            used: known.uses,
        };
        known.bytes += bytes;
        known.entries.insert(key, entry);
    }

    /// Removes a description whose object is another one by now, or gone.
    pub(crate) fn remove(&self, partition: PartitionId, dir: &SnapshotDir) {
        self.lock().remove(&(partition, dir.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing that is done under the lock leaves it half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn remove(&mut self, key: &(PartitionId, SnapshotDir)) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.bytes;
        }
    }
}

/// The memory of a description, by estimate: its files, and the two maps from their names.
fn memory_of(metadata: &SnapshotMetadata) -> usize {
    let text = |text: &String| text.capacity() + OVERHEAD;
    let optional = |field: &Option<String>| field.as_ref().map_or(0, text);
    let files = metadata.files.iter().map(|file| {
        // Fields of other programs are small, and rare.
        let more: usize = file.extra.keys().map(|name| text(name) + 64).sum();
        size_of::<FileMetadata>()
            + text(&file.column_family_name)
            + text(&file.name)
            + text(&file.directory)
            + optional(&file.start_key)
            + optional(&file.end_key)
            + more
    });
    let keys = metadata.file_keys.iter().flatten();
    let keys = keys.map(|(name, key)| text(name) + text(key) + 2 * size_of::<String>() + OVERHEAD);
    let checksums = metadata.checksums.iter().flatten();
    let checksums = checksums
        .map(|(name, _)| text(name) + size_of::<String>() + size_of::<Digest>() + OVERHEAD);
    size_of::<SnapshotMetadata>() + files.chain(keys).chain(checksums).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A description of so many files.
    fn description(lsn: u64, files: usize) -> Arc<SnapshotMetadata> {
        let names = (0..files).map(|number| format!("/{number:06}.sst"));
        let files: Vec<_> = names
            .map(|name| json!({"name": name, "size": 1, "start_key": "00".repeat(20)}))
            .collect();
        let metadata = json!({
            "version": "V1", "cluster_name": "c", "partition_id": 1, "node_name": "n",
            "created_at": "2026-11-01T00:00:00Z", "snapshot_id": "snap_15IOGI1ByLSMcMxrxrFEcLR",
            "key_range": {"start": 0, "end": 1}, "min_applied_lsn": lsn,
            "db_comparator_name": "", "files": files,
        });
        Arc::new(serde_json::from_value(metadata).unwrap())
    }

    const PARTITION: PartitionId = PartitionId(1);

    fn put(cache: &DescriptionCache, metadata: &Arc<SnapshotMetadata>) {
        cache.insert(PARTITION, metadata, ObjectVersion::default());
    }

    fn has(cache: &DescriptionCache, metadata: &SnapshotMetadata) -> bool {
        cache.get(PARTITION, &metadata.dir()).is_some()
    }

    #[test]
    fn what_was_not_used_for_longest_gives_way_and_one_that_is_too_large_is_not_kept() {
        let [a, b, c] = [1, 2, 3].map(|lsn| description(lsn, 100));
        let cache = DescriptionCache::of(2 * memory_of(&a));
        put(&cache, &a);
        put(&cache, &b);
        assert!(has(&cache, &a), "and it is used now");
        put(&cache, &c);
        let kept = [&a, &b, &c].map(|metadata| has(&cache, metadata));
        assert_eq!(kept, [true, false, true]);
        // Again and again the same one takes its own place.
        put(&cache, &c);
        assert!(has(&cache, &a));
        put(&cache, &description(4, 1000));
        let kept = [&a, &b, &c].map(|metadata| has(&cache, metadata));
        assert_eq!(
            kept,
            [true, false, true],
            "nothing gives way to one that would not fit"
        );
        let known = cache.lock();
        let bytes: usize = known.entries.values().map(|entry| entry.bytes).sum();
        assert_eq!(known.bytes, bytes);
        assert!(bytes <= cache.max_bytes);
    }

    #[test]
    fn what_nobody_looks_at_is_forgotten() {
        let [a, b] = [1, 2].map(|lsn| description(lsn, 10));
        let cache = DescriptionCache::default();
        put(&cache, &a);
        put(&cache, &b);
        cache.forget_unused();
        assert!(has(&cache, &b), "it was put since the previous call");
        cache.forget_unused();
        assert_eq!([&a, &b].map(|it| has(&cache, it)), [false, true]);
        cache.forget_unused();
        cache.forget_unused();
        assert!(!has(&cache, &b));
        assert_eq!(cache.lock().bytes, 0);
    }

    #[test]
    fn the_description_of_fifty_thousand_files_fits() {
        let metadata = SnapshotMetadata::clone(&description(1, 50_000));
        let names = || metadata.files.iter().map(|file| file.name.clone());
        let key = format!("ssts/{}.sst", "0".repeat(48));
        let of_esker = SnapshotMetadata {
            file_keys: Some(names().map(|name| (name, key.clone())).collect()),
            checksums: Some(names().map(|name| (name, Digest(7))).collect()),
            ..metadata.clone()
        };
        let bytes = memory_of(&of_esker);
        assert!(
            (300..=MAX_BYTES / 50_000).contains(&(bytes / 50_000)),
            "{bytes} bytes"
        );
    }
}
