//! How many records each key has.

use std::io::{self, Read, Write};

use imbl::OrdMap;
use s2_sdk::types::SequencedRecord;

use super::Pointer;
use crate::error::Error;
use crate::fold::{ApplyError, Fold};

/// How many records each key has. A snapshot is a JSON object of key and count.
#[derive(Clone, Debug)]
pub struct Count {
    name: String,
    by: Pointer,
    counts: OrdMap<String, u64>,
}

impl Count {
    /// By what a JSON pointer points to.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for what is no JSON pointer.
    pub fn by(pointer: &str) -> Result<Count, Error> {
        Ok(Count {
            name: format!("count by {pointer}"),
            by: Pointer::new(pointer)?,
            counts: OrdMap::new(),
        })
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many records a key has.
    pub fn get(&self, key: &str) -> u64 {
        self.counts.get(key).copied().unwrap_or(0)
    }

    /// Takes in a record's body, and returns the key that it counts for.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Malformed`].
    pub fn change(&mut self, body: &[u8]) -> Result<String, ApplyError> {
        let key = self.by.key(body)?;
        *self.counts.entry(key.clone()).or_insert(0) += 1;
        Ok(key)
    }

    /// Keys and how many records they have, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counts
            .iter()
            .map(|(key, count)| (key.as_str(), *count))
    }
}

impl Fold for Count {
    fn name(&self) -> &str {
        &self.name
    }

    fn extension(&self) -> &str {
        "json"
    }

    fn apply(&mut self, record: &SequencedRecord) -> Result<(), ApplyError> {
        self.change(&record.body).map(drop)
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut out = io::BufWriter::new(out);
        serde_json::to_writer(&mut out, &self.counts)?;
        out.flush()
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.counts = serde_json::from_reader(io::BufReader::new(from))?;
        Ok(())
    }
}
