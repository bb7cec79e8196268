//! One document, made of all records as merge patches.

use std::io::{self, Read, Write};
use std::sync::Arc;

use s2_sdk::types::SequencedRecord;
use serde_json::Value;

use super::key::json;
use crate::fold::{ApplyError, Fold};

/// One JSON document: each record is a merge patch (RFC 7396) to what those before made. A snapshot is
/// the document.
#[derive(Clone, Debug, Default)]
pub struct Merge {
    /// Copied only when a patch comes while a snapshot of it is being written.
    document: Arc<Value>,
}

impl Merge {
    /// An empty one.
    pub fn new() -> Merge {
        Merge::default()
    }

    /// The document; `null` before the first record.
    pub fn document(&self) -> &Value {
        &self.document
    }
}

impl Fold for Merge {
    fn name(&self) -> &str {
        "merge"
    }

    fn extension(&self) -> &str {
        "json"
    }

    fn apply(&mut self, record: &SequencedRecord) -> Result<(), ApplyError> {
        let patch = json(&record.body)?;
        json_patch::merge(Arc::make_mut(&mut self.document), &patch);
        Ok(())
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut out = io::BufWriter::new(out);
        serde_json::to_writer(&mut out, &*self.document)?;
        out.flush()
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.document = Arc::new(serde_json::from_reader(io::BufReader::new(from))?);
        Ok(())
    }
}
