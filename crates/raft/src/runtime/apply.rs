//! The apply thread of a group.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::group::Shared;
use super::queue::ApplyQueue;
use super::snapshots::attend;
use super::state_machine::StateMachine;
use crate::engine::{Committed, Event};

/// How often the state machine is given time for housekeeping when entries keep coming, and when
/// none come.
const MAINTAIN_EVERY: Duration = Duration::from_millis(250);
/// Pause before a failed apply is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Runs until the queue is closed.
pub(super) fn run<S: StateMachine>(
    mut machine: S,
    committed: &ApplyQueue,
    shared: &Arc<Shared<S::Output>>,
) {
    let mut outputs = Vec::new();
    let mut maintained = Instant::now();
    loop {
        let Some(entries) = committed.next_step(MAINTAIN_EVERY) else {
            return;
        };
        if let Some(last) = entries.last() {
            let (lsn, term) = (last.lsn, last.term);
            if !apply(&mut machine, &entries, &mut outputs, shared) {
                return;
            }
            shared.answer(&entries, &mut outputs);
            shared.note_applied(lsn, term);
            shared.step(Event::Applied { lsn });
        }
        attend(&mut machine, shared);
        if maintained.elapsed() >= MAINTAIN_EVERY {
            machine.maintain();
            maintained = Instant::now();
        }
    }
}

/// Applies until it works; false if it did not work and the group is to stop.
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
                // The state is as it was before: what is applied so far can be covered.
                attend(machine, shared);
                std::thread::sleep(RETRY_PAUSE);
            }
        }
    }
    if reported {
        shared.apply_stalled.store(false, Ordering::Relaxed);
        tracing::info!(group = %shared.id, "entries are applied again");
    }
    true
}
