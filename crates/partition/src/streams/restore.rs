//! Replaces the state of a stream partition by a snapshot of a member.
//!
//! Readers go on: a session has the same stream, with the snapshot's tail and trim point, and reads on from
//! the database. The snapshot is a later state of the same history, so everything that a session was given
//! is in it, or trimmed, or its stream is deleted, as if the entries in between had been applied.

use esker_raft::StoredSnapshot;

use super::{StreamPartition, read_counters};
use crate::reclaim::Reclaimer;
use crate::store::StoreError;
use crate::streams::failed::FailedSessions;

impl StreamPartition {
    /// Replaces the state; durable when this returns.
    ///
    /// # Errors
    ///
    /// The state is unchanged.
    pub(super) fn replace_by(&mut self, snapshot: &StoredSnapshot) -> Result<(), StoreError> {
        let next = self.part.import_snapshot(snapshot)?;
        // Everything that can fail comes before the switch.
        let part = next.part();
        let applied = part
            .applied()?
            .ok_or_else(|| part.malformed("the position", &"it is missing"))?;
        let counters = read_counters(part, part.forks()?)?;
        let failed = FailedSessions::load(part, applied.lsn, self.failed.window())?;
        let mut reclaimer = Reclaimer::open(part.clone(), self.directory.options())?;
        let meta = part.state_meta()?.unwrap_or_default();
        self.digests.open_replaced(part)?;
        self.directory
            .replace(part, || self.part.switch_to(&next))?;
        reclaimer.use_part(&self.part);
        self.state.replace(meta);
        self.applied = applied;
        self.counters = counters;
        self.failed = failed;
        self.reclaimer = reclaimer;
        self.unanswered = None;
        Ok(())
    }
}
