//! When the engine of a halted group is opened again in place, and what the new engine has to know.
//!
//! An engine halts when it cannot read its log, or when its host was handed entries that do not follow what
//! is applied. Everything that was acknowledged is in the log, and the state machine has a prefix of it. So
//! if the cause may pass, the apply thread, which owns the state machine, opens another engine on both, as
//! a start does. Reads go on all the time; proposals that were pending get an unknown outcome; other groups
//! are not affected.
//!
//! In this order: everything that was handed out is applied; the log's writer has written what the halted
//! engine had requested, and reports nothing of it any more; the log's state is read; the engine is
//! replaced under its lock and gets the host's reports again. Nothing is written, so a crash at any point
//! leaves what a crash of a halted group leaves. (`apply.rs` does this.)
//!
//! The number of attempts is not bounded, their rate is: the first comes after a second, each further one
//! after twice as long, up to a minute. An attempt reads a few entries.
//!
//! Not opened again are a log that is damaged, that contradicts itself, or that holds entries of a newer
//! version; and a member of a group with others, which go on without it: its absence has to be visible to
//! them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::engine::{Config, Event};
use crate::ids::{Lsn, Term};
use crate::log::SharedLog;

/// Time from a halt to the first attempt. It doubles after each further halt or failed attempt...
const MIN_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// ...up to this, because an attempt costs only a few reads.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// A group that was open for this long starts again at [`MIN_RETRY_INTERVAL`] when it halts.
const RESET_AFTER: Duration = Duration::from_secs(600);

/// What is needed to open the engine of a group again.
pub(super) struct Reopening {
    pub log: SharedLog,
    pub config: Config,
    reports: Mutex<HostReports>,
    backoff: Mutex<Backoff>,
    /// Times that the group was opened again.
    pub count: AtomicU64,
}

/// What the host has reported to the engine, and reports again after every start.
#[derive(Clone, Copy, Default)]
struct HostReports {
    keep_from: Option<Lsn>,
    withheld: bool,
    /// The newest snapshot, and the term of its last entry.
    newest: Option<(Lsn, Term)>,
}

/// When the next attempt is due.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
    not_before: Option<Instant>,
    opened: Option<Instant>,
}

impl Backoff {
    fn halted(&mut self, now: Instant) {
        let is_well = |at: Instant| now.saturating_duration_since(at) >= RESET_AFTER;
        if self.opened.is_none_or(is_well) {
            self.failures = 0;
        }
        self.failed(now);
    }

    fn failed(&mut self, now: Instant) {
        let doubled = MIN_RETRY_INTERVAL.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + doubled.min(MAX_RETRY_INTERVAL));
    }

    fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    fn opened(&mut self, now: Instant) {
        self.opened = Some(now);
    }
}

/// Why an attempt failed.
pub(super) enum Failure {
    /// The cause may pass: there is another attempt.
    Passing(String),
    /// Another attempt would fail in the same way.
    Lasting(String),
}

impl Reopening {
    pub fn new(log: SharedLog, config: Config) -> Reopening {
        Reopening {
            log,
            config,
            reports: Mutex::default(),
            backoff: Mutex::default(),
            count: AtomicU64::new(0),
        }
    }

    /// Notes what the next engine has to get again. Called with every event of this engine.
    pub fn note(&self, event: &Event) {
        match event {
            Event::KeepFrom { lsn } => self.reports.lock().keep_from = Some(*lsn),
            Event::WithholdSnapshots { withheld } => self.reports.lock().withheld = *withheld,
            Event::SnapshotTaken {
                last_included_index: lsn,
                term,
                ..
            } => {
                let newest = &mut self.reports.lock().newest;
                *newest = (*newest).max(Some((*lsn, *term)));
            }
            _ => {}
        }
    }

    /// Halts and attempts that failed, in a row.
    #[cfg(test)]
    pub fn failures(&self) -> u32 {
        self.backoff.lock().failures
    }

    /// The group has halted.
    pub fn halted(&self) {
        self.backoff.lock().halted(Instant::now());
    }

    /// Whether it is time for another attempt.
    pub fn is_due(&self) -> bool {
        self.backoff.lock().is_due(Instant::now())
    }

    /// An attempt has failed.
    pub fn failed(&self) {
        self.backoff.lock().failed(Instant::now());
    }

    /// The group is open again.
    pub fn opened(&self) {
        self.backoff.lock().opened(Instant::now());
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Events that an engine gets when it is opened, in order.
    pub fn first_events(&self, is_sole_voter: bool) -> Vec<Event> {
        let reports = *self.reports.lock();
        let keep_from = reports.keep_from.map(|lsn| Event::KeepFrom { lsn });
        let newest = reports.newest.map(|(lsn, term)| Event::SnapshotTaken {
            last_included_index: lsn,
            term,
            peers: None,
        });
        let withheld = reports
            .withheld
            .then_some(Event::WithholdSnapshots { withheld: true });
        let campaign = is_sole_voter.then_some(Event::Campaign);
        keep_from
            .into_iter()
            .chain(newest)
            .chain(withheld)
            .chain(campaign)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halted_group_is_opened_again_after_1_2_4_8_16_32_and_every_60_seconds() {
        let started = Instant::now();
        let mut backoff = Backoff::default();
        backoff.halted(started);
        let mut tries = Vec::new();
        for second in 0..250 {
            let now = started + Duration::from_secs(second);
            if backoff.is_due(now) {
                tries.push(second);
                backoff.failed(now);
            }
        }
        assert_eq!(tries, [1, 3, 7, 15, 31, 63, 123, 183, 243]);
    }

    #[test]
    fn a_group_that_halts_again_at_once_waits_longer_and_one_that_was_well_does_not() {
        let mut now = Instant::now();
        let mut backoff = Backoff::default();
        backoff.halted(now);
        for wait in [1, 2, 4] {
            let due = now + Duration::from_secs(wait);
            assert!(!backoff.is_due(due - Duration::from_millis(1)) && backoff.is_due(due));
            now = due;
            backoff.opened(now);
            backoff.halted(now);
        }
        backoff.opened(now);
        now += RESET_AFTER;
        backoff.halted(now);
        assert!(backoff.is_due(now + MIN_RETRY_INTERVAL));
    }
}
