//! Failures of RocksDB's background work, and their retries.
//!
//! RocksDB treats every error of the operating system but "no space" as fatal: after one flush that met
//! too many open files, it refuses writes until it is opened again. After "no space" it refuses writes
//! until it has found space, which it checks every 5 s. Nothing is lost by such a flush, though. Its
//! memtables stay, the file that it began is deleted, a manifest that could not be written is replaced by
//! a new one, and the Raft log has everything. So the error is *reset*
//! ([`EventListener::on_background_error`] may do so), the database continues, and the flush is retried
//! later ([`Backoff`]).
//!
//! | what failed | what is done |
//! |---|---|
//! | a flush, a compaction, the manifest: an error of the operating system | reset; flushed again with back-off ([`Store::retry_now`]: at once); RocksDB repeats compactions itself |
//! | a compaction: no space | left to RocksDB, which checks for space every 5 s, and would fill the disk by repeating it; [`PartitionDb::try_again`] resumes what it has given up |
//! | anything, while RocksDB recovers from a lack of space | not reset: RocksDB's recovery would wait for ever |
//! | a compaction: corruption of a table that is named | reset; the partition counts as damaged ([`Store::damage`]), and the others continue |
//! | anything else | not reset; only opening the database again helps ([`Store::fatal`]) |
//!
//! While RocksDB has no error, it makes a write wait until memtables are flushed. After a reset, that
//! wait might never end, because the write would hold what the next flush needs. So RocksDB's own limit
//! of memtables is never reached: a write waits here, before it begins
//! ([`PartitionDb::wait_for_memtables`]), and fails with the cause.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rust_rocksdb::event_listener::{
    BackgroundErrorRecoveryInfo, BackgroundErrorStatus, CompactionJobInfo, DBBackgroundErrorReason,
    EventListener, FlushJobInfo, MutableStatus, StatusSeverity,
};
use rust_rocksdb::{BoundColumnFamily, ErrorKind, FlushOptions};

use super::damage::names_a_table;
use super::{PartitionDb, Store, StoreError};

/// Most memtables of a partition that wait to be flushed, beside the one that takes writes.
pub(super) const MAX_UNFLUSHED: u64 = 3;
/// While compactions fail, a partition with this many files at level 0 refuses writes: from
/// [`LEVEL0_STOP`] on, RocksDB would make a write wait inside it, and all others behind that one. The
/// difference is for flushes under way.
const MAX_LEVEL0_FILES: u64 = LEVEL0_STOP as u64 - 32;
/// Number of files at level 0 from which on RocksDB makes writes wait for compactions.
pub(super) const LEVEL0_STOP: i32 = 160;
/// RocksDB's own limit of memtables, which is never reached. It is far above [`MAX_UNFLUSHED`], because a
/// retry of a failed flush switches memtables.
pub(super) const MAX_MEMTABLES: i32 = 64;
/// Most messages of damaged tables that wait to be recorded: the next compaction meets any others again.
const MAX_CORRUPT: usize = 16;
/// How often a waiting thread checks, if nothing wakes it.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// A flush that failed is retried after this pause, which doubles after each further failure...
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// ...up to this one: each attempt may write a file until the disk is full.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// When an operation that failed is retried.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    not_before: Option<Instant>,
}

impl Backoff {
    /// Records a failure; returns the pause before the next attempt.
    pub fn failed(&mut self, now: Instant) -> Duration {
        let doubled = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        let pause = doubled.min(LAST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
        pause
    }

    pub fn succeeded(&mut self) {
        *self = Backoff::default();
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }
}

#[derive(Debug, Default)]
struct State {
    /// Flushes that failed since the start.
    failed_flushes: u64,
    /// Cause of the last of them.
    last_failure: Option<String>,
    /// The same, until a flush succeeds.
    flush: Option<String>,
    retry: Backoff,
    /// Compactions that failed since the start.
    failed_compactions: u64,
    /// Cause of the last of them, until a compaction succeeds.
    compaction: Option<String>,
    /// Whether RocksDB recovers from a lack of space at present.
    recovering: bool,
    /// An error that was not reset, because of which RocksDB refuses writes.
    standing: Option<String>,
    /// The same, if only opening the database again helps.
    fatal: Option<String>,
    /// Messages of compactions about damaged tables, until the partitions of these are recorded.
    corrupt: Vec<String>,
    closed: bool,
    /// Number of reports to waiting threads.
    events: u64,
}

impl State {
    fn refusal(&self) -> Option<String> {
        let closed = || "the database is being closed".to_owned();
        self.standing.clone().or_else(|| self.closed.then(closed))
    }
}

/// The state of RocksDB's background work.
#[derive(Debug, Default)]
pub(super) struct Background {
    state: Mutex<State>,
    changed: Condvar,
    /// For tests: a flush waits while it is locked.
    #[cfg(test)]
    hold: Mutex<()>,
}

impl Background {
    pub fn listener(self: &Arc<Self>) -> impl EventListener + use<> {
        Listener(self.clone())
    }

    /// Ends all waits, and those that begin later.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        self.report(state);
    }

    fn failed_flushes(&self) -> u64 {
        self.state.lock().failed_flushes
    }

    /// Why no flush is possible, or why one has failed since the number of failures was `failed_flushes`.
    fn refusal_since(&self, failed_flushes: u64) -> Option<String> {
        let state = self.state.lock();
        let failed = state.failed_flushes > failed_flushes;
        (state.refusal()).or_else(|| state.last_failure.clone().filter(|_| failed))
    }

    /// Why no flush is possible, or why the last one failed.
    fn refusal(&self) -> Option<String> {
        let state = self.state.lock();
        state.refusal().or_else(|| state.flush.clone())
    }

    /// Why the last compaction failed, if it did.
    fn failing_compaction(&self) -> Option<String> {
        self.state.lock().compaction.clone()
    }

    pub fn failed_compactions(&self) -> u64 {
        self.state.lock().failed_compactions
    }

    /// Why a compaction has failed since the number of failures was `failed`.
    pub fn compaction_failure_since(&self, failed: u64) -> Option<String> {
        let state = self.state.lock();
        let why = || state.compaction.clone().unwrap_or_default();
        (state.failed_compactions > failed).then(why)
    }

    fn note_failed_flush(&self, why: &str) {
        let mut state = self.state.lock();
        state.failed_flushes += 1;
        state.last_failure = Some(why.to_owned());
        state.flush = Some(why.to_owned());
        let again_after = state.retry.failed(Instant::now());
        self.report(state);
        tracing::warn!(error = why, ?again_after, "not flushed; the log is kept");
    }

    fn events(&self) -> u64 {
        self.state.lock().events
    }

    /// Waits for a report after the first `events`, until `until` at most.
    fn wait(&self, events: u64, until: Instant) {
        let mut state = self.state.lock();
        if state.events == events && !state.closed {
            self.changed.wait_until(&mut state, until);
        }
    }

    /// Counts a report and wakes the threads that wait.
    fn report(&self, mut state: MutexGuard<'_, State>) {
        state.events += 1;
        drop(state);
        self.changed.notify_all();
    }
}

struct Listener(Arc<Background>);

impl EventListener for Listener {
    #[cfg(test)]
    fn on_flush_begin(&self, _: &FlushJobInfo) {
        drop(self.0.hold.lock());
    }

    fn on_flush_completed(&self, _: &FlushJobInfo) {
        let mut state = self.0.state.lock();
        let was_failing = state.flush.take().is_some();
        state.retry.succeeded();
        self.0.report(state);
        if was_failing {
            tracing::info!("the database is flushed again");
        }
    }

    fn on_compaction_completed(&self, info: &CompactionJobInfo) {
        if info.status().is_ok() {
            self.0.state.lock().compaction = None;
        }
    }

    fn on_background_error(&self, reason: DBBackgroundErrorReason, status: MutableStatus) {
        let Err(error) = status.result() else {
            return;
        };
        let why = error.to_string();
        let is_compaction = reason == DBBackgroundErrorReason::KCompaction;
        let severity = status.severity();
        let mut state = self.0.state.lock();
        let is_answer = error.kind() == ErrorKind::IOError;
        let is_left = is_compaction && is_lack_of_space(&why);
        // Damage to files of one partition is no reason to refuse writes to the others.
        let is_of_a_table =
            error.kind() == ErrorKind::Corruption && is_compaction && names_a_table(&why);
        if is_of_a_table && !state.corrupt.contains(&why) && state.corrupt.len() < MAX_CORRUPT {
            state.corrupt.push(why.clone());
        }
        if ((is_answer && !is_left) || is_of_a_table) && !state.recovering {
            status.reset();
        } else if severity >= StatusSeverity::KHardError {
            state.standing = Some(why.clone());
            if severity >= StatusSeverity::KFatalError {
                state.fatal = Some(why.clone());
            }
        }
        if is_compaction {
            let is_new = state.compaction.as_ref() != Some(&why);
            state.failed_compactions += 1;
            state.compaction = Some(why.clone());
            drop(state);
            if is_new {
                tracing::warn!(
                    error = why,
                    "files of the database were not merged; tried again"
                );
            }
        } else {
            drop(state);
            self.0.note_failed_flush(&why);
        }
    }

    fn on_error_recovery_begin(
        &self,
        _: DBBackgroundErrorReason,
        error: &BackgroundErrorStatus,
        automatic: &mut bool,
    ) {
        // RocksDB also calls this for an error that was reset, from which it does not recover.
        if error.result().is_err() {
            self.0.state.lock().recovering = *automatic;
        }
    }

    fn on_error_recovery_end(&self, info: &BackgroundErrorRecoveryInfo) {
        let mut state = self.0.state.lock();
        state.recovering = false;
        if info.new_bg_error().result().is_ok() {
            state.standing = None;
            state.flush = None;
            state.retry.succeeded();
        }
        self.0.report(state);
    }
}

/// Whether a message of RocksDB means ENOSPC, or a limit of its own.
fn is_lack_of_space(message: &str) -> bool {
    message.contains("No space left on device") || message.contains("Space limit reached")
}

impl Store {
    /// Why files of the database cannot be written at the moment, if they cannot. Acknowledged data is in
    /// the log.
    pub fn write_failure(&self) -> Option<String> {
        let state = self.background.state.lock();
        let why = state.standing.clone().or_else(|| state.flush.clone());
        why.or_else(|| state.compaction.clone())
    }

    /// Causes of failures of background work, as far as they are still known.
    pub(super) fn background_failures(&self) -> Vec<String> {
        let mut state = self.background.state.lock();
        let mut found = std::mem::take(&mut state.corrupt);
        let whys = [&state.standing, &state.compaction, &state.flush];
        found.extend(whys.into_iter().flatten().cloned());
        found
    }

    /// An error after which RocksDB takes no write until the database is opened again.
    pub fn fatal(&self) -> Option<String> {
        self.background.state.lock().fatal.clone()
    }

    /// Cancels background work and ends all waits for it. To be called before the groups are stopped, if
    /// a flush could not be completed. The data in memtables is in the log.
    pub fn give_up(&self) {
        self.background.close();
        self.db.cancel_all_background_work(false);
    }

    /// Ends the back-off, because there is space now: the next flush may begin at once.
    pub fn retry_now(&self) {
        let mut state = self.background.state.lock();
        state.retry.succeeded();
        self.background.report(state);
    }

    /// Whether no flush has failed, or the back-off after the last failure is over.
    pub fn may_flush(&self) -> bool {
        self.background.state.lock().retry.is_due(Instant::now())
    }
}

impl PartitionDb {
    /// Number of memtables that take no more writes and are not in files yet, of the column family that has
    /// more of them.
    pub fn unflushed(&self) -> u64 {
        self.more_of("rocksdb.num-immutable-mem-table")
    }

    /// Number of files at level 0: flushed, and not compacted yet. Of the column family that has more.
    fn level0_files(&self) -> u64 {
        self.more_of("rocksdb.num-files-at-level0")
    }

    fn more_of(&self, property: &str) -> u64 {
        let segments = self.property_of(&self.segments_cf(), property);
        self.property_of(&self.cf(), property).max(segments)
    }

    /// See [`Store::may_flush`].
    pub fn may_flush(&self) -> bool {
        self.store.may_flush()
    }

    /// Whether memtables wait and no flush runs: their flush has failed.
    pub fn flush_is_stuck(&self) -> bool {
        self.unflushed() > 0 && self.property("rocksdb.num-running-flushes") == 0
    }

    /// Writes memtables to files and syncs them; blocks until done.
    ///
    /// # Errors
    ///
    /// A flush failed, of any partition. Nothing is lost by it, and the next one may succeed.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.flush_until(None)
    }

    /// The same, until `deadline` at most: then it returns an error, and the flush continues in the
    /// background.
    pub fn flush_until(&self, deadline: Option<Instant>) -> Result<(), StoreError> {
        let background = &self.store.background;
        let failed_flushes = background.failed_flushes();
        let lsn = |applied: Option<super::Applied>| applied.map_or(0, |applied| applied.lsn);
        let applied = lsn(self.applied()?);
        // The durable LSN shows that the flush has ended only if it has to rise. After writes that move
        // no LSN, only the absence of waiting memtables shows it.
        let shows = applied > lsn(self.durable()?);
        self.begin_flush()?;
        loop {
            let events = background.events();
            if self.unflushed() == 0 || (shows && lsn(self.durable()?) >= applied) {
                return Ok(());
            }
            if let Some(why) = background.refusal_since(failed_flushes) {
                return Err(self.not_flushed(why));
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Err(self.not_flushed("it was not done in time".to_owned()));
            }
            let look = now + LOOK_INTERVAL;
            background.wait(events, deadline.map_or(look, |deadline| deadline.min(look)));
        }
    }

    /// Begins a flush of column families, as one. A wait inside RocksDB might never end: see the head of this
    /// module.
    pub(super) fn flush_these(
        &self,
        families: &[&Arc<BoundColumnFamily<'_>>],
    ) -> Result<(), StoreError> {
        let mut options = FlushOptions::default();
        options.set_wait(false);
        options.set_allow_write_stall(true);
        self.store
            .db
            .flush_cfs_opt(families, &options)
            .map_err(|e| {
                self.store.background.note_failed_flush(e.as_ref());
                self.write_error("flushing", e)
            })
    }

    /// Waits until a write has a memtable to go to.
    pub(super) fn wait_for_memtables(&self) -> Result<(), StoreError> {
        let background = &self.store.background;
        loop {
            let events = background.events();
            let of_damage = || self.store.damage.of(self.partition);
            let unmerged = background.failing_compaction().or_else(of_damage);
            if let Some(why) = unmerged
                && self.level0_files() >= MAX_LEVEL0_FILES
            {
                return Err(self.not_flushed(why));
            }
            if self.unflushed() < MAX_UNFLUSHED {
                return Ok(());
            }
            if let Some(why) = background.refusal() {
                return Err(self.not_flushed(why));
            }
            if self.flush_is_stuck() {
                // Another partition's flush has succeeded since this one's failed.
                self.begin_flush()?;
            }
            background.wait(events, Instant::now() + LOOK_INTERVAL);
        }
    }

    /// After a failed write: resumes RocksDB after an error, or begins another flush after a failed one,
    /// unless the back-off is not over.
    pub(crate) fn try_again(&self) -> Result<(), StoreError> {
        let background = &self.store.background;
        if !self.store.may_flush() {
            return Ok(());
        }
        let is_standing = background.state.lock().standing.is_some();
        if is_standing {
            let resumed = self.store.db.resume();
            return resumed.map_err(|e| {
                background.state.lock().retry.failed(Instant::now());
                self.write_error("resuming after an error", e)
            });
        }
        match self.flush_is_stuck() {
            true => self.begin_flush(),
            false => Ok(()),
        }
    }

    pub(super) fn not_flushed(&self, why: String) -> StoreError {
        StoreError::NotFlushed {
            path: self.store.path.to_path_buf(),
            partition: self.partition,
            why,
        }
    }
}

#[cfg(test)]
mod tests;
