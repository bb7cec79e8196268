//! Who belongs to a group, through changes, snapshots and restarts.

use raft::eraftpb::MessageType;

use super::cluster::{Cluster, Fate};
use super::*;
use crate::ids::Incarnation;
use crate::message::Refusal;

fn voters(cluster: &Cluster, id: u64) -> Vec<u64> {
    let voters = &cluster.host(id).engine.membership().voters;
    voters.iter().map(|n| n.0).collect()
}

#[test]
fn what_a_leader_commits_all_members_apply() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(20);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(cluster.host(2).lines.len(), 20);
}

#[test]
fn when_the_leader_is_cut_off_another_one_is_elected_and_the_old_one_steps_down() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(5);
    cluster.cut = vec![1];
    cluster.ticks(60);
    let leader = cluster.leader();
    assert_ne!(leader, 1);
    assert_ne!(cluster.host(1).engine.role(), Role::Leader, "check-quorum");
    cluster.write(5);
    let term = cluster.host(leader).engine.term();
    cluster.cut.clear();
    cluster.ticks(40);
    assert_eq!(
        cluster.host(leader).engine.term(),
        term,
        "pre-vote: it disturbs nobody"
    );
    cluster.assert_agreed(&[1, 2, 3]);
}

#[test]
fn leadership_is_transferred_on_request() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(5);
    let (ticket, to) = (Ticket(9), NodeId(3));
    cluster.step(1, Event::TransferLeadership { ticket, to });
    cluster.pump();
    assert_eq!(cluster.leader(), 3);
    cluster.write(5);
    cluster.assert_agreed(&[1, 2, 3]);

    for (by, to) in [(3, 7), (1, 2)] {
        let to = NodeId(to);
        cluster.step(by, Event::TransferLeadership { ticket, to });
        let rejected = |a: &Action| matches!(a, Action::Rejected { .. });
        assert_eq!(cluster.said(by, rejected), 1);
    }
}

#[test]
fn a_learner_is_added_promoted_and_removed() {
    let mut cluster = Cluster::new(&[1]);
    cluster.write(10);
    cluster.joiner(2);
    cluster
        .change(MembershipChange::AddLearner(NodeId(2)))
        .unwrap();
    cluster.ticks(20);
    assert_eq!(cluster.host(1).membership.learners, [NodeId(2)]);
    cluster.assert_agreed(&[1, 2]);

    cluster
        .change(MembershipChange::Promote(NodeId(2)))
        .unwrap();
    assert_eq!(voters(&cluster, 2), [1, 2]);
    assert!(!cluster.host(2).membership.is_joint());
    cluster.cut = vec![2];
    let before = cluster.host(1).applied;
    cluster.step(1, propose(77, "alone"));
    cluster.ticks(2);
    assert_eq!(cluster.host(1).applied, before, "two of two are needed");
    cluster.cut.clear();
    cluster.ticks(10);
    cluster.assert_agreed(&[1, 2]);

    cluster
        .change(MembershipChange::RemovePeer(NodeId(2)))
        .unwrap();
    assert_eq!(voters(&cluster, 1), [1]);
    cluster.cut = vec![2];
    cluster.write(5);
    assert!(cluster.host(1).lines.len() > 14, "one of one is enough");
}

#[test]
fn a_peer_is_added_as_a_learner_and_votes_once_it_has_caught_up() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(30);
    cluster.joiner(4);
    cluster
        .change(MembershipChange::AddPeer(NodeId(4)))
        .unwrap();
    cluster.ticks(40);
    assert_eq!(voters(&cluster, 4), [1, 2, 3, 4]);
    cluster.assert_agreed(&[1, 2, 3, 4]);
}

/// A peer was added, and has not caught up: 4 gets no messages.
fn one_waits_for_its_vote() -> Cluster {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(30);
    cluster.joiner(4);
    cluster.cut = vec![4];
    cluster
        .change(MembershipChange::AddPeer(NodeId(4)))
        .unwrap();
    cluster.ticks(5);
    for id in 1..=3 {
        let membership = cluster.host(id).engine.membership();
        assert_eq!(membership.to_promote, [NodeId(4)], "member {id}");
        assert_eq!(membership.learners, [NodeId(4)], "member {id}");
    }
    cluster
}

fn assert_all_vote(cluster: &Cluster) {
    for id in 1..=4 {
        let membership = cluster.host(id).engine.membership();
        assert_eq!(*membership, members(&[1, 2, 3, 4]), "member {id}");
    }
    cluster.assert_agreed(&[1, 2, 3, 4]);
}

#[test]
fn the_next_leader_completes_a_promotion_of_the_one_before() {
    let mut cluster = one_waits_for_its_vote();
    cluster.cut = vec![1, 4];
    cluster.ticks(60);
    let leader = cluster.leader();
    assert_ne!(leader, 1);
    cluster.cut = vec![1];
    cluster.ticks(60);
    let voters_now = voters(&cluster, leader);
    assert_eq!(voters_now, [1, 2, 3, 4], "without the one who added it");
    cluster.cut.clear();
    cluster.ticks(60);
    assert_all_vote(&cluster);
}

#[test]
fn a_pending_promotion_survives_snapshots_and_restarts_of_all_members() {
    let mut cluster = one_waits_for_its_vote();
    for id in 1..=3 {
        cluster.snapshot(id);
        assert_eq!(
            cluster.host(id).newest().manifest.peers.to_promote,
            [NodeId(4)]
        );
    }
    for id in 1..=3 {
        cluster.restart(id);
    }
    cluster.ticks(60);
    cluster.cut.clear();
    cluster.ticks(100);
    assert_all_vote(&cluster);
}

#[test]
fn a_learner_that_was_added_as_one_stays_one_and_a_peer_that_goes_is_not_promoted() {
    let mut cluster = one_waits_for_its_vote();
    cluster.joiner(5);
    cluster
        .change(MembershipChange::AddLearner(NodeId(5)))
        .unwrap();
    cluster
        .change(MembershipChange::RemovePeer(NodeId(4)))
        .unwrap();
    cluster.ticks(100);
    let membership = cluster.host(1).engine.membership();
    assert_eq!(membership.voters, [1, 2, 3].map(NodeId));
    assert_eq!(membership.learners, [NodeId(5)]);
    assert_eq!(membership.to_promote, []);
    cluster.assert_agreed(&[1, 2, 3, 5]);
}

#[test]
fn changes_that_cannot_be_are_refused_with_the_reason() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(1);
    let refusals = [
        (
            MembershipChange::AddLearner(NodeId(2)),
            ChangeRefused::AlreadyMember,
        ),
        (
            MembershipChange::Promote(NodeId(2)),
            ChangeRefused::NotALearner,
        ),
        (
            MembershipChange::Promote(NodeId(9)),
            ChangeRefused::NotAMember,
        ),
        (
            MembershipChange::RemovePeer(NodeId(9)),
            ChangeRefused::NotAMember,
        ),
        (
            MembershipChange::RemovePeer(NodeId(1)),
            ChangeRefused::IsLeader,
        ),
        (MembershipChange::AddPeer(NodeId(0)), ChangeRefused::Nobody),
    ];
    for (change, reason) in refusals {
        assert_eq!(cluster.change(change.clone()), Err(reason), "{change:?}");
    }
    // Node 4 does not exist, so it never catches up.
    cluster
        .change(MembershipChange::AddLearner(NodeId(4)))
        .unwrap();
    let lagging = cluster.change(MembershipChange::Promote(NodeId(4)));
    assert!(
        matches!(lagging, Err(ChangeRefused::Lagging { .. })),
        "{lagging:?}"
    );

    // One at a time: the first cannot be committed yet.
    cluster.fate = Box::new(|_| Fate::Lost);
    let change = MembershipChange::RemovePeer(NodeId(3));
    cluster.step(
        1,
        Event::ChangeMembership {
            ticket: Ticket(1000),
            change,
        },
    );
    let change = MembershipChange::AddLearner(NodeId(5));
    cluster.step(
        1,
        Event::ChangeMembership {
            ticket: Ticket(1001),
            change,
        },
    );
    let last = cluster.host(1).said.last().unwrap();
    let in_progress = RejectReason::Membership(ChangeRefused::InProgress);
    assert!(
        matches!(last, Action::Rejected { reason, .. } if *reason == in_progress),
        "{last:?}"
    );
}

#[test]
fn the_membership_survives_successive_snapshots_and_restarts() {
    // Founded with one member; all others were added later.
    let mut cluster = Cluster::new(&[1]);
    for id in 2..=4 {
        cluster.joiner(id);
        cluster
            .change(MembershipChange::AddPeer(NodeId(id)))
            .unwrap();
        cluster.ticks(40);
        cluster.write(10);
        cluster.snapshot(1);
    }
    cluster.write(10);
    cluster.snapshot(1);
    assert_eq!(
        cluster.host(1).newest().manifest.peers,
        members(&[1, 2, 3, 4])
    );
    for id in 1..=4 {
        cluster.restart(id);
        assert_eq!(voters(&cluster, id), [1, 2, 3, 4], "member {id}");
    }
    // What was restored from a snapshot counts the right majority: two of four are none.
    cluster.cut = vec![1, 2];
    cluster.ticks(100);
    for id in 3..=4 {
        assert_ne!(cluster.host(id).engine.role(), Role::Leader, "member {id}");
    }
    cluster.cut = vec![1];
    cluster.ticks(100);
    cluster.write(5);
    cluster.assert_agreed(&[2, 3, 4]);
}

#[test]
fn a_change_that_is_committed_and_not_applied_keeps_a_restarted_member_from_leading_alone() {
    let mut cluster = Cluster::new(&[1]);
    cluster.step(1, Event::KeepFrom { lsn: Lsn(0) });
    cluster.write(5);
    let before = (cluster.host(1).applied, cluster.host(1).membership.clone());
    cluster.joiner(2);
    cluster
        .change(MembershipChange::AddPeer(NodeId(2)))
        .unwrap();
    cluster.ticks(40);
    assert_eq!(voters(&cluster, 1), [1, 2]);
    // Its state is older than its log, from when it was alone.
    let disk = cluster.host(1).disk.clone();
    let (applied, alone) = before;
    let mut engine = Engine::open(
        super::cluster::config(1),
        disk.state(),
        applied.lsn,
        &alone,
        disk.reader(),
    )
    .unwrap();
    let actions = engine.step(Event::Campaign);
    assert_eq!(engine.role(), Role::Follower, "{actions:?}");
}

#[test]
fn a_voter_that_lost_its_log_is_not_opened_and_a_joiner_under_its_number_is_not_helped() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(5);
    let lost = Disk::default();
    let refused = Engine::open(
        super::cluster::config(2),
        lost.state(),
        Lsn(0),
        &members(&[1, 2, 3]),
        lost.reader(),
    );
    assert!(matches!(refused, Err(OpenError::LogLost { voters: 3, .. })));

    // It also loses its membership, and starts as a new node.
    cluster.joiner(2);
    cluster.ticks(60);
    let joiner = &cluster.host(2).engine;
    assert!(joiner.status().waits_to_join);
    assert_eq!(
        (joiner.last(), joiner.term()),
        (Lsn(0), Term(0)),
        "no vote, no entry"
    );
    let refused = cluster.host(1).engine.counters().refused;
    assert!(refused[&Refusal::NotAMember] > 0, "{refused:?}");
}

#[test]
fn messages_of_strangers_other_lineages_and_older_incarnations_are_counted_and_refused() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(3);
    cluster.restart(3);
    cluster.ticks(10);
    let term = cluster.host(1).engine.term();
    let mut message = raft::eraftpb::Message::default();
    message.set_msg_type(MessageType::MsgHeartbeat);
    (message.from, message.to, message.term) = (3, 1, term.0 + 5);
    let sender = cluster.identity(3);
    type Change = fn(&mut crate::message::Identity);
    let strangers: [(Change, Refusal); 4] = [
        (|s| s.cluster.0[0] ^= 1, Refusal::Cluster),
        (|s| s.group.0 ^= 1, Refusal::Group),
        (|s| s.lineage.0[15] ^= 1, Refusal::Lineage),
        (|s| s.incarnation = Incarnation(0), Refusal::Incarnation),
    ];
    for (change, refusal) in strangers {
        let mut sender = sender;
        change(&mut sender);
        let payload = Payload::Raft(PeerMessage(message.clone()));
        cluster.inject(sender.seal(NodeId(1), payload));
        assert_eq!(cluster.host(1).engine.counters().refused[&refusal], 1);
    }
    assert_eq!(
        cluster.host(1).engine.term(),
        term,
        "nothing of it was stepped"
    );
    cluster.inject(sender.seal(NodeId(1), Payload::Raft(PeerMessage(message))));
    assert!(
        cluster.host(1).engine.term() > term,
        "the same, from the right one, is heard"
    );
}

#[test]
fn a_read_is_ready_when_a_majority_has_confirmed_the_leader_and_it_is_applied() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(5);
    for id in [1, 2] {
        let ticket = Ticket(40 + id);
        cluster.step(id, Event::ReadIndex { ticket });
        cluster.pump();
        let ready = cluster.host(id).said.iter().any(
            |a| matches!(a, Action::ReadReady { ticket: t, lsn } if *t == ticket && lsn.0 >= 5),
        );
        assert!(ready, "member {id}: {:?}", cluster.host(id).said);
    }
    // While it is cut off, no member confirms.
    cluster.cut = vec![1];
    let ticket = Ticket(50);
    cluster.step(1, Event::ReadIndex { ticket });
    cluster.ticks(60);
    let failed = |a: &Action| {
        matches!(
            a,
            Action::ReadFailed {
                ticket: Ticket(50),
                ..
            }
        )
    };
    assert_eq!(cluster.said(1, failed), 1);
}
