//! Reads a snapshot, and computes its checksum.

use std::cell::Cell;
use std::io::{self, BufReader, Read};

use xxhash_rust::xxh3::Xxh3;

use super::name::Written;
use super::writer::PIECE;
use crate::state::document::{self, ReadEntry};
use crate::state::error::FileError;

/// Most bytes that are read for one entry, which has a MiB and its names, in any layout. This bounds the
/// memory for any file.
pub(super) const MAX_ENTRY: u64 = 16 * 1024 * 1024;

/// Reads a snapshot, and computes its checksum.
pub(crate) fn read(
    from: impl Read,
    mut take: impl FnMut(ReadEntry) -> Result<(), String>,
) -> Result<Written, FileError> {
    let unparsed = Cell::new(0);
    let mut hashing = Hashing {
        from,
        bytes: 0,
        unparsed: &unparsed,
        hash: Xxh3::new(),
    };
    let mut keys = 0;
    let header = document::read(BufReader::with_capacity(PIECE, &mut hashing), |entry| {
        keys += 1;
        unparsed.set(0);
        take(entry)
    })?;
    Ok(Written {
        header,
        keys,
        bytes: hashing.bytes,
        sum: format!("{:032x}", hashing.hash.digest128()),
    })
}

struct Hashing<'a, R> {
    from: R,
    bytes: u64,
    /// Bytes since the last entry.
    unparsed: &'a Cell<u64>,
    hash: Xxh3,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.unparsed.get() > MAX_ENTRY {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("more than {MAX_ENTRY} bytes without an entry"),
            ));
        }
        let count = self.from.read(into)?;
        self.unparsed.set(self.unparsed.get() + count as u64);
        self.bytes += count as u64;
        self.hash.update(&into[..count]);
        Ok(count)
    }
}
