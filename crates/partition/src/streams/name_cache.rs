//! The names of a partition's streams in memory, while they are few.
//!
//! A list of a basin's streams asks every partition. Where there are many partitions, each has few names, and
//! reading them from the database costs more than everything else: an iterator a partition, and the blocks that
//! it needs. So a partition keeps its names in memory once they were listed, as long as they take at most its
//! share of [`NAMES_BYTES`]; with more, its lists read the database, as with few partitions they do.
//!
//! A name is here as soon as its stream is published, which is before its creation is answered, and no longer
//! once its deletion is.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::name_index::{Listed, NameEntry};
use crate::ids::BasinId;
use crate::keys;
use crate::store::{PartitionDb, StoreError};

/// Bytes of names that all partitions of a node keep in memory.
const NAMES_BYTES: usize = 32 * 1024 * 1024;
/// Most of them in one partition: while they are read, some milliseconds, nothing is published.
const MAX_NAMES_BYTES: usize = 512 * 1024;
/// Bytes that an entry takes beside its name, roughly: the entry, and its part of the nodes of the tree.
const BYTES_OF_ENTRY: usize = 96;

/// The share of one of so many partitions.
pub fn name_bytes_of(partitions: u32) -> usize {
    (NAMES_BYTES / partitions.max(1) as usize).min(MAX_NAMES_BYTES)
}

/// A change of the names: the entry that a name has now, if it has one.
pub(crate) type NameChange = ((BasinId, String), Option<NameEntry>);

/// The names of a partition.
#[derive(Debug, Default)]
pub(crate) enum NameCache {
    /// They were not listed yet.
    #[default]
    Unread,
    /// All of them.
    Whole(Names),
    /// There are too many.
    TooMany,
}

/// All names of a partition, but those of dropped basins.
#[derive(Debug, Default)]
pub(crate) struct Names {
    basins: BTreeMap<BasinId, BTreeMap<Box<str>, NameEntry>>,
    bytes: usize,
}

fn bytes_of(name: &str) -> usize {
    name.len() + BYTES_OF_ENTRY
}

impl NameCache {
    /// Reads the names, if they take at most `most` bytes. Nothing may be published meanwhile.
    ///
    /// # Errors
    ///
    /// The database cannot be read.
    pub fn read(
        part: &PartitionDb,
        is_dropped: impl Fn(BasinId) -> bool,
        most: usize,
    ) -> Result<NameCache, StoreError> {
        let mut names = Names::default();
        let (from, to) = keys::all_stream_names();
        let mut it = part.iterate(&from, &to, true);
        it.seek_to_first();
        let malformed = || part.malformed("the index of names", &"a key");
        let mut read = 0;
        while let (Some(key), Some(value)) = (it.key(), it.value()) {
            let basin = BasinId(keys::id_of(key).ok_or_else(malformed)?);
            let name = keys::name_of(key).ok_or_else(malformed)?;
            // Those of dropped basins count, too: they are read until they are deleted.
            read += bytes_of(name);
            if read > most {
                return Ok(NameCache::TooMany);
            }
            if !is_dropped(basin) {
                names.insert(basin, name, NameEntry::parse(part, value)?);
            }
            it.next();
        }
        it.status()
            .map_err(|e| part.error("reading the index of names", e))?;
        Ok(NameCache::Whole(names))
    }

    /// Carries out changes that are written.
    pub fn apply(&mut self, changes: Vec<NameChange>, most: usize) {
        let NameCache::Whole(names) = self else {
            return;
        };
        for ((basin, name), entry) in changes {
            match entry {
                Some(entry) => names.insert(basin, &name, entry),
                None => names.remove(basin, &name),
            }
        }
        if names.bytes > most {
            *self = NameCache::TooMany;
        }
    }

    /// Forgets the names of a basin that is dropped. What is left may be few.
    pub fn drop_basin(&mut self, basin: BasinId) {
        match self {
            NameCache::Whole(names) => {
                let dropped = names.basins.remove(&basin).unwrap_or_default();
                let bytes: usize = dropped.keys().map(|name| bytes_of(name)).sum();
                names.bytes -= bytes;
            }
            NameCache::Unread | NameCache::TooMany => *self = NameCache::Unread,
        }
    }
}

impl Names {
    fn insert(&mut self, basin: BasinId, name: &str, entry: NameEntry) {
        let names = self.basins.entry(basin).or_default();
        if names.insert(name.into(), entry).is_none() {
            self.bytes += bytes_of(name);
        }
    }

    fn remove(&mut self, basin: BasinId, name: &str) {
        let Some(names) = self.basins.get_mut(&basin) else {
            return;
        };
        if names.remove(name).is_some() {
            self.bytes -= bytes_of(name);
        }
        if names.is_empty() {
            self.basins.remove(&basin);
        }
    }

    /// As [`Reader::list`](crate::reader::Reader::list).
    pub fn list(
        &self,
        basin: BasinId,
        prefix: &str,
        start_after: &str,
        limit: usize,
    ) -> Vec<Listed> {
        let Some(names) = self.basins.get(&basin) else {
            return Vec::new();
        };
        // No name is empty.
        let from = match start_after >= prefix {
            true => Bound::Excluded(start_after),
            false => Bound::Included(prefix),
        };
        names
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(prefix))
            .take(limit)
            .map(|(name, entry)| Listed {
                name: name.to_string(),
                created_ms: entry.created_ms,
                cipher: entry.cipher,
            })
            .collect()
    }
}
