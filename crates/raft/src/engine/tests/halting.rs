//! Logs that cannot be read, or hold what this version does not know.

use super::*;

/// The message of the only action, a halt.
#[track_caller]
fn halted(actions: &[Action]) -> &str {
    let [Action::Halt { what }] = actions else {
        panic!("a halt, and nothing beside it, not {}", outline(actions));
    };
    what
}

#[track_caller]
fn assert_dead(engine: &mut Engine) {
    for event in [Event::Campaign, Event::Tick, propose(1, "c")] {
        let actions = engine.step(event);
        assert!(actions.is_empty(), "a halted engine says {actions:?}");
    }
}

#[test]
fn an_engine_that_cannot_read_its_log_halts_and_names_the_lsn() {
    let disk = Disk::with(&[1; 9], 9);
    let mut engine = open(1, &[1], &disk, 4).unwrap();
    disk.make_unreadable(7);
    let actions = engine.step(Event::Tick);
    let what = halted(&actions);
    assert!(
        what.contains("entry 7") && what.contains("5..10"),
        "{what:?} says what was read, and where it broke"
    );
    assert_dead(&mut engine);
}

#[test]
fn an_engine_that_cannot_read_the_term_of_its_floor_halts_and_names_the_lsn() {
    let disk = Disk::with(&[1; 9], 9);
    let mut engine = open(1, &[1], &disk, 9).unwrap();
    engine.forget_terms();
    disk.make_unreadable(6);
    let snapshot = Event::SnapshotTaken {
        last_included_index: Lsn(6),
        term: Term(1),
        peers: None,
    };
    let actions = engine.step(snapshot);
    let what = halted(&actions);
    assert!(what.contains("LSN 6"), "{what:?}");
    assert_eq!(engine.log_start(), Lsn(0), "nothing was compacted");
    assert_dead(&mut engine);
}

#[test]
fn an_engine_that_cannot_read_the_end_of_its_log_does_not_open() {
    let disk = Disk::with(&[1; 9], 9);
    disk.make_unreadable(9);
    let refused = open(1, &[1], &disk, 4).err().unwrap();
    assert!(matches!(refused, OpenError::Unreadable(_)));
    assert!(refused.to_string().contains("LSN 9"), "{refused}");
}

#[test]
fn a_step_that_halts_lets_nothing_out() {
    let disk = Disk::with(&[1; 9], 9);
    let mut engine = open(1, &[1], &disk, 4).unwrap();
    disk.make_unreadable(7);
    // It wins the election and appends; and then cannot read what it should hand out.
    let actions = engine.step(Event::Campaign);
    halted(&actions);
    assert_dead(&mut engine);
}

#[test]
fn an_engine_halts_at_a_change_of_membership_that_cannot_be_and_hands_out_nothing_behind_it() {
    let disk = Disk::with(&[1; 9], 9);
    disk.make_membership_change(5);
    let mut config = Config::new(NodeId(1));
    config.max_apply_backlog_bytes = 1;
    let mut engine = open_with(config, &[1], &disk, 0).unwrap();
    let mut actions = engine.step(Event::Tick);
    // Small pieces, so that some come before the change.
    for lsn in [2, 4] {
        assert_eq!(outline(&actions), format!("apply [{}@1 {lsn}@1]", lsn - 1));
        actions = engine.step(Event::Applied { lsn: Lsn(lsn) });
    }
    let what = halted(&actions);
    assert!(
        what.contains("LSN 5") && what.contains("membership"),
        "{what:?}"
    );
    assert_dead(&mut engine);

    // All of it handed out at once.
    let mut engine = open(1, &[1], &disk, 0).unwrap();
    halted(&engine.step(Event::Tick));
}

#[test]
fn a_leader_that_cannot_read_what_a_follower_lacks_halts() {
    // Member 1 has everything, member 2 nothing.
    let full = Disk::with(&[1; 9], 9);
    let empty = Disk::default();
    let mut leader = open(1, &[1, 2], &full, 9).unwrap();
    let mut follower = open(2, &[1, 2], &empty, 0).unwrap();
    full.make_unreadable(3);
    let mut to_follower = settle(&mut leader, &full, Event::Campaign);
    for _ in 0..20 {
        if let Some(Action::Halt { what }) = to_follower.last() {
            assert!(what.contains("entry 3"), "{what:?}");
            return assert_dead(&mut leader);
        }
        let mut back = Vec::new();
        for message in sent(to_follower) {
            back.extend(settle(&mut follower, &empty, Event::Receive(message)));
        }
        to_follower = Vec::new();
        for message in sent(back) {
            to_follower.extend(settle(&mut leader, &full, Event::Receive(message)));
        }
    }
    panic!("the leader never read what the follower lacks");
}

fn sent(actions: Vec<Action>) -> Vec<Envelope> {
    let mut all = Vec::new();
    for action in actions {
        if let Action::Send(messages) = action {
            all.extend(messages);
        }
    }
    all
}

#[test]
fn a_message_that_raft_panics_at_halts_the_group_and_not_the_process() {
    use raft::eraftpb::{Entry, Message, MessageType};
    let disk = Disk::with(&[1; 9], 9);
    let mut engine = open(2, &[1, 2, 3], &disk, 9).unwrap();
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgAppend);
    (message.from, message.to, message.term) = (1, 2, 3);
    // One entry is missing, and counted as committed.
    (message.index, message.log_term, message.commit) = (9, 1, 10);
    message.entries = vec![Entry {
        index: 11,
        term: 3,
        ..Entry::default()
    }]
    .into();
    assert!(!crate::engine::panic_is_caught());
    let actions = engine.step(received(message));
    let what = halted(&actions);
    assert!(what.contains("corrupt") && what.contains("10"), "{what:?}");
    assert!(!crate::engine::panic_is_caught());
    assert!(!engine.may_reopen(), "another engine would meet the same");
    assert_dead(&mut engine);
}
