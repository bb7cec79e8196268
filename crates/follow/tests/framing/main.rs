//! Snapshots as records and as objects, whatever happens to them: what is restored is exactly a state
//! that was written, or nothing.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../simulation/model.rs"]
mod model;

mod forged;
mod objects;
mod records;

use std::io::{self, Read, Write};

use bytes::Bytes;
use esker_follow::snapshot::pipe;
use esker_follow::snapshot::{Encoding, Meta, Totals};
use esker_follow::{ApplyError, Fold, SequencedRecord};
use model::Stream;

/// A state of any bytes, which records leave alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Blob(Option<Vec<u8>>);

impl Fold for Blob {
    fn name(&self) -> &str {
        "blob"
    }

    fn apply(&mut self, _: &SequencedRecord) -> Result<(), ApplyError> {
        Ok(())
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(self.0.as_deref().unwrap_or_default())
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        self.0 = Some(bytes);
        Ok(())
    }
}

fn describe(stream: &Stream, cursor: u64, encoding: Encoding) -> Meta {
    let identity = stream.now_identity();
    Meta {
        format: 1,
        fold: "blob".to_owned(),
        fold_version: 1,
        cursor,
        created_at: identity.created_at,
        lineage: identity.lineage,
        taken_at: 1_700_000_000_000,
        encoding,
    }
}

/// A state as it is kept, with this description.
async fn encode(state: &[u8], meta: &Meta) -> (Bytes, Totals) {
    let mut chunks = pipe::write(Blob(Some(state.to_vec())), meta);
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk);
    }
    (bytes.into(), chunks.totals().await.unwrap())
}

/// Runs one case.
fn block_on<T>(case: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(case)
}
