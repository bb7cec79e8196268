//! From what a leader observes to its next step.

use esker_partition::ClusterNode;
use esker_raft::Lsn;
use esker_raft::engine::PeerState;

use super::*;

fn nodes(states: &[(u64, NodeState)]) -> Nodes {
    let node = |(id, state): &(u64, NodeState)| ClusterNode {
        id: *id,
        name: format!("n{id}"),
        peer_address: String::new(),
        client_address: String::new(),
        zone: String::new(),
        state: *state,
        registered_at_ms: 0,
        reads_format: 1,
        incarnations: Vec::new(),
        removed_at_ms: None,
        given_up: false,
    };
    states.iter().map(|one| (one.0, node(one))).collect()
}

fn ids(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

fn members(voters: &[u64], learners: &[u64]) -> Membership {
    Membership {
        voters: ids(voters),
        learners: ids(learners),
        ..Membership::default()
    }
}

fn peer(id: u64, ago: Option<u64>) -> PeerStatus {
    PeerStatus {
        id: NodeId(id),
        matched: Lsn(LAST),
        state: PeerState::Replicate,
        pending_snapshot: None,
        last_failure: None,
        heard_ticks_ago: ago,
    }
}

/// A group as its leader 1 sees it, which is in contact with all but those that are gone.
struct Case<'a> {
    partition: u64,
    membership: &'a Membership,
    gone: &'a [u64],
    lagging: &'a [u64],
    held: Duration,
    nodes: &'a Nodes,
}

impl Case<'_> {
    fn plan(&self) -> Plan {
        let others = self.membership.members().filter(|node| node.0 != 1);
        let peers: Vec<_> = others
            .map(|node| PeerStatus {
                matched: Lsn(if self.lagging.contains(&node.0) {
                    7
                } else {
                    LAST
                }),
                ..peer(node.0, (!self.gone.contains(&node.0)).then_some(0))
            })
            .collect();
        let seen = Seen {
            partition: self.partition,
            me: NodeId(1),
            membership: self.membership,
            peers: &peers,
            last: LAST,
            is_settled: true,
            held: self.held,
        };
        seen.plan(self.nodes)
    }
}

/// After a change was held back for as long as it ever is.
fn plan(partition: u64, membership: &Membership, gone: &[u64], nodes: &Nodes) -> Plan {
    let case = Case {
        partition,
        membership,
        gone,
        lagging: &[],
        held: MAX_HOLD,
        nodes,
    };
    case.plan()
}

fn next(partition: u64, membership: &Membership, gone: &[u64], nodes: &Nodes) -> Option<Step> {
    plan(partition, membership, gone, nodes).step
}

fn voters(promote: &[u64], remove: &[u64]) -> Option<Step> {
    let change = VoterChange {
        promote: ids(promote),
        remove: ids(remove),
    };
    Some(Step::Change(simplest(change)))
}

/// The last entry of the log in all cases.
const LAST: u64 = 5000;

use MembershipChange::{AddLearner, RemovePeer};
use NodeState::{Active, Draining, Joining, Removed};

#[test]
fn a_node_that_joins_becomes_a_learner_and_votes_once_there_are_three() {
    let two = nodes(&[(1, Active), (2, Joining)]);
    let add = Some(Step::Change(AddLearner(NodeId(2))));
    assert_eq!(next(1, &members(&[1], &[]), &[], &two), add);
    assert_eq!(next(1, &members(&[1], &[2]), &[], &two), None);
    let two = nodes(&[(1, Active), (2, Active)]);
    let alone = plan(1, &members(&[1], &[2]), &[], &two);
    assert_eq!(alone, Plan::default(), "two voters are worse than one");
    let three = nodes(&[(1, Active), (2, Active), (3, Active)]);
    let one = members(&[1], &[2, 3]);
    assert_eq!(next(1, &one, &[], &three), voters(&[2, 3], &[]));
    assert_eq!(next(1, &one, &[2], &three), voters(&[3], &[]));
    assert_eq!(
        next(1, &members(&[1, 3], &[2]), &[2], &three),
        Some(Step::Transfer(NodeId(3)))
    );
    let two = members(&[1, 2], &[3]);
    assert_eq!(next(0, &two, &[], &three), voters(&[3], &[]));
}

/// What the transport does at the moment says nothing of what a peer has: after a restart of the peer nothing may
/// be sent to it, because it lacks nothing.
#[test]
fn a_learner_that_has_everything_gets_its_vote_also_while_nothing_is_sent_to_it() {
    let three = nodes(&[(1, Active), (2, Active), (3, Active)]);
    let membership = members(&[1, 2], &[3]);
    for state in [PeerState::Probe, PeerState::Snapshot] {
        let peers = [
            PeerStatus {
                state,
                ..peer(2, Some(0))
            },
            PeerStatus {
                state,
                ..peer(3, Some(0))
            },
        ];
        let seen = Seen {
            partition: 1,
            me: NodeId(1),
            membership: &membership,
            peers: &peers,
            last: LAST,
            is_settled: false,
            held: Duration::ZERO,
        };
        assert_eq!(seen.plan(&three).step, voters(&[3], &[]), "{state:?}");
    }
}

#[test]
fn one_voter_is_not_made_two_while_the_third_is_about_to_catch_up() {
    let three = nodes(&[(1, Active), (2, Active), (3, Active)]);
    let membership = members(&[1], &[2, 3]);
    let case = |lagging: &[u64], gone: &[u64], held| {
        let case = Case {
            partition: 1,
            membership: &membership,
            gone,
            lagging,
            held,
            nodes: &three,
        };
        case.plan()
    };
    let early = case(&[3], &[], Duration::ZERO);
    assert!(early.step.is_none() && early.holds, "{early:?}");
    let why = early.waits.unwrap();
    assert!(
        why.is_problem && why.why.contains("n3 lacks 4993 entries"),
        "{why:?}"
    );
    let just_before = MAX_HOLD - Duration::from_millis(1);
    assert_eq!(case(&[3], &[], just_before).step, None);
    assert_eq!(
        case(&[3], &[], MAX_HOLD).step,
        voters(&[2], &[]),
        "the bound"
    );
    // One that is away may have been added just now, and is not waited for so long.
    assert_eq!(case(&[], &[3], Duration::ZERO).step, None);
    assert_eq!(case(&[], &[3], MAX_HOLD_AWAY).step, voters(&[2], &[]));
    assert_eq!(case(&[], &[], Duration::ZERO).step, voters(&[2, 3], &[]));
}

#[test]
fn five_nodes_vote_in_the_catalog_and_three_elsewhere() {
    let five = nodes(&[
        (1, Active),
        (2, Active),
        (3, Active),
        (4, Active),
        (5, Active),
    ]);
    let three = members(&[1, 2, 3], &[4, 5]);
    assert_eq!(next(0, &three, &[], &five), voters(&[4, 5], &[]));
    assert_eq!(next(3, &three, &[], &five), None);
    let one = members(&[1], &[2, 3, 4, 5]);
    let case = |lagging: &[u64], membership: &Membership| {
        let case = Case {
            partition: 0,
            membership,
            gone: &[],
            lagging,
            held: Duration::ZERO,
            nodes: &five,
        };
        case.plan()
    };
    // Three that are ready are made two, and the number of voters odd.
    let plan = case(&[5], &one);
    assert_eq!((plan.step, plan.holds), (voters(&[2, 3], &[]), false));
    assert_eq!(
        case(&[5], &three).step,
        None,
        "four are no better than three"
    );
    assert!(case(&[5], &three).holds);
}

#[test]
fn a_removed_node_leaves_unless_the_rest_would_lose_its_majority() {
    let nodes = nodes(&[(1, Active), (2, Active), (3, Removed)]);
    let three = members(&[1, 2, 3], &[]);
    let remove = Some(Step::Change(RemovePeer(NodeId(3))));
    assert_eq!(next(2, &three, &[3], &nodes), remove);
    let stuck = plan(2, &three, &[2], &nodes);
    assert_eq!(stuck.step, None);
    let why = stuck.waits.unwrap().why;
    assert!(why.contains("n2 was not heard from yet"), "{why}");
    assert_eq!(
        next(2, &members(&[1], &[3]), &[2], &nodes),
        remove,
        "a learner has no vote"
    );
}

#[test]
fn a_removed_learner_leaves_also_if_a_removed_voter_cannot() {
    let nodes = nodes(&[(1, Active), (2, Active), (3, Removed), (4, Removed)]);
    let membership = members(&[1, 2, 3], &[4]);
    let remove = Some(Step::Change(RemovePeer(NodeId(4))));
    assert_eq!(next(2, &membership, &[2], &nodes), remove);
}

/// The node that takes the place of another one is registered right after that was removed.
#[test]
fn a_removed_voter_is_replaced_in_one_change_by_the_node_in_its_place() {
    let three = members(&[1, 2, 3], &[]);
    let case = |membership: &Membership, lagging: &[u64], held, nodes: &Nodes| {
        let case = Case {
            partition: 0,
            membership,
            gone: &[3],
            lagging,
            held,
            nodes,
        };
        case.plan()
    };
    let alone = nodes(&[(1, Active), (2, Active), (3, Removed)]);
    let plan = case(&three, &[], Duration::ZERO, &alone);
    assert!(plan.step.is_none() && plan.holds, "{plan:?}");
    let registered = nodes(&[(1, Active), (2, Active), (3, Removed), (4, Joining)]);
    let add = Some(Step::Change(AddLearner(NodeId(4))));
    assert_eq!(case(&three, &[], Duration::ZERO, &registered).step, add);
    let with_4 = members(&[1, 2, 3], &[4]);
    let held = MIN_HOLD_REMOVED;
    assert_eq!(case(&with_4, &[4], held, &registered).step, None);
    let active = nodes(&[(1, Active), (2, Active), (3, Removed), (4, Active)]);
    assert_eq!(case(&with_4, &[4], held, &active).step, None);
    assert_eq!(case(&with_4, &[], held, &active).step, voters(&[4], &[3]));
    // It never catches up: after the bound the removal is made without it.
    let remove = voters(&[], &[3]);
    assert_eq!(case(&with_4, &[4], MAX_HOLD, &active).step, remove);
    // Nobody joins.
    assert_eq!(case(&three, &[], held, &alone).step, remove);
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
    assert_eq!(next(2, &three, &[], &drains), voters(&[4], &[2]));
    let waits = plan(2, &three, &[4], &drains);
    assert_eq!(waits.step, None, "it votes until 4 does");
    // As earlier releases leave it.
    let four = members(&[1, 2, 3, 4], &[]);
    let remove = Some(Step::Change(RemovePeer(NodeId(2))));
    assert_eq!(next(2, &four, &[], &drains), remove);
}

#[test]
fn a_draining_node_without_a_vote_stays_a_learner_of_the_catalog_alone() {
    let drains = nodes(&[(1, Active), (2, Draining), (3, Active), (4, Active)]);
    let moved = members(&[1, 3, 4], &[]);
    let add = Some(Step::Change(AddLearner(NodeId(2))));
    assert_eq!(next(0, &moved, &[], &drains), add);
    assert_eq!(next(3, &moved, &[], &drains), None);
    // That is where it ends: it gets no vote.
    let learns = plan(0, &members(&[1, 3, 4], &[2]), &[], &drains);
    assert_eq!((learns.step, learns.waits), (None, None));
    // Once it is removed, it is not even that.
    let removed = nodes(&[(1, Active), (2, Removed), (3, Active), (4, Active)]);
    let remove = Some(Step::Change(RemovePeer(NodeId(2))));
    assert_eq!(next(0, &members(&[1, 3, 4], &[2]), &[], &removed), remove);
    assert_eq!(next(0, &moved, &[], &removed), None);
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
    let remove = Some(Step::Change(RemovePeer(NodeId(2))));
    assert_eq!(next(0, &members(&[1, 2], &[]), &[], &two), remove);
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

/// The copy of the catalog on a node that has begun to lead may be older than what a former leader went by.
#[test]
fn a_voter_that_the_catalog_here_does_not_have_as_leaving_stays() {
    let three = members(&[1, 2, 3], &[]);
    let old = nodes(&[(1, Active), (2, Active)]);
    assert_eq!(next(0, &three, &[], &old), None);
    let old = nodes(&[(1, Active), (2, Active), (3, Joining)]);
    assert_eq!(next(0, &three, &[], &old), None);
}

#[test]
fn leaderships_are_spread_and_come_to_rest() {
    let nodes = nodes(&[(1, Active), (2, Active), (3, Active)]);
    let three = members(&[1, 2, 3], &[]);
    let to = |partition| next(partition, &three, &[], &nodes);
    assert_eq!(to(0), None);
    assert_eq!(to(1), Some(Step::Transfer(NodeId(2))));
    assert_eq!(to(2), Some(Step::Transfer(NodeId(3))));
    assert_eq!(to(3), None);
    assert_eq!(
        next(1, &three, &[2], &nodes),
        None,
        "a node that is gone does not lead"
    );
}

#[test]
fn nothing_changes_while_a_change_is_under_way_or_the_catalog_is_not_known() {
    let three = nodes(&[(1, Active), (2, Active), (3, Active)]);
    let joint = Membership {
        voters_outgoing: ids(&[1]),
        ..members(&[1, 2], &[])
    };
    let joint = plan(1, &joint, &[], &three);
    assert_eq!(joint.step, None);
    assert!(joint.waits.unwrap().is_problem, "it shows if it stays so");
    let unknown = plan(1, &members(&[1], &[]), &[], &Nodes::new());
    assert_eq!(unknown, Plan::default());
}

/// From any membership, following the steps ends with the wanted one, at once for each time that nodes catch up,
/// and never passes through two voters.
#[test]
fn steps_lead_to_the_wanted_members_and_end() {
    for count in 1..=6_u64 {
        for partition in 0..4 {
            let states: Vec<_> = (1..=count).map(|id| (id, Active)).collect();
            let nodes = nodes(&states);
            let mut membership = members(&[1], &[]);
            let mut leader = 1;
            for step in 0.. {
                assert!(
                    step < 40,
                    "{count} nodes, partition {partition}: {membership:?}"
                );
                let peers: Vec<_> = membership
                    .members()
                    .filter(|node| node.0 != leader)
                    .map(|node| peer(node.0, Some(0)))
                    .collect();
                let seen = Seen {
                    partition,
                    me: NodeId(leader),
                    membership: &membership,
                    peers: &peers,
                    last: LAST,
                    is_settled: true,
                    held: Duration::ZERO,
                };
                match seen.plan(&nodes).step {
                    None => break,
                    Some(Step::Transfer(to)) => leader = to.0,
                    Some(Step::Change(AddLearner(node))) => membership.learners.push(node),
                    Some(Step::Change(change)) => {
                        let change = match change {
                            MembershipChange::ChangeVoters(change) => change,
                            other => panic!("{other:?}"),
                        };
                        membership
                            .learners
                            .retain(|it| !change.promote.contains(it));
                        membership.voters = change.voters_after(&membership.voters);
                    }
                }
                assert!(membership.voters.len() % 2 == 1, "{membership:?}");
            }
            let wanted = voters_with(count as usize, partition);
            assert_eq!(membership.voters.len(), wanted);
            assert_eq!(membership.learners.len(), count as usize - wanted);
            assert_eq!(leader, membership.voters[partition as usize % wanted].0);
        }
    }
}
