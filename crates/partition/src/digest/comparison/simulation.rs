//! Histories of groups: replicas become wrong, are away, are copied from each other and from old snapshots, and are
//! compared. As long as at most half of the voters have become wrong on their own, no right one is stopped.

use super::*;
use crate::command::MemberDigest;

/// Steps of one history.
const STEPS: usize = 60;

/// A rule that the simulation has to find broken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// Every answer counts.
    CountsCopies,
    /// A copy counts as the work of whoever has it as soon as two are equal.
    ForgetsDescent,
}

/// Numbers that look random, the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}

/// What a replica has, and whether that is right.
#[derive(Clone, Copy)]
struct State {
    is_right: bool,
    origin: Origin,
}

struct Replica {
    node: u64,
    state: State,
    is_away: bool,
    has_stopped: bool,
}

/// How a history ended.
#[derive(Default)]
struct Outcome {
    /// Right replicas that were stopped.
    right_stopped: usize,
    wrong_stopped: usize,
    /// Comparisons in which those that stopped left no majority.
    majorities_lost: usize,
}

struct History {
    random: Numbers,
    replicas: Vec<Replica>,
    /// Snapshots that replicas have put.
    snapshots: Vec<State>,
    compared: Option<Compared>,
    lsn: u64,
    /// Replicas that have become wrong on their own.
    faults: usize,
    mutant: Option<Mutant>,
    outcome: Outcome,
}

impl History {
    fn new(seed: u64, mutant: Option<Mutant>) -> History {
        let mut random = Numbers(seed);
        let voters = [3, 3, 4, 5][random.below(4)];
        let replica = |node| Replica {
            node,
            state: State {
                is_right: true,
                origin: Origin::own(node, 0),
            },
            is_away: false,
            has_stopped: false,
        };
        History {
            random,
            replicas: (1..=voters).map(replica).collect(),
            snapshots: Vec::new(),
            compared: None,
            lsn: 1,
            faults: 0,
            mutant,
            outcome: Outcome::default(),
        }
    }

    fn run(mut self) -> Outcome {
        for _ in 0..STEPS {
            self.lsn += 10;
            // Where none is right any more, none can be stopped.
            if !self.replicas.iter().any(|it| it.state.is_right) {
                break;
            }
            let at = self.random.below(self.replicas.len());
            match self.random.below(10) {
                0 => self.become_wrong(at),
                1 | 2 => self.replicas[at].is_away ^= true,
                3 => self.snapshots.push(self.replicas[at].state),
                4..=6 => self.copy(at),
                _ => self.compare(),
            }
        }
        self.outcome
    }

    fn become_wrong(&mut self, at: usize) {
        let most = self.replicas.len() / 2;
        let replica = &mut self.replicas[at];
        if replica.state.is_right && self.faults < most {
            replica.state.is_right = false;
            self.faults += 1;
        }
    }

    /// A replica gets the state of another one, or of a snapshot that any of them has put. One that has stopped is
    /// replaced, under a new number.
    fn copy(&mut self, at: usize) {
        let from = self.random.below(self.replicas.len());
        let picked = self.random.below(self.snapshots.len() + 1);
        let source = match self.snapshots.get(picked) {
            Some(snapshot) => *snapshot,
            None if from != at && !self.replicas[from].has_stopped => self.replicas[from].state,
            None => return,
        };
        let next = self.replicas.iter().map(|it| it.node).max().unwrap_or(0) + 1;
        let lsn = self.lsn;
        let replica = &mut self.replicas[at];
        if replica.has_stopped {
            replica.node = next;
            replica.has_stopped = false;
        }
        if source.origin.holder == replica.node {
            // Its own earlier state, or what it has.
            replica.state = source;
            return;
        }
        replica.state = State {
            is_right: source.is_right,
            origin: Origin {
                node: source.origin.node,
                since: lsn,
                holder: replica.node,
            },
        };
    }

    fn compare(&mut self) {
        let mut voters: Vec<NodeId> = self.replicas.iter().map(|it| NodeId(it.node)).collect();
        voters.sort_unstable();
        let members = Membership {
            voters,
            ..Membership::default()
        };
        // Whatever is wrong is wrong in the same way: the worst case.
        let digest = |state: &State| u128::from(state.is_right).to_be_bytes().to_vec();
        let there = |it: &&Replica| !it.is_away && !it.has_stopped;
        let answers = self.replicas.iter().filter(there).map(|it| MemberDigest {
            node: it.node,
            digest: digest(&it.state),
            origin: Some(it.state.origin),
        });
        let note = NoteDigests {
            lsn: self.lsn,
            at_ms: 0,
            answers: answers.collect(),
            has_origins: self.mutant != Some(Mutant::CountsCopies),
        };
        if note.answers.len() < 2 {
            return;
        }
        let compared = Compared::of(&note, self.lsn + 1, &members, self.compared.as_ref());
        let right = compared.right();
        let forgets = self.mutant == Some(Mutant::ForgetsDescent);
        for replica in &mut self.replicas {
            let is_wrong = right.is_some_and(|right| right != u128::from(replica.state.is_right));
            if replica.has_stopped || replica.is_away {
                continue;
            }
            if is_wrong {
                replica.has_stopped = true;
                match replica.state.is_right {
                    true => self.outcome.right_stopped += 1,
                    false => self.outcome.wrong_stopped += 1,
                }
            } else if compared.confirms(replica.node, replica.state.origin, &members)
                || forgets && compared.verdict() == Verdict::Equal
            {
                replica.state.origin = Origin::own(replica.node, compared.lsn);
            }
        }
        let goes_on = |it: &&Replica| !it.has_stopped && !it.is_away;
        let go_on = self.replicas.iter().filter(goes_on).count();
        if right.is_some() && go_on <= self.replicas.len() / 2 {
            self.outcome.majorities_lost += 1;
        }
        self.compared = Some(compared);
    }
}

fn run(seeds: std::ops::Range<u64>, mutant: Option<Mutant>) -> (Outcome, Option<u64>) {
    let (mut all, mut caught) = (Outcome::default(), None);
    for seed in seeds {
        let outcome = History::new(seed, mutant).run();
        if outcome.right_stopped > 0 {
            caught.get_or_insert(seed);
        }
        all.right_stopped += outcome.right_stopped;
        all.wrong_stopped += outcome.wrong_stopped;
        all.majorities_lost += outcome.majorities_lost;
    }
    (all, caught)
}

#[test]
fn no_right_replica_is_stopped_while_at_most_half_have_become_wrong_on_their_own() {
    let (all, caught) = run(0..20_000, None);
    assert_eq!(
        caught, None,
        "a right replica was stopped: the seed of the history"
    );
    assert_eq!(all.majorities_lost, 0);
    // And wrong ones are.
    assert!(all.wrong_stopped > 1_000, "{}", all.wrong_stopped);
}

#[test]
fn a_rule_that_counts_copies_or_forgets_descent_too_early_is_caught() {
    for mutant in [Mutant::CountsCopies, Mutant::ForgetsDescent] {
        let (_, caught) = run(0..20_000, Some(mutant));
        assert!(caught.is_some());
    }
}
