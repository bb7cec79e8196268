//! What the file system promises, with raft-engine on top of it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use raft_engine::{Engine, Error};

use super::*;
use crate::log::inspect::fixture::*;
use crate::log::inspect::{Queue, inspect};

/// A file system with faults; a failed sync is noted, and then panics in raft-engine.
fn faulty() -> (LogFileSystem, Faults, Arc<Mutex<Vec<PathBuf>>>) {
    let (faults, aborted) = (Faults::new(), Arc::new(Mutex::new(Vec::new())));
    let noted = aborted.clone();
    faults.catch_failed_sync(move |path, _| noted.lock().unwrap().push(path.to_owned()));
    let fs = LogFileSystem::with_faults(faults.clone());
    (fs, faults, aborted)
}

/// The machine starts again: inspects, cuts, and returns how many of `total` groups it finds.
fn restart(dir: &Path, total: u64) -> u64 {
    let found = inspect(dir, MAX_GROUP_BYTES).expect("a crash leaves nothing worse than torn");
    found.cut().unwrap();
    groups_in(dir, total)
}

fn panics(action: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(action)).is_err()
}

/// Holds syncs until it is dropped, so that a test that fails does not wait for its threads for ever.
struct Hold<'a>(&'a Faults);

impl Hold<'_> {
    fn begin(faults: &Faults) -> Hold<'_> {
        faults.hold_sync(true);
        Hold(faults)
    }

    fn wait_for_a_sync(&self) {
        wait_for("a sync is held", || self.0.held_syncs() > 0);
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.hold_sync(false);
    }
}

#[track_caller]
fn wait_for(what: &str, so: impl Fn() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Cuts the power and drops the log that was running.
fn lose_power(faults: &Faults, cut: PowerCut, engine: Engine<LogFileSystem>) {
    faults.power_cut(cut).unwrap();
    faults.bury();
    drop(engine);
}

#[test]
fn a_failed_write_loses_nothing_and_its_repetition_succeeds() {
    for fault in [
        WriteFault::NoSpace,
        WriteFault::NoSpaceRotate,
        WriteFault::Io,
    ] {
        // Nothing of the group is written, some of it, almost all of it.
        for bytes in [0, 1, 700, 18_000] {
            let (_keep, dir) = scratch();
            let (fs, faults, _) = faulty();
            let engine = open_on(&dir, fs);
            append(&engine, 0..12);
            faults.fail_writes_after(bytes, fault);
            let error = engine
                .write(&mut group(12), true)
                .expect_err("the disk refuses");
            match (fault, &error) {
                (WriteFault::NoSpace, Error::Io(e)) => {
                    assert_eq!(e.kind(), io::ErrorKind::StorageFull);
                    assert!(e.to_string().contains(".raftlog"), "{e} names the file");
                }
                // Rotated, or had no space for the new file's header either.
                (WriteFault::NoSpaceRotate, Error::TryAgain(_) | Error::Io(_)) => {}
                (WriteFault::Io, Error::Io(e)) => assert!(e.to_string().contains("os error 5")),
                other => panic!("unexpected {other:?}"),
            }
            assert!(!has(&engine, 12), "what failed is not there");
            assert!(engine.write(&mut group(12), true).is_err(), "still refused");
            faults.clear();
            append(&engine, 12..30);
            drop(engine);
            assert_eq!(restart(&dir, 30), 30, "{fault:?} after {bytes} bytes");
        }
    }
}

#[test]
fn a_full_disk_does_not_litter_the_log_with_files() {
    let (_keep, dir) = scratch();
    let (fs, faults, _) = faulty();
    let engine = open_on(&dir, fs);
    append(&engine, 0..5);
    faults.fail_writes_after(300, WriteFault::NoSpace);
    for _ in 0..50 {
        assert!(engine.write(&mut group(5), true).is_err());
    }
    assert_eq!(
        engine.file_span(raft_engine::internals::LogQueue::Append),
        (1, 1)
    );
}

#[test]
fn groups_after_a_rotation_that_found_no_space_survive_a_crash() {
    for seed in 0..20 {
        let (_keep, dir) = scratch();
        let (fs, faults, _) = faulty();
        faults.track_unsynced();
        let engine = open_on(&dir, fs);
        append(&engine, 0..8);
        // Neither the group fits, nor the header of the next file.
        faults.fail_writes_after(seed, WriteFault::NoSpaceRotate);
        assert!(engine.write(&mut group(8), true).is_err());
        faults.clear();
        assert!(
            dir.join("0000000000000003.raftlog").exists(),
            "a stub is there"
        );
        append(&engine, 8..11);
        engine.write(&mut group(11), false).unwrap();
        lose_power(&faults, PowerCut::Tear { seed }, engine);
        assert!([11, 12].contains(&restart(&dir, 12)), "seed {seed}");
    }
}

#[test]
fn a_failed_preallocation_is_no_failure() {
    let (_keep, dir) = scratch();
    let (fs, faults, _) = faulty();
    faults.fail_allocate(true);
    let engine = open_on(&dir, fs);
    append(&engine, 0..20);
    drop(engine);
    assert_eq!(restart(&dir, 20), 20);
}

#[test]
fn a_failed_sync_calls_abort_with_the_file() {
    let (_keep, dir) = scratch();
    let (fs, faults, aborted) = faulty();
    let engine = open_on(&dir, fs);
    append(&engine, 0..3);
    faults.fail_sync(true);
    assert!(
        panics(|| drop(engine.write(&mut group(3), true))),
        "nobody is told that it is durable"
    );
    assert_eq!(
        *aborted.lock().unwrap(),
        [dir.join("0000000000000001.raftlog")]
    );
    faults.clear();
}

#[test]
fn a_stalled_sync_stalls_the_write_and_nothing_else() {
    let (_keep, dir) = scratch();
    let (fs, faults, _) = faulty();
    let engine = open_on(&dir, fs);
    append(&engine, 0..1);
    std::thread::scope(|scope| {
        let hold = Hold::begin(&faults);
        let writer = scope.spawn(|| append(&engine, 1..2));
        hold.wait_for_a_sync();
        let reader = scope.spawn(|| has(&engine, 0));
        wait_for("reads do not wait for the sync", || reader.is_finished());
        assert!(reader.join().unwrap(), "reads go on");
        std::thread::sleep(Duration::from_millis(50));
        assert!(!writer.is_finished(), "the write waits for the sync");
        drop(hold);
        writer.join().unwrap();
    });
    assert!(has(&engine, 1));
}

#[test]
fn a_power_cut_loses_only_what_was_not_synced() {
    for unsynced in [0, 1] {
        let (_keep, dir) = scratch();
        let (fs, faults, _) = faulty();
        faults.track_unsynced();
        let engine = open_on(&dir, fs);
        append(&engine, 0..10);
        for n in 10..10 + unsynced {
            engine.write(&mut group(n), false).unwrap();
        }
        assert_eq!(
            faults.power_cut(PowerCut::DropUnsynced).unwrap() as u64,
            unsynced
        );
        let write = || assert!(engine.write(&mut group(11), true).is_ok());
        assert!(panics(write), "nothing is written without power");
        faults.bury();
        drop(engine);
        assert_eq!(restart(&dir, 12), 10);
    }
}

#[test]
fn a_power_cut_at_any_group_keeps_every_acknowledged_one() {
    let (mut torn, mut whole) = (0, 0);
    for seed in 0..60 {
        let (_keep, dir) = scratch();
        let (fs, faults, _) = faulty();
        faults.track_unsynced();
        let engine = open_on(&dir, fs);
        let acknowledged = seed % 30;
        append(&engine, 0..acknowledged);
        engine.write(&mut group(acknowledged), false).unwrap();
        lose_power(&faults, PowerCut::Tear { seed }, engine);
        let found = inspect(&dir, MAX_GROUP_BYTES).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        torn += u32::from(!found.torn.is_empty());
        let survived = restart(&dir, acknowledged + 1);
        whole += u32::from(survived > acknowledged);
        assert!(
            survived >= acknowledged,
            "seed {seed}: {survived} of {acknowledged}"
        );
    }
    assert!(
        torn > 10 && whole > 3,
        "the seeds reach both: {torn} torn, {whole} whole"
    );
}

#[test]
fn no_write_is_reported_as_durable_after_the_power_cut() {
    let (_keep, dir) = scratch();
    let (fs, faults, _) = faulty();
    faults.track_unsynced();
    let engine = open_on(&dir, fs);
    append(&engine, 0..3);
    std::thread::scope(|scope| {
        let hold = Hold::begin(&faults);
        let writer = scope.spawn(|| panics(|| drop(engine.write(&mut group(3), true))));
        hold.wait_for_a_sync();
        faults.power_cut(PowerCut::DropUnsynced).unwrap();
        drop(hold);
        assert!(writer.join().unwrap(), "a write under way does not return");
    });
    faults.bury();
    drop(engine);
    assert_eq!(restart(&dir, 4), 3);
}

#[test]
fn a_fresh_log_survives_a_power_cut_before_its_first_write() {
    let (_keep, dir) = scratch();
    let (fs, faults, _) = faulty();
    faults.track_unsynced();
    let engine = open_on(&dir, fs);
    assert_eq!(
        faults.power_cut(PowerCut::DropUnsynced).unwrap(),
        0,
        "headers are synced"
    );
    faults.bury();
    drop(engine);
    let found = inspect(&dir, MAX_GROUP_BYTES).unwrap();
    assert_eq!((found.files, found.torn), (2, vec![]));
}

#[test]
fn a_power_cut_in_the_middle_of_a_purge_loses_nothing() {
    let mut torn = 0;
    for seed in 0..16 {
        let (_keep, dir) = scratch();
        let (fs, faults, _) = faulty();
        faults.track_unsynced();
        let engine = open_on(&dir, fs);
        append(&engine, 0..100);
        // Purge gets so far, and fails; whatever it has not synced is torn.
        faults.fail_writes_after(seed * 20_000, WriteFault::Io);
        let failed = panics(|| engine.purge_manager().must_rewrite_append_queue(None, None));
        lose_power(&faults, PowerCut::Tear { seed }, engine);
        let found = inspect(&dir, MAX_GROUP_BYTES).unwrap();
        let mut tails = found.torn.iter().filter(|torn| torn.offset > 0);
        torn += u32::from(tails.clone().next().is_some());
        assert!(
            tails.all(|torn| torn.queue == Queue::Rewrite),
            "beside stubs: {found:?}"
        );
        assert_eq!(
            restart(&dir, 100),
            100,
            "seed {seed}, purge failed: {failed}"
        );
    }
    assert!(torn > 0, "some seed tears the rewrite queue");
}

#[test]
fn a_failed_delete_leaves_no_gap_behind() {
    let (_keep, dir) = scratch();
    let (fs, faults, _) = faulty();
    let engine = open_on(&dir, fs);
    append(&engine, 0..40);
    faults.fail_delete(true);
    assert!(panics(|| engine
        .purge_manager()
        .must_rewrite_append_queue(None, None)));
    append(&engine, 40..80);
    assert!(dir.join("0000000000000001.raftlog").exists());
    faults.clear();
    engine.purge_manager().must_rewrite_append_queue(None, None);
    assert!(
        !dir.join("0000000000000001.raftlog").exists(),
        "what was left over is gone"
    );
    append(&engine, 80..90);
    drop(engine);
    assert_eq!(restart(&dir, 90), 90);
}

#[test]
fn large_writes_at_any_offset_leave_the_same_file_as_small_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0000000000000001.raftlog");
    let fs = LogFileSystem::with_faults(Faults::default());
    let handle = Arc::new(fs.create(&path).unwrap());
    let mut writer = fs.new_writer(handle).unwrap();
    let mut expected = Vec::new();
    let sizes = [
        16,
        70_000,
        1,
        4095,
        65_536,
        3 * 1024 * 1024 + 17,
        69_632,
        5,
        200_000,
    ];
    for (i, size) in sizes.into_iter().enumerate() {
        let at = expected.len();
        expected.extend((at..at + size).map(|byte| (byte / 3 + i) as u8));
        writer.allocate(at, size).unwrap();
        writer.write_all(&expected[at..]).unwrap();
        writer.flush().unwrap();
        // Read in between, so that the cache has pages that the next write changes.
        assert!(std::fs::read(&path).unwrap() == expected, "write {i}");
    }
    // A write that failed is repeated from where it began.
    let at = sizes[0] + sizes[1];
    writer.seek(SeekFrom::Start(at as u64)).unwrap();
    WriteExt::truncate(&mut writer, at).unwrap();
    expected.truncate(at);
    expected.extend(std::iter::repeat_n(9, 300_000));
    writer.write_all(&expected[at..]).unwrap();
    assert!(std::fs::read(&path).unwrap() == expected);
}

#[test]
fn small_writes_go_into_blocks_that_are_written_and_leave_zeros_behind() {
    const ALLOCATED: usize = 2 * 1024 * 1024;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0000000000000001.raftlog");
    let fs = LogFileSystem::with_faults(Faults::default());
    let handle = Arc::new(fs.create(&path).unwrap());
    let mut writer = fs.new_writer(handle.clone()).unwrap();
    writer.allocate(0, ALLOCATED).unwrap();
    let mut expected = Vec::new();
    let mut holes = std::collections::BTreeSet::new();
    for number in 1..=255 {
        let at = expected.len();
        // Together more than what is written ahead; one is large.
        expected.resize(at + if number == 100 { 100_000 } else { 3_000 }, number);
        writer.write_all(&expected[at..]).unwrap();
        handle.sync().unwrap();
        // What is only allocated counts as a hole. Where file systems do not tell, there is none.
        let file = std::fs::File::open(&path).unwrap();
        holes.insert(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap());
    }
    assert!(
        holes.len() < 10,
        "each write changes what is written: {holes:?}"
    );
    let found = std::fs::read(&path).unwrap();
    let (data, rest) = found.split_at(expected.len());
    assert!(data == expected && rest.iter().all(|byte| *byte == 0));
    assert_eq!(found.len(), ALLOCATED);
    // A file that is closed ends with its data.
    let end = expected.len();
    WriteExt::truncate(&mut writer, end).unwrap();
    assert!(std::fs::read(&path).unwrap() == expected);
}
