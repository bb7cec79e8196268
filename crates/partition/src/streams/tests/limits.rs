//! Limits of a scan: those of the reader, and those of one batch of the API.

use std::sync::Arc;

use s2_common::caps::RECORD_BATCH_MAX;
use s2_common::read_extent::{CountOrBytes, ReadLimit, ReadUntil};
use s2_common::record::SeqNum;

use super::fixture::*;
use crate::reader::ScanEnd;
use crate::stream::{Follower, Stream};

const END: ScanEnd = ScanEnd::Tail(position_of(5, 500));

const fn position_of(seq_num: SeqNum, timestamp: u64) -> s2_common::record::StreamPosition {
    s2_common::record::StreamPosition { seq_num, timestamp }
}

/// Five records of 10 metered bytes at 0 to 4, timestamps 100 to 500, in two batches; in memory or
/// only in the database.
fn five(in_memory: bool) -> (Fixture, Arc<Stream>, Option<Follower>) {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let handle = partition.stream("s");
    let follower = in_memory.then(|| handle.follow());
    let records: Vec<Rec> = (1..=5).map(|i| (Some(100 * i), rec("xx").1)).collect();
    partition
        .append(append(stream, 2000, records[..2].to_vec()))
        .unwrap();
    partition
        .append(append(stream, 2000, records[2..].to_vec()))
        .unwrap();
    assert_eq!(handle.has_recent(0), in_memory);
    (partition, handle, follower)
}

/// Number of records from `from` on, where the next scan continues, and why this one ended. The result
/// must be the same from memory and from the database.
fn taken(from: SeqNum, limit: ReadLimit, until: ReadUntil) -> (usize, SeqNum, ScanEnd) {
    let [memory, database] = [true, false].map(|in_memory| {
        let (partition, handle, _follower) = five(in_memory);
        let scan = partition
            .reader()
            .scan(&handle, from, limit, until)
            .unwrap();
        let seqs: Vec<_> = seen(&scan).iter().map(|s| s.seq).collect();
        assert!(seqs.iter().copied().eq(from..from + seqs.len() as u64));
        (seqs.len(), scan.next, scan.end)
    });
    assert_eq!(memory, database);
    memory
}

#[test]
fn a_count_is_exact() {
    let taken = |count| taken(0, ReadLimit::Count(count), ReadUntil::Unbounded);
    assert_eq!(taken(0), (0, 0, ScanEnd::Limit));
    assert_eq!(taken(1), (1, 1, ScanEnd::Limit));
    assert_eq!(taken(2), (2, 2, ScanEnd::Limit), "at the border of batches");
    assert_eq!(taken(4), (4, 4, ScanEnd::Limit));
    // No record exceeds the limit: the tail was reached.
    assert_eq!(taken(5), (5, 5, END));
    assert_eq!(taken(6), (5, 5, END));
}

#[test]
fn bytes_are_exact_in_metered_size() {
    let taken = |bytes| taken(0, ReadLimit::Bytes(bytes), ReadUntil::Unbounded);
    assert_eq!(taken(0), (0, 0, ScanEnd::Limit));
    assert_eq!(taken(9), (0, 0, ScanEnd::Limit));
    assert_eq!(taken(10), (1, 1, ScanEnd::Limit));
    assert_eq!(taken(29), (2, 2, ScanEnd::Limit));
    assert_eq!(taken(30), (3, 3, ScanEnd::Limit));
    assert_eq!(taken(49), (4, 4, ScanEnd::Limit));
    assert_eq!(taken(50), (5, 5, END));
}

#[test]
fn of_count_and_bytes_the_first_one_reached_ends_the_scan() {
    let taken = |count, bytes| {
        let limit = ReadLimit::CountOrBytes(CountOrBytes { count, bytes });
        taken(1, limit, ReadUntil::Unbounded)
    };
    assert_eq!(taken(2, 1000), (2, 3, ScanEnd::Limit));
    assert_eq!(taken(1000, 25), (2, 3, ScanEnd::Limit));
    assert_eq!(taken(4, 40), (4, 5, END));
}

#[test]
fn until_is_exclusive() {
    let taken = |from, until| taken(from, ReadLimit::Unbounded, ReadUntil::Timestamp(until));
    assert_eq!(taken(0, 0), (0, 0, ScanEnd::Limit));
    assert_eq!(taken(0, 100), (0, 0, ScanEnd::Limit));
    assert_eq!(taken(0, 101), (1, 1, ScanEnd::Limit));
    assert_eq!(taken(0, 300), (2, 2, ScanEnd::Limit));
    assert_eq!(taken(0, 500), (4, 4, ScanEnd::Limit));
    assert_eq!(taken(0, 501), (5, 5, END));
    assert_eq!(taken(4, 500), (0, 4, ScanEnd::Limit));
}

#[test]
fn at_the_tail_there_is_nothing_and_past_it_too() {
    let unbounded = |from| {
        let (partition, handle, _follower) = five(false);
        let scan = scan(&partition.reader(), &handle, from);
        (seen(&scan).len(), scan.next, scan.end)
    };
    assert_eq!(unbounded(5), (0, 5, END));
    assert_eq!(unbounded(9), (0, 9, END));
    // At the tail, limits do not matter.
    assert_eq!(
        taken(5, ReadLimit::Count(0), ReadUntil::Timestamp(0)),
        (0, 5, END)
    );
}

/// The lengths and metered sizes of the scans from the head to the tail.
fn batches(partition: &Fixture) -> Vec<(usize, usize)> {
    let (reader, handle) = (partition.reader(), partition.stream("s"));
    let mut batches = Vec::new();
    let mut from = 0;
    loop {
        let scan = scan(&reader, &handle, from);
        batches.push((scan.records.len(), scan.records.metered_size()));
        assert_eq!(scan.next, from + scan.records.len() as u64);
        from = scan.next;
        match scan.end {
            ScanEnd::More => {}
            ScanEnd::Tail(tail) => {
                assert_eq!(from, tail.seq_num);
                return batches;
            }
            ScanEnd::Limit => panic!("there are no limits"),
        }
    }
}

#[test]
fn a_scan_has_at_most_a_thousand_records() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    // The largest batch by count is returned whole.
    let thousand: Vec<Rec> = (0..RECORD_BATCH_MAX.count).map(|_| rec("x")).collect();
    partition
        .append(append(stream, 2000, thousand.clone()))
        .unwrap();
    assert_eq!(batches(&partition), [(1000, 9000)]);
    partition
        .append(append(stream, 2000, thousand[..501].to_vec()))
        .unwrap();
    partition.append(append(stream, 2000, thousand)).unwrap();
    assert_eq!(
        batches(&partition),
        [(1000, 9000), (1000, 9000), (501, 4509)]
    );
}

#[test]
fn a_scan_has_at_most_a_mebibyte() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    // The largest record is returned whole.
    let largest = RECORD_BATCH_MAX.bytes - 8;
    partition
        .append(append(stream, 2000, vec![rec(vec![7; largest])]))
        .unwrap();
    assert_eq!(batches(&partition), [(1, RECORD_BATCH_MAX.bytes)]);
    // Two records that fill a batch to the byte, then one byte too many for the third.
    let half = RECORD_BATCH_MAX.bytes / 2 - 8;
    partition
        .append(append(
            stream,
            2000,
            vec![rec(vec![7; half]), rec(vec![7; half])],
        ))
        .unwrap();
    partition
        .append(append(stream, 2000, vec![rec(vec![7; half])]))
        .unwrap();
    partition
        .append(append(stream, 2000, vec![rec(vec![7; half + 1])]))
        .unwrap();
    assert_eq!(
        batches(&partition),
        [
            (1, RECORD_BATCH_MAX.bytes),
            (2, RECORD_BATCH_MAX.bytes),
            (1, RECORD_BATCH_MAX.bytes / 2),
            (1, RECORD_BATCH_MAX.bytes / 2 + 1),
        ]
    );
}

#[test]
fn a_readers_limit_ends_the_scan_before_that_of_the_api() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let thousand: Vec<Rec> = (0..1000).map(|_| rec("x")).collect();
    partition
        .append(append(stream, 2000, thousand.clone()))
        .unwrap();
    partition.append(append(stream, 2000, thousand)).unwrap();
    let (reader, handle) = (partition.reader(), partition.stream("s"));
    for (limit, records, end) in [
        (ReadLimit::Count(999), 999, ScanEnd::Limit),
        (ReadLimit::Count(1000), 1000, ScanEnd::Limit),
        (ReadLimit::Count(1001), 1000, ScanEnd::More),
        (ReadLimit::Bytes(9000), 1000, ScanEnd::Limit),
        (ReadLimit::Bytes(9009), 1000, ScanEnd::More),
    ] {
        let scan = reader
            .scan(&handle, 0, limit, ReadUntil::Unbounded)
            .unwrap();
        assert_eq!((scan.records.len(), scan.end), (records, end), "{limit:?}");
    }
}
