//! Deleted data that files hold: how much it is, and when it is worth rewriting the files.

use std::time::{Duration, Instant};

/// What is reclaimable and less than the set amount goes when nothing was added for so long...
const QUIET: Duration = Duration::from_secs(10);
/// ...and it is at least this many bytes.
const LITTLE: u64 = 1 << 20;
/// The same for little of it on a disk that is nearly full.
const QUIET_IN_NEED: Duration = Duration::from_secs(1);
/// After a rewriting that failed, the next one begins no sooner than [`QUIET`], twice as long after each
/// further failure, and this at most.
const LAST_RETRY: Duration = Duration::from_secs(300);

/// Deleted data that files hold.
pub(super) struct Garbage {
    /// Its bytes, roughly.
    pub(super) bytes: u64,
    /// When that last became more.
    since: Instant,
    /// Bytes of files when that was last looked at, while there is garbage: what merges have made less
    /// of was some of it.
    files: u64,
    /// Whether the files were being rewritten then.
    pub(super) rewriting: bool,
    /// After a rewriting that failed, the next one begins no sooner.
    not_before: Option<Instant>,
    /// How many have failed in a row.
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

    /// So much more was deleted, of files that have so many bytes.
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

    /// Files have so many bytes now. What a rewriting has made less of was counted out when it began:
    /// what was deleted since then is still there.
    pub(super) fn note_files(&mut self, files: u64, rewriting: bool) {
        if !rewriting && !self.rewriting {
            let merged = self.files.saturating_sub(files);
            self.bytes = self.bytes.saturating_sub(merged);
        }
        self.files = files;
        self.rewriting = rewriting;
    }

    /// Whether there is so much that files of `files` bytes are to be rewritten. `free`: bytes of a disk that
    /// has too few. There, less is enough if what stays fits into them.
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

    /// A rewriting begins that leaves out all of it; answers how much.
    pub(super) fn rewrite(&mut self) -> u64 {
        self.rewriting = true;
        self.not_before = None;
        std::mem::take(&mut self.bytes)
    }

    /// A rewriting has failed that was to leave out so much.
    pub(super) fn put_back(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        let pause = QUIET.saturating_mul(1 << self.failures.min(16));
        self.not_before = Some(now + pause.min(LAST_RETRY));
        self.failures = self.failures.saturating_add(1);
    }

    /// A rewriting has worked.
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
        // What merges make less of counts.
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
        // One that goes on failing is tried after longer waits, and at once after one that has worked.
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
        // It has ended before more is deleted.
        garbage.add(30, || 40);
        garbage.note_files(40, false);
        assert_eq!(garbage.bytes, 30);
    }
}
