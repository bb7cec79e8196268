//! Imports a snapshot that a member of the group has sent, beside the partition's present data.

use std::fs;

use esker_raft::{Membership, SnapshotData, StoredSnapshot};

use super::capture::covered;
use super::{Checkpoint, io};
use crate::store::{NextFamilies, PartitionDb, StoreError};

/// The directory of a scratch database, and then of the links that an import moves into the database. One that is left is removed with
/// unfinished checkpoints.
const LINKS: &str = "tmp-install";

impl PartitionDb {
    /// Imports the files of a snapshot. They stay where they are: the database gets links. What the
    /// partition has now is used until [`PartitionDb::switch_to`], but a start from now on finds the
    /// snapshot's state.
    ///
    /// # Errors
    ///
    /// The files are not a checkpoint of this partition and of the snapshot's position, of another cluster or
    /// group, or damaged; or they cannot be read, linked or imported now. The partition is as it was.
    pub(crate) fn import_snapshot(
        &self,
        snapshot: &StoredSnapshot,
    ) -> Result<NextFamilies, StoreError> {
        let SnapshotData::Files(dir) = &snapshot.data else {
            return Err(self.malformed("a snapshot of a member", &"it has no files"));
        };
        let checkpoint = Checkpoint::open(&dir.path)?;
        let meta = &checkpoint.meta;
        let bad = |why: String| StoreError::Checkpoint {
            path: dir.path.clone(),
            why,
        };
        let partition = self.partition();
        if meta.partition != partition.0 {
            return Err(bad(format!(
                "it is of partition {}, not {partition}",
                meta.partition
            )));
        }
        let offered = (snapshot.last_included_index.0, snapshot.term.0);
        if (meta.lsn, meta.term) != offered || Membership::from(&meta.members) != snapshot.peers {
            return Err(bad(format!(
                "it covers LSN {} of term {}, and was offered as LSN {} of term {}, or with other members",
                meta.lsn, meta.term, offered.0, offered.1
            )));
        }
        // The transfer proves that they are the sender's bytes. These checksums are older: they prove that the
        // sender's disk has not changed them since the checkpoint was made, so damage does not spread.
        checkpoint.verify()?;
        let ours = self.lineage()?;
        let links = self.store().checkpoints(partition).join(LINKS);
        remove(&links)?;
        // Before the import: once the database has the files, the next start takes them for the partition.
        let found = covered(partition, &meta.files, &meta.comparator, &dir.path, &links);
        remove(&links)?;
        let (position, theirs) = found?;
        if (&theirs.cluster_id, theirs.partitions) != (&ours.cluster_id, ours.partitions) {
            return Err(bad(format!(
                "it is of cluster {} with {} partitions, and this one is of cluster {} with {}",
                theirs.cluster_id, theirs.partitions, ours.cluster_id, ours.partitions
            )));
        }
        if theirs.log_id() != ours.log_id() {
            return Err(bad(format!(
                "it is of the group {}, and this one is {}",
                theirs.log_id(),
                ours.log_id()
            )));
        }
        if (position.lsn, position.term) != offered {
            return Err(bad(
                "its files end elsewhere than its description".to_owned()
            ));
        }
        let files = checkpoint.link_to(&links)?.live_files(partition)?;
        let imported = self.store().import_next(partition, &meta.comparator, files);
        remove(&links)?;
        imported
    }
}

fn remove(links: &std::path::Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(links) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("removing", links)(e)),
        _ => Ok(()),
    }
}
