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

use std::collections::BTreeMap;
use std::mem::Discriminant;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_partition::command::NodeState;
use esker_raft::NodeId;
use esker_raft::transport::grpc::CallError;
use esker_repository::steady::CLOCK_TOLERANCE;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::directory::Nodes;
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
/// What a node has answered counts for so long: six rounds.
const MAX_AGE: Duration = Duration::from_secs(60);
/// How long appends wait for the first comparison after a start. A node that leads is in contact with a majority, so
/// it takes a few milliseconds; nodes of an earlier release do not answer.
const FIRST_TIMEOUT: Duration = Duration::from_secs(3);

/// What this node knows of the other nodes' clocks.
#[derive(Debug)]
pub(crate) struct Clocks {
    heard: Mutex<BTreeMap<u64, Heard>>,
    /// Cancelled after the first comparison.
    compared: CancellationToken,
    /// The same. Each append looks.
    are_compared: AtomicBool,
    /// When this process began to count.
    began: Instant,
    /// The agreed time at that moment, by the last comparison that found one; 0 before. Each command is stamped by it:
    /// it goes on with the time that passes, also if this node's clock jumps.
    agreed_then_ms: AtomicU64,
}

/// What is wrong with the clocks, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClockProblem {
    /// That of this node is not as those of a majority.
    Differs(String),
    /// Too few are known.
    Unknown(String),
}

/// The last answer of a node.
#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Instant,
    ages_ms: u64,
}

impl Heard {
    /// What that clock shows now, or a little less; `None` if the answer is too old.
    fn now(self, now: Instant) -> Option<u64> {
        let since = now.saturating_duration_since(self.at);
        let passed = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        (since <= MAX_AGE).then(|| self.ages_ms.saturating_add(passed))
    }
}

/// The latest time that a majority of the clocks have reached; `None` stands for one that is not known.
fn agreed(clocks: &[Option<u64>]) -> Option<u64> {
    let mut known: Vec<u64> = clocks.iter().copied().flatten().collect();
    known.sort_unstable_by(|one, other| other.cmp(one));
    known.get(clocks.len() / 2).copied()
}

/// Whether a majority of the clocks show that time, as far as right clocks differ.
fn is_shown_by_majority(clocks: &[Option<u64>], time_ms: u64) -> bool {
    let shown = clocks.iter().flatten();
    let count = shown.filter(|clock| difference(**clock, time_ms).is_none());
    count.count() > clocks.len() / 2
}

/// By how much a clock is ahead of (`true`) or behind another one, if that is more than two right clocks differ.
pub(super) fn difference(clock_ms: u64, other_ms: u64) -> Option<(Duration, bool)> {
    let difference = Duration::from_millis(clock_ms.abs_diff(other_ms));
    (difference > CLOCK_TOLERANCE).then_some((difference, clock_ms > other_ms))
}

/// The same, as text.
pub(super) fn differs(clock_ms: u64, other_ms: u64) -> Option<String> {
    let (by, is_ahead) = difference(clock_ms, other_ms)?;
    let side = if is_ahead { "ahead of" } else { "behind" };
    Some(format!("{} s {side}", by.as_secs()))
}

/// The nodes whose clocks count: those that have joined.
fn counted(nodes: &Nodes) -> impl Iterator<Item = u64> {
    let count = nodes
        .values()
        .filter(|node| matches!(node.state, NodeState::Active | NodeState::Draining));
    count.map(|node| node.id)
}

impl Default for Clocks {
    fn default() -> Self {
        Clocks {
            heard: Mutex::default(),
            compared: CancellationToken::new(),
            are_compared: AtomicBool::new(false),
            began: Instant::now(),
            agreed_then_ms: AtomicU64::new(0),
        }
    }
}

impl Clocks {
    fn compared(&self) {
        self.are_compared.store(true, Ordering::Relaxed);
        self.compared.cancel();
    }

    fn passed_ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_millis() as u64
    }

    /// A comparison has found this agreed time.
    fn found(&self, agreed_ms: u64, now: Instant) {
        let then = agreed_ms.saturating_sub(self.passed_ms(now));
        self.agreed_then_ms.store(then, Ordering::Relaxed);
    }

    /// The time with which a command is stamped, where this node's clock shows `own_ms`.
    fn stamp(&self, own_ms: u64, now: Instant) -> u64 {
        match self.agreed_then_ms.load(Ordering::Relaxed) {
            0 => own_ms,
            then => {
                let agreed = then.saturating_add(self.passed_ms(now));
                let is_behind = difference(own_ms, agreed).is_some_and(|(_, is_ahead)| !is_ahead);
                if is_behind { agreed } else { own_ms }
            }
        }
    }

    fn note(&self, node: u64, at: Instant, ages_ms: u64) {
        self.heard.lock().insert(node, Heard { at, ages_ms });
    }

    /// What the clocks show now, where this node's clock shows `own_ms`.
    fn show(&self, nodes: &Nodes, me: u64, own_ms: u64, now: Instant) -> Vec<Option<u64>> {
        let heard = self.heard.lock();
        let clock = |node: u64| match node == me {
            true => Some(own_ms),
            false => heard.get(&node).and_then(|heard| heard.now(now)),
        };
        counted(nodes).map(clock).collect()
    }

    /// The agreed time, where this node's clock shows `own_ms`.
    fn agreed(&self, nodes: &Nodes, me: u64, own_ms: u64, now: Instant) -> Option<u64> {
        agreed(&self.show(nodes, me, own_ms, now))
    }

    /// Takes what was heard so far for the stamps of commands. If a majority show one time, no other clock changes
    /// that.
    fn compare(&self, nodes: &Nodes, me: u64, own_ms: u64, now: Instant) {
        let clocks = self.show(nodes, me, own_ms, now);
        if let Some(agreed) = agreed(&clocks) {
            self.found(agreed, now);
            if is_shown_by_majority(&clocks, agreed) {
                self.compared();
            }
        }
    }
}

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
    use esker_partition::ClusterNode;

    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;
    /// The right time.
    const NOW: u64 = 20_000 * DAY;

    fn nodes(states: &[NodeState]) -> Nodes {
        let node = |(id, state): (u64, &NodeState)| ClusterNode {
            id,
            name: format!("n{id}"),
            peer_address: format!("host-{id}:1"),
            client_address: String::new(),
            zone: String::new(),
            state: *state,
            registered_at_ms: 0,
            reads_format: 3,
            incarnations: vec![1],
        };
        (1..)
            .zip(states)
            .map(node)
            .map(|node| (node.id, node))
            .collect()
    }

    #[test]
    fn one_wrong_clock_of_three_moves_the_agreed_time_nowhere() {
        for wrong in [NOW - 8 * DAY, NOW + 8 * DAY] {
            for at in 0..3 {
                let mut clocks = [Some(NOW); 3];
                clocks[at] = Some(wrong);
                assert_eq!(agreed(&clocks), Some(NOW), "{at} shows {wrong}");
            }
        }
    }

    #[test]
    fn the_agreed_time_is_not_late_as_long_as_the_clocks_of_a_majority_are_right_whoever_is_heard()
    {
        for count in 1..8_usize {
            // Each clock is right, ahead, behind, or not heard.
            for choice in 0..4_usize.pow(count as u32) {
                let kinds: Vec<_> = (0..count)
                    .map(|at| choice / 4_usize.pow(at as u32) % 4)
                    .collect();
                let clock =
                    |kind: &usize| [Some(NOW), Some(NOW + DAY), Some(NOW - DAY), None][*kind];
                let clocks: Vec<_> = kinds.iter().map(clock).collect();
                let of = |kind| kinds.iter().filter(|it| **it == kind).count();
                let agreed = agreed(&clocks);
                let heard = count - of(3);
                assert_eq!(agreed.is_some(), heard > count / 2, "{clocks:?}");
                if 2 * of(1) < count {
                    assert!(agreed.is_none_or(|agreed| agreed <= NOW), "{clocks:?}");
                }
                if of(0) + of(1) > count / 2 {
                    assert!(agreed.is_some_and(|agreed| agreed >= NOW), "{clocks:?}");
                }
            }
        }
    }

    #[test]
    fn what_was_heard_goes_on_and_counts_no_longer_than_it_may() {
        let clocks = Clocks::default();
        let began = Instant::now();
        let nodes = nodes(&[NodeState::Active; 3]);
        let at = |passed: Duration| {
            let own = NOW + passed.as_millis() as u64;
            clocks.agreed(&nodes, 1, own, began + passed)
        };
        assert_eq!(at(Duration::ZERO), None, "one clock of three");
        clocks.note(2, began, NOW - DAY);
        assert_eq!(at(MAX_AGE), Some(NOW - DAY + MAX_AGE.as_millis() as u64));
        clocks.note(3, began, NOW);
        assert_eq!(at(Duration::ZERO), Some(NOW));
        assert_eq!(at(MAX_AGE + Duration::from_millis(1)), None);
    }

    /// A leader with a late clock must not stamp with its own because only one other clock is heard so far.
    #[test]
    fn clocks_are_compared_once_a_majority_show_one_time() {
        let clocks = Clocks::default();
        let began = Instant::now();
        let nodes = nodes(&[NodeState::Active; 3]);
        let own = NOW - 8 * DAY;
        for (node, is_compared) in [(2, false), (3, true)] {
            clocks.note(node, began, NOW);
            clocks.compare(&nodes, 1, own, began);
            let compared = clocks.are_compared.load(Ordering::Relaxed);
            assert_eq!(compared, is_compared, "after node {node}");
        }
        assert_eq!(clocks.stamp(own, began), NOW);
    }

    #[test]
    fn only_nodes_that_have_joined_count() {
        use NodeState::{Active, Draining, Joining, Removed};
        let clocks = Clocks::default();
        let began = Instant::now();
        let nodes = nodes(&[Active, Draining, Active, Joining, Removed]);
        for node in [4, 5] {
            clocks.note(node, began, NOW + DAY);
        }
        assert_eq!(clocks.agreed(&nodes, 1, NOW, began), None);
        clocks.note(2, began, NOW - 1);
        assert_eq!(clocks.agreed(&nodes, 1, NOW, began), Some(NOW - 1));
    }

    #[test]
    fn a_node_whose_clock_is_behind_stamps_with_the_agreed_time_and_another_one_with_its_own() {
        let clocks = Clocks::default();
        let began = Instant::now();
        let stamp = |own, passed| clocks.stamp(own, began + Duration::from_millis(passed));
        assert_eq!(stamp(NOW - 8 * DAY, 0), NOW - 8 * DAY, "none is known");
        clocks.found(NOW, began);
        for passed in [0, DAY] {
            assert_eq!(stamp(NOW + passed - 8 * DAY, passed), NOW + passed);
            assert_eq!(
                stamp(NOW + passed + 8 * DAY, passed),
                NOW + passed + 8 * DAY
            );
            let own = NOW + passed - 30_000;
            assert_eq!(stamp(own, passed), own, "as clocks differ");
        }
    }

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
