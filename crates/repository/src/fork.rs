//! Forks: a restore that cannot show that nothing is lost begins a new lineage.

use serde_json::Map;

use crate::error::Error;
use crate::ids::{LineageId, Lsn};
use crate::repository::{Change, CurrentRoot, Repository};
use crate::root::{Abandoned, Parent, Root};

impl Repository {
    /// Makes `lineage` the repository's, branched off from `parent` after `lsn`: snapshots above it
    /// become abandoned (kept until pruned by hand) and all uploads under way are fenced, in one swap.
    ///
    /// The repository must be of lineage `parent`. Of two forks at once one fails with
    /// [`Error::OtherLineage`]. Who restored must not serve before this has succeeded.
    pub async fn fork(
        &self,
        parent: Option<LineageId>,
        lsn: Lsn,
        lineage: LineageId,
    ) -> Result<CurrentRoot, Error> {
        self.cluster()?;
        let store = self.store.operation();
        self.swap_with(
            &store,
            None,
            |root| {
                if root.lineage != parent || parent == Some(lineage) {
                    return Err(Error::OtherLineage {
                        theirs: root.lineage,
                        ours: parent,
                    });
                }
                let mut next = root.clone();
                next.lineage = Some(lineage);
                next.parent = parent.map(|lineage| {
                    let parent = Parent {
                        lineage,
                        lsn,
                        extra: Map::new(),
                    };
                    let parent = parent.with_ancestors(root.parent.as_ref());
                    parent.begun(store.env().now())
                });
                let dead = next
                    .retained_snapshots
                    .extract_if(.., |r| r.min_applied_lsn > lsn)
                    .map(|snapshot| Abandoned {
                        lineage: parent,
                        snapshot,
                    });
                next.abandoned.extend(dead);
                next.intents.clear();
                // A history of its own: whoever wrote the other one does not write this one.
                next.writer = None;
                self.claim_writer(&mut next)?;
                Ok(Change::To(Box::new(next)))
            },
            |root: &Root| root.lineage == Some(lineage),
        )
        .await
    }
}
