//! The version below which a key has no earlier entries, for keys that were visited lately.

use std::collections::HashMap;

/// Most keys that [`LowestVersions`] remembers: those of 16 commands, if each of their commits changes
/// another key.
const MAX_REMEMBERED: usize = 4096;
/// Longest encoded names of such a key, in bytes. Together these are 1 MiB.
const MAX_REMEMBERED_NAMES: usize = 256;

/// The version below which a key has no earlier entries, for keys that were visited lately. A key that is
/// absent costs reads, and changes no result.
#[derive(Default)]
pub(crate) struct LowestVersions {
    /// By the generation and the names.
    of: HashMap<(u32, Vec<u8>), u64>,
}

/// The version below which a key has no earlier entries once a step is written, by the generation and the
/// names. Until then the files have what the step deletes, so each deletion counts once.
#[derive(Default)]
pub(crate) struct Forgotten(HashMap<(u32, Vec<u8>), u64>);

impl Forgotten {
    /// The version below which the step has left nothing; 0 if it has not visited the key.
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
    /// The version below which the key has no earlier entries; 0 if that is not known.
    pub fn get(&self, generation: u32, names: &[u8]) -> u64 {
        let key = (generation, names.to_vec());
        self.of.get(&key).copied().unwrap_or(0)
    }

    /// To be called once a step is written. Versions that come later are higher.
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
