//! Damage: files of the database whose bytes are not what was written, or that are missing.
//!
//! RocksDB reports it in the error of the operation that met it, with the name of the file. Damage that
//! background work meets is reported to the next write of any partition. So the file determines the damaged
//! partition; only an error of a read that names no file counts for the partition that was read.
//!
//! The files of a damaged partition are no longer compacted ([`PartitionDb::stop_merging`]): each attempt
//! would read up to the damaged block and fail. New appends to it go to files of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

use rust_rocksdb::ErrorKind;

use super::damage_report::Met;
use super::error::is_refusal;
use super::{Mode, PartitionDb, Store, StoreError, StoreOptions, partition_of};
use crate::ids::PartitionId;

/// How RocksDB's messages about bytes that are not what was written begin.
const CORRUPTION: &str = "Corruption: ";
/// The same for errors of the operating system; of these, a missing file is damage.
const IO_ERROR: &str = "IO error: ";

impl Store {
    /// Opens a database that [`Store::open_any`] finds damaged, with those parts that can be read, to
    /// inspect it and to drop partitions. Nothing is compacted. Partitions whose files are damaged are
    /// recorded in the report of the options.
    ///
    /// # Errors
    ///
    /// `why`, if the damage is not in the files of certain partitions.
    pub fn open_damaged(
        path: &Path,
        options: &StoreOptions,
        why: StoreError,
    ) -> Result<Store, StoreError> {
        let Ok(store) = Store::open_with(path, options, Mode::Damaged) else {
            return Err(why);
        };
        store.inspect_files()?;
        if let StoreError::Db { source, .. } = &why {
            let partition = store.partition_named_in(source.as_ref());
            if let Some(partition) = partition {
                store.damage.note(partition, source.to_string());
            }
        }
        if !store.damage.is_empty() {
            return Ok(store);
        }
        // No partition has the damaged files, if they are what an install has replaced or did not complete.
        let removed = store.remove_left(&BTreeSet::new())?;
        store.close();
        drop(store);
        match removed {
            0 => Err(why),
            _ => Store::open_any(path, options),
        }
    }

    /// Checks that all files of the database exist with the size that was written. RocksDB checks only
    /// some of them when it opens.
    ///
    /// # Errors
    ///
    /// The files cannot be inspected.
    pub fn inspect_files(&self) -> Result<(), StoreError> {
        let found = inspect_tables(&self.path, || self.tables())?;
        for (partition, what) in found {
            self.damage.note(partition, what);
        }
        Ok(())
    }

    /// The tables that the database's partitions have now.
    fn tables(&self) -> Result<Vec<Table>, StoreError> {
        let files = self.db.live_files().map_err(|source| StoreError::Db {
            path: self.path.to_path_buf(),
            operation: "listing files".to_owned(),
            source,
        })?;
        let files = files.into_iter();
        let files = files.filter(|file| self.is_present(&file.column_family_name));
        let table = |file: rust_rocksdb::LiveFile| {
            Some(Table {
                partition: partition_of(&file.column_family_name)?,
                name: file.name,
                size: file.size as u64,
            })
        };
        Ok(files.filter_map(table).collect())
    }

    /// Reads every block of every file, and compares checksums.
    ///
    /// # Errors
    ///
    /// The first block that is damaged or cannot be read.
    pub fn verify_blocks(&self) -> Result<(), StoreError> {
        self.db.verify_checksum().map_err(|source| StoreError::Db {
            path: self.path.to_path_buf(),
            operation: "comparing checksums of blocks".to_owned(),
            source,
        })
    }

    /// Damage found in a partition since it was opened or imported.
    pub fn damage(&self, partition: PartitionId) -> Option<String> {
        self.note_background_failures();
        self.damage.of(partition)
    }

    /// Whether damage was found in any partition: the same for all of them at once.
    pub fn is_damaged(&self) -> bool {
        self.note_background_failures();
        !self.damage.is_empty()
    }

    /// Notes the damage that background work has met.
    fn note_background_failures(&self) {
        for why in self.background_failures() {
            let kind = match &why {
                why if why.starts_with(CORRUPTION) => ErrorKind::Corruption,
                why if why.starts_with(IO_ERROR) => ErrorKind::IOError,
                _ => continue,
            };
            if !is_refusal(kind, &why)
                && let Some(whose) = self.partition_named_in(&why)
            {
                self.damage.note(whose, why);
            }
        }
    }

    /// The partition of the table that an error names, if the partition has the table now.
    fn partition_named_in(&self, message: &str) -> Option<PartitionId> {
        let named: Vec<u64> = tables_named_in(message).collect();
        if named.is_empty() {
            return None;
        }
        let files = self.db.live_files().ok()?;
        let is_named = |name: &str| table_number(name).is_some_and(|n| named.contains(&n));
        let found = files.iter().find(|file| is_named(&file.name))?;
        let is_present = self.is_present(&found.column_family_name);
        partition_of(&found.column_family_name).filter(|_| is_present)
    }
}

impl PartitionDb {
    /// Disables automatic compactions of the partition's files until the database is opened again. Blocks
    /// while RocksDB writes its options.
    ///
    /// # Errors
    ///
    /// The options cannot be written. RocksDB then retries the compactions, once a second.
    pub fn stop_merging(&self) -> Result<(), StoreError> {
        let off = [("disable_auto_compactions", "true")];
        for cf in [self.cf(), self.segments_cf()] {
            let set = self.store.db.set_options_cf(&cf, &off);
            set.map_err(|e| self.write_error("switching off the merging of files", e))?;
        }
        Ok(())
    }

    /// Records damage if an error reports it.
    pub(super) fn note_damage(&self, operation: &str, met: Met, source: &rust_rocksdb::Error) {
        let message = source.as_ref();
        let is_damage = matches!(source.kind(), ErrorKind::Corruption | ErrorKind::IOError)
            && !is_refusal(source.kind(), message);
        if !is_damage {
            return;
        }
        let named = self.store.partition_named_in(message);
        let own = met == Met::Reading && source.kind() == ErrorKind::Corruption;
        if let Some(partition) = named.or_else(|| own.then_some(self.partition)) {
            let what = match met {
                Met::Reading => format!("{operation}: {source}"),
                Met::Writing => source.to_string(),
            };
            self.store.damage.note(partition, what);
        }
    }
}

/// A file that the database has.
#[derive(Clone)]
struct Table {
    partition: PartitionId,
    name: String,
    size: u64,
}

/// What is wrong with the files in `dir` that `tables` lists. A compaction may delete some of them during
/// the inspection, so a file counts as missing only if the database still lists it afterwards.
fn inspect_tables(
    dir: &Path,
    mut tables: impl FnMut() -> Result<Vec<Table>, StoreError>,
) -> Result<Vec<(PartitionId, String)>, StoreError> {
    let (mut damaged, mut missing) = (Vec::new(), BTreeMap::new());
    for table in tables()? {
        let path = dir.join(table.name.trim_start_matches('/'));
        match fs::metadata(&path) {
            Ok(found) if found.len() == table.size => {}
            Ok(found) => {
                let (found, written) = (found.len(), table.size);
                let what = format!(
                    "{} has {found} bytes, and {written} were written",
                    path.display()
                );
                damaged.push((table.partition, what));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let what = format!("{} is missing", path.display());
                missing.insert(table.name, (table.partition, what));
            }
            Err(source) => {
                return Err(StoreError::Io {
                    operation: "looking at",
                    path,
                    source,
                });
            }
        }
    }
    if !missing.is_empty() {
        let now = tables()?.into_iter();
        damaged.extend(now.filter_map(|table| missing.remove(&table.name)));
    }
    Ok(damaged)
}

/// The number of a table, by its name or path.
fn table_number(name: &str) -> Option<u64> {
    let stem = name.strip_suffix(".sst")?;
    let digits = stem.rsplit('/').next()?;
    digits.parse().ok()
}

pub(super) fn names_a_table(message: &str) -> bool {
    tables_named_in(message).next().is_some()
}

/// The numbers of the tables whose names are in a text.
fn tables_named_in(text: &str) -> impl Iterator<Item = u64> + '_ {
    text.match_indices(".sst").filter_map(|(at, _)| {
        let before = &text[..at];
        let digits = before.len() - before.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        before[before.len() - digits..].parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_a_compaction_deletes_while_it_is_looked_at_is_not_missing() {
        let dir = tempfile::tempdir().unwrap();
        let table = |name: &str, size| Table {
            partition: PartitionId(1),
            name: name.to_owned(),
            size,
        };
        fs::write(dir.path().join("000007.sst"), "four").unwrap();
        fs::write(dir.path().join("000008.sst"), "four").unwrap();
        let before = [
            table("/000005.sst", 4),
            table("/000006.sst", 4),
            table("/000007.sst", 4),
            table("/000008.sst", 5),
        ];
        let (mut lists, mut looks) = (vec![before[1..].to_vec(), before.to_vec()], 0);
        let found = inspect_tables(dir.path(), || {
            looks += 1;
            Ok(lists.pop().unwrap())
        });
        let found: Vec<_> = found.unwrap().into_iter().map(|(_, what)| what).collect();
        let path = dir.path().display();
        assert_eq!(
            found,
            [
                format!("{path}/000008.sst has 4 bytes, and 5 were written"),
                format!("{path}/000006.sst is missing"),
            ]
        );
        assert_eq!(looks, 2);
    }

    #[test]
    fn tables_are_found_by_their_numbers_wherever_a_message_names_them() {
        let message = "Corruption: block checksum mismatch: stored = 1, computed = 2, type = 4  in \
                       /data/db/000123.sst offset 4096 size 4001";
        assert_eq!(tables_named_in(message).collect::<Vec<_>>(), [123]);
        let gone = "IO error: No such file or directory: While open a file for random read: \
                    /data/db/001207.sst: No such file or directory";
        assert_eq!(tables_named_in(gone).collect::<Vec<_>>(), [1207]);
        assert_eq!(tables_named_in("IO error: No space left").count(), 0);
        assert_eq!(tables_named_in("a.sst").count(), 0);
        assert_eq!(table_number("/000123.sst"), Some(123));
        assert_eq!(table_number("/MANIFEST-000123"), None);
        assert_eq!(partition_of("partition-7"), Some(PartitionId(7)));
        assert_eq!(partition_of("partition-7-segments"), Some(PartitionId(7)));
        assert_eq!(partition_of("default"), None);
    }
}
