//! Finds the column families that each partition has, when the database is opened, and removes others.
//!
//! A crash in an import leaves families of the next number that are empty, or complete. The rows of complete
//! ones have the applied position, so the highest number whose rows have it counts. Families without it are
//! none, whatever their number is. Nothing is removed before that is known of every partition.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::column_families::{
    ColumnFamilies, Present, numbers_with_rows, parts_of_name, rows_name, segments_name,
};
use super::{Mode, PartitionDb, Store, StoreError};
use crate::ids::PartitionId;

/// Which number of a partition's families counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    /// This one. Others are left from installs.
    Number(u64),
    /// This one is damaged, so it is not known which one counts.
    Unclear(u64),
    /// None: the partition is absent, or its creation did not finish.
    None,
}

impl Store {
    /// Finds the families that each partition has among `there`. In sound mode, it removes those that an
    /// install has replaced, and those of installs that did not finish.
    ///
    /// # Errors
    ///
    /// A position cannot be read now; nothing is removed. Or RocksDB cannot create or remove families.
    pub(super) fn find_families(&self, there: &[String], mode: Mode) -> Result<(), StoreError> {
        let mut unclear = BTreeSet::new();
        for (partition, numbers) in numbers_with_rows(there) {
            let number = match self.counts(partition, &numbers)? {
                Counts::Number(number) => number,
                Counts::Unclear(number) => {
                    unclear.insert(partition);
                    number
                }
                Counts::None => 0,
            };
            let families = ColumnFamilies::new(&self.db, partition, number);
            let is_there = |name: &str| self.db.cf_handle(name).is_some();
            // Of a database of format 3 or before, or of a creation that did not finish.
            if is_there(&families.rows) && !is_there(&families.segments) {
                (self.db.create_cf(&families.segments, &self.segment_options))
                    .map_err(|e| self.failed(partition, "opening", e))?;
            }
            let present = Arc::new(Present::new(families));
            self.present.lock().insert(partition, present);
        }
        if mode == Mode::Sound {
            self.remove_left(&unclear)?;
        }
        Ok(())
    }

    /// Removes families that do not count, but of the partitions of which that is unclear. Returns how many there
    /// were.
    pub(super) fn remove_left(&self, but: &BTreeSet<PartitionId>) -> Result<usize, StoreError> {
        let mut left = BTreeSet::new();
        for name in self.db.cf_names() {
            if let Some((partition, number)) = parts_of_name(&name)
                && !but.contains(&partition)
                && number != self.present(partition).get().number
            {
                left.insert((partition, number));
            }
        }
        for (partition, number) in &left {
            tracing::info!(
                %partition,
                number,
                "column families that an install has replaced, or did not complete, are removed"
            );
            self.drop_families(*partition, *number)?;
        }
        Ok(left.len())
    }

    /// Removes the families of a number, if there are any: first the rows, without which a number does not
    /// count.
    pub(super) fn drop_families(
        &self,
        partition: PartitionId,
        number: u64,
    ) -> Result<(), StoreError> {
        for name in [
            rows_name(partition, number),
            segments_name(partition, number),
        ] {
            if self.db.cf_handle(&name).is_some() {
                (self.db.drop_cf(&name)).map_err(|e| self.failed(partition, "dropping", e))?;
            }
        }
        Ok(())
    }

    /// The numbers of all families of a partition, with or without rows.
    pub(super) fn numbers(&self, partition: PartitionId) -> BTreeSet<u64> {
        let names = self.db.cf_names();
        let parts = names.iter().filter_map(|name| parts_of_name(name));
        let own = parts.filter(|(of, _)| *of == partition);
        own.map(|(_, number)| number).collect()
    }

    /// Whether a column family is one that its partition has now, and not one that an install has replaced or has
    /// not completed.
    pub(super) fn is_present(&self, column_family: &str) -> bool {
        let Some((partition, number)) = parts_of_name(column_family) else {
            return false;
        };
        let present = self.present.lock().get(&partition).cloned();
        number == present.map_or(0, |present| present.get().number)
    }

    fn counts(
        &self,
        partition: PartitionId,
        numbers: &BTreeSet<u64>,
    ) -> Result<Counts, StoreError> {
        if numbers.iter().eq(&[0]) {
            return Ok(Counts::Number(0));
        }
        for number in numbers.iter().rev() {
            let part = PartitionDb {
                pinned: Some(ColumnFamilies::new(&self.db, partition, *number)),
                ..self.partition_db(partition)
            };
            match part.applied() {
                Ok(Some(_)) => return Ok(Counts::Number(*number)),
                Ok(None) => {}
                Err(error) if error.is_unreadable() => return Err(error),
                Err(error) => {
                    tracing::warn!(
                        %partition,
                        number,
                        %error,
                        "the position of column families is damaged: those before them are kept"
                    );
                    self.damage.note(partition, error.to_string());
                    return Ok(Counts::Unclear(*number));
                }
            }
        }
        Ok(Counts::None)
    }
}

#[cfg(test)]
mod tests;
