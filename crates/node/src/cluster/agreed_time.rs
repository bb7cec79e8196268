//! The time that the clocks of a majority of the nodes have reached, of what is known of these clocks. How they are
//! asked, and what goes by it, is in [`super::clocks`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use esker_partition::command::NodeState;
use esker_repository::steady::CLOCK_TOLERANCE;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::directory::Nodes;

/// What a node has answered counts for so long: six rounds.
pub(super) const MAX_AGE: Duration = Duration::from_secs(60);

/// What this node knows of the other nodes' clocks.
#[derive(Debug)]
pub(crate) struct Clocks {
    pub(super) heard: Mutex<BTreeMap<u64, Heard>>,
    /// Cancelled after the first comparison.
    pub(super) compared: CancellationToken,
    /// The same. Each append looks.
    pub(super) are_compared: AtomicBool,
    /// When this process began to count.
    pub(super) began: Instant,
    /// The agreed time at that moment, by the last comparison that found one; 0 before. Each command is stamped by it:
    /// it goes on with the time that passes, also if this node's clock jumps.
    pub(super) agreed_then_ms: AtomicU64,
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
pub(super) struct Heard {
    at: Instant,
    ages_ms: u64,
}

impl Heard {
    /// What that clock shows now, or a little less; `None` if the answer is too old.
    pub(super) fn now(self, now: Instant) -> Option<u64> {
        let since = now.saturating_duration_since(self.at);
        let passed = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        (since <= MAX_AGE).then(|| self.ages_ms.saturating_add(passed))
    }
}

/// The latest time that a majority of the clocks have reached; `None` stands for one that is not known.
pub(super) fn agreed(clocks: &[Option<u64>]) -> Option<u64> {
    let mut known: Vec<u64> = clocks.iter().copied().flatten().collect();
    known.sort_unstable_by(|one, other| other.cmp(one));
    known.get(clocks.len() / 2).copied()
}

/// Whether a majority of the clocks show that time, as far as right clocks differ.
pub(super) fn is_shown_by_majority(clocks: &[Option<u64>], time_ms: u64) -> bool {
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
pub(super) fn counted(nodes: &Nodes) -> impl Iterator<Item = u64> {
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
    pub(super) fn compared(&self) {
        self.are_compared.store(true, Ordering::Relaxed);
        self.compared.cancel();
    }

    pub(super) fn passed_ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_millis() as u64
    }

    /// A comparison has found this agreed time.
    pub(super) fn found(&self, agreed_ms: u64, now: Instant) {
        let then = agreed_ms.saturating_sub(self.passed_ms(now));
        self.agreed_then_ms.store(then, Ordering::Relaxed);
    }

    /// The time with which a command is stamped, where this node's clock shows `own_ms`.
    pub(super) fn stamp(&self, own_ms: u64, now: Instant) -> u64 {
        match self.agreed_then_ms.load(Ordering::Relaxed) {
            0 => own_ms,
            then => {
                let agreed = then.saturating_add(self.passed_ms(now));
                let is_behind = difference(own_ms, agreed).is_some_and(|(_, is_ahead)| !is_ahead);
                if is_behind { agreed } else { own_ms }
            }
        }
    }

    pub(super) fn note(&self, node: u64, at: Instant, ages_ms: u64) {
        self.heard.lock().insert(node, Heard { at, ages_ms });
    }

    /// What the clocks show now, where this node's clock shows `own_ms`.
    pub(super) fn show(
        &self,
        nodes: &Nodes,
        me: u64,
        own_ms: u64,
        now: Instant,
    ) -> Vec<Option<u64>> {
        let heard = self.heard.lock();
        let clock = |node: u64| match node == me {
            true => Some(own_ms),
            false => heard.get(&node).and_then(|heard| heard.now(now)),
        };
        counted(nodes).map(clock).collect()
    }

    /// The agreed time, where this node's clock shows `own_ms`.
    pub(super) fn agreed(&self, nodes: &Nodes, me: u64, own_ms: u64, now: Instant) -> Option<u64> {
        agreed(&self.show(nodes, me, own_ms, now))
    }

    /// Takes what was heard so far for the stamps of commands. If a majority show one time, no other clock changes
    /// that.
    pub(super) fn compare(&self, nodes: &Nodes, me: u64, own_ms: u64, now: Instant) {
        let clocks = self.show(nodes, me, own_ms, now);
        if let Some(agreed) = agreed(&clocks) {
            self.found(agreed, now);
            if is_shown_by_majority(&clocks, agreed) {
                self.compared();
            }
        }
    }
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
            removed_at_ms: None,
            given_up: false,
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
}
