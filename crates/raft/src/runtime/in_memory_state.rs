//! A state machine whose state is in memory and whose snapshots are bytes.

use super::state_machine::{ApplyError, Capture, SnapshotError, StateMachine};
use crate::engine::{Committed, Membership};
use crate::ids::{Lsn, Term};
use crate::store::{SnapshotData, StoredSnapshot};

/// Bytes of a snapshot, made on the snapshot's own thread.
pub type Writing = Box<dyn FnOnce() -> Result<Vec<u8>, SnapshotError> + Send>;

/// A state that lives in memory. After a restart it is rebuilt from its newest snapshot and the log after
/// it. [`InMemory`] makes a [`StateMachine`] of it.
pub trait InMemoryState: Send + 'static {
    /// The answer to one command.
    type Output: Send + 'static;

    /// Applies one command. The result must depend on the state and the command alone, because every member
    /// does it, and again after a restart.
    fn apply(&mut self, lsn: Lsn, command: &[u8]) -> Self::Output;

    /// Encodes the whole state, for [`InMemoryState::restore`].
    fn snapshot(&self) -> Result<Vec<u8>, SnapshotError>;

    /// Begins a snapshot. Applies wait until this returns, and go on while the returned function runs.
    ///
    /// The default calls [`InMemoryState::snapshot`] at once, so applies wait for all of it: enough for a state
    /// of some kilobytes. A state that is cheap to clone (small, or of persistent collections or `Arc`s)
    /// implements it as `capture_clone(self)`; another one captures what it needs, by hand.
    fn capture(&self) -> Writing {
        let snapshot = self.snapshot();
        Box::new(move || snapshot)
    }

    /// Replaces the state. On an error it must be unchanged.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError>;
}

/// [`InMemoryState::capture`] for a state that is cheap to clone: applies wait for the clone alone, and the clone
/// is encoded on the snapshot's own thread.
pub fn capture_clone<P: InMemoryState + Clone>(state: &P) -> Writing {
    let state = state.clone();
    Box::new(move || state.snapshot())
}

/// Makes a [`StateMachine`] of an [`InMemoryState`]: keeps its position and its membership.
pub struct InMemory<P> {
    state: P,
    applied: Lsn,
    term: Term,
    membership: Membership,
}

impl<P: InMemoryState> InMemory<P> {
    /// With an empty state. The state from before a restart is restored when the group is opened.
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

/// A snapshot of an [`InMemoryState`] that has begun.
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
