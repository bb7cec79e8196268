//! The repository as a node sees it: its destination, its owner, and the conversion between checkpoints and
//! snapshots.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use esker_partition::checkpoint::{CheckpointFile, CheckpointMeta, ColumnFamily, format_of};
use esker_partition::{Checkpoint, Lineage, LogTail, Members};
use esker_repository::destination::Destination;
use esker_repository::env::System;
use esker_repository::metadata::FileMetadata;
use esker_repository::{
    Cluster, DescriptionCache, Digest, IncarnationId, LineageId, Lsn, Options, PartitionId,
    RateLimiter, Repository, Root, SnapshotMetadata, Source, ownership,
};
use serde::Deserialize as _;
use serde_json::Value;

use super::SnapshotOptions;
use super::destination_file::DestinationFile;
use super::incarnations::Incarnations;
use super::options::SnapshotKind;
use crate::data_dir::Identity;
use crate::error::StartError;
use crate::starts::Start;

/// Name of the cluster's id in a snapshot's description; a new node takes its identity from it.
const CLUSTER_ID: &str = "cluster_id";
/// Name of the checksums of the entries that led to a snapshot, in its description. Optional: snapshots that
/// an earlier build has put have none.
const LOG_TAIL: &str = "log_tail";

/// Where a node's partition snapshots are. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Archive {
    destination: Destination,
    options: Arc<SnapshotOptions>,
    /// The limiter of the upload rate, shared by all partitions.
    rate_limiter: Option<RateLimiter>,
    /// The limiter of the rate at which the scrub reads.
    scrub_limiter: Option<RateLimiter>,
    /// The incarnations of this start and of earlier ones.
    incarnations: Arc<Incarnations>,
    /// Large descriptions that those who look at the repository have read.
    descriptions: DescriptionCache,
    /// The remembered destination; `None` if it is in the data directory itself, where nothing is mounted.
    remembered: Option<Arc<DestinationFile>>,
    /// Whether no destination is configured: the repository is then on the same disk as the data, and lost
    /// with it.
    pub is_default: bool,
}

impl Archive {
    /// Finds the destination. Makes no request to a store.
    pub fn open(options: &SnapshotOptions, data_dir: &Path) -> Result<Archive, StartError> {
        let default = data_dir.join("repository");
        let url = match &options.destination {
            Some(url) => {
                outside(url, data_dir)?;
                url.clone()
            }
            None => default.to_string_lossy().into_owned(),
        };
        // A hard link of a database file is damaged with it: only a copy can replace the file.
        let mut destination_options = options.destination_options.clone();
        destination_options.hard_links = false;
        let destination = Destination::open(&url, &destination_options)
            .map_err(|e| StartError::Destination(e.to_string()))?;
        let is_default = options.destination.is_none();
        let remembered = match is_default {
            true => None,
            false => Some(Arc::new(DestinationFile::open(data_dir, &destination)?)),
        };
        Ok(Archive {
            incarnations: Arc::new(Incarnations::draw(data_dir)?),
            remembered,
            destination,
            descriptions: DescriptionCache::default(),
            options: Arc::new(options.clone()),
            rate_limiter: options.upload_rate.map(RateLimiter::new),
            scrub_limiter: options.scrub_rate.map(RateLimiter::new),
            is_default,
        })
    }

    /// Its URL, for display.
    pub fn shown(&self) -> &str {
        self.destination.display_url()
    }

    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    pub fn options(&self) -> &SnapshotOptions {
        &self.options
    }

    /// Checks that the destination belongs to this cluster and is the one that it was before, or is unowned.
    /// Writes nothing.
    pub async fn check_owner(&self, identity: &Identity) -> Result<(), esker_repository::Error> {
        ownership::check(&self.destination, &cluster(identity)).await
    }

    /// This start, as other nodes see it.
    pub fn start(&self) -> Start {
        self.incarnations.start()
    }

    /// Takes over from the incarnations of the other nodes of the cluster.
    pub fn take_over_from(&self, others: impl Iterator<Item = u128>) {
        self.incarnations.take_over_from(others.map(IncarnationId));
    }

    /// Writes down the incarnation of this start. To be called before a root is claimed, and before another node sees it.
    pub fn begin_to_write(&self) -> Result<(), StartError> {
        self.incarnations.begin()
    }

    /// Remembers the writer that a root names. The caller has checked that this node may write to the root.
    pub fn note_root(&self, partition: u64, root: &Root) {
        if let Some(writer) = &root.writer {
            self.incarnations.note_claim(partition, writer.incarnation);
        }
    }

    /// Remembers the destination, after something was put there.
    pub fn note_put(&self) {
        if let Some(remembered) = &self.remembered {
            remembered.note(&self.destination);
        }
    }

    /// Sets the upload rate, if it is limited.
    pub fn set_upload_rate(&self, rate: NonZeroU64) {
        if let Some(limiter) = &self.rate_limiter {
            limiter.set_rate(&System, rate);
            self.destination.set_send_rate(Some(rate));
            // A stop may have lifted it in between.
            if limiter.is_lifted() {
                self.destination.set_send_rate(None);
            }
        }
    }

    /// Bytes that the limiter of the upload rate has admitted since the start.
    pub fn admitted_bytes(&self) -> u64 {
        let limiter = self.rate_limiter.as_ref();
        limiter.map_or(0, RateLimiter::admitted_bytes)
    }

    /// Lifts the limit of the upload rate, once there are no more appends that it could slow down.
    pub fn lift_pace(&self) {
        if let Some(limiter) = &self.rate_limiter {
            limiter.lift();
            self.destination.set_send_rate(None);
        }
    }

    /// The limiter of the rate at which the scrub reads.
    pub fn scrub_limiter(&self) -> Option<&RateLimiter> {
        self.scrub_limiter.as_ref()
    }

    /// A partition's repository, for the node with this identity.
    pub fn repository(&self, identity: &Identity, partition: u64) -> Repository {
        let cluster = cluster(identity);
        self.with(Some(cluster), partition, self.options.kind)
    }

    /// The same, for one request of those who look at it: large descriptions stay in memory for the next one.
    pub fn repository_to_look_at(&self, identity: &Identity, partition: u64) -> Repository {
        let repository = self.repository(identity, partition);
        repository.with_descriptions(&self.descriptions)
    }

    /// Gives back the memory of descriptions that nobody has looked at since the previous call.
    pub fn forget_unused_descriptions(&self) {
        self.descriptions.forget_unused();
    }

    /// The same, for a snapshot that shares no file with others.
    pub fn without_reuse(&self, identity: &Identity, partition: u64) -> Repository {
        let cluster = cluster(identity);
        self.with(Some(cluster), partition, SnapshotKind::Full)
    }

    /// A partition's repository, for reading; its owner is not checked.
    pub fn reader(&self, partition: u64) -> Repository {
        self.with(None, partition, self.options.kind)
    }

    fn with(&self, cluster: Option<Cluster>, partition: u64, kind: SnapshotKind) -> Repository {
        let options = Options {
            incarnation: cluster.is_some().then(|| self.incarnations.of(partition)),
            cluster,
            kind,
            num_retained: self.options.num_retained,
            full_every: self.options.full_every,
            // Only this node uses a directory within the data directory, and orphans in it take space on the
            // same disk.
            orphan_min_age: match self.is_default {
                true => std::time::Duration::ZERO,
                false => self.options.orphan_min_age,
            },
            rate_limiter: self.rate_limiter.clone(),
            read_limiter: self.scrub_limiter.clone(),
            ..Options::default()
        };
        Repository::new(&self.destination, partition_id(partition), options)
    }
}

/// Refuses a destination among the files of the data directory, which are moved and removed.
fn outside(url: &str, data_dir: &Path) -> Result<(), StartError> {
    let path = match url.split_once("://") {
        None => url,
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("file") => {
            rest.strip_prefix("localhost").unwrap_or(rest)
        }
        Some(_) => return Ok(()),
    };
    let (wanted, data_dir) = (resolved(Path::new(path)), resolved(data_dir));
    let Ok(below) = wanted.strip_prefix(&data_dir) else {
        return Ok(());
    };
    let first = below.components().next().map(|first| first.as_os_str());
    if first.is_some_and(|first| first == "repository") {
        return Ok(());
    }
    Err(StartError::Destination(format!(
        "snapshots.destination: {} is within the data directory {}, among the server's own files: \
         choose a directory outside of it, on another disk; or leave the key out, and snapshots are \
         kept in {}",
        wanted.display(),
        data_dir.display(),
        data_dir.join("repository").display()
    )))
}

/// A path with its links resolved, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut rest = Vec::new();
    for ancestor in absolute.ancestors() {
        if let Ok(found) = ancestor.canonicalize() {
            return rest.iter().rev().fold(found, |path, name| path.join(name));
        }
        rest.extend(ancestor.file_name());
    }
    absolute
}

fn cluster(identity: &Identity) -> Cluster {
    Cluster {
        name: identity.cluster_name.clone(),
        fingerprint: Some(identity.fingerprint()),
        node_name: format!("node-{}", identity.node_id),
    }
}

/// The repository's number of a partition. A cluster has at most 1024 partitions, and the catalog.
pub(crate) fn partition_id(partition: u64) -> PartitionId {
    PartitionId(u16::try_from(partition).unwrap_or(u16::MAX))
}

pub(crate) fn lineage_id(lineage: esker_partition::LineageId) -> LineageId {
    LineageId(lineage.0)
}

/// The files of a checkpoint, with the checksums that were computed when it was made.
#[derive(Debug)]
struct CheckpointSource {
    dir: PathBuf,
    digests: HashMap<String, Digest>,
    /// Keeps the checkpoint's files for as long as they are read.
    _held: Arc<dyn std::any::Any + Send + Sync>,
}

impl CheckpointSource {
    fn place(&self, name: &str) -> PathBuf {
        self.dir.join(name.trim_start_matches('/'))
    }
}

#[async_trait]
impl Source for CheckpointSource {
    async fn read_at(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        let path = self.place(name);
        let read = tokio::task::spawn_blocking(move || {
            let file = std::fs::File::open(path)?;
            // What an upload reads pushes nothing else out of the system's cache.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::NoReuse);
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, offset)?;
            Ok(bytes.into())
        });
        read.await
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }

    fn known_digest(&self, name: &str) -> Option<Digest> {
        self.digests.get(name).copied()
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.place(name))
    }
}

/// Converts a checkpoint for the repository. `held` is kept until the snapshot is put.
pub(crate) fn to_put(
    checkpoint: &Checkpoint,
    lineage: &Lineage,
    held: Arc<dyn std::any::Any + Send + Sync>,
) -> Result<esker_repository::Checkpoint, String> {
    let meta = &checkpoint.meta;
    let mut digests = HashMap::with_capacity(meta.files.len());
    let mut files = Vec::with_capacity(meta.files.len());
    for file in &meta.files {
        let digest = file
            .checksum
            .parse()
            .map_err(|e| format!("the checksum of {}: {e}", file.name))?;
        digests.insert(file.name.clone(), digest);
        files.push(FileMetadata {
            column_family_name: file
                .column_family
                .name(esker_partition::PartitionId(meta.partition)),
            name: file.name.clone(),
            size: file.size,
            level: file.level,
            start_key: file.start_key.clone(),
            end_key: file.end_key.clone(),
            smallest_seqno: file.smallest_seqno,
            largest_seqno: file.largest_seqno,
            num_entries: file.num_entries,
            num_deletions: file.num_deletions,
            ..FileMetadata::default()
        });
    }
    let source = Arc::new(CheckpointSource {
        dir: checkpoint.dir.clone(),
        digests,
        _held: held,
    });
    let of = checkpoint.lineage().ok_or("it has no lineage")?;
    let mut put = esker_repository::Checkpoint::new(source, files, Lsn(meta.lsn));
    put.lineage = Some(lineage_id(of));
    put.term = Some(meta.term);
    put.membership = Some(serde_json::to_value(&meta.members).map_err(|e| e.to_string())?);
    put.partitions = Some(lineage.partitions);
    put.db_comparator_name.clone_from(&meta.comparator);
    put.extra.insert(
        CLUSTER_ID.to_owned(),
        Value::from(lineage.cluster_id.clone()),
    );
    if let Some(tail) = &meta.log_tail {
        let tail = serde_json::to_value(tail).map_err(|e| e.to_string())?;
        put.extra.insert(LOG_TAIL.to_owned(), tail);
    }
    Ok(put)
}

/// Converts files that were restored into `dir` for a database.
pub(crate) fn restored(dir: &Path, metadata: &SnapshotMetadata) -> Result<Checkpoint, String> {
    let members = match &metadata.membership {
        Some(listed) => Members::deserialize(listed)
            .map_err(|e| format!("its description has a malformed membership: {e}"))?,
        None => Members::default(),
    };
    let lineage = metadata
        .lineage
        .ok_or("its description names no lineage: it was not made by Esker")?;
    let file = |file: &FileMetadata| CheckpointFile {
        name: file.name.clone(),
        column_family: ColumnFamily::of_name(&file.column_family_name),
        size: file.size,
        level: file.level,
        start_key: file.start_key.clone(),
        end_key: file.end_key.clone(),
        smallest_seqno: file.smallest_seqno,
        largest_seqno: file.largest_seqno,
        num_entries: file.num_entries,
        num_deletions: file.num_deletions,
        checksum: metadata
            .checksum_of(file)
            .map(|digest| digest.to_string())
            .unwrap_or_default(),
        ..CheckpointFile::default()
    };
    let files: Vec<_> = metadata.files.iter().map(file).collect();
    Ok(Checkpoint {
        dir: dir.to_owned(),
        meta: Arc::new(CheckpointMeta {
            format: format_of(&files),
            partition: u64::from(metadata.partition_id.0),
            lsn: metadata.min_applied_lsn.0,
            term: metadata.term.unwrap_or_default(),
            members,
            lineage: lineage.to_string(),
            log_tail: log_tail(metadata)?,
            comparator: metadata.db_comparator_name.clone(),
            files,
        }),
    })
}

/// Checksums of the entries that led to a snapshot, if it has any.
pub(crate) fn log_tail(metadata: &SnapshotMetadata) -> Result<Option<LogTail>, String> {
    let found = metadata.extra.get(LOG_TAIL).map(LogTail::deserialize);
    let malformed = |e| format!("its description has malformed checksums of the log: {e}");
    found.transpose().map_err(malformed)
}

/// The id of the cluster that a snapshot belongs to, if its description has it.
pub(crate) fn cluster_id(metadata: &SnapshotMetadata) -> Option<&str> {
    metadata.extra.get(CLUSTER_ID).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use esker_partition::log_tail::LogBlock;

    use super::*;

    /// A serialized description, with the given text as the checksums of the log.
    fn described(log_tail: &str) -> SnapshotMetadata {
        let text = format!(
            r#"{{"version": "V1", "cluster_name": "c", "cluster_fingerprint": 5, "partition_id": 1,
            "node_name": "node-1", "created_at": "2026-11-01T00:00:00Z", "snapshot_id": "snap_15IOGI1ByLSMcMxrxrFEcLR",
            "key_range": {{"start": 0, "end": 18446744073709551615}}, "min_applied_lsn": 4200,
            "db_comparator_name": "leveldb.BytewiseComparator", "files": [], "checksums": {{}},
            "lineage": "000000000000000000000000000000ab", "term": 3,
            "membership": {{"voters": [1], "learners": []}}, "partitions": 8, "cluster_id": "c1"{log_tail}}}"#
        );
        let dir = "lsn_00000000000000004200-snap_15IOGI1ByLSMcMxrxrFEcLR";
        let dir = esker_repository::SnapshotDir::parse(dir).unwrap();
        SnapshotMetadata::parse(text.as_bytes(), PartitionId(1), &dir).unwrap()
    }

    #[test]
    fn the_members_of_a_checkpoint_are_in_its_description_and_come_back_with_it() {
        let of = |members: serde_json::Value| {
            let mut metadata = described("");
            metadata.membership = Some(members);
            restored(Path::new("/d"), &metadata).map(|back| back.meta.members.clone())
        };
        // In the middle of a change, and as builds wrote it that knew none.
        let joint = Members {
            voters: vec![7, 8],
            learners: vec![10, 11],
            voters_outgoing: vec![7, 9],
            learners_next: vec![9],
            to_promote: vec![11],
        };
        let checkpoint = Checkpoint {
            dir: "/d".into(),
            meta: Arc::new(CheckpointMeta {
                members: joint.clone(),
                ..CheckpointMeta::clone(&restored(Path::new("/d"), &described("")).unwrap().meta)
            }),
        };
        let lineage = Lineage::first("c1", 8, esker_partition::PartitionId(1));
        let put = to_put(&checkpoint, &lineage, Arc::new(())).unwrap();
        assert_eq!(of(put.membership.unwrap()), Ok(joint));
        let earlier = of(serde_json::json!({"voters": [1], "learners": []})).unwrap();
        assert_eq!(earlier.voters, [1]);
        assert!(earlier.voters_outgoing.is_empty() && earlier.to_promote.is_empty());
        assert!(of(serde_json::json!({"voters": "one"})).is_err());
    }

    #[test]
    fn descriptions_with_and_without_checksums_of_the_log_are_read_and_malformed_ones_are_named() {
        let earlier = restored(Path::new("/d"), &described("")).unwrap();
        assert_eq!(earlier.meta.log_tail, None);
        assert_eq!((earlier.meta.lsn, earlier.meta.term), (4200, 3));
        let now = described(
            r#", "log_tail": {"entry": "00ff00000000000a", "blocks": [
                {"after": 4100, "bytes": 700, "checksum": "0000000000000001"},
                {"after": 4164, "bytes": 9, "checksum": "ffffffffffffffff", "of_a_later_build": 1}]}"#,
        );
        let tail = restored(Path::new("/d"), &now)
            .unwrap()
            .meta
            .log_tail
            .clone();
        let block = |after, bytes, checksum| LogBlock {
            after,
            bytes,
            checksum,
        };
        let wanted = LogTail {
            entry: 0x00ff_0000_0000_000a,
            blocks: vec![block(4100, 700, 1), block(4164, 9, u64::MAX)],
        };
        assert_eq!(tail, Some(wanted));
        let malformed = described(r#", "log_tail": {"entry": 7, "blocks": []}"#);
        let why = restored(Path::new("/d"), &malformed).unwrap_err();
        assert!(why.contains("malformed checksums of the log"), "{why}");
    }
}
