//! The invariants of every state, and the model's implementation for `stateright`.

use crate::scope::{Scope, Without};
use crate::state::*;
use stateright::{Model, Property};

/// The promises.
pub const RETAINED_SSTS: &str = "every SST of a retained snapshot exists";
pub const RETAINED_METADATA: &str = "the metadata of a retained snapshot exists";
pub const PINNED: &str = "every object of a pinned snapshot exists";
pub const ABANDONED: &str = "every object of an abandoned snapshot exists";
pub const USED_ONCE: &str = "no key, snapshot id or generation is used twice";
pub const TRUE_SUCCESS: &str = "what was answered as success was in the root";
pub const ONE_LINEAGE: &str =
    "a root retains its own lineage, and of its parent what is below the fork";
pub const ONE_FORK: &str = "of two forks at once one loses";
pub const ONE_WRITER: &str =
    "once another incarnation has claimed the root, none of the former ones writes";
pub const LEFTOVERS: &str = "what retention left behind is named by a metadata object";

impl Model for Scope {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut start = State::default();
        for unused in &mut start.writers[self.writers.len()..] {
            *unused = DONE;
        }
        for (w, _) in self
            .writers
            .iter()
            .enumerate()
            .filter(|(_, checkpoint)| checkpoint.twin_of.is_some())
        {
            start.writers[w].phase = Phase::Restarted;
        }
        vec![start]
    }

    fn actions(&self, s: &State, actions: &mut Vec<Action>) {
        for (w, writer) in s.writers.iter().enumerate() {
            let swaps: fn(usize, Answer) -> Action = match writer.phase {
                Phase::Done => continue,
                Phase::Idle => Action::Intent,
                Phase::AddId => Action::AddId,
                Phase::Commit => Action::Commit,
                _ => |w, _| Action::Put(w),
            };
            match writer.phase {
                Phase::Idle | Phase::AddId | Phase::Commit => {
                    actions.push(swaps(w, Answer::Known));
                    if s.lost_answers < self.lost_answers {
                        actions.extend([
                            swaps(w, Answer::LostAfterwards),
                            swaps(w, Answer::LostBefore),
                        ]);
                    }
                }
                Phase::IntentUnknown => actions.push(Action::ReadBackIntent(w)),
                Phase::Upload => actions.push(Action::Put(w)),
                Phase::Metadata => actions.push(Action::PutMetadata(w)),
                Phase::DeleteSsts if self.failing_deletes && writer.keys != 0 => {
                    actions.extend([Action::Retention(w), Action::RetentionFails(w)]);
                }
                Phase::DeleteSsts | Phase::DeleteMetadata => actions.push(Action::Retention(w)),
                Phase::Restarted => actions.push(Action::Resume(w)),
                Phase::Done => {}
            }
            if s.restarts < self.restarts {
                actions.push(Action::Restart(w));
            }
        }
        actions.extend(
            (0..FLIGHTS)
                .filter(|f| s.flights[*f] != Flight::None)
                .map(Action::Lands),
        );
        if self.sweeper {
            actions.extend([
                Action::SweepLists,
                Action::SweepReadsRoot,
                Action::SweepDeletes,
                Action::SweepAborts,
            ]);
            if self.lacks(Without::AbortOnUnreadable) {
                actions.extend(members(s.root.retained).map(Action::SweepSkipsUnreadable));
            }
        }
        if self.fencing {
            actions.extend(
                (0..INTENTS)
                    .filter(|i| s.root.intents[*i].generation != 0)
                    .map(Action::Fence),
            );
        }
        for r in 0..self.restores {
            match s.restores[r] {
                Restore::Done => {}
                Restore::Reading => actions.push(Action::Unpin(r)),
                Restore::Chosen(id) => actions.push(Action::Pin(r, id.trailing_zeros() as usize)),
                Restore::Idle => {
                    let there = s.root.retained | s.root.abandoned | s.root.pinned();
                    let pin = if self.lacks(Without::PinOfWhatRootHas) {
                        Action::Choose
                    } else {
                        Action::Pin
                    };
                    actions.extend(members(there).map(|id| pin(r, id)));
                }
            }
        }
        actions.extend((1..=self.forks).map(Action::Fork));
        if self.pruning {
            actions.extend(members(s.root.abandoned).map(Action::Prune));
        }
        if self.lost_root {
            actions.push(Action::LoseRoot);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        self.step(&mut next, action)?;
        self.normalize(&mut next);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties: Vec<Property<Self>> = vec![
            Property::always(RETAINED_SSTS, |m: &Scope, s: &State| {
                m.ssts_exist(s, s.root.retained)
            }),
            Property::always(RETAINED_METADATA, |_, s| {
                metadata_exists(s, s.root.retained)
            }),
            Property::always(PINNED, |m, s| {
                m.ssts_exist(s, s.root.pinned()) && metadata_exists(s, s.root.pinned())
            }),
            Property::always(ABANDONED, |m, s| {
                m.ssts_exist(s, s.root.abandoned) && metadata_exists(s, s.root.abandoned)
            }),
            Property::always(USED_ONCE, |_, s: &State| !s.reused_key),
            Property::always(TRUE_SUCCESS, |_, s: &State| !s.untrue_success),
            Property::always(ONE_LINEAGE, |m: &Scope, s: &State| {
                members(s.root.retained).all(|id| match m.writers[writer_of(id)].lineage {
                    0 if s.root.lineage != 0 => m.lsn(id) <= m.fork_lsn,
                    lineage => lineage == s.root.lineage,
                })
            }),
            Property::always(ONE_WRITER, |_, s: &State| !s.mixed),
            Property::always(ONE_FORK, |_, s: &State| s.forks.count_ones() <= 1),
        ];
        if self.leftovers_are_named {
            properties.push(Property::always(LEFTOVERS, |m: &Scope, s: &State| {
                let unreferenced = s.put & !s.gone & !m.refs(s).0 & !s.root.live().0;
                unreferenced & !m.keys_of(s, s.put_metadata & !s.gone_metadata) == 0
            }));
        }
        properties.extend(
            self.reaches
                .iter()
                .map(|(name, condition)| Property::sometimes(name, *condition)),
        );
        properties
    }
}

impl Scope {
    fn ssts_exist(&self, s: &State, ids: Ids) -> bool {
        self.keys_of(s, ids) & (!s.put | s.gone) == 0
    }
}

fn metadata_exists(s: &State, ids: Ids) -> bool {
    ids & (!s.put_metadata | s.gone_metadata) == 0
}
