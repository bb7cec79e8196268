//! Requests of a host that are no proposals and wait for an answer: reads, and a transfer of the
//! leadership.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::error::ChangeError;
use crate::engine::{ReadFailure, Ticket};
use crate::ids::{Lsn, NodeId};

/// Pending requests. The engine bounds the number of reads; there is at most one transfer.
#[derive(Default)]
pub(super) struct Requests {
    next: AtomicU64,
    /// Requests are not answered any more. Set before pending requests are answered; read after a request
    /// is registered, so none is missed.
    closed: AtomicBool,
    reads: Mutex<BTreeMap<u64, oneshot::Sender<Result<Lsn, ReadFailure>>>>,
    transfer: Mutex<Option<Transfer>>,
    timers: Mutex<Vec<Timer>>,
}

/// Wakes its receiver after some ticks, or when requests are not answered any more, by its end.
struct Timer {
    ticks_left: usize,
    waker: oneshot::Sender<()>,
}

struct Transfer {
    to: NodeId,
    ticks_left: usize,
    answer: oneshot::Sender<Result<(), ChangeError>>,
}

impl Requests {
    /// A ticket that no other request of this group has.
    pub fn ticket(&self) -> Ticket {
        // Proposals of a batch have numbers of their own, which end with the step that proposes them.
        Ticket(self.next.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Registers a read. `None` if requests are not answered any more.
    pub fn begin_read(&self) -> Option<(Ticket, oneshot::Receiver<Result<Lsn, ReadFailure>>)> {
        let (waiter, answer) = oneshot::channel();
        let ticket = self.ticket();
        self.reads.lock().insert(ticket.0, waiter);
        if self.is_closed() {
            self.reads.lock().remove(&ticket.0);
            return None;
        }
        Some((ticket, answer))
    }

    /// Registers a transfer of the leadership to `to`, which ends after `ticks`; one that was registered
    /// before has no answer. `None` if requests are not answered any more.
    pub fn begin_transfer(
        &self,
        to: NodeId,
        ticks: usize,
    ) -> Option<oneshot::Receiver<Result<(), ChangeError>>> {
        let (answer, receiver) = oneshot::channel();
        *self.transfer.lock() = Some(Transfer {
            to,
            ticks_left: ticks,
            answer,
        });
        if self.is_closed() {
            self.end_transfer();
            return None;
        }
        Some(receiver)
    }

    /// Removes the registered transfer: the engine refused it.
    pub fn end_transfer(&self) {
        *self.transfer.lock() = None;
    }

    pub fn read_answered(&self, ticket: Ticket, answer: Result<Lsn, ReadFailure>) {
        if let Some(waiter) = self.reads.lock().remove(&ticket.0) {
            // The receiver may be gone.
            let _ = waiter.send(answer);
        }
    }

    /// The leader is known: a pending transfer to it is complete.
    pub fn leader_is(&self, leader: Option<NodeId>) {
        let mut transfer = self.transfer.lock();
        if let Some(done) = transfer.take_if(|t| Some(t.to) == leader) {
            let _ = done.answer.send(Ok(()));
        }
    }

    /// Ends the receiver after `ticks`, or when requests are not answered any more.
    pub fn begin_timer(&self, ticks: usize) -> oneshot::Receiver<()> {
        let (waker, timer) = oneshot::channel();
        self.timers.lock().push(Timer {
            ticks_left: ticks,
            waker,
        });
        timer
    }

    pub fn tick(&self) {
        self.timers.lock().retain_mut(|timer| {
            timer.ticks_left = timer.ticks_left.saturating_sub(1);
            timer.ticks_left > 0 && !timer.waker.is_closed()
        });
        let mut transfer = self.transfer.lock();
        if let Some(waiting) = transfer.as_mut() {
            waiting.ticks_left = waiting.ticks_left.saturating_sub(1);
        }
        if let Some(late) = transfer.take_if(|t| t.ticks_left == 0) {
            let _ = late.answer.send(Err(ChangeError::TimedOut));
        }
    }

    /// Whether requests are not answered any more. To be called after the request is registered.
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Requests are answered again.
    pub fn reopen(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// Nobody is answered any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.reads.lock().clear();
        self.timers.lock().clear();
        *self.transfer.lock() = None;
    }
}
