//! The load after the newest snapshots, and the facts that decide whether one is due.

use std::time::Duration;

use esker_raft::Lsn;

use super::OnLogFull;
use super::schedule::Facts;
use crate::clock::past_age;
use crate::core::Inner;

/// Entries that are read at most to find out whether they change anything.
const FEW_ENTRIES: u64 = 64;

/// What all partitions together have that the repository lacks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// How long it would take to replay it.
    replay: Duration,
    /// The partition with the most such entries.
    largest: u64,
    /// Whether the log exceeds its bound, or takes space that a nearly full disk needs.
    log_full: bool,
    /// The partition for which most of the log is kept, if the log is full and must not be trimmed.
    holds_log: Option<u64>,
}

impl Inner {
    /// Counts the entries after the newest snapshot that change nothing: each start appends one.
    pub(super) fn count_empty(&self, partition: u64, newest: u64) -> u64 {
        let group = self.group(partition);
        let status = group.status();
        let last = status.last.0;
        let (low, high) = (Lsn(newest + 1), Lsn(last + 1));
        let few = last.saturating_sub(newest) <= FEW_ENTRIES;
        // Entries that cannot be read count as if they changed something, and so do those that are not in the log any
        // more.
        match few && last > newest && status.log_start.0 <= newest {
            true => self
                .raft
                .log()
                .count_empty(group.id(), low, high)
                .unwrap_or(0),
            false => 0,
        }
    }

    /// Whether the log begins after the oldest retained snapshot of the current lineage. The log of a new
    /// lineage begins at its fork. Older snapshots do not reach the present because of the restore, and not
    /// because of the log's bound, so they are not considered.
    pub(super) fn is_log_trimmed(&self, partition: u64) -> bool {
        // Where the lineage cannot be read now, nothing is known.
        let Ok(lineage) = self.partition_db(partition).lineage() else {
            return false;
        };
        let forked_at = match lineage.forks {
            0 => 0,
            _ => lineage.fork_lsn,
        };
        let log_start = self.group(partition).status().log_start;
        let known = self.snapshots.known[partition as usize].lock();
        let mut oldest_first = known.retained.iter().rev();
        let oldest = oldest_first.find(|one| one.lsn >= forked_at);
        oldest.is_some_and(|oldest| oldest.lsn < log_start.0)
    }

    /// The facts that decide whether a snapshot of the partition is due.
    pub(super) fn facts(&self, partition: u64, load: Load) -> Facts {
        let known = self.snapshots.known[partition as usize].lock();
        let status = self.group(partition).status();
        let newest = known.newest();
        let lsn = newest.map_or(0, |n| n.lsn);
        // A time in the future means that a clock was wrong: the age is unknown, and the next snapshot is
        // due.
        let age = newest.map_or(Duration::ZERO, |n| {
            past_age(n.created_at).unwrap_or(Duration::MAX)
        });
        let asked = !known.waiting.is_empty();
        let empty = known.empty_entries();
        let newest_bytes = known.newest_bytes;
        // Snapshots that a new lineage shares with its parent do not count as its own: if this disk is lost
        // as well, no copy would be of the repository's lineage.
        let part = self.partition_db(partition);
        // The entry that records the newest snapshot is not a reason for another one.
        let applied = part.applied_as_of(status.applied.0).ok().flatten();
        let archived = applied.and_then(|applied| applied.archived);
        let noted = u64::from(archived.is_some_and(|archived| archived.noted_at > lsn + empty));
        let lineage = part.lineage().ok();
        let forked_at = lineage.filter(|l| l.forks > 0).map(|l| l.fork_lsn);
        let none = newest.is_none_or(|n| forked_at.is_some_and(|lsn| n.lsn <= lsn));
        drop(known);
        let is_largest = load.largest == partition;
        Facts {
            asked,
            none,
            needed: partition == 0 && self.is_catalog_needed(),
            entries: status.applied.0.saturating_sub(lsn + empty + noted),
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

    /// Computes the load over all partitions.
    pub(super) fn load(&self) -> Load {
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
            // Entries that only separate snapshots do not justify another snapshot.
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

    /// Number of entries of a partition after an LSN, and roughly their bytes.
    pub(crate) fn after(&self, partition: u64, lsn: u64) -> (u64, u64) {
        let status = self.group(partition).status();
        let entries = status.last.0.saturating_sub(lsn);
        let bytes = match status.log_entries {
            0 => 0,
            all => (status.log_bytes as f64 * (entries.min(all) as f64 / all as f64)) as u64,
        };
        (entries, bytes)
    }

    /// Whether the log exceeds its bound.
    pub(crate) fn log_is_full(&self) -> bool {
        self.log_bytes() > self.log_most()
    }

    /// Whether the log is larger than necessary and the disk nearly full: after a snapshot the log can be
    /// trimmed, if the snapshot takes no space on the same disk.
    fn log_holds_space(&self) -> bool {
        let least = self.options.log_purge_threshold + 2 * self.options.log_segment_size;
        let is_elsewhere = !self.snapshots.archive.is_default;
        self.is_short() && is_elsewhere && self.log_bytes() > least
    }
}
