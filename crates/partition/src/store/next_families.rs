//! Creation and replacement of a partition's column families.

use std::sync::Arc;

use rust_rocksdb::LiveFile;

#[cfg(test)]
use super::Db;
#[cfg(test)]
use super::column_families::parts_of_name;
use super::column_families::{ColumnFamilies, Present};
use super::{PartitionDb, Store, StoreError, is_of_segments};
use crate::ids::PartitionId;

/// A snapshot that is imported beside what a partition has. If it is dropped unused, so are its families.
pub(crate) struct NextFamilies {
    part: PartitionDb,
    families: Arc<ColumnFamilies>,
}

impl NextFamilies {
    /// The partition's part of the database as it is after the switch.
    pub(crate) fn part(&self) -> &PartitionDb {
        &self.part
    }
}

impl Drop for NextFamilies {
    fn drop(&mut self) {
        let present = self.part.present.get();
        if present.number != self.families.number {
            self.families.replace();
        }
    }
}

impl Store {
    /// Imports files of a checkpoint beside what the partition has. They are *moved* into the database.
    /// Durable when this returns: an open from then on finds the checkpoint's state, and not the one before.
    ///
    /// # Errors
    ///
    /// RocksDB does not accept the files, or they have no position: the partition is as it was.
    pub(crate) fn import_next(
        &self,
        partition: PartitionId,
        comparator: &str,
        files: Vec<LiveFile>,
    ) -> Result<NextFamilies, StoreError> {
        let now = self.partition_db(partition);
        let number = now.present.get().number + 1;
        // Of installs that failed, and whose families could not be removed.
        for left in self.numbers(partition).range(number..) {
            self.drop_families(partition, *left)?;
        }
        let families = ColumnFamilies::new(&self.db, partition, number);
        let next = NextFamilies {
            part: PartitionDb {
                pinned: Some(families.clone()),
                ..now
            },
            families,
        };
        self.import_into(&next.part, comparator, files)?;
        Ok(next)
    }

    /// Imports files into families that do not exist, or are left from an import that did not finish. After a
    /// crash, they exist completely or do not count.
    pub(super) fn import_into(
        &self,
        part: &PartitionDb,
        comparator: &str,
        files: Vec<LiveFile>,
    ) -> Result<(), StoreError> {
        let partition = part.partition;
        let families = part.families();
        let failed = |e| self.failed(partition, "importing a checkpoint into", e);
        // Of an import that did not finish: without a position there is no partition.
        if self.db.cf_handle(&families.rows).is_none() || part.applied()?.is_none() {
            self.drop_families(partition, families.number)?;
        }
        let (segments, rows): (Vec<_>, Vec<_>) = files
            .into_iter()
            .partition(|file| is_of_segments(&file.column_family_name));
        // The partition exists once it has a position, which is in the rows.
        let (name, options) = (&families.segments, &self.segment_options);
        match segments.is_empty() {
            true => self.db.create_cf(name, options),
            false => self.import_column_family(name, options, comparator, &segments),
        }
        .map_err(failed)?;
        self.import_column_family(&families.rows, &self.partition_options, comparator, &rows)
            .map_err(failed)?;
        super::partitions::sync_dir(&self.path)?;
        match part.applied()? {
            Some(_) => Ok(()),
            None => Err(StoreError::Incomplete {
                path: self.path.to_path_buf(),
                partition,
                what: "the checkpoint that was imported has no position".to_owned(),
            }),
        }
    }

    /// The names of the families that the database has of a partition, sorted.
    #[cfg(test)]
    pub(crate) fn column_families_of(&self, partition: PartitionId) -> Vec<String> {
        let names = Db::list_cf(&rust_rocksdb::Options::default(), &*self.path).unwrap();
        let is_of = |name: &String| parts_of_name(name).is_some_and(|(of, _)| of == partition);
        let mut names: Vec<_> = names.into_iter().filter(is_of).collect();
        names.sort();
        names
    }

    /// The families that a partition has, or gets when it is created.
    pub(super) fn present(&self, partition: PartitionId) -> Arc<Present> {
        let mut all = self.present.lock();
        let present = all.entry(partition).or_insert_with(|| {
            let families = ColumnFamilies::new(&self.db, partition, 0);
            Arc::new(Present::new(families))
        });
        present.clone()
    }

    /// Forgets what was known of a partition that is created, imported or dropped.
    pub(super) fn forget_families(&self, partition: PartitionId) {
        let present = self.present(partition);
        present.set(ColumnFamilies::new(&self.db, partition, 0));
        self.forget_segments(partition, u64::MAX);
    }
}

impl PartitionDb {
    /// The column families that are read and written now.
    pub(crate) fn families(&self) -> Arc<ColumnFamilies> {
        match &self.pinned {
            Some(pinned) => pinned.clone(),
            None => self.present.get(),
        }
    }

    /// The same part of the database, with the families that it has now for as long as it is used.
    pub(crate) fn pinned(&self) -> PartitionDb {
        PartitionDb {
            pinned: Some(self.families()),
            ..self.clone()
        }
    }

    /// Replaces the families by imported ones, for all handles that are not pinned.
    pub(crate) fn switch_to(&self, next: &NextFamilies) {
        let before = self.present.get();
        self.present.set(next.families.clone());
        before.replace();
        self.store
            .forget_segments(self.partition, next.families.number);
        self.store.damage.forget(self.partition);
    }
}
