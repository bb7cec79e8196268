//! Tests that the checker finds each fault that a server can have, and none where there is none.

use super::*;

fn id(writer: u32, index: u64) -> RecordId {
    RecordId { writer, index }
}

fn attempt(writer: u32, index: u64, count: u64) -> Attempt {
    Attempt {
        first: id(writer, index),
        count,
        session: None,
    }
}

fn in_session(session: u32, attempt: Attempt) -> Attempt {
    Attempt {
        session: Some(session),
        ..attempt
    }
}

/// A stream that holds `ids` from sequence number 0 on.
fn stream(ids: &[RecordId]) -> Vec<Seen> {
    (0..)
        .zip(ids)
        .map(|(seq_num, id)| Seen {
            seq_num,
            timestamp: 1000 + seq_num,
            id: Some(*id),
        })
        .collect()
}

/// A history in which writer 1 has three acknowledged records, at 0, 1 and 2.
fn three_acked() -> History {
    let mut history = History::default();
    for index in 0..3 {
        let attempt = history.begin(attempt(1, index, 1));
        history.settle(attempt, Outcome::Acked(index));
    }
    history
}

fn violations(history: &mut History, contents: &[Seen], tail: u64) -> Vec<Violation> {
    let verdict = history.check(contents, tail);
    assert_eq!(
        verdict.violations.len(),
        verdict.violation_count.min(REPORTED_AT_MOST)
    );
    verdict.violations
}

#[test]
fn a_stream_that_holds_what_was_acknowledged_passes() {
    let contents = stream(&[id(1, 0), id(1, 1), id(1, 2)]);
    assert_eq!(violations(&mut three_acked(), &contents, 3), []);
}

#[test]
fn an_empty_stream_of_which_nothing_was_acknowledged_passes() {
    assert_eq!(violations(&mut History::default(), &[], 0), []);
}

#[test]
fn a_lost_record_at_the_end_is_found() {
    let contents = stream(&[id(1, 0), id(1, 1)]);
    let found = violations(&mut three_acked(), &contents, 2);
    let lost = Violation::Lost {
        id: id(1, 2),
        seq_num: 2,
    };
    assert!(found.contains(&lost), "{found:?}");
    assert!(found.contains(&Violation::TailWentBack { tail: 2, before: 3 }));
}

#[test]
fn a_lost_record_in_the_middle_is_found() {
    // The server closed the gap: later records moved up.
    let contents = stream(&[id(1, 0), id(1, 2)]);
    let found = violations(&mut three_acked(), &contents, 2);
    let lost = Violation::Lost {
        id: id(1, 1),
        seq_num: 1,
    };
    assert!(found.contains(&lost), "{found:?}");
}

#[test]
fn a_whole_stream_that_is_gone_is_found() {
    let found = violations(&mut three_acked(), &[], 0);
    let lost = |violation: &&Violation| matches!(violation, Violation::Lost { .. });
    assert_eq!(found.iter().filter(lost).count(), 3);
}

#[test]
fn a_duplicate_is_found() {
    let contents = stream(&[id(1, 0), id(1, 1), id(1, 2), id(1, 2)]);
    let duplicate = Violation::Duplicate {
        id: id(1, 2),
        first: 2,
        second: 3,
    };
    assert_eq!(violations(&mut three_acked(), &contents, 4), [duplicate]);
}

#[test]
fn an_append_with_a_lost_answer_may_be_there_once_but_not_twice() {
    let append_one_unknown = || {
        let mut history = History::default();
        history.begin(attempt(1, 0, 1));
        history
    };
    assert_eq!(violations(&mut append_one_unknown(), &[], 0), []);
    let once = stream(&[id(1, 0)]);
    assert_eq!(violations(&mut append_one_unknown(), &once, 1), []);
    let twice = stream(&[id(1, 0), id(1, 0)]);
    let found = violations(&mut append_one_unknown(), &twice, 2);
    assert!(
        matches!(found[..], [Violation::Duplicate { .. }]),
        "{found:?}"
    );
}

#[test]
fn a_reorder_of_acknowledged_records_is_found() {
    let contents = stream(&[id(1, 1), id(1, 0), id(1, 2)]);
    let found = violations(&mut three_acked(), &contents, 3);
    let other = Violation::OtherData {
        seq_num: 0,
        acked: id(1, 0),
        found: Some(id(1, 1)),
    };
    assert!(found.contains(&other), "{found:?}");
    let reordered = Violation::Reordered {
        id: id(1, 1),
        seq_num: 0,
        earlier_at: 1,
    };
    assert!(found.contains(&reordered), "{found:?}");
}

#[test]
fn a_reorder_of_a_writer_s_unacknowledged_appends_is_found() {
    let mut history = History::default();
    history.begin(attempt(1, 0, 1));
    history.begin(attempt(1, 1, 1));
    let contents = stream(&[id(1, 1), id(1, 0)]);
    let found = violations(&mut history, &contents, 2);
    assert!(
        matches!(found[..], [Violation::Reordered { .. }]),
        "{found:?}"
    );
}

#[test]
fn writers_may_interleave_in_any_order() {
    let mut history = History::default();
    for index in 0..2 {
        history.begin(attempt(1, index, 1));
        history.begin(attempt(2, index, 1));
    }
    let contents = stream(&[id(2, 0), id(2, 1), id(1, 0), id(1, 1)]);
    assert_eq!(violations(&mut history, &contents, 4), []);
}

#[test]
fn a_hole_in_the_sequence_numbers_is_found() {
    let mut history = History::default();
    for (index, seq_num) in [(0, 0), (1, 2)] {
        let attempt = history.begin(attempt(1, index, 1));
        history.settle(attempt, Outcome::Acked(seq_num));
    }
    let mut contents = stream(&[id(1, 0), id(1, 1)]);
    contents[1].seq_num = 2;
    let hole = Violation::Hole {
        expected: 1,
        found: 2,
    };
    assert_eq!(violations(&mut history, &contents, 3), [hole]);
}

#[test]
fn a_stream_that_does_not_begin_at_zero_has_a_hole() {
    let mut history = History::default();
    let only = history.begin(attempt(1, 0, 1));
    history.settle(only, Outcome::Acked(5));
    let mut contents = stream(&[id(1, 0)]);
    contents[0].seq_num = 5;
    let found = violations(&mut history, &contents, 6);
    assert!(matches!(found[..], [Violation::Hole { .. }]), "{found:?}");
}

#[test]
fn other_data_at_a_position_is_found() {
    let mut history = three_acked();
    let other = history.begin(attempt(2, 0, 1));
    history.settle(other, Outcome::Unknown);
    let contents = stream(&[id(1, 0), id(2, 0), id(1, 2)]);
    let found = violations(&mut history, &contents, 3);
    let other = Violation::OtherData {
        seq_num: 1,
        acked: id(1, 1),
        found: Some(id(2, 0)),
    };
    assert!(found.contains(&other), "{found:?}");
}

#[test]
fn a_damaged_body_is_found() {
    let mut contents = stream(&[id(1, 0), id(1, 1), id(1, 2)]);
    contents[1].id = None;
    let found = violations(&mut three_acked(), &contents, 3);
    let foreign = Violation::Foreign {
        seq_num: 1,
        id: None,
    };
    assert!(found.contains(&foreign), "{found:?}");
}

#[test]
fn a_record_that_nobody_sent_is_found() {
    for stranger in [id(1, 3), id(9, 0)] {
        let contents = stream(&[id(1, 0), id(1, 1), id(1, 2), stranger]);
        let foreign = Violation::Foreign {
            seq_num: 3,
            id: Some(stranger),
        };
        assert_eq!(violations(&mut three_acked(), &contents, 4), [foreign]);
    }
}

#[test]
fn a_refused_append_that_is_there_is_found() {
    let mut history = three_acked();
    let refused = history.begin(attempt(2, 0, 1));
    history.settle(refused, Outcome::Refused);
    let contents = stream(&[id(1, 0), id(1, 1), id(1, 2), id(2, 0)]);
    let expected = Violation::Refused {
        id: id(2, 0),
        seq_num: 3,
    };
    assert_eq!(violations(&mut history, &contents, 4), [expected]);
}

#[test]
fn half_an_append_is_found() {
    let torn = |contents: &[RecordId]| {
        let mut history = History::default();
        history.begin(attempt(1, 0, 3));
        history.begin(attempt(2, 0, 1));
        let contents = stream(contents);
        violations(&mut history, &contents, contents.len() as u64)
    };
    assert_eq!(torn(&[id(1, 0), id(1, 1), id(1, 2), id(2, 0)]), []);
    for contents in [
        vec![id(1, 0), id(1, 1)],
        vec![id(1, 1), id(1, 2)],
        // Complete, but with another record in between.
        vec![id(1, 0), id(2, 0), id(1, 1), id(1, 2)],
    ] {
        let found = torn(&contents);
        assert!(matches!(found[..], [Violation::Torn { .. }]), "{found:?}");
    }
}

#[test]
fn a_session_may_lose_its_end_but_not_its_middle() {
    let session = || {
        let mut history = History::default();
        for index in 0..3 {
            history.begin(in_session(7, attempt(1, index, 1)));
        }
        history
    };
    let end_lost = stream(&[id(1, 0), id(1, 1)]);
    assert_eq!(violations(&mut session(), &end_lost, 2), []);
    let middle_lost = stream(&[id(1, 0), id(1, 2)]);
    let skipped = Violation::SessionSkipped {
        missing: id(1, 1),
        present: id(1, 2),
    };
    assert_eq!(violations(&mut session(), &middle_lost, 2), [skipped]);
}

#[test]
fn a_tail_that_does_not_follow_the_records_is_found() {
    let contents = stream(&[id(1, 0), id(1, 1), id(1, 2)]);
    let found = violations(&mut three_acked(), &contents, 7);
    assert_eq!(found, [Violation::Tail { tail: 7, end: 3 }]);
}

#[test]
fn a_timestamp_that_goes_back_is_found() {
    let mut contents = stream(&[id(1, 0), id(1, 1), id(1, 2)]);
    contents[2].timestamp = 1;
    let found = violations(&mut three_acked(), &contents, 3);
    assert_eq!(found, [Violation::TimeWentBack { seq_num: 2 }]);
}

#[test]
fn what_a_follower_saw_must_still_be_there() {
    let contents = stream(&[id(1, 0), id(1, 1), id(1, 2)]);
    let check = |seen: &[Seen]| {
        let mut history = three_acked();
        history.begin(attempt(2, 0, 1));
        let follower = history.follower();
        for record in seen {
            history.saw(follower, *record);
        }
        violations(&mut history, &contents, 3)
    };
    assert_eq!(check(&contents), []);
    assert_eq!(check(&contents[1..]), []);

    let mut other = contents.clone();
    other[1].id = Some(id(2, 0));
    let found = check(&other);
    assert!(
        matches!(found[..], [Violation::FollowerSaw { seq_num: 1, .. }]),
        "{found:?}"
    );

    let mut other_time = contents.clone();
    other_time[1].timestamp += 1;
    let found = check(&other_time);
    assert!(
        matches!(found[..], [Violation::FollowerSaw { seq_num: 1, .. }]),
        "{found:?}"
    );

    // A record that was delivered and is gone after the restart.
    let gone = stream(&[id(1, 0), id(1, 1), id(1, 2), id(2, 0)]);
    let found = check(&gone);
    let saw_gone = |violation: &Violation| {
        matches!(
            violation,
            Violation::FollowerSaw {
                seq_num: 3,
                found: None,
                ..
            }
        )
    };
    assert!(found.iter().any(saw_gone), "{found:?}");

    let skipping = [contents[0], contents[2]];
    let hole = Violation::FollowerHole {
        expected: 1,
        found: 2,
    };
    assert_eq!(check(&skipping), [hole]);
}

#[test]
fn what_an_append_turned_out_to_be_stays_so() {
    let mut history = History::default();
    history.begin(attempt(1, 0, 1));
    history.begin(attempt(2, 0, 1));
    let first = stream(&[id(1, 0)]);
    let verdict = history.check(&first, 1);
    assert_eq!((verdict.landed, verdict.vanished), (1, 1));

    // It was there after the first restart and is gone after the second.
    let found = violations(&mut history, &[], 0);
    let lost = |violation: &Violation| matches!(violation, Violation::Lost { .. });
    assert!(found.iter().any(lost), "{found:?}");

    // It was not there after the first restart and appears after the second.
    let late = stream(&[id(1, 0), id(2, 0)]);
    let refused = Violation::Refused {
        id: id(2, 0),
        seq_num: 1,
    };
    assert_eq!(violations(&mut history, &late, 2), [refused]);
}

#[test]
fn a_lost_stream_does_not_flood_the_report() {
    let mut history = History::default();
    let all = history.begin(attempt(1, 0, 1000));
    history.settle(all, Outcome::Acked(0));
    let verdict = history.check(&[], 0);
    assert_eq!(verdict.violations.len(), REPORTED_AT_MOST);
    assert!(verdict.violation_count >= 1000);
}
