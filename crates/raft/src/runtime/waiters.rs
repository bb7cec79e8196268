//! Who waits for the outcome of a proposal, in the order of the log.
//!
//! A leader that loses and regains its leadership may propose for an LSN for which it proposed in an
//! earlier term. The earlier entry is then replaced in its own log. Another member may still have it and, with five
//! voters or more, commit it as a later leader. So its waiter goes on waiting, until an entry is applied that decides:
//! the entry itself, or one of a later term at its LSN or below, for terms never decrease along a log. Only then it
//! gets [`ProposeError::Superseded`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::error::{ChangeError, ProposeError};
use super::sequence::Sequence;
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
    /// The proposals of the same sender: after one that was refused, it is refused too.
    pub sequence: Option<Arc<Sequence>>,
}

/// Where the outcome goes when an entry is applied.
pub(crate) enum Answer<O> {
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

pub(crate) struct Waiter<O> {
    pub lsn: Lsn,
    pub term: Term,
    pub answer: Answer<O>,
    pub observer: Option<Observer>,
    /// Dropped with the answer.
    pub _guard: Option<Guard>,
}

/// Most waiters whose entries are replaced: as many as a log writer of the default configuration has pending. The
/// outcome of the oldest is given as unknown beyond that; it takes several leaderships that commit nothing.
const MAX_REPLACED: usize = 1 << 14;

pub(crate) struct Waiters<O> {
    waiting: Mutex<Waiting<O>>,
    /// Whether any waiter has had an observer: without one, nothing looks for them before each step.
    observed: AtomicBool,
}

struct Waiting<O> {
    /// Whose entries are in this member's log, in its order. Bounded by `max_pending_proposals` of the engine.
    in_log: VecDeque<Waiter<O>>,
    /// Whose entries other ones have replaced in this member's log. At most [`MAX_REPLACED`].
    replaced: VecDeque<Waiter<O>>,
}

impl<O> Default for Waiting<O> {
    fn default() -> Self {
        Waiting {
            in_log: VecDeque::new(),
            replaced: VecDeque::new(),
        }
    }
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
        let waiting = self.waiting.lock();
        waiting.in_log.is_empty() && waiting.replaced.is_empty()
    }

    /// Adds a waiter. Waiters for the same LSN, or a later one, are of an earlier term: their entries are
    /// no longer in the log of this member.
    pub fn wait(&self, waiter: Waiter<O>) {
        if waiter.observer.is_some() {
            self.observed.store(true, Ordering::Relaxed);
        }
        let mut waiting = self.waiting.lock();
        let Waiting { in_log, replaced } = &mut *waiting;
        while let Some(late) = in_log.pop_back_if(|last| last.lsn >= waiter.lsn) {
            replaced.push_back(late);
        }
        while replaced.len() > MAX_REPLACED
            && let Some(oldest) = replaced.pop_front()
        {
            oldest.answer.fail(&ProposeError::Unknown);
        }
        in_log.push_back(waiter);
    }

    /// A snapshot has replaced the state up to `lsn`. The outcome of entries that it covers is unknown
    /// here.
    pub fn skipped(&self, lsn: Lsn) {
        let mut waiting = self.waiting.lock();
        while let Some(waiter) = waiting.in_log.pop_front_if(|w| w.lsn <= lsn) {
            waiter.answer.fail(&ProposeError::Unknown);
        }
        for waiter in extract(&mut waiting.replaced, |w| w.lsn <= lsn) {
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
        let Waiting { in_log, replaced } = &mut *waiting;
        let in_log = in_log.iter_mut().take_while(|w| w.lsn <= last.lsn);
        for waiter in in_log.chain(replaced) {
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
    /// gets [`ProposeError::Superseded`], and so does one of an earlier term whose LSN comes later.
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
            let mut waiting = self.waiting.lock();
            let Waiting { in_log, replaced } = &mut *waiting;
            let mut outputs = outputs.drain(..);
            for entry in entries {
                let mut output = entry.command.as_ref().and_then(|_| outputs.next());
                let mut decide = |waiter: Waiter<O>| {
                    let landed = waiter.lsn == entry.lsn && waiter.term == entry.term;
                    let output = if landed { output.take() } else { None };
                    ready.push((waiter.answer, landed, output));
                };
                while let Some(waiter) = in_log.pop_front_if(|w| w.lsn <= entry.lsn) {
                    decide(waiter);
                }
                // The later ones are of later terms.
                while let Some(waiter) = in_log.pop_back_if(|w| w.term < entry.term) {
                    decide(waiter);
                }
                let is_decided = |w: &Waiter<O>| w.lsn <= entry.lsn || w.term < entry.term;
                extract(replaced, is_decided).into_iter().for_each(decide);
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
        let Waiting { in_log, replaced } = std::mem::take(&mut *self.waiting.lock());
        for waiter in replaced.into_iter().chain(in_log) {
            waiter.answer.fail(error);
        }
    }
}

/// Removes the waiters of which `is_ready` is true, and returns them in order.
fn extract<O>(
    from: &mut VecDeque<Waiter<O>>,
    is_ready: impl Fn(&Waiter<O>) -> bool,
) -> Vec<Waiter<O>> {
    let (mut ready, mut rest) = (Vec::new(), VecDeque::new());
    for waiter in from.drain(..) {
        match is_ready(&waiter) {
            true => ready.push(waiter),
            false => rest.push_back(waiter),
        }
    }
    *from = rest;
    ready
}

#[cfg(test)]
mod tests {
    use super::*;

    type Asked = oneshot::Receiver<Result<u64, ProposeError>>;

    fn wait(waiters: &Waiters<u64>, lsn: u64, term: u64) -> Asked {
        let (answer, asked) = oneshot::channel();
        waiters.wait(Waiter {
            lsn: Lsn(lsn),
            term: Term(term),
            answer: Answer::Command(answer),
            observer: None,
            _guard: None,
        });
        asked
    }

    /// Entries are applied, each given as LSN and term. An entry at an even LSN is the first of its leader, without a
    /// command; the output of another one is its term.
    fn apply(waiters: &Waiters<u64>, entries: &[(u64, u64)]) {
        let entry = |(lsn, term): &(u64, u64)| Committed {
            lsn: Lsn(*lsn),
            term: Term(*term),
            command: (lsn % 2 == 1).then(|| bytes::Bytes::from_static(b"x")),
            membership: None,
            checksum: 0,
        };
        let entries: Vec<_> = entries.iter().map(entry).collect();
        let commands = entries.iter().filter(|entry| entry.command.is_some());
        let mut outputs = commands.map(|entry| entry.term.0).collect();
        waiters.answer(GroupId(1), &entries, &mut outputs);
    }

    fn is_open(asked: &mut Asked) -> bool {
        matches!(asked.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    /// Of five voters, a member that led term 5 leads term 7, and its entry of term 5 at LSN 11 is on another member
    /// too. It leads no more before its own entry is anywhere else, and that other member commits the one of term 5.
    #[test]
    fn an_entry_that_is_replaced_here_and_committed_by_another_leader_has_happened() {
        let waiters = Waiters::default();
        let (mut first, mut second) = (wait(&waiters, 9, 5), wait(&waiters, 11, 5));
        let mut later = wait(&waiters, 11, 7);
        assert!(is_open(&mut second), "nothing is decided yet");
        apply(&waiters, &[(8, 5), (9, 5), (10, 5), (11, 5)]);
        assert_eq!(first.try_recv().unwrap(), Ok(5));
        assert_eq!(second.try_recv().unwrap(), Ok(5));
        assert_eq!(later.try_recv().unwrap(), Err(ProposeError::Superseded));
        assert!(waiters.is_empty());
    }

    #[test]
    fn an_entry_is_superseded_once_one_of_a_later_term_is_applied_at_its_lsn_or_below() {
        let waiters = Waiters::default();
        let mut below = wait(&waiters, 7, 5);
        let mut replaced: Vec<_> = [9, 11, 13].map(|lsn| wait(&waiters, lsn, 5)).into();
        let mut kept = wait(&waiters, 9, 7);
        apply(&waiters, &[(6, 5), (7, 5)]);
        assert_eq!(below.try_recv().unwrap(), Ok(5));
        assert!(replaced.iter_mut().all(is_open));
        // The first entry of the leader of term 7. Nothing need be applied at 13 ever.
        apply(&waiters, &[(8, 7)]);
        for asked in &mut replaced {
            assert_eq!(asked.try_recv().unwrap(), Err(ProposeError::Superseded));
        }
        assert!(is_open(&mut kept));
        apply(&waiters, &[(9, 7)]);
        assert_eq!(kept.try_recv().unwrap(), Ok(7));
    }

    #[test]
    fn entries_of_a_deposed_leader_are_superseded_by_those_of_its_successor() {
        let waiters = Waiters::default();
        let mut asked: Vec<_> = [9, 11].map(|lsn| wait(&waiters, lsn, 5)).into();
        apply(&waiters, &[(8, 6)]);
        for asked in &mut asked {
            assert_eq!(asked.try_recv().unwrap(), Err(ProposeError::Superseded));
        }
    }

    #[test]
    fn what_a_snapshot_covers_is_unknown_also_if_it_was_replaced_here() {
        let waiters = Waiters::default();
        let (mut replaced, mut later) = (wait(&waiters, 9, 5), wait(&waiters, 13, 5));
        let mut kept = wait(&waiters, 9, 7);
        waiters.skipped(Lsn(10));
        for asked in [&mut replaced, &mut kept] {
            assert_eq!(asked.try_recv().unwrap(), Err(ProposeError::Unknown));
        }
        assert!(is_open(&mut later));
        waiters.fail_all(&ProposeError::Unknown);
        assert_eq!(later.try_recv().unwrap(), Err(ProposeError::Unknown));
    }

    #[test]
    fn no_more_than_so_many_wait_whose_entries_are_replaced() {
        let waiters = Waiters::default();
        let mut asked = Vec::new();
        for term in 1..=MAX_REPLACED as u64 + 2 {
            asked.push(wait(&waiters, 9, term));
        }
        assert_eq!(asked[0].try_recv().unwrap(), Err(ProposeError::Unknown));
        assert!(asked[1..].iter_mut().all(is_open));
    }
}
