//! Rebuilds the store at a start, when what the database has of it cannot be used.
//!
//! It is rebuilt from the newest valid JSON snapshot of this history, local or archived, and the commits
//! after it that the stream still has; or from the stream alone, if it has every commit. An invalid snapshot
//! is named, and the one before it is used.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use esker_partition::state::StateReader;
use esker_partition::store::{PartitionDb, StoreError};

use super::archive::StateArchive;
use super::error::FileError;
use super::files::{Files, name_of};
use super::lineage::{copy_of, is_of};
use crate::blocking::blocking;
use crate::error::StartError;
use crate::recovery::{Source, Witness};

/// The source that the store was loaded from. The commits after it are replayed with the partition.
#[derive(Debug)]
pub(crate) struct Loaded {
    source: String,
    /// Commits that were replayed on it before its partition was opened.
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

/// The source of a partition.
pub(crate) struct Origin<'a> {
    pub source: &'a Source,
    /// Commits that were replayed on it already.
    pub folded: u64,
}

/// Sources that could not be used, and why.
#[derive(Debug, Default)]
struct Tried {
    all: Vec<String>,
    /// Those that could not be read now, so that nothing is known of them.
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

    /// Notes a file that cannot be used. One that is damaged, or was removed since it was listed, is passed
    /// over; one that cannot be read now is noted as unreadable.
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
            // A source of the store may be among the unreadable ones.
            false => StartError::unreadable(
                "a snapshot that the state store may have to be made of",
                &self.unreadable.join("; "),
            ),
        }
    }
}

/// The sources of a rebuild. Cheap to clone.
#[derive(Clone)]
pub(crate) struct StateSources {
    /// The partition's database, with the stream of commits.
    pub part: PartitionDb,
    /// JSON snapshots on this disk.
    pub files: Files,
    /// JSON snapshots in the repository.
    pub archive: Option<StateArchive>,
    /// The directory that archived snapshots are fetched into.
    pub scratch: PathBuf,
    /// The partition's log, which may contradict snapshots.
    pub witness: Option<Witness>,
}

/// Checks that the partition's state store can be used, and rebuilds it if it cannot.
pub(crate) async fn recover(
    sources: &StateSources,
    Origin { source, folded }: Origin<'_>,
) -> Result<Loaded, StartError> {
    let begun = Instant::now();
    let part = sources.part.clone();
    let checked = blocking(move || match part.state_problem()? {
        Some(why) => Ok(Err(why)),
        None => Ok::<_, StoreError>(Ok(part.state_meta()?.unwrap_or_default())),
    });
    let why = match checked.await? {
        // It was reported when its partition was made from this source.
        Ok(_) if matches!(source, Source::State(_)) => {
            return Ok(Loaded::new("json", folded, begun));
        }
        Ok(meta) => {
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
        }
        Err(why) => why,
    };
    tracing::warn!(%why, "the state store in the database cannot be used: it is rebuilt");
    let mut tried = Tried::default();
    tried.note(format!("database: {why}"));
    let (from, folded) = rebuild(sources, tried).await?;
    Ok(Loaded::new(from, folded, begun))
}

/// Rebuilds the store from the first usable source. Returns which it was, and how many commits were folded.
async fn rebuild(
    sources: &StateSources,
    mut tried: Tried,
) -> Result<(&'static str, u64), StartError> {
    if let Some(folded) = from_files(sources, &mut tried).await? {
        return Ok(("json", folded));
    }
    if let Some(folded) = from_archive(sources, &mut tried).await? {
        return Ok(("json", folded));
    }
    if let Some(folded) = from_stream(sources, &mut tried).await? {
        return Ok(("stream", folded));
    }
    Err(tried.into_error())
}

async fn from_files(sources: &StateSources, tried: &mut Tried) -> Result<Option<u64>, StartError> {
    let files = sources.files.clone();
    let found = match blocking(move || files.list()).await {
        Ok(found) => found,
        Err(error) => {
            tried.note_unreadable(format!("{}: {error}", sources.files.dir().display()));
            return Ok(None);
        }
    };
    for one in found {
        if let Some(folded) = from_file(sources, &sources.files, one.commit_ts, tried).await? {
            return Ok(Some(folded));
        }
    }
    Ok(None)
}

/// Tries archived snapshots, newest first; each is fetched only when it is tried.
async fn from_archive(
    sources: &StateSources,
    tried: &mut Tried,
) -> Result<Option<u64>, StartError> {
    let Some(archive) = &sources.archive else {
        return Ok(None);
    };
    let listed = match archive.list().await {
        Ok(listed) => listed,
        Err(error) => {
            tried.note_unreadable(format!("{}: {error}", archive.shown()));
            return Ok(None);
        }
    };
    let dir = sources.scratch.join("state");
    let mut rebuilt = None;
    for one in listed {
        match fetch(archive, one.commit_ts, &dir).await {
            Ok(files) => {
                rebuilt = from_file(sources, &files, one.commit_ts, tried).await?;
                if rebuilt.is_some() {
                    break;
                }
            }
            Err(error) => {
                let (name, shown) = (name_of(one.commit_ts), archive.shown());
                tracing::warn!(%error, snapshot = name, "an archived snapshot of the state store cannot be fetched: the one before it is tried");
                tried.note_file(&format!("{name} in {shown}"), &error.into());
            }
        }
    }
    // If it cannot be removed, the next start removes it.
    let _ = blocking(move || std::fs::remove_dir_all(dir)).await;
    Ok(rebuilt)
}

/// Fetches an archived snapshot into a directory of its own.
async fn fetch(archive: &StateArchive, commit_ts: u64, dir: &Path) -> io::Result<Files> {
    let to = dir.to_owned();
    blocking(move || {
        // The snapshot of an earlier attempt is not needed any more.
        let _ = std::fs::remove_dir_all(&to);
        std::fs::create_dir_all(&to)
    })
    .await?;
    archive.fetch(commit_ts, dir).await?;
    let fetched = dir.to_owned();
    blocking(move || Files::open(fetched)).await
}

/// Rebuilds the store from one snapshot, if it can be used.
async fn from_file(
    sources: &StateSources,
    files: &Files,
    commit_ts: u64,
    tried: &mut Tried,
) -> Result<Option<u64>, StartError> {
    let (sources, files) = (sources.clone(), files.clone());
    match blocking(move || try_file(&sources, &files, commit_ts)).await? {
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

/// Returns how many commits were folded onto the snapshot, or why it cannot be used. Blocking.
fn try_file(
    sources: &StateSources,
    files: &Files,
    commit_ts: u64,
) -> Result<Result<u64, FileError>, StartError> {
    let part = &sources.part;
    let left = part.state_stream_left()?;
    let begun = Instant::now();
    let not_usable = |why: String| Ok(Err(FileError::Damaged(why)));
    let (checked, has_sum) = match files.check(commit_ts) {
        Ok(checked) => checked,
        Err(why) => return Ok(Err(why)),
    };
    if let Err(why) = is_of(&part.lineage()?, &checked.header) {
        return not_usable(why);
    }
    if let (Some(witness), Some(copy)) = (&sources.witness, copy_of(&checked.header))
        && let Some(why) = witness.contradicts(&copy)?
    {
        return not_usable(why);
    }
    let to = match left {
        // There may have been commits after the snapshot.
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
    rebuild.commit_forks(checked.header.commit_forks);
    let read = files.read_into(commit_ts, |key, entry| rebuild.entry(key, entry))?;
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

/// Rebuilds the store from the stream alone, if that has every commit.
async fn from_stream(sources: &StateSources, tried: &mut Tried) -> Result<Option<u64>, StartError> {
    let part = sources.part.clone();
    match blocking(move || try_stream(&part)).await? {
        Ok(folded) => Ok(Some(folded)),
        Err(why) => {
            tried.note(format!("the stream of commits: {why}"));
            Ok(None)
        }
    }
}

/// Returns how many commits were folded, or why the stream cannot be used. Blocking.
fn try_stream(part: &PartitionDb) -> Result<Result<u64, String>, StartError> {
    let Some(left) = part.state_stream_left()? else {
        return Ok(Err("it is missing".to_owned()));
    };
    if left.from > 0 || part.lineage()?.forks > 0 {
        return Ok(Err(format!(
            "it does not go back to the first one, but to {}",
            left.from + 1
        )));
    }
    tracing::info!(
        source = "stream",
        "Loading snapshot: none, the stream has every commit"
    );
    let mut rebuild = part.rebuild_state()?;
    let events = rebuild.fold(0, left.to)?;
    rebuild.finish(left.to)?;
    Ok(Ok(events))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use esker_partition::state::state_partition;
    use esker_partition::{Store, StoreOptions};

    use super::*;
    use crate::admission::Client;
    use crate::node::Node;
    use crate::options::NodeOptions;
    use crate::state::StateKey;

    /// The sources of a store after commits, with JSON snapshots of some of these.
    async fn sources(dir: &Path, commits: u64, snapshots: &[u64]) -> (Store, StateSources) {
        let mut options = NodeOptions::new(dir);
        options.partitions = 1;
        options.state.snapshot_interval = 0;
        let node = Node::start(options).await.unwrap();
        let state = node.state();
        for number in 1..=commits {
            let txn = state
                .begin(crate::admission::Client::default(), None)
                .unwrap();
            let key = StateKey::new("default", "agent", format!("key-{}", number % 3));
            let value = Bytes::from(format!("{{\"n\":{number}}}"));
            state.write(&txn, key, value, None).unwrap();
            state
                .commit(&txn, Vec::new(), Client::default(), None)
                .await
                .unwrap();
            if snapshots.contains(&number) {
                state.snapshot().await.unwrap();
            }
        }
        node.stop(std::time::Duration::from_secs(30)).await;
        drop(node);
        let store = Store::open_any(&dir.join("db"), &StoreOptions::default()).unwrap();
        let sources = StateSources {
            part: store.partition_db(state_partition(1)),
            files: Files::open(dir.join("snapshots")).unwrap(),
            archive: None,
            scratch: dir.join("scratch"),
            witness: None,
        };
        (store, sources)
    }

    /// Rebuilds the store, which must be equal afterwards. Returns the source and the number of folded
    /// commits.
    async fn rebuilt(sources: &StateSources) -> (&'static str, u64) {
        let place = |sources: &StateSources| {
            let meta = sources.part.state_meta().unwrap().unwrap();
            (meta.commit_ts, meta.keys)
        };
        let before = place(sources);
        let from = rebuild(sources, Tried::default()).await.unwrap();
        assert_eq!(place(sources), before);
        assert_eq!(sources.part.state_problem().unwrap(), None);
        from
    }

    #[tokio::test]
    async fn the_store_is_rebuilt_from_the_newest_snapshot_and_the_commits_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let (store, sources) = sources(dir.path(), 7, &[3, 5]).await;
        assert_eq!(rebuilt(&sources).await, ("json", 2));
        store.close();
    }

    #[tokio::test]
    async fn a_damaged_snapshot_is_passed_over_for_the_one_before_it_and_then_for_the_stream() {
        let dir = tempfile::tempdir().unwrap();
        let (store, sources) = sources(dir.path(), 7, &[3, 5]).await;
        std::fs::write(sources.files.path(5), "{}").unwrap();
        assert_eq!(rebuilt(&sources).await, ("json", 4));
        std::fs::write(sources.files.path(3), "{}").unwrap();
        assert_eq!(rebuilt(&sources).await, ("stream", 7));
        store.close();
    }

    #[tokio::test]
    async fn a_store_that_can_be_used_is_not_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        let (store, sources) = sources(dir.path(), 4, &[]).await;
        let origin = Origin {
            source: &Source::Database,
            folded: 0,
        };
        let loaded = recover(&sources, origin).await.unwrap();
        assert_eq!((loaded.source.as_str(), loaded.folded), ("database", 0));
        store.close();
    }
}
