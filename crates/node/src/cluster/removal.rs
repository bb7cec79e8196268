//! Whether a node may be removed: not if a partition would have no majority without it.
//!
//! The node that leads the catalog asks every node now. What was heard before counts for nothing: a node that was
//! killed a moment ago still looks alive to whoever has not missed its heartbeats yet. A partition keeps its
//! majority if more than half of its other voters answer, and their replicas of it run. The leader of each
//! partition checks that once more before it changes the members ([`changes`](super::changes)).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use esker_partition::command::{Kind, NodeState, SetNodeState};
use esker_raft::NodeId;
use esker_raft::transport::grpc::CallError;

use super::contact::{describe_silence, silence};
use super::directory::Nodes;
use super::wire::{GROUPS, GroupOf, GroupsOf, READS_NODE_TIMES};
use crate::clock::now_ms;
use crate::core::Inner;

/// How long a node has to answer before it counts as one that is away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// What each node has answered, or why it has not.
type Answers = BTreeMap<u64, Result<GroupsOf, String>>;

/// The voters of a partition.
struct Voters {
    now: Vec<u64>,
    /// While a change is under way: those before it.
    before: Vec<u64>,
}

impl Inner {
    /// Refuses to remove a node without which a partition would have no majority. To be called on the node that
    /// leads the catalog.
    ///
    /// # Errors
    ///
    /// It would, or that cannot be known now; the message has which nodes do not answer.
    pub(super) async fn check_removal(&self, node: u64) -> Result<(), CallError> {
        let nodes = self.catalog_reader.nodes();
        let Some(known) = nodes.get(&node) else {
            return Err(CallError::Refused("there is no such node".to_owned()));
        };
        let others = nodes.values().filter(|other| {
            other.id != node && matches!(other.state, NodeState::Active | NodeState::Draining)
        });
        let others: Vec<u64> = others.map(|other| other.id).collect();
        if others.is_empty() {
            return Err(CallError::Refused(format!(
                "{} is the only node that has everything: it is not removed",
                known.name
            )));
        }
        let answers = self.ask(&others).await;
        let silence = |other: u64| {
            let groups = self.groups().map(|group| group.details().peers);
            groups
                .filter_map(|peers| silence(&peers, NodeId(other)))
                .min()
        };
        for partition in 0..=u64::from(self.options.partitions) {
            let members = self.group(partition).membership();
            let numbers = |ids: &[NodeId]| ids.iter().map(|id| id.0).collect();
            let here = Voters {
                now: numbers(&members.voters),
                before: numbers(&members.voters_outgoing),
            };
            let voters = of_leader(partition, &answers).unwrap_or(here);
            check(partition, node, &voters, &nodes, &answers, silence)?;
        }
        Ok(())
    }

    /// The command that removes a node, with the time if all members of the catalog record it.
    pub(super) fn removing(&self, node: u64) -> Kind {
        let is_read = self.member_not_reading(0, READS_NODE_TIMES).is_none();
        Kind::SetNodeState(SetNodeState {
            id: node,
            state: NodeState::Removed.into(),
            at_ms: if is_read { now_ms() } else { 0 },
        })
    }

    /// Asks nodes for their groups, all at once.
    async fn ask(&self, all: &[u64]) -> Answers {
        let ask = |node: u64| async move {
            let Some(peers) = self.peers.as_ref().filter(|peers| peers.me() != node) else {
                return (node, Ok(self.own_groups()));
            };
            let transport = &peers.transport;
            let asked = transport.call(NodeId(node), GROUPS, Bytes::new(), ANSWER_TIMEOUT);
            let answer = match asked.await {
                Ok(answer) => serde_json::from_slice(&answer).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            (node, answer)
        };
        let asked = futures::future::join_all(all.iter().map(|node| ask(*node)));
        asked.await.into_iter().collect()
    }
}

fn group(groups: &GroupsOf, partition: u64) -> Option<&GroupOf> {
    groups.groups.get(usize::try_from(partition).ok()?)
}

/// The voters of a partition as its leader has answered; `None` if none has, or one of an earlier release.
fn of_leader(partition: u64, answers: &Answers) -> Option<Voters> {
    let groups = answers.values().filter_map(|answer| answer.as_ref().ok());
    let groups = groups.filter_map(|groups| group(groups, partition));
    let leader = groups
        .filter(|of| of.role == "leader" && !of.voters.is_empty())
        .max_by_key(|of| of.term)?;
    Some(Voters {
        now: leader.voters.clone(),
        before: leader.voters_before.clone(),
    })
}

/// Whether a partition keeps its majority without a node.
fn check(
    partition: u64,
    node: u64,
    voters: &Voters,
    nodes: &Nodes,
    answers: &Answers,
    silence: impl Fn(u64) -> Option<Duration>,
) -> Result<(), CallError> {
    let name = |id: u64| {
        nodes
            .get(&id)
            .map_or_else(|| id.to_string(), |it| it.name.clone())
    };
    if !voters.before.is_empty() {
        return Err(CallError::Unavailable(format!(
            "the voters of partition {partition} are being changed: try again when that is done"
        )));
    }
    if !voters.now.contains(&node) {
        return Ok(());
    }
    // A voter that is gone is not yet out of the group: it would be counted as one that agrees.
    let leaving = voters.now.iter().find(|voter| {
        let state = nodes.get(voter).map(|node| node.state);
        **voter != node && state == Some(NodeState::Removed)
    });
    if let Some(leaving) = leaving {
        return Err(CallError::Unavailable(format!(
            "node {} is still being removed from partition {partition}: try again when that is done",
            name(*leaving)
        )));
    }
    let left = voters.now.iter().copied().filter(|voter| *voter != node);
    let left: Vec<u64> = left.collect();
    if left.is_empty() {
        return Err(CallError::Refused(format!(
            "only {0} votes in partition {partition}, which would be lost with it. Drain it first with `esker cluster \
             drain {0}`: another node takes its vote over, and then it can be removed. If there is no other node, start \
             one with `cluster.join`",
            name(node)
        )));
    }
    let mut away = Vec::new();
    for voter in &left {
        match answers.get(voter) {
            Some(Ok(groups)) => match group(groups, partition).map(|of| of.halted.as_ref()) {
                Some(None) => {}
                Some(Some(why)) => {
                    away.push(format!("its replica on {} has halted: {why}", name(*voter)))
                }
                None => away.push(format!("{} has no replica of it", name(*voter))),
            },
            Some(Err(why)) => {
                let silence = describe_silence(silence(*voter));
                away.push(format!(
                    "{} does not answer ({silence}; {why})",
                    name(*voter)
                ));
            }
            None => away.push(format!(
                "{} is not in the catalog as one that votes",
                name(*voter)
            )),
        }
    }
    let answering = left.len() - away.len();
    if 2 * answering > left.len() {
        return Ok(());
    }
    Err(CallError::Refused(format!(
        "partition {partition} would have no majority without {}: of its other {} voters {answering} can agree: {}. \
         Bring them back first, or remove one that is lost for good before this one; if a majority is lost for \
         good, see `esker cluster recover`",
        name(node),
        left.len(),
        away.join("; ")
    )))
}

#[cfg(test)]
mod tests {
    use esker_partition::ClusterNode;

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

    fn answer(role: &str, voters: &[u64], halted: Option<&str>) -> Result<GroupsOf, String> {
        Ok(GroupsOf {
            groups: vec![GroupOf {
                role: role.to_owned(),
                voters: voters.to_vec(),
                halted: halted.map(str::to_owned),
                ..GroupOf::default()
            }],
        })
    }

    fn three() -> Voters {
        Voters {
            now: vec![1, 2, 3],
            before: Vec::new(),
        }
    }

    const ACTIVE: [(u64, NodeState); 3] = [
        (1, NodeState::Active),
        (2, NodeState::Active),
        (3, NodeState::Active),
    ];

    fn removing(node: u64, nodes: &Nodes, answers: &Answers) -> Result<(), CallError> {
        let silence = |_| Some(Duration::from_millis(3200));
        check(0, node, &three(), nodes, answers, silence)
    }

    #[test]
    fn a_node_is_not_removed_while_another_one_does_not_answer_however_lately_it_was_heard() {
        let nodes = nodes(&ACTIVE);
        let answers: Answers = [
            (1, answer("leader", &[1, 2, 3], None)),
            (2, Err("connection refused".to_owned())),
        ]
        .into();
        let Err(CallError::Refused(why)) = removing(3, &nodes, &answers) else {
            panic!("2 was killed, and without 3 the partition has no majority");
        };
        let of_2 = "n2 does not answer (not heard from for 3.2 s; connection refused)";
        assert!(why.contains(of_2), "{why}");
        // The one that is away may go: the others agree on it.
        let answers: Answers = [
            (1, answer("leader", &[1, 2, 3], None)),
            (3, answer("follower", &[1, 2, 3], None)),
        ]
        .into();
        removing(2, &nodes, &answers).unwrap();
    }

    #[test]
    fn a_replica_that_has_halted_does_not_count_for_a_majority() {
        let nodes = nodes(&ACTIVE);
        let answers: Answers = [
            (1, answer("leader", &[1, 2, 3], None)),
            (2, answer("follower", &[1, 2, 3], Some("its disk"))),
        ]
        .into();
        let Err(CallError::Refused(why)) = removing(3, &nodes, &answers) else {
            panic!("the replica on 2 has halted");
        };
        assert!(why.contains("n2 has halted: its disk"), "{why}");
    }

    #[test]
    fn the_refusal_to_remove_the_only_voter_names_the_way() {
        let nodes = nodes(&[(1, NodeState::Draining), (2, NodeState::Active)]);
        let answers: Answers = [(1, answer("leader", &[1], None))].into();
        let voters = Voters {
            now: vec![1],
            before: Vec::new(),
        };
        let refused = check(4, 1, &voters, &nodes, &answers, |_| None);
        let Err(CallError::Refused(why)) = refused else {
            panic!("{refused:?}");
        };
        assert!(why.contains("only n1 votes in partition 4"), "{why}");
        assert!(why.contains("esker cluster drain n1"), "{why}");
    }

    #[test]
    fn while_members_change_a_removal_has_to_wait() {
        let answers: Answers = [
            (1, answer("leader", &[1, 2, 3], None)),
            (2, answer("follower", &[1, 2, 3], None)),
        ]
        .into();
        let is_later = |done: Result<(), CallError>| matches!(done, Err(CallError::Unavailable(_)));
        let removed = nodes(&[ACTIVE[0], (2, NodeState::Removed), ACTIVE[2]]);
        assert!(is_later(removing(3, &removed, &answers)));
        let joint = Voters {
            before: vec![1],
            ..three()
        };
        let all = nodes(&ACTIVE);
        let silence = |_| None;
        assert!(is_later(check(0, 3, &joint, &all, &answers, silence)));
        // Who does not vote may go at any time.
        check(0, 4, &three(), &all, &answers, silence).unwrap();
    }

    #[test]
    fn the_voters_are_those_that_the_leader_of_the_highest_term_has() {
        let mut old = answer("leader", &[1], None).unwrap();
        let mut new = answer("leader", &[1, 2, 3], None).unwrap();
        (old.groups[0].term, new.groups[0].term) = (3, 4);
        let answers: Answers = [(1, Ok(old)), (2, Ok(new)), (3, Err("away".to_owned()))].into();
        assert_eq!(of_leader(0, &answers).unwrap().now, [1, 2, 3]);
        assert!(of_leader(1, &answers).is_none());
        // One of an earlier release does not say who votes.
        let answers: Answers = [(1, answer("leader", &[], None))].into();
        assert!(of_leader(0, &answers).is_none());
    }
}
