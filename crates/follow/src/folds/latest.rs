//! The last record of each key.

use std::io::{self, BufRead as _, Read, Write};

use bytes::Bytes;
use imbl::HashMap;
use s2_sdk::types::SequencedRecord;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Pointer;
use super::key::is_json;
use crate::error::Error;
use crate::fold::{ApplyError, Fold};

/// The last record of each key. A key cannot be removed, because a record has to contain its key: to
/// remove keys, write a fold of your own.
///
/// A snapshot is a line of JSON for each key: `{"key":"7","value":{"id":7,"total":12}}`.
///
/// Snapshots of version 1 are restored, with the keys that their records have now. Records that they do
/// not contain stay lost: in version 1, `7` and `"7"` were one key, and so were numbers of more than 64
/// bits that are equal as floats, and only the last record of such a key was kept.
#[derive(Clone, Debug)]
pub struct Latest {
    name: String,
    by: Pointer,
    entries: HashMap<String, Bytes>,
}

#[derive(Serialize)]
struct LineOut<'a> {
    key: &'a str,
    value: &'a RawValue,
}

#[derive(Deserialize)]
struct LineIn<'a> {
    key: String,
    #[serde(borrow)]
    value: &'a RawValue,
}

impl Latest {
    /// Keeps records by the value at a JSON pointer.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for what is no JSON pointer.
    pub fn by(pointer: &str) -> Result<Latest, Error> {
        Ok(Latest {
            name: format!("latest by {pointer}"),
            by: Pointer::new(pointer)?,
            entries: HashMap::new(),
        })
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The last record's body of a key, JSON.
    pub fn get(&self, key: &str) -> Option<&Bytes> {
        self.entries.get(key)
    }

    /// Applies a record's body, and returns its key.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Malformed`].
    pub fn change(&mut self, body: &[u8]) -> Result<String, ApplyError> {
        let key = self.by.key(body)?;
        // A copy: the record is a part of a large batch, which a slice would keep in memory.
        let body = Bytes::copy_from_slice(body);
        self.entries.insert(key.clone(), body);
        Ok(key)
    }

    /// Keys and their last records' bodies, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.entries.iter().map(|(key, body)| (key.as_str(), body))
    }
}

impl Fold for Latest {
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
        let mut line = Vec::new();
        for (key, body) in &self.entries {
            line.clear();
            let value: &RawValue = serde_json::from_slice(body)?;
            serde_json::to_writer(&mut line, &LineOut { key, value })?;
            // A document may have been written over several lines.
            line.iter_mut()
                .filter(|b| **b == b'\n')
                .for_each(|b| *b = b' ');
            line.push(b'\n');
            out.write_all(&line)?;
        }
        Ok(())
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.entries = HashMap::new();
        let mut lines = io::BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            let LineIn { key, value } = serde_json::from_slice(&line)?;
            let body = Bytes::copy_from_slice(value.get().as_bytes());
            // Version 1 had the same keys only for strings that are no JSON.
            let key = match is_json(&key) {
                true => self.by.key(&body).map_err(io::Error::other)?,
                false => key,
            };
            self.entries.insert(key, body);
        }
    }
}
