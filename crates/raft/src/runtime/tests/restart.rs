//! What is there after a restart; compaction, purge, stop.

use std::sync::Arc;

use super::*;
use crate::engine::{OpenError, Persist};
use crate::log::{LogWriter, SharedLog};

#[test]
fn acknowledged_proposals_survive_a_restart_without_a_flush() {
    let (_keep, dir) = scratch();
    let mut expected = [Vec::new(), Vec::new()];
    for round in 0..4 {
        // Nothing of the last round's state is left: all of it comes from the log.
        let stores = [Store::default(), Store::default()];
        let host = Host::start(&dir, &Faults::new(), &stores);
        for (group, (store, expected)) in host.groups.iter().zip(stores.iter().zip(&mut expected)) {
            assert_eq!(&store.commands(), expected, "round {round}");
            let commands = numbered(&format!("g{}-r{round}", group.id()), 50);
            execute_all(group, &commands);
            expected.extend(commands);
            assert_eq!(&store.commands(), expected);
        }
        host.stop();
    }
}

#[test]
fn a_restart_applies_only_what_the_database_does_not_have() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let mut expected = Vec::new();
    for round in 0..4 {
        // The machine opens on what was flushed, and asserts that the next entry is the first that
        // it is given.
        let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
        assert_eq!(store.commands(), expected, "round {round}");
        for half in ["a", "b"] {
            let commands = numbered(&format!("r{round}{half}"), 20);
            execute_all(&host.groups[0], &commands);
            expected.extend(commands);
            if half == "a" {
                store.flush();
            }
        }
        host.stop();
    }
}

#[test]
fn compaction_removes_entries_and_a_restart_begins_at_the_floor() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    let group = &host.groups[0];
    let mut expected = numbered("before", 30);
    execute_all(group, &expected);
    let floor = flush_and_compact(&host, 0);
    expected.extend(numbered("after", 5));
    execute_all(group, &expected[30..]);
    assert!(
        host.node.log().reader(GroupId(0)).term(floor).is_err(),
        "the entry at the floor is gone"
    );
    host.stop();

    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    assert_eq!(host.groups[0].status().floor, floor);
    assert_eq!(
        store.commands(),
        expected,
        "the flushed state and the log above the floor"
    );
    host.stop();

    // A state machine that has nothing cannot be brought up from this log.
    let (node, _) = Node::start(config(&dir), Faults::new()).unwrap();
    let refused = open_group(&node, 0, &Store::default()).err().unwrap();
    assert!(
        matches!(
            &refused,
            NodeError::Open { group: GroupId(0), source: OpenError::LogAheadOfDatabase { first, applied: Lsn(0) } }
                if *first == floor.next()
        ),
        "{refused}"
    );
    node.stop();
}

#[test]
fn a_database_that_is_ahead_of_its_log_is_refused() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    execute_all(&host.groups[0], &numbered("c", 10));
    store.flush();
    host.stop();

    let (_keep, other) = scratch();
    let (node, _) = Node::start(config(&other), Faults::new()).unwrap();
    let refused = open_group(&node, 0, &store).err().unwrap();
    assert!(
        matches!(
            &refused,
            NodeError::Open { source: OpenError::LogBehindDatabase { last: Lsn(0), applied }, .. }
                if *applied == store.applied()
        ),
        "{refused}"
    );
    node.stop();
}

#[test]
fn of_several_terms_and_votes_in_one_write_the_last_ones_are_kept() {
    struct Nobody;
    impl crate::log::Persisted for Nobody {
        fn persisted(&self, _number: u64) {}
    }
    let (_keep, dir) = scratch();
    let faults = Faults::new();
    let (log, _) = SharedLog::open(config(&dir).log, faults.clone()).unwrap();
    let writer = LogWriter::start(&log).unwrap();
    faults.stall_sync(Duration::from_millis(100));
    // All but the first wait for its sync, and then share one.
    for term in 1..=5 {
        let hard_state = raft::eraftpb::HardState {
            term,
            vote: term % 3 + 1,
            ..Default::default()
        };
        let persist = Persist {
            number: term,
            restart: None,
            entries: Vec::new(),
            hard_state,
        };
        writer.persist(GroupId(3), persist, Arc::new(Nobody));
    }
    assert!(writer.flush(WAIT_TIMEOUT));
    let groups = writer.counts().groups;
    assert!(groups < 5, "{groups} writes");
    faults.clear();
    writer.stop();
    drop((log, writer));

    let (log, _) = SharedLog::open(config(&dir).log, Faults::new()).unwrap();
    let found = log.state(GroupId(3)).unwrap().hard_state;
    assert_eq!((found.term, found.vote), (5, 3));
}

#[test]
fn a_thread_that_reads_two_logs_does_not_mix_them_up() {
    // The logs differ in what is in their entries, and in nothing else.
    let logs: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .map(|name| {
            let (keep, dir) = scratch();
            let host = Host::start(&dir, &Faults::new(), &[Store::default()]);
            let commands = numbered(name, 10);
            for command in &commands {
                execute(&host.groups[0], command).unwrap();
            }
            (keep, host, commands)
        })
        .collect();
    for at in 0..10 {
        for (_, host, commands) in &logs {
            // The empty entry comes first.
            let lsn = at as u64 + 2;
            let reader = host.node.log().reader(GroupId(0));
            let read = reader.entries(Lsn(lsn), Lsn(lsn + 1), 0).unwrap();
            assert_eq!(read.0[0].data, commands[at].as_bytes());
        }
    }
    for (_, host, _) in logs {
        host.stop();
    }
}

#[test]
fn a_log_that_is_flushed_compacted_and_purged_stays_small_and_loses_nothing() {
    let (_keep, dir) = scratch();
    let stores = [Store::default(), Store::default()];
    let mut expected = [Vec::new(), Vec::new()];
    for round in 0..6 {
        let host = Host::start(&dir, &Faults::new(), &stores);
        for n in 0..20 {
            // One group is busy, the other is nearly idle and holds files back.
            for (at, count) in [(0, 60), (1, usize::from(n % 7 == 0))] {
                let commands = numbered(&format!("r{round}-{n}"), count);
                execute_padded(&host.groups[at], &commands, 100);
                expected[at].extend(commands);
            }
            flush_and_compact(&host, 0);
            if n % 10 == 9 {
                flush_and_compact(&host, 1);
            }
            host.node.log().purge().unwrap();
        }
        assert!(
            host.node.log().used_bytes().unwrap() <= 8 * host.node.log().config().segment_size,
            "{} bytes are in use",
            host.node.log().used_bytes().unwrap()
        );
        for (store, expected) in stores.iter().zip(&expected) {
            assert_eq!(&store.commands(), expected, "round {round}");
        }
        host.stop();
    }
}

#[test]
fn entries_that_purge_brings_back_from_below_the_floor_do_no_harm() {
    // raft-engine notes a compaction in the append file of the day and forgets it with that file;
    // entries that it had copied to the rewrite queue are there again after a restart.
    let (_keep, dir) = scratch();
    let stores = [Store::default(), Store::default()];
    let host = Host::start(&dir, &Faults::new(), &stores);
    let (busy, idle) = (0, 1);
    let fill = |round: usize| {
        let commands = numbered(&format!("r{round}"), 400);
        execute_padded(&host.groups[busy], &commands, 500);
        flush_and_compact(&host, busy);
        host.node.log().purge().unwrap();
    };
    let commands = numbered("idle", 8);
    execute_all(&host.groups[idle], &commands[..5]);
    for round in 0..3 {
        fill(round);
    }
    // These are not copied: behind what comes back, there is a hole up to the floor.
    execute_all(&host.groups[idle], &commands[5..]);
    let floor = flush_and_compact(&host, idle);
    for round in 3..9 {
        fill(round);
    }
    host.stop();

    let host = Host::start(&dir, &Faults::new(), &stores);
    assert_eq!(stores[idle].commands(), commands);
    assert_eq!(host.groups[idle].status().floor, floor);
    for lsn in 1..=floor.0 {
        assert!(
            host.node.log().reader(GroupId(1)).term(Lsn(lsn)).is_err(),
            "LSN {lsn} is back"
        );
    }
    execute(&host.groups[idle], "more").unwrap();
    host.stop();
    let host = Host::start(&dir, &Faults::new(), &stores);
    assert_eq!(stores[idle].commands().len(), 9);
    host.stop();
}

#[test]
fn stop_answers_those_who_wait_with_unknown_and_loses_nothing_acknowledged() {
    for round in 0..20 {
        let (_keep, dir) = scratch();
        let store = Store::default();
        let faults = Faults::new();
        let host = Host::start(&dir, &faults, std::slice::from_ref(&store));
        faults.stall_sync(Duration::from_millis(5));
        let (mut acknowledged, mut unknown) = (Vec::new(), Vec::new());
        std::thread::scope(|scope| {
            let proposers: Vec<_> = (0..4)
                .map(|thread| {
                    let group = host.groups[0].clone();
                    scope.spawn(move || propose_until_stopped(&group, thread))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(7 + round));
            host.stop();
            for proposer in proposers {
                let (sure, unsure) = proposer.join().unwrap();
                acknowledged.push(sure);
                unknown.extend(unsure);
            }
        });
        let reopened = Store::default();
        let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&reopened));
        host.stop();
        let found = reopened.commands();
        for sure in &acknowledged {
            assert_contains_in_order(&found, sure, &format!("round {round}"));
        }
        let sure = acknowledged.iter().map(Vec::len).sum::<usize>();
        assert!(
            found.len() <= sure + unknown.len(),
            "round {round}: nothing else is there"
        );
    }
}

/// Proposes, several at a time, until that is refused. Returns what was acknowledged, and what became of is
/// unknown.
fn propose_until_stopped(group: &Group<Answer>, thread: usize) -> (Vec<String>, Vec<String>) {
    let (mut acknowledged, mut unknown) = (Vec::new(), Vec::new());
    for round in 0.. {
        let commands = numbered(&format!("t{thread}-{round}"), 5);
        let waiting: Vec<_> = commands
            .iter()
            .map_while(|c| group.propose(c.clone().into()).ok())
            .collect();
        let refused = waiting.len() < commands.len();
        for (command, waiting) in commands.into_iter().zip(waiting) {
            match answer(waiting) {
                Ok(_) => acknowledged.push(command),
                Err(ProposeError::Unknown) => unknown.push(command),
                Err(other) => panic!("{command}: {other}"),
            }
        }
        if refused {
            break;
        }
    }
    (acknowledged, unknown)
}
