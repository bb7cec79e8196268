//! A partition on a real database, the log that it applies, and what readers see of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_raft::{ApplyError, Committed, Lsn, StateMachine as _, Term};
use s2_common::config::StreamConfig;
use s2_common::read_extent::{ReadLimit, ReadUntil};
use s2_common::record::{CommandRecord, MeteredSize as _, Record, SeqNum, StreamPosition};
use s2_storage::record::StoredRecord;
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

use crate::batches::Batches;
use crate::checkpoint::Checkpoint;
use crate::command::{Append, AppendRefusal, Appended, Kind, Outcome};
use crate::encryption::{associated_data, cipher_number, decrypt};
use crate::ids::{BasinId, LineageId, PartitionId, StreamId};
use crate::keys;
use crate::reader::{Reader, Scan, ScanEnd};
use crate::row::Row;
use crate::settings::StreamSettings;
use crate::state::StateReader;
use crate::store::{ClusterInit, PartitionDb, Store, StoreError, StoreOptions};
use crate::stream::{Stream, StreamState};
use crate::streams::failed::{FailedSessions, REMEMBER_FAILED, Refusal};
use crate::streams::{StreamOptions, StreamPartition};

pub use super::commands::*;

/// Options of a database that is small and quick to create.
pub fn store_options() -> StoreOptions {
    const MIB: usize = 1024 * 1024;
    StoreOptions {
        block_cache: 8 * MIB,
        write_buffer: 8 * MIB,
        write_buffers_total: 32 * MIB,
        max_open_files: 160,
        background_jobs: 2,
        checkpoints: None,
        damage: crate::store::DamageReport::default(),
    }
}

/// One stream partition, with one member.
pub fn cluster_init() -> ClusterInit {
    ClusterInit {
        partitions: 1,
        voters: vec![7],
        cluster_id: "a cluster".to_owned(),
    }
}

/// Options with which space is reclaimed at once.
pub fn eager() -> StreamOptions {
    StreamOptions {
        compact_garbage: 64 * 1024,
        reclaim_after: Duration::ZERO,
        ..StreamOptions::default()
    }
}

/// Where the batches of a stream begin, and their bytes.
pub fn batches_of(part: &PartitionDb, stream: StreamId) -> Vec<(SeqNum, Vec<u8>)> {
    let mut batches = Batches::new(part, stream, SeqNum::MAX);
    batches.seek_start(0);
    let mut found = Vec::new();
    while let Some((first, value)) = batches.next_value().unwrap() {
        found.push((first, value.to_vec()));
    }
    found
}

/// Damages a batch in the database: other bytes, or none.
pub fn damage_batch(part: &PartitionDb, stream: StreamId, first: SeqNum, value: Option<&[u8]>) {
    let mut rows = part.iterate(&keys::row(stream, first), &keys::rows_end(stream), false);
    rows.seek_to_first();
    let row = Row::parse(rows.value().unwrap()).unwrap();
    let (db, cf) = (part.store().db(), part.segments_cf());
    let key = keys::batch(row.segment, stream, first);
    let mut batch = rust_rocksdb::WriteBatch::default();
    match value {
        Some(value) => batch.put_cf(&cf, key, value),
        None => batch.delete_cf(&cf, key),
    }
    db.write_without_wal(&batch).unwrap();
}

/// Opens a database that may still be held by a compaction of the one before it.
fn open_store(path: &Path) -> Store {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match Store::open(path, &store_options(), 1) {
            Err(StoreError::Db { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            other => return other.unwrap(),
        }
    }
}

/// A partition, and the log of its group.
pub struct Fixture {
    directory: TempDir,
    options: StreamOptions,
    remember_failed: u64,
    /// `None` only while it is being reopened.
    open: Option<(Store, StreamPartition)>,
    log: Vec<Committed>,
}

impl Fixture {
    pub fn new() -> Fixture {
        Fixture::with(StreamOptions::default())
    }

    pub fn with(options: StreamOptions) -> Fixture {
        Fixture::remembering(options, REMEMBER_FAILED)
    }

    /// A fixture of another cluster.
    pub fn of_cluster(cluster_id: &str) -> Fixture {
        let init = ClusterInit {
            cluster_id: cluster_id.to_owned(),
            ..cluster_init()
        };
        Fixture::made_with(&init, StreamOptions::default(), REMEMBER_FAILED)
    }

    /// A fixture whose partition remembers refusals for this many entries of the log.
    pub fn remembering(options: StreamOptions, remember_failed: u64) -> Fixture {
        Fixture::made_with(&cluster_init(), options, remember_failed)
    }

    fn made_with(init: &ClusterInit, options: StreamOptions, remember_failed: u64) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(directory.path(), &store_options(), init).unwrap();
        let machine =
            StreamPartition::remembering(&store, PARTITION, options.clone(), remember_failed)
                .unwrap();
        Fixture {
            directory,
            options,
            remember_failed,
            open: Some((store, machine)),
            log: Vec::new(),
        }
    }

    /// What a power loss would leave of the database: a copy of its files, opened. What the database was at
    /// one moment is in its manifest, which is copied first; no file is deleted meanwhile.
    pub fn crashed_copy(&self) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let part = self.partition_db();
        let kept = part.keep_files().unwrap();
        for is_table in [false, true] {
            for file in std::fs::read_dir(self.directory.path()).unwrap() {
                let path = file.unwrap().path();
                let name = path.file_name().unwrap();
                let has_end = path.extension().is_some_and(|end| end == "sst");
                if path.is_file() && has_end == is_table {
                    std::fs::copy(&path, directory.path().join(name)).unwrap();
                }
            }
        }
        drop(kept);
        let (store, machine) = self.open_at(directory.path());
        Fixture {
            directory,
            options: self.options.clone(),
            remember_failed: self.remember_failed,
            open: Some((store, machine)),
            log: self.log.clone(),
        }
    }

    /// Does enough rounds of maintenance to reclaim everything.
    pub fn maintain_all(&mut self) {
        for _ in 0..50 {
            self.machine().maintain();
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A checkpoint of the present state.
    pub fn checkpoint(&mut self) -> Checkpoint {
        self.partition_db().begin_checkpoint().take().unwrap()
    }

    /// A partition in a database of its own, imported from a checkpoint.
    pub fn imported(&self, checkpoint: &Checkpoint) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open_any(directory.path(), &store_options()).unwrap();
        store
            .create_partition(PartitionId(0), &cluster_init())
            .unwrap();
        let linked = checkpoint.link_to(&directory.path().join("links")).unwrap();
        store.import(PARTITION, &linked).unwrap();
        let log = self.log[..checkpoint.meta.lsn as usize].to_vec();
        let (options, window) = (self.options.clone(), self.remember_failed);
        let machine = StreamPartition::remembering(&store, PARTITION, options, window).unwrap();
        Fixture {
            directory,
            options: self.options.clone(),
            remember_failed: self.remember_failed,
            open: Some((store, machine)),
            log,
        }
    }

    /// Begins another lineage here, as a restore does after which something may be lost.
    pub fn fork(&mut self, id: u128) {
        let lineage = self.partition_db().lineage().unwrap();
        let next = lineage.fork(LineageId(id), self.applied());
        self.partition_db().fork(&next, &[7]).unwrap();
        self.stop_and_open();
    }

    /// Begins a lineage, and opens the partition for entries that were proposed before it.
    pub fn fork_before(&mut self, id: u128) {
        self.fork(id);
        self.open_behind_fork();
    }

    /// Opens the partition again for entries that were proposed before its lineage began.
    pub fn open_behind_fork(&mut self) {
        self.stop_and_open();
        let (store, machine) = self.open.take().unwrap();
        drop(machine);
        let options = self.options.clone();
        let machine = StreamPartition::open_behind_fork(&store, PARTITION, options).unwrap();
        self.open = Some((store, machine));
    }

    /// Applies the entries that another partition's log has beyond its own.
    pub fn catch_up(&mut self, other: &Fixture) {
        self.log = other.log.clone();
        self.replay(3);
    }

    /// Takes the log of another partition, to apply it.
    pub fn take_log(&mut self, other: &Fixture) {
        self.log = other.log.clone();
    }

    /// The database in this directory, opened as this partition is.
    fn open_at(&self, path: &Path) -> (Store, StreamPartition) {
        let store = open_store(path);
        let options = self.options.clone();
        let machine =
            StreamPartition::remembering(&store, PARTITION, options, self.remember_failed).unwrap();
        (store, machine)
    }

    pub fn machine(&mut self) -> &mut StreamPartition {
        &mut self.open.as_mut().unwrap().1
    }

    pub fn reader(&self) -> Reader {
        self.open.as_ref().unwrap().1.reader()
    }

    pub fn state_reader(&self) -> StateReader {
        self.open.as_ref().unwrap().1.state_reader()
    }

    pub fn partition_db(&self) -> PartitionDb {
        self.open.as_ref().unwrap().0.partition_db(PARTITION)
    }

    pub fn applied(&self) -> u64 {
        self.open.as_ref().unwrap().1.applied().0
    }

    pub fn durable(&self) -> u64 {
        self.partition_db().durable().unwrap().unwrap().lsn
    }

    pub fn flush(&self) {
        self.partition_db().flush().unwrap();
    }

    /// Flushes it, closes it and opens it again.
    pub fn reopen(&mut self) {
        self.flush();
        self.stop_and_open();
    }

    /// Has it opened with other options from now on.
    pub fn use_options(&mut self, options: StreamOptions) {
        self.options = options;
    }

    /// Stops it without a flush and opens it again: what was not flushed is lost.
    pub fn stop_and_open(&mut self) {
        let (store, machine) = self.open.take().unwrap();
        drop(machine);
        store.close();
        drop(store);
        self.open = Some(self.open_at(self.directory.path()));
    }

    /// Applies the log from where the database ends, in steps of `step` entries.
    pub fn replay(&mut self, step: usize) -> Vec<Outcome> {
        let from = self.applied() as usize;
        let rest = self.log[from..].to_vec();
        let mut outcomes = Vec::new();
        for entries in rest.chunks(step) {
            self.machine().apply(entries, &mut outcomes).unwrap();
        }
        outcomes
    }

    /// Applies the next `count` entries of the log as one step.
    pub fn replay_some(&mut self, count: usize) {
        let from = self.applied() as usize;
        let to = self.log.len().min(from + count);
        let entries = self.log[from..to].to_vec();
        self.machine().apply(&entries, &mut Vec::new()).unwrap();
    }

    /// Applies raw commands as one step. If it fails, they are not in the log.
    pub fn try_bytes(&mut self, commands: Vec<Bytes>) -> Result<Vec<Outcome>, ApplyError> {
        let next = self.log.len() as u64 + 1;
        let entries: Vec<Committed> = (next..)
            .zip(commands)
            .map(|(lsn, command)| Committed {
                lsn: Lsn(lsn),
                term: Term(1),
                command: Some(command),
                membership: None,
                checksum: 0,
            })
            .collect();
        let mut outcomes = Vec::new();
        self.machine().apply(&entries, &mut outcomes)?;
        assert_eq!(
            outcomes.len(),
            entries.len(),
            "one outcome for each command"
        );
        self.log.extend(entries);
        Ok(outcomes)
    }

    /// Applies entries as one step and adds them to the log.
    pub fn apply_entries(&mut self, entries: &[Committed]) {
        self.machine().apply(entries, &mut Vec::new()).unwrap();
        self.log.extend_from_slice(entries);
    }

    /// Applies this many entries without a command, in steps of a size that the runtime uses.
    pub fn idle(&mut self, entries: u64) {
        let next = self.log.len() as u64 + 1;
        let entries: Vec<Committed> = (next..next + entries)
            .map(|lsn| Committed {
                lsn: Lsn(lsn),
                term: Term(1),
                command: None,
                membership: None,
                checksum: 0,
            })
            .collect();
        for step in entries.chunks(1024) {
            self.machine().apply(step, &mut Vec::new()).unwrap();
        }
        self.log.extend(entries);
    }

    /// Applies commands as one step.
    pub fn step(&mut self, commands: Vec<Kind>) -> Vec<Outcome> {
        let commands = commands.into_iter().map(bytes_of).collect();
        self.try_bytes(commands).unwrap()
    }

    /// Applies one command as a step of its own.
    pub fn apply(&mut self, command: Kind) -> Outcome {
        self.step(vec![command]).remove(0)
    }

    pub fn append(&mut self, append: Append) -> Result<Appended, AppendRefusal> {
        appended(self.apply(Kind::Append(append)))
    }

    /// Creates a stream of [`BASIN`] with default settings.
    pub fn create(&mut self, name: &str) -> StreamId {
        self.create_in(BASIN, name, StreamSettings::default())
    }

    pub fn create_in(&mut self, basin: BasinId, name: &str, settings: StreamSettings) -> StreamId {
        let outcome = self.apply(create(basin, name, settings));
        provisioned(outcome).unwrap().id
    }

    pub fn delete(&mut self, name: &str) -> bool {
        let outcome = self.apply(delete(BASIN, name));
        outcome == Outcome::StreamDeleted(true)
    }

    /// The stream of [`BASIN`] with this name.
    pub fn stream(&self, name: &str) -> Arc<Stream> {
        self.reader().stream(BASIN, name).unwrap().unwrap()
    }

    pub fn state(&self, name: &str) -> StreamState {
        self.stream(name).view().state
    }

    /// The refusals that are remembered, in memory and in the database alike.
    pub fn refusals(&self) -> Vec<Refusal> {
        let remembered = self.open.as_ref().unwrap().1.failed_sessions().refusals();
        let part = self.partition_db();
        let stored = FailedSessions::load(&part, self.applied(), self.remember_failed).unwrap();
        assert_eq!(stored.refusals(), remembered, "the database and memory");
        assert_eq!(
            self.refusal_keys(),
            remembered.len(),
            "keys of refusals, those outside the window included"
        );
        remembered
    }

    /// How many keys of refusals the database has.
    pub fn refusal_keys(&self) -> usize {
        let (from, to) = keys::refusals(0);
        let part = self.partition_db();
        let mut it = part.iterate(&from, &to, false);
        it.seek_to_first();
        let mut count = 0;
        while it.valid() {
            count += 1;
            it.next();
        }
        it.status().unwrap();
        count
    }

    /// All that readers see of the stream, without positions.
    pub fn texts(&self, name: &str) -> Vec<String> {
        read_all(&self.reader(), &self.stream(name))
            .into_iter()
            .map(|seen| seen.text)
            .collect()
    }

    /// All visible contents of these basins, and what decides about later appends.
    pub fn content(&self, basins: &[BasinId]) -> Content {
        let reader = self.reader();
        let mut streams = BTreeMap::new();
        for basin in basins {
            for listed in reader.list(*basin, "", "", usize::MAX).unwrap() {
                let stream = reader.stream(*basin, &listed.name).unwrap().unwrap();
                assert_eq!(stream.name, listed.name);
                assert_eq!(stream.created_ms, listed.created_ms);
                let view = stream.view();
                let content = StreamContent {
                    id: stream.id,
                    created_ms: stream.created_ms,
                    state: view.state,
                    config: (*view.config).clone(),
                    settings_version: view.settings_version,
                    records: read_all(&reader, &stream),
                };
                streams.insert((*basin, listed.name), content);
            }
        }
        Content {
            applied: self.applied(),
            refusals: self.refusals(),
            streams,
        }
    }
}

/// All visible contents of a partition, and what decides about later appends.
#[derive(Debug, PartialEq)]
pub struct Content {
    pub applied: u64,
    pub refusals: Vec<Refusal>,
    pub streams: BTreeMap<(BasinId, String), StreamContent>,
}

/// All visible contents of a stream.
#[derive(Debug, PartialEq)]
pub struct StreamContent {
    pub id: StreamId,
    pub created_ms: u64,
    pub state: StreamState,
    pub config: StreamConfig,
    pub settings_version: u64,
    pub records: Vec<Seen>,
}

/// A record as a reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub seq: SeqNum,
    pub timestamp: u64,
    pub text: String,
}

/// The records of a scan.
pub fn seen(scan: &Scan) -> Vec<Seen> {
    let records = scan.records.decode().unwrap();
    records
        .iter()
        .map(|record| Seen {
            seq: record.position().seq_num,
            timestamp: record.position().timestamp,
            text: match record.inner() {
                StoredRecord::Plaintext(record) => text_of(record),
                StoredRecord::Encrypted { .. } => panic!("records of the stream are encrypted"),
            },
        })
        .collect()
}

/// The sequence numbers of the records of a scan.
pub fn seen_seqs(scan: &Scan) -> Vec<SeqNum> {
    let records = scan.records.raw();
    records.map(|record| record.unwrap().0.seq_num).collect()
}

/// The records of a scan of this stream, decrypted with the key of all tests.
pub fn seen_in(stream: &Stream, scan: Scan) -> Vec<Seen> {
    let records = scan.records.decode().unwrap();
    let stored_size = records.metered_size();
    let spec = spec_of(cipher_number(stream.cipher));
    let data = associated_data(stream.partition, stream.id);
    let records = decrypt(records, &spec.into(), &data).unwrap();
    assert_eq!(records.metered_size(), stored_size);
    let records = records.into_inner().into_iter();
    let seen = records.map(|record| Seen {
        seq: record.position().seq_num,
        timestamp: record.position().timestamp,
        text: text_of(record.inner()),
    });
    seen.collect()
}

/// A scan without limits.
pub fn scan(reader: &Reader, stream: &Arc<Stream>, from: SeqNum) -> Scan {
    reader
        .scan(stream, from, ReadLimit::Unbounded, ReadUntil::Unbounded)
        .unwrap()
}

/// Everything from the head to the tail.
pub fn read_all(reader: &Reader, stream: &Arc<Stream>) -> Vec<Seen> {
    let mut all = Vec::new();
    let mut from = 0;
    loop {
        let scan = scan(reader, stream, from);
        let (next, end) = (scan.next, scan.end);
        all.extend(seen_in(stream, scan));
        if let ScanEnd::Tail(_) = end {
            return all;
        }
        assert!(next > from, "a scan that says there is more moves on");
        from = next;
    }
}

/// A command as text: `fence:token`, `trim:7`; else the body, or an abbreviation of a long one.
pub fn text_of(record: &Record) -> String {
    match record {
        Record::Command(CommandRecord::Fence(token)) => format!("fence:{token}"),
        Record::Command(CommandRecord::Trim(point)) => format!("trim:{point}"),
        Record::Envelope(envelope) if envelope.body().len() > 100 => {
            let body = envelope.body();
            format!("{} bytes, hash {:016x}", body.len(), xxh3_64(body))
        }
        Record::Envelope(envelope) => String::from_utf8_lossy(envelope.body()).into_owned(),
    }
}

pub fn position(seq_num: SeqNum, timestamp: u64) -> StreamPosition {
    StreamPosition { seq_num, timestamp }
}
