//! Changes the members of the groups that this node leads, as [`plan`](super::plan) decides.
//!
//! Of each group one change at a time is under way; those of different groups are made at the same time, up to a
//! bound, and each has a deadline. A change is made on a current copy of the catalog, and only if a majority of the
//! voters after it, and each that gets a vote by it, answers *after* it was decided on: who was heard from a moment
//! before may be gone. Whatever keeps a change from being made is noted ([`waiting`](super::waiting)), and it is
//! decided again at the next look.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use esker_partition::command::{NodeState, Outcome};
use esker_raft::engine::{Status, VoterChange};
use esker_raft::{Group, MembershipChange, NodeId};
use tokio::task::JoinSet;

use super::contact::{TICK, describe_silence, is_heard, silence};
use super::directory::Nodes;
use super::peers::Peers;
use super::plan::{Plan, Seen, Step, Wait};
use super::rounds::next_round;
use super::waiting::Report;
use crate::blocking::blocking;
use crate::core::Inner;

/// How long a node has led a partition before it gives the leadership to the preferred node: longer than a node
/// takes that restarts, so that leaders do not follow every restart at once.
const SETTLED: Duration = Duration::from_secs(10);
/// How long a partition stays where it is after it was offered to the preferred node, should that not take it or give
/// it back: its disk may hang, and no appends are taken while it is asked.
const OFFER_INTERVAL: Duration = Duration::from_secs(60);
/// How long a change of the members may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the catalog may take to say that this node's copy is current.
const CURRENT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the voters after a change have to answer: ten heartbeats.
const HEARD_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked for answers.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Changes that a node makes at a time: a group that cannot change must not stop the others, and each new member
/// is sent a whole partition.
const MAX_CHANGES: usize = 4;

/// What this node knows of a group that it leads, for as long as it does.
#[derive(Default)]
struct Lead {
    since: Option<Instant>,
    /// When it was last offered to another node.
    offered: Option<Instant>,
    /// Since when a change of voters is held back.
    held: Option<Instant>,
    /// Why the last change was not made.
    refused: Option<String>,
}

impl Lead {
    /// Whether it is time to offer the group to the preferred node.
    fn is_settled(&self, now: Instant) -> bool {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        since(self.since).is_some_and(|ago| ago >= SETTLED)
            && since(self.offered).is_none_or(|ago| ago >= OFFER_INTERVAL)
    }

    fn held_for(&self, now: Instant) -> Duration {
        let held = self.held.map(|at| now.saturating_duration_since(at));
        held.unwrap_or_default()
    }

    /// Another node leads by now, and sees for itself what is to be done.
    fn lose(&mut self) {
        *self = Lead {
            offered: self.offered,
            ..Lead::default()
        };
    }
}

/// Changes the members of the groups that this node leads, until the node stops.
pub(super) async fn run(inner: &Arc<Inner>, peers: &Peers) {
    let mut leads: HashMap<u64, Lead> = HashMap::new();
    let mut under_way = HashSet::new();
    let mut changes = JoinSet::new();
    // The group that is looked at first: with more to change than at a time, all have a turn.
    let mut first = 0;
    while next_round(inner).await {
        while let Some(done) = changes.try_join_next() {
            // A panic has ended the process, and nothing is cancelled before the end.
            let Ok((partition, refused)) = done else {
                return;
            };
            under_way.remove(&partition);
            leads.entry(partition).or_default().refused = refused;
        }
        let nodes = inner.catalog_reader.nodes();
        if note_peers(inner, peers, &nodes, under_way.is_empty())
            .await
            .is_err()
        {
            continue;
        }
        let count = u64::from(inner.options.partitions) + 1;
        let from = first;
        for partition in (0..count).map(|at| (from + at) % count) {
            let group = inner.group(partition);
            let lead = leads.entry(partition).or_default();
            if !group.is_serving() {
                lead.lose();
                inner.replicas.waiting.forget(partition);
                continue;
            }
            let now = Instant::now();
            lead.since.get_or_insert(now);
            if under_way.contains(&partition) {
                continue;
            }
            // Before the look, which forgets it when the change is due.
            let held = lead.held_for(now);
            let plan = look(inner, peers, group, &nodes, lead, now);
            note_wait(inner, partition, &plan, lead, now);
            let Some(step) = plan.step.filter(|_| under_way.len() < MAX_CHANGES) else {
                continue;
            };
            if matches!(step, Step::Change(MembershipChange::AddLearner(_)))
                && note(inner, true).await.is_err()
            {
                continue;
            }
            if let Step::Transfer(_) = step {
                lead.offered = Some(now);
            }
            first = partition + 1;
            under_way.insert(partition);
            let (inner, group) = (inner.clone(), group.clone());
            changes.spawn(async move { (partition, make(&inner, &group, step, held).await) });
        }
    }
}

/// What is to be done about a group.
fn look(
    inner: &Inner,
    peers: &Peers,
    group: &Group<Outcome>,
    nodes: &Nodes,
    lead: &mut Lead,
    now: Instant,
) -> Plan {
    let details = group.details();
    // While replicas differ, the one leads that has come to, or that an operator has named.
    let is_open = inner.replicas.open_check(group.id().0).is_some();
    let seen = Seen {
        partition: group.id().0,
        me: NodeId(peers.me()),
        membership: &details.membership,
        peers: &details.peers,
        last: details.last.0,
        is_settled: lead.is_settled(now) && !is_open && !inner.stopping.is_cancelled(),
        held: lead.held_for(now),
    };
    let plan = seen.plan(nodes);
    match plan.holds {
        true => drop(lead.held.get_or_insert(now)),
        false => lead.held = None,
    }
    plan
}

/// Notes what keeps a group's members from being those that the catalog wants.
fn note_wait(inner: &Inner, partition: u64, plan: &Plan, lead: &mut Lead, now: Instant) {
    let changes = matches!(plan.step, Some(Step::Change(_)));
    if !changes {
        lead.refused = None;
    }
    let refused = lead.refused.as_ref().map(|why| Wait {
        why: why.clone(),
        is_problem: true,
    });
    let wait = match changes {
        true => refused,
        false => plan.waits.clone(),
    };
    let why = wait.as_ref().map(|wait| wait.why.clone());
    match inner.replicas.waiting.note(partition, now, wait) {
        Some(Report::Waits(waited)) => tracing::warn!(
            partition,
            seconds = waited.as_secs(),
            why = why.unwrap_or_default(),
            "the members of a partition are not those that they should be"
        ),
        Some(Report::Ended(waited)) => tracing::info!(
            partition,
            seconds = waited.as_secs(),
            "the members of a partition are those that they should be again"
        ),
        None => {}
    }
}

/// Keeps the note in the data directory of whether other nodes may have replicas. It is made before the first one
/// is added, and withdrawn once all have been removed.
async fn note_peers(inner: &Inner, peers: &Peers, nodes: &Nodes, is_quiet: bool) -> Result<(), ()> {
    let me = NodeId(peers.me());
    let has_others = inner.groups().any(|group| {
        let membership = group.membership();
        membership.members().any(|node| node != me)
    });
    if has_others {
        return note(inner, true).await;
    }
    let are_removed = nodes
        .values()
        .all(|node| (node.id == me.0) != (node.state == NodeState::Removed));
    let leads_alone =
        |group: &Group<Outcome>| group.is_serving() && group.membership().voters == [me];
    if is_quiet && are_removed && nodes.contains_key(&me.0) && inner.groups().all(leads_alone) {
        return note(inner, false).await;
    }
    Ok(())
}

/// Notes in the data directory whether other nodes may have replicas.
async fn note(inner: &Inner, has_peers: bool) -> Result<(), ()> {
    if inner.data_dir.has_peers() == has_peers {
        return Ok(());
    }
    let data_dir = inner.data_dir.clone();
    let noted = blocking(move || data_dir.note_peers(has_peers)).await;
    noted.map_err(|error| {
        tracing::warn!(%error, "the members of partitions do not change until node.json can be written");
    })
}

/// Makes a change of a group that this node leads. Returns why it was not made, if so.
async fn make(inner: &Inner, group: &Group<Outcome>, step: Step, held: Duration) -> Option<String> {
    let partition = group.id().0;
    let shown = format!("{step:?}");
    let change = async {
        match step {
            Step::Change(change) => change_members(inner, group, change, held).await,
            Step::Transfer(to) => {
                let moved = group.transfer_leadership(to).await;
                // It leads on: nothing waits for that.
                if let Err(error) = moved {
                    tracing::debug!(partition, to = to.0, %error, "a leadership was not taken over");
                }
                Ok(false)
            }
        }
    };
    match tokio::time::timeout(CHANGE_TIMEOUT, change).await {
        Ok(Ok(is_made)) => {
            if is_made {
                tracing::info!(
                    partition,
                    step = shown,
                    "the members of a partition have changed"
                );
            }
            None
        }
        Ok(Err(why)) => {
            tracing::debug!(
                partition,
                step = shown,
                why,
                "the members of a partition did not change"
            );
            Some(format!("{shown} was not made: {why}"))
        }
        Err(_) => {
            tracing::warn!(
                partition,
                step = shown,
                "a change of the members of a partition takes long"
            );
            Some(format!("{shown} takes long"))
        }
    }
}

/// Changes the members of a group, if that is still to be done by a current copy of the catalog. Returns whether
/// it was made.
async fn change_members(
    inner: &Inner,
    group: &Group<Outcome>,
    change: MembershipChange,
    held: Duration,
) -> Result<bool, String> {
    let current = tokio::time::timeout(CURRENT_TIMEOUT, inner.catalog.read_index()).await;
    if !matches!(current, Ok(Ok(_))) {
        return Err("the leader of the catalog has not answered, so that the copy of the catalog here may be old".to_owned());
    }
    wait_until_heard(inner, group, &change).await?;
    let Some(peers) = &inner.peers else {
        return Ok(false);
    };
    let mut lead = Lead {
        held: Instant::now().checked_sub(held),
        ..Lead::default()
    };
    let nodes = inner.catalog_reader.nodes();
    let plan = look(inner, peers, group, &nodes, &mut lead, Instant::now());
    if plan.step != Some(Step::Change(change.clone())) {
        // What has come in between is seen at the next look.
        return Ok(false);
    }
    let changed = group.change_membership(change).await;
    changed.map(|()| true).map_err(|error| error.to_string())
}

/// Waits until a majority of the voters after a change, and all new ones among them, have been heard from since now.
async fn wait_until_heard(
    inner: &Inner,
    group: &Group<Outcome>,
    change: &MembershipChange,
) -> Result<(), String> {
    let change = match change {
        MembershipChange::AddPeer(_) | MembershipChange::AddLearner(_) => return Ok(()),
        MembershipChange::Promote(node) => VoterChange {
            promote: vec![*node],
            ..VoterChange::default()
        },
        MembershipChange::RemovePeer(node) => VoterChange {
            remove: vec![*node],
            ..VoterChange::default()
        },
        MembershipChange::ChangeVoters(change) => change.clone(),
    };
    let begun = Instant::now();
    loop {
        let details = group.details();
        let passed = begun.elapsed();
        let silent = silent_since(&details, &change, passed);
        let count = change.voters_after(&details.membership.voters).len();
        if may_be_made(&change, count, &silent) {
            return Ok(());
        }
        if passed >= HEARD_TIMEOUT {
            let nodes = inner.catalog_reader.nodes();
            let describe = |node: &NodeId| {
                let name = nodes.get(&node.0).map(|it| it.name.clone());
                let name = name.unwrap_or_else(|| node.to_string());
                format!(
                    "{name} was {}",
                    describe_silence(silence(&details.peers, *node))
                )
            };
            let silent: Vec<String> = silent.iter().map(describe).collect();
            return Err(format!(
                "of the voters after it, these do not answer now: {}",
                silent.join(", ")
            ));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Whether a change may be made although these of the voters after it are silent. A node that was killed a moment ago
/// gets no vote.
fn may_be_made(change: &VoterChange, voters: usize, silent: &[NodeId]) -> bool {
    let is_majority = 2 * (voters - silent.len()) > voters;
    is_majority && !change.promote.iter().any(|node| silent.contains(node))
}

/// The voters after a change that were not heard from within this time.
fn silent_since(details: &Status, change: &VoterChange, passed: Duration) -> Vec<NodeId> {
    let after = change.voters_after(&details.membership.voters);
    // A message that came within the current tick is counted as of its beginning.
    let ticks = u64::try_from(passed.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX);
    let is_silent = |node: &NodeId| {
        let is_heard = ticks > 0 && is_heard(&details.peers, *node, ticks - 1);
        *node != details.id && !is_heard
    };
    after.into_iter().filter(is_silent).collect()
}

#[cfg(test)]
mod tests {
    use esker_raft::engine::{PeerState, PeerStatus};
    use esker_raft::{Lsn, Membership, Term};

    use super::*;

    #[test]
    fn a_partition_that_the_preferred_node_does_not_keep_is_offered_again_after_a_while() {
        let begun = Instant::now();
        let mut lead = Lead::default();
        assert!(!lead.is_settled(begun), "it is not led here");
        lead.since = Some(begun);
        assert!(!lead.is_settled(begun + SETTLED / 2));
        assert!(lead.is_settled(begun + SETTLED));
        // It comes back at once.
        lead.offered = Some(begun + SETTLED);
        lead.lose();
        lead.since = Some(begun + SETTLED);
        assert!(!lead.is_settled(begun + 3 * SETTLED));
        assert!(lead.is_settled(begun + SETTLED + OFFER_INTERVAL));
    }

    fn details(heard: &[(u64, Option<u64>)]) -> Status {
        let peer = |(id, ago): &(u64, Option<u64>)| PeerStatus {
            id: NodeId(*id),
            matched: Lsn(9),
            state: PeerState::Probe,
            pending_snapshot: None,
            last_failure: None,
            heard_ticks_ago: *ago,
        };
        Status {
            id: NodeId(1),
            role: esker_raft::Role::Leader,
            leader: Some(NodeId(1)),
            term: Term(1),
            last: Lsn(9),
            committed: Lsn(9),
            applied: Lsn(9),
            floor: Lsn(0),
            log_start: Lsn(0),
            entries_above_floor: 9,
            membership: Membership {
                voters: vec![NodeId(1), NodeId(2), NodeId(3)],
                learners: vec![NodeId(4)],
                ..Membership::default()
            },
            has_unconfirmed_change: false,
            waits_to_join: false,
            peers: heard.iter().map(peer).collect(),
            transfers: Vec::new(),
        }
    }

    #[test]
    fn only_who_answers_after_a_change_was_decided_on_counts_for_its_majority() {
        let remove = VoterChange {
            remove: vec![NodeId(3)],
            ..VoterChange::default()
        };
        // 2 was killed a second ago, and was heard from before that.
        let killed = details(&[(2, Some(10)), (3, Some(0)), (4, None)]);
        let silent = |of: &Status, change, ms| silent_since(of, change, Duration::from_millis(ms));
        assert_eq!(silent(&killed, &remove, 0), [NodeId(2)]);
        assert_eq!(silent(&killed, &remove, 900), [NodeId(2)]);
        let alive = details(&[(2, Some(2)), (3, Some(0)), (4, None)]);
        assert_eq!(silent(&alive, &remove, 0), [NodeId(2)], "not yet");
        assert_eq!(silent(&alive, &remove, 300), []);
        assert!(may_be_made(&remove, 2, &[]));
        assert!(!may_be_made(&remove, 2, &[NodeId(2)]), "one of two is none");
        let replace = VoterChange {
            promote: vec![NodeId(4)],
            remove: vec![NodeId(3)],
            ..VoterChange::default()
        };
        assert_eq!(
            silent(&alive, &replace, 300),
            [NodeId(4)],
            "a new voter counts"
        );
        // Two of three are a majority, and 4 gets no vote all the same.
        assert!(!may_be_made(&replace, 3, &[NodeId(4)]));
        assert!(may_be_made(&replace, 3, &[NodeId(2)]));
        // One that becomes a learner is no voter after the change either.
        let demote = VoterChange {
            demote: vec![NodeId(2)],
            ..VoterChange::default()
        };
        assert_eq!(silent(&killed, &demote, 900), []);
    }
}
