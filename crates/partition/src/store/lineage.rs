//! The lineage of a partition in the database.

use esker_raft::Lsn;
use prost::Message as _;

use super::{Applied, PartitionDb, StoreError};
use crate::applied::Archived;
use crate::ids::LineageId;
use crate::keys;
use crate::lineage::Lineage;

impl PartitionDb {
    /// The lineage of the partition.
    pub fn lineage(&self) -> Result<Lineage, StoreError> {
        let families = self.families();
        if let Some(known) = &*families.lineage.read() {
            return Ok(known.clone());
        }
        let lineage = self
            .get_bytes(keys::LINEAGE, "the lineage")?
            .ok_or_else(|| self.malformed("the lineage", &"it is missing"))?;
        let lineage =
            Lineage::from_bytes(&lineage).map_err(|e| self.malformed("the lineage", &e))?;
        Ok(families.lineage.write().get_or_insert(lineage).clone())
    }

    /// Notes a lineage that was written.
    pub(crate) fn note_lineage(&self, lineage: Lineage) {
        *self.families().lineage.write() = Some(lineage);
    }

    /// What the entry at `at` records of the repository, whose oldest snapshot is as of `lsn` and of this lineage;
    /// `None` if that is of another history.
    pub(crate) fn archived_by(
        &self,
        lineage: &[u8],
        lsn: u64,
        at: Lsn,
    ) -> Result<Option<Archived>, StoreError> {
        let id = <[u8; 16]>::try_from(lineage);
        let id = id.map_err(|e| self.malformed("the lineage of a snapshot", &e))?;
        let id = LineageId(u128::from_be_bytes(id));
        let is_ours = lsn < at.0 && self.lineage()?.contains(id, lsn);
        Ok(is_ours.then_some(Archived {
            lsn,
            noted_at: at.0,
        }))
    }

    /// Number of forks of the partition.
    pub(crate) fn forks(&self) -> Result<u64, StoreError> {
        Ok(self.lineage()?.forks)
    }

    /// Takes the lineage with which the log of a group began that there is already. For a partition that was just
    /// created and has nothing: the group's members send it a snapshot. Durable when this returns.
    pub fn join(&self, lineage: &Lineage) -> Result<(), StoreError> {
        let mut batch = self.batch();
        batch.put(keys::LINEAGE, lineage.to_bytes());
        batch.write()?;
        self.note_lineage(lineage.clone());
        self.flush()
    }

    /// Begins another lineage where the partition's data ends, with `voters` as the group's only members;
    /// durable when this returns. Nothing else may use the partition meanwhile, and what was opened on it
    /// before must not be used any more.
    pub fn fork(&self, lineage: &Lineage, voters: &[u64]) -> Result<(), StoreError> {
        let applied = self
            .applied()?
            .ok_or_else(|| self.malformed("the position", &"it is missing"))?;
        let applied = Applied {
            lsn: applied.lsn,
            term: applied.term,
            voters: voters.to_vec(),
            ..Applied::default()
        };
        let mut batch = self.batch();
        batch.put(keys::APPLIED, applied.encode_to_vec());
        batch.put(keys::LINEAGE, lineage.to_bytes());
        // Its replicas have other voters now, or none.
        batch.delete(keys::COMPARED);
        batch.write()?;
        self.note_lineage(lineage.clone());
        self.flush()
    }
}
