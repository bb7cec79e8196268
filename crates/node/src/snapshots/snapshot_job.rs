//! One snapshot of a partition, from its checkpoint to the sweep after it.

use std::time::{Duration, Instant};

use esker_partition::command::{Expire, ForgetBasin, Kind, Outcome};
use esker_raft::Group;
use esker_repository::sweep::Sweep;
use esker_repository::{Progress, Repository};

use super::archive::to_put;
use super::failure::Failure;
use super::root::{check_history, keep};
use super::schedule::Reason;
use super::state::CreatedSnapshot;
use crate::core::Inner;

/// Puts a snapshot, answers whoever asked for it, and sweeps.
pub(super) async fn put_and_note(
    inner: &Inner,
    partition: u64,
    repository: Repository,
    reason: Reason,
) {
    let place = &inner.snapshots.known[partition as usize];
    let group = inner.group(partition);
    let asked = std::mem::take(&mut place.lock().asked);
    // Where a line begins, something was lost just before: of what is there nobody knows how good it is.
    let apart = {
        let known = place.lock();
        known.force_full || (reason == Reason::First && known.newest().is_some())
    };
    let repository = match apart {
        true => {
            let archive = &inner.snapshots.archive;
            archive.without_reuse(&inner.snapshots.identity, partition)
        }
        false => repository,
    };
    let result = put(inner, partition, &repository, group, reason).await;
    note_put(inner, partition, reason, &result);
    for asker in asked {
        // Whoever asked may have gone.
        let _ = asker.send(result.clone().map_err(|why| why.to_string()));
    }
    if result.is_ok() {
        sweep(inner, partition, &repository).await;
    }
}

/// Puts the catalog's snapshot, if the repository lacks something that a partition's snapshot may need.
/// What comes of it is noted: the partition's own snapshot is put in any case, and is worth something
/// once the catalog's is there.
async fn put_catalog(inner: &Inner) {
    if !inner.is_catalog_ahead() {
        return;
    }
    let (looked, waits) = {
        let known = inner.snapshots.known[0].lock();
        (known.looked, known.waits())
    };
    if looked && !waits {
        let archive = &inner.snapshots.archive;
        let repository = archive.repository(&inner.snapshots.identity, 0);
        Box::pin(put_and_note(inner, 0, repository, Reason::Needed)).await;
    }
}

fn note_put(
    inner: &Inner,
    partition: u64,
    reason: Reason,
    result: &Result<CreatedSnapshot, Failure>,
) {
    let mut known = inner.snapshots.known[partition as usize].lock();
    known.uploading = None;
    match result {
        Ok(created) => {
            known.succeeded();
            known.force_full = false;
            if reason == Reason::First && created.lsn <= 2 {
                // One for each partition of a new node: nobody wants to read that.
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
        Err(why) => {
            known.failed(why.clone());
            tracing::warn!(partition, %why, "no snapshot was put into the repository");
        }
    }
}

/// Appends an entry that changes nothing: the next snapshot has an LSN of its own, takes a place among
/// those that are retained, and the oldest one, for which the log is kept, goes.
async fn advance(partition: u64, group: &Group<Outcome>) {
    let nothing = match partition {
        // Of a basin and a stream that there never are.
        0 => Kind::ForgetBasin(ForgetBasin { basin: 0 }),
        _ => Kind::Expire(Expire::default()),
    };
    let done = tokio::time::timeout(ADVANCE_TIMEOUT, group.execute(nothing.into_bytes())).await;
    // With a stalled disk it does not come, and the snapshot may be what makes room.
    if !matches!(done, Ok(Ok(_))) {
        tracing::debug!(partition, "the snapshot covers no more than the one before");
    }
}

/// How long a put waits for the entry that lets its snapshot cover more than the one before.
const ADVANCE_TIMEOUT: Duration = Duration::from_secs(5);

async fn put(
    inner: &Inner,
    partition: u64,
    repository: &Repository,
    group: &Group<Outcome>,
    reason: Reason,
) -> Result<CreatedSnapshot, Failure> {
    let started = Instant::now();
    let snapshots = &inner.snapshots;
    let place = &snapshots.known[partition as usize];
    if matches!(reason, Reason::LogFull | Reason::DiskFull) {
        advance(partition, group).await;
    }
    // Before it is taken: whatever the catalog's snapshot has, these have no stream without a basin there.
    let applied = inner.all_applied();
    group
        .snapshot()
        .await
        .map_err(|_| Failure::here("the node is stopping"))?
        .map_err(|e| Failure::here(e.to_string()))?;
    let held = snapshots
        .local
        .newest(partition)
        .ok_or_else(|| Failure::here("there is no local snapshot"))?;
    let lineage = inner.part(partition).lineage();
    let lineage = lineage.map_err(|e| Failure::here(e.to_string()))?;
    let checkpoint = to_put(&held.checkpoint, &lineage, held.clone()).map_err(Failure::here)?;
    if partition != 0 {
        put_catalog(inner).await;
    }
    inner.claim_catalog().await?;
    if !place.lock().is_claimed {
        // From here on no copy of this data directory commits anything; what it has committed is seen.
        if let Some(root) = inner.claim(partition).await? {
            let checked = check_history(inner, partition, repository, &root).await;
            checked.inspect_err(|_| place.lock().looked = false)?;
        }
        place.lock().is_claimed = true;
    }
    let progress = Progress::new();
    place.lock().uploading = Some(progress.clone());
    tracing::debug!(partition, %reason, lsn = held.checkpoint.meta.lsn, "putting a snapshot");
    let put = match repository.put(&checkpoint, &progress).await {
        Ok(put) => put,
        Err(error) => {
            // What it has is looked at anew.
            place.lock().looked = false;
            return Err(Failure::of(&error));
        }
    };
    snapshots.archive.note_put();
    let root = repository.root().await.map_err(|e| Failure::of(&e))?;
    snapshots.archive.note_root(partition, &root);
    let mut known = place.lock();
    known.note_root(&root);
    known.newest_bytes = Some(put.bytes);
    keep(group, &known);
    if partition == 0 {
        inner.note_named(&applied);
    }
    Ok(CreatedSnapshot {
        partition,
        snapshot: put.snapshot.to_string(),
        lsn: put.snapshot.lsn.0,
        archived_lsn: known.oldest().map_or(put.snapshot.lsn.0, |o| o.lsn),
        files: put.files,
        bytes: put.bytes,
        bytes_uploaded: put.bytes_uploaded,
        took: started.elapsed(),
    })
}

pub(super) async fn sweep_if_due(inner: &Inner, partition: u64, repository: &Repository) {
    let due = {
        let mut known = inner.snapshots.known[partition as usize].lock();
        let now = Instant::now();
        let swept = *known.swept_at.get_or_insert(now);
        now.duration_since(swept) >= SWEEP_EVERY && !known.retained.is_empty()
    };
    if due {
        sweep(inner, partition, repository).await;
    }
}

async fn sweep(inner: &Inner, partition: u64, repository: &Repository) {
    if !inner.snapshots.archive.options().orphan_cleanup {
        return;
    }
    let result = repository.sweep().await;
    if let Ok(sweep) = &result {
        note_sweep(partition, sweep);
    }
    let mut known = inner.snapshots.known[partition as usize].lock();
    known.swept_at = Some(Instant::now());
    known.sweep_failure = None;
    let Err(error) = result else { return };
    tracing::warn!(partition, %error, "orphans were not swept");
    let failure = Failure::of(&error);
    match failure.is_failing() {
        true => known.sweep_failure = Some(failure.what),
        // It concerns snapshots too, and the next look at the repository clears it, not the next sweep.
        false => {
            known.failed(failure);
            known.looked = false;
        }
    }
}

fn note_sweep(partition: u64, sweep: &Sweep) {
    let Sweep {
        listed,
        deleted,
        bytes,
        failed,
        young,
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

/// A partition that nothing is put of is swept this often.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3600);
