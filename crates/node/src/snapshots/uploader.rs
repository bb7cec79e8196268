//! The task that puts snapshots into the repository, and what it knows of it.
//!
//! One partition at a time, so that memory and bandwidth are bounded by one upload. What the
//! repository retains is read at the start and after each put; from then on the log is kept back to
//! the oldest retained snapshot. A repository that cannot be reached stops nothing else: it is tried
//! again, ever more seldom, and the log grows up to its bound.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use esker_partition::LineageId;
use esker_partition::command::{Expire, ForgetBasin, Kind, Outcome};
use esker_raft::{Group, Lsn};
use esker_repository::destination::probe::probe;
use esker_repository::env::System;
use esker_repository::sweep::Sweep;
use esker_repository::{CurrentRoot, Error as RepositoryError, Progress, Repository};

use super::OnLogFull;
use super::archive::{log_tail, to_put};
use super::failure::Failure;
use super::schedule::{Facts, Reason, due};
use super::state::{CreatedSnapshot, RepositoryState};
use crate::blocking::blocking;
use crate::clock::past_age;
use crate::core::Inner;
use crate::error::Error;
use crate::recovery::{Candidate, Source, Witness};

/// How often it is looked whether something is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A partition that nothing is put of is swept this often.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3600);

/// So many entries are read to see whether they change anything.
const FEW_ENTRIES: u64 = 64;

/// What all partitions together have that the repository does not.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// How long it would take to replay it.
    replay: Duration,
    /// The partition with the most of it.
    largest: u64,
    /// Whether the log is larger than it may be.
    log_full: bool,
    /// The partition for which most of a log is kept that may not be trimmed, and is full.
    holds_log: Option<u64>,
}

/// The tasks.
#[derive(Debug)]
pub(crate) struct Uploader {
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Uploader {
    pub fn start(inner: &Arc<Inner>) -> Uploader {
        let inner = Arc::downgrade(inner);
        Uploader {
            tasks: [
                tokio::spawn(run(inner.clone())),
                tokio::spawn(test_restores(inner)),
            ],
        }
    }

    /// Ends it. An upload under way leaves an intent behind, and its objects are swept.
    pub fn stop(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn run(inner: Weak<Inner>) {
    let mut probed = false;
    loop {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        if !probed {
            probed = probe_once(&inner).await;
        }
        // Of all partitions: looked at once a round, not once for each.
        let load = inner.load();
        let applied = inner.all_applied();
        if !inner.is_catalog_ahead() {
            inner.note_named(&applied);
        }
        for partition in 0..inner.snapshots.known.len() as u64 {
            work(&inner, partition, probed, load).await;
        }
        let woken = tokio::time::timeout(LOOK_EVERY, inner.snapshots.wake.notified());
        // Either is a reason to look again.
        let _ = woken.await;
    }
}

/// Restores the newest snapshots into a scratch directory, one partition after the other, if that is
/// configured.
async fn test_restores(inner: Weak<Inner>) {
    // Each partition's turn comes once an interval; the first when that has passed once.
    let mut tested: Vec<Instant> = Vec::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let Some(interval) = inner.options.snapshots.restore_test_interval else {
            return;
        };
        tested.resize(inner.snapshots.known.len(), inner.started);
        let due = (0..)
            .zip(&mut tested)
            .find(|(_, at)| at.elapsed() >= interval);
        let Some((partition, at)) = due else {
            continue;
        };
        *at = Instant::now();
        if inner.snapshots.known[partition as usize]
            .lock()
            .newest()
            .is_none()
        {
            continue;
        }
        match inner.prove_and_note(partition, None).await {
            // Both were noted.
            Ok(_) | Err(Error::Storage(_)) => {}
            Err(error) => tracing::warn!(partition, %error, "a restore could not be tested"),
        }
    }
}

/// Finds out whether the destination's conditional puts can be relied on; whether it is known.
async fn probe_once(inner: &Inner) -> bool {
    let snapshots = &inner.snapshots;
    if snapshots.archive.destination().local().is_some() {
        return true;
    }
    if snapshots.known.iter().all(|known| known.lock().waits()) {
        return false;
    }
    // A probe writes, and nothing is written where somebody else does.
    let probed = match snapshots.archive.check_owner(&snapshots.identity).await {
        Ok(()) => probe(snapshots.archive.destination(), &System)
            .await
            .map_err(|error| Failure::failing(error.to_string())),
        Err(error) => Err(Failure::of(&error)),
    };
    let Err(failure) = probed else {
        return true;
    };
    tracing::warn!(error = %failure, "no snapshots are put into the repository");
    for known in &snapshots.known {
        let mut known = known.lock();
        known.failed(failure.clone());
        answer(&mut known, &Err(failure.to_string()));
    }
    false
}

async fn work(inner: &Inner, partition: u64, may_put: bool, load: Load) {
    let place = &inner.snapshots.known[partition as usize];
    let (looked, waits) = {
        let known = place.lock();
        (known.looked, known.waits())
    };
    if waits {
        return;
    }
    let repository = inner
        .snapshots
        .archive
        .repository(&inner.snapshots.identity, partition);
    let group = inner.group(partition);
    if !looked && !inspect(inner, partition, &repository, group).await {
        return;
    }
    if !may_put {
        return;
    }
    let Some(reason) = due(
        inner.snapshots.archive.options(),
        &inner.facts(partition, load),
    ) else {
        sweep_if_due(inner, partition, &repository).await;
        return;
    };
    put_and_note(inner, partition, repository, reason).await;
}

/// Puts a snapshot, answers whoever asked for it, and sweeps.
async fn put_and_note(inner: &Inner, partition: u64, repository: Repository, reason: Reason) {
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

fn answer(known: &mut RepositoryState, result: &Result<CreatedSnapshot, String>) {
    for asker in known.asked.drain(..) {
        let _ = asker.send(result.clone());
    }
}

/// Reads what the repository has; whether that is known now.
async fn inspect(
    inner: &Inner,
    partition: u64,
    repository: &Repository,
    group: &Group<Outcome>,
) -> bool {
    let place = &inner.snapshots.known[partition as usize];
    match repository.root().await {
        Ok(root) => {
            let lineage = inner.part(partition).lineage().ok();
            let ours = lineage.map(|l| super::lineage_id(l.id()));
            let of_others = check_history(inner, partition, repository, &root)
                .await
                .err();
            let of_catalog = match partition {
                0 => None,
                _ => inner.snapshots.known[0].lock().other_writer(),
            };
            let mut known = place.lock();
            if root.lineage.is_some() && root.lineage != ours {
                let why = format!(
                    "{} has gone on with lineage {}: this node is of a stale lineage, and what is appended here is not kept anywhere else. Stop it, and restore from the repository into an empty directory",
                    inner.snapshots.archive.shown(),
                    root.lineage.map(|l| l.to_string()).unwrap_or_default(),
                );
                tracing::error!(partition, why);
                known.failed(Failure::other_lineage(why.clone()));
                answer(&mut known, &Err(why));
                return false;
            }
            if let Err(error) = repository.check_writer(&root) {
                let failure = Failure::of(&error);
                tracing::error!(partition, error = %failure, "no snapshots are put into the repository");
                answer(&mut known, &Err(failure.to_string()));
                known.failed(failure);
                return false;
            }
            if let Some(failure) = of_catalog.or(of_others) {
                tracing::error!(partition, error = %failure, "no snapshots are put into the repository");
                answer(&mut known, &Err(failure.to_string()));
                known.failed(failure);
                return false;
            }
            inner.snapshots.archive.note_root(partition, &root);
            known.note_root(&root);
            if let Some(newest) = known.newest().map(|newest| newest.lsn) {
                known.empty = (newest, inner.count_empty(partition, newest));
            }
            if let Some(newest) = known.newest()
                && past_age(newest.created_at).is_none()
            {
                tracing::warn!(
                    partition,
                    created_at = %newest.created_at,
                    "the newest snapshot is from the future: a clock was ahead, or this one is behind; the next one is due at once"
                );
            }
            known.succeeded();
            keep(group, &known);
            true
        }
        Err(RepositoryError::NoRoot { others: false, .. }) => {
            // Nothing at all is what a disk that is not mounted has.
            let archive = &inner.snapshots.archive;
            let owner = archive.check_owner(&inner.snapshots.identity).await;
            let mut known = place.lock();
            if let Err(error) = owner {
                let failure = Failure::of(&error);
                tracing::warn!(partition, error = %failure, "no snapshots are put into the repository");
                answer(&mut known, &Err(failure.to_string()));
                known.failed(failure);
                return false;
            }
            known.looked = true;
            known.retained.clear();
            true
        }
        Err(error) => {
            tracing::warn!(partition, %error, "the repository could not be read");
            let mut known = place.lock();
            known.failed(Failure::of(&error));
            answer(&mut known, &Err(error.to_string()));
            false
        }
    }
}

/// Whether the newest snapshot is of the history that this node has. An older copy of this data directory
/// may follow the incarnation that has put it, and not have what is in it.
async fn check_history(
    inner: &Inner,
    partition: u64,
    repository: &Repository,
    root: &CurrentRoot,
) -> Result<(), Failure> {
    let Some(newest) = root.retained_snapshots.first().map(|newest| newest.dir()) else {
        return Ok(());
    };
    let metadata = match repository.describe(&newest).await {
        Ok(metadata) => metadata,
        // It is no way back, and says nothing.
        Err(error) if error.is_damage() => return Ok(()),
        Err(error) => return Err(Failure::of(&error)),
    };
    let (Some(lineage), Ok(tail)) = (metadata.lineage, log_tail(&metadata)) else {
        return Ok(());
    };
    let copy = Candidate {
        term: metadata.term,
        tail,
        ..Candidate::at(
            Source::Repository(newest.clone()),
            LineageId(lineage.0),
            metadata.min_applied_lsn.0,
        )
    };
    let raft = inner.raft.clone();
    let compared = blocking(move || match Witness::of(&raft, partition)? {
        Some(witness) => witness.is_of_another_history(&copy),
        None => Ok(None),
    });
    match compared.await {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(Failure::other_history(format!(
            "{newest} in {} is of another history than this node: {why}",
            inner.snapshots.archive.shown()
        ))),
        Err(error) => Err(Failure::here(error.to_string())),
    }
}

/// The log is kept from the oldest retained snapshot on.
fn keep(group: &Group<Outcome>, known: &RepositoryState) {
    if let Some(oldest) = known.oldest() {
        group.keep_from(Lsn(oldest.lsn));
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

async fn sweep_if_due(inner: &Inner, partition: u64, repository: &Repository) {
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

impl Inner {
    /// Claims the catalog's root, before anything is put: of two copies of a data directory one puts the
    /// snapshots of all partitions, and never each some, which would be of two histories. A catalog that
    /// has no root yet, or whose root cannot be read, keeps nothing back: each partition's root is claimed
    /// by its own put as well.
    async fn claim_catalog(&self) -> Result<(), Failure> {
        let begun = self.snapshots.archive.begin_to_write();
        begun.map_err(|e| Failure::here(e.to_string()))?;
        match self.claim(0).await {
            Err(failure) if failure.is_refusal() => {
                let mut known = self.snapshots.known[0].lock();
                known.looked = false;
                known.failed(failure.clone());
                Err(failure)
            }
            Err(failure) => {
                tracing::debug!(%failure, "the catalog's root is not claimed");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Makes sure that this start of the data directory, and no copy of it, writes for a partition.
    /// The root; none if there is none to be claimed.
    async fn claim(&self, partition: u64) -> Result<Option<CurrentRoot>, Failure> {
        let archive = &self.snapshots.archive;
        let lineage = self.part(partition).lineage();
        let lineage = lineage.map_err(|e| Failure::here(e.to_string()))?;
        let repository = archive.repository(&self.snapshots.identity, partition);
        match repository.claim(super::lineage_id(lineage.id())).await {
            Ok(root) => {
                archive.note_root(partition, &root);
                Ok(Some(root))
            }
            Err(RepositoryError::NoRoot { others: false, .. }) => Ok(None),
            Err(error) => Err(Failure::of(&error)),
        }
    }

    /// As before each put of a partition, for what is put beside the partition's snapshots.
    pub(crate) async fn claim_for(&self, partition: u64) -> Result<(), String> {
        let claimed = async {
            self.claim_catalog().await?;
            self.claim(partition).await.map(drop)
        };
        claimed.await.map_err(|failure| {
            let why = failure.to_string();
            if failure.is_refusal() {
                let mut known = self.snapshots.known[partition as usize].lock();
                known.looked = false;
                known.failed(failure);
            }
            why
        })
    }

    /// Counts the entries after the newest snapshot that change nothing: each start appends one.
    fn count_empty(&self, partition: u64, newest: u64) -> u64 {
        let group = self.group(partition);
        let last = group.status().last.0;
        let (low, high) = (Lsn(newest + 1), Lsn(last + 1));
        let few = last.saturating_sub(newest) <= FEW_ENTRIES;
        // What cannot be read counts as if it changed something.
        match few && last > newest {
            true => self
                .raft
                .log()
                .count_empty(group.id(), low, high)
                .unwrap_or(0),
            false => 0,
        }
    }

    /// What decides whether a snapshot of the partition is due.
    fn facts(&self, partition: u64, load: Load) -> Facts {
        let known = self.snapshots.known[partition as usize].lock();
        let status = self.group(partition).status();
        let newest = known.newest();
        let lsn = newest.map_or(0, |n| n.lsn);
        // One from the future tells of a clock that was wrong, and not how long it can wait.
        let age = newest.map_or(Duration::ZERO, |n| {
            past_age(n.created_at).unwrap_or(Duration::MAX)
        });
        let asked = !known.asked.is_empty();
        let empty = known.empty_entries();
        let newest_bytes = known.newest_bytes;
        // What a new lineage has from its parent cannot stand for it: if this disk is lost as well, no
        // copy would be of the repository's lineage.
        let lineage = self.part(partition).lineage().ok();
        let forked_at = lineage.filter(|l| l.forks > 0).map(|l| l.fork_lsn);
        let none = newest.is_none_or(|n| forked_at.is_some_and(|lsn| n.lsn <= lsn));
        drop(known);
        let is_largest = load.largest == partition;
        Facts {
            asked,
            none,
            needed: partition == 0 && self.is_catalog_needed(),
            entries: status.applied.0.saturating_sub(lsn + empty),
            age,
            replay: match is_largest {
                true => load.replay,
                false => Duration::ZERO,
            },
            log_full: is_largest && load.log_full,
            holds_space: self.snapshots.archive.is_default
                && newest_bytes.is_some_and(|bytes| self.could_release(partition, bytes)),
            holds_log: load.holds_log == Some(partition),
        }
    }

    /// What came after the newest snapshots, over all partitions.
    fn load(&self) -> Load {
        let (mut entries, mut bytes) = (0, 0);
        let mut largest = (0, 0);
        let mut holds_most = (None, 0);
        let retained = self.options.snapshots.num_retained;
        let retained = retained.map_or(1, |n| u64::from(n.get()));
        for (partition, known) in (0..).zip(&self.snapshots.known) {
            let known = known.lock();
            let lsn = known.newest().map_or(0, |n| n.lsn);
            let kept_from = known.oldest().map_or(0, |n| n.lsn);
            drop(known);
            let status = self.group(partition).status();
            // Of which some may be no more than what `advance` puts into it.
            let kept = status.applied.0.saturating_sub(kept_from);
            if kept > retained.max(holds_most.1) {
                holds_most = (Some(partition), kept);
            }
            let (some, their_bytes) = self.after(partition, lsn);
            entries += some;
            bytes += their_bytes;
            if some >= largest.1 {
                largest = (partition, some);
            }
        }
        let log_full = self.log_is_full();
        let refuses = self.options.snapshots.on_log_full == OnLogFull::RefuseAppends;
        let holds_log = holds_most.0.filter(|_| log_full && refuses);
        let log_full = log_full || self.log_holds_space();
        Load {
            holds_log,
            replay: self.snapshots.rates.replay(entries, bytes).time,
            largest: largest.0,
            log_full,
        }
    }

    /// Entries of a partition after an LSN, and roughly their bytes.
    pub(crate) fn after(&self, partition: u64, lsn: u64) -> (u64, u64) {
        let status = self.group(partition).status();
        let entries = status.last.0.saturating_sub(lsn);
        let bytes = match status.log_entries {
            0 => 0,
            all => (status.log_bytes as f64 * (entries.min(all) as f64 / all as f64)) as u64,
        };
        (entries, bytes)
    }

    /// Whether the log is larger than it may be.
    pub(crate) fn log_is_full(&self) -> bool {
        self.log_bytes() > self.log_most()
    }

    /// Whether the log is larger than it has to be and the disk nearly full: a snapshot lets the log be
    /// trimmed, if it takes no space of the same disk.
    fn log_holds_space(&self) -> bool {
        let least = self.options.log_purge_threshold + 2 * self.options.log_segment_size;
        let is_elsewhere = !self.snapshots.archive.is_default;
        self.is_short() && is_elsewhere && self.log_bytes() > least
    }
}
