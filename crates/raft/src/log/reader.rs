//! Reads a group's entries: on a thread of its own, with retries of errors that may pass, and so that a
//! panic of raft-engine does not end the process.

use std::sync::Arc;
use std::time::Duration;

use super::containment::contain_read;
use super::{EntryIndex, RaftEngine, is_unreadable, region};
use crate::engine::{LogReadError, LogReader, MAX_TERMS_AT_OPEN, RawEntries, find_terms};
use crate::ids::{GroupId, Lsn, Term};

pub(super) struct GroupReader {
    pub(super) engine: Arc<RaftEngine>,
    pub(super) group: GroupId,
}

impl GroupReader {
    /// The term of an entry; `None` if the log does not have it.
    pub(super) fn term_of(&self, lsn: Lsn) -> raft_engine::Result<Option<Term>> {
        let region = region(self.group);
        let entry = self.reading(|| self.engine.get_entry::<EntryIndex>(region, lsn.0))?;
        Ok(entry.map(|entry| Term(entry.term)))
    }

    pub(super) fn read_error(&self, error: &raft_engine::Error) -> LogReadError {
        let what = self.failed(error);
        match is_unreadable(error) {
            true => LogReadError::Unreadable(what),
            false => LogReadError::Damaged(what),
        }
    }

    fn failed(&self, what: impl std::fmt::Display) -> String {
        format!("group {}, {}: {what}", self.group, self.engine.path())
    }
}

/// Attempts at one read of the log, and the pause after the first that failed. Each further pause is twice
/// as long, 630 ms in all. The group waits meanwhile, and halts after the last attempt.
const MAX_READ_ATTEMPTS: u32 = 7;
const READ_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// Attempts at a read that finds damage. It is excluded in practice that three purges in a row come between
/// the same two operations of a read.
const MAX_DAMAGED_ATTEMPTS: u32 = 3;

impl GroupReader {
    /// Runs `read`, and repeats it if it fails for a reason that may pass.
    ///
    /// - No thread, no file descriptor, an error of the device: repeated after a pause.
    /// - Apparent damage: repeated at once. raft-engine looks up where the entries are, and then reads the
    ///   files without a lock. A purge in between may copy the entries and delete the file ("file seqno out
    ///   of range"); the next attempt looks them up again. Real damage is found again.
    fn reading<T: Send>(
        &self,
        mut read: impl FnMut() -> raft_engine::Result<T> + Send,
    ) -> raft_engine::Result<T> {
        let mut attempt = 1;
        loop {
            let error = match on_a_fresh_thread(|| contain_read(&mut read)) {
                Ok(Ok(read)) => return Ok(read),
                Ok(Err(error)) => error,
                Err(error) => raft_engine::Error::Io(error),
            };
            let passing = is_unreadable(&error);
            let max = if passing {
                MAX_READ_ATTEMPTS
            } else {
                MAX_DAMAGED_ATTEMPTS
            };
            if attempt == max {
                return Err(error);
            }
            if is_gone(&error) {
                // A reader may be behind the compaction of what it asks for.
                tracing::debug!(group = %self.group, %error, attempt, "entries are not in the log, looking again");
            } else {
                tracing::warn!(group = %self.group, %error, attempt, "the log could not be read, trying again");
            }
            if passing {
                std::thread::sleep(READ_RETRY_INTERVAL * 2u32.pow(attempt - 1));
            }
            attempt += 1;
        }
    }
}

/// Whether the log does not have what was asked for: it was compacted, or is not written yet. Whoever asked knows
/// whether that is damage.
fn is_gone(error: &raft_engine::Error) -> bool {
    matches!(
        error,
        raft_engine::Error::EntryCompacted | raft_engine::Error::EntryNotFound
    )
}

impl LogReader for GroupReader {
    fn entries(&self, low: Lsn, high: Lsn, max_bytes: u64) -> Result<RawEntries, LogReadError> {
        let mut entries = Vec::new();
        let max = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let region = region(self.group);
        self.reading(|| {
            entries.clear();
            self.engine.fetch_entries_to::<EntryIndex>(
                region,
                low.0,
                high.0,
                Some(max),
                &mut entries,
            )
        })
        .map_err(|error| self.read_error(&error))?;
        Ok(RawEntries(entries))
    }

    fn term(&self, lsn: Lsn) -> Result<Term, LogReadError> {
        self.term_of(lsn)
            .map_err(|error| self.read_error(&error))?
            .ok_or_else(|| {
                LogReadError::Damaged(self.failed(format_args!("there is no entry at LSN {lsn}")))
            })
    }

    /// All on one thread, which keeps the block that it has read last.
    fn terms(&self, start: (Lsn, Term), last: Lsn) -> Vec<(Lsn, Term)> {
        let region = region(self.group);
        let term_of = |lsn: Lsn| {
            let entry = self.engine.get_entry::<EntryIndex>(region, lsn.0);
            entry.ok().flatten().map(|entry| Term(entry.term))
        };
        let found = self.reading(|| Ok(find_terms(start, last, MAX_TERMS_AT_OPEN, term_of)));
        // What raft-engine panics at is looked up again, and reported, by whoever needs it.
        found.unwrap_or_default()
    }
}

/// Runs `read` on a new thread. raft-engine caches the block that a thread has read last, by file number
/// and offset alone. A thread that reads two logs, or a log that was cut and extended, could get a block of
/// the other one: wrong entries, which a purge would even copy. A new thread has an empty cache. Reads are
/// rare and large enough for a thread each.
pub(super) fn on_a_fresh_thread<T: Send>(read: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("log-reader".to_owned())
            .spawn_scoped(scope, read)?;
        match thread.join() {
            Ok(read) => Ok(read),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
