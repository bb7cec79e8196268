//! The log that a leader keeps for members that are away, and when it keeps it no longer.

use super::cluster::{Cluster, Fate};
use super::*;

/// More than these tests write.
const MUCH: KeptForAbsent = KeptForAbsent {
    bytes: 1 << 20,
    entries: 1000,
    ticks: 1000,
};

/// Three members, of which the first leads, and the third is away. Returns its last entry as well.
fn one_away(kept: KeptForAbsent) -> (Cluster, Lsn) {
    let mut cluster = Cluster::with(&[1, 2, 3], |config| config.kept_for_absent = kept);
    cluster.write(10);
    let had = cluster.host(3).engine.last();
    cluster.cut = vec![3];
    // Long enough for the leader to see that it is away.
    cluster.ticks(30);
    (cluster, had)
}

/// Writes so many entries, and lets a member take a snapshot of everything.
fn covered(cluster: &mut Cluster, id: u64, entries: u64) {
    cluster.write(entries);
    cluster.snapshot(id);
    cluster.ticks(2);
    let engine = &cluster.host(id).engine;
    assert_eq!(engine.floor(), engine.last());
}

fn log_start(cluster: &Cluster, id: u64) -> Lsn {
    cluster.host(id).engine.log_start()
}

fn assert_nothing_kept(cluster: &Cluster, id: u64) {
    let engine = &cluster.host(id).engine;
    assert_eq!(engine.log_start(), engine.floor(), "member {id}");
}

fn offers(cluster: &Cluster) -> usize {
    let offer = |a: &Action| matches!(a, Action::OfferSnapshot { .. });
    cluster
        .hosts
        .keys()
        .map(|id| cluster.said(*id, offer))
        .sum()
}

/// The member that was away is back, and needs no snapshot. Then the log goes up to the newest one.
fn comes_back_by_entries(cluster: &mut Cluster) {
    cluster.cut.clear();
    cluster.ticks(20);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(offers(cluster), 0);
    assert_nothing_kept(cluster, cluster.leader());
}

/// The member that leads gives the leadership to another one.
fn hand_over(cluster: &mut Cluster, to: u64) {
    let (ticket, node) = (Ticket(1), NodeId(to));
    let leader = cluster.leader();
    cluster.step(leader, Event::TransferLeadership { ticket, to: node });
    cluster.pump();
    assert_eq!(cluster.leader(), to);
}

/// The member that was away is back, and then it is away again: the log is kept for it as the first time.
fn the_next_absence_is_another_one(cluster: &mut Cluster) {
    cluster.cut.clear();
    cluster.ticks(60);
    cluster.assert_agreed(&[1, 2, 3]);
    let had = cluster.host(3).engine.last();
    cluster.cut = vec![3];
    cluster.ticks(30);
    // Fewer than any bound here.
    covered(cluster, 1, 20);
    assert_eq!(log_start(cluster, 1), had);
}

#[test]
fn a_member_that_was_away_goes_on_with_entries_although_a_snapshot_covers_them() {
    let (mut cluster, had) = one_away(MUCH);
    covered(&mut cluster, 1, 60);
    cluster.snapshot(2);
    assert_eq!(log_start(&cluster, 1), had);
    assert_nothing_kept(&cluster, 2);
    comes_back_by_entries(&mut cluster);
    let leader = &cluster.host(1).engine;
    assert_eq!(leader.log_kept_for_absent(leader.floor()), None);
}

/// The bounds of the nodes differ, or what else is in their logs.
#[test]
fn a_leader_gives_up_who_is_away_if_the_log_of_a_follower_is_full() {
    let (mut cluster, had) = one_away(MUCH);
    covered(&mut cluster, 1, 60);
    cluster.ticks(10);
    assert_eq!(log_start(&cluster, 1), had);
    // A node that is no member.
    let mut stranger = cluster.identity(2);
    stranger.node = NodeId(9);
    let mut message = stranger.seal(NodeId(1), Payload::Wanted);
    message.log_is_full = true;
    cluster.inject(message);
    cluster.ticks(10);
    assert_eq!(log_start(&cluster, 1), had);

    cluster.step(2, Event::GiveUpAbsent);
    // Until the next heartbeat was answered, and the leader has looked.
    cluster.ticks(4);
    assert_nothing_kept(&cluster, 1);
    the_next_absence_is_another_one(&mut cluster);
}

/// What was said once does not end all absences that are to come.
#[test]
fn a_follower_whose_log_was_full_once_does_not_report_it_for_ever() {
    let (mut cluster, _) = one_away(MUCH);
    cluster.step(2, Event::GiveUpAbsent);
    let reports = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let noted = reports.clone();
    cluster.fate = Box::new(move |envelope| {
        noted.fetch_add(
            usize::from(envelope.log_is_full),
            std::sync::atomic::Ordering::Relaxed,
        );
        Fate::Arrives
    });
    let count = || reports.load(std::sync::atomic::Ordering::Relaxed);
    cluster.ticks(15);
    let after = count();
    assert!(after > 0);
    cluster.ticks(30);
    assert_eq!(count(), after);
    // A leader acts itself.
    cluster.step(1, Event::GiveUpAbsent);
    cluster.ticks(15);
    assert_eq!(count(), after);
}

#[test]
fn what_is_kept_and_for_whom_is_shown_on_the_leader_alone() {
    let (mut cluster, had) = one_away(MUCH);
    cluster.write(20);
    let upper = cluster.host(1).engine.last();
    cluster.write(40);
    for id in 1..=2 {
        cluster.step(id, Event::KeepFrom { lsn: had });
    }
    let leader = &cluster.host(1).engine;
    let kept = leader.log_kept_for_absent(upper).unwrap();
    assert_eq!(kept.entries, upper.0 - had.0);
    assert_eq!(kept.members, [NodeId(3)]);
    // 32 for each entry, and the command.
    assert!(kept.bytes > 32 * kept.entries, "{kept:?}");
    assert!(kept.bytes < 64 * kept.entries, "{kept:?}");
    assert_eq!(leader.log_kept_for_absent(had), None, "nothing in addition");
    let follower = &cluster.host(2).engine;
    assert_eq!(follower.log_kept_for_absent(upper), None);
    cluster.step(1, Event::GiveUpAbsent);
    let leader = &cluster.host(1).engine;
    assert_eq!(leader.log_kept_for_absent(upper), None);
}

#[test]
fn a_new_leader_keeps_what_a_member_may_have_that_it_has_not_heard_of() {
    let (mut cluster, _) = one_away(MUCH);
    cluster.write(20);
    hand_over(&mut cluster, 2);
    cluster.ticks(30);
    covered(&mut cluster, 2, 20);
    assert_eq!(
        log_start(&cluster, 2),
        Lsn(0),
        "as far as the bound reaches"
    );
    comes_back_by_entries(&mut cluster);
}

#[test]
fn what_a_new_leader_keeps_ends_behind_what_the_member_can_have() {
    let kept = KeptForAbsent {
        entries: 40,
        ..MUCH
    };
    let (mut cluster, _) = one_away(kept);
    let (ticket, to) = (Ticket(1), NodeId(2));
    cluster.step(1, Event::TransferLeadership { ticket, to });
    cluster.pump();
    let elected = cluster.host(2).engine.last();
    cluster.ticks(30);
    covered(&mut cluster, 2, 30);
    let floor = cluster.host(2).engine.floor();
    assert_eq!(log_start(&cluster, 2), Lsn(floor.0.saturating_sub(40)));
    assert!(log_start(&cluster, 2) <= elected);
    // It needs what was there before, and that is gone by now.
    covered(&mut cluster, 2, 30);
    assert_nothing_kept(&cluster, 2);
}

#[test]
fn entries_of_unknown_size_are_not_kept_for_a_member_that_a_new_leader_has_not_heard_of() {
    let (mut cluster, _) = one_away(MUCH);
    cluster.write(20);
    cluster.restart(2);
    let opened_at = cluster.host(2).applied.lsn;
    let (ticket, to) = (Ticket(1), NodeId(2));
    cluster.ticks(5);
    cluster.step(1, Event::TransferLeadership { ticket, to });
    cluster.pump();
    assert_eq!(cluster.leader(), 2);
    cluster.ticks(30);
    covered(&mut cluster, 2, 20);
    assert_eq!(
        log_start(&cluster, 2),
        opened_at,
        "what has come since then"
    );
    // While no state is passed on, entries are the only way back, whatever their size.
    let (mut cluster, _) = one_away(MUCH);
    cluster.write(20);
    cluster.restart(2);
    cluster.ticks(5);
    cluster.step(1, Event::TransferLeadership { ticket, to });
    cluster.pump();
    assert_eq!(cluster.leader(), 2);
    cluster.step(2, Event::WithholdSnapshots { withheld: true });
    cluster.ticks(30);
    covered(&mut cluster, 2, 20);
    assert_eq!(log_start(&cluster, 2), Lsn(0));
    comes_back_by_entries(&mut cluster);
}

#[test]
fn a_member_that_needs_more_entries_than_the_bound_is_given_up() {
    let kept = KeptForAbsent {
        entries: 50,
        ..MUCH
    };
    let (mut cluster, had) = one_away(kept);
    let left = 50 - (cluster.host(1).engine.last().0 - had.0);
    covered(&mut cluster, 1, left);
    assert_eq!(log_start(&cluster, 1), had);
    covered(&mut cluster, 1, 1);
    assert_nothing_kept(&cluster, 1);
    cluster.cut.clear();
    cluster.ticks(60);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(offers(&cluster), 1, "it gets a snapshot");
}

#[test]
fn a_member_that_needs_more_bytes_than_the_bound_is_given_up() {
    let (mut cluster, had) = one_away(KeptForAbsent {
        bytes: 1000,
        ..MUCH
    });
    let mut was_kept = false;
    for _ in 0..500 {
        cluster.write(1);
        let needed = cluster.host(1).engine.snapshots.bytes_above(had);
        cluster.snapshot(1);
        if needed > 1000 {
            assert!(was_kept);
            return assert_nothing_kept(&cluster, 1);
        }
        assert_eq!(log_start(&cluster, 1), had, "{needed} bytes");
        was_kept = true;
    }
    panic!("500 entries have less than 1,000 bytes");
}

#[test]
fn after_a_long_absence_an_eighth_is_kept() {
    let kept = KeptForAbsent {
        entries: 160,
        ticks: 300,
        ..MUCH
    };
    let (mut cluster, had) = one_away(kept);
    covered(&mut cluster, 1, 10);
    cluster.ticks(400);
    assert_eq!(log_start(&cluster, 1), had, "10 of 20 entries");
    covered(&mut cluster, 1, 30);
    assert_nothing_kept(&cluster, 1);

    let (mut cluster, had) = one_away(kept);
    covered(&mut cluster, 1, 100);
    assert_eq!(log_start(&cluster, 1), had, "100 of 160 entries");
    cluster.ticks(400);
    assert_nothing_kept(&cluster, 1);
}

#[test]
fn an_absence_is_as_long_however_often_the_leadership_moves() {
    let kept = KeptForAbsent {
        entries: 160,
        ticks: 300,
        ..MUCH
    };
    let (mut cluster, _) = one_away(kept);
    for to in [2, 1].repeat(4) {
        hand_over(&mut cluster, to);
        cluster.ticks(100);
    }
    covered(&mut cluster, 1, 30);
    assert_nothing_kept(&cluster, 1);
    // An absence that ends is forgotten.
    the_next_absence_is_another_one(&mut cluster);
}

#[test]
fn with_a_member_that_is_gone_for_good_logs_stay_short_however_often_the_leadership_moves() {
    let kept = KeptForAbsent {
        entries: 40,
        ..MUCH
    };
    let (mut cluster, _) = one_away(kept);
    for id in [1, 2] {
        cluster.step(id, Event::KeepFrom { lsn: Lsn(0) });
    }
    for leader in [2, 1].repeat(5) {
        hand_over(&mut cluster, leader);
        cluster.ticks(30);
        // Less than the bound in each leadership.
        cluster.write(30);
        cluster.ticks(3);
        for id in [1, 2] {
            cluster.snapshot(id);
        }
        // As hosts do that have archived everything: all go by what the leader answers.
        let engine = &cluster.host(leader).engine;
        let archived = engine.floor();
        let lsn = engine.kept_for_absent(archived).unwrap_or(archived);
        for id in [1, 2] {
            cluster.step(id, Event::KeepFrom { lsn });
        }
        cluster.ticks(2);
        for (id, most) in [(leader, 80), (3 - leader, 40)] {
            let length = archived.0 - log_start(&cluster, id).0;
            assert!(length <= most, "{length} entries of member {id}");
        }
    }
    cluster.cut.clear();
    cluster.ticks(60);
    cluster.assert_agreed(&[1, 2, 3]);
}

#[test]
fn a_log_that_has_become_too_long_gives_up_who_is_away_until_it_is_back() {
    let (mut cluster, had) = one_away(MUCH);
    covered(&mut cluster, 1, 20);
    assert_eq!(log_start(&cluster, 1), had);
    cluster.step(1, Event::GiveUpAbsent);
    assert_nothing_kept(&cluster, 1);
    covered(&mut cluster, 1, 20);
    assert_nothing_kept(&cluster, 1);
    the_next_absence_is_another_one(&mut cluster);
}

#[test]
fn while_no_state_is_passed_on_what_any_member_needs_is_kept_beyond_the_bound() {
    let (mut cluster, had) = one_away(KeptForAbsent::default());
    cluster.step(1, Event::WithholdSnapshots { withheld: true });
    covered(&mut cluster, 1, 60);
    cluster.ticks(2000);
    assert_eq!(log_start(&cluster, 1), had);
    comes_back_by_entries(&mut cluster);
}

#[test]
fn a_member_that_is_removed_holds_nothing() {
    let (mut cluster, had) = one_away(MUCH);
    covered(&mut cluster, 1, 20);
    assert_eq!(log_start(&cluster, 1), had);
    let removed = cluster.change(MembershipChange::RemovePeer(NodeId(3)));
    removed.unwrap();
    cluster.ticks(10);
    assert_nothing_kept(&cluster, 1);
}

#[test]
fn a_group_of_one_keeps_nothing() {
    let mut cluster = Cluster::with(&[1], |config| config.kept_for_absent = MUCH);
    covered(&mut cluster, 1, 20);
    assert_nothing_kept(&cluster, 1);
    let engine = &cluster.host(1).engine;
    assert_eq!(engine.kept_for_absent(engine.last().next()), None);
}
