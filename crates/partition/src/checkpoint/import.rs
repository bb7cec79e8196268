//! Creates a partition from a checkpoint.

use rust_rocksdb::LiveFile;

use super::Checkpoint;
use crate::ids::PartitionId;
use crate::store::{Store, StoreError};

/// Levels of a database; RocksDB's default.
const LEVELS: i32 = 7;

impl Store {
    /// Creates a partition from a checkpoint's files. They are *moved* into the database: the directory
    /// has none of them afterwards. Durable when this returns. After a crash, the partition is absent or
    /// complete.
    ///
    /// # Errors
    ///
    /// The partition exists already, or RocksDB does not accept the files.
    pub fn import(
        &self,
        partition: PartitionId,
        checkpoint: &Checkpoint,
    ) -> Result<(), StoreError> {
        let files = checkpoint.live_files(partition)?;
        self.import_files(partition, &checkpoint.meta.comparator, files)
    }
}

impl Checkpoint {
    /// The description of the files that RocksDB requires for an import.
    pub(super) fn live_files(&self, partition: PartitionId) -> Result<Vec<LiveFile>, StoreError> {
        let bad = |why: String| StoreError::Checkpoint {
            path: self.dir.clone(),
            why,
        };
        let dir = self.dir.to_str().ok_or_else(|| bad("not UTF-8".into()))?;
        let mut files = Vec::with_capacity(self.meta.files.len());
        for file in &self.meta.files {
            self.path_of(file)?;
            // RocksDB uses the level as an index without checking it.
            if !(0..LEVELS).contains(&file.level) {
                return Err(bad(format!(
                    "{}: there is no level {}",
                    file.name, file.level
                )));
            }
            let key = |digits: &Option<String>| {
                let parsed = digits.as_deref().map(from_hex);
                match parsed {
                    Some(None) => Err(bad(format!("{}: a key is not hexadecimal", file.name))),
                    Some(Some(key)) => Ok(Some(key)),
                    None => Ok(None),
                }
            };
            files.push(LiveFile {
                column_family_name: file.column_family.name(partition),
                name: file.name.clone(),
                directory: dir.to_owned(),
                size: usize::try_from(file.size).map_err(|e| bad(e.to_string()))?,
                level: file.level,
                start_key: key(&file.start_key)?,
                end_key: key(&file.end_key)?,
                smallest_seqno: file.smallest_seqno,
                largest_seqno: file.largest_seqno,
                num_entries: file.num_entries,
                num_deletions: file.num_deletions,
            });
        }
        Ok(files)
    }
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    match digits.len() % 2 {
        0 => digits.as_bytes().chunks(2).map(byte).collect(),
        _ => None,
    }
}
