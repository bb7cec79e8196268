//! Writes a snapshot to a file, at a limited rate, so that commits are not delayed.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::time::{Duration, Instant};

use esker_partition::state::{StateEntry, StateKey};
use xxhash_rust::xxh3::Xxh3;

use crate::state::document;

/// Bytes that are written at a time.
pub(super) const PIECE: usize = 256 * 1024;
/// Bytes after which the file is synced, so that little is unsynced and no commit's sync waits for it.
const SYNC_EVERY: u64 = 2 * 1024 * 1024;
/// Most bytes a second: commits share the disk and the processors.
const RATE: f64 = 48.0 * 1024.0 * 1024.0;

/// Takes the entries of a snapshot.
pub(crate) struct Writer {
    pub(super) to: BufWriter<RateLimitedFile>,
    pub(super) keys: u64,
}

impl Writer {
    pub(super) fn new(file: File, leave_free: u64) -> Writer {
        let file = RateLimitedFile {
            file,
            leave_free,
            bytes: 0,
            synced: 0,
            hash: Xxh3::new(),
            since: Instant::now(),
        };
        Writer {
            to: BufWriter::with_capacity(PIECE, file),
            keys: 0,
        }
    }

    /// Adds an entry; see [`document::write_entry`].
    pub fn entry(
        &mut self,
        key: &StateKey,
        entry: &StateEntry,
        is_unchecked: bool,
    ) -> io::Result<()> {
        document::write_entry(&mut self.to, self.keys == 0, key, entry, is_unchecked)?;
        self.keys += 1;
        Ok(())
    }
}

/// A file that is written no faster than [`RATE`], and synced every [`SYNC_EVERY`] bytes.
pub(super) struct RateLimitedFile {
    pub(super) file: File,
    leave_free: u64,
    pub(super) bytes: u64,
    synced: u64,
    pub(super) hash: Xxh3,
    since: Instant,
}

impl Write for RateLimitedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        if self.bytes - self.synced >= SYNC_EVERY {
            self.file.sync_data()?;
            has_room(&self.file, self.leave_free)?;
            self.synced = self.bytes;
        }
        let due = Duration::from_secs_f64(self.bytes as f64 / RATE);
        std::thread::sleep(due.saturating_sub(self.since.elapsed()));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Checks that this many bytes are free on a file's disk. If the free space is not known, the check
/// succeeds.
pub(super) fn has_room(file: &File, leave_free: u64) -> io::Result<()> {
    let Ok(stats) = rustix::fs::fstatvfs(file) else {
        return Ok(());
    };
    let free = stats.f_bavail.saturating_mul(stats.f_frsize);
    if free >= leave_free {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::StorageFull,
        format!(
            "{free} bytes are free on its disk, and the last {leave_free} are left to the log: make room"
        ),
    ))
}
