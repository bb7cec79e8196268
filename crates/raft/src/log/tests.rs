//! What the log promises of a group that begins anew, against reopening, purging and power cuts.

mod failed_purges;
mod mixed_files;
mod open_files;
mod reading;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::fs::{PowerCut, WriteFault};
use super::*;
use crate::engine::Persist;

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

struct Nobody;

impl Persisted for Nobody {
    fn persisted(&self, _number: u64) {}
}

/// Reports whether the thread that calls it has a short time slice.
#[cfg(target_os = "linux")]
struct OfWriter(std::sync::mpsc::Sender<Option<bool>>);

#[cfg(target_os = "linux")]
impl Persisted for OfWriter {
    fn persisted(&self, _number: u64) {
        let _ = self.0.send(crate::priority::has_short_time_slice());
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_log_is_written_on_a_thread_with_a_short_time_slice() {
    let dir = tempfile::tempdir().unwrap();
    let open = Open::new(dir.path(), &Faults::new());
    let (tell, told) = std::sync::mpsc::channel();
    let persist = Persist {
        number: 1,
        restart: None,
        entries: Vec::new(),
        hard_state: HardState::default(),
    };
    let to = Arc::new(OfWriter(tell));
    open.writer.persist(GroupId(1), persist, to);
    assert_ne!(told.recv_timeout(WAIT_TIMEOUT).unwrap(), Some(false));
    open.writer.stop();
}

/// Small files, so that tests rotate and purge.
fn config(dir: &Path) -> LogConfig {
    LogConfig {
        dir: dir.join("log"),
        segment_size: 16 * 1024,
        purge_threshold: 32 * 1024,
        max_group_size: 16 * 1024,
        direct_writes: true,
    }
}

/// A log with its writer.
struct Open {
    log: SharedLog,
    writer: LogWriter,
}

impl Open {
    fn new(dir: &Path, faults: &Faults) -> Open {
        let (log, _) = SharedLog::open(config(dir), faults.clone()).unwrap();
        let writer = LogWriter::start(&log).unwrap();
        Open { log, writer }
    }

    /// These entries of a group, and a hard state of their term.
    fn append(&self, group: u64, lsns: std::ops::RangeInclusive<u64>, term: u64, padding: usize) {
        let entry = |lsn: u64| Entry {
            index: lsn,
            term,
            data: content(lsn, term, padding).into(),
            ..Entry::default()
        };
        let persist = Persist {
            number: 1,
            restart: None,
            entries: lsns.map(entry).collect(),
            hard_state: HardState {
                term,
                ..HardState::default()
            },
        };
        self.writer
            .persist(GroupId(group), persist, Arc::new(Nobody));
        assert!(self.writer.flush(WAIT_TIMEOUT));
    }

    fn compact(&self, group: u64, floor: LogFloor) {
        self.writer.compact(GroupId(group), floor);
        assert!(self.writer.flush(WAIT_TIMEOUT));
    }

    /// What is there of a group, all of it read: begin, end, tag, term, and the entries' terms.
    fn found(&self, group: u64) -> Found {
        let state = self.log.state(GroupId(group)).unwrap();
        let reader = self.log.reader(GroupId(group));
        let mut entries = BTreeMap::new();
        let mut next = state.start.lsn.next();
        while next <= state.last {
            let read = reader.entries(next, state.last.next(), 1 << 20).unwrap();
            for entry in read.0 {
                assert_eq!(entry.index, next.0);
                let expected = content(entry.index, entry.term, 0);
                assert!(entry.data.starts_with(&expected), "entry {next} is another");
                entries.insert(entry.index, entry.term);
                next = next.next();
            }
        }
        for outside in [state.start.lsn.0, state.last.0 + 1, state.last.0 + 7] {
            assert!(reader.term(Lsn(outside)).is_err(), "{outside} is there");
        }
        Found {
            start: (state.start.lsn.0, state.start.term.0),
            tag: state.tag,
            term: state.hard_state.term,
            entries,
        }
    }

    fn close(self) {
        self.writer.stop();
    }
}

fn content(lsn: u64, term: u64, padding: usize) -> Vec<u8> {
    [format!("{lsn}@{term}").as_bytes(), &vec![b'.'; padding]].concat()
}

fn floor(lsn: u64, term: u64) -> LogFloor {
    LogFloor {
        lsn: Lsn(lsn),
        term: Term(term),
    }
}

/// A group, as it is or should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    start: (u64, u64),
    tag: Option<Vec<u8>>,
    term: u64,
    entries: BTreeMap<u64, u64>,
}

impl Found {
    fn begun(lsn: u64, term: u64, tag: &[u8]) -> Found {
        Found {
            start: (lsn, term),
            tag: Some(tag.to_vec()),
            term,
            entries: BTreeMap::new(),
        }
    }

    fn last(&self) -> u64 {
        let last = self.entries.keys().next_back();
        last.copied().unwrap_or(self.start.0)
    }

    fn append(&mut self, lsns: std::ops::RangeInclusive<u64>, term: u64) {
        self.entries.split_off(lsns.start());
        self.entries.extend(lsns.map(|lsn| (lsn, term)));
        self.term = term;
    }
}

#[test]
fn a_group_that_is_begun_again_is_empty_and_continues_after_its_start() {
    let keep = tempfile::tempdir().unwrap();
    let open = Open::new(keep.path(), &Faults::new());
    open.append(3, 1..=20, 2, 10);
    assert_eq!(open.log.tag(GroupId(3)), None);
    // In the midst of the old log, after its end, at the very beginning.
    for (lsn, term) in [(10, 2), (100, 7), (0, 0)] {
        let tag = format!("line {lsn}");
        open.log
            .begin_group(GroupId(3), floor(lsn, term), tag.as_bytes())
            .unwrap();
        assert_eq!(open.found(3), Found::begun(lsn, term, tag.as_bytes()));
        let state = open.log.state(GroupId(3)).unwrap();
        assert_eq!((state.last, state.start), (Lsn(lsn), floor(lsn, term)));
        let hard_state = state.hard_state;
        assert_eq!(
            (hard_state.term, hard_state.vote, hard_state.commit),
            (term, 0, lsn)
        );
        open.append(3, lsn + 1..=lsn + 5, term + 1, 10);
    }
    open.close();
    let open = Open::new(keep.path(), &Faults::new());
    let mut expected = Found::begun(0, 0, b"line 0");
    expected.append(1..=5, 1);
    assert_eq!(open.found(3), expected);
    assert_eq!(open.log.tag(GroupId(3)).unwrap(), b"line 0");
    open.close();
}

#[test]
fn entries_from_before_a_new_beginning_never_come_back() {
    for (start, reopens) in [(10, false), (10, true), (3, true), (100, true), (0, true)] {
        let keep = tempfile::tempdir().unwrap();
        let mut open = Open::new(keep.path(), &Faults::new());
        let (mut busy, mut rounds) = (0, 0);
        // The other group fills files, until the one that was written at first is gone.
        let mut purge_past = |open: &Open, file: u64| {
            while open.log.file_span().0 <= file {
                open.append(1, busy + 1..=busy + 10, 1, 1000);
                busy += 10;
                open.compact(1, floor(busy, 1));
                open.log.purge().unwrap();
                rounds += 1;
                assert!(rounds < 1000, "the log is never purged");
            }
        };
        // Some of the old entries are copied by purge, and some are where they were written.
        open.append(0, 1..=15, 1, 10);
        let file = open.log.file_span().1;
        purge_past(&open, file);
        open.append(0, 16..=25, 1, 10);
        open.log
            .begin_group(GroupId(0), floor(start, 4), b"new")
            .unwrap();
        let mut expected = Found::begun(start, 4, b"new");
        for round in 0..6 {
            if reopens {
                open.close();
                open = Open::new(keep.path(), &Faults::new());
            }
            assert_eq!(open.found(0), expected, "start {start}, round {round}");
            let lsns = expected.last() + 1..=expected.last() + 2;
            open.append(0, lsns.clone(), 5, 10);
            expected.append(lsns, 5);
            let file = open.log.file_span().1;
            purge_past(&open, file);
        }
        open.close();
        let open = Open::new(keep.path(), &Faults::new());
        assert_eq!(open.found(0), expected, "start {start}, in the end");
        open.close();
    }
}

#[test]
fn whatever_was_written_compacted_begun_and_purged_a_reopened_log_has_what_it_should() {
    let at_once = 8;
    let (begun, purged) = std::thread::scope(|scope| {
        let lives = |first| move || (first..40).step_by(at_once).map(live).collect::<Vec<_>>();
        let threads: Vec<_> = (0..at_once as u64)
            .map(|first| scope.spawn(lives(first)))
            .collect();
        let all = threads.into_iter().flat_map(|t| t.join().unwrap());
        all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    assert!(
        begun > 200 && purged > 100,
        "{begun} beginnings, {purged} purges"
    );
}

/// One life of a log, by seed: how many groups began anew, and how often files were deleted.
fn live(seed: u64) -> (u64, u64) {
    let (mut begun, mut purged) = (0, 0);
    let mut rng = StdRng::seed_from_u64(seed);
    let keep = tempfile::tempdir().unwrap();
    let mut open = Open::new(keep.path(), &Faults::new());
    let mut groups = vec![Found::default(); 3];
    for step in 0..120 {
        let id = rng.random_range(0..groups.len());
        let (group, id) = (&mut groups[id], id as u64);
        match rng.random_range(0..100) {
            0..55 => {
                // Sometimes in place of what a leader before had.
                let replaced = rng.random_range(0..=3).min(group.entries.len() as u64);
                let first = group.last() + 1 - replaced;
                let lsns = first..=first + rng.random_range(0..12);
                let term = group.term + u64::from(replaced > 0);
                open.append(id, lsns.clone(), term, rng.random_range(0..1500));
                group.append(lsns, term);
            }
            55..70 => {
                let lsn = rng.random_range(group.start.0..=group.last());
                if let Some(term) = group.entries.get(&lsn).copied() {
                    open.compact(id, floor(lsn, term));
                    group.start = (lsn, term);
                    group.entries = group.entries.split_off(&(lsn + 1));
                }
            }
            70..78 => {
                let start = floor(rng.random_range(0..group.last() + 20), group.term + 1);
                let tag = format!("{seed}-{step}").into_bytes();
                open.log.begin_group(GroupId(id), start, &tag).unwrap();
                *group = Found::begun(start.lsn.0, start.term.0, &tag);
                begun += 1;
            }
            78..93 => {
                let before = open.log.file_span().0;
                open.log.purge().unwrap();
                purged += u64::from(open.log.file_span().0 > before);
            }
            _ => {
                open.close();
                open = Open::new(keep.path(), &Faults::new());
                for (id, group) in (0..).zip(&groups) {
                    assert_eq!(&open.found(id), group, "seed {seed}, step {step}");
                }
                continue;
            }
        }
        assert_eq!(&open.found(id), group, "seed {seed}, step {step}");
    }
    open.close();
    let open = Open::new(keep.path(), &Faults::new());
    for (id, group) in (0..).zip(&groups) {
        assert_eq!(&open.found(id), group, "seed {seed}, in the end");
    }
    open.close();
    (begun, purged)
}

#[test]
fn a_beginning_that_cannot_be_written_leaves_the_old_log_and_can_be_tried_again() {
    for fault in [
        WriteFault::NoSpace,
        WriteFault::NoSpaceRotate,
        WriteFault::Io,
    ] {
        for bytes in [0, 1, 20, 60] {
            let keep = tempfile::tempdir().unwrap();
            let faults = Faults::new();
            let open = Open::new(keep.path(), &faults);
            open.append(0, 1..=20, 2, 10);
            let before = open.found(0);
            faults.fail_writes_after(bytes, fault);
            let begin = |open: &Open| open.log.begin_group(GroupId(0), floor(10, 3), b"new");
            let refused = begin(&open).unwrap_err();
            assert!(refused.to_string().contains("group 0"), "{refused}");
            faults.clear();
            assert_eq!(open.found(0), before);
            open.close();
            let open = Open::new(keep.path(), &Faults::new());
            assert_eq!(open.found(0), before, "{fault:?} after {bytes} bytes");
            begin(&open).unwrap();
            assert_eq!(open.found(0), Found::begun(10, 3, b"new"));
            open.close();
        }
    }
}

#[test]
fn a_power_cut_leaves_all_of_the_old_log_or_all_of_the_new_one() {
    // Several at once, beside the writer: if they did not take turns, a crash could tear more than
    // the last write, and the log would be refused as damaged.
    const BEGINNING: [u64; 3] = [0, 2, 3];
    let (mut old, mut new) = (0, 0);
    // Large enough that each of them can be torn by itself.
    let tag = vec![b'n'; 2000];
    // How far a beginning has come when the power goes is chance: it goes sooner where most of them have
    // ended by then, and later where few have, so that both happen on any machine.
    let mut latest = Duration::from_millis(4);
    for seed in 0..1500 {
        if seed >= 150 && old > 20 && new > 20 {
            break;
        }
        let keep = tempfile::tempdir().unwrap();
        let faults = Faults::new();
        faults.track_unsynced();
        let open = Open::new(keep.path(), &faults);
        for group in BEGINNING {
            open.append(group, 1..=20, 2, 10);
        }
        let before = open.found(0);
        let after = Found::begun(10, 3, &tag);
        faults.stall_sync(Duration::from_micros(seed % 5 * 500));
        let acknowledged = std::thread::scope(|scope| {
            scope.spawn(|| write_on(&open));
            let begins = BEGINNING.map(|group| {
                let (open, tag) = (&open, &tag);
                scope.spawn(move || {
                    // Without power, raft-engine fails or panics; the machine is off.
                    let begin = || {
                        let start = floor(10, 3);
                        open.log.begin_group(GroupId(group), start, tag)
                    };
                    let begin = std::panic::AssertUnwindSafe(begin);
                    matches!(std::panic::catch_unwind(begin), Ok(Ok(())))
                })
            });
            std::thread::sleep(latest.mul_f64((seed * 37 % 100) as f64 / 100.0));
            let finished = [0, 1, 2].map(|at| begins[at].is_finished());
            faults.power_cut(PowerCut::Tear { seed }).unwrap();
            let begun = begins.map(|begin| begin.join().unwrap());
            [0, 1, 2].map(|at| begun[at] && finished[at])
        });
        faults.bury();
        open.close();

        let open = Open::new(keep.path(), &Faults::new());
        for (group, acknowledged) in BEGINNING.into_iter().zip(acknowledged) {
            let found = open.found(group);
            assert!(found == after || found == before, "seed {seed}: {found:?}");
            assert!(found == after || !acknowledged, "seed {seed}: forgotten");
            match found == after {
                true => new += 1,
                false => old += 1,
            }
            let factor = if found == after { 0.95 } else { 1.05 };
            latest = latest.mul_f64(factor);
            latest = latest.clamp(Duration::from_micros(100), Duration::from_secs(1));
        }
        open.close();
    }
    assert!(old > 20 && new > 20, "{old} old ones, {new} new ones");
}

/// Another group's entries, one after the other, for a while.
fn write_on(open: &Open) {
    for lsn in 1..200 {
        let entry = Entry {
            index: lsn,
            term: 1,
            data: content(lsn, 1, 200).into(),
            ..Entry::default()
        };
        let persist = Persist {
            number: lsn,
            restart: None,
            entries: vec![entry],
            hard_state: HardState::default(),
        };
        open.writer.persist(GroupId(1), persist, Arc::new(Nobody));
        std::thread::sleep(Duration::from_micros(50));
    }
}

#[test]
fn an_installed_snapshot_empties_the_log_and_keeps_tag_term_and_vote() {
    let dir = tempfile::tempdir().unwrap();
    let open = Open::new(dir.path(), &Faults::default());
    let group = GroupId(3);
    open.log.begin_group(group, floor(0, 0), b"tag").unwrap();
    open.append(3, 1..=9, 2, 0);
    // In the same write group: the end of the old log, the restart, and entries of the new one.
    let entry = |lsn: u64, term| Entry {
        index: lsn,
        term,
        data: content(lsn, term, 0).into(),
        ..Entry::default()
    };
    let mut change = entry(51, 4);
    change.set_entry_type(raft::eraftpb::EntryType::EntryConfChangeV2);
    let persists = [
        (None, vec![entry(10, 2)]),
        (Some(floor(50, 3)), Vec::new()),
        (None, vec![change, entry(52, 4)]),
    ];
    for (number, (restart, entries)) in (1..).zip(persists) {
        let persist = Persist {
            number,
            restart,
            entries,
            hard_state: HardState {
                term: 4,
                vote: 7,
                commit: 50,
                ..HardState::default()
            },
        };
        open.writer.persist(group, persist, Arc::new(Nobody));
    }
    assert!(open.writer.flush(WAIT_TIMEOUT));
    let expected = Found {
        start: (50, 3),
        tag: Some(b"tag".to_vec()),
        term: 4,
        entries: BTreeMap::from([(51, 4), (52, 4)]),
    };
    assert_eq!(open.found(3), expected);
    open.close();

    let open = Open::new(dir.path(), &Faults::default());
    assert_eq!(open.found(3), expected, "also after a restart");
    let state = open.log.state(group).unwrap();
    assert_eq!((state.hard_state.vote, state.last_change), (7, Lsn(51)));
    assert!(state.continues(floor(51, 4), &*open.log.reader(group)));
    assert!(!state.continues(floor(51, 3), &*open.log.reader(group)));
    assert!(!state.continues(floor(53, 4), &*open.log.reader(group)));

    // A process that ended before the log was told.
    open.log.restart_group(group, floor(80, 4)).unwrap();
    open.append(3, 81..=82, 5, 0);
    open.close();
    let open = Open::new(dir.path(), &Faults::default());
    let state = open.log.state(group).unwrap();
    assert_eq!((state.start, state.last), (floor(80, 4), Lsn(82)));
    assert_eq!(open.found(3).tag.as_deref(), Some(&b"tag"[..]));
    open.log.restart_group(group, floor(90, 5)).unwrap();
    let state = open.log.state(group).unwrap();
    assert_eq!((state.hard_state.term, state.hard_state.commit), (5, 90));
    open.close();
}
