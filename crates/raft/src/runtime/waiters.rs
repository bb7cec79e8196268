//! Who waits for the outcome of a proposal, in the order of the log.
//!
//! A leader that loses and regains its leadership may propose for an LSN for which it proposed in an
//! earlier term. The earlier entry is then replaced, and its waiter gets [`ProposeError::Superseded`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::error::{ChangeError, ProposeError};
use crate::engine::Committed;
use crate::ids::{GroupId, Lsn, Term};

/// Kept while a proposal is under way and dropped when it is answered, whether or not anybody
/// looks at the answer: the place for what was admitted.
pub type Guard = Box<dyn Send + Sync>;

/// Called once a proposal is durable and committed, right before it is applied. Called on the apply thread,
/// so it must not block.
pub type Observer = Box<dyn FnOnce() + Send>;

/// What accompanies a proposal until its answer.
#[derive(Default)]
pub struct Attached {
    /// The place of what was admitted.
    pub guard: Option<Guard>,
    /// Who is to learn that it is committed.
    pub observer: Option<Observer>,
}

/// Where the outcome goes when an entry is applied.
pub(super) enum Answer<O> {
    Command(oneshot::Sender<Result<O, ProposeError>>),
    Change(oneshot::Sender<Result<(), ChangeError>>),
}

impl<O> Answer<O> {
    /// The entry was replaced, or its outcome is unknown. The receiver may be gone.
    fn fail(self, why: &ProposeError) {
        match self {
            Answer::Command(to) => drop(to.send(Err(why.clone()))),
            Answer::Change(to) => drop(to.send(Err(match why {
                ProposeError::Superseded => ChangeError::Superseded,
                _ => ChangeError::Unknown,
            }))),
        }
    }
}

pub(super) struct Waiter<O> {
    pub lsn: Lsn,
    pub term: Term,
    pub answer: Answer<O>,
    pub observer: Option<Observer>,
    /// Dropped with the answer.
    pub _guard: Option<Guard>,
}

/// Bounded by `max_pending_proposals` of the engine.
pub(super) struct Waiters<O> {
    waiting: Mutex<VecDeque<Waiter<O>>>,
    /// Whether any waiter has had an observer: without one, nothing looks for them before each step.
    observed: AtomicBool,
}

impl<O> Default for Waiters<O> {
    fn default() -> Self {
        Waiters {
            waiting: Mutex::default(),
            observed: AtomicBool::new(false),
        }
    }
}

impl<O> Waiters<O> {
    pub fn is_empty(&self) -> bool {
        self.waiting.lock().is_empty()
    }

    /// Adds a waiter. Waiters for the same LSN, or a later one, are of an earlier term: their entries are
    /// no longer in the log, which has everything that was committed.
    pub fn wait(&self, waiter: Waiter<O>) {
        if waiter.observer.is_some() {
            self.observed.store(true, Ordering::Relaxed);
        }
        let mut waiters = self.waiting.lock();
        while let Some(late) = waiters.pop_back_if(|last| last.lsn >= waiter.lsn) {
            late.answer.fail(&ProposeError::Superseded);
        }
        waiters.push_back(waiter);
    }

    /// This member leads from the entry at `last` on. Entries that it proposed for that LSN or a later one,
    /// in an earlier term, are replaced.
    pub fn supersede(&self, last: Lsn, term: Term) {
        let mut waiters = self.waiting.lock();
        while let Some(late) = waiters.pop_back_if(|w| w.lsn >= last && w.term != term) {
            late.answer.fail(&ProposeError::Superseded);
        }
    }

    /// A snapshot has replaced the state up to `lsn`. The outcome of entries that it covers is unknown
    /// here.
    pub fn skipped(&self, lsn: Lsn) {
        let mut waiters = self.waiting.lock();
        while let Some(waiter) = waiters.pop_front_if(|w| w.lsn <= lsn) {
            waiter.answer.fail(&ProposeError::Unknown);
        }
    }

    /// Calls the observers of entries that are applied next.
    pub fn committed(&self, entries: &[Committed]) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return;
        };
        if !self.observed.load(Ordering::Relaxed) {
            return;
        }
        let mut waiting = self.waiting.lock();
        for waiter in waiting.iter_mut().take_while(|w| w.lsn <= last.lsn) {
            // An entry of another term has replaced the one that is waited for.
            let at = waiter.lsn.0.checked_sub(first.lsn.0);
            let entry = at.and_then(|at| entries.get(at as usize));
            if entry.is_some_and(|entry| entry.term == waiter.term)
                && let Some(observer) = waiter.observer.take()
            {
                observer();
            }
        }
    }

    /// Answers the waiters of applied entries, in order. A waiter whose LSN has an entry of another term
    /// gets [`ProposeError::Superseded`].
    ///
    /// # Panics
    ///
    /// If the state machine did not append one output for each command.
    pub fn answer(&self, group: GroupId, entries: &[Committed], outputs: &mut Vec<O>) {
        let commands = entries.iter().filter(|e| e.command.is_some()).count();
        assert_eq!(
            outputs.len(),
            commands,
            "group {}: a state machine answers every command once",
            group
        );
        let mut ready = Vec::with_capacity(outputs.len());
        {
            let mut waiters = self.waiting.lock();
            let mut outputs = outputs.drain(..);
            for entry in entries {
                let mut output = entry.command.as_ref().and_then(|_| outputs.next());
                while let Some(front) = waiters.front()
                    && front.lsn <= entry.lsn
                {
                    let Some(waiter) = waiters.pop_front() else {
                        break;
                    };
                    let landed = waiter.lsn == entry.lsn && waiter.term == entry.term;
                    let output = if landed { output.take() } else { None };
                    ready.push((waiter.answer, landed, output));
                }
            }
        }
        for (answer, landed, output) in ready {
            match (answer, output) {
                // The receiver may be gone.
                (Answer::Command(to), Some(output)) => drop(to.send(Ok(output))),
                (Answer::Change(to), _) if landed => drop(to.send(Ok(()))),
                (answer, _) => answer.fail(&ProposeError::Superseded),
            }
        }
    }

    /// Answers all waiters with `error`.
    pub fn fail_all(&self, error: &ProposeError) {
        for waiter in self.waiting.lock().drain(..) {
            waiter.answer.fail(error);
        }
    }
}
