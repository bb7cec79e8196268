//! How many records each key has.

use std::io::{self, Read, Write};

use imbl::{OrdMap, OrdSet};
use s2_sdk::types::SequencedRecord;
use serde::Deserialize as _;

use super::Pointer;
use super::key::{is_json, key_of_version_1};
use crate::error::Error;
use crate::fold::{ApplyError, Fold};

/// How many records each key has. A snapshot is a line with a JSON object of keys and counts, and a line
/// with an array of those keys that are not decided.
///
/// Snapshots of version 1 have the object alone. In version 1, `7` and `"7"` were one key, and so were
/// numbers of more than 64 bits that are equal as floats. Such a count stays under its key, which is not
/// decided, until a record arrives that version 1 would have counted there: then the count moves to the
/// key of that record.
#[derive(Clone, Debug)]
pub struct Count {
    name: String,
    by: Pointer,
    counts: OrdMap<String, u64>,
    /// Keys of version 1 that may stand for several values.
    undecided: OrdSet<String>,
}

impl Count {
    /// Counts by the value at a JSON pointer.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for what is no JSON pointer.
    pub fn by(pointer: &str) -> Result<Count, Error> {
        Ok(Count {
            name: format!("count by {pointer}"),
            by: Pointer::new(pointer)?,
            counts: OrdMap::new(),
            undecided: OrdSet::new(),
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

    /// Applies a record's body, and returns the key that it counts for.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Malformed`].
    pub fn change(&mut self, body: &[u8]) -> Result<String, ApplyError> {
        let key = self.by.key(body)?;
        if !self.undecided.is_empty() {
            self.decide(&key);
        }
        *self.counts.entry(key.clone()).or_insert(0) += 1;
        Ok(key)
    }

    /// Gives this key the count that version 1 would have added to.
    fn decide(&mut self, key: &str) {
        let then = key_of_version_1(key).filter(|then| self.undecided.remove(then).is_some());
        if let Some(count) = then.and_then(|then| self.counts.remove(&then)) {
            *self.counts.entry(key.to_owned()).or_insert(0) += count;
        }
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

    fn version(&self) -> u32 {
        2
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
        out.write_all(b"\n")?;
        serde_json::to_writer(&mut out, &self.undecided)?;
        out.flush()
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut json = serde_json::Deserializer::from_reader(io::BufReader::new(from));
        let counts = OrdMap::<String, u64>::deserialize(&mut json)?;
        let mut rest = json.into_iter::<OrdSet<String>>();
        self.undecided = match rest.next() {
            Some(undecided) => undecided?,
            // A snapshot of version 1.
            None => counts.keys().filter(|key| is_json(key)).cloned().collect(),
        };
        self.counts = counts;
        Ok(())
    }
}
