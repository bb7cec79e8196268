//! What the comparisons of replicas mean for those that are here: one that has diverged is stopped, and the state of one
//! that may be wrong goes to nobody. Follows what replicas fetch as well.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_partition::command::NodeState;
use esker_raft::NodeId;

use super::peers::Peers;
use super::wire::{GROUPS, GroupsOf};
use crate::blocking::blocking;
use crate::core::Inner;
use crate::problem::Problem;

/// How often replicas that have diverged, and transfers, are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// How long a member may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often another node is asked who leads what has halted here.
const LEADERS_INTERVAL: Duration = Duration::from_secs(1);
/// How long the transfer of a leadership may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);

/// What to do about replicas that differ.
pub(crate) const DIFFERING_REMEDY: &str = "bring back the nodes that are gone: the comparison is repeated every minute, and once it is known which replica is wrong, that one stops. If a node that is gone needs a snapshot, or if the copies of one replica are the majority, find out which replica is right, and name it with esker cluster trust";

impl Inner {
    /// Whether nobody is to get the state of the replica here: replicas of the partition differ, and this one may be
    /// wrong. Where there is no other one, there is nothing that it could differ from.
    pub(crate) fn is_withheld(&self, partition: u64) -> bool {
        self.replicas.digests.is_doubtful(partition)
            && self.group(partition).membership().members().count() > 1
    }

    /// How replicas of a partition differ, if they do and it is not known which is right.
    pub(crate) fn undecided(&self, partition: u64) -> Option<String> {
        let open = self.replicas.open_check(partition)?;
        let nodes = self.catalog_reader.nodes();
        let name = |id: u64| {
            let known = nodes.get(&id);
            known.map_or_else(|| format!("node {id}"), |node| node.name.clone())
        };
        let mut states: BTreeMap<&[u8], Vec<String>> = BTreeMap::new();
        for answer in &open.answers {
            let origin = answer.origin.map_or(0, |origin| origin.node);
            let copied = match origin {
                own if own == answer.node => String::new(),
                0 => " (its origin is not known)".to_owned(),
                other => format!(" (a copy of {}'s)", name(other)),
            };
            let same = states.entry(&answer.digest).or_default();
            same.push(format!("{}{copied}", name(answer.node)));
        }
        let states = states.into_values().map(|same| same.join(", "));
        let states: Vec<_> = states.collect();
        let trusted = open.trusted.map(|trusted| name(trusted.node));
        let meanwhile = match trusted {
            None => "until then no node gets a snapshot of one of them, and none is put into the repository".to_owned(),
            Some(name) => format!(
                "the one of {name} is taken for the right one: while it leads, others get its state, and once more than \
                 half of the voters have it, those that differ stop"
            ),
        };
        Some(format!(
            "its replicas differ, as the comparison at LSN {} has shown, and it is not known which is right; as of LSN {} \
             these have the same state: {}. {meanwhile}",
            open.open_since(),
            open.lsn,
            states.join("; ")
        ))
    }
}

impl Inner {
    /// The partitions whose replicas differ without it being known which is right. They are served meanwhile; once it is
    /// known, the wrong ones stop.
    pub(crate) fn undecided_replicas(&self) -> Vec<Problem> {
        let groups = self.groups().map(|group| group.id().0);
        let of = |partition| {
            let what = self.undecided(partition)?;
            Some(Problem {
                code: "replicas_differ",
                partitions: vec![partition],
                what: format!("partition {partition}: {what}"),
                remedy: DIFFERING_REMEDY,
            })
        };
        groups.filter_map(of).collect()
    }
}

/// Stops replicas here that have diverged, and follows what replicas fetch, until the node stops.
pub(crate) async fn watch(inner: Arc<Inner>) {
    let Some(peers) = inner.peers.clone() else {
        return;
    };
    let stopping = inner.stopping.clone();
    let mut asked_at = None;
    let mut withheld = BTreeMap::new();
    while tokio::time::timeout(WATCH_INTERVAL, stopping.cancelled())
        .await
        .is_err()
    {
        let me = NodeId(inner.identity.node_id);
        for group in inner.groups() {
            let has_diverged = inner.replicas.diverged.why(group.id().0).is_some();
            let partition = group.id().to_string();
            metrics::gauge!("esker_partition_diverged", "partition" => partition.clone())
                .set(f64::from(u8::from(has_diverged)));
            let is_open = inner.replicas.open_check(group.id().0).is_some();
            metrics::gauge!("esker_partition_undecided", "partition" => partition)
                .set(f64::from(u8::from(is_open)));
            withhold(&inner, group.id().0, &mut withheld);
            let details = group.details();
            let mine = details.transfers.iter().find(|it| it.receiver == me);
            let now = Instant::now();
            inner.replicas.transfers.sample(group.id().0, mine, now);
        }
        stop_diverged(&inner).await;
        let now = Instant::now();
        if asked_at.is_none_or(|at| now.duration_since(at) >= LEADERS_INTERVAL) {
            find_leaders(&inner, &peers).await;
            asked_at = Some(now);
        }
    }
}

/// Withholds the state of a replica here from others, or lets them have it again.
fn withhold(inner: &Inner, partition: u64, withheld: &mut BTreeMap<u64, bool>) {
    let now = inner.is_withheld(partition);
    if withheld.insert(partition, now) == Some(now) {
        return;
    }
    inner.group(partition).withhold_snapshots(now);
    if now {
        tracing::warn!(
            partition,
            "replicas differ, and it is not known which is right: no node gets a snapshot of this one, and none is put into the repository"
        );
    }
}

/// Finds out from another node who leads the partitions whose replicas here have halted: requests for them go
/// there.
async fn find_leaders(inner: &Inner, peers: &Peers) {
    let halted = inner.groups().filter(|group| group.halted().is_some());
    let halted: Vec<u64> = halted.map(|group| group.id().0).collect();
    let mut leaders = BTreeMap::new();
    if !halted.is_empty() {
        let nodes = peers.directory.all();
        let others = nodes.values().filter(|node| {
            node.id != peers.me() && matches!(node.state, NodeState::Active | NodeState::Draining)
        });
        // All at the same time: one that does not answer must not keep the others, nor whoever waits for this, waiting.
        let asked = others.map(|node| {
            let transport = &peers.transport;
            transport.call(NodeId(node.id), GROUPS, Bytes::new(), ASK_TIMEOUT)
        });
        let answers = futures::future::join_all(asked).await;
        let answers = answers.into_iter().flatten();
        let answers = answers.filter_map(|it| serde_json::from_slice::<GroupsOf>(&it).ok());
        for answer in answers {
            for partition in &halted {
                let of = answer.groups.get(*partition as usize);
                // The one of the latest term, if they do not agree.
                if let Some((leader, term)) = of.and_then(|of| Some((of.leader?, of.term)))
                    && leader != peers.me()
                    && leaders
                        .get(partition)
                        .is_none_or(|(_, known)| *known < term)
                {
                    leaders.insert(*partition, (leader, term));
                }
            }
        }
    }
    let leaders = leaders
        .into_iter()
        .map(|(partition, (leader, _))| (partition, leader));
    let leaders = leaders.collect();
    inner.replicas.set_leaders_elsewhere(leaders);
}

/// Stops the replicas here that have diverged. Their data stays as it is, for whoever looks for the cause.
async fn stop_diverged(inner: &Arc<Inner>) {
    for group in inner.groups() {
        let partition = group.id().0;
        let replicas = &inner.replicas;
        let found = replicas.digests.divergence(partition);
        let Some(found) = found.filter(|_| replicas.diverged.why(partition).is_none()) else {
            continue;
        };
        let (noting, others) = (inner.clone(), found.others.clone());
        let noted = blocking(move || noting.replicas.diverged.note(partition, &found)).await;
        if let Err(error) = noted {
            tracing::error!(
                partition,
                %error,
                "a replica that has diverged is stopped, and would take part again after a restart: do not restart \
                 this node"
            );
        }
        for node in others {
            if !group.is_serving() {
                break;
            }
            let transfer = group.transfer_leadership(NodeId(node));
            if tokio::time::timeout(TRANSFER_TIMEOUT, transfer)
                .await
                .is_err()
            {
                tracing::warn!(partition, node, "the leadership was not taken over in time");
            }
        }
        let why = replicas.diverged.why(partition).unwrap_or_default();
        tracing::error!(partition, why, "a replica has diverged and is stopped");
        let group = group.clone();
        blocking(move || group.condemn(why)).await;
    }
}
