//! Appends to streams chosen at random, in batches of several sizes, of bytes that do not compress.

use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use super::store::Store;

/// A generator of appends.
pub struct Load {
    random: SmallRng,
    pool: Vec<u8>,
    streams: usize,
    /// Records of a batch: at least, at most.
    records: (u64, u64),
}

const RECORD: usize = 1024;
/// Bytes of overhead of a batch, and of each record.
const HEAD: usize = 24;

impl Load {
    pub fn new(seed: u64, streams: usize, records: (u64, u64)) -> Load {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut pool = vec![0; 8 * 1024 * 1024];
        random.fill_bytes(&mut pool);
        Load {
            random,
            pool,
            streams,
            records,
        }
    }

    /// Appends one batch.
    pub fn append(&mut self, store: &mut Store) -> anyhow::Result<()> {
        let stream = self.random.random_range(0..self.streams);
        let records = self.random.random_range(self.records.0..=self.records.1);
        let size = HEAD + usize::try_from(records)? * (RECORD + 8);
        let from = self.random.random_range(0..self.pool.len() - size);
        store.append(stream, records, &self.pool[from..from + size])
    }
}
