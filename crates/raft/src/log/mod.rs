//! The durable log: one per node, shared by all of its groups.
//!
//! Storage is TiKV's `raft-engine`. This module adds:
//!
//! - [`inspect`]: an inspection of the files *before* raft-engine opens them, because raft-engine silently
//!   cuts the log at the first broken batch of its last file, acknowledged or not;
//! - [`fs`]: the file system below it, where a failed sync ends the process with the file's name,
//!   and where tests inject faults;
//! - [`extents`]: a note in the log of how far its files reached, by which older copies of files are
//!   detected;
//! - [`clean_marks`]: which files are kept, because a failed purge may have lost what they say;
//! - [`writer`]: the one thread that writes for all groups, with one sync per group of requests.
//!
//! Per group the log has the entries above the log start, the hard state, the log start itself, and a tag
//! of the host's. It does not know what an entry means.

mod clean_marks;
mod containment;
mod error;
mod extents;
pub mod fs;
pub mod inspect;
mod layout;
mod reader;
#[cfg(test)]
mod tests;
mod write_queue;
pub mod writer;

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};
use raft_engine::internals::LogQueue;
use raft_engine::{Command, LogBatch, ReadableSize, RecoveryMode};

use crate::engine::{
    LogFloor, LogReadError, LogReader, MAX_COMMAND_BYTES, PersistedState, entry_checksum,
};
use crate::ids::{GroupId, Lsn, Term};
use clean_marks::CleanMarks;
use containment::contain_open;
pub use error::LogError;
use error::is_unreadable;
use extents::{ExtentNotes, KEY_EXTENTS};
pub use fs::{Faults, LogFileSystem, write_last_words};
pub use inspect::{Inspection, TornTail};
use layout::{
    EntryIndex, FORMAT, KEY_FORMAT, KEY_HARD_STATE, KEY_LAST_CHANGE, KEY_START, KEY_TAG,
    NODE_REGION, decode_floor, encode_floor, fill_restart, region,
};
use reader::{GroupReader, on_a_fresh_thread};
pub use writer::{LogWriter, Persisted};

type RaftEngine = raft_engine::Engine<LogFileSystem>;

/// Bytes of entries that are read at a time for their checksums.
const CHECKSUM_BYTES: u64 = 2 << 20;

/// The entry that the log has at an LSN, by its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryChecksum {
    /// Its place.
    pub lsn: Lsn,
    /// The term that it was proposed in.
    pub term: Term,
    /// As [`Committed::checksum`](crate::engine::Committed::checksum).
    pub checksum: u64,
}

/// The directory and the sizes of the log.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Directory; created if missing.
    pub dir: PathBuf,
    /// A file is closed once it is this large, in bytes.
    pub segment_size: u64,
    /// Files whose entries are no longer needed are deleted by [`SharedLog::purge`] once the log is
    /// larger than this, in bytes; at least `segment_size`.
    pub purge_threshold: u64,
    /// Most bytes in one write group: what one sync makes durable, and the most that a crash can
    /// leave torn.
    pub max_group_size: u64,
    /// Whether large writes go past the operating system's cache: cheaper, and right where nothing but a restart
    /// reads the log. A group with several members reads it for those that are behind.
    pub direct_writes: bool,
}

/// A node's log. Cheap to clone.
#[derive(Clone)]
pub struct SharedLog {
    engine: Arc<RaftEngine>,
    config: Arc<LogConfig>,
    /// Held for a write and its sync. raft-engine would let two writers share a sync. Then a crash could
    /// tear more than the last batch, and [`inspect`] accepts only the last batch as torn.
    writing: Arc<Mutex<()>>,
    notes: Arc<ExtentNotes>,
    marks: Arc<CleanMarks>,
    /// Held during a purge, while the end of the rewrite queue is not known.
    purging: Arc<Mutex<()>>,
}

impl SharedLog {
    /// Inspects the files, cuts a torn tail and opens the log. Returns the inspection too.
    ///
    /// # Errors
    ///
    /// The log is damaged, incomplete, unreadable now, or of a newer format: see [`LogError`]. Nothing was
    /// cut unless the inspection succeeded.
    pub fn open(config: LogConfig, faults: Faults) -> Result<(SharedLog, Inspection), LogError> {
        let found = inspect::inspect(&config.dir, max_torn(config.max_group_size))?;
        found.cut().map_err(|source| LogError::Cut {
            dir: config.dir.clone(),
            source,
        })?;
        let rewrite_end = found.rewrite_end();
        let engine_error = |e: raft_engine::Error| LogError::of_engine(&config.dir, "", &e);
        let marks = Arc::new(CleanMarks::default());
        let engine = RaftEngine::open_with(
            raft_engine::Config {
                dir: config.dir.to_string_lossy().into_owned(),
                // A torn tail is cut already, so raft-engine must fail rather than cut anything.
                recovery_mode: RecoveryMode::AbsoluteConsistency,
                // Compression would cost the write path more than the bytes it saves.
                batch_compression_threshold: ReadableSize(0),
                target_file_size: ReadableSize(config.segment_size),
                // raft-engine counts every file as a full one, and the rewrite queue separately. So
                // `SharedLog::purge` compares the bytes on disk with the threshold itself.
                purge_threshold: ReadableSize(config.segment_size),
                // Copied entries are removed soon after they are not needed any more: beyond one file, at
                // most three tenths of the copies are garbage.
                purge_rewrite_threshold: Some(ReadableSize(config.segment_size)),
                purge_rewrite_garbage_ratio: 0.3,
                // A recycled file has old records after new ones, so a torn tail would look like rot.
                enable_log_recycle: false,
                recovery_threads: recovery_threads(),
                ..raft_engine::Config::default()
            },
            Arc::new(LogFileSystem::with_rewrite_end(
                faults,
                rewrite_end.clone(),
                config.direct_writes,
            )),
            vec![marks.clone()],
        )
        .map_err(engine_error)?;
        let mut first = LogBatch::default();
        match engine.get(NODE_REGION, KEY_FORMAT).as_deref() {
            None => first
                .put(NODE_REGION, KEY_FORMAT.to_vec(), vec![FORMAT])
                .map_err(engine_error)?,
            Some([FORMAT]) => {}
            Some(other) => {
                return Err(LogError::NewerFormat {
                    dir: config.dir.clone(),
                    found: other.first().copied().unwrap_or(0),
                });
            }
        }
        compact_again(&engine, &mut first);
        if !first.is_empty() {
            write_synced(&engine, &mut first).map_err(engine_error)?;
        }
        let noted = engine.get(NODE_REGION, KEY_EXTENTS);
        let noted = noted.and_then(|bytes| extents::decode(&bytes));
        let notes = ExtentNotes::new(
            &config.dir,
            config.segment_size,
            rewrite_end,
            noted.unwrap_or_default(),
        );
        let log = SharedLog {
            engine: Arc::new(engine),
            notes: Arc::new(notes),
            marks,
            purging: Arc::default(),
            config: Arc::new(config),
            writing: Arc::default(),
        };
        Ok((log, found))
    }

    /// The state of a group's log. May be called while the log is written to.
    ///
    /// # Errors
    ///
    /// The log could not be read now, or what was read is damaged: see [`LogError::is_damage`].
    pub fn state(&self, group: GroupId) -> Result<PersistedState, LogError> {
        match self.read_state(group) {
            // The parts are read one after the other, and a write may have come in between. The second read
            // excludes writes.
            Err(error) if error.is_damage() => {
                let _writing = self.writing.lock();
                self.read_state(group)
            }
            read => read,
        }
    }

    fn read_state(&self, group: GroupId) -> Result<PersistedState, LogError> {
        let region = region(group);
        let hard_state = match self.engine.get(region, KEY_HARD_STATE) {
            Some(bytes) => HardState::parse_from_bytes(&bytes)
                .map_err(|e| self.error(format!("hard state of group {group}: {e}")))?,
            None => HardState::default(),
        };
        let start = match self.engine.get(region, KEY_START) {
            Some(bytes) => decode_floor(&bytes)
                .ok_or_else(|| self.error(format!("log start of group {group} is malformed")))?,
            None => LogFloor::default(),
        };
        let last = self
            .engine
            .last_index(region)
            .map_or(start.lsn, |last| Lsn(last.max(start.lsn.0)));
        if let Some(first) = self.engine.first_index(region)
            && first > start.lsn.0 + 1
        {
            return Err(self.error(format!(
                "group {group}: entries {}..{first} are missing",
                start.lsn.0 + 1
            )));
        }
        // raft-rs panics in this case.
        if hard_state.commit > last.0 {
            return Err(self.error(format!(
                "group {group}: entries up to {} were committed, and the log ends at {last}",
                hard_state.commit
            )));
        }
        // Both are written together, so the hard state is an old copy.
        let last_term = match last > start.lsn {
            true => {
                let term = self.group_reader(group).term_of(last);
                let term = term.map_err(|e| self.failed(&format!("group {group}: "), &e))?;
                let known = term.filter(|term| term.0 <= hard_state.term);
                known.ok_or_else(|| {
                    self.error(format!(
                        "group {group}: its last entry, {last}, is of a later term than its hard state, {}",
                        hard_state.term
                    ))
                })?
            }
            false => start.term,
        };
        let last_change = match self.engine.get(region, KEY_LAST_CHANGE) {
            Some(bytes) => Lsn(u64::from_be_bytes(bytes.try_into().map_err(|_| {
                self.error(format!("last change of group {group} is malformed"))
            })?)),
            None => Lsn(0),
        };
        Ok(PersistedState {
            start,
            last,
            last_term,
            tag: self.tag(group),
            last_change,
            hard_state,
        })
    }

    /// The tag that the host gave to [`SharedLog::begin_group`].
    pub fn tag(&self, group: GroupId) -> Option<Vec<u8>> {
        self.engine.get(region(group), KEY_TAG)
    }

    /// Empties a group's log, lets it begin after `start` and stores a tag of the host's. Returns when that
    /// is durable. Everything that the log had of the group is removed. A crash or an error leaves the
    /// complete old or the complete new state.
    ///
    /// Only before the group is opened: the engine of an open group keeps its own view of the log.
    pub fn begin_group(&self, group: GroupId, start: LogFloor, tag: &[u8]) -> Result<(), LogError> {
        let region = region(group);
        let hard_state = HardState {
            term: start.term.0,
            commit: start.lsn.0,
            ..HardState::default()
        };
        let fill = |batch: &mut LogBatch| -> raft_engine::Result<()> {
            // First, because it removes everything of the group, including its keys.
            batch.add_command(region, Command::Clean);
            batch.put(region, KEY_START.to_vec(), encode_floor(start))?;
            batch.put(region, KEY_TAG.to_vec(), tag.to_vec())?;
            let hard_state = hard_state.write_to_bytes()?;
            batch.put(region, KEY_HARD_STATE.to_vec(), hard_state)
        };
        let mut batch = LogBatch::default();
        fill(&mut batch)
            .and_then(|()| {
                let _writing = self.writing.lock();
                self.marks.note(self.file_span().1);
                write_synced(&self.engine, &mut batch)
            })
            .map_err(|e| self.failed(&format!("beginning the log of group {group}: "), &e))?;
        Ok(())
    }

    /// As [`SharedLog::begin_group`], for a group whose state was replaced by an installed snapshot of
    /// everything up to `start`, when the process ended before the log was restarted. Tag, term and vote
    /// stay, because term and vote are promises to other members.
    pub fn restart_group(&self, group: GroupId, start: LogFloor) -> Result<(), LogError> {
        let state = self.state(group)?.restarted_after(start);
        let mut batch = LogBatch::default();
        fill_restart(&mut batch, region(group), start, state.tag.as_deref())
            .and_then(|()| {
                let hard_state = state.hard_state.write_to_bytes()?;
                batch.put(region(group), KEY_HARD_STATE.to_vec(), hard_state)
            })
            .and_then(|()| {
                let _writing = self.writing.lock();
                write_synced(&self.engine, &mut batch)
            })
            .map_err(|e| self.failed(&format!("restarting the log of group {group}: "), &e))?;
        Ok(())
    }

    /// Reads a group's entries.
    pub fn reader(&self, group: GroupId) -> Box<dyn LogReader> {
        Box::new(self.group_reader(group))
    }

    fn group_reader(&self, group: GroupId) -> GroupReader {
        GroupReader {
            engine: self.engine.clone(),
            group,
        }
    }

    /// Checksums of a group's entries in `[low, high)`, all of which the log must have. Reads the entries,
    /// so the range should be short.
    ///
    /// # Errors
    ///
    /// The log could not be read now, or what was read is damaged: see [`LogError::is_damage`].
    pub fn entry_checksums(
        &self,
        group: GroupId,
        low: Lsn,
        high: Lsn,
    ) -> Result<Vec<EntryChecksum>, LogError> {
        let reader = self.group_reader(group);
        let mut found = Vec::new();
        let mut next = low;
        while next < high {
            let read = reader.entries(next, high, CHECKSUM_BYTES);
            let read = read.map_err(|error| match error {
                LogReadError::Damaged(message) => self.error(message),
                LogReadError::Unreadable(message) => LogError::Unreadable {
                    dir: self.config.dir.clone(),
                    message,
                },
            })?;
            let read = read.0;
            let Some(last) = read.last() else {
                let message = format!("group {group} has no entry at LSN {next}");
                return Err(self.error(message));
            };
            next = Lsn(last.index + 1);
            found.extend(read.iter().map(|entry| EntryChecksum {
                lsn: Lsn(entry.index),
                term: Term(entry.term),
                checksum: entry_checksum(entry),
            }));
        }
        Ok(found)
    }

    /// The number of a group's entries in `[low, high)` without a command, which elections append.
    pub fn count_empty(&self, group: GroupId, low: Lsn, high: Lsn) -> Result<u64, LogError> {
        let read = self.reader(group).entries(low, high, u64::MAX);
        let entries = read.map_err(|e| match e {
            LogReadError::Unreadable(message) => LogError::Unreadable {
                dir: self.config.dir.clone(),
                message,
            },
            LogReadError::Damaged(message) => self.error(message),
        })?;
        let is_empty = |entry: &&Entry| {
            entry.data.is_empty() && entry.entry_type == raft::eraftpb::EntryType::EntryNormal
        };
        Ok(entries.0.iter().filter(is_empty).count() as u64)
    }

    /// Deletes files that no group needs, once the log is larger than its threshold. Returns the groups
    /// whose old entries keep files on disk: these groups should be flushed and compacted.
    ///
    /// # Errors
    ///
    /// Files could not be listed, copied or deleted; the next purge tries it again.
    pub fn purge(&self) -> Result<Vec<GroupId>, LogError> {
        self.purge_beyond(self.config.purge_threshold)
    }

    /// As [`SharedLog::purge`], once the log is larger than `threshold`. With less than a segment there is
    /// nothing to delete. For a host that knows that no group needs much of the oldest files: otherwise the
    /// entries that are needed are copied, or their groups are returned, more often than necessary.
    ///
    /// # Errors
    ///
    /// As [`SharedLog::purge`].
    pub fn purge_beyond(&self, threshold: u64) -> Result<Vec<GroupId>, LogError> {
        if self.used_bytes()? <= threshold {
            return Ok(Vec::new());
        }
        // Another thread is purging.
        let Some(_purging) = self.purging.try_lock() else {
            return Ok(Vec::new());
        };
        let purged = on_a_fresh_thread(|| contain_open(|| self.engine.purge_expired_files()))
            .map_err(|e| self.failed("", &e.into()))?;
        self.marks.purged(purged.is_err(), self.file_span().0);
        self.notes.purged();
        self.notes.write_due(&self.engine, &self.writing);
        let held_by = purged.map_err(|e| self.failed("", &e))?;
        Ok(held_by
            .into_iter()
            .filter(|region| *region != NODE_REGION)
            .map(|region| GroupId(region - 1))
            .collect())
    }

    /// Bytes of the log's files on disk: of the files that it writes, and of those into which a purge
    /// copies entries that are still needed. Preallocated space of the current file is included.
    ///
    /// # Errors
    ///
    /// The directory cannot be listed, so the size is unknown.
    pub fn used_bytes(&self) -> Result<u64, LogError> {
        let unreadable = |error: std::io::Error| LogError::Unreadable {
            dir: self.config.dir.clone(),
            message: format!("listing its files: {error}"),
        };
        let mut bytes = 0;
        for file in std::fs::read_dir(&self.config.dir).map_err(unreadable)? {
            match file.map_err(unreadable)?.metadata() {
                Ok(meta) if meta.is_file() => bytes += meta.len(),
                Ok(_) => {}
                // Deleted since the directory was listed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
        Ok(bytes)
    }

    /// Numbers of the oldest file that the log still has, and of the one that it writes to.
    pub fn file_span(&self) -> (u64, u64) {
        self.engine.file_span(LogQueue::Append)
    }

    /// Its configuration.
    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    fn failed(&self, context: &str, error: &raft_engine::Error) -> LogError {
        LogError::of_engine(&self.config.dir, context, error)
    }

    /// The error for content that breaks a rule of the format.
    fn error(&self, message: String) -> LogError {
        LogError::Engine {
            dir: self.config.dir.clone(),
            message,
        }
    }
}

/// Writes a batch and syncs it, like every batch of the log. The caller holds the lock of the writes.
fn write_synced(engine: &RaftEngine, batch: &mut LogBatch) -> raft_engine::Result<()> {
    contain_open(|| engine.write(batch, true)).map(|_| ())
}

/// Repeats the compactions of all groups at an open. raft-engine keeps a compaction only as long as the
/// append file that it was written to. Once a purge has deleted that file, entries that an earlier purge
/// had copied reappear after a restart. After them there may be a gap up to the log start, and raft-engine
/// would panic at the next write.
fn compact_again(engine: &RaftEngine, batch: &mut LogBatch) {
    for region in engine.raft_groups() {
        let start = engine
            .get(region, KEY_START)
            .and_then(|bytes| decode_floor(&bytes));
        if let (Some(start), Some(first)) = (start, engine.first_index(region))
            && first <= start.lsn.0
        {
            let index = start.lsn.0 + 1;
            batch.add_command(region, Command::Compact { index });
        }
    }
}

/// Threads that read the log at an open, beyond those of the inspection before: raft-engine reads one queue
/// with each at least.
fn recovery_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4))
}

/// The largest size of a torn write group on disk: its encoded requests, and the one request that may
/// exceed the limit.
fn max_torn(max_group_size: u64) -> u64 {
    2 * max_group_size + MAX_COMMAND_BYTES as u64
}
