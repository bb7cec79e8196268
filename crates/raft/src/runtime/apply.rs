//! The apply thread of a group: it owns the state machine, applies committed entries, installs snapshots,
//! and opens the engine again after a halt.
//!
//! In the order of its loop: take the next step from the [`ApplyQueue`], apply it, answer the proposals,
//! report to the engine, begin a snapshot if one is due, give the state machine time for housekeeping.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::queue::{ApplyQueue, Step};
use super::reopening::{Failure, Reopening};
use super::shared::Shared;
use super::snapshot_task::start_snapshot_if_due;
use super::state_machine::{MAINTENANCE_INTERVAL, StateMachine};
use crate::engine::{Committed, Engine, Event, OpenError};
use crate::ids::Lsn;
use crate::transfer::Manifest;

/// Pause before a failed apply, or a failed move of an installed snapshot, is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait for the log's writer, which may itself wait for space.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs until the queue is closed.
pub(super) fn run<S: StateMachine>(
    mut machine: S,
    committed: &ApplyQueue,
    shared: &Arc<Shared<S::Output>>,
) {
    let span = tracing::info_span!("apply", group = %shared.id);
    let _entered = span.enter();
    let mut outputs = Vec::new();
    let mut maintained = Instant::now();
    let mut applied = shared.applied.borrow().0;
    // Whether something was applied or installed since the last maintenance.
    let mut is_changed = true;
    loop {
        let pause = match is_changed || shared.may_reopen() {
            true => MAINTENANCE_INTERVAL,
            false => machine.maintenance_interval(),
        };
        let entries = match committed.next_step(pause) {
            Some(Step::Entries(entries)) => entries,
            Some(Step::Install(offer)) => {
                is_changed = true;
                if let Some(lsn) = install(&mut machine, &offer, shared) {
                    applied = lsn;
                }
                continue;
            }
            None => return,
        };
        if let Some(last) = entries.last() {
            let (lsn, term) = (last.lsn, last.term);
            if let Err(what) = follow(applied, &entries) {
                shared.step(Event::Broken { what });
                // The engine has halted and hands out nothing more.
                committed.forget();
                continue;
            }
            shared.waiters.committed(&entries);
            if !apply(&mut machine, &entries, &mut outputs, shared) {
                return;
            }
            applied = lsn;
            is_changed = true;
            shared.waiters.answer(shared.id, &entries, &mut outputs);
            shared.note_applied(lsn, term);
            shared.step(Event::Applied { lsn });
        } else {
            shared.reopen(&machine);
        }
        start_snapshot_if_due(&mut machine, shared);
        if maintained.elapsed() >= MAINTENANCE_INTERVAL {
            machine.maintain();
            maintained = Instant::now();
            is_changed = false;
        }
    }
}

/// Checks that the entries follow `applied` without a gap. A state that lacks an entry differs from that of
/// the other members, and no later entry would reveal it.
fn follow(applied: Lsn, entries: &[Committed]) -> Result<(), String> {
    let mut next = applied.next();
    for entry in entries {
        if entry.lsn != next {
            return Err(format!(
                "the entry at LSN {next} is to be applied next, and what came is the one at LSN {}: \
                 what lacks is in the log, and is applied when the group is opened again",
                entry.lsn
            ));
        }
        next = next.next();
    }
    Ok(())
}

/// Applies the entries, again and again until it works. Returns false if it did not work and the group
/// stops.
fn apply<S: StateMachine>(
    machine: &mut S,
    entries: &[Committed],
    outputs: &mut Vec<S::Output>,
    shared: &Arc<Shared<S::Output>>,
) -> bool {
    let mut reported = false;
    loop {
        outputs.clear();
        match machine.apply(entries, outputs) {
            Ok(()) => break,
            Err(error) => {
                *shared.stall_cause.lock() = Some(error.to_string());
                shared.apply_stalled.store(true, Ordering::Relaxed);
                if !reported {
                    tracing::error!(
                        group = %shared.id,
                        %error,
                        "committed entries cannot be applied: the same ones are tried again"
                    );
                    reported = true;
                }
                if shared.stopping.load(Ordering::Relaxed) {
                    return false;
                }
                // The state is unchanged, so a snapshot can cover what is applied so far.
                start_snapshot_if_due(machine, shared);
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
    }
    if reported {
        shared.apply_stalled.store(false, Ordering::Relaxed);
        *shared.stall_cause.lock() = None;
        tracing::info!(group = %shared.id, "entries are applied again");
    }
    true
}

/// Replaces the state by the fetched snapshot. First the state changes, then the snapshot is listed as
/// stored, then the engine is stepped; the next open completes whatever a crash interrupts. Returns the LSN
/// up to which the state now is, or `None` if it is unchanged: then the queued entries still have to be
/// applied.
fn install<S: StateMachine>(
    machine: &mut S,
    offer: &Manifest,
    shared: &Arc<Shared<S::Output>>,
) -> Option<Lsn> {
    let member = shared.member.as_ref()?;
    let (checkpoint, lsn, term) = (offer.checkpoint, offer.last_included_index, offer.term);
    let fetched = member.store.fetched(checkpoint);
    let fetched = fetched.map_err(|e| e.to_string());
    if let Err(error) = fetched.and_then(|s| machine.restore(s).map_err(|e| e.to_string())) {
        // Its files stay for the next offer, which verifies them: the disk may have been full.
        tracing::error!(%lsn, error, "a fetched snapshot cannot be installed; its files are kept");
        shared.step(Event::InstallFailed { checkpoint });
        return None;
    }
    shared.apply.covered(lsn);
    // Before the engine is stepped: see `SnapshotJobs::replaced`.
    shared.snapshot_jobs.replaced();
    let stored = loop {
        match member.store.keep_fetched(checkpoint) {
            Ok(stored) => break stored,
            Err(error) => {
                tracing::error!(%lsn, %error, "an installed snapshot cannot be kept; tried again");
                if shared.stopping.load(Ordering::Relaxed) {
                    return Some(lsn);
                }
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
    };
    tracing::info!(%lsn, bytes = offer.total_bytes(), "a snapshot is installed");
    shared.waiters.skipped(lsn);
    shared.step(Event::SnapshotInstalled { checkpoint });
    shared.note_applied(lsn, term);
    member.publish(&stored);
    shared.step(Event::SnapshotTaken {
        last_included_index: lsn,
        term,
        peers: Some(offer.peers.clone()),
    });
    Some(lsn)
}

impl<O: Send + 'static> Shared<O> {
    /// Opens the group again if it has halted for a cause that may pass, and the next attempt is due. The
    /// caller owns the state machine and has applied everything that it was handed.
    pub(super) fn reopen<S: StateMachine<Output = O>>(&self, machine: &S) {
        let Some(reopening) = self.reopening.as_ref().filter(|_| self.may_reopen()) else {
            return;
        };
        if self.stopping.load(Ordering::Relaxed) || !reopening.is_due() {
            return;
        }
        match self.open_again(reopening, machine) {
            Ok(()) => {
                reopening.opened();
                tracing::warn!(
                    group = %self.id,
                    applied = %machine.applied(),
                    "the group was opened again and goes on"
                );
            }
            Err(Failure::Passing(error)) => {
                tracing::warn!(group = %self.id, error, "a halted group is not open yet; tried again");
                reopening.failed();
            }
            Err(Failure::Lasting(error)) => {
                tracing::error!(group = %self.id, error, "a halted group cannot be opened again");
                self.halt(format!("it cannot be opened again: {error}"), false);
            }
        }
    }

    fn open_again<S: StateMachine<Output = O>>(
        &self,
        reopening: &Reopening,
        machine: &S,
    ) -> Result<(), Failure> {
        if !self.writer.flush(FLUSH_TIMEOUT) {
            let why = self.writer.stall_cause();
            let why = why.unwrap_or_else(|| "it is busy".to_owned());
            return Err(Failure::Passing(format!("the log is not written: {why}")));
        }
        let state = reopening.log.state(self.id).map_err(|e| {
            let what = e.to_string();
            match e.is_unreadable() {
                true => Failure::Passing(what),
                false => Failure::Lasting(what),
            }
        })?;
        let membership = machine.membership();
        let config = reopening.config.clone();
        let reader = reopening.log.reader(self.id);
        let opened = Engine::open(config, state, machine.applied(), &membership, reader);
        let engine = opened.map_err(|e| match e {
            OpenError::Unreadable(what) => Failure::Passing(what),
            other => Failure::Lasting(other.to_string()),
        })?;
        let is_sole_voter = membership.voters == [self.node];
        self.replace_engine(engine, reopening.first_events(is_sole_voter));
        Ok(())
    }
}
