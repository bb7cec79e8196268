//! Making the store anew, at a start, when what the database has of it cannot be used.
//!
//! From the newest valid JSON snapshot of this history, local or archived, and the commits after it that
//! the stream still has; or from the stream alone, if it has every commit there ever was. An invalid
//! snapshot is named, and the one before it is used.

use std::io;
use std::path::Path;
use std::time::Instant;

use esker_partition::state::StateReader;
use esker_partition::state::rebuild::StreamLeft;
use esker_partition::store::{PartitionDb, StoreError};
use tokio::runtime::Handle;

use super::archive::StateArchive;
use super::error::FileError;
use super::files::{Files, name_of};
use super::lineage::{copy_of, is_of};
use crate::error::StartError;
use crate::recovery::{Source, Witness};

/// What the store was loaded from. Its commits since then are replayed with its partition.
#[derive(Debug)]
pub(crate) struct Loaded {
    source: String,
    /// Commits that have been replayed on it already, before its partition was opened.
    folded: u64,
    begun: Instant,
}

impl Loaded {
    fn new(source: impl ToString, folded: u64, begun: Instant) -> Loaded {
        Loaded {
            source: source.to_string(),
            folded,
            begun,
        }
    }

    /// Reports the end of the recovery, once the partition has replayed its log.
    pub fn recovered(&self, reader: &StateReader) {
        let events = self.folded + reader.commits_applied();
        let meta = reader.meta();
        tracing::info!(events, "Replaying {events} events since snapshot");
        tracing::info!(
            source = self.source,
            commit_ts = meta.commit_ts,
            keys = meta.keys,
            duration = ?self.begun.elapsed(),
            "Recovery complete"
        );
    }
}

/// What a partition came from.
pub(crate) struct Origin<'a> {
    pub source: &'a Source,
    /// Commits that were replayed on it by then.
    pub folded: u64,
}

/// Sources that could not be used, and why.
#[derive(Debug, Default)]
struct Tried {
    all: Vec<String>,
    /// Those of which nothing is known, because they could not be read now.
    unreadable: Vec<String>,
}

impl Tried {
    fn note(&mut self, why: String) {
        self.all.push(why);
    }

    fn note_unreadable(&mut self, why: String) {
        self.unreadable.push(why.clone());
        self.all.push(why);
    }

    /// One that is damaged, or gone since it was listed, is passed over; of one that cannot be read now
    /// nothing is known.
    fn note_file(&mut self, name: &str, why: &FileError) {
        let text = format!("{name}: {why}");
        match why {
            FileError::Unreadable(error) if error.kind() != io::ErrorKind::NotFound => {
                self.note_unreadable(text);
            }
            _ => self.note(text),
        }
    }

    fn into_error(self) -> StartError {
        match self.unreadable.is_empty() {
            true => StartError::StateUnusable {
                tried: self.all.join("; "),
            },
            // What the store can be made of may be among them.
            false => StartError::unreadable(
                "a snapshot that the state store may have to be made of",
                &self.unreadable.join("; "),
            ),
        }
    }
}

/// Makes sure that the partition's state store can be used.
pub(crate) fn recover(
    part: &PartitionDb,
    files: &Files,
    archive: Option<&StateArchive>,
    scratch: &Path,
    handle: &Handle,
    Origin { source, folded }: Origin<'_>,
    witness: Option<&Witness>,
) -> Result<Loaded, StartError> {
    let begun = Instant::now();
    let Some(why) = part.state_problem()? else {
        if matches!(source, Source::State(_)) {
            // Reported when its partition was made of it.
            return Ok(Loaded::new("json", folded, begun));
        }
        let meta = part.state_meta()?.unwrap_or_default();
        let loaded = match meta.commit_ts {
            0 => "none".to_owned(),
            commit_ts => format!("state store at commit_ts={commit_ts}"),
        };
        tracing::info!(
            %source,
            commit_ts = meta.commit_ts,
            keys = meta.keys,
            "Loading snapshot: {loaded}"
        );
        return Ok(Loaded::new(source, 0, begun));
    };
    tracing::warn!(%why, "the state store in the database cannot be used: it is rebuilt");
    let mut tried = Tried::default();
    tried.note(format!("database: {why}"));
    if let Some(folded) = from_files(part, files, witness, &mut tried)? {
        return Ok(Loaded::new("json", folded, begun));
    }
    if let Some(archive) = archive
        && let Some(folded) = from_archive(part, archive, scratch, handle, witness, &mut tried)?
    {
        return Ok(Loaded::new("json", folded, begun));
    }
    if let Some(folded) = from_stream(part, &mut tried)? {
        return Ok(Loaded::new("stream", folded, begun));
    }
    Err(tried.into_error())
}

fn from_files(
    part: &PartitionDb,
    files: &Files,
    witness: Option<&Witness>,
    tried: &mut Tried,
) -> Result<Option<u64>, StartError> {
    let found = match files.list() {
        Ok(found) => found,
        Err(error) => {
            tried.note_unreadable(format!("{}: {error}", files.dir().display()));
            return Ok(None);
        }
    };
    for one in found {
        if let Some(folded) = from_file(part, files, one.commit_ts, witness, tried)? {
            return Ok(Some(folded));
        }
    }
    Ok(None)
}

/// Archived snapshots, newest first: only what is tried is fetched.
fn from_archive(
    part: &PartitionDb,
    archive: &StateArchive,
    scratch: &Path,
    handle: &Handle,
    witness: Option<&Witness>,
    tried: &mut Tried,
) -> Result<Option<u64>, StartError> {
    let listed = match handle.block_on(archive.list()) {
        Ok(listed) => listed,
        Err(error) => {
            tried.note_unreadable(format!("{}: {error}", archive.shown()));
            return Ok(None);
        }
    };
    let dir = scratch.join("state");
    for one in listed {
        // What an earlier one left is not wanted any more.
        let _ = std::fs::remove_dir_all(&dir);
        let fetched = std::fs::create_dir_all(&dir)
            .and_then(|()| handle.block_on(archive.fetch(one.commit_ts, &dir)))
            .and_then(|()| Files::open(dir.clone()));
        match fetched {
            Ok(files) => {
                if let Some(folded) = from_file(part, &files, one.commit_ts, witness, tried)? {
                    let _ = std::fs::remove_dir_all(&dir);
                    return Ok(Some(folded));
                }
            }
            Err(error) => {
                let (name, shown) = (name_of(one.commit_ts), archive.shown());
                tracing::warn!(%error, snapshot = name, "an archived snapshot of the state store cannot be fetched: the one before it is tried");
                tried.note_file(&format!("{name} in {shown}"), &error.into());
            }
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
    Ok(None)
}

/// Makes the store of one snapshot, if it can be used.
fn from_file(
    part: &PartitionDb,
    files: &Files,
    commit_ts: u64,
    witness: Option<&Witness>,
    tried: &mut Tried,
) -> Result<Option<u64>, StartError> {
    match try_file(part, files, commit_ts, witness, part.state_stream_left()?)? {
        Ok(folded) => Ok(Some(folded)),
        Err(why) => {
            let name = name_of(commit_ts);
            tracing::warn!(
                snapshot = name,
                %why,
                "a snapshot of the state store cannot be used: the one before it is tried"
            );
            tried.note_file(&name, &why);
            Ok(None)
        }
    }
}

fn try_file(
    part: &PartitionDb,
    files: &Files,
    commit_ts: u64,
    witness: Option<&Witness>,
    left: Option<StreamLeft>,
) -> Result<Result<u64, FileError>, StartError> {
    let begun = Instant::now();
    let not_usable = |why: String| Ok(Err(FileError::Damaged(why)));
    let (checked, has_sum) = match files.check(commit_ts) {
        Ok(checked) => checked,
        Err(why) => return Ok(Err(why)),
    };
    if let Err(why) = is_of(&part.lineage()?, &checked.header) {
        return not_usable(why);
    }
    if let (Some(witness), Some(copy)) = (witness, copy_of(&checked.header))
        && let Some(why) = witness.contradicts(&copy)?
    {
        return not_usable(why);
    }
    let to = match left {
        // More may have been committed than the snapshot has.
        None => {
            return not_usable(
                "the stream of commits is missing, and with it what came after the snapshot"
                    .to_owned(),
            );
        }
        Some(left) if commit_ts > left.to => {
            return not_usable(format!(
                "the stream of commits ends before it, at {}",
                left.to
            ));
        }
        Some(left) if commit_ts < left.from => {
            return not_usable(format!(
                "it cannot be brought up to date: commits up to {} are not kept, or an import has replaced what they made",
                left.from
            ));
        }
        Some(left) => left.to,
    };
    let name = name_of(commit_ts);
    if !has_sum {
        tracing::warn!(
            snapshot = name,
            "the snapshot has no checksum; it reads as it should"
        );
    }
    tracing::info!(
        source = "json",
        commit_ts,
        bytes = checked.bytes,
        keys = checked.keys,
        "Loading snapshot: {name}"
    );
    let mut rebuild = part.rebuild_state()?;
    let mut failed = None;
    let read = files.read(commit_ts, |key, entry| {
        rebuild.entry(&key, &entry).map_err(|error| {
            let why = error.to_string();
            failed = Some(error);
            why
        })
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    if let Err(why) = read {
        return Ok(Err(why));
    }
    let events = match rebuild.fold(commit_ts, to) {
        Ok(events) => events,
        Err(why @ StoreError::Malformed { .. }) => return not_usable(why.to_string()),
        Err(error) => return Err(error.into()),
    };
    rebuild.finish(to)?;
    tracing::info!(
        events,
        duration = ?begun.elapsed(),
        "the state store was rebuilt from {name} and its stream"
    );
    Ok(Ok(events))
}

/// All commits there ever were may be in the stream.
fn from_stream(part: &PartitionDb, tried: &mut Tried) -> Result<Option<u64>, StartError> {
    let Some(left) = part.state_stream_left()? else {
        tried.note("the stream of commits: it is missing".to_owned());
        return Ok(None);
    };
    if left.from > 0 || part.lineage()?.forks > 0 {
        tried.note(format!(
            "the stream of commits: it does not go back to the first one, but to {}",
            left.from + 1
        ));
        return Ok(None);
    }
    tracing::info!(
        source = "stream",
        "Loading snapshot: none, the stream has every commit"
    );
    let mut rebuild = part.rebuild_state()?;
    let events = rebuild.fold(0, left.to)?;
    rebuild.finish(left.to)?;
    Ok(Some(events))
}
