//! A checksum of a state: a sum over its keys, which does not depend on their order.

use xxhash_rust::xxh3::Xxh3;

use crate::state::StateKey;

/// A digest of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateDigest {
    /// The sum of xxh3-128 of each key with its version, commit and value.
    pub digest: u128,
    /// Number of keys, deleted ones included.
    pub keys: u64,
}

/// Computes a [`StateDigest`] from entries in any order.
#[derive(Default)]
pub struct StateDigester {
    sum: u128,
    keys: u64,
}

impl StateDigester {
    /// Adds a key.
    pub fn add(&mut self, key: &StateKey, version: u64, commit_ts: u64, value: Option<&[u8]>) {
        self.add_hash(StateDigester::hash_of(key, version, commit_ts, value));
    }

    /// Adds a key by its hash alone.
    pub fn add_hash(&mut self, hash: u128) {
        self.sum = self.sum.wrapping_add(hash);
        self.keys += 1;
    }

    /// What a key adds to the digest.
    pub fn hash_of(key: &StateKey, version: u64, commit_ts: u64, value: Option<&[u8]>) -> u128 {
        let mut hash = Xxh3::new();
        for name in [&key.namespace, &key.agent_id, &key.key] {
            hash.update(&(name.len() as u64).to_be_bytes());
            hash.update(name.as_bytes());
        }
        hash.update(&version.to_be_bytes());
        hash.update(&commit_ts.to_be_bytes());
        match value {
            Some(value) => {
                hash.update(&(value.len() as u64).to_be_bytes());
                hash.update(value);
            }
            None => hash.update(&u64::MAX.to_be_bytes()),
        }
        hash.digest128()
    }

    /// The digest of the keys that were added.
    pub fn finish(self) -> StateDigest {
        StateDigest {
            digest: self.sum,
            keys: self.keys,
        }
    }
}
