//! When the engine hints at a snapshot, and how much of the log a snapshot lets the engine remove.
//!
//! Three positions, `log start <= floor <= applied`. The *floor* is the last entry that the newest snapshot
//! covers. The *log start* is the entry that compaction has reached; it stays behind the floor if the host
//! keeps entries that a snapshot covers ([`Snapshots::keep_from`]).
//!
//! The engine gives a hint when one of two *thresholds* is crossed:
//!
//! - entries, or bytes, that are applied above the floor: a restart would have to replay them;
//! - the guardrail: entries above the floor, applied or not.
//!
//! It also gives a hint when a peer needs a newer snapshot than there is ([`Snapshots::want`]).
//!
//! An attempt is under way from [`Event::SnapshotBegun`](super::Event::SnapshotBegun) until it ends, one at
//! a time. Thresholds that are crossed meanwhile give one hint when it ends. A hint that the host ignores
//! is repeated when as much again was applied, or was appended in the case of the guardrail.
//!
//! After a failed attempt there are no hints for some ticks, twice as many after each failure in a row, and
//! then there is one, also if no threshold is crossed. If nothing above the floor is applied, a snapshot
//! would cover nothing new: the engine then raises an alarm instead of a hint.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::{Action, Config};
use crate::ids::Lsn;

/// Most pieces of the log whose bytes are counted separately. Beyond it neighbours are merged, and the
/// bytes of a part of a piece are estimated from its number of entries.
const MAX_PIECES: usize = 1024;

pub(super) struct Snapshots {
    hint_entries: u64,
    hint_bytes: u64,
    guardrail: u64,
    backoff: RangeInclusive<u64>,

    /// The newest snapshot covers everything up to here. For a moment it can be ahead of `applied`: its
    /// files may contain entries that the host has applied and not yet reported.
    covered: Lsn,
    applied: Lsn,
    keep_from: Option<Lsn>,
    /// The attempt under way: the last applied entry when it began.
    attempt: Option<Lsn>,
    /// The newest hint, until the host begins an attempt.
    hinted: Option<Hint>,
    /// Ticks until hints are given again.
    wait: u64,
    /// Ticks without hints after the next failure.
    next_wait: u64,
    alarmed: bool,
    /// A peer needs a newer snapshot than there is.
    wanted: bool,
    /// The last attempt failed: another one is needed, independent of the thresholds, if it covers anything
    /// new.
    failed: bool,
    tally: Tally,
}

/// The state when a hint was given.
#[derive(Clone, Copy)]
struct Hint {
    applied: Lsn,
    last: Lsn,
    /// Bytes of all entries counted until then.
    bytes: u64,
    /// Ticks since then.
    age: u64,
    /// Ticks until it is repeated for a peer; they double like those of the back-off.
    repeat_after: u64,
}

impl Snapshots {
    /// For a log `(start, last]` that is applied up to `applied`. Of the applied entries only the number is
    /// known, not the bytes.
    pub fn new(config: &Config, start: Lsn, applied: Lsn, last: Lsn) -> Snapshots {
        let mut snapshots = Snapshots {
            hint_entries: config.snapshot_hint_threshold_entries,
            hint_bytes: config.snapshot_hint_threshold_bytes,
            guardrail: config.max_log_entries,
            backoff: config.snapshot_backoff_ticks.clone(),
            covered: start,
            applied,
            keep_from: None,
            attempt: None,
            hinted: None,
            wait: 0,
            next_wait: *config.snapshot_backoff_ticks.start(),
            alarmed: false,
            wanted: false,
            failed: false,
            tally: Tally::new(start, applied),
        };
        if snapshots.threshold_crossed(last) {
            // The log may begin far below the newest snapshot, which the host is about to report.
            snapshots.wait = snapshots.next_wait;
        }
        snapshots
    }

    /// Last entry that the newest snapshot covers.
    pub fn floor(&self) -> Lsn {
        self.covered.min(self.applied)
    }

    /// The last entry up to which the log may be compacted.
    pub fn compactable(&self) -> Lsn {
        let floor = self.floor();
        self.keep_from.map_or(floor, |keep| keep.min(floor))
    }

    /// The host wants the entries above `lsn` kept.
    pub fn keep_from(&mut self, lsn: Lsn) {
        self.keep_from = Some(lsn);
    }

    /// The log was compacted up to `lsn`.
    pub fn compacted(&mut self, lsn: Lsn) {
        self.tally.forget(lsn);
    }

    /// The next piece of the log, up to `up_to` and of so many bytes, was applied.
    pub fn count(&mut self, up_to: Lsn, bytes: u64) {
        self.tally.add(up_to, bytes, self.floor());
    }

    /// Everything up to `lsn` is applied. Returns whether that moved the floor.
    pub fn applied(&mut self, lsn: Lsn) -> bool {
        let before = self.floor();
        self.applied = lsn;
        let moved = self.floor() > before;
        if moved {
            self.tally.measure(self.floor());
        }
        moved
    }

    /// Bytes of the applied entries above the log start, as far as they were counted.
    pub fn counted_bytes(&self) -> u64 {
        self.tally.above_start
    }

    /// Bytes of the applied entries above `lsn`, as far as they were counted.
    pub fn bytes_above(&self, lsn: Lsn) -> u64 {
        self.tally.above(lsn)
    }

    /// The entry above which bytes are counted.
    pub fn counted_from(&self) -> Lsn {
        self.tally.counted_from
    }

    /// The lowest entry above which there are, up to `up_to`, at most so many bytes, as far as they were counted.
    pub fn reach(&self, up_to: Lsn, bytes: u64) -> Lsn {
        self.tally.reach(up_to, bytes)
    }

    /// A peer needs a newer snapshot than there is. A hint follows as soon as no attempt is under way. A
    /// hint that the host ignores is repeated, with growing pauses.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    /// The host has installed a peer's snapshot of everything up to `lsn`.
    pub fn installed(&mut self, lsn: Lsn) {
        self.applied = lsn;
        self.covered = lsn;
        // The count of bytes begins at 0 again, so an earlier hint cannot be compared with it.
        self.hinted = None;
        self.tally = Tally::new(lsn, lsn);
    }

    /// The host begins an attempt.
    pub fn begun(&mut self) {
        self.wanted = false;
        self.failed = false;
        self.hinted = None;
        self.attempt.get_or_insert(self.applied);
    }

    /// The host has a snapshot that covers everything up to `lsn`, which is committed.
    pub fn taken(&mut self, lsn: Lsn) {
        self.failed = false;
        let hinted = self.hinted.take().map(|hint| hint.applied);
        // An attempt that the host did not report as begun has ended too.
        self.wanted &= hinted.is_none();
        let began_at = self.attempt.take().or(hinted);
        if lsn > self.covered {
            self.covered = lsn;
            self.tally.measure(self.floor());
        } else if began_at.is_some_and(|applied| lsn < applied) {
            // It covers less than required and nothing new, so the next attempt waits as after a failure.
            return self.back_off();
        }
        self.wait = 0;
        self.next_wait = *self.backoff.start();
    }

    /// The attempt failed. Another one is needed, also if no threshold is crossed, because a request may be
    /// waiting for it.
    pub fn failed(&mut self) {
        self.attempt = None;
        self.hinted = None;
        self.failed = true;
        self.back_off();
    }

    fn back_off(&mut self) {
        self.wait = self.next_wait;
        self.next_wait = self.next_wait.saturating_mul(2).min(*self.backoff.end());
    }

    /// One tick of the clock.
    pub fn tick(&mut self) {
        self.wait = self.wait.saturating_sub(1);
        if let Some(hint) = &mut self.hinted {
            hint.age = hint.age.saturating_add(1);
        }
    }

    /// Whether a tick is needed for the next hint.
    pub fn backs_off(&self) -> bool {
        self.wait > 0
    }

    /// Whether more entries than the guardrail allows are above the floor, and none of them is applied.
    pub fn stuck(&self, last: Lsn) -> bool {
        self.guardrail > 0 && self.applied == self.floor() && self.above(last) > self.guardrail
    }

    /// Whether twice as many entries as the guardrail allows are above the floor, and none of them is
    /// applied: proposals are refused.
    pub fn full(&self, last: Lsn) -> bool {
        self.stuck(last) && self.above(last) >= self.guardrail.saturating_mul(2)
    }

    /// The hint or alarm that is due, for a log that ends at `last`.
    pub fn consider(&mut self, last: Lsn) -> Option<Action> {
        let idle = self.attempt.is_none() && self.wait == 0;
        let wanted = self.wanted && self.hinted.is_none_or(|hint| hint.age >= hint.repeat_after);
        let again = self.failed && self.applied > self.floor();
        if idle && (wanted && self.applied.0 > 0 || again) {
            return Some(self.hint(last));
        }
        if self.stuck(last) {
            if !std::mem::replace(&mut self.alarmed, true) {
                let entries = self.above(last);
                return Some(Action::LogAlarm { entries });
            }
            return None;
        }
        self.alarmed = false;
        if !idle || !self.threshold_crossed(last) || !self.threshold_crossed_again(last) {
            return None;
        }
        Some(self.hint(last))
    }

    fn hint(&mut self, last: Lsn) -> Action {
        self.failed = false;
        let (first, longest) = (*self.backoff.start(), *self.backoff.end());
        let before = self.hinted.map(|hint| hint.repeat_after.saturating_mul(2));
        self.hinted = Some(Hint {
            repeat_after: before.unwrap_or(first).min(longest),
            applied: self.applied,
            last,
            bytes: self.tally.counted,
            age: 0,
        });
        Action::SnapshotHint {
            last_included_index: self.applied,
        }
    }

    /// Whether a threshold was crossed again since the newest hint that the host ignored; true without one.
    fn threshold_crossed_again(&self, last: Lsn) -> bool {
        let Some(hint) = self.hinted else {
            return true;
        };
        let crossed = |threshold: u64, since: u64| threshold > 0 && since >= threshold;
        crossed(self.hint_entries, self.applied.0 - hint.applied.0)
            || crossed(self.hint_bytes, self.tally.counted - hint.bytes)
            || (self.applied > hint.applied
                && crossed(self.guardrail, last.0.saturating_sub(hint.last.0)))
    }

    fn threshold_crossed(&self, last: Lsn) -> bool {
        let applied = self.above(self.applied);
        applied > 0
            && ((self.hint_entries > 0 && applied >= self.hint_entries)
                || (self.hint_bytes > 0 && self.tally.above_floor >= self.hint_bytes)
                || (self.guardrail > 0 && self.above(last) > self.guardrail))
    }

    /// Entries above the floor, up to `lsn`.
    fn above(&self, lsn: Lsn) -> u64 {
        lsn.0.saturating_sub(self.floor().0)
    }
}

/// Counts the bytes of applied entries by pieces of the log, so that they are known above any floor or log
/// start.
struct Tally {
    /// Contiguous, oldest first, none entirely below the log start.
    pieces: VecDeque<Piece>,
    /// Last entry that was applied before the count began.
    counted_from: Lsn,
    /// Last entry that is counted, or was applied before the count began.
    end: Lsn,
    start: Lsn,
    above_start: u64,
    above_floor: u64,
    /// Of all entries that were ever counted.
    counted: u64,
}

/// The entries `(after, up_to]`.
#[derive(Clone, Copy)]
struct Piece {
    after: Lsn,
    up_to: Lsn,
    bytes: u64,
}

impl Piece {
    /// The bytes of its entries above `lsn`.
    fn above(&self, lsn: Lsn) -> u64 {
        let entries = self.up_to.0 - self.after.0;
        let above = self.up_to.0.saturating_sub(lsn.0).min(entries);
        (u128::from(self.bytes) * u128::from(above) / u128::from(entries.max(1))) as u64
    }
}

impl Tally {
    fn new(start: Lsn, end: Lsn) -> Tally {
        Tally {
            pieces: VecDeque::new(),
            counted_from: end,
            end,
            start,
            above_start: 0,
            above_floor: 0,
            counted: 0,
        }
    }

    fn add(&mut self, up_to: Lsn, bytes: u64, floor: Lsn) {
        let piece = Piece {
            after: self.end,
            up_to,
            bytes,
        };
        self.end = up_to;
        self.counted += bytes;
        self.above_start += piece.above(self.start);
        self.above_floor += piece.above(floor);
        self.pieces.push_back(piece);
        if self.pieces.len() > MAX_PIECES {
            self.merge();
        }
    }

    fn merge(&mut self) {
        let mut merged = VecDeque::with_capacity(MAX_PIECES);
        let mut pieces = self.pieces.drain(..);
        while let Some(mut piece) = pieces.next() {
            if let Some(next) = pieces.next() {
                piece.up_to = next.up_to;
                piece.bytes += next.bytes;
            }
            merged.push_back(piece);
        }
        drop(pieces);
        self.pieces = merged;
    }

    /// The floor moved.
    fn measure(&mut self, floor: Lsn) {
        self.above_floor = self.above(floor);
    }

    /// The log start moved.
    fn forget(&mut self, start: Lsn) {
        self.start = start;
        while self.pieces.front().is_some_and(|p| p.up_to <= start) {
            self.pieces.pop_front();
        }
        self.above_start = self.above(start);
    }

    fn above(&self, lsn: Lsn) -> u64 {
        self.pieces.iter().map(|piece| piece.above(lsn)).sum()
    }

    fn reach(&self, up_to: Lsn, bytes: u64) -> Lsn {
        let mut left = bytes;
        for piece in self.pieces.iter().rev() {
            // Of its entries up to there, which may be none.
            let counted = piece.bytes - piece.above(up_to);
            if counted > left {
                let end = piece.up_to.min(up_to);
                let entries = u128::from(end.0.saturating_sub(piece.after.0));
                let within = u128::from(left) * entries / u128::from(counted);
                return Lsn(end.0 - within as u64);
            }
            left -= counted;
        }
        Lsn(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_at_any_position_however_long_the_log_is() {
        let mut tally = Tally::new(Lsn(0), Lsn(0));
        // Ten entries a piece, of 100 bytes each.
        let pieces = 50 * MAX_PIECES as u64;
        for n in 1..=pieces {
            tally.add(Lsn(n * 10), 1000, Lsn(0));
        }
        assert!(tally.pieces.len() <= MAX_PIECES, "in bounded memory");
        let all = pieces * 1000;
        assert_eq!((tally.above_start, tally.above_floor), (all, all));
        for lsn in [1, 9, 10, 12_345, pieces * 10 - 1, pieces * 10] {
            tally.measure(Lsn(lsn));
            assert_eq!(tally.above_floor, all - lsn * 100, "above {lsn}");
        }
        tally.forget(Lsn(12_345));
        assert_eq!(tally.above_start, all - 1_234_500);
    }

    #[test]
    fn how_far_a_number_of_bytes_reaches_is_known_from_any_position() {
        let mut tally = Tally::new(Lsn(0), Lsn(100));
        for n in 11..=20 {
            tally.add(Lsn(n * 10), 1000, Lsn(0));
        }
        // 100 bytes an entry.
        for (up_to, bytes, reached) in [
            (200, 0, 200),
            (200, 99, 200),
            (200, 100, 199),
            (200, 2500, 175),
            (155, 1000, 145),
            (155, 500, 150),
            (110, 999, 101),
        ] {
            let found = tally.reach(Lsn(up_to), bytes);
            assert_eq!(found, Lsn(reached), "{bytes} bytes up to {up_to}");
        }
        // What was applied before counting began has no bytes.
        assert_eq!(tally.reach(Lsn(110), 1000), Lsn(0));
        assert_eq!(tally.reach(Lsn(90), 0), Lsn(0));
    }

    #[test]
    fn what_was_applied_before_counting_began_has_no_bytes() {
        let mut tally = Tally::new(Lsn(0), Lsn(100));
        assert_eq!(tally.above_start, 0);
        tally.add(Lsn(110), 500, Lsn(105));
        assert_eq!((tally.above_start, tally.above_floor), (500, 250));
    }
}
