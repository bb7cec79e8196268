//! What partitions still count on a node that leaves, and the wait until none does.
//!
//! The server answers a removal or a drain as soon as it is recorded. The leader of each partition changes the members
//! after that, and until it has, the node's vote may be needed: with two voters, a partition without it has no majority.
//! It is needed as well until the leader knows that a majority of the new voters knows of the change: if the leader were
//! lost before, the others would still count by the old ones.
//! The wait asks for the status at intervals; it ends once no partition counts on the node, and at a deadline.

use std::time::{Duration, Instant};

use esker_server::admin::cluster::{ClusterGroup, ClusterView, GroupMembers};
use serde::Serialize;

use crate::failure::Failure;
use crate::term::plain;

/// How long a command waits, and whether it does.
#[derive(clap::Args)]
pub struct WaitArgs {
    /// Return as soon as the change is recorded
    #[arg(long)]
    pub no_wait: bool,

    /// Seconds to wait
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
}

/// A partition that still counts on the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pending {
    pub partition: u64,
    pub why: String,
}

/// What partitions have of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Those that still count on it.
    pub pending: Vec<Pending>,
    /// Those in which it keeps its vote, because no other node can take it: while it drains, that is where it ends.
    pub keeps_vote: Vec<u64>,
}

/// How often is looked, and what else is a matter of time.
#[derive(Clone, Copy)]
pub struct Timing {
    /// How often is looked.
    look_interval: Duration,
    /// How long a look may take.
    look_timeout: Duration,
    /// How often progress is reported at most.
    report_interval: Duration,
    /// How long votes that are kept have to stay so: what a leader has noted may be of a moment before the drain, and it
    /// looks several times a second.
    settle_time: Duration,
}

impl Timing {
    pub const DEFAULT: Timing = Timing {
        look_interval: Duration::from_millis(250),
        look_timeout: Duration::from_secs(10),
        report_interval: Duration::from_secs(5),
        settle_time: Duration::from_secs(2),
    };
}

/// How a wait has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waited {
    /// No partition counts on the node.
    Settled(Standing),
    /// The deadline has come, and some still do.
    TimedOut(Standing),
    /// The deadline has come, and the last look has found nothing, for this reason.
    Unknown(String),
}

impl Waited {
    /// What was found last.
    pub fn standing(&self) -> Option<&Standing> {
        match self {
            Waited::Settled(standing) | Waited::TimedOut(standing) => Some(standing),
            Waited::Unknown(_) => None,
        }
    }
}

/// Partitions that a message names.
const MAX_NAMED: usize = 3;

impl Standing {
    /// Who counts on a node that was removed.
    pub fn of_removed(view: &ClusterView, node: u64) -> Standing {
        let pending = view.partitions.iter().filter_map(|of| {
            let why = match &of.members {
                None => leaderless(of, node),
                Some(members) => with_wait(counts_on(members, node)?, members),
            };
            let partition = of.partition;
            Some(Pending { partition, why })
        });
        Standing {
            pending: pending.collect(),
            keeps_vote: Vec::new(),
        }
    }

    /// Who counts on a node that drains. Where it is a learner, nobody does.
    pub fn of_drained(view: &ClusterView, node: u64) -> Standing {
        let mut standing = Standing::default();
        for of in &view.partitions {
            let partition = of.partition;
            let mut replicas = of.replicas.iter();
            let leads = of.leader == Some(node)
                || replicas.any(|replica| replica.node == node && replica.role == "leader");
            let why = match &of.members {
                None => leaderless(of, node),
                Some(members) if leads => with_wait("it still leads", members),
                Some(members) if keeps_vote(members, node) => {
                    standing.keeps_vote.push(partition);
                    continue;
                }
                Some(members) => match counts_on(members, node) {
                    None | Some(IS_LEARNER) => continue,
                    Some(why) => with_wait(why, members),
                },
            };
            standing.pending.push(Pending { partition, why });
        }
        standing
    }

    /// The partitions that still count on the node, in words.
    pub fn describe(&self) -> String {
        let named = self.pending.iter().take(MAX_NAMED);
        let named: Vec<String> = named
            .map(|it| format!("partition {}: {}", it.partition, plain(&it.why)))
            .collect();
        match self.pending.len().saturating_sub(named.len()) {
            0 => named.join("; "),
            more => format!("{}; and {more} more", named.join("; ")),
        }
    }
}

const IS_LEARNER: &str = "it is still a learner";

/// What a partition still has of a node, or may need it for, if anything.
fn counts_on(members: &GroupMembers, node: u64) -> Option<&'static str> {
    if members.voters.contains(&node) {
        return Some("it still votes");
    }
    if members.voters_before.contains(&node) {
        return Some("the change that takes its vote is not complete");
    }
    if members.unconfirmed {
        return Some("a majority of the voters has not confirmed the last change of the voters");
    }
    members.learners.contains(&node).then_some(IS_LEARNER)
}

/// Whether a node that drains keeps its vote, as long as no other node can take it.
fn keeps_vote(members: &GroupMembers, node: u64) -> bool {
    let waits = members.waits.as_ref();
    members.voters.contains(&node)
        && members.voters_before.is_empty()
        && waits.is_some_and(|waits| !waits.problem)
}

fn leaderless(of: &ClusterGroup, node: u64) -> String {
    match of.leader == Some(node) {
        true => "it still leads".to_owned(),
        false => "its members are not known, because no leader has answered".to_owned(),
    }
}

fn with_wait(why: &str, members: &GroupMembers) -> String {
    match &members.waits {
        None => why.to_owned(),
        Some(waits) => format!("{why} ({})", waits.why),
    }
}

/// Waits until no partition counts on the node, or the deadline comes, and reports what it waits for.
pub async fn settle(
    deadline: Instant,
    timing: Timing,
    mut look: impl AsyncFnMut() -> Result<Standing, Failure>,
    mut report: impl FnMut(&str),
) -> Waited {
    let mut last: Result<Standing, String> = Err("nothing was asked".to_owned());
    let mut reported: Option<(Instant, String)> = None;
    let mut kept: Option<(Instant, Standing)> = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return match last {
                Ok(standing) if standing.pending.is_empty() => Waited::Settled(standing),
                Ok(standing) => Waited::TimedOut(standing),
                Err(why) => Waited::Unknown(why),
            };
        }
        let looked = tokio::time::timeout(left.min(timing.look_timeout), look()).await;
        let now = Instant::now();
        last = match looked {
            Ok(Ok(standing)) => Ok(standing),
            Ok(Err(failure)) => Err(failure.message),
            // What was found before says more than that there was no time to look again.
            Err(_) if now >= deadline && last.is_ok() => last,
            Err(_) => Err("the server has not answered in time".to_owned()),
        };
        let is_settled = |it: &&Standing| it.pending.is_empty();
        let Some(settled) = last.as_ref().ok().filter(is_settled) else {
            kept = None;
            let text = match &last {
                Ok(standing) => standing.describe(),
                Err(why) => plain(why),
            };
            let is_due = reported.as_ref().is_none_or(|(at, before)| {
                *before != text && now.duration_since(*at) >= timing.report_interval
            });
            if is_due {
                report(&text);
                reported = Some((now, text));
            }
            sleep(deadline, timing).await;
            continue;
        };
        let since = match &kept {
            Some((since, before)) if before == settled => *since,
            _ => now,
        };
        if settled.keeps_vote.is_empty() || now.duration_since(since) >= timing.settle_time {
            return Waited::Settled(settled.clone());
        }
        kept = Some((since, settled.clone()));
        sleep(deadline, timing).await;
    }
}

/// Until the next look, or the deadline.
async fn sleep(deadline: Instant, timing: Timing) {
    let left = deadline.saturating_duration_since(Instant::now());
    tokio::time::sleep(left.min(timing.look_interval)).await;
}

#[cfg(test)]
mod tests;
