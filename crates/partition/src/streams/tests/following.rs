//! Readers at the tail: batches from memory, the database behind it, and wake-ups.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use s2_common::caps::RECORD_BATCH_MAX;

use super::fixture::*;
use crate::batch::StoredBatch;
use crate::command::{Append, Kind};
use crate::reader::{Reader, ScanEnd};
use crate::recent::RecentBudget;
use crate::stream::{Change, Stream, StreamState};
use crate::streams::StreamOptions;

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await })
        .expect("to be woken")
}

/// Every scan of the stream, from each sequence number.
fn scans(reader: &Reader, stream: &Arc<Stream>) -> Vec<(Vec<Seen>, u64, ScanEnd)> {
    (0..=stream.tail().seq_num + 1)
        .map(|from| {
            let scan = scan(reader, stream, from);
            (seen(&scan), scan.next, scan.end)
        })
        .collect()
}

#[test]
fn followers_see_the_same_from_memory_and_from_the_database() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let handle = partition.stream("s");
    let follower = handle.follow();
    for i in 0..20u64 {
        let count = 1 + i % 3;
        let records = (0..count).map(|n| rec(format!("{i}.{n}"))).collect();
        partition
            .append(append(stream, 2_000 + i, records))
            .unwrap();
    }
    let commands = vec![fence("t"), timed(1, "x"), trim(4), rec("y")];
    partition.append(append(stream, 3_000, commands)).unwrap();

    assert!(handle.has_recent(0), "all of it is in memory");
    let from_memory = scans(&partition.reader(), &handle);
    drop((follower, handle));
    partition.reopen();
    let handle = partition.stream("s");
    assert!(!handle.has_recent(u64::MAX), "nothing is in memory");
    assert_eq!(scans(&partition.reader(), &handle), from_memory);
}

#[test]
fn who_lags_behind_reads_the_database_and_misses_nothing() {
    let mut partition = Fixture::with(StreamOptions {
        // The budget is a few batches.
        recent: crate::RecentBudget::new(500, 1 << 20),
        ..StreamOptions::default()
    });
    let stream = partition.create("s");
    let handle = partition.stream("s");
    let _follower = handle.follow();
    for i in 0..50u64 {
        partition
            .append(append(stream, 2_000, vec![rec(format!("{i}"))]))
            .unwrap();
    }
    assert!(!handle.has_recent(0));
    assert!(handle.has_recent(49));
    let reader = partition.reader();
    for from in 0..50 {
        let scan = scan(&reader, &handle, from);
        let texts: Vec<_> = seen(&scan).into_iter().map(|s| s.text).collect();
        let expected: Vec<_> = (from..50).map(|i| i.to_string()).collect();
        assert_eq!(texts, expected);
        assert_eq!(scan.end, ScanEnd::Tail(position(50, 2_000)));
    }
}

#[test]
fn a_follower_is_handed_about_one_answer_at_a_time_however_much_memory_keeps() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let handle = partition.stream("s");
    let _follower = handle.follow();
    const COUNT: u64 = 5_000;
    let appends = (0..COUNT).map(|i| Kind::Append(append(stream, 2_000, vec![rec(i.to_string())])));
    partition.step(appends.collect());
    let most = RECORD_BATCH_MAX.count as u64;
    for from in [0, 1, most, COUNT - most, COUNT - 1] {
        let (some, _) = handle.recent_from(from).unwrap();
        assert_eq!(some.batches.len() as u64, most.min(COUNT - from));
        assert_eq!(some.ends, from + most >= COUNT);
    }
    // Of large batches, fewer are returned.
    let large = (0..8).map(|_| Kind::Append(append(stream, 2_000, vec![rec(vec![7; 400_000])])));
    partition.step(large.collect());
    let (some, _) = handle.recent_from(COUNT).unwrap();
    assert_eq!(some.batches.len(), 3);
    // A trim skips more batches than one call returns.
    partition
        .append(append(stream, 2_000, vec![trim(COUNT)]))
        .unwrap();
    let scan = scan(&partition.reader(), &handle, 1);
    assert_eq!(seen(&scan)[0].seq, COUNT);
    assert!(!scan.read_database);
}

#[test]
fn the_newest_batch_is_in_memory_whatever_its_size() {
    let mut partition = Fixture::with(StreamOptions {
        recent: crate::RecentBudget::new(1, 1 << 20),
        ..StreamOptions::default()
    });
    let stream = partition.create("s");
    let handle = partition.stream("s");
    let _follower = handle.follow();
    for i in 0..3 {
        partition
            .append(append(stream, 2_000, vec![rec(vec![7; 100_000])]))
            .unwrap();
        assert!(handle.has_recent(i));
        assert!(i == 0 || !handle.has_recent(i - 1));
    }
    assert_eq!(partition.texts("s").len(), 3);
}

#[test]
fn all_streams_together_keep_no_more_than_their_budget_and_give_it_back() {
    let recent = RecentBudget::new(1 << 20, 50_000);
    let mut partition = Fixture::with(StreamOptions {
        recent: recent.clone(),
        ..StreamOptions::default()
    });
    let ids: Vec<_> = (0..10)
        .map(|i| partition.create(&format!("s{i}")))
        .collect();
    let followers: Vec<_> = (0..10)
        .map(|i| partition.stream(&format!("s{i}")).follow())
        .collect();
    for i in 0..20 {
        for id in &ids {
            partition
                .append(append(*id, 2_000 + i, vec![rec(vec![7; 1_000])]))
                .unwrap();
        }
        // The budget, and one newest batch for each stream.
        assert!(
            recent.used() < 50_000 + 10 * 1_200,
            "{} bytes",
            recent.used()
        );
    }
    assert!(recent.used() > 10_000);
    for i in 0..10 {
        let name = format!("s{i}");
        assert!(partition.stream(&name).has_recent(19));
        assert_eq!(partition.texts(&name).len(), 20);
    }
    // A stream that is deleted, no longer followed, or closed releases its memory.
    partition.delete("s0");
    drop(followers);
    for id in &ids[1..5] {
        partition.append(bodies(*id, 3_000, ["x"])).unwrap();
    }
    partition.reopen();
    assert_eq!(recent.used(), 0);
}

#[test]
fn nothing_is_kept_in_memory_while_nobody_follows() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let handle = partition.stream("s");
    partition.append(bodies(stream, 2_000, ["a"])).unwrap();
    assert!(!handle.has_recent(0));
    let follower = handle.follow();
    partition.append(bodies(stream, 2_000, ["b"])).unwrap();
    assert!(handle.has_recent(1) && !handle.has_recent(0));
    drop(follower);
    // Every change of the stream releases the memory.
    partition.apply(expire(stream, 1, 2_000));
    assert!(!handle.has_recent(1));
    partition.append(bodies(stream, 2_000, ["c"])).unwrap();
    assert!(!handle.has_recent(2));
    assert_eq!(partition.texts("s"), ["b", "c"]);
}

#[test]
fn memory_never_stands_for_a_tail_that_it_does_not_have() {
    // The tail moves without a batch, as it does when numbers are passed over.
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let handle = partition.stream("s");
    let first = handle.follow();
    partition.append(bodies(stream, 2_000, ["a"])).unwrap();
    drop(first);
    let second = handle.follow();
    let change = |tail_seq, batches| Change {
        state: StreamState {
            tail_seq,
            ..partition.state("s")
        },
        settings: None,
        gone: false,
        batches,
    };
    handle.publish(change(2, Vec::new()));
    assert!(
        handle.recent_from(1).is_none(),
        "the record at 1 is in the database only"
    );
    // The next step's batches do not directly follow those of the one before.
    let records = bodies(stream, 2_000, ["c"]).records();
    let batch = StoredBatch::parse(2, records.store(2_000, &[2_000])).unwrap();
    handle.publish(change(3, vec![batch]));
    assert!(handle.recent_from(0).is_none());
    assert!(handle.recent_from(1).is_none());
    assert_eq!(handle.recent_from(2).unwrap().0.batches.len(), 1);
    drop(second);
}

#[test]
fn a_reader_who_comes_and_goes_misses_nothing() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let handle = partition.stream("s");
    let reader = partition.reader();
    let done = AtomicBool::new(false);
    const COUNT: u64 = 3_000;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut next = 0;
                    while next < COUNT && !done.load(Ordering::Relaxed) {
                        let _follower = handle.follow();
                        let scan = scan(&reader, &handle, next);
                        for seen in seen(&scan) {
                            assert_eq!(seen.seq, next, "a record is missing or comes twice");
                            assert_eq!(seen.text, next.to_string());
                            next += 1;
                        }
                        assert_eq!(scan.next, next);
                    }
                    next
                })
            })
            .collect();
        for i in 0..COUNT {
            partition
                .append(append(stream, 2_000, vec![rec(i.to_string())]))
                .unwrap();
        }
        // A reader that is not at the end by now reads the rest in a few scans, or has missed something.
        let began = Instant::now();
        while readers.iter().any(|reader| !reader.is_finished())
            && began.elapsed() < Duration::from_secs(60)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), COUNT);
        }
    });
}

#[test]
fn a_follower_is_woken_by_an_append() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let handle = partition.stream("s");
    let mut follower = handle.follow();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            block_on(follower.beyond(2));
            handle.tail().seq_num
        });
        for body in ["a", "b", "c"] {
            partition.append(bodies(stream, 2_000, [body])).unwrap();
        }
        assert_eq!(waiting.join().unwrap(), 3);
    });
    // Records that exist already need no wait.
    block_on(follower.beyond(0));
}

#[test]
fn a_follower_is_not_woken_for_nothing() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let other = partition.create("other");
    let mut follower = partition.stream("s").follow();
    partition.append(bodies(stream, 2_000, ["a"])).unwrap();
    partition.append(bodies(other, 2_000, ["a"])).unwrap();
    partition.apply(expire(stream, 1, 2_000));
    let refused = Append {
        match_seq_num: Some(9),
        ..bodies(stream, 2_000, ["a"])
    };
    assert!(partition.append(refused).is_err());
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(async {
            let wait = follower.beyond(1);
            let waited = tokio::time::timeout(Duration::from_millis(20), wait).await;
            assert!(waited.is_err(), "the tail is not beyond 1");
        });
}

#[test]
fn a_follower_is_woken_when_its_stream_goes() {
    let mut partition = Fixture::new();
    for name in ["deleted", "emptied", "dropped"] {
        partition.create(name);
        let handle = partition.stream(name);
        let mut follower = handle.follow();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| block_on(follower.beyond(5)));
            match name {
                "deleted" => partition.apply(delete(BASIN, name)),
                "emptied" => partition.apply(delete_if_empty(handle.id, CREATED_MS)),
                _ => partition.apply(drop_basin(BASIN)),
            };
            waiting.join().unwrap();
        });
        assert!(handle.view().gone);
        if name == "deleted" {
            // A new stream of the name is not the one that was followed.
            partition.create(name);
            assert!(handle.view().gone);
            partition.delete(name);
        }
    }
}
