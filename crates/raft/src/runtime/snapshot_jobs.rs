//! A group's attempts at a snapshot, one at a time: who wants one, who waits for it, how many a node writes
//! at once.
//!
//! ```text
//!  hint (engine) ─┐
//!                 ├▶ wanted ──▶ apply thread: begin_snapshot ──▶ snapshot thread: permit, write
//!  request (host) ┘   ▲                                              │ sink, engine, requests
//!                     └── wanted again meanwhile ◀───────────────────┘
//! ```
//!
//! A request that comes while an attempt is under way is answered by the next attempt: that one certainly
//! covers everything that was applied before the request.
//!
//! The attempt itself is [`snapshot_task`](super::snapshot_task).

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::state_machine::{SnapshotError, SnapshotSink};
use crate::store::StoredSnapshot;

pub(super) type Outcome = Result<Arc<StoredSnapshot>, SnapshotError>;
type Waiter = oneshot::Sender<Outcome>;

/// The state of a group's attempts. The engine's lock is never taken while this one is held.
pub(super) struct SnapshotJobs {
    state: Mutex<State>,
    permits: Arc<Permits>,
    sink: Arc<dyn SnapshotSink>,
}

#[derive(Default)]
struct State {
    /// An attempt begins as soon as none is under way.
    wanted: bool,
    under_way: bool,
    /// A peer's snapshot has replaced the state that the attempt under way captured.
    replaced: bool,
    /// Answered by the next attempt.
    next_waiters: Vec<Waiter>,
    /// Answered by the attempt under way.
    current_waiters: Vec<Waiter>,
    /// The thread of the attempt under way, or of the one before.
    thread: Option<JoinHandle<()>>,
    closed: bool,
}

impl SnapshotJobs {
    pub fn new(permits: Arc<Permits>, sink: Arc<dyn SnapshotSink>) -> SnapshotJobs {
        SnapshotJobs {
            state: Mutex::default(),
            permits,
            sink,
        }
    }

    /// Wants an attempt, without waiting for it.
    pub fn want(&self) {
        self.state.lock().wanted = true;
    }

    /// Wants an attempt that begins after this call. The receiver gets its outcome.
    pub fn request(&self) -> oneshot::Receiver<Outcome> {
        let (waiter, answer) = oneshot::channel();
        let mut state = self.state.lock();
        if state.closed {
            // The receiver is in this function.
            let _ = waiter.send(Err(stopped()));
        } else {
            state.next_waiters.push(waiter);
            state.wanted = true;
        }
        answer
    }

    /// Whether the apply thread should begin an attempt now.
    pub fn due(&self) -> bool {
        let state = self.state.lock();
        state.wanted && !state.under_way && !state.closed
    }

    /// Whether no attempt is under way or wanted.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        !state.wanted && !state.under_way
    }

    /// Waits until this attempt may write; `None` if it is not to be written any more.
    pub fn acquire_permit(&self) -> Option<Permit<'_>> {
        self.permits.acquire(|| self.closed() || self.is_replaced())
    }

    /// The thread of the attempt before, which has nothing left to do but to end.
    pub fn take_thread(&self) -> Option<JoinHandle<()>> {
        self.state.lock().thread.take()
    }

    /// The thread of the attempt that has begun.
    pub fn set_thread(&self, thread: JoinHandle<()>) {
        self.state.lock().thread = Some(thread);
    }

    /// The host's callback for snapshots.
    pub fn sink(&self) -> &dyn SnapshotSink {
        &*self.sink
    }

    /// An attempt begins. It answers all requests made so far.
    pub fn begin(&self) {
        let mut state = self.state.lock();
        state.wanted = false;
        state.under_way = true;
        state.replaced = false;
        state.current_waiters = std::mem::take(&mut state.next_waiters);
    }

    /// The attempt has ended. Returns whether another one is wanted.
    pub fn end(&self, outcome: &Outcome) -> bool {
        let mut state = self.state.lock();
        state.under_way = false;
        let current_waiters = std::mem::take(&mut state.current_waiters);
        let next = state.wanted;
        drop(state);
        for waiter in current_waiters {
            // The receiver may be gone.
            let _ = waiter.send(outcome.clone());
        }
        next
    }

    /// A peer's snapshot has replaced the state. An attempt under way captured the state before: if it
    /// still waits for its permit it ends; if it is being written, it is neither stored nor reported to the
    /// engine, for which the installed snapshot ends the attempt.
    pub fn replaced(&self) {
        let mut state = self.state.lock();
        state.replaced = state.under_way;
        drop(state);
        self.permits.look_again();
    }

    pub fn is_replaced(&self) -> bool {
        self.state.lock().replaced
    }

    /// No attempt begins any more. One that waits for its permit ends.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.permits.look_again();
    }

    /// To be called after [`SnapshotJobs::close`], when the apply thread has ended. Waits for the attempt
    /// under way and answers all other requests.
    pub fn finish(&self) {
        let thread = self.state.lock().thread.take();
        if let Some(thread) = thread {
            // A panic of it has already been reported by the panic hook.
            let _ = thread.join();
        }
        let mut state = self.state.lock();
        let mut left = std::mem::take(&mut state.next_waiters);
        left.append(&mut state.current_waiters);
        drop(state);
        for waiter in left {
            let _ = waiter.send(Err(stopped()));
        }
    }

    pub fn closed(&self) -> bool {
        self.state.lock().closed
    }
}

pub(super) fn stopped() -> SnapshotError {
    SnapshotError("the partition has stopped".to_owned())
}

/// Bounds how many snapshots of a node are written at once, because they share the disk with the log.
pub(super) struct Permits {
    free: Mutex<usize>,
    freed: Condvar,
}

/// Free again when it is dropped.
pub(super) struct Permit<'a>(&'a Permits);

impl Permits {
    pub fn new(at_once: usize) -> Permits {
        Permits {
            free: Mutex::new(at_once),
            freed: Condvar::new(),
        }
    }

    /// Waits for a permit. Returns `None` if `give_up` becomes true first;
    /// [`look_again`](Permits::look_again) has it evaluated again.
    fn acquire(&self, give_up: impl Fn() -> bool) -> Option<Permit<'_>> {
        let mut free = self.free.lock();
        loop {
            if give_up() {
                return None;
            }
            if *free > 0 {
                *free -= 1;
                return Some(Permit(self));
            }
            self.freed.wait(&mut free);
        }
    }

    fn look_again(&self) {
        // Under the lock, so that no waiter is between its check and its wait.
        let _free = self.free.lock();
        self.freed.notify_all();
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        // All are woken: the one that is woken first may end without taking the permit.
        self.0.freed.notify_all();
    }
}
