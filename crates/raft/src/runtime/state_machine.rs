//! What a host brings: a state machine that applies committed commands in order, and snapshots of
//! it.

use crate::engine::{Committed, Membership};
use crate::ids::{GroupId, Lsn};
use crate::store::{SnapshotData, SnapshotDir, StoredSnapshot};

/// A failure to apply. The same entries are applied again later; the state machine must be as it
/// was before the call.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ApplyError(pub String);

/// A host's state machine. It runs on the apply thread of its group, alone.
pub trait StateMachine: Send + 'static {
    /// What one command answers.
    type Output: Send + 'static;
    /// What a snapshot is written from.
    type Capture: Capture;

    /// Last entry that the recovered state contains; entries at or below are not applied again.
    fn applied(&self) -> Lsn;

    /// Who belongs to the group, as of [`StateMachine::applied`].
    fn membership(&self) -> Membership;

    /// Applies entries in order, as one atomic step, and appends one output for each entry that
    /// has a command. On an error nothing may have changed, and no output counts.
    fn apply(
        &mut self,
        entries: &[Committed],
        outputs: &mut Vec<Self::Output>,
    ) -> Result<(), ApplyError>;

    /// Called between applies, at least once a second: the place for small, bounded steps of
    /// housekeeping that need the state machine for themselves.
    fn maintain(&mut self) {}

    /// Called between applies: fixes what the snapshot will at least cover, which is everything
    /// applied so far. Applies wait for it, so it must be quick.
    fn begin_snapshot(&mut self) -> Self::Capture;

    /// Replaces the state by a snapshot: one of a peer's, or at the open the newest of its own, if the
    /// state is behind that. Durable when it returns, and one atomic step: on an error the state must
    /// be as it was. Files are hard links that the library keeps: to be linked or copied, never changed.
    /// After it, [`StateMachine::applied`] and [`StateMachine::membership`] are the snapshot's.
    ///
    /// Groups of one member never need it; unless it is there, a member cannot catch up by snapshot.
    fn restore(&mut self, snapshot: StoredSnapshot) -> Result<(), SnapshotError> {
        let _ = snapshot;
        let what = "this state machine cannot be restored from a snapshot";
        Err(SnapshotError(what.to_owned()))
    }

    /// At each open, as long as nothing was ever applied: who founded the group, and nobody for a
    /// member that is to join. For those who keep the membership with their state.
    fn create(&mut self, founders: &Membership) {
        let _ = founders;
    }
}

/// A snapshot that has begun. It is written on a thread of its own while applies go on.
pub trait Capture: Send + 'static {
    /// Writes and stores the snapshot durably; returns what it covers in truth. May take its time.
    /// It is dropped without having been written if its group stops first.
    fn write(self) -> Result<StoredSnapshot, SnapshotError>;
}

/// Why there is no snapshot. Nothing is lost by it but time: the log keeps what it has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SnapshotError(pub String);

impl SnapshotSink for () {
    fn taken(&self, _: GroupId, _: &StoredSnapshot) {}
    fn failed(&self, _: GroupId, _: &SnapshotError) {}
}

/// Removes the host's directory of a snapshot of files, once it is stored: for hosts that write each
/// snapshot into a directory of its own, and want it only stored and offered.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveFiles;

impl SnapshotSink for RemoveFiles {
    fn taken(&self, group: GroupId, snapshot: &StoredSnapshot) {
        if let SnapshotData::Files(SnapshotDir { path }) = &snapshot.data
            && let Err(error) = std::fs::remove_dir_all(path)
        {
            tracing::warn!(%group, path = %path.display(), %error, "a stored snapshot's files stay");
        }
    }

    fn failed(&self, _: GroupId, _: &SnapshotError) {}
}

/// Who hears of the snapshots of a group. Called on the snapshot's own thread, before the engine is
/// told and so before the log is compacted. Must not stop the group, which waits for this thread.
pub trait SnapshotSink: Send + Sync {
    /// There is a new snapshot. It may be of the state before a peer's was installed, and cover less
    /// than that: then this member has not stored it.
    fn taken(&self, group: GroupId, snapshot: &StoredSnapshot);
    /// An attempt came to nothing.
    fn failed(&self, group: GroupId, error: &SnapshotError);
}
