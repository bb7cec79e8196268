//! Segments: each batch is written once, whatever is durable is a state at one LSN, and what is moved or
//! converted reads the same at every step.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use esker_raft::StateMachine as _;
use rust_rocksdb::WriteBatch;

use super::fixture::*;
use crate::digest::AFTER_SNAPSHOT;
use crate::ids::StreamId;
use crate::keys;
use crate::store::segments::Mutant;

const KIB: usize = 1024;
const STREAMS: usize = 5;

/// Numbers that look random, the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

fn streams(partition: &mut Fixture) -> Vec<StreamId> {
    let names = (0..STREAMS).map(|n| format!("s{n}"));
    names.map(|name| partition.create(&name)).collect()
}

/// One append of random size to a random stream.
fn append_some(partition: &mut Fixture, ids: &[StreamId], numbers: &mut Numbers, at_ms: u64) {
    let id = ids[numbers.below(ids.len() as u64) as usize];
    let records = 1 + numbers.below(4);
    let records = (0..records).map(|n| rec(vec![n as u8; 1 + numbers.below(4000) as usize]));
    let records = records.collect();
    partition.append(append(id, at_ms, records)).unwrap();
}

/// Whether every record that the streams' states promise can be read.
fn is_whole(partition: &Fixture) -> Result<(), String> {
    for n in 0..STREAMS {
        let name = format!("s{n}");
        let Some(stream) = partition.reader().stream(BASIN, &name).unwrap() else {
            continue;
        };
        let state = stream.view().state;
        let seen = read_all(&partition.reader(), &stream);
        let expected = state.tail_seq - state.head();
        if seen.len() as u64 != expected {
            return Err(format!("{name}: {} of {expected} records", seen.len()));
        }
    }
    Ok(())
}

/// What a crash leaves at any moment, under appends and flushes that another thread begins.
fn crash_under_flushes(seed: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let mut partition = Fixture::with(eager());
    partition.partition_db().set_mutant(mutant);
    let ids = streams(&mut partition);
    let mut numbers = Numbers(seed);
    for round in 0..6 {
        for n in 0..60 {
            append_some(&mut partition, &ids, &mut numbers, 2_000 + round * 100 + n);
        }
        let part = partition.partition_db();
        let expired = numbers.below(3) == 0;
        std::thread::scope(|scope| {
            let flushing = scope.spawn(move || {
                for _ in 0..5 {
                    part.flush().unwrap();
                }
            });
            for n in 0..40 {
                append_some(&mut partition, &ids, &mut numbers, 2_060 + round * 100 + n);
            }
            flushing.join().unwrap();
        });
        if expired {
            let id = ids[numbers.below(STREAMS as u64) as usize];
            partition.apply(expire(id, 30 * round, 9_000));
            partition.machine().maintain();
        }
        let mut crashed = partition.crashed_copy();
        is_whole(&crashed)?;
        crashed.replay(7);
        is_whole(&crashed)?;
        let (before, after) = (partition.partition_db(), crashed.partition_db());
        let (before, after) = (before.digest().unwrap(), after.digest().unwrap());
        if before != after {
            return Err(format!("{before:?} became {after:?} by a crash"));
        }
    }
    Ok(())
}

#[test]
fn whatever_is_durable_is_a_state_at_one_lsn_and_the_log_completes_it() {
    for seed in 0..4 {
        crash_under_flushes(seed, None).unwrap();
    }
}

#[test]
fn a_flush_of_rows_without_their_batches_is_caught() {
    let caught = (0..4).filter(|seed| {
        let crash = || crash_under_flushes(*seed, Some(Mutant::FlushesRowsAlone));
        !matches!(std::panic::catch_unwind(crash), Ok(Ok(())))
    });
    assert_eq!(caught.count(), 4);
}

/// Trims most of what the first segments hold, so that what is left of them is moved; with a crash after some
/// of the steps.
fn move_with_crashes(seed: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let mut partition = Fixture::with(eager());
    partition.partition_db().set_mutant(mutant);
    let ids = streams(&mut partition);
    let mut numbers = Numbers(seed);
    for round in 0..4 {
        for n in 0..100 {
            append_some(&mut partition, &ids, &mut numbers, 2_000 + round * 100 + n);
        }
        partition.flush();
    }
    // Most of each stream, or all of it.
    for (n, id) in ids.iter().enumerate() {
        let tail = partition.state(&format!("s{n}")).tail_seq;
        let up_to = tail * (60 + numbers.below(41)) / 100;
        partition.apply(expire(*id, up_to, 9_000));
    }
    let expected = partition.content(&[BASIN]);
    for step in 0..60 {
        partition.machine().maintain();
        let found = partition.content(&[BASIN]);
        if found.streams != expected.streams {
            return Err(format!("step {step}: other contents"));
        }
        // A crash is likely in the first steps, in which segments become empty.
        match numbers.below(if step < 6 { 2 } else { 6 }) {
            0 => {
                partition.stop_and_open();
                partition.partition_db().set_mutant(mutant);
                is_whole(&partition)?;
                partition.replay(3);
            }
            1 => partition.flush(),
            2 => {
                let checkpoint = partition.checkpoint();
                is_whole(&partition.imported(&checkpoint))?;
            }
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
        if partition.content(&[BASIN]).streams != expected.streams {
            return Err(format!("after step {step}: other contents"));
        }
    }
    Ok(())
}

#[test]
fn what_is_moved_reads_the_same_at_every_step_whatever_crashes() {
    for seed in 0..4 {
        move_with_crashes(seed, None).unwrap();
    }
}

#[test]
fn a_segment_that_is_dropped_before_it_is_durable_that_it_is_empty_is_caught() {
    let caught = (0..8).filter(|seed| {
        let crash = || move_with_crashes(*seed, Some(Mutant::DropsEarly));
        !matches!(std::panic::catch_unwind(crash), Ok(Ok(())))
    });
    let caught = caught.count();
    assert!(caught >= 2, "{caught} of 8");
}

#[test]
fn what_is_left_of_a_row_stays_however_much_larger_than_estimated_its_batches_are() {
    let mut partition = Fixture::with(eager());
    let ids = streams(&mut partition);
    let small = (0..1000).map(|_| rec(vec![1_u8])).collect();
    partition.append(append(ids[0], 2_000, small)).unwrap();
    for n in 0..7 {
        let large = vec![rec(vec![n as u8; 700 * KIB])];
        partition.append(append(ids[0], 2_001 + n, large)).unwrap();
    }
    partition.flush();
    // The row that is left seems to have some kilobytes, and one step does not move all of it.
    partition.apply(expire(ids[0], 1000, 9_000));
    let expected = partition.content(&[BASIN]);
    for _ in 0..6 {
        partition.machine().maintain();
        partition.flush();
        std::thread::sleep(Duration::from_millis(50));
    }
    is_whole(&partition).unwrap();
    assert_eq!(partition.content(&[BASIN]).streams, expected.streams);
}

#[test]
fn a_batch_is_written_to_one_file_however_many_flushes_follow() {
    let mut partition = Fixture::new();
    let ids = streams(&mut partition);
    let (mut names, mut written) = (BTreeSet::new(), 0_u64);
    for round in 0..40 {
        for id in &ids {
            let records = (0..8).map(|_| rec(vec![round as u8; 4 * KIB])).collect();
            partition
                .append(append(*id, 2_000 + round, records))
                .unwrap();
            written += 8 * 4 * KIB as u64;
        }
        let files = partition.checkpoint().meta.files.clone();
        let data = files
            .iter()
            .filter(|file| file.column_family == crate::checkpoint::ColumnFamily::Segments);
        names.extend(data.map(|file| (file.name.clone(), file.size)));
    }
    // Every file that any of the checkpoints had.
    let uploaded: u64 = names.iter().map(|(_, size)| size).sum();
    assert!(
        uploaded < written + written / 10,
        "{uploaded} bytes of files for {written}"
    );
    assert_eq!(names.len(), 40, "each flush wrote one file, which stays");
}

#[test]
fn an_append_costs_six_entries_and_no_read_and_memtables_are_measured_once_for_many() {
    /// Batch, row of the stream, usage of the segment, state of the stream, time index, position.
    const ENTRIES: u64 = 6;
    const APPENDS: u64 = 500;
    let mut partition = Fixture::new();
    let ids = streams(&mut partition);
    let some = |n| vec![rec(vec![n as u8; KIB])];
    // The first write of a segment has its number as well.
    partition.append(append(ids[0], 2_000, some(0))).unwrap();
    let before = partition.partition_db().counted();
    for n in 0..APPENDS {
        let id = ids[n as usize % STREAMS];
        partition.append(append(id, 2_001 + n, some(n))).unwrap();
    }
    let part = partition.partition_db();
    let after = part.counted();
    assert_eq!(after.entries - before.entries, ENTRIES * APPENDS);
    assert_eq!(after.rows_read, before.rows_read, "memory has all rows");
    let bytes = after.bytes - before.bytes;
    let measured = after.measurements - before.measurements;
    assert!(
        measured <= bytes / (part.max_segment() / 64),
        "{measured} measurements for {bytes} bytes"
    );
}

#[test]
fn an_empty_segment_is_dropped_although_other_rows_are_trimmed_all_the_time() {
    let mut partition = Fixture::with(eager());
    let ids = streams(&mut partition);
    let records = (0..8).map(|_| rec(vec![1_u8; 32 * KIB])).collect();
    partition.append(append(ids[0], 2_000, records)).unwrap();
    partition.flush();
    let (first, _) = partition.partition_db().segment_usage().unwrap()[0];
    partition.apply(expire(ids[0], 8, 3_000));
    partition.machine().maintain();
    partition.flush();
    for round in 1..=40 {
        let record = vec![rec(vec![1_u8; 100])];
        partition
            .append(append(ids[1], 3_000 + round, record))
            .unwrap();
        partition.apply(expire(ids[1], round, 3_000 + round));
        partition.machine().maintain();
        std::thread::sleep(Duration::from_millis(10));
    }
    let usages = partition.partition_db().segment_usage().unwrap();
    assert!(usages.iter().all(|(segment, _)| *segment != first));
}

#[test]
fn a_partition_with_few_appends_has_few_files_and_they_are_written_few_times() {
    let mut partition = Fixture::with(eager());
    let ids = streams(&mut partition);
    let mut numbers = Numbers(1);
    let (mut seen, mut written) = (BTreeSet::new(), 0);
    for round in 0..400 {
        append_some(&mut partition, &ids, &mut numbers, 2_000 + round);
        partition.flush();
        for _ in 0..4 {
            partition.machine().maintain();
        }
        let files = partition.partition_db().segment_usage().unwrap();
        written = files.iter().map(|(_, usage)| usage.live).sum();
        seen.extend(
            files
                .into_iter()
                .map(|(segment, usage)| (segment, usage.bytes)),
        );
    }
    let expected = partition.content(&[BASIN]);
    partition.flush();
    maintain_until_few(&mut partition, 100);
    assert_eq!(partition.content(&[BASIN]), expected);
    // Once when it was appended, and once for each of the classes up to its size.
    let all: u64 = seen.iter().map(|(_, bytes)| bytes).sum();
    assert!(all <= 6 * written, "{all} bytes were written for {written}");
    partition.reopen();
    assert_eq!(partition.content(&[BASIN]), expected);
}

#[test]
fn segments_of_the_largest_size_are_not_joined() {
    let mut partition = Fixture::with(eager());
    let ids = streams(&mut partition);
    let most = partition.partition_db().max_segment();
    let count = 20 * most / (512 * KIB as u64);
    for n in 0..count {
        let record = vec![rec(vec![n as u8; 512 * KIB])];
        partition.append(append(ids[0], 2_000 + n, record)).unwrap();
        partition.machine().maintain();
    }
    let usages = partition.partition_db().segment_usage().unwrap();
    let written: u64 = usages.iter().map(|(_, usage)| usage.bytes).sum();
    let live: u64 = usages.iter().map(|(_, usage)| usage.live).sum();
    assert_eq!(written, live, "nothing was moved");
    assert!(usages.len() >= 16);
}

#[test]
fn a_digest_is_the_same_while_files_of_converted_batches_are_dropped() {
    let mut partition = Fixture::with(eager());
    let ids = streams(&mut partition);
    let mut numbers = Numbers(1);
    for n in 0..300 {
        append_some(&mut partition, &ids, &mut numbers, 2_000 + n);
    }
    as_format_3(&mut partition, &ids);
    let part = partition.partition_db();
    // Files are dropped below level 0 alone.
    let rows = part.cf();
    part.store()
        .db()
        .compact_range_cf(&rows, None::<&[u8]>, None::<&[u8]>);
    drop(rows);
    let digest = part.digest().unwrap();
    let drops = part.file_drops();
    let partition = Rc::new(RefCell::new(partition));
    let converted = partition.clone();
    AFTER_SNAPSHOT.set(Some(Box::new(move || {
        let mut partition = converted.borrow_mut();
        let part = partition.partition_db();
        let deadline = Instant::now() + Duration::from_secs(60);
        while part.has_unconverted().unwrap() || part.file_drops() == drops {
            assert!(Instant::now() < deadline, "no file was dropped");
            partition.machine().maintain();
            partition.flush();
        }
    })));
    assert_eq!(part.digest().unwrap(), digest);
    assert!(part.file_drops() > drops);
}

fn maintain_until_few(partition: &mut Fixture, most: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let files = partition.partition_db().largest_keys().len();
        if files <= most {
            return;
        }
        assert!(Instant::now() < deadline, "{files} files are left");
        partition.machine().maintain();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Changes the database to what a build of format 3 wrote: batches under keys of their streams, no rows.
fn as_format_3(partition: &mut Fixture, ids: &[StreamId]) {
    let part = partition.partition_db();
    let mut batch = WriteBatch::default();
    for id in ids {
        for (first, value) in batches_of(&part, *id) {
            batch.put_cf(&part.cf(), keys::data(*id, first), value);
        }
    }
    for (from, to) in [keys::all_rows(), keys::all_usages()] {
        batch.delete_range_cf(&part.cf(), from, to);
    }
    batch.delete_cf(&part.cf(), keys::SEGMENTS);
    part.store().db().write_without_wal(&batch).unwrap();
    part.flush().unwrap();
    let files = part.segments_cf();
    let (first, last) = ([0; 24], [0xff; 24]);
    part.store()
        .db()
        .compact_range_cf(&files, None::<&[u8]>, None::<&[u8]>);
    part.store()
        .db()
        .delete_file_in_range_cf(&files, first, last)
        .unwrap();
    drop((batch, files));
    drop(part);
    partition.stop_and_open();
}

#[test]
fn batches_of_an_earlier_build_are_read_and_converted_whatever_crashes() {
    for seed in 0..4 {
        let mut partition = Fixture::with(eager());
        let ids = streams(&mut partition);
        let mut numbers = Numbers(seed);
        for n in 0..300 {
            append_some(&mut partition, &ids, &mut numbers, 2_000 + n);
        }
        partition.apply(expire(ids[1], 20, 9_000));
        let digest = partition.partition_db().digest().unwrap();
        as_format_3(&mut partition, &ids);
        assert!(partition.partition_db().has_unconverted().unwrap());
        assert_eq!(partition.partition_db().digest().unwrap(), digest);
        let mut expected = partition.content(&[BASIN]);
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut at_ms = 10_000;
        while partition.partition_db().has_unconverted().unwrap() {
            assert!(Instant::now() < deadline, "in vain");
            match numbers.below(5) {
                0 => {
                    partition.stop_and_open();
                    partition.replay(5);
                }
                1 => {
                    at_ms += 1;
                    append_some(&mut partition, &ids, &mut numbers, at_ms);
                    expected = partition.content(&[BASIN]);
                }
                2 => partition.flush(),
                _ => partition.machine().maintain(),
            }
            assert_eq!(partition.content(&[BASIN]).streams, expected.streams);
        }
        // A batch that is converted is found under its earlier key again.
        let part = partition.partition_db();
        let (again, value) = batches_of(&part, ids[0]).swap_remove(3);
        let mut batch = WriteBatch::default();
        batch.put_cf(&part.cf(), keys::data(ids[0], again), &value);
        part.store().db().write_without_wal(&batch).unwrap();
        drop((batch, part));
        partition.reopen();
        while partition.partition_db().has_unconverted().unwrap() {
            assert_eq!(partition.content(&[BASIN]).streams, expected.streams);
            partition.machine().maintain();
        }
        partition.reopen();
        assert_eq!(partition.content(&[BASIN]).streams, expected.streams);
        assert!(!partition.partition_db().has_unconverted().unwrap());
        // A checkpoint of it is read elsewhere.
        let checkpoint = partition.checkpoint();
        let elsewhere = partition.imported(&checkpoint);
        assert_eq!(
            elsewhere.partition_db().digest().unwrap(),
            partition.partition_db().digest().unwrap()
        );
    }
}
