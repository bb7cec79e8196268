//! What an engine makes of the log and the state that it finds, and of the log's floor.

use super::*;

#[test]
fn the_commit_index_at_open_is_the_larger_of_stored_and_applied() {
    for (stored, applied, expected) in [(2, 4, 4), (4, 2, 4), (0, 3, 3), (3, 3, 3), (0, 0, 0)] {
        let disk = Disk::with(&[1, 1, 1, 2, 2], stored);
        let engine = open(1, &[1], &disk, applied).unwrap();
        assert_eq!(
            (engine.committed(), engine.applied(), engine.last()),
            (Lsn(expected), Lsn(applied), Lsn(5)),
            "stored {stored}, applied {applied}"
        );
    }
}

#[test]
fn a_reopened_member_applies_every_entry_once() {
    for applied in 0..=5 {
        // Committed up to 3, as far as is known before the election.
        let disk = Disk::with(&[1, 1, 1, 2, 2], 3);
        let mut engine = open(1, &[1], &disk, applied).unwrap();
        let actions = settle(&mut engine, &disk, Event::Campaign);
        let expected: Vec<_> = (applied + 1..=5).map(|lsn| lsn.to_string()).collect();
        assert_eq!(commands(&actions), expected, "after {applied}");
        assert_eq!(
            engine.applied(),
            Lsn(6),
            "the beginning of the new term follows"
        );
    }
}

#[test]
fn an_entry_that_was_never_acknowledged_may_land_when_the_log_is_reopened() {
    let disk = Disk::with(&[1], 1);
    let mut engine = open(1, &[1], &disk, 1).unwrap();
    settle(&mut engine, &disk, Event::Campaign);
    let actions = engine.step(propose(0, "written"));
    let Some(Action::Persist(persist)) = actions.into_iter().next_back() else {
        panic!("a proposal is persisted");
    };
    disk.write(&persist);
    // It is in the log, and was not sent to any peer.
    drop(engine);
    let mut engine = open(1, &[1], &disk, 1).unwrap();
    let actions = settle(&mut engine, &disk, Event::Campaign);
    assert_eq!(commands(&actions), ["written"]);
}

#[test]
fn a_log_that_ends_before_the_database_is_refused() {
    let disk = Disk::with(&[1, 1, 1], 3);
    let refused = open(1, &[1], &disk, 4).err().unwrap();
    assert!(
        matches!(
            refused,
            OpenError::LogBehindDatabase {
                last: Lsn(3),
                applied: Lsn(4)
            }
        ),
        "{refused}"
    );
    assert!(open(1, &[1], &disk, 3).is_ok());
}

#[test]
fn a_log_that_begins_after_the_database_is_refused() {
    let disk = Disk::with(&[1, 1, 1, 2, 2], 5);
    disk.compact(LogFloor {
        lsn: Lsn(3),
        term: Term(1),
    });
    let refused = open(1, &[1], &disk, 2).err().unwrap();
    assert!(
        matches!(
            refused,
            OpenError::LogAheadOfDatabase {
                first: Lsn(4),
                applied: Lsn(2)
            }
        ),
        "{refused}"
    );
    assert!(open(1, &[1], &disk, 3).is_ok(), "the next entry is there");
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    type Break = fn(&mut Config);
    let broken: [(Break, &str); 5] = [
        (|c| c.heartbeat_ticks = c.election_ticks, ""),
        (|c| c.max_log_entries = 10_000, "max_log_entries (10000)"),
        (|c| c.max_log_entries = 1, "max_log_entries (1)"),
        (
            |c| c.snapshot_backoff_ticks = 0..=5,
            "snapshot_backoff_ticks",
        ),
        #[allow(clippy::reversed_empty_ranges)]
        (
            |c| c.snapshot_backoff_ticks = 6..=5,
            "snapshot_backoff_ticks",
        ),
    ];
    for (make_broken, names) in broken {
        let mut config = Config::new(NodeId(1));
        make_broken(&mut config);
        let refused = open_with(config, &[1], &Disk::default(), 0).err().unwrap();
        assert!(matches!(refused, OpenError::Config(_)), "{refused}");
        assert!(refused.to_string().contains(names), "{refused}");
    }
    for (entries, guardrail) in [(0, 1), (5, 6), (5, 0), (0, 0)] {
        let mut config = Config::new(NodeId(1));
        config.snapshot_hint_threshold_entries = entries;
        config.max_log_entries = guardrail;
        open_with(config, &[1], &Disk::default(), 0).unwrap();
    }
}

#[test]
fn the_log_start_keeps_the_term_of_the_last_removed_entry() {
    for (lsn, term) in [(1, 1), (2, 1), (3, 4), (4, 4), (5, 6), (6, 7), (7, 7)] {
        let disk = Disk::with(&[1, 1, 4, 4, 6], 5);
        let mut engine = open(1, &[1], &disk, 5).unwrap();
        settle(&mut engine, &disk, Event::Campaign);
        settle(&mut engine, &disk, propose(0, "new"));
        let snapshot = taken(&engine, lsn);
        let actions = settle(&mut engine, &disk, snapshot);
        assert_eq!(outline(&actions), format!("compact to {lsn}@{term}"));

        // Also if it was the last one of all, a new engine goes on from there.
        let mut engine = open(1, &[1], &disk, 7).unwrap();
        assert_eq!((engine.log_start(), engine.last()), (Lsn(lsn), Lsn(7)));
        let actions = settle(&mut engine, &disk, Event::Campaign);
        assert_eq!(
            outline(&actions),
            "became Leader in term 8, persist [8@8], apply [8@8]"
        );
    }
}
