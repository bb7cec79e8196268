//! The clocks of the nodes, compared.
//!
//! The age of a record is the time of the node that leads now, less that of the node that led when the record came. One
//! wrong clock would make it as old as the clocks differ, and the record would expire. So nodes ask each other for the
//! time, and go by the *agreed time*: the latest that the clocks of a majority of all nodes have reached. If those of a
//! majority are right, it is not after the right time: what is deleted for its age is deleted by the agreed time at the
//! latest. If they are all heard, it is not before the right time either: commands are stamped with it where this
//! node's clock is behind.
//!
//! Clocks that are not heard count as if they had reached nothing. With too few there is no agreed time, and nothing is
//! deleted for its age.

use std::mem::Discriminant;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_raft::NodeId;
use esker_raft::transport::grpc::CallError;

use super::agreed_time::{ClockProblem, MAX_AGE, counted, differs};
use super::peers::Peers;
use super::wire::{CLOCK, ClockOf};
use crate::clock::{now_ms, now_ms_for_ages};
use crate::core::Inner;

/// How often the other nodes are asked for the time.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same, while there is no agreed time.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The same, before the first comparison.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);
/// How long a node may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long appends wait for the first comparison after a start. A node that leads is in contact with a majority, so
/// it takes a few milliseconds; nodes of an earlier release do not answer.
const FIRST_TIMEOUT: Duration = Duration::from_secs(3);

impl Inner {
    /// The agreed time; `None` with too few clocks. Only in a cluster.
    fn agreed_ms(&self, peers: &Peers) -> Option<u64> {
        let nodes = self.catalog_reader.nodes();
        let own = now_ms_for_ages();
        (peers.clocks).agreed(&nodes, peers.me(), own, Instant::now())
    }

    /// The time by which something is deleted for its age: that of this node or, in a cluster, the agreed time if that
    /// is earlier. `None` if there is none, so that nothing is deleted.
    pub(crate) fn ms_for_ages(&self) -> Option<u64> {
        let own = now_ms_for_ages();
        match &self.peers {
            None => Some(own),
            Some(peers) => Some(own.min(self.agreed_ms(peers)?)),
        }
    }

    /// The time with which a command is stamped: that of this node, or the agreed time if this node's clock is behind.
    /// With an earlier stamp, what the command writes would expire too early under a later leader.
    pub(crate) fn stamp_ms(&self) -> u64 {
        let own = now_ms();
        let clocks = self.peers.as_ref().map(|peers| &peers.clocks);
        clocks.map_or(own, |clocks| clocks.stamp(own, Instant::now()))
    }

    /// Waits for the first comparison of clocks after a start, for [`FIRST_TIMEOUT`] at most.
    pub(crate) async fn clocks_compared(&self) {
        if let Some(peers) = &self.peers
            && !peers.clocks.are_compared.load(Ordering::Relaxed)
        {
            let left = FIRST_TIMEOUT.saturating_sub(self.started.elapsed());
            let _ = tokio::time::timeout(left, peers.clocks.compared.cancelled()).await;
        }
    }

    /// What is wrong with the clocks, if something is.
    pub(crate) fn clock_problem(&self) -> Option<ClockProblem> {
        let peers = self.peers.as_ref()?;
        match self.agreed_ms(peers) {
            Some(agreed) => {
                let differs = differs(now_ms_for_ages(), agreed)?;
                Some(ClockProblem::Differs(format!(
                    "the clock of this node is {differs} the time that a majority of the nodes have: nothing is \
                     deleted for its age by the later of the two"
                )))
            }
            None if self.started.elapsed() < MAX_AGE => None,
            None => Some(ClockProblem::Unknown(
                "the clocks of a majority of the nodes are not known here: what this node leads deletes nothing for \
                 its age"
                    .to_owned(),
            )),
        }
    }

    /// What this node answers to others.
    pub(super) fn own_clock(&self) -> ClockOf {
        ClockOf {
            ages_ms: now_ms_for_ages(),
        }
    }

    /// Why a new node is not taken because of its clock, if so.
    pub(super) fn clock_of_joining(&self, clock_ms: u64) -> Result<(), CallError> {
        let agreed = self.peers.as_ref().and_then(|peers| self.agreed_ms(peers));
        check_joining(clock_ms, agreed)
    }
}

fn check_joining(clock_ms: u64, agreed: Option<u64>) -> Result<(), CallError> {
    match agreed.and_then(|agreed| differs(clock_ms, agreed)) {
        None => Ok(()),
        Some(differs) => Err(CallError::Refused(format!(
            "its clock is {differs} that of the cluster, and times of records and what expires go by clocks: set it, \
             then let the node join"
        ))),
    }
}

/// Asks the other nodes for the time, until the node stops.
pub(crate) async fn compare_clocks(inner: Arc<Inner>) {
    let Some(peers) = inner.peers.clone() else {
        return;
    };
    let mut was = None;
    loop {
        let is_compared = ask_all(&inner, &peers).await;
        if is_compared {
            peers.clocks.compared();
        }
        was = report(&inner, was);
        let pause = match inner.agreed_ms(&peers) {
            Some(_) => INTERVAL,
            None if inner.started.elapsed() < FIRST_TIMEOUT => FIRST_INTERVAL,
            None => RETRY_INTERVAL,
        };
        let stopped = tokio::time::timeout(pause, inner.stopping.cancelled());
        if stopped.await.is_ok() {
            return;
        }
    }
}

/// Asks each node once. Returns whether a majority have answered, be it that they do not tell the time.
async fn ask_all(inner: &Inner, peers: &Peers) -> bool {
    let nodes = inner.catalog_reader.nodes();
    let all: Vec<u64> = counted(&nodes).collect();
    let asked = all.iter().map(|node| ask(inner, peers, *node));
    let answered = futures::future::join_all(asked).await;
    let answered = answered.into_iter().filter(|answered| *answered).count();
    peers
        .clocks
        .heard
        .lock()
        .retain(|node, _| all.contains(node));
    answered > all.len() / 2
}

/// Asks a node for the time. Returns whether it has answered.
async fn ask(inner: &Inner, peers: &Peers, node: u64) -> bool {
    if node == peers.me() {
        return true;
    }
    let transport = &peers.transport;
    let asked = transport.call(NodeId(node), CLOCK, Bytes::new(), CALL_TIMEOUT);
    let answer = match asked.await {
        Ok(answer) => answer,
        // It runs, and is of an earlier release.
        Err(error) => return matches!(error, CallError::Refused(_)),
    };
    let Ok(clock) = serde_json::from_slice::<ClockOf>(&answer) else {
        return true;
    };
    // As if it were read when the answer came: the agreed time is rather early than late.
    peers.clocks.note(node, Instant::now(), clock.ages_ms);
    let nodes = inner.catalog_reader.nodes();
    let own = now_ms_for_ages();
    (peers.clocks).compare(&nodes, peers.me(), own, Instant::now());
    true
}

/// Logs a problem with the clocks once, and sets the metric. Returns the kind of the problem.
fn report(
    inner: &Inner,
    was: Option<Discriminant<ClockProblem>>,
) -> Option<Discriminant<ClockProblem>> {
    let problem = inner.clock_problem();
    let kind = problem.as_ref().map(std::mem::discriminant);
    if let Some(ClockProblem::Differs(what) | ClockProblem::Unknown(what)) = problem
        && kind != was
    {
        tracing::warn!("{what}");
    }
    if let Some(agreed) = inner
        .peers
        .as_ref()
        .and_then(|peers| inner.agreed_ms(peers))
    {
        let ahead = (now_ms_for_ages() as f64 - agreed as f64) / 1000.0;
        metrics::gauge!("esker_clock_ahead_seconds").set(ahead);
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;
    /// The right time.
    const NOW: u64 = 20_000 * DAY;

    #[test]
    fn a_new_node_with_a_wrong_clock_is_refused_with_the_difference() {
        check_joining(NOW + 1000, Some(NOW)).unwrap();
        check_joining(NOW + DAY, None).unwrap();
        for (clock, says) in [(NOW + DAY, "86400 s ahead"), (NOW - DAY, "86400 s behind")] {
            let refused = check_joining(clock, Some(NOW)).unwrap_err();
            assert!(
                matches!(&refused, CallError::Refused(why) if why.contains(says)),
                "{refused}"
            );
        }
    }
}
