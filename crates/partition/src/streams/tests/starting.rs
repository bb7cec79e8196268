//! Where a read begins: by sequence number, timestamp or distance from the tail.

use s2_common::record::SeqNum;
use s2_common::stream::{ReadFrom, ReadStart};

use super::fixture::*;
use crate::reader::{ReadError, Reader};

/// Ten records at 0 to 9 with timestamps 100, 100, 200, 200, … in batches of three.
fn ten() -> Fixture {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let before = partition.create("before");
    partition
        .append(append(before, 2000, vec![timed(150, "x")]))
        .unwrap();
    let records: Vec<Rec> = (0..10)
        .map(|i| (Some(100 * (i / 2 + 1)), rec("x").1))
        .collect();
    for batch in records.chunks(3) {
        partition
            .append(append(stream, 2000, batch.to_vec()))
            .unwrap();
    }
    // A neighbour with later timestamps, which no read of the stream may find.
    let after = partition.create("after");
    partition
        .append(append(after, 2000, vec![timed(900, "x")]))
        .unwrap();
    partition
}

fn trim_to(partition: &mut Fixture, point: SeqNum) {
    let stream = partition.stream("s").id;
    partition.apply(expire(stream, point, 2000));
}

/// Where the read begins, or the tail that refuses it.
fn start(
    partition: &Fixture,
    from: ReadFrom,
    clamp: bool,
    may_follow: bool,
) -> Result<SeqNum, (SeqNum, u64)> {
    let start = ReadStart { from, clamp };
    match partition
        .reader()
        .start(&partition.stream("s"), start, may_follow)
    {
        Ok(seq) => Ok(seq),
        Err(ReadError::Unwritten(tail)) => Err((tail.seq_num, tail.timestamp)),
        Err(other) => panic!("{other}"),
    }
}

const TAIL: Result<SeqNum, (SeqNum, u64)> = Err((10, 500));

#[test]
fn a_sequence_number_is_where_the_read_begins() {
    let partition = ten();
    for seq in 0..10 {
        for clamp in [false, true] {
            for may_follow in [false, true] {
                assert_eq!(
                    start(&partition, ReadFrom::SeqNum(seq), clamp, may_follow),
                    Ok(seq)
                );
            }
        }
    }
}

#[test]
fn a_read_at_the_tail_must_be_one_that_may_follow() {
    let partition = ten();
    let at_the_tail = [ReadFrom::SeqNum(10), ReadFrom::TailOffset(0)];
    for from in at_the_tail {
        for clamp in [false, true] {
            assert_eq!(start(&partition, from, clamp, true), Ok(10));
            assert_eq!(start(&partition, from, clamp, false), TAIL);
        }
    }
}

#[test]
fn a_read_past_the_tail_is_refused_or_clamped_to_it() {
    let partition = ten();
    let past = [
        ReadFrom::SeqNum(11),
        ReadFrom::SeqNum(u64::MAX),
        ReadFrom::Timestamp(501),
        ReadFrom::Timestamp(u64::MAX),
    ];
    for from in past {
        assert_eq!(start(&partition, from, false, true), TAIL, "{from:?}");
        assert_eq!(start(&partition, from, false, false), TAIL);
        assert_eq!(start(&partition, from, true, true), Ok(10));
        assert_eq!(start(&partition, from, true, false), TAIL);
    }
}

#[test]
fn a_timestamp_finds_the_first_record_at_or_after_it() {
    let mut partition = ten();
    for _ in 0..2 {
        for (timestamp, seq) in [
            (0, 0),
            (99, 0),
            (100, 0),
            (101, 2),
            (200, 2),
            (201, 4),
            (300, 4),
            (400, 6),
            (401, 8),
            (500, 8),
        ] {
            assert_eq!(
                start(&partition, ReadFrom::Timestamp(timestamp), false, false),
                Ok(seq),
                "timestamp {timestamp}"
            );
        }
        partition.reopen();
    }
}

#[test]
fn equal_timestamps_over_many_batches_begin_at_the_first() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    for _ in 0..5 {
        partition
            .append(append(stream, 2000, vec![timed(50, "x"), timed(50, "y")]))
            .unwrap();
    }
    assert_eq!(
        start(&partition, ReadFrom::Timestamp(50), false, false),
        Ok(0)
    );
    trim_to(&mut partition, 5);
    assert_eq!(
        start(&partition, ReadFrom::Timestamp(50), false, false),
        Ok(5)
    );
}

#[test]
fn a_tail_offset_counts_back_from_the_tail_and_stops_at_the_beginning() {
    let partition = ten();
    for (offset, seq) in [(1, 9), (3, 7), (10, 0), (11, 0), (u64::MAX, 0)] {
        assert_eq!(
            start(&partition, ReadFrom::TailOffset(offset), false, false),
            Ok(seq)
        );
    }
}

#[test]
fn on_an_empty_stream_every_read_is_at_the_tail_or_past_it() {
    let mut partition = Fixture::new();
    partition.create("s");
    let empty = Err((0, 0));
    for from in [
        ReadFrom::SeqNum(0),
        ReadFrom::TailOffset(0),
        ReadFrom::TailOffset(5),
        ReadFrom::Timestamp(0),
    ] {
        assert_eq!(start(&partition, from, false, false), empty, "{from:?}");
        assert_eq!(start(&partition, from, false, true), Ok(0));
    }
    for from in [ReadFrom::SeqNum(1), ReadFrom::Timestamp(1)] {
        assert_eq!(start(&partition, from, false, true), empty);
        assert_eq!(start(&partition, from, true, true), Ok(0));
        assert_eq!(start(&partition, from, true, false), empty);
    }
}

#[test]
fn below_the_trim_point_reads_begin_at_the_head() {
    let mut partition = ten();
    trim_to(&mut partition, 5);
    let reader = partition.reader();
    let handle = partition.stream("s");
    for from in [
        ReadFrom::SeqNum(0),
        ReadFrom::SeqNum(4),
        ReadFrom::TailOffset(100),
        ReadFrom::Timestamp(0),
        ReadFrom::Timestamp(300),
    ] {
        let seq = start(&partition, from, false, false).unwrap();
        assert_eq!(seen(&scan(&reader, &handle, seq))[0].seq, 5, "{from:?}");
    }
    assert_eq!(
        start(&partition, ReadFrom::Timestamp(300), false, false),
        Ok(5)
    );
    assert_eq!(
        start(&partition, ReadFrom::Timestamp(301), false, false),
        Ok(6)
    );
}

#[test]
fn a_stream_trimmed_whole_has_no_timestamps() {
    let mut partition = ten();
    trim_to(&mut partition, 10);
    for timestamp in [0, 100, 500] {
        let from = ReadFrom::Timestamp(timestamp);
        assert_eq!(start(&partition, from, false, false), TAIL);
        assert_eq!(start(&partition, from, false, true), Ok(10));
    }
    // Records below the trim point were written, so a read there is no error; it has nothing to read.
    assert_eq!(start(&partition, ReadFrom::SeqNum(3), false, false), Ok(3));
    assert_eq!(partition.texts("s"), [""; 0]);
}

#[test]
fn a_deleted_stream_is_gone_for_those_who_hold_it() {
    let mut partition = ten();
    let handle = partition.stream("s");
    partition.delete("s");
    let reader = partition.reader();
    let start = ReadStart {
        from: ReadFrom::SeqNum(0),
        clamp: true,
    };
    assert!(matches!(
        reader.start(&handle, start, true),
        Err(ReadError::Gone)
    ));
    assert!(matches!(
        reader.scan(&handle, 0, Default::default(), Default::default()),
        Err(ReadError::Gone)
    ));
    assert!(handle.view().gone);
}

#[test]
fn only_the_first_record_of_a_time_is_looked_up_in_the_database() {
    let partition = ten();
    let (reader, stream) = (partition.reader(), partition.stream("s"));
    let by_number = (0..12).flat_map(|at| [ReadFrom::SeqNum(at), ReadFrom::TailOffset(at)]);
    for from in by_number.chain([ReadFrom::Timestamp(501)]) {
        for (clamp, may_follow) in [(false, false), (false, true), (true, false), (true, true)] {
            let start = ReadStart { from, clamp };
            let known = Reader::begin_in_memory(&stream, start, may_follow);
            let known = known.map(|cursor| cursor.expect("it needs no disk").next());
            let begun = reader.begin(&stream, start, may_follow);
            let begun = begun.map(|cursor| cursor.next());
            assert_eq!(known.ok(), begun.ok(), "{start:?} {may_follow}");
        }
    }
    for timestamp in [0, 100, 350, 500] {
        let from = ReadFrom::Timestamp(timestamp);
        let start = ReadStart { from, clamp: false };
        let known = Reader::begin_in_memory(&stream, start, true).unwrap();
        assert!(known.is_none(), "{timestamp}");
    }
}
