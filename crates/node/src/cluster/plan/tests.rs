//! From what a leader observes to its next step.

use esker_partition::ClusterNode;
use esker_raft::Lsn;
use esker_raft::engine::PeerState;

use super::*;

mod draining;

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
        ..VoterChange::default()
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
