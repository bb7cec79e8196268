//! The durable log: one per node, shared by all of its groups.
//!
//! Storage is TiKV's `raft-engine`. Ours is what stands around it:
//!
//! - [`inspect`]: a look at the files *before* raft-engine opens them, because it would silently
//!   cut the log at the first broken batch of its last file, acknowledged or not;
//! - [`fs`]: the file system below it, where a failed sync ends the process with the file's name,
//!   and where tests inject faults;
//! - [`extents`]: how far its files reached, noted in the log, so that older copies of them are noticed;
//! - [`writer`]: the one thread that writes, for all groups, with one sync per group of requests.
//!
//! Per group the log holds its entries above the log start, the hard state, the log start itself,
//! and a tag of the host's.

mod extents;
pub mod fs;
pub mod inspect;
mod reader;
#[cfg(test)]
mod tests;
pub mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};
use raft_engine::internals::LogQueue;
use raft_engine::{Command, LogBatch, MessageExt, ReadableSize, RecoveryMode};

use crate::engine::{
    LogFloor, LogReadError, LogReader, MAX_COMMAND_BYTES, PersistedState, entry_checksum,
};
use crate::ids::{GroupId, Lsn, Term};
use extents::{ExtentNotes, KEY_EXTENTS};
pub use fs::{Faults, LogFileSystem, write_last_words};
pub use inspect::{Inspection, TornTail};
use reader::{GroupReader, on_a_fresh_thread};
pub use writer::{LogWriter, Persisted};

type RaftEngine = raft_engine::Engine<LogFileSystem>;

const KEY_HARD_STATE: &[u8] = b"hard-state";
/// The log start; its name on disk is from when compaction always went up to the floor.
const KEY_START: &[u8] = b"floor";
const KEY_TAG: &[u8] = b"tag";
/// The last entry that changes the membership; absent if there never was one.
const KEY_LAST_CHANGE: &[u8] = b"last-change";
/// raft-engine's key for what belongs to no group.
const NODE_REGION: u64 = u64::MAX - 1;
const KEY_FORMAT: &[u8] = b"format";
/// Version of what this module writes into raft-engine.
const FORMAT: u8 = 1;

/// Bytes of entries that are read at a time for their checksums.
const CHECKSUM_BYTES: u64 = 2 << 20;

/// Which entry the log has at an LSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryChecksum {
    /// Its place.
    pub lsn: Lsn,
    /// The term that it was proposed in.
    pub term: Term,
    /// As [`Committed::checksum`](crate::engine::Committed::checksum).
    pub checksum: u64,
}

/// Where the log lives, and its sizes.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Directory; made if missing.
    pub dir: PathBuf,
    /// A file is closed once it is this large, in bytes.
    pub segment_size: u64,
    /// Files whose entries are no longer needed are deleted by [`SharedLog::purge`] once the log is
    /// larger than this, in bytes; at least `segment_size`.
    pub purge_threshold: u64,
    /// Most bytes in one write group: what one sync makes durable, and the most that a crash can
    /// leave torn.
    pub max_group_size: u64,
}

/// Why the log could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The look at the files found damage that no crash can explain, or could not read them.
    #[error(transparent)]
    Inspect(#[from] inspect::InspectError),
    /// A torn tail could not be cut.
    #[error("cutting the torn tail of the log in {dir}: {source}")]
    Cut {
        /// The log's directory.
        dir: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The log holds what it cannot hold. It was read: this is damage.
    #[error("the log in {dir}: {message}")]
    Engine {
        /// The log's directory.
        dir: PathBuf,
        /// What raft-engine says.
        message: String,
    },
    /// The operating system refused to read or write; nothing is known about the log.
    #[error("the log in {dir}: {message}")]
    Unreadable {
        /// The log's directory.
        dir: PathBuf,
        /// What the operating system says, and about which file.
        message: String,
    },
    /// The log was written by a newer version.
    #[error(
        "the log in {dir} has format {found}, this version knows up to {FORMAT}: use a newer esker"
    )]
    NewerFormat {
        /// The log's directory.
        dir: PathBuf,
        /// The format found.
        found: u8,
    },
}

impl LogError {
    /// Whether the log is damaged or incomplete, as a checksum or a rule of its format proves. An
    /// answer of the operating system proves nothing.
    pub fn is_damage(&self) -> bool {
        match self {
            LogError::Inspect(found) => match found {
                inspect::InspectError::Rot { .. }
                | inspect::InspectError::MissingFile { .. }
                | inspect::InspectError::Gap { .. }
                | inspect::InspectError::OlderCopy { .. }
                | inspect::InspectError::OtherCopy { .. } => true,
                // A file that does not belong there says nothing about those that do.
                inspect::InspectError::Foreign { .. } | inspect::InspectError::Io { .. } => false,
            },
            LogError::Engine { .. } => true,
            LogError::Cut { .. } | LogError::Unreadable { .. } | LogError::NewerFormat { .. } => {
                false
            }
        }
    }

    /// Whether the operating system refused: the same may work later.
    pub fn is_unreadable(&self) -> bool {
        match self {
            LogError::Inspect(found) => matches!(found, inspect::InspectError::Io { .. }),
            LogError::Cut { .. } | LogError::Unreadable { .. } => true,
            LogError::Engine { .. } | LogError::NewerFormat { .. } => false,
        }
    }

    /// What raft-engine failed with, `context` before it if there is one.
    fn of_engine(dir: &Path, context: &str, error: &raft_engine::Error) -> LogError {
        let (dir, message) = (dir.to_owned(), format!("{context}{error}"));
        match is_unreadable(error) {
            true => LogError::Unreadable { dir, message },
            false => LogError::Engine { dir, message },
        }
    }
}

/// Whether what raft-engine failed with proves nothing about the log: the same may work later.
fn is_unreadable(error: &raft_engine::Error) -> bool {
    match error {
        raft_engine::Error::Io(_)
        | raft_engine::Error::TryAgain(_)
        | raft_engine::Error::Full
        | raft_engine::Error::Other(_) => true,
        raft_engine::Error::InvalidArgument(_)
        | raft_engine::Error::Corruption(_)
        | raft_engine::Error::Codec(_)
        | raft_engine::Error::Protobuf(_)
        | raft_engine::Error::EntryCompacted
        | raft_engine::Error::EntryNotFound => false,
    }
}

/// A node's log. Cheap to clone.
#[derive(Clone)]
pub struct SharedLog {
    engine: Arc<RaftEngine>,
    config: Arc<LogConfig>,
    /// Held for a write and its sync. raft-engine would let two writers share a sync, and then a
    /// crash could tear more than the last batch, which is all that [`inspect`] takes for a torn one.
    writing: Arc<Mutex<()>>,
    notes: Arc<ExtentNotes>,
    /// Held while files are purged: until then nobody knows how far the rewrite queue reaches.
    purging: Arc<Mutex<()>>,
}

impl SharedLog {
    /// Looks at the files, cuts a torn tail, opens. The inspection tells what was found.
    pub fn open(config: LogConfig, faults: Faults) -> Result<(SharedLog, Inspection), LogError> {
        let found = inspect::inspect(&config.dir, max_torn(config.max_group_size))?;
        found.cut().map_err(|source| LogError::Cut {
            dir: config.dir.clone(),
            source,
        })?;
        let rewrite_end = found.rewrite_end();
        let engine_error = |e: raft_engine::Error| LogError::of_engine(&config.dir, "", &e);
        let engine = RaftEngine::open_with_file_system(
            raft_engine::Config {
                dir: config.dir.to_string_lossy().into_owned(),
                // What could be torn is cut already: raft-engine is to cut nothing by itself.
                recovery_mode: RecoveryMode::AbsoluteConsistency,
                // Compression would cost the write path more than the bytes it saves.
                batch_compression_threshold: ReadableSize(0),
                target_file_size: ReadableSize(config.segment_size),
                // It counts every file as a full one, and those of the rewrite queue apart:
                // `SharedLog::purge` compares what is on disk instead.
                purge_threshold: ReadableSize(config.segment_size),
                // What was copied goes soon after nobody wants it any more. At most three tenths of the
                // copies are useless, beyond one file.
                purge_rewrite_threshold: Some(ReadableSize(config.segment_size)),
                purge_rewrite_garbage_ratio: 0.3,
                // A recycled file holds old records behind new ones, which would make a torn
                // tail look like rot.
                enable_log_recycle: false,
                recovery_threads: 2,
                ..raft_engine::Config::default()
            },
            Arc::new(LogFileSystem::with_rewrite_end(faults, rewrite_end.clone())),
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
            engine.write(&mut first, true).map_err(engine_error)?;
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
            purging: Arc::default(),
            config: Arc::new(config),
            writing: Arc::default(),
        };
        Ok((log, found))
    }

    /// What the log remembers of a group, also while it is written to.
    ///
    /// # Errors
    ///
    /// The log could not be read now, or what was read is damaged: see [`LogError::is_damage`].
    pub fn state(&self, group: GroupId) -> Result<PersistedState, LogError> {
        match self.read_state(group) {
            // The parts are read one after the other, and a write may have changed them in between. Nothing is
            // written while this is held.
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
        // raft-rs panics on it.
        if hard_state.commit > last.0 {
            return Err(self.error(format!(
                "group {group}: entries up to {} were committed, and the log ends at {last}",
                hard_state.commit
            )));
        }
        // Both are written together, so the hard state is an older one.
        if last > start.lsn {
            let term = self.group_reader(group).term_of(last);
            let term = term.map_err(|e| self.failed(&format!("group {group}: "), &e))?;
            if term.is_none_or(|term| term.0 > hard_state.term) {
                return Err(self.error(format!(
                    "group {group}: its last entry, {last}, is of a later term than its hard state, {}",
                    hard_state.term
                )));
            }
        }
        let last_change = match self.engine.get(region, KEY_LAST_CHANGE) {
            Some(bytes) => Lsn(u64::from_be_bytes(bytes.try_into().map_err(|_| {
                self.error(format!("last change of group {group} is malformed"))
            })?)),
            None => Lsn(0),
        };
        Ok(PersistedState {
            start,
            last,
            tag: self.tag(group),
            last_change,
            hard_state,
        })
    }

    /// What the host wrote beside a group's log when it began it.
    pub fn tag(&self, group: GroupId) -> Option<Vec<u8>> {
        self.engine.get(region(group), KEY_TAG)
    }

    /// Makes a group's log empty and lets it begin after `start`, with a tag of the host's beside it;
    /// returns when that is durable. Whatever the log had of the group is gone, and does not come
    /// back. A crash, or an error, leaves all of the old or all of the new.
    ///
    /// Only before the group is opened: an open one has its own idea of what is in the log.
    pub fn begin_group(&self, group: GroupId, start: LogFloor, tag: &[u8]) -> Result<(), LogError> {
        let region = region(group);
        let hard_state = HardState {
            term: start.term.0,
            commit: start.lsn.0,
            ..HardState::default()
        };
        let fill = |batch: &mut LogBatch| -> raft_engine::Result<()> {
            // First of all: it forgets everything of the group, keys as well.
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
                self.engine.write(&mut batch, true)
            })
            .map_err(|e| self.failed(&format!("beginning the log of group {group}: "), &e))?;
        Ok(())
    }

    /// As [`SharedLog::begin_group`], for a group whose state was replaced by an installed snapshot of
    /// everything up to `start`, in a process that ended before its log was told: the tag stays, and
    /// so do term and vote, which are promises to others.
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
                self.engine.write(&mut batch, true)
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

    /// Checksums of a group's entries in `[low, high)`, all of which the log has. Reads them: they should
    /// be few.
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

    /// How many of a group's entries in `[low, high)` change nothing: those that an election appends.
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

    /// Deletes files that no group needs, once the log is larger than its threshold. Answers the groups
    /// whose old entries hold files back: they should be flushed and compacted.
    pub fn purge(&self) -> Result<Vec<GroupId>, LogError> {
        if self.used_bytes()? <= self.config.purge_threshold {
            return Ok(Vec::new());
        }
        // Somebody else does it.
        let Some(_purging) = self.purging.try_lock() else {
            return Ok(Vec::new());
        };
        let purged = on_a_fresh_thread(|| self.engine.purge_expired_files())
            .map_err(|e| self.failed("", &e.into()))?;
        self.notes.purged();
        self.notes.write_due(&self.engine, &self.writing);
        let held_by = purged.map_err(|e| self.failed("", &e))?;
        Ok(held_by
            .into_iter()
            .filter(|region| *region != NODE_REGION)
            .map(|region| GroupId(region - 1))
            .collect())
    }

    /// Bytes that the log's files have on disk: those that it writes, and those into which it copies
    /// entries that are still wanted when their file goes. What was set aside for the file that is
    /// written to counts.
    ///
    /// # Errors
    ///
    /// The directory cannot be listed: nothing is known about the size then.
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
                // Deleted since it was listed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
        Ok(bytes)
    }

    /// Numbers of the first file that the log still has, and of the one that it writes.
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

    /// What was read is not what belongs there.
    fn error(&self, message: String) -> LogError {
        LogError::Engine {
            dir: self.config.dir.clone(),
            message,
        }
    }
}

/// raft-engine's number for a group: its own tools print 0 as "none", so ours start at 1.
fn region(group: GroupId) -> u64 {
    group.0 + 1
}

/// raft-engine remembers a compaction only as long as the append file that it was written to: once
/// purge has deleted that, entries that purge had copied before are back after a restart. Behind
/// them there may be a hole up to the log start, over which raft-engine would panic at the next write.
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

/// Forgets everything of a group but its tag, and lets its log begin after `start`. A hard state has
/// to follow.
fn fill_restart(
    batch: &mut LogBatch,
    region: u64,
    start: LogFloor,
    tag: Option<&[u8]>,
) -> raft_engine::Result<()> {
    // First of all: it forgets everything of the group, keys as well.
    batch.add_command(region, Command::Clean);
    batch.put(region, KEY_START.to_vec(), encode_floor(start))?;
    match tag {
        Some(tag) => batch.put(region, KEY_TAG.to_vec(), tag.to_vec()),
        None => Ok(()),
    }
}

fn encode_floor(floor: LogFloor) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    bytes.extend_from_slice(&floor.lsn.0.to_be_bytes());
    bytes.extend_from_slice(&floor.term.0.to_be_bytes());
    bytes
}

fn decode_floor(bytes: &[u8]) -> Option<LogFloor> {
    let (lsn, term) = bytes.split_first_chunk::<8>()?;
    Some(LogFloor {
        lsn: Lsn(u64::from_be_bytes(*lsn)),
        term: Term(u64::from_be_bytes(term.try_into().ok()?)),
    })
}

/// The most that a torn write group can take on disk: its requests, encoded, and the one request
/// that may exceed the limit by itself.
fn max_torn(max_group_size: u64) -> u64 {
    2 * max_group_size + MAX_COMMAND_BYTES as u64
}

/// Tells raft-engine where an entry's index is.
#[derive(Clone)]
pub(crate) struct EntryIndex;

impl MessageExt for EntryIndex {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}
