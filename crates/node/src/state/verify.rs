//! Lists, exports and proves JSON snapshots.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use bytes::Bytes;
use esker_partition::state::read::{At, StateDigest, StateDigester};
use esker_partition::state::{StateEntry, StateKey, StateView};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

use super::Shared;
use super::document;
use super::error::StateError;
use super::files::name_of;
use super::import::is_unchecked;
use super::lineage::is_of;
use super::types::{StateSnapshot, StateVerification};
use crate::blocking::blocking;
use crate::core::Inner;

/// Bytes of a snapshot's text that are sent at a time.
const PIECE: usize = 256 * 1024;
/// Most commits folded at a time, and most bytes of them.
const COMMITS: (usize, usize) = (1024, 4 * 1024 * 1024);
/// Most differences that are named.
const DIFFERENCES: usize = 10;

/// A key after the commits that follow a snapshot. Only the hash of its value is kept, so that memory is
/// bounded by the names that were changed.
struct Folded {
    version: u64,
    hash: u128,
}

impl Folded {
    fn of(key: &StateKey, entry: &StateEntry) -> Folded {
        let (version, value) = (entry.version, entry.value.as_deref());
        Folded {
            version,
            hash: StateDigester::hash_of(key, version, entry.commit_ts, value),
        }
    }
}

/// Keys that commits after a snapshot have changed.
type Changed = HashMap<StateKey, Folded>;

pub(super) async fn list(inner: &Arc<Inner>) -> Result<Vec<StateSnapshot>, StateError> {
    let this = inner.clone();
    let mut all = blocking(move || list_local(&this.state)).await?;
    let Some(archive) = &inner.state.archive else {
        return Ok(all);
    };
    match archive.list().await {
        Ok(archived) => {
            let others = inner.state.others_archived.lock().clone();
            for one in archived {
                let other = others.iter().find(|(other, _)| *other == one.commit_ts);
                match all.iter_mut().find(|s| s.commit_ts == one.commit_ts) {
                    Some(known) => known.archived = other.is_none(),
                    None => all.push(StateSnapshot {
                        name: name_of(one.commit_ts),
                        commit_ts: one.commit_ts,
                        created_at: 0,
                        bytes: one.bytes,
                        keys: None,
                        lineage: String::new(),
                        local: false,
                        archived: true,
                        problem: other.map(|(_, why)| why.clone()),
                    }),
                }
            }
        }
        Err(error) => {
            let why = format!("{}: {error}", archive.shown());
            tracing::warn!(why, "archived snapshots of the state store are not known");
        }
    }
    all.sort_by_key(|one| std::cmp::Reverse(one.commit_ts));
    Ok(all)
}

fn list_local(shared: &Shared) -> Result<Vec<StateSnapshot>, StateError> {
    let found = shared.files.list();
    let found = found.map_err(|e| StateError::Storage(e.to_string()))?;
    let of = |one: &super::files::Found| match shared.files.check(one.commit_ts) {
        Ok((written, _)) => StateSnapshot {
            problem: is_of(&shared.lineage, &written.header).err(),
            ..shared.described(&written)
        },
        Err(why) => StateSnapshot {
            name: name_of(one.commit_ts),
            commit_ts: one.commit_ts,
            created_at: 0,
            bytes: one.bytes,
            keys: None,
            lineage: String::new(),
            local: true,
            archived: false,
            problem: Some(why.to_string()),
        },
    };
    Ok(found.iter().map(of).collect())
}

/// A writer that sends what is written to it.
struct Pieces(mpsc::Sender<Result<Bytes, StateError>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(bytes)))
            .map_err(|_| io::Error::other("nobody takes it any more"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn export(
    inner: &Arc<Inner>,
    commit_ts: Option<u64>,
    place: impl Send + 'static,
) -> Result<BoxStream<'static, Result<Bytes, StateError>>, StateError> {
    let this = inner.clone();
    match commit_ts {
        None if inner.state.reader.meta().commit_ts == 0 => {
            return Err(StateError::NothingCommitted);
        }
        Some(commit_ts) if !inner.state.files.path(commit_ts).exists() => {
            return Err(StateError::SnapshotNotFound(commit_ts));
        }
        _ => {}
    }
    let (send, pieces) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let mut to = BufWriter::with_capacity(PIECE, Pieces(send.clone()));
        let done = match commit_ts {
            Some(commit_ts) => copy(&this, commit_ts, &mut to),
            None => write_present(&this, &mut to),
        };
        let flushed = to.flush().map_err(|e| StateError::Storage(e.to_string()));
        if let Err(error) = done.and(flushed) {
            let _ = send.blocking_send(Err(error));
        }
        drop(place);
    });
    Ok(tokio_stream_of(pieces))
}

fn tokio_stream_of(
    pieces: mpsc::Receiver<Result<Bytes, StateError>>,
) -> BoxStream<'static, Result<Bytes, StateError>> {
    futures::stream::unfold(pieces, |mut pieces| async {
        let piece = pieces.recv().await?;
        Some((piece, pieces))
    })
    .boxed()
}

fn copy(inner: &Inner, commit_ts: u64, to: &mut impl Write) -> Result<(), StateError> {
    let files = &inner.state.files;
    files
        .check(commit_ts)
        .map_err(|why| StateError::Storage(format!("{}: {why}", name_of(commit_ts))))?;
    let failed = |e: io::Error| StateError::Storage(e.to_string());
    let mut from = std::fs::File::open(files.path(commit_ts)).map_err(failed)?;
    io::copy(&mut from, to).map_err(failed)?;
    Ok(())
}

fn write_present(inner: &Inner, to: &mut impl Write) -> Result<(), StateError> {
    let shared = &inner.state;
    let failed = |e: io::Error| StateError::Storage(e.to_string());
    shared.reader.view(|view| {
        let header = shared.header(view)?;
        let mut is_first = true;
        let written = document::write_header(to, &header)
            .map_err(failed)
            .and_then(|()| {
                view.entries(&mut |key, entry| {
                    let check = inner.options.check_value;
                    let is_unchecked = is_unchecked(&entry, header.commit_ts, check);
                    document::write_entry(to, is_first, &key, &entry, is_unchecked)
                        .map_err(failed)?;
                    is_first = false;
                    Ok(())
                })
            })
            .and_then(|()| document::write_end(to).map_err(failed));
        Ok(written)
    })?
}

pub(super) async fn verify(
    inner: &Arc<Inner>,
    commit_ts: Option<u64>,
) -> Result<StateVerification, StateError> {
    let this = inner.clone();
    blocking(move || verify_blocking(&this.state, commit_ts)).await
}

fn verify_blocking(shared: &Shared, wanted: Option<u64>) -> Result<StateVerification, StateError> {
    let found = shared.files.list();
    let found = found.map_err(|e| StateError::Storage(e.to_string()))?;
    let mut candidates: Vec<u64> = found.iter().map(|one| one.commit_ts).collect();
    if wanted.is_none() && candidates.is_empty() {
        return Err(match shared.reader.meta().commit_ts {
            0 => StateError::NothingCommitted,
            _ => StateError::NoSnapshot,
        });
    }
    if let Some(wanted) = wanted {
        candidates.retain(|one| *one == wanted);
        if candidates.is_empty() {
            return Err(StateError::SnapshotNotFound(wanted));
        }
    }
    let mut passed_over = Vec::new();
    for commit_ts in candidates {
        match prove(shared, commit_ts) {
            Ok(mut verification) => {
                verification.passed_over = passed_over;
                return Ok(verification);
            }
            Err(StateError::Invalid(why)) => {
                passed_over.push(format!("{}: {why}", name_of(commit_ts)));
            }
            Err(error) => return Err(error),
        }
    }
    Err(StateError::Storage(format!(
        "no snapshot can be used: {}",
        passed_over.join("; ")
    )))
}

/// Compares one snapshot with the live state; [`StateError::Invalid`] if it must not be used.
fn prove(shared: &Shared, commit_ts: u64) -> Result<StateVerification, StateError> {
    shared
        .reader
        .view(|view| Ok(compare(shared, view, commit_ts)))?
}

fn compare(
    shared: &Shared,
    view: &StateView<'_>,
    commit_ts: u64,
) -> Result<StateVerification, StateError> {
    let present = view.meta.commit_ts;
    if commit_ts > present {
        return Err(StateError::Invalid(format!(
            "it is of commit_ts {commit_ts}, and the newest commit is {present}: of another history"
        )));
    }
    if commit_ts + 1 < view.meta.history_begins() {
        return Err(StateError::Invalid(format!(
            "the commits after it are not kept: they begin at {}",
            view.meta.history_begins()
        )));
    }
    let (changed, replayed) = fold(shared, commit_ts, present)?;
    let mut folded = StateDigester::default();
    let (written, _) = shared
        .files
        .read(commit_ts, |key, entry| {
            if !changed.contains_key(&key) {
                folded.add_hash(Folded::of(&key, &entry).hash);
            }
            Ok(())
        })
        .map_err(|e| StateError::Invalid(e.to_string()))?;
    is_of(&shared.lineage, &written.header).map_err(StateError::Invalid)?;
    for one in changed.values() {
        folded.add_hash(one.hash);
    }
    let folded: StateDigest = folded.finish();
    let live = view.digest()?;
    let mut differences = Vec::new();
    if folded != live {
        if folded.keys != live.keys {
            let (folded, live) = (folded.keys, live.keys);
            differences.push(format!("it has {folded} keys, the live state {live}"));
        }
        differences.extend(named_differences(shared, view, commit_ts, &changed)?);
    }
    Ok(StateVerification {
        snapshot: name_of(commit_ts),
        snapshot_commit_ts: commit_ts,
        commit_ts: present,
        replayed,
        keys: live.keys,
        folded_digest: format!("{:032x}", folded.digest),
        live_digest: format!("{:032x}", live.digest),
        differences,
        passed_over: Vec::new(),
    })
}

/// Folds commits: the keys that they changed, and the number of commits.
fn fold(shared: &Shared, after: u64, up_to: u64) -> Result<(Changed, u64), StateError> {
    let mut changed = Changed::new();
    let (mut at, mut replayed) = (after, 0);
    while at < up_to {
        let (commits, reached) = shared
            .reader
            .commits(None, at, up_to, COMMITS.0, COMMITS.1)?;
        at = reached;
        replayed += commits.len() as u64;
        for commit in commits {
            for operation in commit.operations {
                let entry = StateEntry {
                    version: operation.version,
                    commit_ts: commit.commit_ts,
                    value: operation.value,
                    ..StateEntry::default()
                };
                let folded = Folded::of(&operation.key, &entry);
                changed.insert(operation.key, folded);
            }
        }
    }
    Ok((changed, replayed))
}

/// The first keys that differ, by name.
fn named_differences(
    shared: &Shared,
    view: &StateView<'_>,
    commit_ts: u64,
    changed: &Changed,
) -> Result<Vec<String>, StateError> {
    let mut named = Vec::new();
    let mut look = |key: &StateKey, folded: &Folded| -> Result<(), String> {
        let live = view.get(key, At::Latest).map_err(|e| e.to_string())?;
        let same = live
            .as_ref()
            .is_some_and(|live| Folded::of(key, live).hash == folded.hash);
        if !same && named.len() < DIFFERENCES {
            named.push(format!(
                "{}: version {} in the snapshot and its replay, {} live",
                document::escaped(key),
                folded.version,
                live.map_or(0, |live| live.version)
            ));
        }
        Ok(())
    };
    shared
        .files
        .read(commit_ts, |key, entry| match changed.contains_key(&key) {
            true => Ok(()),
            false => look(&key, &Folded::of(&key, &entry)),
        })
        .map_err(|e| StateError::Invalid(e.to_string()))?;
    for (key, folded) in changed {
        look(key, folded).map_err(StateError::Storage)?;
    }
    Ok(named)
}
