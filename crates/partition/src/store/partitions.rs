//! Operations that create, import and drop partitions.

use std::fs;
use std::path::Path;

use prost::Message as _;
use rust_rocksdb::{ExportImportFilesMetaData, ImportColumnFamilyOptions, LiveFile, Options};

use super::{Applied, Store, StoreError};
use crate::ids::PartitionId;
use crate::keys;
use crate::lineage::Lineage;

/// The values with which the partitions of a new node are created.
#[derive(Clone, Debug)]
pub struct ClusterInit {
    /// Number of stream partitions; the catalog is one more.
    pub partitions: u32,
    /// The members of each group.
    pub voters: Vec<u64>,
    /// The cluster's id.
    pub cluster_id: String,
}

impl Store {
    /// Whether the database has this partition, even if its creation did not finish.
    pub fn has(&self, partition: PartitionId) -> bool {
        let families = self.present(partition).get();
        self.db.cf_handle(&families.rows).is_some()
    }

    /// The applied position of a partition; `None` if it is absent, or its creation did not finish.
    pub fn applied(&self, partition: PartitionId) -> Result<Option<Applied>, StoreError> {
        match self.has(partition) {
            true => self.partition_db(partition).applied(),
            false => Ok(None),
        }
    }

    /// Creates the column families that these partitions lack, and nothing in them: the partitions are absent until
    /// [`Store::create_partition`]. RocksDB writes the options of all families anew after each creation, so a node
    /// with a thousand partitions creates all of them by two calls.
    pub fn prepare_partitions(
        &self,
        partitions: impl IntoIterator<Item = PartitionId>,
    ) -> Result<(), StoreError> {
        let (mut segments, mut rows) = (Vec::new(), Vec::new());
        for partition in partitions {
            if self.applied(partition)?.is_some() {
                continue;
            }
            self.forget_families(partition);
            let families = self.present(partition).get();
            segments.push(families.segments.clone());
            rows.push(families.rows.clone());
        }
        // In this order, as for one: a partition with rows has segments.
        for (mut names, options) in [
            (segments, &self.segment_options),
            (rows, &self.partition_options),
        ] {
            names.retain(|name| self.db.cf_handle(name).is_none());
            let created = self.db.create_cfs(names, options);
            created.map_err(|source| StoreError::Db {
                path: self.path.to_path_buf(),
                operation: "creating partitions".to_owned(),
                source,
            })?;
        }
        Ok(())
    }

    /// Creates a partition at LSN 0, unless it exists; durable when this returns.
    pub fn create_partition(
        &self,
        partition: PartitionId,
        init: &ClusterInit,
    ) -> Result<(), StoreError> {
        if self.applied(partition)?.is_some() {
            return Ok(());
        }
        self.forget_families(partition);
        let families = self.present(partition).get();
        let missing = [
            (&families.segments, &self.segment_options),
            (&families.rows, &self.partition_options),
        ];
        for (name, options) in missing {
            if self.db.cf_handle(name).is_none() {
                self.db
                    .create_cf(name, options)
                    .map_err(|e| self.failed(partition, "creating", e))?;
            }
        }
        let part = self.partition_db(partition);
        let applied = Applied {
            voters: init.voters.clone(),
            ..Applied::default()
        };
        let lineage = Lineage::first(&init.cluster_id, init.partitions, partition);
        let mut batch = part.batch();
        batch.put(keys::APPLIED, applied.encode_to_vec());
        batch.put(keys::LINEAGE, lineage.to_bytes());
        batch.write()?;
        part.flush()
    }

    /// Removes a partition with all of its data. It must not be in use.
    pub fn drop_partition(&self, partition: PartitionId) -> Result<(), StoreError> {
        // Of every number, the lowest first: after a crash, what an install has replaced must not count again.
        for number in self.numbers(partition) {
            self.drop_families(partition, number)?;
        }
        self.forget_families(partition);
        self.damage.forget(partition);
        Ok(())
    }

    /// Creates a partition from files, which are *moved* into the database. Durable when this returns.
    /// After a crash, the partition is absent or complete.
    pub(crate) fn import_files(
        &self,
        partition: PartitionId,
        comparator: &str,
        files: Vec<LiveFile>,
    ) -> Result<(), StoreError> {
        self.import_into(&self.partition_db(partition), comparator, files)
    }

    pub(super) fn import_column_family(
        &self,
        name: &str,
        options: &Options,
        comparator: &str,
        files: &[LiveFile],
    ) -> Result<(), rust_rocksdb::Error> {
        let mut description = ExportImportFilesMetaData::default();
        description.set_db_comparator_name(comparator);
        description.set_files(files)?;
        let mut import = ImportColumnFamilyOptions::default();
        import.set_move_files(true);
        self.db
            .create_column_family_with_import(options, name, &import, &description)
    }

    /// Checks that the path of the database leads to one: not to the directory below a mount that is gone, where
    /// nothing must be created.
    ///
    /// # Errors
    ///
    /// It does not, or cannot be read now.
    pub(crate) fn check_in_place(&self) -> Result<(), StoreError> {
        let current = self.path.join("CURRENT");
        match std::fs::metadata(&current) {
            Ok(_) => Ok(()),
            Err(source) => Err(StoreError::Io {
                operation: "looking at",
                path: current,
                source,
            }),
        }
    }

    /// Directory of the checkpoints of a partition.
    pub fn checkpoints(&self, partition: PartitionId) -> std::path::PathBuf {
        self.checkpoints.join(partition.to_string())
    }

    pub(super) fn failed(
        &self,
        partition: PartitionId,
        operation: &str,
        source: rust_rocksdb::Error,
    ) -> StoreError {
        StoreError::Db {
            path: self.path.to_path_buf(),
            operation: format!("{operation} partition {partition}"),
            source,
        }
    }
}

/// Makes a directory's entries durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    fs::File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|source| StoreError::Io {
            operation: "syncing",
            path: dir.to_owned(),
            source,
        })
}
