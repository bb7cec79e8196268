//! Bounds replay and the log: flushes the database, deletes log files that no group needs, and trims the log
//! to its bound.
//!
//! A partition of which nothing has changed since it was last inspected, and of which everything is durable, is
//! at rest: its database is not read. A few of those are inspected at each round all the same, in turns, for
//! what changes without an entry of the log, such as files that are rewritten. So an idle node reads as much
//! with a thousand partitions as with twenty.

mod watched;

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use esker_raft::Lsn;

use crate::core::Inner;
use crate::local_snapshot_request::SpaceWatch;
use crate::log_files::{AtOpen, LogFiles, Wanted, many_bytes};
use crate::signal::Signal;
use crate::snapshots::{OnLogFull, publish};
use watched::{Watched, watch_all};

/// Interval at which the log is checked.
const LOG_INTERVAL: Duration = Duration::from_millis(250);
/// The same while appends wait for it. Changes are then acted on at once; everything else happens at the
/// same interval as before.
const LOG_INTERVAL_IN_NEED: Duration = Duration::from_millis(10);
/// Partitions at rest that one round inspects: their gauges are at most 16 s old with a thousand partitions.
pub(crate) const INSPECTED_AT_REST: usize = 16;
/// Interval at which the gauges of the predictions are published...
const PUBLISH_EVERY: Duration = Duration::from_secs(1);
/// ...and what each partition adds to it, so that it takes no more of a processor the more there are: some
/// 10 µs a partition.
const PUBLISH_PAUSE: Duration = Duration::from_millis(4);
/// Interval at which a log that exceeds its bound is trimmed again.
const TRIM_INTERVAL: Duration = Duration::from_secs(2);
/// A log that still exceeds its bound after this long is no longer kept for archived snapshots: a new
/// snapshot is put as soon as the log exceeds its bound, and is usually archived by then.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(6);
/// The same while appends wait, which they do for 4 s at most.
const ARCHIVE_TIMEOUT_IN_NEED: Duration = Duration::from_secs(2);

/// The state of the thread.
struct LogKeeper {
    watched: Vec<Watched>,
    files: LogFiles,
    at_open: AtOpen,
    /// The space on the disk, as this thread has read it. Appends check the disk as well, and have their own
    /// state.
    space: SpaceWatch,
    /// The first partition that is inspected next although it is at rest.
    turn: usize,
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
    /// When members that are away were last given up, because the log is full or the disk nearly so.
    given_up: Option<Instant>,
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
            keeper.give_up_absent_in_need(is_short, Instant::now());
            keeper.inspect(&inner, has_more);
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
            .is_none_or(|at| at.elapsed() >= publish_interval(keeper.watched.len()))
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

/// Keeps nothing of the log any more for members that are away: they get snapshots.
fn give_up_absent(watched: &[Watched]) {
    for one in watched {
        one.group.give_up_absent();
    }
}

/// Whether what gives space back is due again, once in [`TRIM_INTERVAL`] while space is short; if so, it counts as done.
fn is_due_in_need(last: &mut Option<Instant>, is_short: bool, now: Instant) -> bool {
    let is_due = is_short && last.is_none_or(|at| now.duration_since(at) >= TRIM_INTERVAL);
    if is_due {
        *last = Some(now);
    }
    is_due
}

fn publish_interval(partitions: usize) -> Duration {
    PUBLISH_EVERY + PUBLISH_PAUSE * u32::try_from(partitions).unwrap_or(u32::MAX)
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
            turn: 0,
            over: None,
            published: None,
            looked: Throttle::new(),
            listed: Throttle::new(),
            purged: Throttle::new(),
            given_up: None,
            is_unlisted: false,
        }
    }

    /// While the disk is nearly full, nothing of the log is kept for members that are away: as appends are refused, the
    /// log does not grow, and nothing else would end that.
    fn give_up_absent_in_need(&mut self, is_short: bool, now: Instant) {
        if is_due_in_need(&mut self.given_up, is_short, now) {
            give_up_absent(&self.watched);
        }
    }

    /// Inspects the partitions of which something may have changed, and some of the others.
    fn inspect(&mut self, inner: &Inner, has_more: bool) {
        let count = self.watched.len();
        let turn = self.turn;
        self.turn = (turn + INSPECTED_AT_REST) % count.max(1);
        // Then there may be something to do for every partition.
        let is_in_need = inner.is_short() || inner.store.write_failure().is_some();
        let is_damaged = inner.store.is_damaged();
        let mut inspected = 0;
        for (at, one) in self.watched.iter_mut().enumerate() {
            if has_more {
                one.request.forget_failures();
            }
            let has_turn = (at + count - turn) % count < INSPECTED_AT_REST;
            if !is_in_need && !has_turn && one.is_at_rest() {
                if is_damaged {
                    one.report_damage(inner);
                }
                continue;
            }
            inspected += 1;
            if inner.is_reserve_wanted(&one.part) {
                inner.release_reserve();
            }
            one.inspect(inner.options.flush_after, inner.is_short());
            one.report_damage(inner);
            one.release_space(inner);
        }
        inner.upkeep.inspected(inspected);
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

    /// Requests local snapshots of the partitions whose log has entries that the repository covers. A member that
    /// follows puts nothing into the repository, so nothing else makes it take one before appends are taken again.
    fn release_archived(&mut self, inner: &Inner, in_need: bool) {
        for (partition, one) in (0..).zip(&mut self.watched) {
            let kept_from = inner.snapshots.known[partition].lock().log_kept_from();
            let status = one.group.status();
            // A damaged partition may be recovered from an older copy, which needs the entries.
            if !one.is_damaged && status.floor < status.applied.min(Lsn(kept_from)) {
                one.ask_for_snapshot(in_need);
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
        if !is_due {
            return;
        }
        over.trimmed = now;
        // Not each time: while appends wait, that is a hundred times a second for each partition.
        if is_due_in_need(&mut self.given_up, full, now) {
            give_up_absent(&self.watched);
        }
        if refuses {
            self.release_archived(inner, in_need);
            return;
        }
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
            let archived = known.archived_up_to();
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

    #[test]
    fn who_is_away_is_given_up_again_and_again_while_the_disk_is_nearly_full() {
        let started = Instant::now();
        let mut last = None;
        let mut given_up = |looks: std::ops::Range<u32>, is_short: bool| {
            let looks = looks.map(|look| started + look * LOG_INTERVAL);
            looks
                .filter(|now| is_due_in_need(&mut last, is_short, *now))
                .count()
        };
        assert_eq!(given_up(0..40, false), 0);
        assert_eq!(given_up(40..41, true), 1, "at once");
        // Of ten seconds.
        assert_eq!(given_up(41..81, true), 5, "who leaves later, too");
        assert_eq!(given_up(81..120, false), 0);
        assert_eq!(given_up(120..121, true), 1);
    }
}
