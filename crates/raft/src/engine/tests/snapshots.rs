//! Hints, back-off, the guardrail, and what is compacted.

use std::ops::RangeInclusive;

use super::*;

/// Entries until a hint, the guardrail, and the first and longest back-off, in these tests.
const HINT: u64 = 10;
const GUARDRAIL: u64 = 30;
const BACKOFF: RangeInclusive<u64> = 4..=16;

fn config() -> Config {
    let mut config = Config::new(NodeId(1));
    config.snapshot_hint_threshold_entries = HINT;
    config.snapshot_hint_threshold_bytes = 0;
    config.snapshot_backoff_ticks = BACKOFF;
    config
}

/// A sole leader that has applied `applied` entries, and its disk.
fn leader(config: Config, applied: u64) -> (Engine, Disk) {
    let disk = Disk::default();
    let mut engine = open_with(config, &[1], &disk, 0).unwrap();
    settle(&mut engine, &disk, Event::Campaign);
    assert_eq!(hints(&grow(&mut engine, &disk, applied - 1)), [0; 0]);
    (engine, disk)
}

/// So many more entries are proposed, persisted and applied.
fn grow(engine: &mut Engine, disk: &Disk, entries: u64) -> Vec<Action> {
    let mut actions = Vec::new();
    for n in 0..entries {
        actions.extend(settle(engine, disk, propose(n, "c")));
    }
    actions
}

/// So many more entries are proposed and committed, and wait to be applied. How many were refused
/// as the log is full, and the other actions.
fn pile_up(engine: &mut Engine, disk: &Disk, entries: u64) -> (u64, Vec<Action>) {
    let (mut refused, mut others) = (0, Vec::new());
    for n in 0..entries {
        for action in engine.step(propose(n, "c")) {
            match action {
                Action::Rejected {
                    reason: RejectReason::LogFull,
                    ..
                } => refused += 1,
                Action::Persist(persist) => {
                    disk.write(&persist);
                    let number = persist.number;
                    others.extend(engine.step(Event::Persisted { number }));
                }
                other => others.push(other),
            }
        }
    }
    (refused, others)
}

fn hints(actions: &[Action]) -> Vec<u64> {
    let hint = |action: &Action| match action {
        Action::SnapshotHint {
            last_included_index,
        } => Some(last_included_index.0),
        _ => None,
    };
    actions.iter().filter_map(hint).collect()
}

fn alarms(actions: &[Action]) -> Vec<u64> {
    let alarm = |action: &Action| match action {
        Action::LogAlarm { entries } => Some(*entries),
        _ => None,
    };
    actions.iter().filter_map(alarm).collect()
}

fn take(engine: &mut Engine, lsn: u64) -> Vec<Action> {
    let event = taken(engine, lsn);
    engine.step(event)
}

/// Ticks until the next hint, at most `most`.
fn ticks_until_hint(engine: &mut Engine, most: u64) -> Option<u64> {
    (1..=most).find(|_| {
        assert!(engine.needs_ticks(), "a pending back-off needs ticks");
        !hints(&engine.step(Event::Tick)).is_empty()
    })
}

#[test]
fn a_hint_comes_when_so_many_entries_are_applied_past_the_floor() {
    let (mut engine, disk) = leader(config(), HINT - 1);
    assert_eq!(hints(&grow(&mut engine, &disk, 1)), [HINT]);
    assert_eq!(outline(&take(&mut engine, HINT)), "compact to 10@1");
    assert_eq!((engine.floor(), engine.log_start()), (Lsn(10), Lsn(10)));
    assert_eq!(hints(&grow(&mut engine, &disk, HINT - 1)), [0; 0]);
    assert_eq!(hints(&grow(&mut engine, &disk, 1)), [2 * HINT]);
}

#[test]
fn a_hint_comes_when_so_many_bytes_are_applied_past_the_floor() {
    let mut config = config();
    config.snapshot_hint_threshold_entries = 0;
    config.snapshot_hint_threshold_bytes = 10_000;
    let (mut engine, disk) = leader(config, 1);
    let large = |ticket| Event::Propose {
        ticket: Ticket(ticket),
        command: vec![7; 3000],
    };
    for ticket in 0..3 {
        assert_eq!(hints(&settle(&mut engine, &disk, large(ticket))), [0; 0]);
    }
    assert_eq!(hints(&settle(&mut engine, &disk, large(3))), [5]);
    // What is not covered counts on: three of these four are above the floor.
    take(&mut engine, 2);
    assert_eq!(hints(&settle(&mut engine, &disk, large(4))), [6]);
    take(&mut engine, 6);
    assert_eq!(engine.log_bytes(), 0);
    for ticket in 5..8 {
        assert_eq!(hints(&settle(&mut engine, &disk, large(ticket))), [0; 0]);
    }
    assert_eq!(hints(&settle(&mut engine, &disk, large(8))), [10]);
}

#[test]
fn without_thresholds_no_hint_ever_comes() {
    let mut config = config();
    config.snapshot_hint_threshold_entries = 0;
    let (mut engine, disk) = leader(config, 1);
    assert_eq!(hints(&grow(&mut engine, &disk, 500)), [0; 0]);
    let (refused, others) = pile_up(&mut engine, &disk, 500);
    assert_eq!((refused, alarms(&others)), (0, vec![]));
    assert!(!engine.needs_ticks());
}

#[test]
fn hints_during_an_attempt_are_one_hint_when_it_ends() {
    let (mut engine, disk) = leader(config(), HINT - 1);
    assert_eq!(hints(&grow(&mut engine, &disk, 1)), [HINT]);
    assert!(engine.step(Event::SnapshotBegun).is_empty());
    assert_eq!(hints(&grow(&mut engine, &disk, 3 * HINT)), [0; 0]);
    assert_eq!(
        outline(&take(&mut engine, HINT)),
        "compact to 10@1, hint at 40",
        "still over the threshold: at once"
    );
    assert_eq!(
        outline(&take(&mut engine, 35)),
        "compact to 35@1",
        "and not when it is no longer"
    );
}

#[test]
fn a_hint_that_the_host_does_not_begin_comes_again_at_each_crossing() {
    let (mut engine, disk) = leader(config(), HINT - 1);
    let said = hints(&grow(&mut engine, &disk, 3 * HINT));
    assert_eq!(said, [HINT, 2 * HINT, 3 * HINT], "by entries");
    assert!(engine.step(Event::SnapshotBegun).is_empty());
    assert_eq!(hints(&grow(&mut engine, &disk, 2 * HINT)), [0; 0]);

    let mut by_bytes = config();
    by_bytes.snapshot_hint_threshold_entries = 0;
    by_bytes.snapshot_hint_threshold_bytes = 10_000;
    let (mut engine, disk) = leader(by_bytes, 1);
    let mut said = Vec::new();
    for ticket in 0..12 {
        let large = Event::Propose {
            ticket: Ticket(ticket),
            command: vec![7; 3000],
        };
        said.extend(hints(&settle(&mut engine, &disk, large)));
    }
    assert_eq!(said, [5, 9, 13], "by bytes, with hints by entries disabled");
}

#[test]
fn a_failed_attempt_is_tried_again_also_below_every_threshold() {
    let (mut engine, disk) = leader(config(), 3);
    assert!(engine.step(Event::SnapshotBegun).is_empty());
    for silence in [4, 8, 16] {
        assert!(engine.step(Event::SnapshotFailed).is_empty());
        assert_eq!(ticks_until_hint(&mut engine, 1000), Some(silence));
        assert!(engine.step(Event::SnapshotBegun).is_empty());
    }
    assert_eq!(outline(&take(&mut engine, 3)), "compact to 3@1");
    assert!(!engine.needs_ticks(), "it has succeeded");
    assert_eq!(hints(&grow(&mut engine, &disk, HINT - 1)), [0; 0]);
}

#[test]
fn an_attempt_that_the_host_began_by_itself_holds_hints_back() {
    let (mut engine, disk) = leader(config(), HINT - 1);
    assert!(engine.step(Event::SnapshotBegun).is_empty());
    assert_eq!(hints(&grow(&mut engine, &disk, 3)), [0; 0]);
    assert!(
        engine.step(Event::SnapshotBegun).is_empty(),
        "twice is once"
    );
    assert_eq!(
        outline(&take(&mut engine, HINT - 1)),
        "compact to 9@1",
        "no more than three are above it"
    );
    assert_eq!(
        hints(&grow(&mut engine, &disk, HINT - 3)),
        [HINT - 1 + HINT]
    );
}

#[test]
fn after_each_failure_the_silence_doubles_up_to_a_limit_and_a_success_ends_it() {
    let (mut engine, disk) = leader(config(), HINT - 1);
    assert_eq!(hints(&grow(&mut engine, &disk, 1)), [HINT]);
    assert!(!engine.needs_ticks());
    for silence in [4, 8, 16, 16, 16] {
        assert!(engine.step(Event::SnapshotFailed).is_empty());
        assert_eq!(hints(&grow(&mut engine, &disk, 5)), [0; 0], "silent");
        assert_eq!(ticks_until_hint(&mut engine, 1000), Some(silence));
        assert!(!engine.needs_ticks(), "an attempt is under way");
    }
    take(&mut engine, HINT);
    engine.step(Event::SnapshotFailed);
    assert_eq!(ticks_until_hint(&mut engine, 1000), Some(4));
}

#[test]
fn a_failure_arms_the_guardrail_again_and_not_only_the_threshold() {
    for hint in [0, HINT] {
        let mut config = config();
        config.snapshot_hint_threshold_entries = hint;
        config.max_log_entries = GUARDRAIL;
        // Five are applied; apply lags behind the rest.
        let (mut engine, disk) = leader(config, 5);
        let (_, others) = pile_up(&mut engine, &disk, GUARDRAIL - 5);
        assert_eq!(hints(&others), [0; 0], "as many as the guardrail allows");
        let (_, others) = pile_up(&mut engine, &disk, 1);
        assert_eq!(hints(&others), [5]);
        for silence in [4, 8] {
            engine.step(Event::SnapshotFailed);
            assert_eq!(ticks_until_hint(&mut engine, 1000), Some(silence));
        }
        let said = outline(&take(&mut engine, 5));
        assert_eq!(said, "compact to 5@1", "26 above the floor are allowed");
    }
}

#[test]
fn after_a_snapshot_that_covers_less_than_required_the_next_hint_waits() {
    let (mut engine, disk) = leader(config(), HINT - 1);
    assert_eq!(hints(&grow(&mut engine, &disk, 1)), [HINT]);
    let old = Event::SnapshotTaken {
        last_included_index: Lsn(0),
        term: Term(0),
        peers: None,
    };
    assert!(engine.step(old).is_empty());
    assert_eq!(ticks_until_hint(&mut engine, 1000), Some(4));
}

#[test]
fn with_apply_stuck_at_the_floor_there_is_one_alarm_and_no_hint() {
    let mut config = config();
    config.max_log_entries = GUARDRAIL;
    let (mut engine, disk) = leader(config, 5);
    take(&mut engine, 5);
    let (refused, others) = pile_up(&mut engine, &disk, GUARDRAIL + 20);
    assert_eq!((refused, hints(&others)), (0, vec![]));
    assert_eq!(alarms(&others), [GUARDRAIL + 1], "once");
    assert!(engine.alarm());

    let moves = engine.step(Event::Applied { lsn: Lsn(6) });
    assert_eq!(outline(&moves), "hint at 6", "now a snapshot can help");
    assert!(!engine.alarm());
    assert_eq!(
        outline(&take(&mut engine, 6)),
        "compact to 6@1, alarm: 49",
        "the next episode"
    );
}

#[test]
fn at_twice_the_guardrail_proposals_are_refused_until_apply_moves() {
    let mut config = config();
    config.max_log_entries = GUARDRAIL;
    let (mut engine, disk) = leader(config, 5);
    take(&mut engine, 5);
    let (refused, _) = pile_up(&mut engine, &disk, 2 * GUARDRAIL + 7);
    assert_eq!(refused, 7);
    assert_eq!(engine.last(), Lsn(5 + 2 * GUARDRAIL));
    engine.step(Event::Applied { lsn: Lsn(6) });
    let accepted = outline(&engine.step(propose(1, "c")));
    assert!(accepted.starts_with("accepted"), "{accepted}");
}

#[test]
fn a_snapshot_moves_the_floor_and_one_that_covers_less_does_not() {
    let (mut engine, _) = leader(config(), HINT - 1);
    assert_eq!(outline(&take(&mut engine, 5)), "compact to 5@1");
    for lsn in [0, 3, 5] {
        assert!(take(&mut engine, lsn).is_empty());
        assert_eq!((engine.floor(), engine.log_start()), (Lsn(5), Lsn(5)));
    }
}

#[test]
fn bytes_are_described_by_the_engine_and_move_the_floor_once_they_are_stored() {
    let (mut engine, _) = leader(config(), HINT - 1);
    engine.step(Event::SnapshotBegun);
    let bytes = |lsn| Event::SnapshotBytes {
        last_included_index: Lsn(lsn),
        bytes: "state".into(),
    };
    let mut actions = engine.step(bytes(5));
    let Some(Action::StoreSnapshot {
        last_included_index,
        term,
        peers,
        bytes: stored,
    }) = actions.pop()
    else {
        panic!("{actions:?}");
    };
    assert_eq!((last_included_index, term), (Lsn(5), Term(1)));
    assert_eq!((&peers, &stored[..]), (engine.membership(), &b"state"[..]));
    assert_eq!(engine.floor(), Lsn(0), "nothing is durable yet");
    let taken = Event::SnapshotTaken {
        last_included_index,
        term,
        peers: Some(peers),
    };
    assert_eq!(outline(&engine.step(taken)), "compact to 5@1");

    // What is not applied cannot be in it.
    engine.step(Event::SnapshotBegun);
    assert!(engine.step(bytes(HINT)).is_empty());
    assert_eq!(
        ticks_until_hint(&mut engine, 1000),
        Some(4),
        "it has failed"
    );
}

#[test]
fn a_snapshot_that_the_log_contradicts_counts_for_nothing() {
    let (mut engine, _) = leader(config(), HINT - 1);
    for (lsn, term) in [(5, 2), (5, 0), (100, 1)] {
        let foreign = Event::SnapshotTaken {
            last_included_index: Lsn(lsn),
            term: Term(term),
            peers: None,
        };
        assert!(engine.step(foreign).is_empty());
        assert_eq!((engine.floor(), engine.log_start()), (Lsn(0), Lsn(0)));
    }
}

#[test]
fn nothing_is_compacted_before_it_is_applied() {
    let (mut engine, disk) = leader(config(), 5);
    pile_up(&mut engine, &disk, 4);
    // Its files hold what the host has written and not yet reported.
    assert_eq!(outline(&take(&mut engine, 8)), "compact to 5@1");
    assert_eq!(engine.floor(), Lsn(5));
    let actions = engine.step(Event::Applied { lsn: Lsn(7) });
    assert_eq!(outline(&actions), "compact to 7@1");
    let actions = engine.step(Event::Applied { lsn: Lsn(9) });
    assert_eq!(outline(&actions), "compact to 8@1");
    assert_eq!(engine.floor(), Lsn(8));
}

#[test]
fn the_log_is_compacted_up_to_the_floor_or_to_what_is_to_be_kept_whichever_is_lower() {
    let (mut engine, disk) = leader(config(), HINT - 1);
    let keep = |lsn| Event::KeepFrom { lsn: Lsn(lsn) };
    assert!(engine.step(keep(3)).is_empty(), "there is no snapshot yet");
    assert_eq!(outline(&take(&mut engine, 6)), "compact to 3@1");
    assert_eq!((engine.floor(), engine.log_start()), (Lsn(6), Lsn(3)));
    assert_eq!(outline(&engine.step(keep(4))), "compact to 4@1");
    assert!(engine.step(keep(2)).is_empty(), "what is gone is gone");
    assert!(take(&mut engine, 7).is_empty(), "a later one may be lower");
    assert_eq!(outline(&engine.step(keep(100))), "compact to 7@1");
    assert_eq!(
        hints(&grow(&mut engine, &disk, HINT - 2)),
        [7 + HINT],
        "hints go by the floor"
    );
}

#[test]
fn a_restart_keeps_what_was_kept_and_counts_its_entries_but_not_their_bytes() {
    let mut config = config();
    config.snapshot_hint_threshold_bytes = 1000;
    let (mut engine, disk) = leader(config.clone(), 5);
    settle(&mut engine, &disk, Event::KeepFrom { lsn: Lsn(2) });
    let snapshot = taken(&engine, 4);
    settle(&mut engine, &disk, snapshot);
    assert!(engine.log_bytes() > 0);
    drop(engine);

    let mut engine = open_with(config, &[1], &disk, 5).unwrap();
    assert_eq!((engine.floor(), engine.log_start()), (Lsn(2), Lsn(2)));
    assert_eq!((engine.last(), engine.log_bytes()), (Lsn(5), 0));
    engine.step(Event::KeepFrom { lsn: Lsn(2) });
    assert!(take(&mut engine, 4).is_empty());
    assert_eq!((engine.floor(), engine.log_start()), (Lsn(4), Lsn(2)));
    settle(&mut engine, &disk, Event::Campaign);
    assert_eq!(hints(&grow(&mut engine, &disk, HINT - 3)), [0; 0]);
    assert_eq!(hints(&grow(&mut engine, &disk, 1)), [4 + HINT]);
}

#[test]
fn a_host_has_time_to_report_its_newest_snapshot_before_a_hint() {
    let disk = Disk::with(&[1; 50], 50);
    // The log reaches far below the snapshot.
    let mut engine = open_with(config(), &[1], &disk, 45).unwrap();
    assert_eq!(hints(&settle(&mut engine, &disk, Event::Campaign)), [0; 0]);
    take(&mut engine, 43);
    assert!(!engine.needs_ticks());
    assert_eq!(hints(&grow(&mut engine, &disk, 1)), [0; 0]);
    assert_eq!(hints(&grow(&mut engine, &disk, 1)), [53]);

    // A host without one gets a hint soon.
    let disk = Disk::with(&[1; 50], 50);
    let mut engine = open_with(config(), &[1], &disk, 45).unwrap();
    assert_eq!(hints(&settle(&mut engine, &disk, Event::Campaign)), [0; 0]);
    assert_eq!(ticks_until_hint(&mut engine, 1000), Some(4));
}
