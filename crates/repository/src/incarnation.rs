//! One start of a process that puts snapshots, and the earlier starts that it continues.
//!
//! `writer` decides what an incarnation may write.

use crate::ids::IncarnationId;

/// One start of a process that puts snapshots, and the starts that it follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incarnation {
    /// Drawn at this start. It must be stored before it is used, so that the next start follows it.
    pub id: IncarnationId,
    /// The incarnations of earlier starts of the same data directory.
    pub after: Vec<IncarnationId>,
}

impl Incarnation {
    /// Whether this is `other`, or a later start of the same data directory.
    pub(crate) fn follows(&self, other: IncarnationId) -> bool {
        self.id == other || self.after.contains(&other)
    }
}
