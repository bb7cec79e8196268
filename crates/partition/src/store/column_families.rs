//! The column families that a partition has now.
//!
//! A partition has two: one of rows, one of segments. A snapshot that is installed replaces both while they
//! are read ([`Store::import_next`], [`PartitionDb::switch_to`]): the new ones have the next *number* in their
//! names. RocksDB's manifest decides what a crash leaves: a number counts from its rows on, which are imported
//! last and in one record, and the highest number counts. Others are removed by the next open.
//!
//! Readers that need one state over several reads keep the families that they began with
//! ([`PartitionDb::pinned`]). Replaced families are dropped with their last user.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use rust_rocksdb::LiveFile;

use super::segments::Segments;
use super::{Db, PartitionDb, SEGMENTS_SUFFIX, Store, StoreError, is_of_segments};
use crate::ids::PartitionId;
use crate::lineage::Lineage;

/// The column families of a partition, and what is known of their contents.
pub(crate) struct ColumnFamilies {
    db: Arc<Db>,
    /// Number of times that the partition's families were replaced.
    pub(super) number: u64,
    /// The name of the column family of rows.
    pub(crate) rows: String,
    /// The name of the column family of segments.
    pub(crate) segments: String,
    pub(super) known_segments: Arc<Segments>,
    pub(super) lineage: RwLock<Option<Lineage>>,
    /// Others are in use now.
    replaced: AtomicBool,
}

impl ColumnFamilies {
    pub(super) fn new(db: &Arc<Db>, partition: PartitionId, number: u64) -> Arc<ColumnFamilies> {
        Arc::new(ColumnFamilies {
            db: db.clone(),
            number,
            rows: rows_name(partition, number),
            segments: segments_name(partition, number),
            known_segments: Arc::default(),
            lineage: RwLock::default(),
            replaced: AtomicBool::new(false),
        })
    }
}

impl Drop for ColumnFamilies {
    fn drop(&mut self) {
        if !*self.replaced.get_mut() {
            return;
        }
        for name in [&self.rows, &self.segments] {
            if self.db.cf_handle(name).is_some()
                && let Err(error) = self.db.drop_cf(name)
            {
                tracing::warn!(name, %error, "a replaced column family is dropped by the next start");
            }
        }
    }
}

/// The families that a partition has now, for all handles of it.
pub(super) struct Present(RwLock<Arc<ColumnFamilies>>);

impl Present {
    pub fn new(families: Arc<ColumnFamilies>) -> Present {
        Present(RwLock::new(families))
    }

    pub fn get(&self) -> Arc<ColumnFamilies> {
        self.0.read().clone()
    }

    pub fn set(&self, families: Arc<ColumnFamilies>) {
        *self.0.write() = families;
    }
}

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
            self.families.replaced.store(true, Ordering::Release);
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

    /// Imports files into families that do not exist. After a crash, they exist completely or do not count.
    pub(super) fn import_into(
        &self,
        part: &PartitionDb,
        comparator: &str,
        files: Vec<LiveFile>,
    ) -> Result<(), StoreError> {
        let partition = part.partition;
        let families = part.families();
        let failed = |e| self.failed(partition, "importing a checkpoint into", e);
        // Of an import that did not finish: without rows there is no partition.
        if self.db.cf_handle(&families.rows).is_none()
            && self.db.cf_handle(&families.segments).is_some()
        {
            self.db.drop_cf(&families.segments).map_err(failed)?;
        }
        let (segments, rows): (Vec<_>, Vec<_>) = files
            .into_iter()
            .partition(|file| is_of_segments(&file.column_family_name));
        // The partition exists once it has rows.
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
        before.replaced.store(true, Ordering::Release);
        self.store.damage.forget(self.partition);
    }
}

pub(super) fn rows_name(partition: PartitionId, number: u64) -> String {
    match number {
        0 => format!("partition-{partition}"),
        _ => format!("partition-{partition}.{number}"),
    }
}

pub(super) fn segments_name(partition: PartitionId, number: u64) -> String {
    format!("{}{SEGMENTS_SUFFIX}", rows_name(partition, number))
}

/// The partition and the number in the name of a column family.
pub(super) fn parts_of_name(column_family: &str) -> Option<(PartitionId, u64)> {
    let name = column_family.strip_prefix("partition-")?;
    let name = name.strip_suffix(SEGMENTS_SUFFIX).unwrap_or(name);
    let (partition, number) = match name.split_once('.') {
        Some((partition, number)) => (partition, number.parse().ok()?),
        None => (name, 0),
    };
    Some((PartitionId(partition.parse().ok()?), number))
}

/// The number that counts of each partition: the highest one with rows.
pub(super) fn numbers_in_use(names: &[String]) -> BTreeMap<PartitionId, u64> {
    let mut numbers = BTreeMap::new();
    for name in names.iter().filter(|name| !is_of_segments(name)) {
        if let Some((partition, number)) = parts_of_name(name) {
            let highest = numbers.entry(partition).or_insert(number);
            *highest = number.max(*highest);
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_number_with_rows_counts() {
        assert_eq!(rows_name(PartitionId(3), 0), "partition-3");
        assert_eq!(segments_name(PartitionId(3), 12), "partition-3.12-segments");
        for name in ["partition-3.12-segments", "partition-3.12"] {
            assert_eq!(parts_of_name(name), Some((PartitionId(3), 12)));
        }
        assert_eq!(parts_of_name("default"), None);
        assert_eq!(parts_of_name("partition-3.x"), None);
        let names = [
            "default",
            "partition-1",
            "partition-1-segments",
            "partition-1.1-segments",
            "partition-2",
            "partition-2.1",
            "partition-2.1-segments",
        ];
        let numbers = numbers_in_use(&names.map(str::to_owned));
        let numbers: Vec<_> = numbers.into_iter().map(|(p, n)| (p.0, n)).collect();
        assert_eq!(numbers, [(1, 0), (2, 1)]);
    }
}
