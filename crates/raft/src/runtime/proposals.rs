//! Proposals of a group that has other members: they wait while the log syncs, and enter the engine
//! together.
//!
//! ```text
//! propose ──▶ waiting ──(nothing is being synced)──▶ engine: one ProposeBatch
//!                └──────(else: once that is durable)────▶    one write, one message to each peer
//! ```
//!
//! A proposal that arrives during a sync could not be written before that sync ends, so waiting costs it
//! nothing. All proposals that have waited share one engine step, one write group and one round of messages
//! to the peers. A group of one member steps each proposal by itself, because it has no messages to save.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::error::ProposeError;
use super::sequence::Place;
use super::waiters::Attached;
use crate::engine::Engine;

/// A command, and where its answer goes.
pub(super) struct Proposal<O> {
    pub command: Vec<u8>,
    pub answer: oneshot::Sender<Result<O, ProposeError>>,
    pub attached: Attached,
    /// Of a proposal whose order counts.
    pub place: Option<Arc<Place>>,
}

impl<O> Proposal<O> {
    /// Whether it may be proposed. A command that no engine accepts is found here, because the refusal of one counts
    /// for those after it in the same batch.
    pub fn check(&self) -> Result<(), ProposeError> {
        let Some(place) = &self.place else {
            return Ok(());
        };
        place.check()?;
        Engine::refuses(&self.command).map_or(Ok(()), |why| Err(ProposeError::Refused(why)))
    }

    /// Refuses it: it is in no log.
    pub fn refuse(self, why: ProposeError) {
        if let Some(place) = &self.place {
            place.refused();
        }
        // The receiver may be gone.
        let _ = self.answer.send(Err(why));
    }
}

/// See the [module's head](self).
pub(super) struct Proposals<O> {
    waiting: Mutex<Vec<Proposal<O>>>,
    /// The last [`Persist`](crate::engine::Persist) that the log was given, and the last that is durable.
    /// Changed under the engine's lock.
    given: AtomicU64,
    durable: AtomicU64,
}

impl<O> Default for Proposals<O> {
    fn default() -> Self {
        Proposals {
            waiting: Mutex::default(),
            given: AtomicU64::new(0),
            durable: AtomicU64::new(0),
        }
    }
}

impl<O> Proposals<O> {
    /// Queues a proposal. Returns false, and drops the proposal, if `most` are queued already.
    pub fn wait(&self, proposal: Proposal<O>, most: usize) -> bool {
        let mut waiting = self.waiting.lock();
        let room = waiting.len() < most;
        if room {
            waiting.push(proposal);
        }
        room
    }

    /// The log was given the write of this number.
    pub fn given(&self, number: u64) {
        self.given.store(number, Ordering::Relaxed);
    }

    /// Everything up to there is durable.
    pub fn durable(&self, number: u64) {
        self.durable.store(number, Ordering::Relaxed);
    }

    /// A new engine numbers its writes from the beginning, and nothing is being synced.
    pub fn restart(&self) {
        self.given(0);
        self.durable(0);
    }

    /// Whether something is being synced. A caller that queues a proposal and then gets true has nothing
    /// more to do: the thread that calls [`Proposals::durable`] takes the queue after that call, and the
    /// queue's lock orders the two.
    pub fn log_is_busy(&self) -> bool {
        self.given.load(Ordering::Relaxed) > self.durable.load(Ordering::Relaxed)
    }

    /// Takes all queued proposals, in order.
    pub fn take(&self) -> Vec<Proposal<O>> {
        std::mem::take(&mut *self.waiting.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposal(command: &str) -> Proposal<()> {
        Proposal {
            command: command.into(),
            answer: oneshot::channel().0,
            attached: Attached::default(),
            place: None,
        }
    }

    #[test]
    fn proposals_wait_in_order_and_no_more_than_may() {
        let proposals = Proposals::default();
        assert!(proposals.wait(proposal("a"), 2));
        assert!(proposals.wait(proposal("b"), 2));
        assert!(!proposals.wait(proposal("c"), 2), "there is no room");
        let taken: Vec<_> = proposals.take().into_iter().map(|p| p.command).collect();
        assert_eq!(taken, [b"a", b"b"]);
        assert!(proposals.wait(proposal("c"), 2), "there is room again");
    }

    #[test]
    fn the_log_is_busy_until_all_that_it_was_given_is_durable() {
        let proposals = Proposals::<()>::default();
        assert!(!proposals.log_is_busy());
        proposals.given(3);
        proposals.given(5);
        proposals.durable(3);
        assert!(proposals.log_is_busy());
        proposals.durable(5);
        assert!(!proposals.log_is_busy());
    }
}
