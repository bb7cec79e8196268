//! Nodes that drain: their leaderships and votes move, and their replicas stay.

use super::*;

/// The votes that a change gives, and those that it takes from voters which become learners.
fn moved(promote: &[u64], demote: &[u64]) -> Option<Step> {
    let change = VoterChange {
        promote: ids(promote),
        demote: ids(demote),
        ..VoterChange::default()
    };
    Some(Step::Change(simplest(change)))
}

#[test]
fn a_draining_node_gives_its_leaderships_away_and_its_vote_to_another_one_in_one_change() {
    let drains = nodes(&[(1, Draining), (2, Active), (3, Active), (4, Active)]);
    let three = members(&[1, 2, 3], &[4]);
    assert_eq!(
        next(2, &three, &[2], &drains),
        Some(Step::Transfer(NodeId(3)))
    );
    let drains = nodes(&[(1, Active), (2, Draining), (3, Active), (4, Active)]);
    assert_eq!(next(2, &three, &[], &drains), moved(&[4], &[2]));
    let waits = plan(2, &three, &[4], &drains);
    assert_eq!(waits.step, None, "it votes until 4 does");
    // As earlier releases leave it.
    let four = members(&[1, 2, 3, 4], &[]);
    assert_eq!(next(2, &four, &[], &drains), moved(&[], &[2]));
}

#[test]
fn a_draining_node_without_a_vote_stays_a_learner_and_is_added_to_the_catalog_alone() {
    let drains = nodes(&[(1, Active), (2, Draining), (3, Active), (4, Active)]);
    // As earlier releases leave it.
    let without = members(&[1, 3, 4], &[]);
    let add = Some(Step::Change(AddLearner(NodeId(2))));
    assert_eq!(next(0, &without, &[], &drains), add);
    assert_eq!(next(3, &without, &[], &drains), None);
    // That is where it ends: it gets no vote.
    let learns = members(&[1, 3, 4], &[2]);
    for partition in [0, 3] {
        let ends = plan(partition, &learns, &[], &drains);
        assert_eq!((ends.step, ends.waits), (None, None), "{partition}");
    }
    // Once it is removed, it is not even that.
    let removed = nodes(&[(1, Active), (2, Removed), (3, Active), (4, Active)]);
    let remove = Some(Step::Change(RemovePeer(NodeId(2))));
    for partition in [0, 3] {
        assert_eq!(next(partition, &learns, &[], &removed), remove);
    }
    assert_eq!(next(0, &without, &[], &removed), None);
}

#[test]
fn a_draining_node_keeps_its_vote_where_no_other_one_can_take_it() {
    let drains = nodes(&[(1, Active), (2, Active), (3, Draining)]);
    let three = members(&[1, 2, 3], &[]);
    let stays = plan(0, &three, &[], &drains);
    assert_eq!(
        stays.step, None,
        "two voters would stop with the loss of either"
    );
    let wait = stays.waits.unwrap();
    assert!(!wait.is_problem && wait.why.contains("n3"), "{wait:?}");
    let two = nodes(&[(1, Active), (2, Draining)]);
    let learns = moved(&[], &[2]);
    assert_eq!(next(0, &members(&[1, 2], &[]), &[], &two), learns);
}

#[test]
fn the_only_voter_hands_its_vote_over_when_it_drains_and_takes_new_nodes_in() {
    let alone = members(&[1], &[2]);
    let drains = nodes(&[(1, Draining), (2, Active)]);
    let promote = Some(Step::Change(MembershipChange::Promote(NodeId(2))));
    assert_eq!(next(1, &alone, &[], &drains), promote);
    // Then it gives the leadership away, and the new leader removes it.
    let both = members(&[1, 2], &[]);
    let transfer = Some(Step::Transfer(NodeId(2)));
    assert_eq!(next(1, &both, &[], &drains), transfer);
    // A node that is started to help is added.
    let helped = nodes(&[(1, Draining), (2, Joining)]);
    let add = Some(Step::Change(AddLearner(NodeId(2))));
    assert_eq!(next(1, &members(&[1], &[]), &[], &helped), add);
    // Of three, votes go to both others at once.
    let three = nodes(&[(1, Draining), (2, Active), (3, Active)]);
    let one = members(&[1], &[2, 3]);
    assert_eq!(next(1, &one, &[], &three), voters(&[2, 3], &[]));
}

#[test]
fn a_leader_that_cannot_leave_says_what_it_waits_for_and_the_way_out() {
    let why = |membership: &Membership, gone: &[u64], nodes: &Nodes| {
        let plan = plan(1, membership, gone, nodes);
        assert_eq!(plan.step, None);
        let wait = plan.waits.unwrap();
        assert!(wait.is_problem, "{wait:?}");
        wait.why
    };
    let alone = nodes(&[(1, Draining)]);
    let said = why(&members(&[1], &[]), &[], &alone);
    assert!(said.contains("start another node"), "{said}");
    assert!(said.contains("esker cluster activate n1"), "{said}");
    let joins = nodes(&[(1, Draining), (2, Joining)]);
    let said = why(&members(&[1], &[2]), &[], &joins);
    assert!(
        said.contains("n2 has not caught up with the catalog"),
        "{said}"
    );
    let gone = nodes(&[(1, Draining), (2, Active)]);
    let said = why(&members(&[1], &[2]), &[2], &gone);
    assert!(said.contains("n2 was not heard from yet"), "{said}");
    let said = why(
        &members(&[1, 2, 3], &[]),
        &[2, 3],
        &nodes(&[(1, Draining), (2, Active), (3, Active)]),
    );
    assert!(
        said.contains("n2 was not") && said.contains("n3 was not"),
        "{said}"
    );
}

/// Of two that leave, one is gone for good, and the other one goes on as a learner.
#[test]
fn one_change_demotes_who_drains_and_removes_who_was_removed() {
    let leave = nodes(&[
        (1, Active),
        (2, Draining),
        (3, Removed),
        (4, Active),
        (5, Active),
    ]);
    let membership = members(&[1, 2, 3], &[4, 5]);
    let change = VoterChange {
        promote: ids(&[4, 5]),
        demote: ids(&[2]),
        remove: ids(&[3]),
    };
    let change = Some(Step::Change(simplest(change)));
    assert_eq!(next(1, &membership, &[], &leave), change);
    // With one that takes a vote over, the removed one goes first.
    let one = members(&[1, 2, 3], &[4]);
    let leave = nodes(&[(1, Active), (2, Draining), (3, Removed), (4, Active)]);
    assert_eq!(next(1, &one, &[], &leave), voters(&[4], &[3]));
}

/// Whatever a group looks like when nodes drain, each step keeps every replica, and the number of voters does not
/// fall where another node can vote.
#[test]
fn no_step_of_a_drain_takes_a_replica_away() {
    for count in 2..=6_u64 {
        for drained in 2..=count {
            for partition in 0..3 {
                let state = |id: u64| if id == drained { Draining } else { Active };
                let states: Vec<_> = (1..=count).map(|id| (id, state(id))).collect();
                let nodes = nodes(&states);
                let votes = voters_with(count as usize, partition) as u64;
                let first: Vec<u64> = (1..=votes).collect();
                let others: Vec<u64> = (votes + 1..=count).collect();
                let mut membership = members(&first, &others);
                let at = format!("{count} nodes, {drained} drains, partition {partition}");
                for step in 0.. {
                    assert!(step < 10, "{at}: {membership:?}");
                    let case = Case {
                        partition,
                        membership: &membership,
                        gone: &[],
                        lagging: &[],
                        held: Duration::ZERO,
                        nodes: &nodes,
                    };
                    // Node 1 leads on: who leads makes no difference here.
                    let change = match case.plan().step {
                        None | Some(Step::Transfer(_)) => break,
                        Some(Step::Change(MembershipChange::ChangeVoters(change))) => change,
                        Some(other) => panic!("{at}: {other:?}"),
                    };
                    assert_eq!(change.remove, [], "{at}");
                    let before = membership.voters.clone();
                    membership.voters = change.voters_after(&before);
                    membership
                        .learners
                        .retain(|it| !change.promote.contains(it));
                    membership.learners.extend(&change.demote);
                    assert_eq!(membership.voters.len(), before.len(), "{at}");
                }
                assert_eq!(membership.members().count() as u64, count, "{at}");
                let is_needed = count <= votes && count > 2;
                let votes_still = membership.voters.contains(&NodeId(drained));
                assert_eq!(votes_still, is_needed, "{at}: {membership:?}");
            }
        }
    }
}
