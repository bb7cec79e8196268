//! The changes that a step makes to the state store.

use std::collections::HashMap;

use super::{Forgotten, Published, StateEntry, StateMeta};

/// The changes that a step makes to the state store.
pub(crate) struct StateStep<'a> {
    before: &'a Published,
    /// The store's metadata, if the step has changed it.
    pub meta: Option<StateMeta>,
    /// Number of commits in the step.
    pub commits: u64,
    /// Present entries that the step has read or changed, by their names.
    pub(super) entries: HashMap<Vec<u8>, Option<StateEntry>>,
    /// Bytes of entries that are no longer needed.
    pub garbage: u64,
    /// The versions below which the step has left no earlier entries of keys.
    pub forgotten: Forgotten,
}

impl<'a> StateStep<'a> {
    pub fn new(before: &'a Published) -> Self {
        StateStep {
            before,
            meta: None,
            commits: 0,
            entries: HashMap::new(),
            garbage: 0,
            forgotten: Forgotten::default(),
        }
    }

    pub fn before(&self) -> &Published {
        self.before
    }

    pub(super) fn meta(&self) -> StateMeta {
        self.meta.clone().unwrap_or_else(|| self.before.get())
    }
}
