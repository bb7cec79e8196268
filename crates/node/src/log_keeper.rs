//! Bounds replay and the log: flushes the database, deletes log files that no group needs, and trims the log
//! to its bound.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use esker_partition::command::Outcome;
use esker_partition::store::PartitionDb;
use esker_raft::{Group, Lsn};

use crate::core::Inner;
use crate::local_snapshot_request::{LocalSnapshotRequest, SpaceWatch};
use crate::log_files::{AtOpen, LogFiles, Wanted, many_bytes};
use crate::signal::Signal;
use crate::snapshots::{OnLogFull, publish};

/// Interval at which the log is checked.
const LOG_INTERVAL: Duration = Duration::from_millis(250);
/// The same while appends wait for it. Changes are then acted on at once; everything else happens at the
/// same interval as before.
const LOG_INTERVAL_IN_NEED: Duration = Duration::from_millis(10);
/// A partition whose log has this many entries that are not flushed is flushed, even if they are small: a
/// restart replays several hundred thousand a second.
const FLUSH_AFTER_ENTRIES: u64 = 100_000;
/// The same for the partition of the state store: replaying a commit reads its keys and writes four rows,
/// some 20 µs, and must not take a start more than a tenth of a second. A flush of so many is some 2 MiB.
const FLUSH_AFTER_COMMITS: u64 = 5_000;
/// The same for what a start has replayed: a node that is killed repeatedly must not replay more each time.
const FLUSH_REPLAYED_ENTRIES: u64 = 5_000;
/// Applied entries are flushed after this long at the latest, so that an idle node restarts at once.
const FLUSH_AFTER: Duration = Duration::from_secs(60);

/// The same on a nearly full disk: files that hold only deleted entries are removed once the deletion is
/// durable.
const FLUSH_INTERVAL_IN_NEED: Duration = Duration::from_secs(1);

/// Interval at which the gauges are published.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);
/// Shortest interval of local snapshots that replace one which holds space of a nearly full disk.
const RELEASE_INTERVAL: Duration = Duration::from_secs(10);
/// Interval at which a log that exceeds its bound is trimmed again.
const TRIM_INTERVAL: Duration = Duration::from_secs(2);
/// A log that still exceeds its bound after this long is no longer kept for archived snapshots: a new
/// snapshot is put as soon as the log exceeds its bound, and is usually archived by then.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(6);
/// The same while appends wait, which they do for 4 s at most.
const ARCHIVE_TIMEOUT_IN_NEED: Duration = Duration::from_secs(2);

struct Watched {
    group: Group<Outcome>,
    part: PartitionDb,
    /// Most entries that may wait to be flushed.
    most: u64,
    durable: Lsn,
    since: Instant,
    /// Whether it was not checked since the start.
    is_new: bool,
    /// Whether its damage was written down.
    is_damaged: bool,
    /// Whether its memtables needed to be flushed and nothing flushed them, at the last check.
    was_stuck: bool,
    /// When a local snapshot was last requested to free space.
    released: Option<Instant>,
    /// The local snapshot that is requested to trim the log or to free space.
    request: LocalSnapshotRequest,
}

/// The state of the thread.
struct LogKeeper {
    watched: Vec<Watched>,
    files: LogFiles,
    at_open: AtOpen,
    /// The space on the disk, as this thread has read it. Appends check the disk as well, and have their own
    /// state.
    space: SpaceWatch,
    /// Since when the log has exceeded its bound.
    over: Option<Over>,
    /// When the gauges were last published.
    published: Option<Instant>,
    /// When partitions were last checked.
    looked: Throttle<()>,
    /// When the log's files were last listed, and which files raft-engine reported then.
    listed: Throttle<(u64, u64)>,
    /// When files were last deleted, and which entries were needed then.
    purged: Throttle<((u64, u64), Vec<u64>)>,
    /// Whether the last listing failed.
    is_unlisted: bool,
}

/// An action that is due at an interval, and at once if its input has changed.
#[derive(Debug)]
struct Throttle<T> {
    last: Option<(T, Instant)>,
}

impl<T: PartialEq> Throttle<T> {
    fn new() -> Throttle<T> {
        Throttle { last: None }
    }

    /// Whether the action is due; if so, it counts as done.
    fn is_due(&mut self, what: T, now: Instant) -> bool {
        let is_as_before = |(before, at): &(T, Instant)| {
            *before == what && now.saturating_duration_since(*at) < LOG_INTERVAL
        };
        let is_due = !self.last.as_ref().is_some_and(is_as_before);
        if is_due {
            self.last = Some((what, now));
        }
        is_due
    }
}

/// A log that exceeds its bound.
#[derive(Clone, Copy)]
struct Over {
    since: Instant,
    trimmed: Instant,
    /// Whether it is trimmed to what the node itself needs, and not kept for archived snapshots.
    past_archived: bool,
}

/// The main function of the thread.
pub(crate) fn keep_log_short(inner: &Weak<Inner>, signal: &Signal) {
    let mut keeper: Option<LogKeeper> = None;
    loop {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let keeper = keeper.get_or_insert_with(|| LogKeeper::new(&inner));
        // Even while appends wait for the log, because a flush may allow it to be trimmed.
        if keeper.looked.is_due((), Instant::now()) {
            inner.space.reserve.look();
            let is_short = inner.check_free_space().is_some();
            let has_more = keeper.space.has_more(is_short, inner.releases());
            inner.keep_reserve();
            for one in &mut keeper.watched {
                if has_more {
                    one.request.forget_failures();
                }
                if inner.is_reserve_wanted(&one.part) {
                    inner.release_reserve();
                }
                one.inspect(inner.options.flush_after, inner.is_short());
                one.report_damage(&inner);
                one.release_space(&inner);
            }
        }
        keeper.delete_files(&inner);
        // In this order, so that bytes that are written in between count twice rather than never.
        let counts = inner.raft.writer().counts();
        keeper.list_files(&inner, counts.bytes);
        let log_bytes = inner.log_bytes();
        keeper.keep_within_bound(&inner, log_bytes);
        metrics::counter!("esker_log_write_groups_total").absolute(counts.groups);
        metrics::counter!("esker_log_requests_total").absolute(counts.requests);
        metrics::counter!("esker_log_written_bytes_total").absolute(counts.bytes);
        metrics::gauge!("esker_log_files_bytes").set(log_bytes as f64);
        let free = inner.admission.available_permits();
        let used = inner.options.append_inflight.saturating_sub(free);
        metrics::gauge!("esker_append_inflight_bytes").set(used as f64);
        let (tokens, suspended) = inner.catalog_reader.count_tokens();
        metrics::gauge!("esker_access_tokens").set(tokens as f64);
        metrics::gauge!("esker_access_tokens_suspended").set(suspended as f64);
        let waiting = inner.partitions.iter().map(|p| p.gate.waiting());
        metrics::gauge!("esker_append_waiting").set(waiting.sum::<usize>() as f64);
        if keeper
            .published
            .is_none_or(|at| at.elapsed() >= PUBLISH_EVERY)
        {
            keeper.published = Some(Instant::now());
            publish(&inner.recovery_status());
        }
        let interval = match inner.log_is_over() {
            true => LOG_INTERVAL_IN_NEED,
            false => LOG_INTERVAL,
        };
        drop(inner);
        if !signal.wait(interval) {
            return;
        }
    }
}

fn watch_all(inner: &Inner) -> Vec<Watched> {
    let catalog = (
        inner.catalog.clone(),
        inner.catalog_reader.partition_db().clone(),
    );
    let streams = inner
        .partitions
        .iter()
        .map(|p| (p.group.clone(), p.reader.partition_db().clone()));
    std::iter::once(catalog)
        .chain(streams)
        .map(|(group, part)| Watched {
            most: match part.partition() == inner.state.partition {
                true => FLUSH_AFTER_COMMITS,
                false => FLUSH_AFTER_ENTRIES,
            },
            group,
            part,
            durable: Lsn(0),
            since: Instant::now(),
            is_new: true,
            is_damaged: false,
            was_stuck: false,
            released: None,
            request: LocalSnapshotRequest::default(),
        })
        .collect()
}

impl LogKeeper {
    fn new(inner: &Inner) -> LogKeeper {
        let watched = watch_all(inner);
        let wanted: Vec<Wanted> = watched.iter().map(Watched::wanted).collect();
        let many = many_bytes(inner.options.snapshots.max_log_bytes, watched.len());
        LogKeeper {
            watched,
            files: LogFiles::new(many),
            at_open: AtOpen::new(inner.log_bytes(), &wanted),
            space: SpaceWatch::default(),
            over: None,
            published: None,
            looked: Throttle::new(),
            listed: Throttle::new(),
            purged: Throttle::new(),
            is_unlisted: false,
        }
    }

    fn wanted(&self) -> Vec<Wanted> {
        let watched = self.watched.iter().enumerate();
        watched
            .map(|(at, one)| self.at_open.with_old(at, one.wanted()))
            .collect()
    }

    /// Deletes files of the log that no group needs: at once if that is free, otherwise once the log is
    /// larger than its threshold.
    fn delete_files(&mut self, inner: &Inner) {
        let span = inner.raft.log().file_span();
        let wanted = self.wanted();
        self.files.note(span, &wanted);
        let log = inner.raft.log();
        let threshold = if self.files.are_oldest_free(span, &wanted) {
            log.config().segment_size
        } else if self.files.may_delete(span, &wanted) {
            log.config().purge_threshold
        } else {
            return;
        };
        let starts = wanted.iter().map(|one| one.start).collect();
        if !self.purged.is_due((span, starts), Instant::now()) {
            return;
        }
        match log.purge_beyond(threshold) {
            Ok(held_by) => {
                for one in &self.watched {
                    if held_by.contains(&one.group.id()) {
                        // A newer local snapshot releases the older entries.
                        drop(one.group.snapshot());
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "log files were not deleted"),
        }
    }

    /// Measures the log on disk. If that fails, the last measurement stays.
    fn list_files(&mut self, inner: &Inner, written: u64) {
        let span = inner.raft.log().file_span();
        if !self.listed.is_due(span, Instant::now()) {
            return;
        }
        match inner.raft.log().used_bytes() {
            Ok(bytes) => {
                self.is_unlisted = false;
                inner.note_log(bytes, written);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_unlisted, true) {
                    tracing::warn!(%error, "how large the log is cannot be known now");
                }
            }
        }
    }

    /// Acts on a log that exceeds its bound: it is no longer kept for archived snapshots, or appends are
    /// refused.
    fn keep_within_bound(&mut self, inner: &Inner, log_bytes: u64) {
        let full = log_bytes > inner.log_most();
        let refuses = full && inner.options.snapshots.on_log_full == OnLogFull::RefuseAppends;
        if inner.refuses_appends.swap(refuses, Ordering::Relaxed) != refuses {
            match refuses {
                true => tracing::error!(
                    log_bytes,
                    "the log is larger than max-log-bytes: appends are refused until a snapshot is archived"
                ),
                false => tracing::info!("appends are taken again"),
            }
        }
        if !full {
            self.over = None;
            return;
        }
        let in_need = inner.log_is_over();
        let now = Instant::now();
        let is_first = self.over.is_none();
        let over = self.over.get_or_insert(Over {
            since: now,
            trimmed: now,
            past_archived: false,
        });
        let is_due = is_first || in_need || over.trimmed.elapsed() >= TRIM_INTERVAL;
        if refuses || !is_due {
            return;
        }
        over.trimmed = now;
        // First it is trimmed up to the newest archived snapshot, and a new one is about to be put; if that
        // is not enough, as far as the local ones allow.
        let timeout = match in_need {
            true => ARCHIVE_TIMEOUT_IN_NEED,
            false => ARCHIVE_TIMEOUT,
        };
        let was_past_archived = over.past_archived;
        over.past_archived |= over.since.elapsed() >= timeout;
        let past_archived = over.past_archived;
        for (partition, one) in (0..).zip(&mut self.watched) {
            if one.is_damaged {
                // The partition may be recovered from a copy that is older than the newest local snapshot.
                continue;
            }
            let known = inner.snapshots.known[partition].lock();
            let archived = known.newest().map_or(0, |n| n.lsn);
            let past_archived = past_archived || known.failure.is_some();
            drop(known);
            let status = one.group.status();
            let keep = match past_archived {
                true => status.applied,
                false => Lsn(archived),
            };
            one.group.keep_from(keep);
            if status.floor < keep {
                one.ask_for_snapshot(in_need);
            }
        }
        inner.snapshots.wake.notify_one();
        if is_first || past_archived != was_past_archived {
            tracing::warn!(
                log_bytes,
                max_log_bytes = inner.options.snapshots.max_log_bytes,
                "{}",
                match past_archived {
                    true =>
                        "the log is still larger than max-log-bytes and is trimmed to what the node needs: archived snapshots can be restored, and not brought up to date from it",
                    false =>
                        "the log is larger than max-log-bytes and is trimmed: older archived snapshots can be restored, and not brought up to date from it",
                }
            );
        }
    }
}

impl Watched {
    fn wanted(&self) -> Wanted {
        let status = self.group.status();
        Wanted {
            start: status.log_start.0,
            last: status.last.0,
            bytes: status.log_bytes,
        }
    }

    /// Requests a local snapshot, unless one is under way or has just failed.
    fn ask_for_snapshot(&mut self, in_need: bool) {
        let group = &self.group;
        self.request
            .ask(Instant::now(), in_need, || group.snapshot());
    }

    /// On a nearly full disk, replaces a local snapshot that holds files which the database has removed.
    fn release_space(&mut self, inner: &Inner) {
        let partition = self.group.id().0;
        let Some(held) = inner.snapshots.local.newest(partition) else {
            return;
        };
        let is_due = self
            .released
            .is_none_or(|at| at.elapsed() >= RELEASE_INTERVAL);
        if is_due && inner.could_release(partition, held.checkpoint.bytes()) {
            self.released = Some(Instant::now());
            self.ask_for_snapshot(inner.log_is_over());
            inner.snapshots.wake.notify_one();
        }
    }

    fn inspect(&mut self, flush_after: u64, is_short: bool) {
        self.note_durable();
        let status = self.group.status();
        let waiting = status.applied.0.saturating_sub(self.durable.0);
        let most = if std::mem::take(&mut self.is_new) {
            FLUSH_REPLAYED_ENTRIES
        } else {
            self.most
        };
        // A flush has failed, or is about to begin.
        let is_stuck = self.part.flush_is_stuck();
        let was_stuck = std::mem::replace(&mut self.was_stuck, is_stuck);
        let due = waiting > most
            || (is_stuck && was_stuck)
            || (waiting > 0
                && (self.part.memtable_bytes() > flush_after
                    || self.since.elapsed() > FLUSH_AFTER
                    || (is_short && self.since.elapsed() > FLUSH_INTERVAL_IN_NEED)));
        // The database reports a failed flush, and decides when it may be retried.
        if due && self.part.may_flush() && self.part.flush().is_ok() {
            self.note_durable();
        }
        let partition = self.group.id().to_string();
        let gauge = |name: &'static str, value: u64| {
            metrics::gauge!(name, "partition" => partition.clone()).set(value as f64);
        };
        gauge("esker_partition_halted", u64::from(status.halted));
        gauge("esker_partition_last_lsn", status.last.0);
        gauge("esker_partition_applied_lsn", status.applied.0);
        gauge("esker_partition_durable_lsn", self.durable.0);
        gauge("esker_partition_floor_lsn", status.floor.0);
        gauge("esker_partition_log_entries", status.log_entries);
        gauge("esker_partition_files_bytes", self.part.file_bytes());
        gauge("esker_partition_memtable_bytes", self.part.memtable_bytes());
    }

    fn note_durable(&mut self) {
        match self.part.durable() {
            Ok(durable) => {
                let durable = Lsn(durable.map_or(0, |d| d.lsn));
                if durable > self.durable {
                    self.durable = durable;
                    self.since = Instant::now();
                }
            }
            Err(error) => tracing::warn!(%error, "what is durable cannot be read; the log is kept"),
        }
    }

    /// Notes damage durably, so that the next start does not use the files.
    fn report_damage(&mut self, inner: &Inner) {
        if self.is_damaged {
            return;
        }
        let partition = self.group.id().0;
        let Some(why) = inner.damage(partition) else {
            return;
        };
        match inner.data_dir.report_damage(partition, &why) {
            Ok(()) => {
                self.is_damaged = true;
                tracing::error!(
                    partition,
                    why,
                    "a file of the database is damaged: the partition is recovered from a copy and the log by a restart"
                );
                if let Err(error) = self.part.stop_merging() {
                    tracing::warn!(partition, %error, "the damaged files are still merged, in vain");
                }
            }
            Err(error) => {
                tracing::error!(partition, why, %error, "a file of the database is damaged, and that cannot be written down")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_appends_wait_what_has_not_changed_is_looked_at_as_often_as_otherwise() {
        let started = Instant::now();
        let mut throttle = Throttle::new();
        let looks = 1000 / LOG_INTERVAL_IN_NEED.as_millis() as u32;
        let due =
            (0..looks).filter(|look| throttle.is_due(1, started + *look * LOG_INTERVAL_IN_NEED));
        assert_eq!(due.count(), 4);
        let last = started + looks * LOG_INTERVAL_IN_NEED;
        assert!(throttle.is_due(2, last), "something has changed");
        assert!(!throttle.is_due(2, last));
    }
}
