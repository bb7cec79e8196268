//! Taking over a JSON snapshot: by way of the log, a piece at a time, visible with the last one.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use esker_partition::command::{Kind, Outcome};
use esker_partition::state::command::{
    ImportBegin, ImportEntries, ImportFinish, ImportStep, ImportedEntry, StateImport,
    StateImportRefusal,
};
use esker_partition::state::{StateEntry, StateKey};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::error::StateError;
use super::files::{self, Written};
use super::types::ImportSummary;
use super::{blocking, unexpected};
use crate::clock::now_ms;
use crate::node::Inner;

/// Bytes of one command.
const COMMAND: usize = 512 * 1024;
/// Most bytes of an entry: a commit had room for it.
const ENTRY: usize = esker_partition::state::MOST_RECORD_BYTES;
/// Bytes that are taken in before it is looked again whether the disk has room for more.
const LOOK_EVERY: usize = 2 * 1024 * 1024;

/// A file that goes when it is no longer needed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(super) async fn import(
    inner: &Arc<Inner>,
    mut pieces: BoxStream<'static, Result<Bytes, StateError>>,
    replace: bool,
) -> Result<ImportSummary, StateError> {
    let newest = inner.state.reader.meta().commit_ts;
    if newest > 0 && !replace {
        return Err(StateError::NotEmpty { commit_ts: newest });
    }
    let id: u64 = rand::random();
    let path = inner.state.files.dir().join(format!(".tmp-import-{id:x}"));
    let failed = |e: std::io::Error| StateError::Storage(format!("the snapshot: {e}"));
    let spooled = Temporary(path.clone());
    let mut to = tokio::fs::File::create(&path).await.map_err(failed)?;
    let mut unlooked = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        to.write_all(&piece).await.map_err(failed)?;
        unlooked += piece.len();
        if unlooked > LOOK_EVERY {
            to.flush().await.map_err(failed)?;
            inner.state.files.has_room().map_err(failed)?;
            unlooked = 0;
        }
    }
    to.flush().await.map_err(failed)?;
    drop(to);
    // All of it is looked at before anything is done.
    let checked = blocking({
        let path = path.clone();
        move || {
            let file = File::open(&path).map_err(|e| e.to_string())?;
            let take = |_: StateKey, entry: StateEntry| check(&entry);
            files::read(file, take).map_err(|e| e.to_string())
        }
    })
    .await
    .map_err(|why| StateError::Invalid(format!("not a snapshot of a state: {why}")))?;
    if checked.header.commit_ts == 0 {
        return Err(StateError::Invalid(
            "not a snapshot of a state: its commit_ts is 0".to_owned(),
        ));
    }
    let begun = std::time::Instant::now();
    let step = |step| propose(inner, id, step);
    step(ImportStep::Begin(ImportBegin { replace })).await?;
    let (send, mut commands) = mpsc::channel(2);
    let reading = tokio::task::spawn_blocking(move || {
        let _spooled = spooled;
        read_commands(&path, &send)
    });
    while let Some(entries) = commands.recv().await {
        step(ImportStep::Entries(ImportEntries { entries })).await?;
    }
    let read = match reading.await {
        Ok(read) => read.map_err(StateError::Storage)?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    if read != checked {
        return Err(StateError::Storage(
            "the snapshot changed while it was read".to_owned(),
        ));
    }
    let finish = ImportFinish {
        commit_ts: checked.header.commit_ts,
    };
    let commit_ts = step(ImportStep::Finish(finish)).await?;
    tracing::info!(
        commit_ts,
        snapshot_commit_ts = checked.header.commit_ts,
        keys = checked.keys,
        bytes = checked.bytes,
        duration = ?begun.elapsed(),
        "a snapshot of the state store was imported"
    );
    // Those from before it lead to another state: the first that does not is due now.
    if inner.state.options.snapshot_interval > 0 {
        drop(inner.state.ask_snapshot(commit_ts));
    }
    Ok(ImportSummary {
        imported_commit_ts: checked.header.commit_ts,
        commit_ts,
        keys: checked.keys,
        bytes: checked.bytes,
    })
}

fn check(entry: &StateEntry) -> Result<(), String> {
    let bytes = entry.value.as_ref().map_or(0, Bytes::len);
    if bytes > ENTRY {
        return Err(format!(
            "a value has {bytes} bytes; at most {ENTRY} are allowed"
        ));
    }
    Ok(())
}

/// Gives the entries of a snapshot, as many at a time as make a command.
fn read_commands(
    path: &std::path::Path,
    send: &mpsc::Sender<Vec<ImportedEntry>>,
) -> Result<Written, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mut ready = Vec::new();
    let mut bytes = 0;
    let gone = || "the import has ended".to_owned();
    let written = files::read(file.take(u64::MAX), |key, entry| {
        let size = key.namespace.len()
            + key.agent_id.len()
            + key.key.len()
            + entry.value.as_ref().map_or(0, Bytes::len)
            + 32;
        if bytes + size > COMMAND && !ready.is_empty() {
            let full = std::mem::take(&mut ready);
            send.blocking_send(full).map_err(|_| gone())?;
            bytes = 0;
        }
        bytes += size;
        ready.push(ImportedEntry {
            namespace: key.namespace,
            agent_id: key.agent_id,
            key: key.key,
            version: entry.version,
            commit_ts: entry.commit_ts,
            forks: entry.forks,
            value: entry.value,
        });
        Ok(())
    })
    .map_err(|e| e.to_string())?;
    if !ready.is_empty() {
        send.blocking_send(ready).map_err(|_| gone())?;
    }
    Ok(written)
}

async fn propose(inner: &Inner, id: u64, step: ImportStep) -> Result<u64, StateError> {
    let command = Kind::StateImport(StateImport {
        id,
        step: Some(step),
        at_ms: now_ms(),
    });
    let outcome = inner
        .execute(inner.state.group(inner), command)
        .await
        .map_err(|error| match error {
            crate::error::Error::Stopping => StateError::Stopping,
            crate::error::Error::Unknown(why) => StateError::Unknown(why),
            other => StateError::Unavailable(other.to_string()),
        })?;
    match outcome {
        Outcome::StateImported(Ok(done)) => Ok(done.commit_ts),
        Outcome::StateImported(Err(StateImportRefusal::NotEmpty(commit_ts))) => {
            Err(StateError::NotEmpty { commit_ts })
        }
        Outcome::StateImported(Err(StateImportRefusal::Superseded)) => Err(
            StateError::Unavailable("another import has begun, and this one ended".to_owned()),
        ),
        Outcome::StateImported(Err(StateImportRefusal::Invalid(why))) => Err(StateError::Invalid(
            format!("not a snapshot of a state: {why}"),
        )),
        other => Err(unexpected(&other)),
    }
}
