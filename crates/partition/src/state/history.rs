//! Removal of earlier versions of keys.
//!
//! Versions of a key are read from the oldest on. An iterator that moves forward reads no block of a run
//! that has nothing at the target, and one that moves backward reads a block of every run. Removed
//! versions are in the files until these are compacted, and would be read again with every visit of the
//! key. So the version below which a key has none is remembered.

use crate::keys;
use crate::store::StoreError;
use crate::streams::step::Step;

impl Step<'_> {
    /// Removes earlier versions of a key below `version`, except for the newest `kept` of all. Of the
    /// versions that are kept, no more than `kept` are read.
    pub(super) fn forget_versions(
        &mut self,
        generation: u32,
        names: &[u8],
        version: u64,
        kept: u64,
    ) -> Result<(), StoreError> {
        let lowest = self.state.before().lowest_version(generation, names);
        let lowest = lowest.max(self.state.forgotten.get(generation, names));
        let end = if kept > 0 { u64::MAX } else { version };
        let from = keys::state_history(generation, names, lowest);
        let to = keys::state_history(generation, names, end);
        let mut older = Vec::new();
        let mut newer = 0;
        {
            // The blocks are cached, because versions of several keys share one, removed and kept ones.
            let mut it = self.part.iterate(&from, &to, true);
            it.seek_to_first();
            while let (Some(key), Some(value)) = (it.key(), it.value()) {
                if keys::last_number(key).is_some_and(|at| at < version) {
                    older.push((key.to_vec(), value.len()));
                } else {
                    newer += 1;
                }
                if newer >= kept.max(1) {
                    break;
                }
                it.next();
            }
            it.status()
                .map_err(|e| self.part.error("reading versions of a key", e))?;
        }
        let kept_older = usize::try_from(kept.saturating_sub(newer)).unwrap_or(usize::MAX);
        let gone = older.len().saturating_sub(kept_older);
        let first_kept = older.get(gone).and_then(|(key, _)| keys::last_number(key));
        for (key, value) in older.drain(..gone) {
            self.state.garbage += (key.len() + value) as u64;
            self.batch.delete(key);
        }
        let below = first_kept.unwrap_or(version);
        self.state.forgotten.note(generation, names, below);
        Ok(())
    }
}
