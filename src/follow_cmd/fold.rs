//! The state: one of the library's ready-made folds, which also records what changed.
//!
//! Name, version and encoding are those of the ready-made fold, so snapshots of this command and of a program
//! that uses the library are interchangeable.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use esker_follow::folds::{Count, Latest, Merge, Pointer};
use esker_follow::{ApplyError, Fold, SequencedRecord};

use crate::failure::Failure;

/// Number of recent changes that are kept for display: a screen has fewer lines.
const RECENT: usize = 512;

#[derive(clap::Args)]
pub struct FoldArgs {
    /// The last record of each key: what a JSON pointer (RFC 6901) points to, such as /id
    #[arg(long, value_name = "POINTER", value_parser = pointer, group = "fold", help_heading = "State")]
    by: Option<String>,

    /// How many records each key has
    #[arg(long, value_name = "POINTER", value_parser = pointer, group = "fold", help_heading = "State")]
    count_by: Option<String>,

    /// One JSON document: each record is a merge patch (RFC 7396)
    #[arg(long, group = "fold", help_heading = "State")]
    merge: bool,
}

fn pointer(text: &str) -> Result<String, String> {
    let pointer = Pointer::new(text).map_err(|e| e.to_string())?;
    Ok(pointer.as_str().to_owned())
}

impl FoldArgs {
    /// The fold that the arguments name; `None` if they name none.
    pub fn fold(&self) -> Result<Option<Folded>, Failure> {
        let invalid = |e| Failure::usage("invalid", e);
        let state = match (&self.by, &self.count_by) {
            (Some(pointer), _) => State::Latest(Latest::by(pointer).map_err(invalid)?),
            (_, Some(pointer)) => State::Count(Count::by(pointer).map_err(invalid)?),
            _ if self.merge => State::Merge(Merge::new()),
            _ => return Ok(None),
        };
        Ok(Some(Folded {
            state,
            journal: Arc::default(),
        }))
    }
}

/// A state.
#[derive(Clone)]
pub enum State {
    Latest(Latest),
    Count(Count),
    Merge(Merge),
}

/// A state that records its changes.
#[derive(Clone)]
pub struct Folded {
    pub state: State,
    /// Shared by all clones: records are applied to one of them only.
    journal: Arc<Mutex<Journal>>,
}

/// What changed.
#[derive(Default)]
pub struct Journal {
    /// Keys, the last one changed at the end.
    recent: VecDeque<String>,
    /// Keys that changed since the last call of `changed`; `None` until `remember` was called. Never more
    /// than the state has.
    changed: Option<BTreeSet<String>>,
    /// Whether anything changed since the last call of `changed`.
    any: bool,
}

impl Folded {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, every key that changes is recorded until `changed` returns it.
    pub fn remember(&self) {
        self.journal().changed.get_or_insert_default();
    }

    /// What changed since the last call: whether anything did, and the keys, sorted.
    pub fn changed(&self) -> (bool, BTreeSet<String>) {
        let mut journal = self.journal();
        let keys = journal.changed.as_mut().map(std::mem::take);
        (std::mem::take(&mut journal.any), keys.unwrap_or_default())
    }

    /// Keys that changed most recently, newest first, each once.
    pub fn recent(&self) -> Vec<String> {
        let journal = self.journal();
        let mut seen = BTreeSet::new();
        let newest_first = journal.recent.iter().rev();
        newest_first
            .filter(|key| seen.insert(key.as_str()))
            .cloned()
            .collect()
    }

    fn note(&self, key: Option<String>) {
        let mut journal = self.journal();
        journal.any = true;
        let Some(key) = key else { return };
        if let Some(changed) = &mut journal.changed
            && !changed.contains(&key)
        {
            changed.insert(key.clone());
        }
        if journal.recent.len() == RECENT {
            journal.recent.pop_front();
        }
        journal.recent.push_back(key);
    }
}

impl Fold for Folded {
    fn name(&self) -> &str {
        match &self.state {
            State::Latest(fold) => fold.name(),
            State::Count(fold) => fold.name(),
            State::Merge(fold) => fold.name(),
        }
    }

    fn version(&self) -> u32 {
        match &self.state {
            State::Latest(fold) => fold.version(),
            State::Count(fold) => fold.version(),
            State::Merge(fold) => fold.version(),
        }
    }

    fn extension(&self) -> &str {
        match &self.state {
            State::Latest(fold) => fold.extension(),
            State::Count(fold) => fold.extension(),
            State::Merge(fold) => fold.extension(),
        }
    }

    fn apply(&mut self, record: &SequencedRecord) -> Result<(), ApplyError> {
        let key = match &mut self.state {
            State::Latest(fold) => Some(fold.change(&record.body)?),
            State::Count(fold) => Some(fold.change(&record.body)?),
            State::Merge(fold) => {
                fold.apply(record)?;
                None
            }
        };
        self.note(key);
        Ok(())
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        match &self.state {
            State::Latest(fold) => fold.snapshot(out),
            State::Count(fold) => fold.snapshot(out),
            State::Merge(fold) => fold.snapshot(out),
        }
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        match &mut self.state {
            State::Latest(fold) => fold.restore(from),
            State::Count(fold) => fold.restore(from),
            State::Merge(fold) => fold.restore(from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting() -> Folded {
        Folded {
            state: State::Count(Count::by("/k").unwrap()),
            journal: Arc::default(),
        }
    }

    fn apply(fold: &mut Folded, key: &str) {
        let body = format!("{{\"k\":\"{key}\"}}").into_bytes();
        fold.apply(&SequencedRecord::from_parts(0, 0, Vec::new(), body))
            .unwrap();
    }

    #[test]
    fn what_changed_is_told_once_and_only_from_when_it_was_asked_for() {
        let mut fold = counting();
        apply(&mut fold, "before");
        fold.remember();
        fold.changed();
        apply(&mut fold, "b");
        apply(&mut fold, "a");
        let (any, keys) = fold.clone().changed();
        assert!(any);
        assert_eq!(keys.into_iter().collect::<Vec<_>>(), ["a", "b"]);
        assert!(!fold.changed().0);
    }

    #[test]
    fn of_what_changed_last_there_is_each_key_once() {
        let mut fold = counting();
        for key in ["a", "b", "a", "c"] {
            apply(&mut fold, key);
        }
        assert_eq!(fold.recent(), ["c", "a", "b"]);
        (0..2 * RECENT).for_each(|n| apply(&mut fold, &n.to_string()));
        assert_eq!(fold.recent().len(), RECENT);
    }
}
