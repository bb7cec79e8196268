//! Background tasks of the store: JSON snapshots, their copies in the repository, expiry of transactions,
//! and removal of history.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use esker_partition::command::{Kind, Outcome};
use esker_partition::state::StateView;
use esker_partition::state::command::{PRUNE_COMMITS, StatePrune};
use esker_partition::store::StoreError;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::Shared;
use super::archiver::keep_archived;
use super::document::Header;
use super::error::StateError;
use super::files::Written;
use super::import::is_unchecked;
use super::inventory::Found;
use super::types::{StateOptions, StateSnapshot};
use crate::blocking::blocking;
use crate::clock::now_ms;
use crate::core::Inner;
use crate::signal::pause;

/// Interval at which transactions expire, and due snapshots are checked for.
const TICK: Duration = Duration::from_millis(250);
/// Interval at which history is checked.
const PRUNE_EVERY: Duration = Duration::from_secs(1);
/// Most commands in a row that remove history: other commits wait for each.
const PRUNE_STEPS: usize = 64;
/// Commits whose age is read in one round.
const AGES: usize = 20_000;

/// The tasks.
#[derive(Debug, Default)]
pub(crate) struct Background {
    tasks: Mutex<JoinSet<()>>,
}

impl Background {
    pub fn start(inner: &Arc<Inner>) -> Background {
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_snapshots(Arc::downgrade(inner)));
        tasks.spawn(keep_bounded(Arc::downgrade(inner)));
        if inner.state.archive.is_some() {
            tasks.spawn(keep_archived(Arc::downgrade(inner)));
        }
        Background {
            tasks: Mutex::new(tasks),
        }
    }

    /// Waits until the tasks have ended, which they do when the node stops.
    pub async fn join(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        // A panic has been reported by the panic hook.
        while tasks.join_next().await.is_some() {}
    }
}

async fn keep_bounded(inner: Weak<Inner>) {
    let mut pruned = Instant::now();
    let mut abandoned = None;
    while let Some(inner) = inner.upgrade() {
        inner.follow_term();
        let expired = inner.state.transactions.lock().sweep(Instant::now());
        if expired > 0 {
            metrics::counter!("esker_state_transactions_expired_total").increment(expired as u64);
        }
        inner.state.publish();
        if pruned.elapsed() >= PRUNE_EVERY {
            abandoned = super::import::abort_abandoned(&inner, abandoned).await;
            if let Err(error) = prune(&inner).await {
                tracing::warn!(%error, "history of the state store was not looked after");
            }
            pruned = Instant::now();
        }
        if !pause(&inner.stopping, None, TICK).await {
            return;
        }
    }
}

async fn keep_snapshots(inner: Weak<Inner>) {
    if let Some(inner) = inner.upgrade() {
        super::import::abort_abandoned(&inner, None).await;
        blocking(move || inner.state.inspect_files()).await;
    }
    while let Some(inner) = inner.upgrade() {
        look_after_snapshots(&inner, inner.leads(inner.state.partition.0)).await;
        if !pause(&inner.stopping, Some(&inner.state.wake), TICK).await {
            return;
        }
    }
}

/// Writes a snapshot that is due, on the node that leads the store.
async fn look_after_snapshots(inner: &Arc<Inner>, leads: bool) {
    if !leads {
        inner.state.refuse_snapshots();
    } else if inner.state.snapshot_is_due() {
        let this = inner.clone();
        blocking(move || {
            let done = this.state.write_snapshot(&this);
            this.state.snapshot_done(done);
        })
        .await;
    }
}

impl Shared {
    /// Requests a snapshot that covers a commit.
    pub fn ask_snapshot(
        &self,
        commit_ts: u64,
    ) -> oneshot::Receiver<Result<StateSnapshot, StateError>> {
        let (answer, answered) = oneshot::channel();
        self.progress.lock().wait(commit_ts, answer);
        self.wake.notify_one();
        answered
    }

    /// Answers those who wait for a snapshot on a node that does not lead the store any more: another node writes the
    /// next one.
    fn refuse_snapshots(&self) {
        for (_, answer) in self.progress.lock().waiting.drain(..) {
            let why =
                "another node leads the state store by now, and writes its snapshots: ask again";
            // The caller may no longer wait.
            let _ = answer.send(Err(StateError::Unavailable(why.to_owned())));
        }
    }

    /// Notes a commit, and wakes the task if a snapshot is due.
    pub fn committed(&self, commit_ts: u64) {
        if self.is_behind(commit_ts) {
            self.wake.notify_one();
        }
    }

    fn is_behind(&self, commit_ts: u64) -> bool {
        let newest = self.progress.lock().newest.unwrap_or(0);
        self.options.snapshot_interval > 0
            && commit_ts.saturating_sub(newest) >= self.options.snapshot_interval
    }

    fn snapshot_is_due(&self) -> bool {
        let commit_ts = self.reader.meta().commit_ts;
        let behind = self.is_behind(commit_ts);
        let progress = self.progress.lock();
        !progress.waiting.is_empty() || (behind && commit_ts > 0 && progress.may_try())
    }

    /// Writes a snapshot of the newest commit, unless there is one. Returns whether it was written.
    fn write_snapshot(&self, inner: &Inner) -> Result<(Written, bool), SnapshotFailure> {
        let meta = self.reader.meta();
        if meta.commit_ts == 0 {
            return Err(SnapshotFailure::Failed(
                "nothing was committed yet".to_owned(),
            ));
        }
        if let Some((written, true)) = self.known(meta.commit_ts) {
            return Ok((written, false));
        }
        // Below a mount that is gone, nothing is created.
        let in_place = inner.data_dir.check_in_place(&inner.options.data_dir);
        in_place.map_err(|e| SnapshotFailure::Failed(e.to_string()))?;
        let begun = Instant::now();
        let own = self.inspect_files();
        let written = self.reader.view(|view| {
            let commit_ts = view.meta.commit_ts;
            tracing::info!(commit_ts, "Creating snapshot at commit_ts={commit_ts}");
            if !own.contains(&commit_ts) && self.files.path(commit_ts).exists() {
                match self.files.set_aside(commit_ts) {
                    Ok(aside) => tracing::warn!(
                        aside = %aside.display(),
                        "a file that is not a snapshot of this state store had the name of one: it has another name now"
                    ),
                    Err(error) => return Ok(Err(error.into())),
                }
            }
            let header = self.header(view)?;
            let written = self.files.write::<SnapshotFailure>(header, |to| {
                view.entries(&mut |key, entry| {
                    if inner.stopping.is_cancelled() {
                        return Err(SnapshotFailure::Stopping);
                    }
                    let check = inner.options.check_value;
                    let is_unchecked = is_unchecked(&entry, commit_ts, check);
                    Ok(to.entry(&key, &entry, is_unchecked)?)
                })
            });
            Ok(written)
        });
        let written = written.map_err(|e| SnapshotFailure::Failed(e.to_string()))??;
        let commit_ts = written.header.commit_ts;
        if let Err(error) = self.inventory.lock().written(&self.files, commit_ts) {
            tracing::warn!(%error, commit_ts, "a new snapshot of the state store was not looked at; it is read later");
        }
        metrics::histogram!("esker_state_snapshot_duration_seconds").record(begun.elapsed());
        tracing::info!(
            bytes = written.bytes,
            keys = written.keys,
            duration = ?begun.elapsed(),
            "Snapshot created: {}", super::files::name_of(written.header.commit_ts)
        );
        Ok((written, true))
    }

    /// The header of a snapshot of this moment.
    pub fn header(&self, view: &StateView<'_>) -> Result<Header, StoreError> {
        Ok(Header {
            created_at: now_ms() / 1000,
            commit_ts: view.meta.commit_ts,
            lineage: self.lineage.id().to_string(),
            lsn: view.applied.lsn,
            forks: self.lineage.forks,
            commit_forks: Some(view.commit_forks()?),
            log_tail: view.applied.log_tail.clone(),
        })
    }

    /// The snapshot of a commit, if the newest snapshot is of that commit and is whole.
    fn known(&self, commit_ts: u64) -> Option<(Written, bool)> {
        let own = self.inspect_files();
        let checked = own.first().filter(|newest| **newest == commit_ts);
        checked.and_then(|_| self.files.check(commit_ts).ok())
    }

    fn snapshot_done(&self, done: Result<(Written, bool), SnapshotFailure>) {
        let retained = self.options.snapshots_retained.max(1) as usize;
        if let Ok((_, true)) = &done {
            metrics::counter!("esker_state_snapshots_total").increment(1);
            // Only snapshots that are known to be this store's are removed.
            let old: Vec<u64> = self.inspect_files().into_iter().skip(retained).collect();
            if let Err(error) = self.files.remove(&old) {
                tracing::warn!(%error, "old snapshots of the state store were not removed");
            }
            self.wake_archive.notify_one();
        }
        self.inspect_files();
        let mut progress = self.progress.lock();
        match done {
            Ok((written, _)) => {
                progress.retry = None;
                progress.last_failure = None;
                let covered = written.header.commit_ts;
                progress.newest = Some(covered.max(progress.newest.unwrap_or(0)));
                let snapshot = self.described(&written);
                let (covered, rest) = std::mem::take(&mut progress.waiting)
                    .into_iter()
                    .partition(|(commit_ts, _)| *commit_ts <= covered);
                progress.waiting = rest;
                for (_, answer) in covered {
                    let _ = answer.send(Ok(snapshot.clone()));
                }
            }
            Err(SnapshotFailure::Stopping) => {
                for (_, answer) in progress.waiting.drain(..) {
                    // The caller may no longer wait.
                    let _ = answer.send(Err(StateError::Stopping));
                }
            }
            Err(SnapshotFailure::Failed(why)) => {
                metrics::counter!("esker_state_snapshots_failed_total").increment(1);
                tracing::warn!(%why, "no snapshot of the state store was written: it is tried again; commits go on");
                for (_, answer) in progress.waiting.drain(..) {
                    let _ = answer.send(Err(StateError::Storage(format!(
                        "the snapshot was not written: {why}"
                    ))));
                }
                progress.failed(why);
            }
        }
    }

    /// Reads each snapshot that is new or has changed: files may have been changed by hand. Returns the
    /// commits of those that count, newest first.
    pub fn inspect_files(&self) -> Vec<u64> {
        // The published newest commit may be older than the one that a snapshot has.
        let newest = || {
            let meta = self.reader.partition_db().state_meta().ok().flatten();
            meta.unwrap_or_else(|| self.reader.meta()).commit_ts
        };
        let mut inventory = self.inventory.lock();
        let found = match inventory.inspect(&self.files, &self.lineage, newest) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "snapshots of the state store are not known");
                Found {
                    unreadable: true,
                    ..Found::default()
                }
            }
        };
        let mut progress = self.progress.lock();
        progress.looked = true;
        progress.newest = found.own.first().copied();
        // A snapshot that cannot be read now may need any part of the history, so nothing is removed.
        progress.oldest = match found.unreadable {
            true => Some(0),
            false => found.own.last().copied(),
        };
        let ignored = found.ignored.into_iter();
        progress.ignored = ignored
            .map(|(commit_ts, why)| format!("{}: {why}", super::files::name_of(commit_ts)))
            .collect();
        found.own
    }

    pub fn described(&self, written: &Written) -> StateSnapshot {
        StateSnapshot {
            name: super::files::name_of(written.header.commit_ts),
            commit_ts: written.header.commit_ts,
            created_at: written.header.created_at,
            bytes: written.bytes,
            keys: Some(written.keys),
            lineage: written.header.lineage.clone(),
            local: true,
            archived: false,
            problem: None,
        }
    }

    pub fn publish(&self) {
        let (open, bytes) = self.transactions.lock().open();
        metrics::gauge!("esker_state_transactions_open").set(open as f64);
        metrics::gauge!("esker_state_transactions_bytes").set(bytes as f64);
        let meta = self.reader.meta();
        metrics::gauge!("esker_state_commit_ts").set(meta.commit_ts as f64);
        metrics::gauge!("esker_state_keys").set(meta.keys as f64);
        metrics::gauge!("esker_state_history_begins").set(meta.history_begins() as f64);
        let newest = self.progress.lock().newest.unwrap_or(0);
        let since = meta.commit_ts.saturating_sub(newest);
        metrics::gauge!("esker_state_commits_since_snapshot").set(since as f64);
    }
}

/// Why a snapshot was not written.
#[derive(Debug)]
pub(crate) enum SnapshotFailure {
    /// The node stops; the next start writes the snapshot.
    Stopping,
    Failed(String),
}

impl From<std::io::Error> for SnapshotFailure {
    fn from(error: std::io::Error) -> Self {
        SnapshotFailure::Failed(error.to_string())
    }
}

impl From<StoreError> for SnapshotFailure {
    fn from(error: StoreError) -> Self {
        SnapshotFailure::Failed(error.to_string())
    }
}

/// The first commit that some policy keeps, of those from the beginning of history up to `bound`. Commits
/// after `bound` are kept in any case, and are not read.
fn kept_from(inner: &Inner, options: &StateOptions, bound: u64) -> Result<u64, StoreError> {
    let meta = inner.state.reader.meta();
    let begins = meta.history_begins();
    if begins > bound {
        return Ok(begins);
    }
    let mut from = u64::MAX;
    if let Some(commits) = options.keep_history_commits
        && let Some(stream) = inner.state_stream()?
    {
        // Gaps in the numbers that forks have left do not count.
        from = from.min(stream.view().state.before_tail(commits) + 1);
    }
    if let Some(age) = options.keep_history_age {
        // Without a time to compute ages with, nothing is too old.
        let Some(now) = inner.ms_for_ages() else {
            return Ok(begins);
        };
        let oldest = now.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let by_age = inner
            .state
            .reader
            .first_arrived(begins - 1, bound, oldest, AGES)?;
        from = from.min(by_age);
    }
    // Without a policy, all of the history is kept.
    Ok(if from == u64::MAX {
        begins
    } else {
        from.max(begins)
    })
}

/// Removes the history that no policy keeps and no snapshot needs.
async fn prune(inner: &Arc<Inner>) -> Result<(), String> {
    let shared = &inner.state;
    let options = &shared.options;
    if !inner.leads(shared.partition.0) {
        return Ok(());
    }
    let keeps_all = options.keep_versions.is_none()
        && options.keep_history_commits.is_none()
        && options.keep_history_age.is_none();
    if keeps_all || shared.reader.meta().commit_ts == 0 {
        return Ok(());
    }
    let this = inner.clone();
    let (bound, from) = blocking(move || {
        this.state.inspect_files();
        // Replaying from the oldest snapshot needs all commits after it.
        let oldest = this.state.progress.lock().oldest;
        let bound = match (oldest, this.state.options.snapshot_interval) {
            (Some(oldest), _) => oldest,
            // Without an interval there is no snapshot unless a caller asks for one.
            (None, 0) => u64::MAX,
            (None, _) => 0,
        };
        let from = kept_from(&this, &this.state.options, bound)?;
        Ok::<_, StoreError>((bound, from))
    })
    .await
    .map_err(|e| e.to_string())?;
    let to = from.min(bound.saturating_add(1));
    for _ in 0..PRUNE_STEPS {
        let meta = shared.reader.meta();
        let versions_to = bound.min(meta.commit_ts);
        let versions = options.keep_versions.is_some() && meta.versions_cut < versions_to;
        let history = meta.history_begins() < to;
        if !versions && !history {
            return Ok(());
        }
        let command = StatePrune {
            versions_to: if versions { versions_to } else { 0 },
            keep_versions: match versions {
                true => options.keep_versions.unwrap_or(0),
                false => 0,
            },
            history_below: if history { to } else { 0 },
            at_ms: inner.stamp_ms(),
        };
        match inner
            .execute(inner.state_group(), Kind::StatePrune(command))
            .await
        {
            Ok(Outcome::StatePruned) => {}
            Ok(other) => return Err(format!("an answer to another command: {other:?}")),
            Err(error) => return Err(error.to_string()),
        }
        let after = shared.reader.meta();
        if (after.versions_cut, after.history_cut) == (meta.versions_cut, meta.history_cut) {
            return Ok(());
        }
        metrics::counter!("esker_state_pruned_commits_total")
            .increment((after.history_cut - meta.history_cut).min(PRUNE_COMMITS));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
