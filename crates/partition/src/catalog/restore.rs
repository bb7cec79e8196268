//! Replaces the catalog's state by a snapshot of a member.

use esker_raft::StoredSnapshot;

use super::{Catalog, Contents};
use crate::store::StoreError;

impl Catalog {
    /// Replaces the state; durable when this returns.
    ///
    /// # Errors
    ///
    /// The state is unchanged.
    pub(super) fn replace_by(&mut self, snapshot: &StoredSnapshot) -> Result<(), StoreError> {
        let next = self.part.import_snapshot(snapshot)?;
        let contents = Contents::read(next.part())?;
        self.digests.open_replaced(next.part())?;
        // Readers see the old state or the new one.
        let (mut basins, mut tokens) = (self.basins.write(), self.tokens.write());
        let mut nodes = self.nodes.write();
        self.part.switch_to(&next);
        *basins = contents.basins;
        *tokens = contents.tokens;
        *nodes = contents.nodes;
        self.applied = contents.applied;
        self.counters = contents.counters;
        self.unanswered = None;
        Ok(())
    }
}
