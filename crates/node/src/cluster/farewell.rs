//! What becomes of the replicas of a removed node, as the others see it.
//!
//! A removed node asks what it may delete ([`departure_task`](super::departure_task)). Who leads a partition answers:
//! the replica may go if
//!
//! - the node was removed by somebody, and not given up after a loss,
//! - it is no member of the partition any more, no change of the voters is under way, and the last one is confirmed
//!   ([`Status::has_unconfirmed_change`]),
//! - what it has is of the present lineage, so nothing was lost since,
//! - no comparison of the replicas is open ([`Compared::is_open`]), and none that is known has found this one wrong, or
//!   may have while the node was away, and
//! - every voter answers, and has acknowledged all that the replica has.
//!
//! Only if all of that is so, the leader makes sure by a ReadIndex that it still leads, and looks again: that costs the
//! voters a message each, and a node may wait for weeks.
//!
//! All that was ever acknowledged is on a majority of the present voters by then, whatever the removed replica has: the
//! change that removed it was committed by a majority of those after it, which so had all entries before it. The last
//! condition asks for more, all of them and not only a majority: deleting a replica must not leave fewer copies than
//! there are voters.

use std::collections::BTreeMap;
use std::time::Duration;

use esker_partition::LineageId;
use esker_partition::command::NodeState;
use esker_partition::digest::Compared;
use esker_raft::NodeId;
use esker_raft::engine::Status;

use super::contact::{LATELY_TICKS, describe_silence, is_heard, silence};
use super::wire::{AskRemoval, Fate, KeptReplica, RemovalOf, Standing};
use crate::blocking::blocking;
use crate::core::Inner;

/// How long the voters of a partition have to confirm who leads it.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);

impl Inner {
    /// What this node knows of a node that asks whether it was removed.
    pub(super) async fn removal_of(&self, node: u64, asked: AskRemoval) -> RemovalOf {
        let nodes = self.catalog_reader.nodes();
        let known = nodes.get(&node);
        let standing = match known {
            Some(known) if known.given_up => Standing::GivenUp,
            Some(known) if known.state == NodeState::Removed => Standing::Removed,
            _ => Standing::Belongs,
        };
        let directory = self.peers.as_ref().map(|peers| &peers.directory);
        let mut answer = RemovalOf {
            cluster_id: self.identity.cluster_id.clone(),
            standing,
            name: known.map_or_else(String::new, |known| known.name.clone()),
            removed_at_ms: known.and_then(|known| known.removed_at_ms),
            replaced_by: known.and_then(|known| directory?.replacement_of(known)),
            fates: Vec::new(),
        };
        if standing == Standing::Removed {
            // One for each partition that there is, however many are asked for.
            let asked: BTreeMap<u64, &KeptReplica> =
                asked.replicas.iter().map(|it| (it.partition, it)).collect();
            let here =
                (0..=u64::from(self.options.partitions)).filter_map(|it| asked.get(&it).copied());
            let fates = here.map(|kept| self.fate_of(node, kept));
            let fates = futures::future::join_all(fates).await;
            answer.fates = fates.into_iter().flatten().collect();
        }
        answer
    }

    /// What is to become of a replica; `None` if another node leads the partition.
    async fn fate_of(&self, node: u64, kept: &KeptReplica) -> Option<Fate> {
        let group = self.group(kept.partition);
        if !group.is_serving() {
            return None;
        }
        let mut needed = self.needed_now(node, kept).await;
        if needed.is_none() {
            let confirmed = tokio::time::timeout(CONFIRM_TIMEOUT, group.read_index()).await;
            needed = match confirmed {
                Ok(Ok(_)) => self.needed_now(node, kept).await,
                _ => Some("no majority has confirmed who leads the partition".to_owned()),
            };
        }
        let status = group.details();
        let needed = needed.or_else(|| needed_by(&status, NodeId(node), kept.last));
        Some(Fate {
            partition: kept.partition,
            as_of: status.applied.0,
            kept_by: match needed {
                None => status.membership.voters.iter().map(|id| id.0).collect(),
                Some(_) => Vec::new(),
            },
            needed,
        })
    }

    /// Why a replica is needed, as far as this node knows; the cheapest first.
    async fn needed_now(&self, node: u64, kept: &KeptReplica) -> Option<String> {
        let status = self.group(kept.partition).details();
        if let Some(needed) = needed_by(&status, NodeId(node), kept.last) {
            return Some(needed);
        }
        let digests = &self.replicas.digests;
        if let Some(compared) = digests.compared(kept.partition)
            && let Some(doubt) = doubt_of(&compared, kept.last)
        {
            return Some(doubt.to_owned());
        }
        if digests.was_wrong(kept.partition, node) {
            return Some("it differs from the others', and is kept as it is".to_owned());
        }
        self.doubt_about(kept).await
    }

    /// Why a replica may have what the others do not, whatever their logs have.
    async fn doubt_about(&self, kept: &KeptReplica) -> Option<String> {
        let part = self.partition_db(kept.partition).clone();
        let Ok(lineage) = blocking(move || part.lineage()).await else {
            return Some("its lineage cannot be read now".to_owned());
        };
        let of = u128::from_str_radix(&kept.lineage, 16).ok().map(LineageId);
        match of == Some(lineage.id()) {
            true => None,
            // Something was lost since, and what is here may be a part of it. That the lineages share these numbers of
            // entries does not show that they are the same entries: a survivor's last ones may never have been committed.
            false => Some("something was lost since: its lineage is another one now".to_owned()),
        }
    }
}

/// Why the last comparison of a partition's replicas does not let one with entries up to `last` go.
fn doubt_of(compared: &Compared, last: u64) -> Option<&'static str> {
    // Also if those that have answered last are equal: the one that differs may have been away.
    if compared.is_open() {
        return Some("its replicas differ, and it is not known which of them is right");
    }
    // Which one it was may have been forgotten since, and that one stops only once it has the entry.
    (compared.diverged_at > last).then_some(
        "while the node was away, a replica was found to differ from the others', and it may be this one: it is kept as \
         it is",
    )
}

/// Why a partition still needs the replica of a node with entries up to `last`, if it does. `status` is that of the
/// partition's leader.
fn needed_by(status: &Status, node: NodeId, last: u64) -> Option<String> {
    let members = &status.membership;
    if members.is_joint() {
        return Some("a change of the voters is under way".to_owned());
    }
    if status.has_unconfirmed_change {
        return Some("a majority has not confirmed the last change of the voters yet".to_owned());
    }
    if members.contains(node) {
        return Some("the node is still a member".to_owned());
    }
    // What the replica has beyond that was never committed.
    let wanted = last.min(status.committed.0);
    let lacking = |voter: &&NodeId| {
        let peer = status.peers.iter().find(|peer| peer.id == **voter);
        **voter != status.id && peer.is_none_or(|peer| peer.matched.0 < wanted)
    };
    if let Some(voter) = members.voters.iter().find(lacking) {
        return Some(format!("node {voter} has not everything yet"));
    }
    let silent =
        |voter: &&NodeId| **voter != status.id && !is_heard(&status.peers, **voter, LATELY_TICKS);
    members.voters.iter().find(silent).map(|voter| {
        let silence = describe_silence(silence(&status.peers, *voter));
        format!("node {voter}, which votes, was {silence}")
    })
}

#[cfg(test)]
mod tests {
    use esker_partition::digest::Verdict;
    use esker_raft::engine::{PeerState, PeerStatus};
    use esker_raft::{Lsn, Membership, Role, Term};

    use super::*;

    fn peer(id: u64, matched: u64, heard: u64) -> PeerStatus {
        PeerStatus {
            id: NodeId(id),
            matched: Lsn(matched),
            state: PeerState::Replicate,
            pending_snapshot: None,
            last_failure: None,
            heard_ticks_ago: Some(heard),
        }
    }

    fn led_by_1(voters: &[u64], peers: Vec<PeerStatus>) -> Status {
        Status {
            id: NodeId(1),
            role: Role::Leader,
            leader: Some(NodeId(1)),
            term: Term(2),
            last: Lsn(60),
            committed: Lsn(50),
            applied: Lsn(50),
            floor: Lsn(0),
            log_start: Lsn(0),
            entries_above_floor: 60,
            membership: Membership {
                voters: voters.iter().copied().map(NodeId).collect(),
                ..Membership::default()
            },
            has_unconfirmed_change: false,
            waits_to_join: false,
            peers,
            transfers: Vec::new(),
        }
    }

    const REMOVED: NodeId = NodeId(9);

    #[test]
    fn a_replica_may_go_once_all_voters_have_what_it_has_and_answer() {
        let status = led_by_1(&[1, 2, 3], vec![peer(2, 60, 1), peer(3, 40, 1)]);
        assert_eq!(needed_by(&status, REMOVED, 40), None);
        // A majority has it, and that is not enough.
        let needed = needed_by(&status, REMOVED, 41).unwrap();
        assert!(needed.contains("node 3 has not everything"), "{needed}");
        // What the replica has beyond what is committed was acknowledged by nobody.
        let status = led_by_1(&[1, 2, 3], vec![peer(2, 50, 1), peer(3, 50, 1)]);
        assert_eq!(needed_by(&status, REMOVED, 1000), None);
        let status = led_by_1(&[1, 2, 3], vec![peer(2, 60, 1), peer(3, 60, 11)]);
        let needed = needed_by(&status, REMOVED, 40).unwrap();
        assert!(
            needed.contains("node 3, which votes, was not heard from for 1.1 s"),
            "{needed}"
        );
        let status = led_by_1(&[1, 2], Vec::new());
        assert!(needed_by(&status, REMOVED, 40).is_some(), "2 is not known");
    }

    #[test]
    fn a_member_keeps_its_replica_and_so_does_each_while_the_voters_change() {
        let all = || vec![peer(2, 60, 1), peer(9, 60, 1)];
        let mut status = led_by_1(&[1, 2], all());
        status.membership.learners = vec![REMOVED];
        assert!(needed_by(&status, REMOVED, 1).unwrap().contains("a member"));
        let mut status = led_by_1(&[1, 2], all());
        status.membership.voters_outgoing = vec![NodeId(1), NodeId(7)];
        assert!(needed_by(&status, REMOVED, 1).unwrap().contains("a change"));
        let mut status = led_by_1(&[1, 2], all());
        status.has_unconfirmed_change = true;
        let needed = needed_by(&status, REMOVED, 1).unwrap();
        assert!(needed.contains("has not confirmed"), "{needed}");
    }

    /// What a partition's last comparison says, as it is stored.
    fn stored(bytes: &[u8]) -> Compared {
        prost::Message::decode(bytes).unwrap()
    }

    #[test]
    fn a_replica_is_kept_while_a_comparison_is_open_also_if_the_last_answers_are_equal() {
        let equal = stored(&[]);
        assert_eq!(doubt_of(&equal, 40), None);
        // Since the entry 9 it is not known which replica is right.
        let open = stored(&[7 << 3, 9]);
        assert_eq!(open.verdict(), Verdict::Equal);
        assert!(doubt_of(&open, 40).unwrap().contains("it is not known"));
    }

    #[test]
    fn a_replica_that_was_away_when_one_was_found_to_differ_is_kept() {
        // The entry 41 has recorded it.
        let diverged = stored(&[6 << 3, 41]);
        assert!(doubt_of(&diverged, 40).unwrap().contains("was away"));
        assert_eq!(doubt_of(&diverged, 41), None, "it knows that by itself");
    }
}
