//! One snapshot of a partition, from its checkpoint to the sweep after it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use esker_partition::command::{Expire, ForgetBasin, Kind};
use esker_repository::sweep::Sweep;
use esker_repository::{Checkpoint, Progress, Put, Repository};

use super::archive::to_put;
use super::archived_position::keep_log;
use super::failure::Failure;
use super::local::Held;
use super::root::check_history;
use super::schedule::Reason;
use super::state::{CreatedSnapshot, RepositoryState, SweepStatus, Waiting};
use crate::core::Inner;

/// How long a snapshot waits for the entry that gives it a higher LSN than the one before.
const ADVANCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes a snapshot of a partition and puts it into the repository, in this order: checkpoint, catalog,
/// claim, upload, commit (the swap of the root) and retention, and the sweep of what nothing refers to.
/// Notes the outcome, and answers the callers who wait for it.
pub(super) async fn make_snapshot(inner: &Inner, partition: u64, reason: Reason) {
    let job = SnapshotJob::begin(inner, partition, reason);
    let result = async {
        let made = job.make_checkpoint().await?;
        job.put_catalog().await;
        job.claim_roots().await?;
        let put = job.upload_and_commit(&made).await?;
        Ok(job.publish(&made, &put))
    }
    .await;
    let repository = job.finish(&result);
    if result.is_ok() {
        sweep(inner, partition, &repository).await;
    }
}

/// A snapshot that is being made.
struct SnapshotJob<'a> {
    inner: &'a Inner,
    partition: u64,
    reason: Reason,
    repository: Repository,
    /// The callers who asked for it before it began.
    waiting: Vec<Waiting>,
    /// [`RepositoryState::prunes`] when it began.
    prunes: u64,
    /// Whether it shares no file with existing ones.
    shares_nothing: bool,
    begun: Instant,
}

/// A checkpoint, and what was applied before it was made.
struct Made {
    held: Arc<Held>,
    checkpoint: Checkpoint,
    /// The last LSN of each partition that was applied before the checkpoint was made. Any later state of
    /// the catalog has the basin of every stream up to there.
    applied: Vec<u64>,
}

impl<'a> SnapshotJob<'a> {
    fn begin(inner: &'a Inner, partition: u64, reason: Reason) -> SnapshotJob<'a> {
        let snapshots = &inner.snapshots;
        let mut known = snapshots.known[partition as usize].lock();
        let shares_nothing = needs_full(&known, reason);
        let repository = match shares_nothing {
            true => snapshots
                .archive
                .without_reuse(&snapshots.identity, partition),
            false => snapshots.archive.repository(&snapshots.identity, partition),
        };
        SnapshotJob {
            inner,
            partition,
            reason,
            repository,
            waiting: std::mem::take(&mut known.waiting),
            prunes: known.prunes,
            shares_nothing,
            begun: Instant::now(),
        }
    }

    fn known(&self) -> parking_lot::MutexGuard<'a, RepositoryState> {
        self.inner.snapshots.known[self.partition as usize].lock()
    }

    /// Makes a checkpoint on this disk.
    async fn make_checkpoint(&self) -> Result<Made, Failure> {
        let (inner, partition) = (self.inner, self.partition);
        let group = inner.group(partition);
        if inner.replicas.digests.divergence(partition).is_some() {
            return Err(Failure::here("the replica here has diverged"));
        }
        if inner.is_withheld(partition) {
            return Err(Failure::doubtful());
        }
        // A snapshot that covers no more than the newest would replace the newest, and not the oldest.
        let is_asked = self.reason == Reason::Asked && inner.is_log_trimmed(partition);
        if is_asked || matches!(self.reason, Reason::LogFull | Reason::DiskFull) {
            self.advance().await;
        }
        let applied = inner.all_applied();
        let taken = group
            .snapshot()
            .await
            .map_err(|_| Failure::here("the node is stopping"))?
            .map_err(|e| Failure::here(e.to_string()))?;
        let held = inner.snapshots.local.covering(partition, &taken);
        let held = held.ok_or_else(|| Failure::here("the local snapshot cannot be read"))?;
        let lineage = inner.partition_db(partition).lineage();
        let lineage = lineage.map_err(|e| Failure::here(e.to_string()))?;
        let checkpoint = to_put(&held.checkpoint, &lineage, held.clone()).map_err(Failure::here)?;
        Ok(Made {
            held,
            checkpoint,
            applied,
        })
    }

    /// Appends an entry that changes nothing. So the snapshot gets an LSN of its own and counts as another
    /// retained snapshot; the oldest one, for which the log is kept, is then removed.
    async fn advance(&self) {
        let nothing = match self.partition {
            // The basin and the stream of the command do not exist.
            0 => Kind::ForgetBasin(ForgetBasin { basin: 0 }),
            _ => Kind::Expire(Expire::default()),
        };
        let group = self.inner.group(self.partition);
        let done = tokio::time::timeout(ADVANCE_TIMEOUT, group.execute(nothing.into_bytes())).await;
        // A stalled disk gives no answer, and the snapshot may be what frees space on it.
        if !matches!(done, Ok(Ok(_))) {
            let partition = self.partition;
            tracing::debug!(partition, "the snapshot covers no more than the one before");
        }
    }

    /// Puts a snapshot of the catalog, if the repository lacks something of it that this snapshot may need.
    /// Notes its outcome. This snapshot is put in any case: it can be used once the catalog's is there.
    async fn put_catalog(&self) {
        if self.partition == 0 || !self.inner.is_catalog_ahead() {
            return;
        }
        let (looked, waits) = {
            let known = self.inner.snapshots.known[0].lock();
            (known.looked, known.waits())
        };
        if looked && !waits {
            Box::pin(make_snapshot(self.inner, 0, Reason::Needed)).await;
        }
    }

    /// Claims the catalog's root and the partition's own. From then on no other copy of this data directory
    /// commits anything, and what one has committed before is in the claimed root.
    async fn claim_roots(&self) -> Result<(), Failure> {
        self.inner.claim_catalog().await?;
        if self.known().is_claimed {
            return Ok(());
        }
        if let Some(root) = self.inner.claim(self.partition).await? {
            let checked = check_history(self.inner, self.partition, &self.repository, &root).await;
            checked.inspect_err(|_| self.known().looked = false)?;
        }
        self.known().is_claimed = true;
        Ok(())
    }

    /// Uploads the files that the repository lacks, swaps the root, and removes what is no longer retained.
    async fn upload_and_commit(&self, made: &Made) -> Result<Put, Failure> {
        let progress = Progress::new();
        self.known().uploading = Some(progress.clone());
        tracing::debug!(
            partition = self.partition,
            reason = %self.reason,
            lsn = made.held.checkpoint.meta.lsn,
            "putting a snapshot"
        );
        let put = self.repository.put(&made.checkpoint, &progress).await;
        put.map_err(|error| {
            // What the repository has is read again before the next attempt.
            self.known().looked = false;
            Failure::of(&error)
        })
    }

    /// Notes what the repository has now, and keeps the log from the oldest retained snapshot on.
    fn publish(&self, made: &Made, put: &Put) -> CreatedSnapshot {
        let archive = &self.inner.snapshots.archive;
        archive.note_put();
        archive.note_root(self.partition, &put.root);
        let mut known = self.known();
        known.note_root(&put.root);
        // If the root may have been pruned after this job swapped it, it is read again.
        known.looked = known.prunes == self.prunes;
        known.newest_bytes = Some(put.bytes);
        keep_log(self.inner.group(self.partition), &mut known);
        if self.partition == 0 {
            self.inner.note_named(&made.applied);
        }
        CreatedSnapshot {
            partition: self.partition,
            snapshot: put.snapshot.to_string(),
            lsn: put.snapshot.lsn.0,
            archived_lsn: known.oldest().map_or(put.snapshot.lsn.0, |o| o.lsn),
            files: put.files,
            bytes: put.bytes,
            bytes_uploaded: put.bytes_uploaded,
            took: self.begun.elapsed(),
        }
    }

    /// Notes and logs the outcome, and answers the callers who wait for it.
    fn finish(self, result: &Result<CreatedSnapshot, Failure>) -> Repository {
        let mut known = self.known();
        known.uploading = None;
        match result {
            Ok(created) => {
                known.succeeded();
                // Damage may have been found while a snapshot was put that shares files.
                known.force_full &= !self.shares_nothing;
                log_put(self.reason, created);
            }
            Err(why) => {
                known.failed(why.clone());
                let partition = self.partition;
                tracing::warn!(partition, %why, "no snapshot was put into the repository");
            }
        }
        drop(known);
        for waiting in self.waiting {
            // The caller may no longer wait.
            let _ = waiting.send(result.clone().map_err(|why| why.to_string()));
        }
        self.repository
    }
}

/// Whether a snapshot must share no file with existing ones. After damage was found, and where a lineage
/// begins because data was lost, existing files may be damaged, so none is reused.
fn needs_full(known: &RepositoryState, reason: Reason) -> bool {
    known.force_full || (reason == Reason::First && known.newest().is_some())
}

fn log_put(reason: Reason, created: &CreatedSnapshot) {
    let partition = created.partition;
    if reason == Reason::First && created.lsn <= 2 {
        // A new node puts one for each partition; the log need not show them.
        tracing::debug!(partition, "the first snapshot was put into the repository");
        return;
    }
    tracing::info!(
        partition,
        snapshot = created.snapshot,
        %reason,
        files = created.files,
        bytes = created.bytes,
        bytes_uploaded = created.bytes_uploaded,
        took = ?created.took,
        "a snapshot was put into the repository"
    );
}

/// Sweeps a partition's repository if the last sweep was long ago.
pub(super) async fn sweep_if_due(inner: &Inner, partition: u64, repository: &Repository) {
    let is_due = {
        let mut known = inner.snapshots.known[partition as usize].lock();
        known.is_sweep_due(Instant::now())
    };
    if is_due {
        sweep(inner, partition, repository).await;
    }
}

/// Removes objects that nothing in the repository refers to.
async fn sweep(inner: &Inner, partition: u64, repository: &Repository) {
    if !inner.snapshots.archive.options().orphan_cleanup {
        return;
    }
    let result = repository.sweep().await;
    match &result {
        Ok(sweep) => log_sweep(partition, sweep),
        Err(error) => tracing::warn!(partition, %error, "orphans were not swept"),
    }
    let mut known = inner.snapshots.known[partition as usize].lock();
    if let Ok(sweep) = &result {
        known.last_sweep = Some(SweepStatus::of(sweep));
    }
    known.note_sweep(result.err().as_ref());
}

fn log_sweep(partition: u64, sweep: &Sweep) {
    let Sweep {
        listed,
        listed_bytes: _,
        deleted,
        bytes,
        failed,
        young,
        young_bytes: _,
        foreign,
        fenced,
        unpinned,
    } = *sweep;
    if deleted + failed + young + fenced + unpinned == 0 {
        tracing::debug!(partition, listed, foreign, "there were no orphans to sweep");
        return;
    }
    tracing::info!(
        partition,
        listed,
        deleted,
        bytes,
        failed,
        young,
        foreign,
        fenced,
        unpinned,
        "orphans were swept"
    );
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use bytes::Bytes;
    use esker_repository::prune::PruneOptions;
    use s2_common::config::{BasinConfig, OptionalStreamConfig};
    use s2_common::record::{EnvelopeRecord, Record};
    use s2_common::stream::{AppendInput, AppendRecord, AppendRecordParts};

    use super::*;
    use crate::admission::Client;
    use crate::basins::Create;
    use crate::error::Error;
    use crate::node::Node;
    use crate::options::NodeOptions;
    use crate::snapshots::SnapshotKind;
    use crate::streams::{CreateOn, StreamHandle};

    /// A node that makes snapshots only when a caller asks for them.
    async fn started(dir: &Path) -> (Node, StreamHandle) {
        let mut options = NodeOptions::new(dir);
        options.partitions = 1;
        options.snapshots.kind = SnapshotKind::Incremental;
        options.snapshots.num_retained = std::num::NonZeroU32::new(3);
        options.snapshots.interval = None;
        options.snapshots.interval_records = None;
        options.snapshots.recovery_budget = None;
        let node = Node::start(options).await.unwrap();
        let (config, settings) = (BasinConfig::default(), OptionalStreamConfig::default());
        let basin = node.provision_basin("test-basin", &config, &Create::Ensure);
        basin.await.unwrap();
        let stream = node.provision_stream("test-basin", "s", &settings, &Create::Ensure);
        stream.await.unwrap();
        let on = CreateOn::Append;
        let opened = node.open_stream(Client::default(), "test-basin", "s", on, &settings);
        let stream = opened.await.unwrap();
        (node, stream)
    }

    /// A started node with a record of `bytes` bytes, and a snapshot of it.
    async fn with_snapshot(bytes: usize) -> (tempfile::TempDir, Node, StreamHandle) {
        let dir = tempfile::tempdir().unwrap();
        let (node, stream) = started(dir.path()).await;
        append(&stream, bytes).await;
        node.create_snapshot(1).await.unwrap();
        (dir, node, stream)
    }

    async fn append(stream: &StreamHandle, bytes: usize) {
        let body = Bytes::from(vec![b'x'; bytes]);
        let record = EnvelopeRecord::try_from_parts(Vec::new(), body).unwrap();
        let record = AppendRecord::try_from(AppendRecordParts {
            timestamp: None,
            record: Record::Envelope(record).into(),
        });
        let input = AppendInput {
            records: vec![record.unwrap()].try_into().unwrap(),
            match_seq_num: None,
            fencing_token: None,
        };
        stream.append(input).await.unwrap().done().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_put_is_the_checkpoint_that_was_made_for_it_with_what_it_needs_of_the_catalog()
    {
        let dir = tempfile::tempdir().unwrap();
        let (node, stream) = started(dir.path()).await;
        append(&stream, 1000).await;
        let inner = &node.inner;
        let applied = inner.all_applied();
        let created = node.create_snapshot(1).await.unwrap();
        assert!(created.lsn >= applied[1]);
        let local = inner.snapshots.local.newest(1).unwrap();
        assert_eq!(local.checkpoint.meta.lsn, created.lsn);
        // What the node knows is what the commit returned and what is in the root.
        let known = inner.snapshots.known[1].lock().retained.clone();
        assert_eq!(known.first().unwrap().lsn, created.lsn);
        assert_eq!(known.last().unwrap().lsn, created.archived_lsn);
        let retained = node.snapshots(1).await.unwrap();
        assert_eq!(retained.snapshots.len(), known.len());
        // The basin is in the repository.
        let catalog = inner.snapshots.known[0].lock().newest().cloned();
        assert!(catalog.unwrap().lsn >= applied[0]);
        assert!(!inner.is_catalog_needed());
        node.stop(Duration::from_secs(30)).await;
    }

    #[tokio::test]
    async fn a_failed_snapshot_is_answered_with_its_cause_noted_and_tried_again_for_a_caller() {
        let (dir, node, stream) = with_snapshot(1000).await;
        let (repository, away) = (dir.path().join("repository"), dir.path().join("away"));
        std::fs::rename(&repository, &away).unwrap();
        append(&stream, 1000).await;
        let refused = node.create_snapshot(1).await.unwrap_err();
        assert!(matches!(&refused, Error::TryLater(_)), "{refused}");
        let known = &node.inner.snapshots.known[1];
        assert!(known.lock().failure.is_some());
        assert!(known.lock().uploading.is_none());
        assert!(known.lock().waits(), "it is not tried again at once");
        let _ = std::fs::remove_dir_all(&repository);
        std::fs::rename(&away, &repository).unwrap();
        let created = node.create_snapshot(1).await.unwrap();
        assert_eq!(known.lock().failure, None);
        assert_eq!(known.lock().newest().unwrap().lsn, created.lsn);
        node.stop(Duration::from_secs(30)).await;
    }

    #[tokio::test]
    async fn a_root_that_is_pruned_after_the_commit_is_read_again() {
        let (_dir, node, stream) = with_snapshot(1000).await;
        append(&stream, 1000).await;
        let job = SnapshotJob::begin(&node.inner, 1, Reason::Asked);
        let made = job.make_checkpoint().await.unwrap();
        job.claim_roots().await.unwrap();
        let put = job.upload_and_commit(&made).await.unwrap();
        let keep = PruneOptions {
            keep: std::num::NonZeroU32::new(1),
            ..PruneOptions::default()
        };
        let plan = node.plan_prune(1, &keep).await.unwrap();
        assert!(!plan.released.is_empty());
        node.prune(1, &plan).await.unwrap();
        job.publish(&made, &put);
        assert!(!node.inner.snapshots.known[1].lock().looked);
        node.stop(Duration::from_secs(30)).await;
    }

    #[tokio::test]
    async fn a_log_that_was_kept_for_a_member_is_let_go_once_that_is_removed() {
        let (_dir, node, stream) = with_snapshot(1000).await;
        append(&stream, 1000).await;
        let group = node.inner.group(1);
        group.snapshot().await.unwrap().unwrap();
        let status = group.status();
        let (kept_from, floor) = (status.log_start, status.floor);
        assert!(kept_from < floor, "{kept_from} {floor}");
        // As after a snapshot that was put while a member was away.
        {
            let mut known = node.inner.snapshots.known[1].lock();
            known.retained.last_mut().unwrap().lsn = floor.0;
            known.keeps_for_absent = true;
        }
        node.inner.follow_archived(1);
        let is_let_go = async {
            while group.status().log_start < floor {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(30), is_let_go).await;
        assert!(in_time.is_ok(), "{:?}", group.status().log_start);
        assert!(!node.inner.snapshots.known[1].lock().keeps_for_absent);
        node.stop(Duration::from_secs(30)).await;
    }

    #[tokio::test]
    async fn a_snapshot_after_damage_shares_no_file_with_those_that_are_there() {
        let (_dir, node, stream) = with_snapshot(100_000).await;
        append(&stream, 10).await;
        let shared = node.create_snapshot(1).await.unwrap();
        assert!(shared.bytes_uploaded < shared.bytes, "{shared:?}");
        let known = &node.inner.snapshots.known[1];
        known.lock().force_full = true;
        append(&stream, 10).await;
        let full = node.create_snapshot(1).await.unwrap();
        assert_eq!(full.bytes_uploaded, full.bytes);
        assert!(!known.lock().force_full, "the next one may share again");
        node.stop(Duration::from_secs(30)).await;
    }

    #[tokio::test]
    async fn damage_that_is_found_while_a_snapshot_is_put_counts_for_the_next_one() {
        let (_dir, node, stream) = with_snapshot(1000).await;
        append(&stream, 10).await;
        let job = SnapshotJob::begin(&node.inner, 1, Reason::Asked);
        let made = job.make_checkpoint().await.unwrap();
        job.claim_roots().await.unwrap();
        let put = job.upload_and_commit(&made).await.unwrap();
        let known = &node.inner.snapshots.known[1];
        known.lock().force_full = true;
        let created = job.publish(&made, &put);
        job.finish(&Ok(created));
        assert!(known.lock().force_full);
        node.stop(Duration::from_secs(30)).await;
    }

    #[test]
    fn files_are_reused_unless_they_may_be_damaged() {
        let of_parent = super::super::state::Archived {
            lsn: 1,
            id: "a snapshot".to_owned(),
            created_at: time::OffsetDateTime::UNIX_EPOCH,
            damaged: None,
        };
        let empty = RepositoryState::default();
        assert!(!needs_full(&empty, Reason::First));
        let mut forked = RepositoryState::default();
        forked.retained.push(of_parent);
        assert!(needs_full(&forked, Reason::First), "a lineage begins");
        assert!(!needs_full(&forked, Reason::Interval));
        let mut damaged = RepositoryState::default();
        damaged.force_full = true;
        assert!(needs_full(&damaged, Reason::Interval));
    }
}
