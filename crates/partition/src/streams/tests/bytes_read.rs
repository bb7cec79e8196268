//! The cost of reading in bytes of files, whatever the number of runs.
//!
//! The operating system counts the bytes that a thread reads, including those from its page cache.

use std::sync::Arc;

use s2_common::read_extent::{ReadLimit, ReadUntil};
use s2_common::stream::{ReadFrom, ReadStart};

use super::fixture::*;
use crate::command::Kind;
use crate::ids::StreamId;
use crate::reader::{Cursor, Due, Place, Reader, ScanEnd};
use crate::recent::RecentBudget;
use crate::settings::StreamSettings;
use crate::stream::Stream;
use crate::streams::StreamOptions;

pub(crate) const KIB: u64 = 1024;
const STREAMS: usize = 3;
/// Numbers of files that are not compacted; all are below the limit of open files.
pub(crate) const RUNS: [u64; 3] = [1, 8, 40];

/// Bytes that this thread has requested from the operating system.
fn bytes_read() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let rchar = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    rchar.unwrap().parse().unwrap()
}

/// The result of a function, and the bytes of files that it reads, with some 100 for reading the count
/// itself.
pub(crate) fn cost<T>(of: impl FnOnce() -> T) -> (T, u64) {
    let before = bytes_read();
    let done = of();
    (done, bytes_read() - before)
}

/// Disables compactions, so that each file stays as it was written.
pub(crate) fn unmerged(partition: &Fixture) {
    let part = partition.partition_db();
    let options = [("disable_auto_compactions", "true")];
    let db = part.store().db();
    for cf in [part.cf(), part.segments_cf()] {
        db.set_options_cf(&cf, &options).unwrap();
    }
}

/// Several streams in a number of runs, each with the same number of batches in each run.
struct Runs {
    partition: Fixture,
    ids: Vec<StreamId>,
    batches: u64,
}

impl Runs {
    fn new(runs: u64, batches_in_run: u64, records: u64, body: u64) -> Runs {
        Runs::with(
            StreamOptions::default(),
            runs,
            batches_in_run,
            records,
            body,
        )
    }

    fn with(
        options: StreamOptions,
        runs: u64,
        batches_in_run: u64,
        records: u64,
        body: u64,
    ) -> Runs {
        let mut partition = Fixture::with(options);
        unmerged(&partition);
        let part = partition.partition_db();
        let settings = StreamSettings {
            retention_age_secs: Some(1),
            ..StreamSettings::default()
        };
        let ids: Vec<_> = (0..STREAMS)
            .map(|n| partition.create_in(BASIN, &format!("s{n}"), settings.clone()))
            .collect();
        for run in 0..runs {
            for batch in 0..batches_in_run {
                let at_ms = 10_000 + run * batches_in_run + batch;
                for id in &ids {
                    let body = || rec(vec![run as u8; body as usize]);
                    let records = (0..records).map(|_| body()).collect();
                    partition.append(append(*id, at_ms, records)).unwrap();
                }
            }
            partition.flush();
        }
        assert_eq!(part.largest_keys().len() as u64, runs);
        // Opening a file reads its index, once.
        let handle = partition.stream("s0");
        scan(&partition.reader(), &handle, 0);
        Runs {
            partition,
            ids,
            batches: runs * batches_in_run,
        }
    }

    /// The bytes of a stream's records, as a session delivers them.
    fn read_session(&self, name: &str) -> u64 {
        let (reader, stream) = (self.partition.reader(), self.partition.stream(name));
        let (limit, until) = (ReadLimit::Unbounded, ReadUntil::Unbounded);
        let mut cursor = Cursor::at_start(0);
        let mut delivered = 0;
        loop {
            let scan = reader.scan(&stream, cursor, limit, until).unwrap();
            delivered += scan.records.metered_size() as u64;
            let ended = matches!(scan.end, ScanEnd::Tail(_));
            cursor = scan.into_cursor();
            if ended {
                assert_eq!(cursor.next(), stream.tail().seq_num);
                return delivered;
            }
        }
    }
}

/// The sequence numbers of all scans from a cursor to the tail.
fn read_on<'a>(
    reader: &'a Reader,
    stream: &Arc<Stream>,
    mut cursor: Cursor,
    place: &mut Place<'a>,
) -> Vec<u64> {
    let mut seen = Vec::new();
    loop {
        let (limit, until) = (ReadLimit::Unbounded, ReadUntil::Unbounded);
        let scan = reader.scan_on(stream, cursor, limit, until, place).unwrap();
        seen.extend(seen_seqs(&scan));
        let ended = matches!(scan.end, ScanEnd::Tail(_));
        cursor = scan.into_cursor();
        if ended {
            return seen;
        }
    }
}

#[test]
fn scans_that_follow_each_other_search_the_stream_once_and_see_trims_and_appends() {
    let (batches, records, body) = (2, 40, 8 * KIB);
    let mut partition = Runs::new(4, batches, records, body).partition;
    let (reader, stream) = (partition.reader(), partition.stream("s1"));
    let tail = stream.tail().seq_num;
    let opened = || crate::batches::OPENED.get();
    let before = opened();
    let seen = read_on(&reader, &stream, Cursor::at_start(0), &mut Place::default());
    assert_eq!(seen, (0..tail).collect::<Vec<_>>());
    assert_eq!(opened() - before, 1, "for {} KiB", tail * body / KIB);

    // What is trimmed and appended between two scans is seen as without a place.
    let mut place = Place::default();
    let (limit, until) = (ReadLimit::Unbounded, ReadUntil::Unbounded);
    let first = reader
        .scan_on(&stream, 0, limit, until, &mut place)
        .unwrap();
    let next = first.next;
    let records_of_trim = vec![trim(tail - 2), rec(vec![9])];
    let trim = append(stream.id, 20_000, records_of_trim);
    partition.append(trim).unwrap();
    let after = read_on(&reader, &stream, first.into_cursor(), &mut place);
    // The rest of the batch that the session has begun is in memory.
    let kept = next.div_ceil(records) * records;
    let expected: Vec<_> = (next..kept).chain(tail - 2..tail + 2).collect();
    assert_eq!(after, expected);
}

#[test]
fn a_read_session_reads_at_most_one_and_a_half_bytes_for_one_whatever_the_number_of_runs() {
    // Large batches that fill an answer or nearly so, and small ones that share a block with many others.
    let shapes = [
        (2, 120, 8 * KIB),
        (2, 1, 700 * KIB),
        (16, 4, 8 * KIB),
        (400, 1, KIB),
        (1600, 1, 200),
    ];
    for (batches, records, body) in shapes {
        for runs in RUNS {
            let runs_of = Runs::new(runs, batches, records, body);
            for name in ["s0", "s1", "s2"] {
                let (delivered, read) = cost(|| runs_of.read_session(name));
                assert_eq!(delivered, runs_of.batches * records * (body + 8));
                // Each session reads one first block in addition.
                let bound = delivered * 3 / 2 + 64 * KIB;
                assert!(
                    read <= bound,
                    "{read} bytes for {delivered} of {runs} runs, with batches of {records} of {body}"
                );
            }
        }
    }
}

#[test]
fn a_start_reads_two_blocks_whatever_the_number_of_runs() {
    let (records, body) = (8, 8 * KIB);
    for runs in RUNS {
        let runs_of = Runs::new(runs, 4, records, body);
        let partition = &runs_of.partition;
        let (reader, stream) = (partition.reader(), partition.stream("s1"));
        let tail = stream.tail().seq_num;
        let starts = [
            ReadFrom::SeqNum(tail / 2 + 3),
            ReadFrom::SeqNum(tail / 2),
            ReadFrom::TailOffset(tail / 3 + 1),
            ReadFrom::Timestamp(10_000 + runs_of.batches / 2),
        ];
        for from in starts {
            let (_, read) = cost(|| {
                let start = ReadStart { from, clamp: false };
                let cursor = reader.begin(&stream, start, false).unwrap();
                let (limit, until) = (ReadLimit::Count(1), ReadUntil::Unbounded);
                let scan = reader.scan(&stream, cursor, limit, until);
                assert_eq!(scan.unwrap().records.len(), 1);
            });
            // Each batch is a block. A read by timestamp reads a block of the index by time, and the
            // batch twice.
            let bound = 4 * (records * (body + 32) + 16 * KIB);
            assert!(read <= bound, "{read} bytes for {from:?} of {runs} runs");
        }
    }
}

#[test]
fn what_is_to_expire_is_found_in_a_few_blocks_whatever_the_number_of_runs() {
    let (records, body) = (8, 8 * KIB);
    for runs in RUNS {
        let runs_of = Runs::new(runs, 4, records, body);
        let reader = runs_of.partition.reader();
        let now_ms = 10_000 + 1_000 + runs_of.batches / 2;
        let (due, read) = cost(|| reader.due(StreamId(0), 100, now_ms).unwrap().due);
        let up_to = runs_of.batches / 2 * records;
        let expected = runs_of
            .ids
            .iter()
            .map(|id| Due::Expire { stream: *id, up_to });
        let due: Vec<_> = due.into_iter().map(|found| found.due).collect();
        assert_eq!(due, expected.collect::<Vec<_>>());
        // The search is a binary search.
        let probes = u64::from((runs_of.batches * records).ilog2()) + 3;
        let bound = STREAMS as u64 * probes * (records * (body + 32) + 16 * KIB);
        assert!(read <= bound, "{read} bytes of {runs} runs");
    }
}

#[test]
fn a_digest_reads_at_most_one_and_a_half_bytes_for_one_whatever_the_number_of_runs() {
    for (batches, records, body) in [(2, 120, 8 * KIB), (64, 1, 8 * KIB)] {
        for runs in RUNS {
            let runs_of = Runs::new(runs, batches, records, body);
            let part = runs_of.partition.partition_db();
            let (digest, read) = cost(|| part.digest().unwrap());
            assert_eq!(digest.batches, runs_of.batches * STREAMS as u64);
            // A block of small keys is read of each run, several times.
            let bound = digest.bytes * 3 / 2 + (runs + 1) * 64 * KIB;
            assert!(
                read <= bound,
                "{read} bytes for {} of {runs} runs",
                digest.bytes
            );
        }
    }
}

#[test]
fn reclaiming_looks_into_a_few_blocks_whatever_the_number_of_runs() {
    let (records, body) = (8, 8 * KIB);
    for runs in RUNS {
        let mut runs_of = Runs::with(eager(), runs, 4, records, body);
        let trims = runs_of.ids.iter().map(|id| {
            let up_to = runs_of.batches / 2 * records + 1;
            Kind::Append(append(*id, 20_000, vec![trim(up_to)]))
        });
        let trims: Vec<_> = trims.collect();
        runs_of.partition.step(trims);
        let machine = runs_of.partition.machine();
        let ((), read) = cost(|| {
            for _ in 0..5 {
                esker_raft::StateMachine::maintain(machine);
            }
        });
        let bound = STREAMS as u64 * 12 * (records * (body + 32) + 16 * KIB);
        assert!(read <= bound, "{read} bytes of {runs} runs");
    }
}

/// A stream whose appends are half a MiB each, with a file for each 4 MiB of them.
struct Followed {
    partition: Fixture,
    id: StreamId,
    appends: u64,
}

impl Followed {
    /// MiB of the newest records in memory.
    const WINDOW: u64 = 8;

    fn new() -> Followed {
        let recent = RecentBudget::new((Followed::WINDOW * 1024 * KIB) as usize, 1 << 30);
        let options = StreamOptions {
            recent,
            ..StreamOptions::default()
        };
        let mut partition = Fixture::with(options);
        unmerged(&partition);
        let id = partition.create("s");
        Followed {
            partition,
            id,
            appends: 0,
        }
    }

    fn append(&mut self) {
        let records = vec![rec(vec![7; 8 * KIB as usize - 8]); 64];
        self.partition
            .append(append(self.id, 2_000, records))
            .unwrap();
        self.appends += 1;
        if self.appends.is_multiple_of(8) {
            self.partition.flush();
        }
    }
}

/// One scan of a session: the bytes that it delivered, and whether it has read the database.
fn go_on(reader: &Reader, stream: &Arc<Stream>, cursor: &mut Cursor) -> (u64, bool) {
    let (limit, until) = (ReadLimit::Unbounded, ReadUntil::Unbounded);
    let scan = reader.scan(stream, cursor.clone(), limit, until).unwrap();
    let delivered = (scan.records.metered_size() as u64, scan.read_database);
    *cursor = scan.into_cursor();
    delivered
}

#[test]
fn who_keeps_up_reads_nothing_of_the_database_however_many_they_are() {
    let mut it = Followed::new();
    let (reader, stream) = (it.partition.reader(), it.partition.stream("s"));
    let _follower = stream.follow();
    let mut cursors = vec![Cursor::at_start(0); 16];
    for _ in 0..64 {
        // The session lags as far behind as memory reaches.
        for _ in 0..8 {
            it.append();
        }
        for cursor in &mut cursors {
            let tail = stream.tail().seq_num;
            while cursor.next() < tail {
                let ((_, read_database), read) = cost(|| go_on(&reader, &stream, cursor));
                assert!(!read_database && read < KIB, "{read} bytes");
            }
        }
    }
}

#[test]
fn who_has_fallen_behind_reads_each_byte_once_and_is_back_in_memory_when_the_lag_is_gone() {
    for lag in [16, 128] {
        let mut it = Followed::new();
        let (reader, stream) = (it.partition.reader(), it.partition.stream("s"));
        let _follower = stream.follow();
        for _ in 0..2 * lag {
            it.append();
        }
        let mut cursor = Cursor::at_start(0);
        let (mut scans, mut delivered, mut read) = (0, 0, 0);
        // At most half a MiB is appended for each MiB that is read.
        for _ in 0..4 * lag {
            let ((bytes, read_database), cost) = cost(|| go_on(&reader, &stream, &mut cursor));
            if read_database {
                (scans, delivered, read) = (scans + 1, delivered + bytes, read + cost);
            }
            if cursor.next() == stream.tail().seq_num {
                break;
            }
            it.append();
        }
        assert_eq!(cursor.next(), stream.tail().seq_num, "it has caught up");
        // Half of each MiB that is read reduces the lag.
        let most = 2 * (lag - Followed::WINDOW) + 2;
        assert!(scans <= most, "{scans} scans for {lag} MiB");
        let bound = delivered * 3 / 2 + 64 * KIB;
        assert!(read <= bound, "{read} bytes for {delivered}");
    }
}
