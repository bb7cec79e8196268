//! The lineage of a partition in the database.

use prost::Message as _;

use super::{Applied, PartitionDb, StoreError};
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

    /// Number of forks of the partition.
    pub(crate) fn forks(&self) -> Result<u64, StoreError> {
        Ok(self.lineage()?.forks)
    }

    /// Begins another lineage where the partition's data ends, with `voter` as the group's only member;
    /// durable when this returns. Nothing else may use the partition meanwhile, and what was opened on it
    /// before must not be used any more.
    pub fn fork(&self, lineage: &Lineage, voter: u64) -> Result<(), StoreError> {
        let applied = self
            .applied()?
            .ok_or_else(|| self.malformed("the position", &"it is missing"))?;
        let applied = Applied {
            lsn: applied.lsn,
            term: applied.term,
            voters: vec![voter],
            ..Applied::default()
        };
        let mut batch = self.batch();
        batch.put(keys::APPLIED, applied.encode_to_vec());
        batch.put(keys::LINEAGE, lineage.to_bytes());
        batch.write()?;
        self.note_lineage(lineage.clone());
        self.flush()
    }
}
