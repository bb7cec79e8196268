//! What an engine holds in memory, and reads at once.

use super::*;

const KIB: usize = 1024;

/// Proposes a command of so many bytes, and makes it durable; returns what is handed out.
fn write(engine: &mut Engine, disk: &Disk, ticket: u64, bytes: usize) -> Vec<Committed> {
    let mut command = ticket.to_be_bytes().to_vec();
    command.resize(bytes, 7);
    let mut handed = Vec::new();
    let mut events = VecDeque::from([Event::Propose {
        ticket: Ticket(ticket),
        command,
    }]);
    while let Some(event) = events.pop_front() {
        for action in engine.step(event) {
            match action {
                Action::Persist(persist) => {
                    disk.write(&persist);
                    let number = persist.number;
                    events.push_back(Event::Persisted { number });
                }
                Action::Apply(entries) => handed.extend(entries),
                _ => {}
            }
        }
    }
    handed
}

#[test]
fn a_member_whose_apply_is_stuck_holds_a_bounded_part_of_its_log_in_memory_and_applies_all_of_it() {
    let disk = Disk::default();
    let mut config = Config::new(NodeId(1));
    config.max_apply_backlog_bytes = 32 * KIB as u64;
    config.max_log_bytes_in_memory = 64 * KIB as u64;
    let most = config.max_log_bytes_in_memory + 2 * KIB as u64;
    let mut engine = open_with(config, &[1], &disk, 0).unwrap();
    settle(&mut engine, &disk, Event::Campaign);
    assert_eq!(engine.applied(), Lsn(1));

    // A megabyte is durable and committed, and nothing of it is applied.
    let mut handed = Vec::new();
    for ticket in 0..1024 {
        handed.extend(write(&mut engine, &disk, ticket, KIB));
        let bytes = engine.log_bytes_in_memory();
        assert!(bytes <= most, "{bytes} bytes after {ticket} commands");
    }
    assert_eq!(engine.committed(), Lsn(1025));
    assert!(handed.len() < 40, "{} are handed out", handed.len());

    // Now it goes on: all of it comes, in order, from the disk as well.
    let mut applied = Vec::new();
    while !handed.is_empty() {
        applied.append(&mut handed);
        let lsn = applied[applied.len() - 1].lsn;
        for action in engine.step(Event::Applied { lsn }) {
            match action {
                Action::Apply(entries) => handed.extend(entries),
                other => panic!("{other:?}"),
            }
        }
    }
    let tickets = applied.iter().map(|entry| {
        let command = entry.command.as_ref().unwrap();
        u64::from_be_bytes(*command.first_chunk().unwrap())
    });
    assert!(tickets.eq(0..1024), "each once, in order");
    assert_eq!(engine.log_bytes_in_memory(), 0);
    assert!(disk.reads() > 0);
}

#[test]
fn as_long_as_apply_keeps_up_no_write_reads_the_disk() {
    let disk = Disk::default();
    let mut engine = open(1, &[1], &disk, 0).unwrap();
    settle(&mut engine, &disk, Event::Campaign);
    let before = disk.reads();
    for ticket in 0..100 {
        // Always some that are not applied.
        if let Some(last) = write(&mut engine, &disk, ticket, KIB).last()
            && ticket % 10 == 9
        {
            engine.step(Event::Applied { lsn: last.lsn });
        }
    }
    assert_eq!(disk.reads(), before);
}

/// Bytes of the entries in messages of consensus.
fn entry_bytes(message: &Envelope) -> u64 {
    match &message.payload {
        Payload::Raft(message) => {
            let entries = message.0.entries.iter();
            entries.map(|e| e.data.len() as u64).sum()
        }
        _ => 0,
    }
}

/// Steps an engine, and makes its writes durable at once; returns its messages.
fn step(engine: &mut Engine, disk: &Disk, event: Event) -> Vec<Envelope> {
    let mut sent = Vec::new();
    for action in settle(engine, disk, event) {
        match action {
            Action::Send(messages) => sent.extend(messages),
            Action::Halt { what } => panic!("{what}"),
            _ => {}
        }
    }
    sent
}

#[test]
fn a_peer_far_behind_is_sent_no_more_at_once_than_a_link_takes_and_a_step_may_read() {
    const ENTRY: u64 = 64 * 1024;
    const ENTRIES: u64 = 1200;
    // 75 MiB that one has and the other has not.
    let full = Disk::with(&[1; ENTRIES as usize], ENTRIES);
    for lsn in 1..=ENTRIES {
        full.put(lsn, 1, vec![7; ENTRY as usize]);
    }
    let empty = Disk::default();
    let mut leader = open(1, &[1, 2], &full, ENTRIES).unwrap();
    let mut follower = open(2, &[1, 2], &empty, 0).unwrap();

    let mut wire = VecDeque::from(step(&mut leader, &full, Event::Campaign));
    let (mut most_at_once, mut most_under_way) = (0, 0);
    for round in 0..1000 {
        // Everything that was sent arrives, and then all that is answered, one by one.
        let mut answers = Vec::new();
        for message in wire.drain(..) {
            answers.extend(step(&mut follower, &empty, Event::Receive(message)));
        }
        for answer in answers {
            let sent = step(&mut leader, &full, Event::Receive(answer));
            most_at_once = most_at_once.max(sent.iter().map(entry_bytes).sum());
            wire.extend(sent);
        }
        most_under_way = most_under_way.max(wire.iter().map(entry_bytes).sum());
        if follower.last() == leader.last() && leader.last() > Lsn(ENTRIES) {
            break;
        }
        assert!(round < 999, "it does not catch up");
        if wire.is_empty() {
            wire.extend(step(&mut leader, &full, Event::Tick));
        }
    }
    let slack = ENTRY + MAX_MESSAGE_BYTES;
    assert!(
        most_at_once <= MAX_READ_FOR_PEERS + slack,
        "{most_at_once} bytes in one step"
    );
    let window = MAX_MESSAGES_IN_FLIGHT as u64 * (MAX_MESSAGE_BYTES + ENTRY);
    assert!(
        most_under_way <= window,
        "{most_under_way} bytes under way, at most {window} may be"
    );
    assert!(
        most_under_way > MAX_READ_FOR_PEERS,
        "the window is used: {most_under_way} bytes"
    );
}
