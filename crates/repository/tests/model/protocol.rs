//! The protocol as a state machine: the content of the root, and the next steps of each party.
//!
//! Everything that matters for safety happens at a compare-and-swap of the root, so a party that reads the
//! root, decides and swaps makes **one** step here: if the root had changed in between, the swap would fail
//! and the party would start that step again. For the same reason a swap whose answer is lost and that has
//! not been applied yet (a *flight*) can be applied only while the root is the one that it was made from,
//! and is discarded as soon as the root changes.
//!
//! Deletes are permanent: `gone` holds every key for which a DELETE was ever sent. The request may be
//! applied late, twice, and after the party that sent it has continued; so a key that is needed must not be
//! in `gone`, at any later time. This is stronger than a check of which objects exist at the moment. All
//! objects of one bulk delete are deleted in one step, because no party's next step depends on which
//! objects exist.
//!
//! A metadata object represents everything in a snapshot's own directory (`metadata.json`, and the files of
//! a full snapshot): a sweep protects both through the snapshot id.

use crate::scope::{Scope, Without};
use crate::state::*;

impl Scope {
    pub fn lacks(&self, rule: Without) -> bool {
        self.without == Some(rule)
    }

    pub fn key(&self, content: u8, generation: u8) -> Keys {
        let generation = if self.lacks(Without::GenerationInKey) {
            0
        } else {
            generation
        };
        1 << (content * GENERATIONS + generation)
    }

    pub fn lsn(&self, id: usize) -> u8 {
        self.writers[writer_of(id)].lsn
    }

    pub fn keys_of(&self, s: &State, ids: Ids) -> Keys {
        members(ids).fold(0, |keys, id| keys | s.contents[id])
    }

    /// The keys and snapshots that the root keeps: refs(root).
    pub fn refs(&self, s: &State) -> (Keys, Ids) {
        let mut ids = s.root.retained;
        if !self.lacks(Without::PinsInRefs) {
            ids |= s.root.pinned();
        }
        if !self.lacks(Without::AbandonedInRefs) {
            ids |= s.root.abandoned;
        }
        (self.keys_of(s, ids), ids)
    }

    pub fn swap(&self, s: &mut State, change: impl FnOnce(&mut Root)) {
        s.root.generation += 1;
        assert!(
            s.root.generation < GENERATIONS,
            "a scope with too many swaps"
        );
        change(&mut s.root);
        s.flights = [Flight::None; FLIGHTS];
    }

    pub fn register(&self, s: &mut State, id: Ids) {
        let generation = s.root.generation + 1;
        let incarnation = self.writers[writer_of(id.trailing_zeros() as usize)].incarnation;
        self.swap(s, |root| {
            root.writer = incarnation;
            root.add_intent(Intent {
                generation,
                ids: id,
            })
        });
        if s.owner != incarnation {
            s.former |= 1 << s.owner & !1;
            s.owner = incarnation;
        }
        s.mixed |= s.former >> incarnation & 1 == 1;
        if self.lost_root {
            s.reused_key |= s.generations >> generation & 1 == 1;
            s.generations |= 1 << generation;
        }
    }

    pub fn retain(&self, s: &mut State, id: Ids) {
        let incarnation = self.writers[writer_of(id.trailing_zeros() as usize)].incarnation;
        s.mixed |= s.former >> incarnation & 1 == 1;
        let cut = self.cut_by(&s.root, id);
        self.swap(s, |root| {
            root.retained = (root.retained | id) & !cut;
            root.remove_intent(|i| i.ids & id != 0);
        });
        s.committed |= s.root.retained;
    }

    /// The snapshots that a commit of `id` removes from the root.
    pub fn cut_by(&self, root: &Root, id: Ids) -> Ids {
        let mut retained = root.retained | id;
        while retained.count_ones() > self.num_retained {
            let newest_upload_wins = !self.lacks(Without::NewestUploadWinsTie);
            let last = members(retained)
                .min_by_key(|&i| (self.lsn(i), (id >> i & 1 == 1) == newest_upload_wins))
                .expect("more than num-retained are never none");
            retained &= !(1 << last);
        }
        (root.retained | id) & !retained
    }

    /// Applies an action to the state; `None` if no party can do it in this state.
    pub fn step(&self, s: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Lands(slot) => match s.flights[slot] {
                Flight::None => return None,
                Flight::Intent(id) => self.register(s, id),
                Flight::AddId(id, generation) => self.extend(s, generation, id),
                Flight::Commit(id) => self.retain(s, id),
            },
            Action::SweepLists => {
                let (keys, ids) = (s.put & !s.gone, s.put_metadata & !s.gone_metadata);
                s.sweep = match s.sweep {
                    Sweep::Idle if !self.lacks(Without::ListBeforeRoot) => Sweep::Listed(keys, ids),
                    Sweep::Rooted(spared, spared_ids) => found(keys & !spared, ids & !spared_ids),
                    _ => return None,
                };
            }
            Action::SweepReadsRoot => {
                let refs = self.refs(s);
                self.sweep(s, refs)?;
            }
            Action::SweepSkipsUnreadable(id) => {
                let (_, ids) = self.refs(s);
                if !self.lacks(Without::AbortOnUnreadable) || ids >> id & 1 == 0 {
                    return None;
                }
                let refs = (self.keys_of(s, ids & !(1 << id)), ids);
                self.sweep(s, refs)?;
            }
            Action::SweepAborts => {
                s.sweep = match s.sweep {
                    Sweep::Listed(..) => Sweep::Idle,
                    _ => return None,
                };
            }
            Action::SweepDeletes => {
                let Sweep::Deleting(keys, ids) = s.sweep else {
                    return None;
                };
                s.gone |= keys;
                s.gone_metadata |= ids;
                s.sweep = Sweep::Idle;
            }
            Action::Fence(slot) => {
                let generation = s.root.intents[slot].generation;
                if generation == 0 {
                    return None;
                }
                self.swap(s, |root| root.remove_intent(|i| i.generation == generation));
            }
            Action::Choose(r, id) => {
                if s.restores[r] != Restore::Idle || s.root.retained >> id & 1 == 0 {
                    return None;
                }
                s.restores[r] = Restore::Chosen(1 << id);
            }
            Action::Pin(r, id) => {
                let id: Ids = 1 << id;
                let allowed = match s.restores[r] {
                    Restore::Idle => !self.lacks(Without::PinOfWhatRootHas) && s.root.names(id),
                    Restore::Chosen(chosen) => chosen == id,
                    _ => false,
                };
                if !allowed {
                    return None;
                }
                self.swap(s, |root| root.pins[r] = id);
                s.restores[r] = Restore::Reading;
            }
            Action::Unpin(r) => {
                if s.restores[r] != Restore::Reading {
                    return None;
                }
                self.swap(s, |root| root.pins[r] = 0);
                s.restores[r] = Restore::Done;
            }
            Action::Fork(lineage) => {
                let parent_is_current = s.root.lineage == 0 || self.lacks(Without::ParentAtFork);
                if s.forks >> lineage & 1 == 1 || !parent_is_current {
                    return None;
                }
                s.forks |= 1 << lineage;
                let above = members(s.root.retained)
                    .filter(|id| self.lsn(*id) > self.fork_lsn)
                    .fold(0, |ids, id| ids | 1 << id);
                self.swap(s, |root| {
                    root.lineage = lineage;
                    root.writer = 0;
                    root.retained &= !above;
                    root.abandoned |= above;
                    root.intents = [Intent::default(); INTENTS];
                });
            }
            Action::Prune(id) => {
                if s.root.abandoned >> id & 1 == 0 {
                    return None;
                }
                self.swap(s, |root| root.abandoned &= !(1 << id));
            }
            Action::LoseRoot => {
                if s.lost_root {
                    return None;
                }
                s.lost_root = true;
                let listed = s.put & !s.gone;
                let largest_listed = (0..GENERATIONS)
                    .rfind(|g| listed & of_generation(*g) != 0)
                    .unwrap_or(0);
                let generation = if self.lacks(Without::JumpOfNewRoot) {
                    largest_listed
                } else {
                    s.root.generation
                };
                self.swap(s, |root| {
                    *root = Root {
                        generation: generation + 1,
                        lineage: root.lineage,
                        ..Root::default()
                    }
                });
            }
            of_a_writer => self.write(s, of_a_writer)?,
        }
        Some(())
    }

    fn sweep(&self, s: &mut State, (refs, ids): (Keys, Ids)) -> Option<()> {
        let (mut live, live_ids) = s.root.live();
        if self.lacks(Without::GenerationInKey) {
            live = 0; // such a key does not name its upload
        }
        if self.lacks(Without::IntentsInSweep) {
            live = 0;
        }
        s.sweep = match s.sweep {
            Sweep::Listed(keys, listed_ids) => {
                found(keys & !refs & !live, listed_ids & !ids & !live_ids)
            }
            Sweep::Idle if self.lacks(Without::ListBeforeRoot) => {
                Sweep::Rooted(refs | live, ids | live_ids)
            }
            _ => return None,
        };
        Some(())
    }

    pub fn extend(&self, s: &mut State, generation: u8, id: Ids) {
        self.swap(s, |root| {
            for intent in root
                .intents
                .iter_mut()
                .filter(|i| i.generation == generation)
            {
                intent.ids |= id;
            }
        });
    }

    /// Clears what no party can request any more, so that states with the same future are equal.
    pub fn normalize(&self, s: &mut State) {
        let mut asked = s.root.retained | s.root.abandoned | s.root.pinned() | s.root.live().1;
        asked |= s.put_metadata & !s.gone_metadata;
        for id in (0..WRITERS * IDS as usize).filter(|id| asked >> id & 1 == 0) {
            s.contents[id] = 0;
        }
    }
}

fn found(keys: Keys, ids: Ids) -> Sweep {
    if keys == 0 && ids == 0 {
        Sweep::Idle
    } else {
        Sweep::Deleting(keys, ids)
    }
}
