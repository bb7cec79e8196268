//! A long replay after a restart, in bounded memory.

use super::*;

const ENTRY_BYTES: usize = 4096;
const ENTRIES: u64 = 4000;

/// A log of 16 MiB, of which nothing is applied.
fn long_log() -> Disk {
    let disk = Disk::with(&vec![1; ENTRIES as usize], ENTRIES);
    for lsn in 1..=ENTRIES {
        disk.put(lsn, 1, vec![7; ENTRY_BYTES]);
    }
    disk
}

/// A host that applies one piece at a time, and keeps count.
#[derive(Default)]
struct Host {
    /// What was handed out and is not applied.
    waiting: VecDeque<(Lsn, u64)>,
    next: u64,
    largest_backlog: u64,
}

impl Host {
    fn take(&mut self, actions: &[Action]) {
        for action in actions {
            let Action::Apply(entries) = action else {
                continue;
            };
            for entry in entries {
                self.next += 1;
                assert_eq!(entry.lsn, Lsn(self.next), "in order, none twice, no gap");
            }
            let bytes = entries
                .iter()
                .map(|e| e.command.as_ref().map_or(0, |c| c.len()) as u64)
                .sum();
            self.waiting.push_back((Lsn(self.next), bytes));
        }
        let backlog = self.waiting.iter().map(|(_, bytes)| bytes).sum();
        self.largest_backlog = self.largest_backlog.max(backlog);
    }

    /// Applies the oldest piece.
    fn apply(&mut self) -> Option<Event> {
        let (lsn, _) = self.waiting.pop_front()?;
        Some(Event::Applied { lsn })
    }
}

#[test]
fn a_long_replay_is_handed_out_in_bounded_pieces_and_completes() {
    let disk = long_log();
    let mut config = Config::new(NodeId(1));
    config.max_apply_backlog_bytes = 2 * 1024 * 1024;
    let limit = config.max_apply_backlog_bytes + ENTRY_BYTES as u64;
    let mut engine = open_with(config, &[1], &disk, 0).unwrap();
    let mut host = Host::default();

    let elected = engine.step(Event::Campaign);
    host.take(&elected);
    let number = numbers(&elected)[0];
    if let Some(Action::Persist(persist)) = elected.last() {
        disk.write(persist);
    }
    host.take(&engine.step(Event::Persisted { number }));
    let mut pieces = 0;
    while let Some(applied) = host.apply() {
        host.take(&engine.step(applied));
        pieces += 1;
    }
    assert_eq!(engine.applied(), Lsn(ENTRIES + 1));
    assert!(pieces > 10, "{pieces} pieces");
    assert!(
        host.largest_backlog <= limit,
        "{} bytes were waiting, at most {limit} may",
        host.largest_backlog
    );
    assert!(
        disk.largest_read() <= MAX_COMMITTED_PER_READY + ENTRY_BYTES as u64,
        "{} bytes were read at once",
        disk.largest_read()
    );
}

#[test]
fn proposals_during_a_long_replay_do_not_hand_out_more_of_it() {
    let disk = long_log();
    let mut config = Config::new(NodeId(1));
    config.max_apply_backlog_bytes = 64 * 1024;
    let limit = config.max_apply_backlog_bytes + ENTRY_BYTES as u64;
    let mut engine = open_with(config, &[1], &disk, 0).unwrap();
    let mut host = Host::default();
    let mut actions = engine.step(Event::Campaign);
    for ticket in 0..500 {
        for number in numbers(&actions) {
            host.take(&engine.step(Event::Persisted { number }));
        }
        host.take(&actions);
        actions = engine.step(propose(ticket, "more"));
        assert!(outline(&actions).starts_with("accepted"), "{actions:?}");
    }
    assert!(host.largest_backlog > 0);
    assert!(
        host.largest_backlog <= limit,
        "{} bytes were waiting, at most {limit} may",
        host.largest_backlog
    );
    host.take(&actions);
    for number in numbers(&actions) {
        host.take(&engine.step(Event::Persisted { number }));
    }
    while let Some(applied) = host.apply() {
        host.take(&engine.step(applied));
    }
    assert_eq!(engine.applied(), Lsn(ENTRIES + 1 + 500), "all of it lands");
}

#[test]
fn an_entry_larger_than_the_bound_is_handed_out_alone() {
    let disk = Disk::with(&[1; 6], 6);
    for lsn in 1..=6 {
        disk.put(lsn, 1, vec![7; 3 * 1024 * 1024]);
    }
    let mut config = Config::new(NodeId(1));
    config.max_apply_backlog_bytes = 1024;
    let mut engine = open_with(config, &[1], &disk, 0).unwrap();
    let mut actions = engine.step(Event::Tick);
    for lsn in 1..=6 {
        assert_eq!(outline(&actions), format!("apply [{lsn}@1]"));
        actions = engine.step(Event::Applied { lsn: Lsn(lsn) });
    }
    assert!(actions.is_empty());
}
