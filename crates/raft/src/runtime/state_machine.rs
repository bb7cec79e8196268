//! What a host implements: a state machine that applies committed commands in order, snapshots of it, and a
//! callback for them.

use std::time::Duration;

use crate::engine::{Committed, Membership};
use crate::ids::{GroupId, Lsn};
use crate::store::{SnapshotData, SnapshotDir, StoredSnapshot};

/// Time between two calls of [`StateMachine::maintain`], if there is something to do.
pub const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(250);

/// A failure to apply. The same entries are applied again later; the state machine must be as it
/// was before the call.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ApplyError(pub String);

/// A host's state machine. It runs on the apply thread of its group, alone.
pub trait StateMachine: Send + 'static {
    /// The answer to one command.
    type Output: Send + 'static;
    /// The captured state that a snapshot is written from.
    type Capture: Capture;

    /// Last entry that the state contains. Entries at or below it are not applied again.
    fn applied(&self) -> Lsn;

    /// Who belongs to the group, as of [`StateMachine::applied`].
    fn membership(&self) -> Membership;

    /// Applies entries in order, as one atomic step, and appends one output for each entry that has a
    /// command.
    ///
    /// # Errors
    ///
    /// The state must then be unchanged. The same entries are applied again, until it works or the group
    /// stops; the outputs are ignored.
    fn apply(
        &mut self,
        entries: &[Committed],
        outputs: &mut Vec<Self::Output>,
    ) -> Result<(), ApplyError>;

    /// Called between applies: for small, bounded steps of housekeeping that need the state machine exclusively.
    /// While entries can be applied, at least once a second after an apply, and then at
    /// [`StateMachine::maintenance_interval`].
    fn maintain(&mut self) {}

    /// How long [`StateMachine::maintain`] may wait if nothing is applied. Asked after each call: a machine with
    /// nothing to do lets its thread sleep, of which a node has one for each group.
    fn maintenance_interval(&self) -> Duration {
        MAINTENANCE_INTERVAL
    }

    /// Called between applies. Captures the state, so that the snapshot covers at least everything applied
    /// so far. Applies wait for this call, so it must be quick.
    fn begin_snapshot(&mut self) -> Self::Capture;

    /// Replaces the state by a snapshot: a peer's, or at an open the newest stored one if the state is
    /// behind it. The new state must be durable when this returns. Files are hard links that belong to the
    /// library: link or copy them, and never change them. Afterwards [`StateMachine::applied`] and
    /// [`StateMachine::membership`] return those of the snapshot.
    ///
    /// Groups of one member never need it. Without it, a member cannot catch up by a snapshot.
    ///
    /// # Errors
    ///
    /// The state must then be unchanged.
    fn restore(&mut self, snapshot: StoredSnapshot) -> Result<(), SnapshotError> {
        let _ = snapshot;
        let what = "this state machine cannot be restored from a snapshot";
        Err(SnapshotError(what.to_owned()))
    }

    /// Called at each open as long as nothing was ever applied: the founders of the group; empty for a
    /// member that waits to be added. For state machines that keep the membership with their state.
    fn create(&mut self, founders: &Membership) {
        let _ = founders;
    }
}

/// A snapshot that has begun. It is written on a thread of its own while applies go on.
pub trait Capture: Send + 'static {
    /// Writes the snapshot durably, and returns what it actually covers. May take any time. The capture is
    /// dropped instead if the group stops first.
    ///
    /// # Errors
    ///
    /// There is no snapshot; the engine asks for another one later.
    fn write(self) -> Result<StoredSnapshot, SnapshotError>;
}

/// Why there is no snapshot. No data is lost: the log keeps its entries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SnapshotError(pub String);

impl SnapshotSink for () {
    fn taken(&self, _: GroupId, _: &StoredSnapshot) {}
    fn failed(&self, _: GroupId, _: &SnapshotError) {}
}

/// Removes the host's directory of a snapshot once the library has stored its files. For hosts that write
/// each snapshot into a directory of its own and do not need it themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveFiles;

impl SnapshotSink for RemoveFiles {
    fn taken(&self, group: GroupId, snapshot: &StoredSnapshot) {
        if let SnapshotData::Files(SnapshotDir { path }) = &snapshot.data
            && let Err(error) = std::fs::remove_dir_all(path)
        {
            tracing::warn!(%group, path = %path.display(), %error, "the files of a stored snapshot could not be removed");
        }
    }

    fn failed(&self, _: GroupId, _: &SnapshotError) {}
}

/// A host's callback for the snapshots of a group. Called on the thread that wrote the snapshot, before the
/// engine is stepped and so before the log is compacted. It must not stop the group, because that waits for
/// this thread.
pub trait SnapshotSink: Send + Sync {
    /// A snapshot was taken. If a peer's snapshot was installed meanwhile, it covers less than that one,
    /// and this member has not stored it.
    fn taken(&self, group: GroupId, snapshot: &StoredSnapshot);
    /// An attempt failed.
    fn failed(&self, group: GroupId, error: &SnapshotError);
}
