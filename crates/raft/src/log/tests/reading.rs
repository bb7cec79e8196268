//! Reads of a log that is written to, purged or damaged meanwhile, and the checksums of its entries.

use raft_engine::MessageExt;

use super::*;

#[test]
fn a_read_that_a_purge_overtakes_finds_the_entries_where_they_are_now() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::new();
    let open = Open::new(dir.path(), &faults);
    // Each entry of the first group in a write of its own, hence in a block of its own, and behind them
    // so much of another group that the first file is to be deleted.
    for lsn in 1..=3 {
        open.append(1, lsn..=lsn, 1, 100);
    }
    for lsn in 1..=12 {
        open.append(2, lsn..=lsn, 1, 8 * 1024);
    }
    open.compact(2, floor(12, 1));
    let before = open.log.file_span().0;
    let log = open.log.clone();
    faults.before_next_read(move || {
        log.purge().unwrap();
    });
    let reader = open.log.reader(GroupId(1));
    let read = reader.entries(Lsn(1), Lsn(4), 1 << 20).unwrap();
    let after = open.log.file_span().0;
    assert!(
        after > before,
        "nothing was deleted during the read: {before}"
    );
    let lsns: Vec<_> = read.0.iter().map(|entry| entry.index).collect();
    assert_eq!(lsns, [1, 2, 3]);
    open.close();
}

#[test]
fn the_checksum_of_an_entry_is_the_same_wherever_it_is_computed_and_in_every_build() {
    let keep = tempfile::tempdir().unwrap();
    let open = Open::new(keep.path(), &Faults::new());
    for first in (1..300).step_by(10) {
        open.append(1, first..=first + 9, 7, 16 * 1024);
    }
    let (low, high) = (Lsn(100), Lsn(301));
    // More than is read at a time.
    let sums = open.log.entry_checksums(GroupId(1), low, high).unwrap();
    let read = open.log.reader(GroupId(1)).entries(low, high, u64::MAX);
    let applied: Vec<_> = (read.unwrap().into_committed().unwrap().iter())
        .map(|entry| EntryChecksum {
            lsn: entry.lsn,
            term: entry.term,
            checksum: entry.checksum,
        })
        .collect();
    assert_eq!(sums, applied);
    assert_eq!(sums.len(), 201);
    // What snapshots that are kept for years have.
    let entry = Entry {
        index: 5,
        term: 3,
        data: b"data".as_slice().into(),
        ..Entry::default()
    };
    assert_eq!(entry_checksum(&entry), 9_822_543_198_717_828_844);
    let missing = open.log.entry_checksums(GroupId(1), Lsn(300), Lsn(302));
    assert!(missing.is_err());
}

/// Only a batch that was made that way can be like this: its checksum holds.
#[test]
fn an_entry_that_is_not_the_one_that_its_batch_names_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let open = Open::new(dir.path(), &Faults::new());
    open.append(1, 1..=1, 1, 10);
    struct Misnamed;
    impl MessageExt for Misnamed {
        type Entry = Entry;

        fn index(entry: &Entry) -> u64 {
            entry.index - 5
        }
    }
    let entry = Entry {
        index: 7,
        term: 1,
        ..Entry::default()
    };
    let mut batch = LogBatch::default();
    batch
        .add_entries::<Misnamed>(region(GroupId(1)), &[entry])
        .unwrap();
    open.log.engine.write(&mut batch, true).unwrap();
    let reader = open.log.reader(GroupId(1));
    let refused = reader.entries(Lsn(1), Lsn(3), 1 << 20).unwrap_err();
    let LogReadError::Damaged(refused) = refused else {
        panic!("{refused:?}");
    };
    assert!(refused.contains("raft-engine panicked"), "{refused}");
    assert!(reader.term(Lsn(2)).is_err());
    assert_eq!(reader.term(Lsn(1)).unwrap(), Term(1));
    drop(reader);
    open.close();
    let (log, _) = SharedLog::open(config(dir.path()), Faults::new()).unwrap();
    let refused = log.state(GroupId(1)).unwrap_err();
    assert!(refused.is_damage(), "{refused}");
}

#[test]
fn the_state_of_a_log_that_is_written_to_and_compacted_meanwhile_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let open = Open::new(dir.path(), &Faults::new());
    open.append(1, 1..=1, 1, 0);
    let (log, done) = (open.log.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                log.state(GroupId(1)).unwrap();
            }
        });
        for lsn in 2..=400 {
            // Each of a later term, as after an election.
            open.append(1, lsn..=lsn, lsn, 0);
            open.compact(1, floor(lsn - 1, lsn - 1));
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    open.close();
}

#[test]
fn an_error_of_the_engine_is_damage_or_not_whoever_meets_it() {
    let dir = tempfile::tempdir().unwrap();
    let open = Open::new(dir.path(), &Faults::new());
    let reader = open.log.group_reader(GroupId(1));
    let other = || "other".to_owned();
    for (error, is_damage) in [
        (raft_engine::Error::Io(std::io::Error::other("io")), false),
        (raft_engine::Error::TryAgain(other()), false),
        (raft_engine::Error::Full, false),
        (raft_engine::Error::Other(other().into()), false),
        (raft_engine::Error::Corruption(other()), true),
        (raft_engine::Error::EntryCompacted, true),
        (raft_engine::Error::EntryNotFound, true),
    ] {
        let of_log = open.log.failed("", &error);
        assert_eq!(of_log.is_damage(), is_damage, "{error}");
        let of_reader = reader.read_error(&error);
        let is_damaged = matches!(of_reader, LogReadError::Damaged(_));
        assert_eq!(is_damaged, is_damage, "{error}");
    }
    drop(reader);
    open.close();
}
