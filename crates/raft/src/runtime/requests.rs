//! What hosts wait for beside proposals: reads, and another leader.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::error::ChangeError;
use crate::engine::{ReadFailure, Ticket};
use crate::ids::{Lsn, NodeId};

/// Pending asks. Reads are bounded by the engine; of transfers there is one.
#[derive(Default)]
pub(super) struct Requests {
    next: AtomicU64,
    /// Nobody is answered any more. Set before those who wait are answered, looked at after somebody
    /// has begun to wait.
    closed: AtomicBool,
    reads: Mutex<BTreeMap<u64, oneshot::Sender<Result<Lsn, ReadFailure>>>>,
    transfer: Mutex<Option<Transfer>>,
}

struct Transfer {
    to: NodeId,
    ticks_left: usize,
    answer: oneshot::Sender<Result<(), ChangeError>>,
}

impl Requests {
    /// A ticket that no other request of this group has.
    pub fn ticket(&self) -> Ticket {
        // 0 is that of proposals.
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

    /// The transfer that is registered does not come about.
    pub fn end_transfer(&self) {
        *self.transfer.lock() = None;
    }

    pub fn read_answered(&self, ticket: Ticket, answer: Result<Lsn, ReadFailure>) {
        if let Some(waiter) = self.reads.lock().remove(&ticket.0) {
            // Whoever asked may have gone.
            let _ = waiter.send(answer);
        }
    }

    /// Somebody leads, perhaps the one that was to.
    pub fn leader_is(&self, leader: Option<NodeId>) {
        let mut transfer = self.transfer.lock();
        if let Some(done) = transfer.take_if(|t| Some(t.to) == leader) {
            let _ = done.answer.send(Ok(()));
        }
    }

    pub fn tick(&self) {
        let mut transfer = self.transfer.lock();
        if let Some(waiting) = transfer.as_mut() {
            waiting.ticks_left = waiting.ticks_left.saturating_sub(1);
        }
        if let Some(late) = transfer.take_if(|t| t.ticks_left == 0) {
            let _ = late.answer.send(Err(ChangeError::TimedOut));
        }
    }

    /// Whether somebody who waits is not answered any more. To be asked after the wait has begun.
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Asks are answered again.
    pub fn reopen(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// Nobody is answered any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.reads.lock().clear();
        *self.transfer.lock() = None;
    }
}
