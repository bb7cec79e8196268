//! Compares the blocks of the database before a new lineage begins with it.
//!
//! A start reads few blocks of the database. Where the log continues from it, a damaged block that is met
//! later loses nothing: the partition is recovered from another copy and the log. A new lineage has no other
//! copy, and its first snapshot would contain the damage. So all blocks are compared with their checksums
//! before that, as those of every other copy are. It costs reading the partition once.

use esker_partition::{PartitionId, StoreError};

use super::search::{Search, remove};
use crate::error::StartError;

impl Search<'_> {
    /// Whether all blocks of the database match their checksums. Damage is noted, and the files are put
    /// aside: they may have what no other copy has.
    pub(super) async fn database_is_whole(&mut self) -> Result<bool, StartError> {
        let Some(store) = self.store.cloned() else {
            return Ok(false);
        };
        let partition = self.facts.partition;
        let (files, scratch) = (self.place("database"), self.place("check"));
        remove(&files)?;
        let verified = self.cx.attempts.blocking({
            let files = files.clone();
            move || {
                let linked = store
                    .partition_db(PartitionId(partition))
                    .link_files(&files)?;
                linked.verify_blocks(&scratch)
            }
        });
        let error: StoreError = match verified.await {
            Ok(()) => {
                remove(&files)?;
                return Ok(true);
            }
            Err(error) => error,
        };
        if error.is_unreadable() {
            return Err(StartError::unreadable("the database", &error));
        }
        let why = error.to_string();
        let aside = match files.exists() {
            true => {
                let name = format!("db-partition-{partition}");
                Some(self.cx.data_dir.put_aside_as(&files, &name)?)
            }
            false => None,
        };
        // From here on the files are kept, at whatever point this start ends.
        self.cx.data_dir.report_damage(partition, &why)?;
        tracing::error!(
            partition,
            why,
            aside = aside.as_ref().map(|aside| aside.display().to_string()),
            "a file of the database is damaged: the new lineage of the partition begins with another copy"
        );
        self.tried.push(format!("database: {why}"));
        self.files_are_aside = aside.is_some();
        Ok(false)
    }
}
