//! The positions of a partition as they were last read.
//!
//! Background tasks look at the positions of all partitions several times a second. A position that is not in a
//! memtable is read from a table, and a node with more tables than `store.max-open-files` opens one for each
//! such read. So what cannot have moved is not read again.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Applied, StoreError};

/// The positions that were last read. Two messages, whatever the partition holds.
#[derive(Default)]
pub(super) struct Positions {
    pub applied: Seen,
    pub durable: Seen,
}

/// A position that was last read, and the number of the column families that it was read from.
#[derive(Default)]
pub(super) struct Seen {
    last: Mutex<Option<(u64, Applied)>>,
    reads: AtomicU64,
}

impl Positions {
    /// How many positions were read.
    pub fn reads(&self) -> u64 {
        self.applied.reads.load(Ordering::Relaxed) + self.durable.reads.load(Ordering::Relaxed)
    }
}

impl Seen {
    /// The position in the families of this number: the one that was last read if it is current, otherwise what
    /// `read` returns.
    pub fn get(
        &self,
        number: u64,
        is_current: impl Fn(&Applied) -> bool,
        read: impl FnOnce() -> Result<Option<Applied>, StoreError>,
    ) -> Result<Option<Applied>, StoreError> {
        if let Some((of, position)) = &*self.last.lock()
            && *of == number
            && is_current(position)
        {
            return Ok(Some(position.clone()));
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        let read = read()?;
        // If the families were replaced in between, the next call reads again, because the number differs.
        *self.last.lock() = read.clone().map(|position| (number, position));
        Ok(read)
    }
}
