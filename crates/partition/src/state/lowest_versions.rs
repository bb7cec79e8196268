//! Below which versions keys have no earlier entries, of those keys that were looked at lately.

use std::collections::HashMap;

/// Keys of which [`LowestVersions`] remembers something: those of 16 commands, if each of their commits
/// changes another key.
const MAX_REMEMBERED: usize = 4096;
/// Longest names of such a key, in bytes. Together these are 1 MiB.
const MAX_REMEMBERED_NAMES: usize = 256;

/// Below which versions keys have no earlier entries, of those keys that were looked at lately. What it
/// does not know costs reads, and changes no result.
#[derive(Default)]
pub(crate) struct LowestVersions {
    /// By the generation and the names.
    of: HashMap<(u32, Vec<u8>), u64>,
}

/// Below which versions keys have no earlier entry once a step is written, by the generation and the names.
/// What a step has deleted is in the files until then, and counts once.
#[derive(Default)]
pub(crate) struct Forgotten(HashMap<(u32, Vec<u8>), u64>);

impl Forgotten {
    /// The version below which the step has left nothing; 0 if it has not looked at the key.
    pub(super) fn get(&self, generation: u32, names: &[u8]) -> u64 {
        let key = (generation, names.to_vec());
        self.0.get(&key).copied().unwrap_or(0)
    }

    pub(super) fn note(&mut self, generation: u32, names: &[u8], below: u64) {
        let known = self.0.entry((generation, names.to_vec())).or_default();
        *known = below.max(*known);
    }
}

impl LowestVersions {
    /// The version below which nothing is left; 0 if that is not known.
    pub fn get(&self, generation: u32, names: &[u8]) -> u64 {
        let key = (generation, names.to_vec());
        self.of.get(&key).copied().unwrap_or(0)
    }

    /// Once what was forgotten is deleted in the database. Versions that come later are higher.
    pub fn remember(&mut self, forgotten: Forgotten) {
        for ((generation, names), below) in forgotten.0 {
            if names.len() > MAX_REMEMBERED_NAMES {
                continue;
            }
            if self.of.len() >= MAX_REMEMBERED {
                self.of.clear();
            }
            self.of.insert((generation, names), below);
        }
    }
}
