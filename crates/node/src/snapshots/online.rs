//! Operations on the snapshots of a running node, with the node's name, keys and settings.

use std::sync::Arc;

use esker_repository::files::FilesPage;
use esker_repository::inventory::{Inventory, State};
use esker_repository::prune::{PruneOptions, PrunePlan, Pruned};
use esker_repository::why::{Diff, Why};
use esker_repository::{Progress, Repository, SnapshotMetadata, Verification};

use super::proof::find;
use super::state::{Proof, SweepStatus};
use crate::error::Error;
use crate::node::Node;

/// A snapshot, as the repository describes it.
#[derive(Clone, Debug)]
pub struct DescribedSnapshot {
    /// Its directory: LSN and id.
    pub snapshot: String,
    /// Why it is kept; never empty.
    pub states: Vec<State>,
    /// Its description.
    pub metadata: Arc<SnapshotMetadata>,
}

/// A snapshot, and some of its files.
#[derive(Clone, Debug)]
pub struct SnapshotFiles {
    /// The snapshot.
    pub described: DescribedSnapshot,
    /// The files.
    pub page: FilesPage,
}

/// Each fails with [`Error::PartitionNotFound`], or with [`Error::Repository`].
impl Node {
    /// What the repository keeps of a partition, and the uploads under way.
    pub async fn snapshots(&self, partition: u64) -> Result<Inventory, Error> {
        Ok(self.repository(partition)?.inventory().await?)
    }

    /// One snapshot of a partition, by its name, its id or its LSN; the newest retained one, if none
    /// is named.
    pub async fn describe_snapshot(
        &self,
        partition: u64,
        snapshot: Option<&str>,
    ) -> Result<DescribedSnapshot, Error> {
        let repository = self.repository(partition)?;
        let root = repository.root().await?;
        let dir = find(&repository, &root, snapshot)?;
        Ok(DescribedSnapshot {
            snapshot: dir.to_string(),
            states: root.states(&dir),
            metadata: repository.describe(&dir).await?,
        })
    }

    /// Some files of a snapshot, with the other kept snapshots that share them. The snapshot is named as for
    /// [`Node::describe_snapshot`].
    pub async fn snapshot_files(
        &self,
        partition: u64,
        snapshot: Option<&str>,
        skip: usize,
        limit: usize,
    ) -> Result<SnapshotFiles, Error> {
        let repository = self.repository(partition)?;
        let root = repository.root().await?;
        let dir = find(&repository, &root, snapshot)?;
        let metadata = repository.describe(&dir).await?;
        Ok(SnapshotFiles {
            page: repository.files(&root, &metadata, skip, limit).await?,
            described: DescribedSnapshot {
                snapshot: dir.to_string(),
                states: root.states(&dir),
                metadata,
            },
        })
    }

    /// What the last complete sweep of a partition's repository has found; `None` if there was none since the
    /// start, or another node sweeps it.
    pub fn last_sweep(&self, partition: u64) -> Result<Option<SweepStatus>, Error> {
        let known = self.inner.snapshots.known.get(partition as usize);
        let known = known.ok_or_else(|| self.no_partition(partition))?;
        Ok(known.lock().last_sweep.clone())
    }

    /// How two snapshots of a partition differ, by files.
    pub async fn diff_snapshots(
        &self,
        partition: u64,
        old: &str,
        new: &str,
    ) -> Result<Diff, Error> {
        let repository = self.repository(partition)?;
        let root = repository.root().await?;
        let (old, new) = (repository.find(&root, old)?, repository.find(&root, new)?);
        Ok(repository.diff(&old, &new).await?)
    }

    /// Whether the repository has all objects that the kept snapshots of a partition need; with `data`,
    /// every byte is read and hashed. The answer names what is damaged, and the next snapshot shares no file
    /// with existing ones. With `repair`, damage is repaired as the scrub does it, and
    /// [`Verification::repair`] is what was done.
    pub async fn verify_snapshots(
        &self,
        partition: u64,
        data: bool,
        repair: bool,
    ) -> Result<Verification, Error> {
        let repository = self.repository(partition)?;
        let mut report = repository.verify(data, &Progress::new()).await?;
        if repair && !report.sound.is_empty() {
            repository.mark(&[], &report.sound).await?;
            self.inner.look_again(partition);
        }
        if repair && !report.damaged.is_empty() {
            let bad = report.bad_objects();
            report.repair = Some(self.inner.repair_snapshots(partition, &bad).await?);
        }
        if !report.damaged.is_empty() && !report.is_repaired() {
            let known = &self.inner.snapshots.known[partition as usize];
            known.lock().force_full = true;
        }
        Ok(report)
    }

    /// Restores a snapshot of a partition (by its name, its id or its LSN; the newest retained one, if none
    /// is named) into a scratch directory, replays the log after it, and compares it with the live
    /// partition. The result is remembered for the status.
    ///
    /// # Errors
    ///
    /// [`Error::PartitionNotFound`]; [`Error::Storage`] if the snapshot is damaged or differs, so that it
    /// must not be relied on; [`Error::EarlierLineage`]; [`Error::Repository`] if there is none, or it
    /// cannot be read; [`Error::TryLater`] if it cannot be tested now, for example for lack of space.
    pub async fn prove_snapshot(
        &self,
        partition: u64,
        snapshot: Option<&str>,
    ) -> Result<Proof, Error> {
        if partition > u64::from(self.inner.options.partitions) {
            return Err(self.no_partition(partition));
        }
        self.inner.prove_and_note(partition, snapshot).await
    }

    /// Why an object of a partition's repository is kept or deleted. The key is relative to the partition,
    /// or a whole URL.
    pub async fn why(&self, partition: u64, key: &str) -> Result<Why, Error> {
        Ok(self.repository(partition)?.why(key).await?)
    }

    /// What a prune of a partition would delete now.
    pub async fn plan_prune(
        &self,
        partition: u64,
        options: &PruneOptions,
    ) -> Result<PrunePlan, Error> {
        Ok(self.repository(partition)?.plan_prune(options).await?)
    }

    /// Deletes what a plan names, unless the repository's root has moved since.
    pub async fn prune(&self, partition: u64, plan: &PrunePlan) -> Result<Pruned, Error> {
        let pruned = self.repository(partition)?.prune(plan).await;
        // Fewer snapshots may be retained now.
        self.inner.look_again(partition);
        Ok(pruned?)
    }

    fn repository(&self, partition: u64) -> Result<Repository, Error> {
        let snapshots = &self.inner.snapshots;
        if partition >= snapshots.known.len() as u64 {
            return Err(self.no_partition(partition));
        }
        let archive = &snapshots.archive;
        Ok(archive.repository_to_look_at(&snapshots.identity, partition))
    }
}
