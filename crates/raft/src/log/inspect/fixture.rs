//! For tests: real logs with known contents, as a crash or a clean end left them.
//!
//! A log is a sequence of *groups*, numbered from 0: group `n` is one batch that holds a key of
//! its own and, mostly, one entry for each of three Raft groups.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::eraftpb::Entry;
use raft_engine::env::FileSystem;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

use crate::log::fs::{Faults, LogFileSystem};

/// Upper bound of the encoded size of any group made here, in bytes.
pub(in crate::log) const MAX_GROUP_BYTES: u64 = 64 << 10;

/// Rotation happens once a file has this many bytes.
pub(in crate::log) const FILE_BYTES: u64 = 16 << 10;

pub(in crate::log) struct RaftEntry;

impl MessageExt for RaftEntry {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

pub(in crate::log) fn config(dir: &Path) -> Config {
    Config {
        dir: dir.to_str().expect("paths of tests are UTF-8").to_owned(),
        recovery_threads: 1,
        target_file_size: ReadableSize(FILE_BYTES),
        purge_threshold: ReadableSize(2 * FILE_BYTES),
        enable_log_recycle: false,
        // Whatever the inspection lets through, raft-engine must not have to cut.
        recovery_mode: RecoveryMode::AbsoluteConsistency,
        ..Config::default()
    }
}

pub(in crate::log) fn open(dir: &Path) -> Engine<LogFileSystem> {
    open_on(dir, LogFileSystem::with_faults(Faults::new()))
}

pub(in crate::log) fn open_on(dir: &Path, fs: LogFileSystem) -> Engine<LogFileSystem> {
    Engine::open_with_file_system(config(dir), Arc::new(fs)).expect("raft-engine opens the log")
}

/// Sizes vary from kilobytes (compressed) to nothing (a batch without entries).
fn entry_bytes(n: u64, region: u64) -> Option<Vec<u8>> {
    let len = match n % 7 {
        3 => return None,
        5 => 6000,
        other => other * 150,
    };
    let mut word = n * 1_000_003 + region;
    let noise = (0..len).map(|_| {
        word = word
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (word >> 56) as u8
    });
    Some(noise.collect())
}

/// Index of group `n`'s entries: groups without entries take none.
fn entry_index(n: u64) -> u64 {
    1 + (0..n).filter(|i| entry_bytes(*i, 1).is_some()).count() as u64
}

const REGIONS: std::ops::RangeInclusive<u64> = 1..=3;

pub(in crate::log) fn group(n: u64) -> LogBatch {
    let mut batch = LogBatch::default();
    for region in REGIONS {
        if let Some(data) = entry_bytes(n, region) {
            let mut entry = Entry::new();
            entry.set_index(entry_index(n));
            entry.set_term(1);
            entry.set_data(data.into());
            batch
                .add_entries::<RaftEntry>(region, &[entry])
                .expect("a group fits into a batch");
        }
    }
    batch
        .put(1, key(n), n.to_be_bytes().to_vec())
        .expect("the key is not reserved");
    batch
}

fn key(n: u64) -> Vec<u8> {
    format!("group-{n:06}").into_bytes()
}

/// Writes and syncs groups, as the log writer does.
pub(in crate::log) fn append<F: FileSystem>(engine: &Engine<F>, groups: std::ops::Range<u64>) {
    for n in groups {
        engine
            .write(&mut group(n), true)
            .expect("a healthy disk takes the group");
    }
}

/// Whether group `n` is in the log; panics if it is there in part, or with other bytes.
pub(in crate::log) fn has<F: FileSystem>(engine: &Engine<F>, n: u64) -> bool {
    let Some(value) = engine.get(1, &key(n)) else {
        return false;
    };
    assert_eq!(value, n.to_be_bytes(), "value of group {n}");
    for region in REGIONS {
        if let Some(data) = entry_bytes(n, region) {
            let entry = engine
                .get_entry::<RaftEntry>(region, entry_index(n))
                .expect("entries can be read")
                .unwrap_or_else(|| panic!("entry of group {n} in region {region}"));
            assert_eq!(
                entry.get_data(),
                data,
                "entry of group {n} in region {region}"
            );
        }
    }
    true
}

/// The number of groups in the log at `dir`, which must be the first so many of `total`.
pub(in crate::log) fn groups_in(dir: &Path, total: u64) -> u64 {
    let engine = open(dir);
    let present = (0..total).take_while(|n| has(&engine, *n)).count() as u64;
    assert!(
        (present..total).all(|n| !has(&engine, n)),
        "groups after {present} without it"
    );
    present
}

/// A log's files, in memory: (name, bytes), in order.
#[derive(Clone)]
pub(in crate::log) struct Files(pub(in crate::log) Vec<(String, Vec<u8>)>);

impl Files {
    /// All log files in `dir`, as they are now.
    pub(in crate::log) fn read(dir: &Path) -> Self {
        let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(dir)
            .expect("the directory is there")
            .map(|entry| entry.expect("entries can be read"))
            .filter(|entry| entry.file_name() != "LOCK")
            .map(|e| {
                let name = e.file_name().into_string().expect("names are UTF-8");
                (name, fs::read(e.path()).expect("files can be read"))
            })
            .collect();
        files.sort();
        Self(files)
    }

    pub(in crate::log) fn write(&self, dir: &Path) {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).expect("the directory can be made");
        for (name, bytes) in &self.0 {
            fs::write(dir.join(name), bytes).expect("files can be written");
        }
    }

    /// Positions of the append queue's files, oldest first.
    pub(in crate::log) fn append(&self) -> Vec<usize> {
        (0..self.0.len())
            .filter(|i| self.0[*i].0.ends_with(".raftlog"))
            .collect()
    }

    pub(in crate::log) fn last_append(&self) -> usize {
        *self.append().last().expect("there is an append file")
    }

    /// (offset, length) of each batch in file `i`, which must be undamaged.
    pub(in crate::log) fn batches(&self, i: usize) -> Vec<(usize, usize)> {
        let bytes = &self.0[i].1;
        let (mut at, mut found) = (69, Vec::new());
        while let Some(header) = bytes.get(at..at + 8) {
            let len = header[..7]
                .iter()
                .fold(0, |len, byte| len << 8 | usize::from(*byte));
            if len == 0 {
                break;
            }
            found.push((at, len));
            at += len;
        }
        found
    }
}

/// A log of `groups` groups: its files before it was closed (preallocated space at the end, as
/// after a crash), and after.
pub(in crate::log) fn log_of(groups: u64) -> (Files, Files) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let engine = open(dir.path());
    append(&engine, 0..groups);
    let crashed = Files::read(dir.path());
    drop(engine);
    (crashed, Files::read(dir.path()))
}

/// A directory for a log, removed when dropped with the first part.
pub(in crate::log) fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("log");
    (dir, log)
}
