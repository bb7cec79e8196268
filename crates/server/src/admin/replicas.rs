//! What is shown of the replicas of a partition: comparisons of them, and what they fetch.

use std::collections::BTreeMap;

use esker_node::cluster::{self, Check, Fetching};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// A comparison of the replicas of a partition, as of one entry of its log.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ReplicaCheck {
    /// LSN of the entry as of which they were compared.
    pub lsn: u64,
    /// LSN of the entry that recorded the comparison.
    pub noted_at: u64,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What it has shown.
    pub outcome: CheckOutcome,
    /// The digest of each replica that was compared.
    pub digests: Vec<ReplicaDigest>,
    /// The numbers of the nodes whose replica differs from the majority; it is stopped.
    pub diverged: Vec<u64>,
    /// Whether replicas differ, or have differed, and it is not known which is right. Until it is, no node gets a
    /// snapshot of one of them, and none is put into the repository.
    #[serde(default)]
    pub undecided: bool,
    /// The number of the node whose replica was named as the right one, while it is undecided.
    #[serde(default)]
    pub trusted: Option<u64>,
}

/// The digest of a replica.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ReplicaDigest {
    /// The node's number.
    pub node: u64,
    /// 32 hexadecimal digits.
    pub digest: String,
    /// The number of the node whose state this one was copied from, directly or by way of others, since it was last
    /// known to be right; 0 if it is a copy and not known of which. Absent if it is the work of the node itself. Digests
    /// of one origin count once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<u64>,
}

/// What a comparison has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// All that were compared are equal.
    Equal,
    /// Some differ from the majority.
    Diverged,
    /// They differ, and none has a majority.
    Undecided,
}

/// A snapshot that a replica fetches from another node.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ReplicaFetch {
    /// The number of the node that sends it.
    pub from: u64,
    /// The last LSN that it covers.
    pub lsn: u64,
    /// Bytes that are there.
    pub bytes_done: u64,
    /// Bytes in all. Files that the node has already count as there from the beginning.
    pub bytes_total: u64,
    /// Bytes in a second, lately.
    pub bytes_per_second: u64,
    /// The disk of the node is full: it goes on once there is space.
    pub waits_for_space: bool,
    /// Everything is there, and replaces the state of the replica.
    pub installing: bool,
}

/// Who belongs to a partition, as its leader reports.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct GroupMembers {
    /// The numbers of the nodes that vote.
    pub voters: Vec<u64>,
    /// While a change of the voters is under way: those before it. A majority of both has to agree until it is
    /// complete. Empty otherwise.
    pub voters_before: Vec<u64>,
    /// Whether those who voted before the last change of the voters are still needed, although the change is complete
    /// at the leader: it does not know yet that a majority of the voters knows of it. For a moment after each change,
    /// and while a majority of the voters does not answer.
    #[serde(default)]
    pub unconfirmed: bool,
    /// The numbers of the nodes that have replicas and do not vote.
    pub learners: Vec<u64>,
    /// What of its log the leader keeps for nodes that are away; absent if it keeps nothing for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_for_absent: Option<KeptForAbsent>,
    /// Why these are not the members that they should be; absent if they are, or are about to be.
    pub waits: Option<MembersWait>,
}

/// What of its log the leader of a partition keeps for nodes that are away, so that they need no snapshot when they are
/// back. What snapshots need is not counted.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct KeptForAbsent {
    /// How many entries.
    pub entries: u64,
    /// Their bytes, without those of entries that were applied before the start of the node that leads.
    pub bytes: u64,
    /// The numbers of the nodes.
    pub nodes: Vec<u64>,
}

impl From<cluster::KeptFor> for KeptForAbsent {
    fn from(kept: cluster::KeptFor) -> KeptForAbsent {
        KeptForAbsent {
            entries: kept.entries,
            bytes: kept.bytes,
            nodes: kept.nodes,
        }
    }
}

/// Why the members of a partition are not those that they should be.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct MembersWait {
    /// In words.
    pub why: String,
    /// For how many seconds, as the node that leads the partition knows.
    pub seconds: u64,
    /// Whether that is a problem, if it stays so. A node that is drained and keeps its vote, because no other node
    /// can take it, is none.
    pub problem: bool,
}

impl From<cluster::Members> for GroupMembers {
    fn from(members: cluster::Members) -> GroupMembers {
        GroupMembers {
            voters: members.voters,
            voters_before: members.voters_before,
            unconfirmed: members.is_unconfirmed,
            learners: members.learners,
            kept_for_absent: members.kept.map(KeptForAbsent::from),
            waits: members.waits.map(|waits| MembersWait {
                why: waits.why,
                seconds: waits.for_ms / 1000,
                problem: waits.is_problem,
            }),
        }
    }
}

impl From<Check> for ReplicaCheck {
    fn from(check: Check) -> ReplicaCheck {
        let nanos = i128::from(check.at_ms) * 1_000_000;
        // A time beyond the calendar comes from a clock that is no clock.
        let at = OffsetDateTime::from_unix_timestamp_nanos(nanos);
        let copies: BTreeMap<u64, u64> = check.copies.into_iter().collect();
        let digests = check.digests.into_iter();
        ReplicaCheck {
            lsn: check.lsn,
            noted_at: check.noted_at,
            at: at.unwrap_or(OffsetDateTime::UNIX_EPOCH),
            outcome: match check.outcome {
                cluster::CheckOutcome::Equal => CheckOutcome::Equal,
                cluster::CheckOutcome::Diverged => CheckOutcome::Diverged,
                cluster::CheckOutcome::Undecided => CheckOutcome::Undecided,
            },
            digests: digests
                .map(|(node, digest)| ReplicaDigest {
                    node,
                    digest,
                    copy_of: copies.get(&node).copied(),
                })
                .collect(),
            diverged: check.diverged,
            undecided: check.is_open,
            trusted: check.trusted,
        }
    }
}

impl From<&Fetching> for ReplicaFetch {
    fn from(fetching: &Fetching) -> ReplicaFetch {
        ReplicaFetch {
            from: fetching.from,
            lsn: fetching.lsn,
            bytes_done: fetching.bytes_done,
            bytes_total: fetching.bytes_total,
            bytes_per_second: fetching.bytes_per_second,
            waits_for_space: fetching.waits_for_space,
            installing: fetching.is_installing,
        }
    }
}
