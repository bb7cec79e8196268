//! The plain form of a state machine: all of it in memory, its snapshots bytes.

use super::state_machine::{ApplyError, Capture, SnapshotError, StateMachine};
use crate::engine::{Committed, Membership};
use crate::ids::{Lsn, Term};
use crate::store::{SnapshotData, StoredSnapshot};

/// Bytes of a snapshot, made on the snapshot's own thread.
pub type Writing = Box<dyn FnOnce() -> Result<Vec<u8>, SnapshotError> + Send>;

/// A state that lives in memory: what it survives a restart by is its newest snapshot, and the log
/// after it. [`InMemory`] makes a [`StateMachine`] of it.
pub trait InMemoryState: Send + 'static {
    /// What one command answers.
    type Output: Send + 'static;

    /// Applies one command. Must follow from the state and the command alone: it is done on every
    /// member, and again after a restart.
    fn apply(&mut self, lsn: Lsn, command: &[u8]) -> Self::Output;

    /// All of the state, as bytes that only [`InMemoryState::restore`] understands.
    fn snapshot(&self) -> Result<Vec<u8>, SnapshotError>;

    /// Begins a snapshot; applies wait until this returns, and go on while the answer runs.
    ///
    /// The default calls [`InMemoryState::snapshot`] at once, so applies wait for all of it: enough for a state
    /// of some kilobytes. A state that is cheap to clone (small, or of persistent collections or `Arc`s)
    /// implements it as `capture_clone(self)`; another one captures what it needs, by hand.
    fn capture(&self) -> Writing {
        let snapshot = self.snapshot();
        Box::new(move || snapshot)
    }

    /// Replaces the state. On an error it must be as it was.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError>;
}

/// [`InMemoryState::capture`] for a state that is cheap to clone: applies wait for the clone alone, and the clone
/// is encoded on the snapshot's own thread.
pub fn capture_clone<P: InMemoryState + Clone>(state: &P) -> Writing {
    let state = state.clone();
    Box::new(move || state.snapshot())
}

/// Keeps the position and the membership that belong to a [`InMemoryState`] state.
pub struct InMemory<P> {
    state: P,
    applied: Lsn,
    term: Term,
    membership: Membership,
}

impl<P: InMemoryState> InMemory<P> {
    /// Around an empty state. What was there before a restart is restored when the group is opened.
    pub fn new(state: P) -> InMemory<P> {
        InMemory {
            state,
            applied: Lsn(0),
            term: Term(0),
            membership: Membership::default(),
        }
    }
}

impl<P: InMemoryState> StateMachine for InMemory<P> {
    type Output = P::Output;
    type Capture = InMemoryCapture;

    fn applied(&self) -> Lsn {
        self.applied
    }

    fn membership(&self) -> Membership {
        self.membership.clone()
    }

    fn create(&mut self, founders: &Membership) {
        self.membership = founders.clone();
    }

    fn apply(
        &mut self,
        entries: &[Committed],
        outputs: &mut Vec<P::Output>,
    ) -> Result<(), ApplyError> {
        for entry in entries {
            if let Some(command) = &entry.command {
                outputs.push(self.state.apply(entry.lsn, command));
            }
            if let Some(membership) = &entry.membership {
                self.membership = (**membership).clone();
            }
            (self.applied, self.term) = (entry.lsn, entry.term);
        }
        Ok(())
    }

    fn begin_snapshot(&mut self) -> InMemoryCapture {
        InMemoryCapture {
            last_included_index: self.applied,
            term: self.term,
            peers: self.membership.clone(),
            writing: self.state.capture(),
        }
    }

    fn restore(&mut self, snapshot: StoredSnapshot) -> Result<(), SnapshotError> {
        let SnapshotData::Bytes(bytes) = &snapshot.data else {
            let what = "a snapshot of files cannot be restored into memory";
            return Err(SnapshotError(what.to_owned()));
        };
        self.state.restore(bytes)?;
        self.applied = snapshot.last_included_index;
        self.term = snapshot.term;
        self.membership = snapshot.peers;
        Ok(())
    }
}

/// A snapshot of a [`InMemoryState`] state that has begun.
pub struct InMemoryCapture {
    last_included_index: Lsn,
    term: Term,
    peers: Membership,
    writing: Writing,
}

impl Capture for InMemoryCapture {
    fn write(self) -> Result<StoredSnapshot, SnapshotError> {
        if self.last_included_index.0 == 0 {
            return Err(SnapshotError("nothing is applied yet".to_owned()));
        }
        Ok(StoredSnapshot {
            last_included_index: self.last_included_index,
            term: self.term,
            peers: self.peers,
            data: (self.writing)()?.into(),
        })
    }
}
