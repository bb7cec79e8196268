//! One attempt at a snapshot: begun on the apply thread, written and concluded on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::shared::Shared;
use super::snapshot_jobs::stopped;
use super::state_machine::{Capture, SnapshotError, StateMachine};
use crate::engine::Event;
use crate::store::StoredSnapshot;

/// Begins an attempt if one is due. The apply thread calls it between applies.
pub(super) fn start_snapshot_if_due<S: StateMachine>(
    machine: &mut S,
    shared: &Arc<Shared<S::Output>>,
) {
    let jobs = &shared.snapshot_jobs;
    if !jobs.due() {
        return;
    }
    // In this order: from here on no hint comes that this attempt already serves.
    shared.step(Event::SnapshotBegun);
    jobs.begin();
    let capture = machine.begin_snapshot();
    let before = jobs.take_thread();
    if let Some(before) = before {
        // It has nothing left to do but to end, and must not outlive its successor.
        let _ = before.join();
    }
    let started = std::thread::Builder::new()
        .name(format!("snapshot-{}", shared.id))
        .spawn({
            let shared = shared.clone();
            move || run(capture, &shared)
        });
    match started {
        Ok(thread) => jobs.set_thread(thread),
        Err(error) => conclude(
            shared,
            Err(SnapshotError(format!("starting a thread: {error}"))),
        ),
    }
}

fn run<O: Send + 'static>(capture: impl Capture, shared: &Shared<O>) {
    let span = tracing::info_span!("snapshot", group = %shared.id);
    let _entered = span.enter();
    let jobs = &shared.snapshot_jobs;
    let written = match jobs.acquire_permit() {
        // A panic ends the process, by its hook; where it does not, the group goes on.
        Some(_permit) => catch_unwind(AssertUnwindSafe(|| {
            let snapshot = capture.write()?;
            if let Some(member) = &shared.member
                && !jobs.is_replaced()
            {
                member.store(&snapshot)?;
            }
            Ok(snapshot)
        }))
        .unwrap_or_else(|_| Err(SnapshotError("writing the snapshot panicked".to_owned()))),
        None if jobs.closed() => Err(stopped()),
        None => Err(SnapshotError(
            "a peer's snapshot has replaced the state meanwhile".to_owned(),
        )),
    };
    conclude(shared, written);
}

/// Tells the sink, the engine and those who asked, in this order.
fn conclude<O: Send + 'static>(shared: &Shared<O>, written: Result<StoredSnapshot, SnapshotError>) {
    let jobs = &shared.snapshot_jobs;
    let counts = &shared.counts;
    match &written {
        Ok(snapshot) => {
            counts.taken.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(lsn = %snapshot.last_included_index, "a snapshot is taken");
        }
        Err(error) => {
            counts.failed.fetch_add(1, Ordering::Relaxed);
            // The sink gets it, and passes it on to those who wait.
            tracing::debug!(%error, "a snapshot failed; it is tried again later");
        }
    }
    // See above.
    let _ = catch_unwind(AssertUnwindSafe(|| match &written {
        Ok(snapshot) => jobs.sink().taken(shared.id, snapshot),
        Err(error) => jobs.sink().failed(shared.id, error),
    }));
    if !jobs.is_replaced() {
        shared.step(match &written {
            Ok(snapshot) => Event::SnapshotTaken {
                last_included_index: snapshot.last_included_index,
                term: snapshot.term,
                peers: Some(snapshot.peers.clone()),
            },
            Err(_) => Event::SnapshotFailed,
        });
    }
    if jobs.end(&written.map(Arc::new)) {
        shared.apply.nudge();
    }
}
