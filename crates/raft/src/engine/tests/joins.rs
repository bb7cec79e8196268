//! Nodes that join a group and are killed at any moment of it, and changes of several voters as one.

use super::cluster::Cluster;
use super::*;

/// What a host does about a node that is to vote: each time by what its leader shows alone, as
/// `cluster/plan.rs` of `esker-node` does.
fn bring_in(cluster: &mut Cluster, node: NodeId) {
    let leads = |id: &u64| {
        let host = cluster.host(*id);
        host.up && host.engine.role() == Role::Leader
    };
    let ids: Vec<u64> = cluster.hosts.keys().copied().collect();
    for id in ids.into_iter().filter(leads).collect::<Vec<_>>() {
        let status = cluster.host(id).engine.status();
        let peer = status.peers.iter().find(|peer| peer.id == node);
        let change = match peer {
            None => MembershipChange::AddLearner(node),
            Some(peer)
                if status.membership.learners.contains(&node)
                    && peer.state == PeerState::Replicate =>
            {
                MembershipChange::Promote(node)
            }
            Some(_) => continue,
        };
        let ticket = Ticket(1 << 50);
        cluster.step(id, Event::ChangeMembership { ticket, change });
        cluster.pump();
    }
}

pub(super) fn kill(cluster: &mut Cluster, id: u64) {
    cluster.host_mut(id).up = false;
    let others: Vec<u64> = cluster.hosts.keys().copied().collect();
    for other in others.into_iter().filter(|other| *other != id) {
        cluster.step(other, Event::Unreachable(NodeId(id)));
    }
}

fn votes_everywhere(cluster: &Cluster, node: NodeId) -> bool {
    let votes =
        |membership: &Membership| membership.voters.contains(&node) && !membership.is_joint();
    cluster.hosts.values().all(|host| votes(&host.membership))
}

#[test]
fn a_peer_that_was_unreachable_while_nothing_was_written_is_replicated_to_again() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(5);
    kill(&mut cluster, 3);
    cluster.ticks(30);
    cluster.restart(3);
    cluster.ticks(30);
    let status = cluster.host(1).engine.status();
    let peer = status.peers.iter().find(|peer| peer.id == NodeId(3));
    let peer = peer.unwrap();
    assert_eq!(peer.matched, status.last);
    assert_eq!(peer.state, PeerState::Replicate, "nothing is appended");
    cluster.write(1);
    cluster.assert_agreed(&[1, 2, 3]);
}

/// Nothing is written meanwhile: no acknowledgement of an entry helps.
#[test]
fn a_node_that_is_killed_at_any_moment_of_its_join_votes_in_the_end() {
    for killed_after in 0..40 {
        for (who, moves) in [(4, false), (4, true), (1, false)] {
            let mut cluster = Cluster::new(&[1, 2, 3]);
            cluster.write(30);
            cluster.snapshot(1);
            cluster.ticks(5);
            cluster.joiner(4);
            let tick = |cluster: &mut Cluster| {
                cluster.ticks(1);
                bring_in(cluster, NodeId(4));
            };
            for _ in 0..killed_after {
                tick(&mut cluster);
            }
            // Another member leads when it comes back, or the same.
            if moves {
                let (ticket, to) = (Ticket(9), NodeId(2));
                cluster.step(1, Event::TransferLeadership { ticket, to });
                cluster.pump();
            }
            for _ in 0..3 {
                kill(&mut cluster, who);
                for _ in 0..25 {
                    tick(&mut cluster);
                }
                cluster.restart(who);
                for _ in 0..3 {
                    tick(&mut cluster);
                }
            }
            let mut ticks = 0;
            while !votes_everywhere(&cluster, NodeId(4)) {
                tick(&mut cluster);
                ticks += 1;
                assert!(
                    ticks < 200,
                    "{who} was killed after {killed_after} ticks, and 4 does not vote: {:?}",
                    cluster.host(cluster.leader()).engine.status()
                );
            }
            cluster.ticks(10);
            cluster.assert_agreed(&[1, 2, 3, 4]);
        }
    }
}

/// A group of one, with two learners that have caught up.
fn one_with_two_learners() -> Cluster {
    let mut cluster = Cluster::new(&[1]);
    cluster.write(10);
    for id in 2..=3 {
        cluster.joiner(id);
        let add = MembershipChange::AddLearner(NodeId(id));
        cluster.change(add).unwrap();
        cluster.ticks(20);
    }
    cluster
}

fn numbers(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

pub(super) fn change_voters(promote: &[u64], remove: &[u64]) -> MembershipChange {
    MembershipChange::ChangeVoters(VoterChange {
        promote: numbers(promote),
        remove: numbers(remove),
        ..VoterChange::default()
    })
}

fn demote(promote: &[u64], demote: &[u64]) -> MembershipChange {
    MembershipChange::ChangeVoters(VoterChange {
        promote: numbers(promote),
        demote: numbers(demote),
        ..VoterChange::default()
    })
}

#[test]
fn two_learners_get_their_votes_in_one_change() {
    let mut cluster = one_with_two_learners();
    cluster.change(change_voters(&[2, 3], &[])).unwrap();
    for id in 1..=3 {
        let host = cluster.host(id);
        assert_eq!(host.membership, members(&[1, 2, 3]), "member {id}");
        for before in &host.memberships {
            let (now, old) = (before.voters.len(), before.voters_outgoing.len());
            assert!(now != 2 && old != 2, "two voters decide: {before:?}");
        }
    }
    cluster.cut = vec![1];
    cluster.ticks(60);
    cluster.write(5);
    cluster.assert_agreed(&[2, 3]);
}

#[test]
fn a_member_is_replaced_by_another_one_in_one_change() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(10);
    cluster.joiner(4);
    let add = MembershipChange::AddLearner(NodeId(4));
    cluster.change(add).unwrap();
    cluster.ticks(20);
    cluster.change(change_voters(&[4], &[3])).unwrap();
    for id in [1, 2, 4] {
        let host = cluster.host(id);
        assert_eq!(host.membership, members(&[1, 2, 4]), "member {id}");
        let few = host.memberships.iter().find(|it| it.voters.len() != 3);
        assert_eq!(few, None, "member {id}");
    }
    cluster.cut = vec![1, 3];
    cluster.ticks(60);
    cluster.write(5);
    cluster.assert_agreed(&[2, 4]);
}

/// Three voters, and a learner that has caught up.
pub(super) fn three_with_a_learner() -> Cluster {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(10);
    cluster.joiner(4);
    let add = MembershipChange::AddLearner(NodeId(4));
    cluster.change(add).unwrap();
    cluster.ticks(20);
    cluster
}

#[test]
fn a_voter_becomes_a_learner_in_the_change_that_gives_its_vote_to_another_one() {
    let mut cluster = three_with_a_learner();
    cluster.change(demote(&[4], &[3])).unwrap();
    let moved = Membership {
        learners: vec![NodeId(3)],
        ..members(&[1, 2, 4])
    };
    for id in 1..=4 {
        let host = cluster.host(id);
        assert_eq!(host.membership, moved, "member {id}");
        let few = host.memberships.iter().find(|it| it.voters.len() != 3);
        assert_eq!(few, None, "member {id}");
        let without_3 = |it: &&Membership| !it.contains(NodeId(3));
        let gap = host.memberships.iter().find(without_3);
        assert_eq!(gap, None, "member {id}: the learner belongs to it always");
    }
    // It gets what is written, and counts for no majority.
    cluster.write(5);
    cluster.assert_agreed(&[1, 2, 3, 4]);
    cluster.cut = vec![3, 4];
    cluster.ticks(60);
    cluster.write(5);
    cluster.assert_agreed(&[1, 2]);
    cluster.cut.clear();
    cluster.ticks(60);
    cluster.assert_agreed(&[1, 2, 3, 4]);
    // It may get its vote back under its number.
    cluster.change(demote(&[3], &[4])).unwrap();
    cluster.write(5);
    cluster.assert_agreed(&[1, 2, 3, 4]);
    assert_eq!(cluster.host(1).membership.voters, numbers(&[1, 2, 3]));
}

/// Only what confirms the change is written after it, and the state on the disk is as of before it.
#[test]
fn a_member_that_restarts_after_a_change_does_not_need_those_who_were_removed() {
    for removed in [&[2][..], &[2, 3]] {
        let mut cluster = Cluster::new(&[1, 2, 3]);
        cluster.write(3);
        if removed == [2] {
            // One after the other.
            cluster.change(change_voters(&[], &[3])).unwrap();
            cluster.write(1);
        }
        let host = cluster.host(1);
        let (applied, membership) = (host.applied, host.membership.clone());
        let lines = host.lines.clone();
        cluster.change(change_voters(&[], removed)).unwrap();
        assert_eq!(cluster.host(1).membership, members(&[1]), "{removed:?}");
        for id in 1..=3 {
            kill(&mut cluster, id);
        }
        let host = cluster.host_mut(1);
        (host.applied, host.membership, host.lines) = (applied, membership, lines);
        cluster.restart(1);
        cluster.ticks(100);
        assert_eq!(cluster.host(1).membership, members(&[1]), "{removed:?}");
        cluster.write(2);
    }
}

#[test]
fn only_a_voter_that_does_not_lead_is_demoted() {
    let mut cluster = three_with_a_learner();
    for (change, refused) in [
        (demote(&[], &[4]), ChangeRefused::NotAVoter),
        (demote(&[], &[9]), ChangeRefused::NotAMember),
        (demote(&[], &[1]), ChangeRefused::IsLeader),
        (demote(&[4], &[4]), ChangeRefused::Malformed),
    ] {
        assert_eq!(cluster.change(change.clone()), Err(refused), "{change:?}");
    }
    assert_eq!(cluster.host(1).membership.voters, numbers(&[1, 2, 3]));
    // Without another one that gets the vote there are two.
    cluster.change(demote(&[], &[3])).unwrap();
    let two = &cluster.host(2).membership;
    assert_eq!(two.voters, numbers(&[1, 2]));
    assert_eq!(two.learners, numbers(&[3, 4]));
}

/// The change is in the log, and its first half in force; the leader is lost then.
#[test]
fn the_next_leader_completes_a_change_of_several_voters() {
    let mut cluster = one_with_two_learners();
    cluster.change(change_voters(&[2, 3], &[])).unwrap();
    for id in 4..=5 {
        cluster.joiner(id);
        let add = MembershipChange::AddLearner(NodeId(id));
        cluster.change(add).unwrap();
        cluster.ticks(20);
    }
    let ticket = Ticket(1000);
    let change = change_voters(&[4, 5], &[3]);
    cluster.step(1, Event::ChangeMembership { ticket, change });
    let mut arrived = 0;
    while !cluster.host(1).membership.is_joint() {
        arrived += 1;
        assert!(arrived < 100, "it is never in force");
        cluster.next_arrives();
    }
    kill(&mut cluster, 1);
    cluster.ticks(100);
    for id in [2, 4, 5] {
        let now = &cluster.host(id).membership;
        assert_eq!(*now, members(&[1, 2, 4, 5]), "member {id}");
    }
}

#[test]
fn a_change_after_which_no_majority_would_be_in_contact_is_refused() {
    let mut cluster = one_with_two_learners();
    cluster.change(change_voters(&[2, 3], &[])).unwrap();
    cluster.cut = vec![3];
    cluster.ticks(15);
    let refused = ChangeRefused::NoMajority {
        heard: 1,
        voters: 2,
    };
    for change in [
        MembershipChange::RemovePeer(NodeId(2)),
        change_voters(&[], &[2]),
    ] {
        assert_eq!(cluster.change(change), Err(refused));
    }
    assert_eq!(cluster.host(1).membership, members(&[1, 2, 3]));
    // Without the one that is away a majority is there.
    let remove = MembershipChange::RemovePeer(NodeId(3));
    cluster.change(remove).unwrap();
    cluster.write(1);
    cluster.assert_agreed(&[1, 2]);
}

#[test]
fn a_change_of_voters_that_is_none_or_names_one_twice_is_refused() {
    let mut cluster = one_with_two_learners();
    let malformed = Err(ChangeRefused::Malformed);
    assert_eq!(cluster.change(change_voters(&[], &[])), malformed);
    assert_eq!(cluster.change(change_voters(&[2, 2], &[])), malformed);
    assert_eq!(cluster.change(change_voters(&[2], &[2])), malformed);
    // If one of them is not possible, nothing of it is.
    let refused = cluster.change(change_voters(&[2], &[9]));
    assert_eq!(refused, Err(ChangeRefused::NotAMember));
    let refused = cluster.change(change_voters(&[2], &[1]));
    assert_eq!(refused, Err(ChangeRefused::IsLeader));
    assert_eq!(cluster.host(1).membership.voters, [NodeId(1)]);
}
