//! The state after a failed step, a reopening, a crash.

use std::sync::Arc;

use bytes::Bytes;
use esker_raft::{Committed, Lsn, Membership, NodeId, StateMachine as _, Term};

use super::fixture::*;
use crate::checkpoint::Checkpoint;
use crate::command::{Append, Kind, Outcome, ProvisionBasin};
use crate::ids::{BasinId, StreamId};

const OTHER: BasinId = BasinId(2);
const DROPPED: BasinId = BasinId(3);
const BASINS: [BasinId; 3] = [BASIN, OTHER, DROPPED];

/// Commands of every kind.
fn commands() -> Vec<Kind> {
    let session = |session, append| Append { session, ..append };
    let mismatch = |append| Append {
        match_seq_num: Some(99),
        ..append
    };
    let (one, two, four) = (StreamId(1), StreamId(2), StreamId(4));
    vec![
        create(BASIN, "one", keep_for_secs(60)),
        create(OTHER, "two", keep_for_secs(0)),
        Kind::Append(bodies(one, 2_000, ["a", "b", "c"])),
        create(DROPPED, "three", keep_for_secs(1)),
        Kind::Append(append(two, 2_010, vec![fence("t"), timed(1, "x")])),
        Kind::Append(session(5, mismatch(bodies(one, 2_015, ["never"])))),
        Kind::Append(session(5, bodies(one, 2_015, ["never"]))),
        set_settings(one, 1, keep_for_secs(90)),
        Kind::Append(append(one, 2_020, vec![trim(2), rec("d")])),
        drop_basin(DROPPED),
        create(BASIN, "four", keep_for_secs(0)),
        Kind::Append(bodies(four, 2_030, ["e"])),
        delete(BASIN, "four"),
        create(BASIN, "four", keep_for_secs(5)),
        expire(one, 4, 2_040),
        Kind::Append(bodies(StreamId(5), 2_050, ["f"])),
        delete_if_empty(two, 2_010),
        Kind::Append(session(6, bodies(two, 2_060, ["g"]))),
    ]
}

#[test]
fn a_failed_step_leaves_nothing_behind_and_can_be_applied_again() {
    let truncated = {
        let mut append = append(StreamId(1), 2_000, vec![trim(1), rec("some body")]);
        append.body = append.body.slice(..append.body.len() - 3);
        bytes_of(Kind::Append(append))
    };
    let for_the_catalog = bytes_of(Kind::ProvisionBasin(ProvisionBasin {
        name: "basin".to_owned(),
        ..ProvisionBasin::default()
    }));
    let malformed: [Bytes; 6] = [
        Bytes::new(),
        Bytes::from_static(b"\x01"),
        Bytes::from_static(b"\x02\x0a\x00"),
        Bytes::from_static(b"\x01\xff\xff"),
        for_the_catalog,
        truncated,
    ];
    let mut partition = Fixture::new();
    partition.create("one");
    partition.append(bodies(StreamId(1), 2_000, ["a"])).unwrap();
    let held = partition.stream("one");
    let follower = held.follow();

    let good = || -> Vec<Bytes> {
        vec![
            bytes_of(Kind::Append(append(
                StreamId(1),
                3_000,
                vec![fence("t"), trim(1), rec("b")],
            ))),
            bytes_of(create(BASIN, "two", keep_for_secs(0))),
            bytes_of(Kind::Append(bodies(StreamId(2), 3_000, ["c"]))),
            bytes_of(delete(BASIN, "one")),
            bytes_of(drop_basin(OTHER)),
        ]
    };
    for (i, malformed) in malformed.into_iter().enumerate() {
        let before = partition.content(&BASINS);
        let mut step = good();
        step.push(malformed);

        let error = partition.try_bytes(step).unwrap_err();

        assert!(error.0.contains("LSN 8"), "it says where: {}", error.0);
        assert_eq!(partition.content(&BASINS), before, "malformed command {i}");
        assert_eq!(held.tail(), position(1, 2_000));
        assert!(!held.view().gone);
        assert_eq!(partition.crashed_copy().applied(), 0);
    }
    drop((held, follower));
    partition.reopen();
    assert_eq!(partition.applied(), 2);
    assert_eq!(partition.texts("one"), ["a"]);

    let outcomes = partition.try_bytes(good()).unwrap();
    assert_eq!(provisioned(outcomes[1].clone()).unwrap().id, StreamId(2));
    assert_eq!(outcomes[3], Outcome::StreamDeleted(true));
    assert_eq!(partition.texts("two"), ["c"]);
}

#[test]
fn a_malformed_append_fails_whether_or_not_somebody_follows() {
    for follow in [false, true] {
        let mut partition = Fixture::new();
        let stream = partition.create("s");
        let handle = partition.stream("s");
        let _follower = follow.then(|| handle.follow());
        let whole = bodies(stream, 2_000, ["a", "b"]);
        let malformed = [
            Append {
                count: 0,
                body: Bytes::new(),
                ..whole.clone()
            },
            Append {
                count: 3,
                ..whole.clone()
            },
            Append {
                count: 1,
                ..whole.clone()
            },
            Append {
                body: whole.body.slice(..whole.body.len() - 1),
                ..whole.clone()
            },
            Append {
                count: 1000,
                ..whole.clone()
            },
        ];
        for append in malformed {
            let command = bytes_of(Kind::Append(append.clone()));
            assert!(
                partition.try_bytes(vec![command]).is_err(),
                "followed: {follow}, {append:?}"
            );
            assert_eq!(handle.tail(), position(0, 0));
        }
        partition.append(whole).unwrap();
        assert_eq!(partition.texts("s"), ["a", "b"]);
    }
}

#[test]
fn an_empty_entry_moves_the_position_and_nothing_else() {
    let mut partition = Fixture::new();
    partition.create("s");
    let before = partition.content(&[BASIN]).streams;
    let entry = Committed {
        lsn: Lsn(2),
        term: Term(3),
        command: None,
        membership: None,
        checksum: 0,
    };
    let mut outcomes = Vec::new();
    partition.machine().apply(&[entry], &mut outcomes).unwrap();
    assert_eq!(outcomes, []);
    assert_eq!(partition.applied(), 2);
    assert_eq!(partition.content(&[BASIN]).streams, before);
    partition.reopen();
    let applied = partition.partition_db().applied().unwrap().unwrap();
    assert_eq!((applied.lsn, applied.term), (2, 3));
    assert!(
        partition
            .machine()
            .membership()
            .voters
            .iter()
            .eq(&[NodeId(7)])
    );
}

/// A membership in the middle of a change, with every list different.
fn joint() -> Membership {
    let nodes = |numbers: &[u64]| numbers.iter().copied().map(NodeId).collect();
    Membership {
        voters: nodes(&[7, 8]),
        learners: nodes(&[10, 11]),
        voters_outgoing: nodes(&[7, 9]),
        learners_next: nodes(&[9]),
        to_promote: nodes(&[11]),
    }
}

fn change(lsn: u64, membership: Membership) -> Committed {
    Committed {
        lsn: Lsn(lsn),
        term: Term(3),
        command: None,
        membership: Some(Arc::new(membership)),
        checksum: 0,
    }
}

fn empty(lsn: u64) -> Committed {
    Committed {
        lsn: Lsn(lsn),
        term: Term(3),
        command: None,
        membership: None,
        checksum: 0,
    }
}

#[test]
fn the_membership_is_that_of_the_applied_entries_across_reopenings_and_checkpoints() {
    let mut partition = Fixture::new();
    partition.create("s");
    let next = partition.applied() + 1;
    let first = Membership {
        voters: vec![NodeId(7), NodeId(8)],
        ..Membership::default()
    };
    // The last change of a step is in force, wherever in the step it is.
    let step = [
        change(next, first),
        change(next + 1, joint()),
        empty(next + 2),
    ];
    partition.apply_entries(&step);
    assert_eq!(partition.machine().membership(), joint());
    // An entry that changes nothing leaves it as it is.
    let step = [empty(next + 3)];
    partition.apply_entries(&step);
    assert_eq!(partition.machine().membership(), joint());

    partition.reopen();
    assert_eq!(partition.machine().membership(), joint(), "after a restart");

    let checkpoint = partition.checkpoint();
    assert_eq!(Membership::from(&checkpoint.meta.members), joint());
    let reread = Checkpoint::open(&checkpoint.dir).unwrap();
    assert_eq!(reread.meta, checkpoint.meta);
    let mut elsewhere = partition.imported(&checkpoint);
    assert_eq!(elsewhere.machine().membership(), joint(), "after an import");
}

#[test]
fn a_fork_leaves_one_voter_and_nobody_else() {
    let mut partition = Fixture::new();
    let next = partition.applied() + 1;
    let step = [change(next, joint())];
    partition.apply_entries(&step);
    let part = partition.partition_db();
    let lineage = part.lineage().unwrap();
    part.fork(&lineage, &[12]).unwrap();
    let alone = Membership {
        voters: vec![NodeId(12)],
        ..Membership::default()
    };
    assert_eq!(part.applied().unwrap().unwrap().membership(), alone);
}

#[test]
#[should_panic(expected = "already applied")]
fn an_entry_is_not_applied_twice() {
    let mut partition = Fixture::new();
    partition.create("s");
    let entry = Committed {
        lsn: Lsn(1),
        term: Term(1),
        command: None,
        membership: None,
        checksum: 0,
    };
    let _ = partition.machine().apply(&[entry], &mut Vec::new());
}

#[test]
fn a_reopening_at_any_point_changes_nothing() {
    let commands = commands();
    let mut partition = Fixture::new();
    let mut never_reopened = Fixture::new();
    for command in commands {
        let outcome = never_reopened.apply(command.clone());
        assert_eq!(partition.apply(command), outcome);
        partition.reopen();
        assert_eq!(partition.content(&BASINS), never_reopened.content(&BASINS));
    }
}

#[test]
fn how_the_log_is_cut_into_steps_changes_nothing() {
    let commands = commands();
    let mut one_by_one = Fixture::new();
    let expected: Vec<Outcome> = commands
        .iter()
        .map(|c| one_by_one.apply(c.clone()))
        .collect();
    for size in 2..=commands.len() {
        let mut partition = Fixture::new();
        let mut outcomes = Vec::new();
        for step in commands.chunks(size) {
            outcomes.extend(partition.step(step.to_vec()));
        }
        assert_eq!(outcomes, expected, "steps of {size}");
        assert_eq!(partition.content(&BASINS), one_by_one.content(&BASINS));
    }
}

#[test]
fn durable_is_what_was_flushed() {
    let mut partition = Fixture::new();
    assert_eq!(partition.durable(), 0);
    let stream = partition.create("s");
    partition.append(bodies(stream, 2_000, ["a"])).unwrap();
    assert_eq!((partition.applied(), partition.durable()), (2, 0));
    partition.flush();
    assert_eq!((partition.applied(), partition.durable()), (2, 2));
    partition.append(bodies(stream, 2_000, ["b"])).unwrap();
    assert_eq!((partition.applied(), partition.durable()), (3, 2));
    partition.reopen();
    assert_eq!((partition.applied(), partition.durable()), (3, 3));
    partition.append(bodies(stream, 2_000, ["c"])).unwrap();
    assert_eq!((partition.applied(), partition.durable()), (4, 3));
}

#[test]
fn a_crash_loses_only_what_the_log_brings_back() {
    let commands = commands();
    for flushed in 0..=commands.len() {
        let mut partition = Fixture::new();
        for command in &commands[..flushed] {
            partition.apply(command.clone());
        }
        partition.flush();
        let at_the_flush = partition.content(&BASINS);
        let lost: Vec<Outcome> = commands[flushed..]
            .iter()
            .map(|command| partition.apply(command.clone()))
            .collect();
        let at_the_end = partition.content(&BASINS);

        let mut copy = partition.crashed_copy();

        assert_eq!(
            copy.applied(),
            flushed as u64,
            "only what was flushed is there"
        );
        assert_eq!(copy.durable(), flushed as u64);
        assert_eq!(copy.content(&BASINS), at_the_flush);
        assert_eq!(copy.replay(1 + flushed % 4), lost);
        assert_eq!(copy.content(&BASINS), at_the_end);
    }
}

#[test]
fn flushes_in_the_background_leave_no_half_steps() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    // Some eight memtables, so that RocksDB flushes by itself.
    for i in 0..140u64 {
        let records = vec![rec(vec![7; 500_000]), fence(&i.to_string())];
        partition
            .append(append(stream, 2_000 + i, records))
            .unwrap();
        if i % 35 == 34 {
            let before = partition.content(&[BASIN]);
            partition.stop_and_open();
            let applied = partition.applied();
            assert_eq!(partition.durable(), applied);
            assert!(applied < before.applied, "the last memtable is lost");
            if applied > 1 {
                let state = partition.state("s");
                assert_eq!(state.tail_seq, 2 * (applied - 1));
                assert_eq!(state.fencing_token, (applied - 2).to_string());
                assert_eq!(partition.texts("s").len() as u64, state.tail_seq);
            }
            partition.replay(10);
            assert_eq!(partition.content(&[BASIN]), before);
        }
    }
    assert!(partition.durable() > 1, "something was flushed meanwhile");
}
