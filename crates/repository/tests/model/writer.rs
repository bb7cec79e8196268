//! A writer: intent, deduplication, upload, commit, retention (rules 1 to 5), restarts.

use crate::scope::{Scope, Without};
use crate::state::*;

/// What a writer with a complete upload finds when it reads the root.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The root names the snapshot already.
    Success,
    /// Only without `CautionAfterAmbiguity`.
    GaveUp,
    Fenced,
    Refused,
    ReusedAreGone(Keys),
    Swap,
}

impl Scope {
    /// The steps of writers.
    pub fn write(&self, s: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Intent(w, answer) => {
                let lineage = self.writers[w].lineage;
                if s.writers[w].phase != Phase::Idle || (lineage > 0 && s.forks >> lineage & 1 == 0)
                {
                    return None;
                }
                if !self.may_claim(s, w) {
                    if answer != Answer::Known {
                        return None;
                    }
                    s.writers[w] = DONE;
                    return Some(());
                }
                self.lose_answer(s, answer)?;
                let mut writer = s.writers[w];
                if !self.next_id(&mut writer, w) {
                    return None;
                }
                s.writers[w] = writer;
                match answer {
                    Answer::Known => {
                        self.register(s, writer.id);
                        self.plan(s, w, s.root.generation, false);
                    }
                    Answer::LostAfterwards => {
                        self.register(s, writer.id);
                        s.writers[w].phase = Phase::IntentUnknown;
                    }
                    Answer::LostBefore => {
                        self.take_off(s, Flight::Intent(writer.id))?;
                        s.writers[w].phase = Phase::IntentUnknown;
                        if self.lacks(Without::ReadBackOfIntent) {
                            self.plan(s, w, s.root.generation + 1, false);
                        }
                    }
                }
            }
            Action::ReadBackIntent(w) => {
                let Writer {
                    phase: Phase::IntentUnknown,
                    id,
                    ..
                } = s.writers[w]
                else {
                    return None;
                };
                match s.root.intents.iter().find(|i| i.ids & id != 0) {
                    Some(_) if self.lacks(Without::GenerationOfIntent) => {
                        self.plan(s, w, s.root.generation, false)
                    }
                    Some(intent) => self.plan(s, w, intent.generation, false),
                    None => self.begin_again(s, w),
                }
            }
            Action::Put(w) => {
                let Writer {
                    phase: Phase::Upload,
                    generation,
                    todo,
                    ..
                } = s.writers[w]
                else {
                    return None;
                };
                let content = todo.trailing_zeros() as u8;
                let key = self.key(content, generation);
                s.reused_key |= (s.put | s.gone) & key != 0 && !self.may_repeat(s, w);
                s.put |= key;
                s.writers[w].todo &= todo - 1;
                self.after_upload(&mut s.writers[w]);
            }
            Action::AddId(w, answer) => self.add_id(s, w, answer)?,
            Action::PutMetadata(w) => {
                let writer = s.writers[w];
                if writer.phase != Phase::Metadata {
                    return None;
                }
                s.reused_key |= (s.put_metadata | s.gone_metadata) & writer.id != 0;
                s.put_metadata |= writer.id;
                s.contents[writer.id.trailing_zeros() as usize] = writer.keys;
                let id_is_missing = writer.further_id && self.lacks(Without::IdBeforeMetadata);
                s.writers[w].phase = if id_is_missing {
                    Phase::AddId
                } else {
                    Phase::Commit
                };
            }
            Action::Commit(w, answer) => self.commit(s, w, answer)?,
            Action::Retention(w) => {
                let writer = s.writers[w];
                match writer.phase {
                    Phase::DeleteSsts => s.gone |= writer.keys,
                    Phase::DeleteMetadata => s.gone_metadata |= writer.cut,
                    _ => return None,
                }
                let metadata_first = self.lacks(Without::MetadataLast);
                s.writers[w] = match writer.phase {
                    Phase::DeleteSsts if !metadata_first => {
                        self.deleting(Phase::DeleteMetadata, 0, writer.cut)
                    }
                    Phase::DeleteMetadata if metadata_first => {
                        self.deleting(Phase::DeleteSsts, writer.keys, 0)
                    }
                    _ => DONE,
                };
            }
            Action::RetentionFails(w) => {
                let Writer {
                    phase: Phase::DeleteSsts,
                    keys,
                    ..
                } = s.writers[w]
                else {
                    return None;
                };
                // All keys but one are deleted.
                s.gone |= keys & (keys - 1);
                s.writers[w] = DONE;
            }
            Action::Restart(w) => {
                let Writer {
                    phase,
                    ids_used,
                    retries_used,
                    ..
                } = s.writers[w];
                let under_way = matches!(
                    phase,
                    Phase::Upload | Phase::AddId | Phase::Metadata | Phase::Commit
                );
                if !under_way || s.restarts == self.restarts {
                    return None;
                }
                s.restarts += 1;
                s.writers[w] = Writer {
                    phase: Phase::Restarted,
                    ids_used,
                    retries_used,
                    ..Writer::default()
                };
            }
            Action::Resume(w) => {
                if s.writers[w].phase != Phase::Restarted {
                    return None;
                }
                let own = ids_of(w) | self.writers[w].twin_of.map_or(0, ids_of);
                let mut writer = Writer {
                    resumed: true,
                    ..s.writers[w]
                };
                match s.root.intents.iter().rfind(|i| i.ids & own != 0) {
                    // It does not know which metadata it has written, so it takes an unused id.
                    Some(intent) if self.next_id(&mut writer, w) => {
                        let generation = intent.generation;
                        s.writers[w] = writer;
                        self.plan(s, w, generation, true);
                    }
                    _ => self.begin_again(s, w),
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Two processes, or two starts of one, that share an intent may upload the same file twice.
    fn may_repeat(&self, s: &State, w: usize) -> bool {
        s.writers[w].resumed
            || self
                .writers
                .iter()
                .any(|checkpoint| checkpoint.twin_of == Some(w))
    }

    /// Rule 2: reused keys, contents to upload.
    fn deduplicate(&self, s: &State, w: usize, generation: u8) -> (Keys, u8) {
        let source = if self.lacks(Without::ReuseFromRetainedOnly) {
            s.put & !s.gone
        } else {
            self.keys_of(s, s.root.retained)
        };
        let (mut keys, mut todo) = (0, 0);
        for content in (0..4).filter(|c| self.writers[w].contents >> c & 1 == 1) {
            match source & of_content(content) {
                0 => {
                    keys |= self.key(content, generation);
                    todo |= 1 << content;
                }
                have => keys |= 1 << have.ilog2(),
            }
        }
        (keys, todo)
    }

    /// Plans the upload. Rule 1 is satisfied: the intent is in the root.
    fn plan(&self, s: &mut State, w: usize, generation: u8, further_id: bool) {
        let (keys, todo) = self.deduplicate(s, w, generation);
        let writer = &mut s.writers[w];
        (
            writer.generation,
            writer.keys,
            writer.todo,
            writer.further_id,
        ) = (generation, keys, todo, further_id);
        self.after_upload(writer);
    }

    fn after_upload(&self, writer: &mut Writer) {
        writer.phase = if writer.todo != 0 {
            Phase::Upload
        } else if writer.further_id && !self.lacks(Without::IdBeforeMetadata) {
            Phase::AddId
        } else {
            Phase::Metadata
        };
    }

    /// Takes the next snapshot id of a writer; false if none is left.
    fn next_id(&self, writer: &mut Writer, w: usize) -> bool {
        if writer.ids_used == IDS {
            return false;
        }
        writer.id = 1 << (w as u8 * IDS + writer.ids_used);
        writer.ids_used += 1;
        true
    }

    /// The writer was fenced: it starts again with a new snapshot id and a new intent, if it has retries
    /// left.
    fn begin_again(&self, s: &mut State, w: usize) {
        let Writer {
            ids_used,
            retries_used,
            ..
        } = s.writers[w];
        s.writers[w] = if retries_used < self.writers[w].retries && ids_used < IDS {
            Writer {
                ids_used,
                retries_used: retries_used + 1,
                ..Writer::default()
            }
        } else {
            DONE
        };
    }

    fn take_off(&self, s: &mut State, flight: Flight) -> Option<()> {
        let slot = s.flights.iter().position(|f| *f == Flight::None)?;
        s.flights[slot] = flight;
        Some(())
    }

    fn lose_answer(&self, s: &mut State, answer: Answer) -> Option<()> {
        if answer != Answer::Known {
            s.lost_answers = s
                .lost_answers
                .checked_add(1)
                .filter(|n| *n <= self.lost_answers)?;
        }
        Some(())
    }

    /// Rule 3 if a reused key was removed: the further snapshot id is added to the live intent.
    fn add_id(&self, s: &mut State, w: usize, answer: Answer) -> Option<()> {
        let Writer {
            phase: Phase::AddId,
            id,
            generation,
            ..
        } = s.writers[w]
        else {
            return None;
        };
        let is_live = s.root.intents.iter().any(|i| i.generation == generation);
        let is_there = s.root.has_intent(generation, id);
        if answer != Answer::Known && (is_there || !is_live) {
            return None;
        }
        self.lose_answer(s, answer)?;
        if !is_live {
            self.begin_again(s, w);
            return Some(());
        }
        match answer {
            Answer::Known => {
                if !is_there {
                    self.extend(s, generation, id);
                }
                let metadata_is_there = self.lacks(Without::IdBeforeMetadata);
                s.writers[w].phase = if metadata_is_there {
                    Phase::Commit
                } else {
                    Phase::Metadata
                };
            }
            Answer::LostAfterwards => self.extend(s, generation, id),
            Answer::LostBefore => self.take_off(s, Flight::AddId(id, generation))?,
        }
        Some(())
    }

    /// Rules 3 to 5: reads the root, and swaps it if it satisfies all conditions.
    fn commit(&self, s: &mut State, w: usize, answer: Answer) -> Option<()> {
        let writer = s.writers[w];
        if writer.phase != Phase::Commit {
            return None;
        }
        let swaps = self.may_commit(s, w);
        if answer != Answer::Known {
            if swaps != Verdict::Swap {
                return None;
            }
            self.lose_answer(s, answer)?;
            s.writers[w].unsure = self.lacks(Without::CautionAfterAmbiguity);
        }
        match swaps {
            Verdict::Success => self.succeed(s, w),
            Verdict::Fenced => self.begin_again(s, w),
            Verdict::Refused => s.writers[w] = DONE,
            Verdict::GaveUp => {
                let own = writer.keys & of_generation(writer.generation);
                s.writers[w] = self.deleting(Phase::DeleteSsts, own, writer.id);
            }
            Verdict::ReusedAreGone(gone) => {
                let mut writer = writer;
                if !self.repairs || !self.next_id(&mut writer, w) {
                    self.begin_again(s, w);
                    return Some(());
                }
                for content in (0..4).filter(|c| gone & of_content(*c) != 0) {
                    writer.todo |= 1 << content;
                    writer.keys =
                        writer.keys & !of_content(content) | self.key(content, writer.generation);
                }
                writer.further_id = true;
                self.after_upload(&mut writer);
                s.writers[w] = writer;
            }
            Verdict::Swap => {
                let writer = &mut s.writers[w];
                writer.cut = self.cut_by(&s.root, writer.id);
                let id = writer.id;
                s.contents[id.trailing_zeros() as usize] = writer.keys;
                match answer {
                    Answer::LostBefore => self.take_off(s, Flight::Commit(id))?,
                    _ => self.retain(s, id),
                }
                if answer == Answer::Known || self.lacks(Without::ReadBackOfCommit) {
                    self.succeed(s, w);
                }
            }
        }
        Some(())
    }

    /// Whether the root names no incarnation, this one, or one that it follows.
    fn may_claim(&self, s: &State, w: usize) -> bool {
        let (claimed, ours) = (s.root.writer, self.writers[w].incarnation);
        claimed == 0
            || claimed == ours
            || self.follows[ours as usize] >> claimed & 1 == 1
            || self.lacks(Without::FollowsAtClaim)
    }

    fn may_commit(&self, s: &State, w: usize) -> Verdict {
        let (root, writer) = (&s.root, &s.writers[w]);
        if root.names(writer.id) {
            return Verdict::Success;
        }
        if writer.unsure {
            return Verdict::GaveUp;
        }
        if root.lineage != self.writers[w].lineage && !self.lacks(Without::LineageAtCommit) {
            return Verdict::Refused;
        }
        if root.writer != self.writers[w].incarnation && !self.lacks(Without::WriterAtCommit) {
            return Verdict::Refused;
        }
        let is_live = if self.lacks(Without::GenerationOfIntent) {
            root.intents.iter().any(|i| i.ids & writer.id != 0)
        } else {
            root.has_intent(writer.generation, writer.id)
        };
        if !is_live && !self.lacks(Without::IntentAtCommit) {
            return Verdict::Fenced;
        }
        let oldest = members(root.retained).map(|id| self.lsn(id)).min();
        if oldest.is_some_and(|oldest| self.writers[w].lsn < oldest)
            && !self.lacks(Without::RefusalOfOlder)
        {
            return Verdict::Refused;
        }
        let own = if self.lacks(Without::GenerationInKey) {
            s.put
        } else {
            of_generation(writer.generation)
        };
        let gone = match self.without {
            Some(Without::RecheckOfReused | Without::ReuseFromRetainedOnly) => 0,
            Some(Without::RecheckByRoot) => writer.keys & !own & s.gone,
            _ => writer.keys & !own & !self.keys_of(s, root.retained),
        };
        if gone != 0 {
            Verdict::ReusedAreGone(gone)
        } else {
            Verdict::Swap
        }
    }

    /// Rule 4: the commit is in the root (or was), and what it removed is deleted.
    fn succeed(&self, s: &mut State, w: usize) {
        let Writer { id, cut, .. } = s.writers[w];
        s.untrue_success |= s.committed & id == 0;
        let (refs, ids) = if self.lacks(Without::RefsInRetention) {
            (0, 0)
        } else {
            self.refs(s)
        };
        let (keys, cut) = (self.keys_of(s, cut) & !refs, cut & !ids);
        let first = if self.lacks(Without::MetadataLast) {
            Phase::DeleteMetadata
        } else {
            Phase::DeleteSsts
        };
        s.writers[w] = self.deleting(first, keys, cut);
    }

    fn deleting(&self, phase: Phase, keys: Keys, cut: Ids) -> Writer {
        if keys == 0 && cut == 0 {
            DONE
        } else {
            Writer {
                phase,
                keys,
                cut,
                ..DONE
            }
        }
    }
}
