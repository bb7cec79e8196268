//! Reclaiming of space: what readers cannot see leaves the files, and nothing else does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_raft::StateMachine as _;

use super::fixture::*;
use crate::command::Kind;
use crate::ids::{BasinId, StreamId};
use crate::keys;
use crate::reader::ScanEnd;
use crate::settings::StreamSettings;
use crate::streams::StreamOptions;

const OTHER: BasinId = BasinId(2);
const KIB: usize = 1024;
const MIB: u64 = 1024 * 1024;

/// A body that does not compress; the same for the same seed.
fn noise(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut body = Vec::with_capacity(length + 8);
    while body.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        body.extend_from_slice(&state.to_le_bytes());
    }
    body.truncate(length);
    body.into()
}

fn fill(partition: &mut Fixture, stream: StreamId, batches: u64, length: usize) {
    for i in 0..batches {
        let record = rec(noise(stream.0 << 32 | i, length));
        partition
            .append(append(stream, 2_000 + i, vec![record]))
            .unwrap();
    }
}

/// Does rounds of maintenance until the condition holds.
fn maintain_until(partition: &mut Fixture, what: &str, holds: impl Fn(&Fixture) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds(partition) {
        let part = partition.partition_db();
        assert!(
            Instant::now() < deadline,
            "in vain: {what}; {} bytes of files; segments {:?}, changes {:?}",
            part.file_bytes(),
            part.segment_usage(),
            part.segment_changes(),
        );
        partition.machine().maintain();
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Number of keys in a range.
fn keys_in(partition: &Fixture, from: &[u8], to: &[u8]) -> usize {
    let part = partition.partition_db();
    let mut it = part.iterate(from, to, false);
    it.seek_to_first();
    let mut count = 0;
    while it.valid() {
        count += 1;
        it.next();
    }
    it.status().unwrap();
    count
}

/// Number of batches of the stream, which is also that of its entries in the index by time.
fn batches(partition: &Fixture, stream: StreamId) -> usize {
    let data = batches_of(&partition.partition_db(), stream).len();
    let times = keys_in(
        partition,
        &keys::by_time(stream, 0, 0),
        &keys::by_time_end(stream),
    );
    assert_eq!(data, times, "each batch is in the index by time");
    data
}

fn marks(partition: &Fixture) -> usize {
    let (from, to) = keys::all_reclaims();
    keys_in(partition, &from, &to)
}

/// Two streams of 4 MiB in one basin and one in another, in files.
fn twelve_mib() -> (Fixture, [StreamId; 3]) {
    let mut partition = Fixture::with(eager());
    let streams = [(BASIN, "s"), (BASIN, "t"), (OTHER, "u")].map(|(basin, name)| {
        let stream = partition.create_in(basin, name, StreamSettings::default());
        fill(&mut partition, stream, 64, 64 * KIB);
        stream
    });
    partition.flush();
    assert!(partition.partition_db().file_bytes() > 12 * MIB - 100_000);
    (partition, streams)
}

/// Whether the files have shrunk to one and a half times the bytes of so many batches of 64 KiB, and what is
/// small.
fn shrunk_to(batches: u64) -> impl Fn(&Fixture) -> bool {
    let bound = batches * 64 * 1024 * 3 / 2 + MIB / 2;
    move |partition| partition.partition_db().file_bytes() < bound
}

#[test]
fn what_was_trimmed_leaves_the_files() {
    let (mut partition, [s, t, u]) = twelve_mib();
    for stream in [s, t] {
        partition
            .append(append(stream, 9_000, vec![trim(60)]))
            .unwrap();
    }
    let before = partition.content(&[BASIN, OTHER]);
    assert_eq!(marks(&partition), 2);

    maintain_until(&mut partition, "the files shrink", shrunk_to(74));

    assert_eq!(marks(&partition), 0);
    assert_eq!([s, t, u].map(|id| batches(&partition, id)), [5, 5, 64]);
    assert_eq!(partition.content(&[BASIN, OTHER]), before);
    partition.reopen();
    assert_eq!(partition.content(&[BASIN, OTHER]), before);
}

#[test]
fn what_expired_leaves_the_files() {
    let (mut partition, [s, t, u]) = twelve_mib();
    partition.step(vec![
        expire(s, 64, 9_000),
        expire(t, 32, 9_000),
        expire(u, 63, 9_000),
    ]);
    let before = partition.content(&[BASIN, OTHER]);
    maintain_until(&mut partition, "the files shrink", shrunk_to(33));
    assert_eq!([s, t, u].map(|id| batches(&partition, id)), [0, 32, 1]);
    assert_eq!(partition.content(&[BASIN, OTHER]), before);
    // A stream without a record continues where it was.
    assert_eq!(
        partition
            .append(bodies(s, 9_500, ["a"]))
            .unwrap()
            .start
            .seq_num,
        64
    );
    assert_eq!(partition.texts("s"), ["a"]);
}

#[test]
fn what_was_deleted_leaves_the_files_and_not_what_came_in_its_place() {
    let (mut partition, [s, t, u]) = twelve_mib();
    partition.delete("s");
    let again = partition.create("s");
    partition.append(bodies(again, 9_000, ["new"])).unwrap();
    partition.apply(delete(OTHER, "u"));
    let before = partition.content(&[BASIN, OTHER]);
    maintain_until(&mut partition, "the files shrink", shrunk_to(64));
    assert_eq!(
        [s, t, u, again].map(|id| batches(&partition, id)),
        [0, 64, 0, 1]
    );
    assert_eq!(partition.content(&[BASIN, OTHER]), before);
}

#[test]
fn what_was_dropped_leaves_the_files() {
    let (mut partition, [s, t, u]) = twelve_mib();
    partition.apply(drop_basin(BASIN));
    let before = partition.content(&[BASIN, OTHER]);
    maintain_until(&mut partition, "the files shrink", shrunk_to(64));
    assert_eq!([s, t, u].map(|id| batches(&partition, id)), [0, 0, 64]);
    let (names, names_end) = keys::stream_names(BASIN, "");
    assert_eq!(keys_in(&partition, &names, &names_end), 0);
    let (metas, metas_end) = keys::all_stream_metas();
    assert_eq!(keys_in(&partition, &metas, &metas_end), 1);
    assert_eq!(marks(&partition), 0);
    assert_eq!(partition.content(&[BASIN, OTHER]), before);
}

#[test]
fn a_dropped_basin_with_many_streams_goes_in_rounds() {
    const STREAMS: u64 = 300;
    let mut partition = Fixture::with(eager());
    let commands = (0..STREAMS)
        .flat_map(|i| {
            [
                create(BASIN, &format!("s{i}"), StreamSettings::default()),
                Kind::Append(bodies(StreamId(i + 1), 2_000, ["x"])),
            ]
        })
        .collect();
    partition.step(commands);
    partition.apply(drop_basin(BASIN));
    let data = |partition: &Fixture| {
        let streams = (1..=STREAMS).map(StreamId);
        streams.map(|id| batches(partition, id)).sum::<usize>()
    };
    assert_eq!(data(&partition), 300);
    partition.machine().maintain();
    assert!(data(&partition) > 0, "a round is small");
    maintain_until(&mut partition, "all streams go", |p| data(p) == 0);
    assert_eq!(marks(&partition), 0);
}

#[test]
fn marks_survive_a_reopening_at_any_point() {
    let (mut partition, [s, t, u]) = twelve_mib();
    partition.append(append(s, 9_000, vec![trim(60)])).unwrap();
    partition.apply(delete(BASIN, "t"));
    partition.apply(drop_basin(OTHER));
    let before = partition.content(&[BASIN, OTHER]);
    assert_eq!(marks(&partition), 2);
    // The partition is opened again before each round.
    for _ in 0..6 {
        partition.reopen();
        partition.machine().maintain();
        assert_eq!(partition.content(&[BASIN, OTHER]), before);
    }
    maintain_until(&mut partition, "everything goes", |p| marks(p) == 0);
    assert_eq!([s, t, u].map(|id| batches(&partition, id)), [5, 0, 0]);
}

#[test]
fn a_crash_before_the_space_was_given_back_forgets_nothing() {
    let (mut partition, [s, t, u]) = twelve_mib();
    partition.append(append(s, 9_000, vec![trim(60)])).unwrap();
    partition.flush();
    partition.apply(delete(BASIN, "t"));
    partition.apply(drop_basin(OTHER));
    let before = partition.content(&[BASIN, OTHER]);
    for _ in 0..3 {
        partition.machine().maintain();
    }
    // The changes of the rounds were not flushed; the files may be gone all the same.
    partition.stop_and_open();
    partition.replay(1);
    assert_eq!(partition.content(&[BASIN, OTHER]), before);
    maintain_until(&mut partition, "everything goes", |p| {
        [s, t, u].map(|id| batches(p, id)) == [5, 0, 0]
    });
    assert_eq!(partition.content(&[BASIN, OTHER]), before);
}

#[test]
fn few_batches_and_many_go_alike() {
    // Up to 128 batches are deleted one by one, more by a range.
    for count in [1, 127, 128, 129, 130, 400] {
        for kept in [0, 1, 2] {
            let mut partition = Fixture::with(eager());
            let stream = partition.create("s");
            let neighbours = [partition.create("before"), partition.create("after")];
            for id in neighbours.into_iter().chain([stream]) {
                fill(&mut partition, id, count + kept, 8);
            }
            partition.apply(expire(stream, count, 9_000));
            let before = partition.content(&[BASIN]);
            for _ in 0..2 {
                partition.machine().maintain();
            }
            assert_eq!(batches(&partition, stream) as u64, kept, "{count} went");
            assert_eq!(partition.content(&[BASIN]), before);
            partition.reopen();
            assert_eq!(partition.content(&[BASIN]), before);
        }
    }
}

#[test]
fn what_is_given_back_need_not_be_readable() {
    let mut partition = Fixture::with(eager());
    let stream = partition.create("s");
    fill(&mut partition, stream, 10, 8);
    damage_batch(&partition.partition_db(), stream, 3, Some(b"rot"));
    partition.apply(expire(stream, 5, 9_000));
    partition.machine().maintain();
    assert_eq!((batches(&partition, stream), marks(&partition)), (5, 0));
    assert_eq!(partition.texts("s").len(), 5);
}

#[test]
fn a_batch_stays_while_one_of_its_records_is_seen() {
    let mut partition = Fixture::with(eager());
    let stream = partition.create("s");
    for _ in 0..3 {
        partition
            .append(bodies(stream, 2_000, ["a", "b", "c"]))
            .unwrap();
    }
    for (point, kept) in [
        (1, 3),
        (2, 3),
        (3, 2),
        (4, 2),
        (5, 2),
        (6, 1),
        (8, 1),
        (9, 0),
    ] {
        partition.apply(expire(stream, point, 3_000));
        partition.machine().maintain();
        assert_eq!(batches(&partition, stream), kept, "trimmed to {point}");
        assert_eq!(partition.texts("s").len() as u64, 9 - point);
    }
}

#[test]
fn a_file_that_ends_with_the_first_kept_batch_is_kept() {
    let mut partition = Fixture::with(StreamOptions {
        // Without compactions, the files stay as they are, except those that are dropped.
        compact_garbage: u64::MAX,
        ..eager()
    });
    let stream = partition.create("s");
    fill(&mut partition, stream, 300, 256 * KIB);
    partition.flush();
    let ends = |partition: &Fixture| -> Vec<u64> {
        let largest = partition.partition_db().largest_keys();
        let parts = largest.iter().filter_map(|key| keys::parts_of_batch(key));
        parts.map(|(_, _, first)| first).collect()
    };
    let before = ends(&partition);
    assert!(before.len() >= 4, "files end at {before:?}");
    let give_back = |partition: &mut Fixture, up_to, left: &[u64]| {
        partition.apply(expire(stream, up_to, 9_000));
        let before = partition.content(&[BASIN]);
        partition.machine().maintain();
        assert_eq!(marks(partition), 0);
        partition.flush();
        maintain_until(partition, "the files go", |p| ends(p) == left);
        assert_eq!(partition.content(&[BASIN]), before);
    };
    // The last batch of the second file stays, and with it the file.
    give_back(&mut partition, before[1], &before[1..]);
    give_back(&mut partition, before[2] + 1, &before[3..]);
}

#[test]
fn files_go_only_when_it_is_durable_that_nobody_sees_them() {
    let mut partition = Fixture::with(StreamOptions {
        compact_garbage: u64::MAX,
        ..eager()
    });
    let stream = partition.create("s");
    fill(&mut partition, stream, 300, 256 * KIB);
    partition.flush();
    let bytes = partition.partition_db().file_bytes();
    let before = partition.content(&[BASIN]);

    partition.apply(expire(stream, 290, 9_000));
    let after = partition.content(&[BASIN]);
    for _ in 0..3 {
        partition.machine().maintain();
    }
    assert_eq!(batches(&partition, stream), 10);

    // A crash undoes the expiry: all that it had hidden is visible again.
    partition.stop_and_open();
    assert_eq!(partition.content(&[BASIN]), before);
    partition.replay(1);
    assert_eq!(partition.content(&[BASIN]), after);
    partition.machine().maintain();
    partition.flush();
    maintain_until(&mut partition, "the files go", |p| {
        p.partition_db().file_bytes() < bytes - 50 * MIB
    });
    assert_eq!(partition.content(&[BASIN]), after);
}

#[test]
fn a_stream_that_cannot_be_read_does_not_hold_up_the_others() {
    let mut partition = Fixture::with(eager());
    let [rotten, sound] = ["rotten", "sound"].map(|name| {
        let stream = partition.create(name);
        fill(&mut partition, stream, 10, 8);
        stream
    });
    damage_batch(&partition.partition_db(), rotten, 5, Some(b"rot"));
    partition.step(vec![expire(rotten, 5, 9_000), expire(sound, 5, 9_000)]);
    for _ in 0..4 {
        partition.machine().maintain();
    }
    assert_eq!(batches(&partition, sound), 5);
    assert_eq!((batches(&partition, rotten), marks(&partition)), (10, 1));
    // It is retried, and done once it is possible.
    partition.apply(expire(rotten, 6, 9_000));
    for _ in 0..4 {
        partition.machine().maintain();
    }
    assert_eq!((batches(&partition, rotten), marks(&partition)), (4, 0));
}

#[test]
fn nothing_that_is_seen_changes_while_it_works() {
    let (mut partition, [s, t, _]) = twelve_mib();
    partition.step(vec![
        expire(s, 60, 9_000),
        expire(t, 10, 9_000),
        drop_basin(OTHER),
    ]);
    let before = partition.content(&[BASIN, OTHER]).streams;
    let reader = partition.reader();
    let done = AtomicBool::new(false);
    let scans = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut scans = 0;
            while !done.load(Ordering::Relaxed) {
                for ((basin, name), content) in &before {
                    let stream = reader.stream(*basin, name).unwrap().unwrap();
                    assert_eq!(read_all(&reader, &stream), content.records);
                    scans += 1;
                }
            }
            scans
        });
        maintain_until(&mut partition, "the files shrink", shrunk_to(58));
        done.store(true, Ordering::Relaxed);
        reading.join().unwrap()
    });
    assert!(scans > 0);
}

#[test]
fn a_reader_in_the_middle_of_what_is_trimmed_goes_on_at_the_head() {
    let (mut partition, [s, ..]) = twelve_mib();
    let reader = partition.reader();
    let handle = partition.stream("s");
    let first = scan(&reader, &handle, 0);
    assert_eq!((first.next, first.end), (15, ScanEnd::More));
    partition.apply(expire(s, 40, 9_000));
    maintain_until(&mut partition, "the batches go", |p| batches(p, s) == 24);
    let second = scan(&reader, &handle, first.next);
    assert_eq!(seen(&second)[0].seq, 40);
}

#[test]
fn space_is_not_looked_for_before_its_time() {
    let mut partition = Fixture::with(StreamOptions {
        reclaim_after: Duration::from_secs(3600),
        ..eager()
    });
    let stream = partition.create("s");
    fill(&mut partition, stream, 3, 8);
    partition.apply(expire(stream, 2, 9_000));
    for _ in 0..3 {
        partition.machine().maintain();
    }
    assert_eq!((batches(&partition, stream), marks(&partition)), (3, 1));
}

#[test]
fn streams_are_visited_after_half_of_the_set_amount_was_written_whatever_the_time() {
    let mut partition = Fixture::with(StreamOptions {
        reclaim_after: Duration::from_secs(3600),
        ..eager()
    });
    let stream = partition.create("s");
    fill(&mut partition, stream, 3, 8);
    partition.apply(expire(stream, 2, 9_000));
    let half = usize::try_from(eager().compact_garbage / 2).unwrap();
    fill(&mut partition, stream, 1, half / 2);
    assert_eq!((batches(&partition, stream), marks(&partition)), (4, 1));
    fill(&mut partition, stream, 1, half / 2);
    assert_eq!((batches(&partition, stream), marks(&partition)), (3, 0));
}

#[test]
fn files_that_rocksdb_flushed_on_its_own_go_like_others() {
    let mut partition = Fixture::with(eager());
    let stream = partition.create("s");
    for _ in 0..20 {
        fill(&mut partition, stream, 10, 100 * KIB);
        // Of all column families, within a segment.
        let part = partition.partition_db();
        let families = [&part.segments_cf(), &part.cf()];
        let options = rust_rocksdb::FlushOptions::default();
        let db = part.store().db();
        db.flush_cfs_opt(&families, &options).unwrap();
    }
    partition.apply(Kind::Append(append(stream, 9_000, vec![trim(200)])));
    maintain_until(&mut partition, "the files go", |p| {
        p.partition_db().file_bytes() < MIB
    });
}
