//! Entries that the host reads, while the engine goes on.

use raft::eraftpb::MessageType;

use super::*;

/// Entries of the log that is full.
const ENTRIES: u64 = 300;
const ENTRY_BYTES: usize = 64 * 1024;

/// A log of 19 MiB, of which nothing is in memory after an open.
fn full() -> Disk {
    let disk = Disk::with(&[1; ENTRIES as usize], ENTRIES);
    for lsn in 1..=ENTRIES {
        disk.put(lsn, 1, vec![7; ENTRY_BYTES]);
    }
    disk.let_the_host_read();
    disk
}

fn reads(actions: &[Action]) -> Vec<LogRead> {
    let read = |action: &Action| match action {
        Action::ReadLog(read) => Some(*read),
        _ => None,
    };
    actions.iter().filter_map(read).collect()
}

fn message(kind: MessageType, from: u64, term: u64) -> raft::eraftpb::Message {
    let mut message = raft::eraftpb::Message::default();
    message.set_msg_type(kind);
    (message.from, message.to, message.term) = (from, 1, term);
    message
}

/// A leader of two in term 2, whose peer has nothing of its log.
fn leader(disk: &Disk) -> Engine {
    let mut engine = open(1, &[1, 2], disk, ENTRIES).unwrap();
    settle(&mut engine, disk, Event::Campaign);
    for kind in [
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgRequestVoteResponse,
    ] {
        settle(&mut engine, disk, received(message(kind, 2, 2)));
    }
    assert_eq!(engine.role(), Role::Leader);
    engine
}

/// The peer has the entries up to there, and rejects what was sent.
fn lacks(after: u64, rejected: u64) -> Event {
    let mut reject = message(MessageType::MsgAppendResponse, 2, 2);
    (reject.reject, reject.index, reject.reject_hint) = (true, rejected, after);
    reject.log_term = u64::from(after > 0);
    received(reject)
}

#[test]
fn no_step_reads_the_log_for_a_peer_that_is_far_behind() {
    let disk = full();
    let mut engine = leader(&disk);
    let before = disk.reads();
    let rejected = engine.step(lacks(0, ENTRIES));
    let read = reads(&rejected)[0];
    assert_eq!((read.low, read.max_bytes), (Lsn(1), MAX_MESSAGE_BYTES));
    // Meanwhile everything goes on, and nothing is asked for twice.
    let mut answers = message(MessageType::MsgHeartbeatResponse, 2, 2);
    answers.commit = 0;
    for _ in 0..20 {
        assert_eq!(reads(&engine.step(received(answers.clone()))), []);
        assert_eq!(reads(&engine.step(Event::Tick)), []);
    }
    assert!(commands(&engine.step(propose(1, "x"))).is_empty());
    assert_eq!(disk.reads(), before, "all this without the disk");

    let sent = engine.step(disk.read(read));
    let entries: usize = raft_messages(&sent).iter().map(|m| m.0.entries.len()).sum();
    assert!(entries >= 15, "a message of 1 MiB: {entries} entries");
    // It accepts: from now on it is sent as much as may be under way.
    let mut accepts = message(MessageType::MsgAppendResponse, 2, 2);
    accepts.index = entries as u64;
    let accepted = engine.step(received(accepts));
    let read = reads(&accepted)[0];
    assert_eq!(read.max_bytes, MAX_READ_FOR_PEERS);
    let sent = engine.step(disk.read(read));
    let messages = raft_messages(&sent);
    assert!(messages.len() >= 8, "{} messages", messages.len());
    let next = reads(&sent)[0];
    assert!(next.low > read.low, "and the next read is under way");
    // What was read is not kept.
    assert_eq!(
        engine
            .raw
            .store()
            .reads()
            .at_hand(read.low.0, read.high.0, 1),
        None
    );
}

#[test]
fn a_peer_that_is_far_behind_gets_everything() {
    let (disk, other) = (full(), Disk::default());
    let mut one = leader(&disk);
    let mut two = open(2, &[1, 2], &other, 0).unwrap();
    let mut wire = VecDeque::from([Event::Tick]);
    for _ in 0..2000 {
        let event = wire.pop_front().unwrap_or(Event::Tick);
        let mut back = Vec::new();
        for message in settle(&mut one, &disk, event) {
            let Action::Send(messages) = message else {
                continue;
            };
            for message in messages {
                back.extend(settle(&mut two, &other, Event::Receive(message)));
            }
        }
        for action in back {
            if let Action::Send(messages) = action {
                wire.extend(messages.into_iter().map(Event::Receive));
            }
        }
        if two.last() == one.last() && one.committed() == one.last() {
            break;
        }
    }
    assert_eq!(two.last(), Lsn(ENTRIES + 1));
    assert_eq!(one.committed(), two.last());
}

#[test]
fn a_read_of_a_term_that_is_over_changes_nothing_and_halts_nothing() {
    let disk = full();
    let unreadable = || Err(LogReadError::Unreadable("bad sector".to_owned()));
    let mut engine = leader(&disk);
    let rejected = engine.step(lacks(0, ENTRIES));
    let read = reads(&rejected)[0];
    // Another leader replaces the end of the log.
    let mut heartbeat = message(MessageType::MsgHeartbeat, 2, 3);
    heartbeat.commit = ENTRIES;
    settle(&mut engine, &disk, received(heartbeat));
    assert_eq!(engine.role(), Role::Follower);
    let entries = unreadable();
    assert_eq!(outline(&engine.step(Event::LogRead { read, entries })), "");
    assert_eq!(
        outline(&engine.step(disk.read(read))),
        "",
        "it is not wanted any more"
    );

    // In its own term the leader halts, because nobody else can tell the peer what it lacks.
    let mut engine = leader(&full());
    let rejected = engine.step(lacks(0, ENTRIES));
    let read = reads(&rejected)[0];
    let entries = unreadable();
    let halted = engine.step(Event::LogRead { read, entries });
    assert!(
        outline(&halted).contains("halt: reading log entries 1.."),
        "{halted:?}"
    );
    assert!(engine.may_reopen());
}

#[test]
fn what_is_to_be_applied_after_an_open_is_read_by_the_host_in_order_and_with_pauses_for_it() {
    let disk = full();
    let mut engine = open(1, &[1], &disk, 0).unwrap();
    let before = disk.reads();
    let mut handed = Vec::new();
    let mut events = VecDeque::from([Event::Campaign]);
    let mut longest = 0;
    while let Some(event) = events.pop_front() {
        let reads_by_host = disk.reads();
        let actions = engine.step(event);
        assert_eq!(disk.reads(), reads_by_host, "a step reads nothing");
        longest = longest.max(reads(&actions).len());
        for action in actions {
            match action {
                Action::Persist(persist) => {
                    disk.write(&persist);
                    let number = persist.number;
                    events.push_back(Event::Persisted { number });
                }
                Action::ReadLog(read) => {
                    // Other things happen before the disk answers.
                    events.push_back(Event::Tick);
                    events.push_back(disk.read(read));
                }
                Action::Apply(entries) => {
                    let lsn = entries[entries.len() - 1].lsn;
                    handed.extend(entries.into_iter().map(|entry| entry.lsn.0));
                    events.push_back(Event::Applied { lsn });
                }
                Action::Halt { what } => panic!("{what}"),
                _ => {}
            }
        }
    }
    assert!(
        handed.into_iter().eq(1..=ENTRIES + 1),
        "each once, in order"
    );
    assert_eq!(longest, 1, "one read at a time");
    assert!(disk.reads() > before);
}

#[test]
fn the_terms_of_old_entries_are_known_without_the_disk() {
    let terms: Vec<u64> = (0..ENTRIES).map(|at| 1 + at / 50).collect();
    let disk = Disk::with(&terms, ENTRIES);
    disk.let_the_host_read();
    let engine = open(1, &[1, 2], &disk, ENTRIES).unwrap();
    let before = disk.reads();
    for (lsn, term) in (1..).zip(terms) {
        assert_eq!(engine.raw.store().term(lsn), Ok(term));
    }
    assert_eq!(disk.reads(), before);
}
