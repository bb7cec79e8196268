//! One partition as the keeper of the log sees it: what of it is durable, and whether it has to be flushed.

use std::time::{Duration, Instant};

use esker_partition::command::Outcome;
use esker_partition::store::PartitionDb;
use esker_raft::{Group, GroupStatus, Lsn};

use crate::core::Inner;
use crate::local_snapshot_request::LocalSnapshotRequest;
use crate::log_files::Wanted;

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

/// Shortest interval of local snapshots that replace one which holds space of a nearly full disk.
const RELEASE_INTERVAL: Duration = Duration::from_secs(10);

/// A partition.
pub(super) struct Watched {
    pub(super) group: Group<Outcome>,
    pub(super) part: PartitionDb,
    /// Most entries that may wait to be flushed.
    most: u64,
    durable: Lsn,
    since: Instant,
    /// Whether it was not checked since the start.
    is_new: bool,
    /// Whether its damage was written down.
    pub(super) is_damaged: bool,
    /// Whether its memtables needed to be flushed and nothing flushed them, at the last check.
    was_stuck: bool,
    /// When a local snapshot was last requested to free space.
    released: Option<Instant>,
    /// The local snapshot that is requested to trim the log or to free space.
    pub(super) request: LocalSnapshotRequest,
    /// What the group was like at the last inspection, if that left nothing to do.
    at_rest: Option<GroupStatus>,
}

/// What is applied and not in files.
struct Unflushed {
    entries: u64,
    bytes: u64,
    /// Since the last flush.
    age: Duration,
}

impl Unflushed {
    /// Whether there is so much of it, or it is so old, that it is flushed.
    fn is_due(&self, most_entries: u64, most_bytes: u64, is_short: bool) -> bool {
        let most_age = match is_short {
            true => FLUSH_INTERVAL_IN_NEED,
            false => FLUSH_AFTER,
        };
        let is_large = self.entries > most_entries || self.bytes > most_bytes;
        self.entries > 0 && (is_large || self.age > most_age)
    }
}

pub(super) fn watch_all(inner: &Inner) -> Vec<Watched> {
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
            at_rest: None,
        })
        .collect()
}

impl Watched {
    pub(super) fn wanted(&self) -> Wanted {
        let status = self.group.status();
        Wanted {
            start: status.log_start.0,
            last: status.last.0,
            bytes: status.log_bytes,
        }
    }

    /// Requests a local snapshot, unless one is under way or has just failed.
    pub(super) fn ask_for_snapshot(&mut self, in_need: bool) {
        let group = &self.group;
        self.request
            .ask(Instant::now(), in_need, || group.snapshot());
    }

    /// On a nearly full disk, replaces a local snapshot that holds files which the database has removed.
    pub(super) fn release_space(&mut self, inner: &Inner) {
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

    /// Whether nothing has changed since an inspection that left nothing to do. This looks at what is in memory
    /// alone.
    pub(super) fn is_at_rest(&self) -> bool {
        self.at_rest
            .is_some_and(|status| status == self.group.status())
    }

    /// Flushes the partition if that is due, and publishes its gauges.
    pub(super) fn inspect(&mut self, flush_after: u64, is_short: bool) {
        let status = self.group.status();
        self.note_durable(status.applied);
        let waiting = status.applied.0.saturating_sub(self.durable.0);
        let most = if std::mem::take(&mut self.is_new) {
            FLUSH_REPLAYED_ENTRIES
        } else {
            self.most
        };
        // A flush has failed, or is about to begin.
        let is_stuck = self.part.flush_is_stuck();
        let was_stuck = std::mem::replace(&mut self.was_stuck, is_stuck);
        let unflushed = Unflushed {
            entries: waiting,
            bytes: self.part.memtable_bytes(),
            age: self.since.elapsed(),
        };
        let due = unflushed.is_due(most, flush_after, is_short) || (is_stuck && was_stuck);
        // The database reports a failed flush, and decides when it may be retried.
        if due && self.part.may_flush() && self.part.flush().is_ok() {
            self.note_durable(status.applied);
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
        let is_done = self.durable >= status.applied && !is_stuck;
        self.at_rest = is_done.then_some(status);
    }

    fn note_durable(&mut self, applied: Lsn) {
        match self.part.durable_as_of(applied.0) {
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
    pub(super) fn report_damage(&mut self, inner: &Inner) {
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
    fn what_is_applied_is_flushed_a_minute_later_at_the_latest_and_sooner_where_space_is_short() {
        let is_due = |entries, bytes, seconds, is_short| {
            let age = Duration::from_secs(seconds);
            let unflushed = Unflushed {
                entries,
                bytes,
                age,
            };
            unflushed.is_due(100, 1000, is_short)
        };
        // A single small entry, of a node that is idle since.
        assert!(!is_due(1, 10, 59, false));
        assert!(is_due(1, 10, 61, false));
        assert!(!is_due(1, 10, 1, true));
        assert!(is_due(1, 10, 2, true));
        // Many entries, or many bytes, at once.
        assert!(!is_due(100, 1000, 0, false));
        assert!(is_due(101, 10, 0, false));
        assert!(is_due(1, 1001, 0, false));
        // Nothing, however long ago.
        assert!(!is_due(0, 1001, 1000, true));
    }
}
