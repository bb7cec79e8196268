//! Puts a checkpoint into the repository.
//!
//! 0. *Owner*: the destination must belong to the cluster, see [`crate::ownership`].
//! 1. *Intent*: a swap registers the upload. The generation that this swap sets belongs to the upload, and
//!    is part of the key of every object that it writes.
//! 2. *Upload*: files that a retained snapshot has are reused, by checksum, size and key range; the others
//!    are written. An object that no retained snapshot refers to is never reused.
//! 3. *Commit*: the description is written, and a swap adds the snapshot to the root. The swap requires
//!    that the root that it replaces still has the intent, and that every reused file belongs to a snapshot
//!    that this root retains. A reused file that was removed meanwhile is uploaded, and the snapshot gets
//!    another id.
//! 4. *Retention*: see [`crate::retention`].
//!
//! An upload whose intent was removed, because it has expired, begins again.
//!
//! An upload that was interrupted leaves its intent. The next put of the same node, which is recognized by
//! its incarnations, continues it instead of registering another one: it adds an id for its own snapshot,
//! lists the objects with the generation, and does not send a file again whose content is there. This is
//! safe: no sweep deletes an object of an intent that is in the root, the list is made after a swap that
//! required the intent, and the commit requires it again. A key contains the checksum of its content, so
//! an object with the same key has the same bytes.

mod commit;
mod intent;
mod placement;

use std::collections::HashMap;

use tokio::sync::Semaphore;

use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::ids::{Generation, SnapshotId};
use crate::layout::{SnapshotDir, is_full_name};
use crate::metadata::{FileMetadata, Kind};
use crate::ownership;
use crate::part::PART;
use crate::progress::Progress;
use crate::repository::{CurrentRoot, Repository};
use crate::retention::Retention;
use crate::store::Store;
use placement::Placed;

/// Maximum number of times that an upload is started; it is started again after its intent has expired.
const MAX_STARTS: u32 = 3;
/// What [`Repository::put`] did.
#[derive(Clone, Debug)]
pub struct Put {
    /// The snapshot.
    pub snapshot: SnapshotDir,
    /// Files of the snapshot.
    pub files: u64,
    /// Bytes of the snapshot.
    pub bytes: u64,
    /// Files that were uploaded.
    pub files_uploaded: u64,
    /// Bytes that were uploaded, without descriptions and root.
    pub bytes_uploaded: u64,
    /// What was deleted because newer snapshots replaced it.
    pub retention: Retention,
    /// The root that the commit created.
    pub root: CurrentRoot,
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
    /// Where each file is, by name.
    placed: HashMap<String, Placed>,
    /// Objects that an interrupted upload has left under the same generation, and their sizes.
    there: HashMap<String, u64>,
    /// See [`SnapshotMetadata::reused_in_a_row`](crate::SnapshotMetadata::reused_in_a_row).
    reused_in_a_row: u32,
    files_uploaded: u64,
    bytes_uploaded: u64,
}

/// How one attempt at an upload ended.
enum End {
    Put(Box<Put>),
    Fenced,
}

impl Repository {
    /// Puts a checkpoint. When this returns, its snapshot is in the root, and every byte is as durable as
    /// the store promises.
    ///
    /// Creates the root if the prefix is empty; a root that is missing beside snapshots is an error.
    /// Dropping the future leaves an intent behind, which a sweep removes a day later; nothing that is in
    /// use is deleted.
    pub async fn put(&self, checkpoint: &Checkpoint, progress: &Progress) -> Result<Put, Error> {
        let result = match self.put_until_done(checkpoint, progress).await {
            // If the whole destination was emptied, the marker is missing too, and the error about it is
            // more precise.
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
        for _ in 0..MAX_STARTS {
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
            attempts: MAX_STARTS,
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
            reused_in_a_row: 0,
            files_uploaded: 0,
            bytes_uploaded: 0,
        };
        let result = upload.run(current).await;
        if result.is_err() {
            upload.withdraw().await;
        }
        result
    }
}

impl Upload<'_> {
    fn id(&self) -> &SnapshotId {
        // `ids` is never empty.
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
}
