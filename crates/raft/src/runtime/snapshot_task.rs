//! One attempt at a snapshot: begun on the apply thread, written and concluded on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::shared::Shared;
use super::snapshot_jobs::stopped;
use super::state_machine::{Capture, SnapshotError, StateMachine};
use crate::engine::Event;
use crate::store::StoredSnapshot;

/// Begins an attempt if one is due. Called by the apply thread between applies.
pub(super) fn start_snapshot_if_due<S: StateMachine>(
    machine: &mut S,
    shared: &Arc<Shared<S::Output>>,
) {
    let jobs = &shared.snapshot_jobs;
    if !jobs.due() {
        return;
    }
    // Before the capture: the engine gives no further hint for what this attempt covers.
    shared.step(Event::SnapshotBegun);
    jobs.begin();
    let capture = machine.begin_snapshot();
    let before = jobs.take_thread();
    if let Some(before) = before {
        // The previous thread only has to return. It must not outlive its successor.
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
        // A panic ends the process by the panic hook. Where no such hook is installed, the attempt fails
        // and the group goes on.
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

/// Reports the outcome to the sink, the engine and the requests, in this order.
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
            // The sink reports it to the host.
            tracing::debug!(%error, "a snapshot failed; it is tried again later");
        }
    }
    // As for `write` above: a panic of the sink must not stop the group.
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
