//! Verification of the blocks of a checkpoint's files.

use std::path::Path;
use std::{fs, io};

use super::Checkpoint;
use crate::ids::PartitionId;
use crate::store::{Store, StoreError, StoreOptions};

impl Checkpoint {
    /// Reads every block of every file in a scratch database, which is created in `scratch` and then
    /// removed. [`Checkpoint::verify`] compares files with what they were when the checkpoint was made,
    /// so only this finds a block that was damaged before.
    ///
    /// # Errors
    ///
    /// A block is damaged; or the files or the scratch database cannot be read or written now.
    pub fn verify_blocks(&self, scratch: &Path) -> Result<(), StoreError> {
        let removed = |result: io::Result<()>| match result {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::Io {
                operation: "removing",
                path: scratch.to_owned(),
                source,
            }),
            _ => Ok(()),
        };
        removed(fs::remove_dir_all(scratch))?;
        let verified = self.verify_blocks_in(scratch);
        removed(fs::remove_dir_all(scratch))?;
        verified
    }

    fn verify_blocks_in(&self, scratch: &Path) -> Result<(), StoreError> {
        let partition = PartitionId(self.meta.partition);
        let linked = self.link_to(&scratch.join("files"))?;
        let store = Store::open_any(&scratch.join("db"), &StoreOptions::for_inspection())?;
        store.import(partition, &linked)?;
        store.verify_blocks()?;
        store.partition_db(partition).lineage()?;
        store.close();
        Ok(())
    }
}
