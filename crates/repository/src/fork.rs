//! Forks: a restore that cannot prove that nothing was lost begins a new lineage.

use serde_json::Map;

use crate::error::Error;
use crate::ids::{LineageId, Lsn};
use crate::repository::{Change, CurrentRoot, Repository};
use crate::root::{Abandoned, Parent, Root};

impl Repository {
    /// Makes `lineage` the repository's lineage, branched off from `parent` after `lsn`, in one swap:
    /// snapshots above `lsn` become abandoned (kept until an operator prunes them), and all uploads under
    /// way are fenced.
    ///
    /// The repository must be of lineage `parent`. Of two concurrent forks, one fails with
    /// [`Error::OtherLineage`]. A node that restored must not serve before this has succeeded.
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
                let stale = next
                    .retained_snapshots
                    .extract_if(.., |r| r.min_applied_lsn > lsn)
                    .map(|snapshot| Abandoned {
                        lineage: parent,
                        snapshot,
                    });
                next.abandoned.extend(stale);
                next.intents.clear();
                // The writer of the parent lineage does not write this one.
                next.writer = None;
                self.claim_writer(&mut next)?;
                Ok(Change::To(Box::new(next)))
            },
            |root: &Root| root.lineage == Some(lineage),
        )
        .await
    }
}
