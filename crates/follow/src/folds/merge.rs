//! One document, made of all records as merge patches.

use std::io::{self, Read, Write};
use std::sync::Arc;

use s2_sdk::types::SequencedRecord;

use super::Json;
use crate::fold::{ApplyError, Fold};

/// One JSON document, to which each record is applied as a merge patch (RFC 7396). Numbers keep their
/// digits. A snapshot is the document.
///
/// Snapshots of version 1 are restored. Version 1 rounded numbers of more than 64 bits to floats; they
/// stay rounded until a record sets them again.
#[derive(Clone, Debug, Default)]
pub struct Merge {
    /// Copied only when a patch comes while a snapshot of it is being written.
    document: Arc<Json>,
}

impl Merge {
    /// An empty one.
    pub fn new() -> Merge {
        Merge::default()
    }

    /// The document; `null` before the first record.
    pub fn document(&self) -> &Json {
        &self.document
    }
}

impl Fold for Merge {
    fn name(&self) -> &str {
        "merge"
    }

    fn version(&self) -> u32 {
        2
    }

    fn extension(&self) -> &str {
        "json"
    }

    fn apply(&mut self, record: &SequencedRecord) -> Result<(), ApplyError> {
        let patch = Json::parse(&record.body).map_err(super::key::not_json)?;
        Arc::make_mut(&mut self.document).merge(patch);
        Ok(())
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut out = io::BufWriter::new(out);
        serde_json::to_writer(&mut out, &*self.document)?;
        out.flush()
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut text = Vec::new();
        from.read_to_end(&mut text)?;
        let document = Json::parse(&text);
        let document = document.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        self.document = Arc::new(document);
        Ok(())
    }
}
