//! Reads that are answered and wait for what is applied here.

use super::cluster::{Cluster, Fate, config};
use super::*;

fn ready(cluster: &Cluster, id: u64) -> usize {
    cluster.said(id, |a| matches!(a, Action::ReadReady { .. }))
}

#[test]
fn a_read_that_waits_for_entries_is_answered_when_a_snapshot_of_them_is_installed() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(10);
    cluster.cut = vec![3];
    cluster.write(60);
    cluster.ticks(30);
    cluster.snapshot(1);
    cluster.snapshot(2);
    cluster.ticks(2);
    cluster.cut.clear();
    // It knows the leader, and has no offer yet.
    cluster.fate = Box::new(|envelope| match envelope.payload {
        Payload::Offer(_) => Fate::Lost,
        _ => Fate::Arrives,
    });
    cluster.ticks(5);
    let ticket = Ticket(1 << 50);
    cluster.step(3, Event::ReadIndex { ticket });
    cluster.pump();
    assert_eq!(ready(&cluster, 3), 0, "it has not got it yet");

    // Nothing is proposed any more: nothing else is ever applied.
    cluster.fate = Box::new(|_| Fate::Arrives);
    cluster.ticks(10);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(cluster.host(3).engine.counters().snapshots_received, 1);
    assert_eq!(ready(&cluster, 3), 1);
}

#[test]
fn a_read_that_waits_for_what_is_never_applied_fails_in_the_end() {
    let disk = Disk::default();
    let mut engine = open_with(
        {
            let mut config = config(1);
            config.creates_cluster = true;
            config
        },
        &[1],
        &disk,
        0,
    )
    .unwrap();
    settle(&mut engine, &disk, Event::Campaign);
    assert!(!engine.needs_ticks(), "it leads, alone");
    let written = engine.step(propose(1, "c"));
    for number in numbers(&written) {
        let handed = engine.step(Event::Persisted { number });
        assert_eq!(commands(&handed), ["c"], "its host does not apply it");
    }
    let ticket = Ticket(2);
    let asked = engine.step(Event::ReadIndex { ticket });
    assert!(asked.is_empty(), "{}", outline(&asked));

    let timeout = 3 * Config::new(NodeId(1)).election_ticks;
    let mut failed = Vec::new();
    for _ in 0..timeout {
        assert!(engine.needs_ticks(), "somebody waits");
        failed.extend(engine.step(Event::Tick));
    }
    assert!(
        matches!(
            &failed[..],
            [Action::ReadFailed { ticket: t, reason: ReadFailure::TimedOut }] if *t == ticket
        ),
        "{failed:?}"
    );
    assert!(!engine.needs_ticks());
    let applied = engine.step(Event::Applied { lsn: Lsn(2) });
    assert!(applied.is_empty(), "answered once: {}", outline(&applied));
}
