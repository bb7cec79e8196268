//! A group of one: it needs no peer, only its disk.

use super::*;

/// A group of one that leads, and has applied the empty entry with which its term begins.
fn leader(config: Config) -> (Engine, Disk) {
    let disk = Disk::default();
    let mut engine = open_with(config, &[1], &disk, 0).unwrap();
    settle(&mut engine, &disk, Event::Campaign);
    assert_eq!((engine.role(), engine.applied()), (Role::Leader, Lsn(1)));
    (engine, disk)
}

#[test]
fn a_group_of_one_elects_itself_proposes_persists_and_applies_in_that_order() {
    let disk = Disk::default();
    let mut engine = open(1, &[1], &disk, 0).unwrap();
    let elected = engine.step(Event::Campaign);
    assert_eq!(
        outline(&elected),
        "became Leader in term 1, persist [1@1]",
        "its vote and its first entry are one write"
    );
    assert_eq!(engine.leader(), Some(NodeId(1)));
    let persisted = engine.step(Event::Persisted {
        number: numbers(&elected)[0],
    });
    assert_eq!(outline(&persisted), "apply [1@1]");
    assert!(engine.step(Event::Applied { lsn: Lsn(1) }).is_empty());

    let proposed = engine.step(propose(7, "a"));
    assert_eq!(outline(&proposed), "accepted #7 at 2@1, persist [2@1]");
    let persisted = engine.step(Event::Persisted {
        number: numbers(&proposed)[0],
    });
    assert_eq!(outline(&persisted), "apply [2@1]");
    assert_eq!(commands(&persisted), ["a"]);
    assert!(engine.step(Event::Applied { lsn: Lsn(2) }).is_empty());
    assert_eq!(
        (engine.last(), engine.committed(), engine.applied()),
        (Lsn(2), Lsn(2), Lsn(2))
    );
}

#[test]
fn nothing_is_applied_before_it_is_durable() {
    let (mut engine, _) = leader(Config::new(NodeId(1)));
    let mut all = Vec::new();
    for ticket in 0..10 {
        let actions = engine.step(propose(ticket, "c"));
        assert_eq!(
            outline(&actions),
            format!("accepted #{ticket} at {0}@1, persist [{0}@1]", ticket + 2)
        );
        all.extend(numbers(&actions));
    }
    assert!(engine.step(Event::Tick).is_empty());
    assert_eq!(engine.committed(), Lsn(1));
    assert!(all.is_sorted_by(|a, b| a < b), "{all:?} rise");

    let some = engine.step(Event::Persisted { number: all[3] });
    assert_eq!(
        outline(&some),
        "apply [2@1 3@1 4@1 5@1]",
        "one number stands for all before it, and for none after it"
    );
    let rest = engine.step(Event::Persisted { number: all[9] });
    assert_eq!(outline(&rest), "apply [6@1 7@1 8@1 9@1 10@1 11@1]");
    assert!(
        engine.step(Event::Persisted { number: all[9] }).is_empty(),
        "said twice, it is the same"
    );
}

#[test]
fn a_batch_of_proposals_takes_places_in_its_order_and_is_one_write() {
    let (mut engine, disk) = leader(Config::new(NodeId(1)));
    let batch = (0..3).map(|n| (Ticket(n), vec![b'a' + n as u8])).collect();
    let actions = settle(&mut engine, &disk, Event::ProposeBatch(batch));
    assert_eq!(
        outline(&actions),
        "accepted #0 at 2@1, accepted #1 at 3@1, accepted #2 at 4@1, persist [2@1 3@1 4@1], \
         apply [2@1 3@1 4@1]"
    );
    assert_eq!(commands(&actions), ["a", "b", "c"]);
}

#[test]
fn no_write_is_larger_than_the_largest_command() {
    let (mut engine, disk) = leader(Config::new(NodeId(1)));
    let batch = (0..5).map(|n| (Ticket(n), vec![7; MAX_COMMAND_BYTES / 2]));
    let batch = Event::ProposeBatch(batch.collect());
    let actions = settle(&mut engine, &disk, batch);
    for action in &actions {
        if let Action::Persist(persist) = action {
            let bytes: usize = persist.entries.iter().map(|e| e.data.len()).sum();
            assert!(bytes <= MAX_COMMAND_BYTES, "{bytes} bytes in one write");
        }
    }
    assert_eq!(engine.applied(), Lsn(6), "all five are applied");

    let too_large = Event::Propose {
        ticket: Ticket(9),
        command: vec![7; MAX_COMMAND_BYTES + 1],
    };
    let refused = engine.step(too_large);
    assert!(
        matches!(
            &refused[..],
            [Action::Rejected {
                reason: RejectReason::Refused(why),
                ..
            }] if why.contains(&MAX_COMMAND_BYTES.to_string())
        ),
        "{refused:?} names the limit"
    );
    assert_eq!(engine.last(), Lsn(6), "and leaves no trace");
}

#[test]
fn proposals_beyond_the_limit_are_busy_until_some_are_applied() {
    let mut config = Config::new(NodeId(1));
    config.max_pending_proposals = 3;
    let (mut engine, _) = leader(config);
    let mut last = 0;
    for ticket in 0..3 {
        let actions = engine.step(propose(ticket, "c"));
        assert!(outline(&actions).starts_with("accepted"), "{actions:?}");
        last = numbers(&actions)[0];
    }
    let busy = "rejected #8: Busy";
    assert_eq!(outline(&engine.step(propose(8, "c"))), busy);
    engine.step(Event::Persisted { number: last });
    assert_eq!(
        outline(&engine.step(propose(8, "c"))),
        busy,
        "what is committed and not applied is pending as well"
    );
    engine.step(Event::Applied { lsn: Lsn(2) });
    let actions = engine.step(propose(9, "c"));
    assert!(outline(&actions).starts_with("accepted #9 at 5@1"));
    assert_eq!(outline(&engine.step(propose(8, "c"))), busy);
}

#[test]
fn a_sole_leader_needs_no_ticks_and_no_other_vote() {
    let disk = Disk::default();
    let mut engine = open(1, &[1], &disk, 0).unwrap();
    assert!(engine.needs_ticks(), "before it leads, ticks elect it");
    for _ in 0..2 * Config::new(NodeId(1)).election_ticks {
        settle(&mut engine, &disk, Event::Tick);
    }
    assert_eq!(engine.role(), Role::Leader);
    assert!(!engine.needs_ticks());
    for _ in 0..1000 {
        assert!(engine.step(Event::Tick).is_empty(), "it leads for good");
    }
}

#[test]
fn an_empty_command_is_refused_because_it_looks_like_the_beginning_of_a_term() {
    let (mut engine, disk) = leader(Config::new(NodeId(1)));
    let actions = settle(&mut engine, &disk, propose(1, ""));
    let [Action::Rejected { reason, .. }] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert!(matches!(reason, RejectReason::Refused(_)), "{reason:?}");
}
