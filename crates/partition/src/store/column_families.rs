//! The column families that a partition has now.
//!
//! A partition has two: one of rows, one of segments. A snapshot that is installed replaces both while they
//! are read ([`super::next_families`]): the new ones have the next *number* in their names. An import first creates
//! a family, empty, and records its files later, so a name proves nothing. The rows are imported last, and
//! their files, which have the applied position, become part of the database by one record. The highest number
//! whose rows have the position counts; the next open removes others ([`super::present_families`]).
//!
//! Readers that need one state over several reads keep the families that they began with
//! ([`PartitionDb::pinned`](super::PartitionDb::pinned)). Replaced families are dropped with their last user.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::{Db, SEGMENTS_SUFFIX, is_of_segments};
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
            lineage: RwLock::default(),
            replaced: AtomicBool::new(false),
        })
    }
}

impl ColumnFamilies {
    /// Others are in use from now on: these are dropped with their last user.
    pub(super) fn replace(&self) {
        self.replaced.store(true, Ordering::Release);
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

/// The numbers of each partition's column families of rows.
pub(super) fn numbers_with_rows(names: &[String]) -> BTreeMap<PartitionId, BTreeSet<u64>> {
    let mut numbers = BTreeMap::<_, BTreeSet<u64>>::new();
    for name in names.iter().filter(|name| !is_of_segments(name)) {
        if let Some((partition, number)) = parts_of_name(name) {
            numbers.entry(partition).or_default().insert(number);
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_partition_and_the_number() {
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
        let numbers = numbers_with_rows(&names.map(str::to_owned)).into_iter();
        let numbers: Vec<_> = numbers.map(|(p, n)| (p.0, Vec::from_iter(n))).collect();
        assert_eq!(numbers, [(1, vec![0]), (2, vec![0, 1])]);
    }
}
