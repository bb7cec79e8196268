//! Deleted data in files: its amount, and when files are rewritten because of it.

use std::time::{Duration, Instant};

/// Less than the set amount is reclaimed, too, if nothing was added for this long...
pub(super) const QUIET: Duration = Duration::from_secs(10);
/// ...and it is at least this many bytes.
pub(super) const LITTLE: u64 = 1 << 20;
/// The same as [`QUIET`] on a disk that is nearly full.
pub(super) const QUIET_IN_NEED: Duration = Duration::from_secs(1);
/// Longest pause after a failed rewriting. The first pause is [`QUIET`], and it doubles after each
/// further failure.
const LAST_RETRY: Duration = Duration::from_secs(300);

/// The deleted data in files.
pub(super) struct Garbage {
    /// Its approximate bytes.
    pub(super) bytes: u64,
    /// When it last grew.
    since: Instant,
    /// Bytes of the files at the last check, while there is garbage: what compactions have removed since
    /// then was garbage.
    files: u64,
    /// Whether the files were being rewritten then.
    pub(super) rewriting: bool,
    /// The next rewriting begins no sooner, because one has failed.
    not_before: Option<Instant>,
    /// How many rewritings have failed in a row.
    failures: u32,
}

impl Garbage {
    pub(super) fn none() -> Garbage {
        Garbage {
            bytes: 0,
            since: Instant::now(),
            files: 0,
            rewriting: false,
            not_before: None,
            failures: 0,
        }
    }

    /// Adds deleted bytes. `files` returns the bytes of all files.
    pub(super) fn add(&mut self, bytes: u64, files: impl FnOnce() -> u64) {
        if bytes == 0 {
            return;
        }
        if self.bytes == 0 {
            self.files = files();
        }
        self.bytes += bytes;
        self.since = Instant::now();
    }

    /// Records the present bytes of files. What a rewriting removes was subtracted when it began, and
    /// what was deleted since then is still in the files.
    pub(super) fn note_files(&mut self, files: u64, rewriting: bool) {
        if !rewriting && !self.rewriting {
            let merged = self.files.saturating_sub(files);
            self.bytes = self.bytes.saturating_sub(merged);
        }
        self.files = files;
        self.rewriting = rewriting;
    }

    /// Whether there is enough of it to rewrite files of `files` bytes. `free` has the free bytes of a
    /// disk with too few; there, less is enough if the rewritten files fit into them.
    pub(super) fn is_worth_it(
        &self,
        files: u64,
        set: u64,
        free: Option<u64>,
        now: Instant,
    ) -> bool {
        let quiet = now.saturating_duration_since(self.since);
        let is_due = self.not_before.is_none_or(|at| at <= now);
        let is_much = |time| self.bytes >= set || (self.bytes >= LITTLE && quiet >= time);
        let is_half = is_much(QUIET) && self.bytes >= files / 2;
        let stays = files.saturating_sub(self.bytes);
        let fits = free.is_some_and(|free| stays <= free) && is_much(QUIET_IN_NEED);
        is_due && (is_half || fits)
    }

    /// Records the beginning of a rewriting that removes all of it; returns its bytes.
    pub(super) fn rewrite(&mut self) -> u64 {
        self.rewriting = true;
        self.not_before = None;
        std::mem::take(&mut self.bytes)
    }

    /// Records the failure of a rewriting that was to remove so many bytes.
    pub(super) fn put_back(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        let pause = QUIET.saturating_mul(1 << self.failures.min(16));
        self.not_before = Some(now + pause.min(LAST_RETRY));
        self.failures = self.failures.saturating_add(1);
    }

    /// Records the success of a rewriting.
    pub(super) fn rewritten(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deleted_while_files_are_rewritten_is_left_to_the_next_rewriting() {
        let mut garbage = Garbage::none();
        garbage.add(120, || 160);
        garbage.note_files(160, false);
        assert_eq!(garbage.bytes, 120);
        garbage.rewrite();
        garbage.add(40, || 160);
        garbage.note_files(160, true);
        // The rewriting ends: of 160 bytes, 40 are left, all of them deleted by now.
        garbage.note_files(40, false);
        assert_eq!(garbage.bytes, 40);
        // What compactions remove counts.
        garbage.note_files(25, false);
        assert_eq!(garbage.bytes, 25);
    }

    #[test]
    fn a_rewriting_that_fails_forgets_nothing_and_is_tried_again_after_a_while() {
        let started = Instant::now();
        let mut garbage = Garbage::none();
        garbage.add(120, || 160);
        assert!(garbage.is_worth_it(160, 100, None, started));
        let mut at = started;
        // The pause grows with each failure, and begins again after a success.
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            let left_in = garbage.rewrite();
            garbage.note_files(160, true);
            garbage.put_back(left_in, at);
            garbage.note_files(160, false);
            assert_eq!(garbage.bytes, 120);
            let next = at + Duration::from_secs(seconds);
            assert!(!garbage.is_worth_it(160, 100, None, next - Duration::from_millis(1)));
            assert!(garbage.is_worth_it(160, 100, None, next));
            at = next;
        }
        garbage.rewrite();
        garbage.rewritten();
        garbage.put_back(120, at);
        assert!(garbage.is_worth_it(160, 100, None, at + QUIET));
    }

    #[test]
    fn on_a_nearly_full_disk_files_are_rewritten_for_little_if_what_stays_fits() {
        let started = Instant::now();
        let mut garbage = Garbage::none();
        let files = 100 * LITTLE;
        garbage.add(30 * LITTLE, || files);
        let later = garbage.since + QUIET_IN_NEED;
        let set = 64 * LITTLE;
        assert!(
            !garbage.is_worth_it(files, set, None, later + QUIET),
            "less than half"
        );
        assert!(garbage.is_worth_it(files, set, Some(70 * LITTLE), later));
        assert!(
            !garbage.is_worth_it(files, set, Some(70 * LITTLE), started),
            "not quiet yet"
        );
        assert!(
            !garbage.is_worth_it(files, set, Some(70 * LITTLE - 1), later),
            "no room"
        );
    }

    #[test]
    fn garbage_added_after_a_rewriting_that_nobody_looked_at_since_is_counted_whole() {
        let mut garbage = Garbage::none();
        garbage.add(120, || 160);
        garbage.rewrite();
        // The rewriting has ended before more is deleted.
        garbage.add(30, || 40);
        garbage.note_files(40, false);
        assert_eq!(garbage.bytes, 30);
    }
}
