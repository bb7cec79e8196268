//! What an engine holds in memory, and reads at once.

use super::*;

const KIB: usize = 1024;

/// Proposes a command of so many bytes, and makes it durable; answers what is handed out.
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
