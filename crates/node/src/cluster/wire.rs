//! What nodes of a cluster ask of each other, apart from messages of groups: calls, as JSON.

use esker_partition::digest::{Compared, Verdict};
use esker_partition::{Lineage, Origin};
use serde::{Deserialize, Serialize};

use super::kept_log::KeptFor;
use super::transfers::Fetching;
use super::waiting::ChangeWait;

/// A node joins, or reports that an address of it has changed.
pub(crate) const JOIN: &str = "join";
/// A change of the cluster that an operator has asked another node for.
pub(crate) const CHANGE: &str = "change";
/// What a node knows of its groups.
pub(crate) const GROUPS: &str = "groups";

/// The time of a node.
pub(crate) const CLOCK: &str = "clock";

/// The digest of a replica, as of an entry.
pub(crate) const DIGEST: &str = "digest";

/// Whether the node that asks was removed, and which of its replicas may go.
pub(crate) const REMOVAL: &str = "removal";

/// The newest format of commands and messages that this build reads. Raised with every addition that an earlier
/// build would not understand.
pub(crate) const READS_FORMAT: u32 = 6;
/// The format from which on a node reads commands that name the version of the settings by which they are due.
pub(crate) const READS_SETTINGS_VERSIONS: u32 = 3;
/// The format from which on a node tells whose work its replicas are, and counts digests by that. Format 2 was of digests
/// that count one by one; since this format none are compared that way any more.
pub(crate) const READS_ORIGINS: u32 = 4;
/// The format from which on a node records when another one was removed.
pub(crate) const READS_NODE_TIMES: u32 = 5;
/// The format from which on a node reads registrations for which another node may be forgotten.
pub(crate) const READS_FORGETTING: u32 = 6;

/// What the path of a call begins with.
const CALLS: &str = "/esker.raft.v1.Peers/Call/";

/// The path of a call.
pub(crate) fn path_of(call: &str) -> String {
    format!("{CALLS}{call}")
}

/// Whether a path is that of a call.
pub(crate) fn is_call(path: &str) -> bool {
    path.starts_with(CALLS)
}

/// A node that joins, or whose addresses have changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Join {
    /// The name of the cluster that it wants to join.
    pub cluster_name: String,
    /// The number of stream partitions that it is configured for.
    #[serde(default)]
    pub partitions: Option<u32>,
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where other nodes reach it.
    pub peer_address: String,
    /// Where clients reach it.
    pub client_address: String,
    /// What fails together with it.
    #[serde(default)]
    pub zone: String,
    /// The newest format that it reads.
    pub reads_format: u32,
    /// The incarnation as which it puts snapshots: 32 hexadecimal digits. A node that has no directory yet has none.
    #[serde(default)]
    pub incarnation: Option<String>,
    /// The incarnations of the starts before, newest first. Earlier builds did not tell them.
    #[serde(default)]
    pub earlier_incarnations: Vec<String>,
    /// How many nodes have passed the call on.
    #[serde(default)]
    pub hops: u32,
    /// The number that this node had before it lost its log: that node is removed.
    #[serde(default)]
    pub replaces: Option<u64>,
    /// The cluster that it belonged to under that number.
    #[serde(default)]
    pub of_cluster: Option<String>,
    /// Its time of day, in milliseconds since the epoch.
    #[serde(default)]
    pub clock_ms: Option<u64>,
}

/// The time of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClockOf {
    /// That by which it computes ages, in milliseconds since the epoch.
    pub ages_ms: u64,
}

/// The cluster that a node has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// Its id.
    pub cluster_id: String,
    /// The number of its stream partitions.
    pub partitions: u32,
    /// The lineage with which the log of each partition begins, the catalog first: as in the log's tag, in
    /// hexadecimal digits.
    pub lineages: Vec<String>,
    /// The addresses of its nodes.
    pub nodes: Vec<Peer>,
    /// By partition: snapshots of the repository as of this LSN or an earlier one may have been made of a replica that
    /// has diverged; 0 if none has. Earlier builds did not tell it.
    #[serde(default)]
    pub snapshots_after: Vec<u64>,
}

impl Joined {
    /// The lineages with which the logs of the groups begin, the catalog's first.
    ///
    /// # Errors
    ///
    /// The answer contradicts itself, or is of another release.
    pub fn lineages(&self) -> Result<Vec<Lineage>, String> {
        let expected = self.partitions as usize + 1;
        if self.lineages.len() != expected {
            let found = self.lineages.len();
            return Err(format!(
                "it names {found} lineages for {expected} partitions"
            ));
        }
        let lineage = |digits: &String| {
            let lineage = Lineage::from_bytes(&from_hex(digits)?)?;
            match lineage.cluster_id == self.cluster_id && lineage.partitions == self.partitions {
                true => Ok(lineage),
                false => Err("a lineage is of another cluster".to_owned()),
            }
        };
        self.lineages.iter().map(lineage).collect()
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(digits: &str) -> Result<Vec<u8>, String> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let value = |digit: u8| char::from(digit).to_digit(16);
    let byte = |pair: &[u8; 2]| u8::try_from(value(pair[0])? * 16 + value(pair[1])?).ok();
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    bytes
        .filter(|_| rest.is_empty())
        .ok_or_else(|| "a lineage is not in hexadecimal digits".to_owned())
}

/// A node's number, and where other nodes reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// Its number.
    pub id: u64,
    /// Where other nodes reach it.
    pub peer_address: String,
}

/// A change of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub(crate) enum ChangeCluster {
    /// A node belongs to the cluster no more.
    Remove {
        /// Its number.
        node: u64,
    },
    /// A node's replicas and leaderships move to others.
    Drain {
        /// Its number.
        node: u64,
    },
    /// A drained node takes part again.
    Activate {
        /// Its number.
        node: u64,
    },
    /// Another node is to lead a partition.
    TransferLeader {
        /// The partition.
        partition: u64,
        /// The node.
        to: u64,
    },
    /// The digests of a partition's replicas are to be compared.
    Check {
        /// The partition.
        partition: u64,
    },
    /// A replica is taken for the right one of those that differ.
    Trust {
        /// The partition.
        partition: u64,
        /// LSN of the entry that recorded the comparison which is decided by this.
        noted_at: u64,
        /// The node of the replica.
        node: u64,
    },
}

/// Asks whether this node was removed, and whether its replicas may go. Who asks is in the claim of the call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AskRemoval {
    /// What it has.
    pub replicas: Vec<KeptReplica>,
}

/// What a removed node has of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptReplica {
    /// The partition.
    pub partition: u64,
    /// The lineage of its state: 32 hexadecimal digits.
    pub lineage: String,
    /// The last entry of its log.
    pub last: u64,
}

/// What a node knows of the one that asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemovalOf {
    /// The cluster of the node that answers.
    pub cluster_id: String,
    /// Whether the node that asks belongs to it.
    pub standing: Standing,
    /// Its name in the catalog.
    pub name: String,
    /// When it was removed, in milliseconds since the epoch, if that was recorded.
    pub removed_at_ms: Option<u64>,
    /// The node that has taken its place and its name.
    pub replaced_by: Option<u64>,
    /// Of the replicas that were asked for, those of partitions that the answering node leads.
    pub fates: Vec<Fate>,
}

/// Whether a node belongs to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// It does, or is not known.
    Belongs,
    /// It was removed.
    Removed,
    /// It was given up after a loss: what it has may be nowhere else.
    GivenUp,
}

/// What is to become of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fate {
    /// The partition.
    pub partition: u64,
    /// As of this LSN the leader has applied that the node is no member.
    pub as_of: u64,
    /// The nodes that vote, and have acknowledged all that the replica has.
    pub kept_by: Vec<u64>,
    /// Why the replica is still needed, if it is.
    pub needed: Option<String>,
}

/// Asks for the digest of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AskedDigest {
    /// The partition.
    pub partition: u64,
    /// LSN of the entry as of which it is.
    pub lsn: u64,
}

/// The digest of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "digest", rename_all = "kebab-case")]
pub(crate) enum DigestOf {
    /// The entry is not applied yet.
    Behind,
    /// It is being computed.
    Computing,
    /// 32 hexadecimal digits.
    Computed {
        /// The digits.
        digits: String,
        /// Whose work the state is. Earlier builds did not tell it.
        #[serde(default)]
        origin: Option<OriginOf>,
    },
    /// There is none.
    Unknown,
}

/// Whose work the state of a replica is: see [`Origin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OriginOf {
    node: u64,
    since: u64,
    holder: u64,
}

impl From<Origin> for OriginOf {
    fn from(origin: Origin) -> OriginOf {
        let Origin {
            node,
            since,
            holder,
        } = origin;
        OriginOf {
            node,
            since,
            holder,
        }
    }
}

impl From<OriginOf> for Origin {
    fn from(origin: OriginOf) -> Origin {
        let OriginOf {
            node,
            since,
            holder,
        } = origin;
        Origin {
            node,
            since,
            holder,
        }
    }
}

/// The last comparison of the digests of a partition's replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// LSN of the entry as of which the digests are.
    pub lsn: u64,
    /// LSN of the entry that recorded them.
    pub noted_at: u64,
    /// When, in milliseconds since the epoch.
    pub at_ms: u64,
    /// What it has shown.
    pub outcome: CheckOutcome,
    /// The nodes that have answered, and the digest of each: 32 hexadecimal digits.
    pub digests: Vec<(u64, String)>,
    /// The nodes whose digest is not that of the majority.
    pub diverged: Vec<u64>,
    /// Of the nodes that have answered, those whose state was copied from another one, and that one; 0 if it is not known
    /// from which. Answers of one origin count once.
    #[serde(default)]
    pub copies: Vec<(u64, u64)>,
    /// Whether replicas differ, or have differed, and it is not known which is right: nobody gets the state of one.
    #[serde(default)]
    pub is_open: bool,
    /// The node whose replica an operator has taken for the right one, while it is open.
    #[serde(default)]
    pub trusted: Option<u64>,
}

/// What a comparison of digests has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// All that answered are equal.
    Equal,
    /// Some differ from the majority.
    Diverged,
    /// They differ, and none has a majority.
    Undecided,
}

impl From<Compared> for Check {
    fn from(compared: Compared) -> Check {
        let (outcome, diverged) = match compared.verdict() {
            Verdict::Equal => (CheckOutcome::Equal, Vec::new()),
            Verdict::Diverged(nodes) => (CheckOutcome::Diverged, nodes),
            Verdict::Undecided => (CheckOutcome::Undecided, Vec::new()),
        };
        let origin = |node: u64, origin: Option<Origin>| {
            let from = origin.map_or(0, |origin| origin.node);
            (from != node).then_some((node, from))
        };
        let copies = compared.answers.iter();
        let copies = copies.filter_map(|answer| origin(answer.node, answer.origin));
        let digests = compared.digests();
        let digests = digests.map(|(node, digest)| (node, format!("{digest:032x}")));
        Check {
            digests: digests.collect(),
            lsn: compared.lsn,
            noted_at: compared.noted_at,
            at_ms: compared.at_ms,
            outcome,
            diverged,
            copies: copies.collect(),
            is_open: compared.is_open(),
            trusted: compared.trusted.map(|trusted| trusted.node),
        }
    }
}

/// What a node knows of its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupsOf {
    /// One for each partition, the catalog first.
    pub groups: Vec<GroupOf>,
}

/// What a node knows of one of its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupOf {
    /// `leader`, `follower`, `candidate`, `learner`, or `waiting`.
    pub role: String,
    /// The leader, if it is known.
    pub leader: Option<u64>,
    /// The term.
    pub term: u64,
    /// The last entry that is applied.
    pub applied: u64,
    /// The last entry that is committed.
    pub committed: u64,
    /// The last entry of the log.
    pub last: u64,
    /// Why it does not run, if it does not.
    pub halted: Option<String>,
    /// The snapshot that it fetches, if it does.
    #[serde(default)]
    pub fetching: Option<Fetching>,
    /// The last comparison of digests that it has applied.
    #[serde(default)]
    pub check: Option<Check>,
    /// Whether it is making a comparison now, as the leader.
    #[serde(default)]
    pub checks: bool,
    /// Why the last comparison that it was to make came to no end, if so.
    #[serde(default)]
    pub check_failed: Option<String>,
    /// The numbers of the nodes that vote. Earlier releases do not say.
    #[serde(default)]
    pub voters: Vec<u64>,
    /// While a change of the voters is under way: those before it, who have to agree as well.
    #[serde(default)]
    pub voters_before: Vec<u64>,
    /// Whether this node leads, and does not know yet that the last change of the voters holds without those who voted
    /// before. Earlier releases do not say.
    #[serde(default)]
    pub is_unconfirmed: bool,
    /// The numbers of the nodes that have replicas and do not vote.
    #[serde(default)]
    pub learners: Vec<u64>,
    /// What of the log this node keeps for members that are away, if it leads and does.
    #[serde(default)]
    pub kept: Option<KeptFor>,
    /// Why the members are not those that the catalog wants, if this node leads and they are not.
    #[serde(default)]
    pub waits: Option<ChangeWait>,
}

#[cfg(test)]
mod tests {
    use esker_partition::{LineageId, PartitionId};

    use super::*;

    #[test]
    fn the_answer_of_an_earlier_release_has_a_digest_and_no_origin() {
        let said = r#"{"digest": "computed", "digits": "0a"}"#;
        let computed = DigestOf::Computed {
            digits: "0a".to_owned(),
            origin: None,
        };
        assert_eq!(serde_json::from_str::<DigestOf>(said).unwrap(), computed);
    }

    fn joined() -> (Joined, Vec<Lineage>) {
        let first = |partition| Lineage::first("a cluster", 1, PartitionId(partition));
        let lineages = vec![first(0).fork(LineageId(5), 10), first(1)];
        let joined = Joined {
            cluster_id: "a cluster".to_owned(),
            partitions: 1,
            lineages: lineages.iter().map(|it| to_hex(&it.to_bytes())).collect(),
            nodes: Vec::new(),
            snapshots_after: Vec::new(),
        };
        (joined, lineages)
    }

    #[test]
    fn a_node_that_joins_learns_the_lineages_with_which_the_logs_begin() {
        let (joined, lineages) = joined();
        assert_eq!(joined.lineages().unwrap(), lineages);
    }

    #[test]
    fn an_answer_that_contradicts_itself_is_refused() {
        let (joined, _) = joined();
        let change = |change: &dyn Fn(&mut Joined)| {
            let mut other = joined.clone();
            change(&mut other);
            other.lineages().unwrap_err()
        };
        assert!(change(&|it| it.lineages.truncate(1)).contains("1 lineages"));
        assert!(change(&|it| it.lineages[1].truncate(1)).contains("hexadecimal"));
        assert!(change(&|it| it.lineages[1] = "zz".to_owned()).contains("hexadecimal"));
        assert!(change(&|it| it.lineages[1] = "\u{e9}\u{e9}".to_owned()).contains("hexadecimal"));
        assert!(change(&|it| it.cluster_id.push('x')).contains("another cluster"));
        // Only the identity, as builds before the first release sent it.
        change(&|it| it.lineages[1] = "5".repeat(32));
    }
}
