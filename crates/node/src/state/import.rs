//! Imports a JSON snapshot through the log, one piece at a time; it becomes visible with the last piece.
//!
//! The whole snapshot is checked before the first piece is proposed, so that a refused snapshot writes
//! nothing. An import that ends in the middle is aborted: what it wrote is removed, by the node that leads the store as
//! soon as it finds it. Each node knows the imports that it makes itself.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use esker_partition::command::{Kind, Outcome};
use esker_partition::lineage::GAP;
use esker_partition::state::command::{
    ImportAbort, ImportBegin, ImportEntries, ImportFinish, ImportStep, ImportedEntry, MAX_NUMBER,
    StateImport, StateImportRefusal,
};
use esker_partition::state::{StateEntry, StateKey};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_128;

use super::document::{self, ReadEntry};
use super::error::{FileError, StateError, unexpected};
use super::files::{self, Written};
use super::imports::Importing;
use super::types::{ImportSummary, ValueCheck};
use crate::blocking::blocking;
use crate::core::Inner;

/// Most bytes of one command.
const COMMAND: usize = 512 * 1024;
/// Most bytes of an entry: that of a commit's record.
const ENTRY: usize = esker_partition::state::MAX_RECORD_BYTES;
/// Bytes that are written before the free space of the disk is checked again.
const LOOK_EVERY: usize = 2 * 1024 * 1024;

/// Most keys of a snapshot whose keys are not sorted: 16 bytes of each are held to find a key that occurs
/// twice.
const MAX_UNSORTED_KEYS: usize = 4_000_000;
/// How long an import waits for the snapshot of what it has imported.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);

/// A file that is removed on drop.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// `importing` is kept until all of it has taken effect, or what it wrote is to be removed.
pub(super) async fn import(
    inner: &Arc<Inner>,
    importing: Importing,
    mut pieces: BoxStream<'static, Result<Bytes, StateError>>,
    replace: bool,
) -> Result<ImportSummary, StateError> {
    let newest = inner.state.reader.meta().commit_ts;
    if newest > 0 && !replace {
        return Err(StateError::NotEmpty { commit_ts: newest });
    }
    let id = importing.id();
    let path = inner.state.files.dir().join(format!(".tmp-import-{id:x}"));
    let failed = |e: std::io::Error| StateError::Storage(format!("the snapshot: {e}"));
    let spooled = Temporary(path.clone());
    // Created on this thread: on another thread, the file could be created after a dropped future has
    // removed it.
    let mut to = tokio::fs::File::from_std(File::create(&path).map_err(failed)?);
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
    // All of it is checked before anything is proposed.
    let checked = blocking({
        let (path, check_value) = (path.clone(), inner.options.check_value);
        move || check(&path, newest, check_value)
    })
    .await?;
    let begun = std::time::Instant::now();
    let step = |step| propose(inner, id, step);
    let mut begun_import = Begun::new(inner, id);
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
        raises_versions: true,
    };
    let commit_ts = step(ImportStep::Finish(finish)).await?;
    begun_import.is_finished = true;
    tracing::info!(
        commit_ts,
        snapshot_commit_ts = checked.header.commit_ts,
        keys = checked.keys,
        bytes = checked.bytes,
        duration = ?begun.elapsed(),
        "a snapshot of the state store was imported"
    );
    // Snapshots from before the import lead to another state. The first one after it is due now; the import
    // waits for it, so that the imported state can be proved and rebuilt. A failure is logged and in the
    // status.
    if inner.state.options.snapshot_interval > 0 {
        let written = inner.state.ask_snapshot(commit_ts);
        let _ = tokio::time::timeout(SNAPSHOT_TIMEOUT, written).await;
    }
    Ok(ImportSummary {
        imported_commit_ts: checked.header.commit_ts,
        commit_ts,
        keys: checked.keys,
        bytes: checked.bytes,
    })
}

/// An import that has begun. It is aborted if this is dropped before its end.
struct Begun {
    inner: Arc<Inner>,
    id: u64,
    is_finished: bool,
}

impl Begun {
    fn new(inner: &Arc<Inner>, id: u64) -> Begun {
        Begun {
            inner: inner.clone(),
            id,
            is_finished: false,
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if !self.is_finished {
            let (inner, id) = (self.inner.clone(), self.id);
            runtime.spawn(async move {
                if let Err(error) = abort(&inner, id).await {
                    not_aborted(&error);
                }
            });
        }
    }
}

/// Removes what an import has written, if it is still under way.
async fn abort(inner: &Inner, id: u64) -> Result<(), StateError> {
    match propose(inner, id, ImportStep::Abort(ImportAbort {})).await {
        // Another import has begun since, and has removed it; or another node leads, and removes it.
        Ok(_) | Err(StateError::Unavailable(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn not_aborted(error: &StateError) {
    tracing::warn!(%error, "what an ended import into the state store wrote is still there: the node that leads the store removes it later");
}

/// Aborts the import that is under way if no process makes it: the node that made it has ended, or has lost the
/// leadership. Only on the node that leads the store. `known` is the import that was found the last time; returns the
/// one that is found now, if it is there still.
pub(super) async fn abort_abandoned(inner: &Inner, known: Option<u64>) -> Option<u64> {
    if !inner.leads(inner.state.partition.0) {
        return None;
    }
    let id = inner.state.reader.meta().importing?.id;
    if inner.state.imports.contains(id) {
        return None;
    }
    let is_new = known != Some(id);
    if is_new {
        tracing::info!("an import into the state store did not end: what it wrote is removed");
    }
    if let Err(error) = abort(inner, id).await
        && is_new
    {
        not_aborted(&error);
    }
    Some(id)
}

/// Checks all of a snapshot; `newest` is the newest commit of this store.
fn check(
    path: &std::path::Path,
    newest: u64,
    check_value: ValueCheck,
) -> Result<Written, StateError> {
    let mut last: Option<(StateKey, String)> = None;
    let (mut rises, mut text_rises) = (true, true);
    let mut latest: (u64, String) = Default::default();
    let written = read(path, &mut |one| {
        let ReadEntry {
            key,
            entry,
            is_unchecked,
        } = one;
        let text = document::escaped(&key);
        check_entry(&entry).map_err(|why| format!("{text:?}: {why}"))?;
        if !is_unchecked {
            check_value_of(&entry, check_value)
                .map_err(|why| format!("{text:?}: {why}; {UNCHECKED}"))?;
        }
        if let Some((last_key, last_text)) = &last {
            rises &= *last_key < key;
            text_rises &= *last_text < text;
        }
        if entry.commit_ts > latest.0 && !is_unchecked {
            latest = (entry.commit_ts, text.clone());
        }
        last = Some((key, text));
        Ok(())
    })?;
    let commit_ts = written.header.commit_ts;
    check_number("commit_ts", commit_ts).map_err(invalid)?;
    if latest.0 > commit_ts {
        let (of_entry, key) = latest;
        return Err(invalid(format!(
            "it is of commit_ts {commit_ts}, and its key {key:?} of commit_ts {of_entry}; {UNCHECKED}"
        )));
    }
    if newest > 0 && newest.max(commit_ts).saturating_add(GAP) > MAX_NUMBER {
        return Err(StateError::Exhausted(format!(
            "the state would be as of a commit above {MAX_NUMBER}, and there are none: import it into an \
             empty store"
        )));
    }
    // Keys that rise, in either order, are distinct. Others are compared by their hashes.
    if !rises && !text_rises {
        let mut seen = HashSet::new();
        read(path, &mut |ReadEntry { key, .. }| {
            let is_new = seen.insert(xxh3_128(document::escaped(&key).as_bytes()));
            match is_new {
                true if seen.len() > MAX_UNSORTED_KEYS => Err(format!(
                    "it has more than {MAX_UNSORTED_KEYS} keys in no order: sort them, with `jq -S`"
                )),
                true => Ok(()),
                false => Err(format!(
                    "the key {:?} occurs twice",
                    document::escaped(&key)
                )),
            }
        })?;
    }
    Ok(written)
}

fn invalid(why: String) -> StateError {
    StateError::Invalid(format!("not a snapshot of a state: {why}"))
}

fn read(
    path: &std::path::Path,
    take: &mut dyn FnMut(ReadEntry) -> Result<(), String>,
) -> Result<Written, StateError> {
    let file = File::open(path).map_err(|e| StateError::Storage(e.to_string()))?;
    files::read(file, take).map_err(|e| match e {
        FileError::Damaged(why) => invalid(why),
        FileError::Unreadable(e) => StateError::Storage(format!("the snapshot: {e}")),
    })
}

/// The remedy for an entry that is refused although a store has it.
const UNCHECKED: &str =
    "if a store has it so, `\"unchecked\": true` beside it takes it over as it is";

/// Whether an import of a snapshot as of `commit_ts` would refuse a stored entry that is not marked as
/// unchecked: earlier versions accepted more.
pub(super) fn is_unchecked(entry: &StateEntry, commit_ts: u64, check_value: ValueCheck) -> bool {
    entry.commit_ts > commit_ts || check_value_of(entry, check_value).is_err()
}

fn check_value_of(entry: &StateEntry, check_value: ValueCheck) -> Result<(), String> {
    entry.value.as_deref().map_or(Ok(()), check_value.0)
}

fn check_entry(entry: &StateEntry) -> Result<(), String> {
    let bytes = entry.value.as_ref().map_or(0, Bytes::len);
    if bytes > ENTRY {
        return Err(format!(
            "a value has {bytes} bytes; at most {ENTRY} are allowed"
        ));
    }
    check_number("version", entry.version)?;
    check_number("commit_ts", entry.commit_ts)
}

fn check_number(what: &str, number: u64) -> Result<(), String> {
    match (1..=MAX_NUMBER).contains(&number) {
        true => Ok(()),
        false => Err(format!(
            "a {what} of {number}: 1 to {MAX_NUMBER} are possible"
        )),
    }
}

/// Reads the entries of a snapshot, and sends as many at a time as fit a command.
fn read_commands(
    path: &std::path::Path,
    send: &mpsc::Sender<Vec<ImportedEntry>>,
) -> Result<Written, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mut ready = Vec::new();
    let mut bytes = 0;
    let gone = || "the import has ended".to_owned();
    let written = files::read(file.take(u64::MAX), |ReadEntry { key, entry, .. }| {
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
        at_ms: inner.stamp_ms(),
    });
    let outcome =
        inner
            .execute(inner.state_group(), command)
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

#[cfg(test)]
mod abandoned;
#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use esker_partition::state::read::{StateDigest, StateDigester};
    use proptest::prelude::*;

    use super::*;
    use crate::state::document::Header;

    const ODD: &str = "odd";

    /// Refuses values that no client could read.
    fn check_value() -> ValueCheck {
        ValueCheck(|value| match std::str::from_utf8(value) {
            Ok(text) if text.contains(ODD) => Err("it is odd".to_owned()),
            _ => Ok(()),
        })
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![
            1u64..5,
            (1u64 << 53) - 2..(1 << 53) + 3,
            MAX_NUMBER - 2..=MAX_NUMBER
        ]
    }

    fn entry() -> impl Strategy<Value = StateEntry> {
        const VALUES: &[&str] = &[
            "{}",
            "{\"a\":[1,{\"b\":null}]}",
            "{ \"spaced\" :\n1 }",
            "{\"n\":\"odd\"}",
        ];
        let value = prop::option::of(prop::sample::select(VALUES));
        (number(), number(), 0u64..3, value).prop_map(|(version, commit_ts, forks, value)| {
            StateEntry {
                version,
                commit_ts,
                forks,
                value: value.map(|value| Bytes::from_static(value.as_bytes())),
                first: version == 1,
            }
        })
    }

    fn digest<'a>(
        entries: impl IntoIterator<Item = (&'a StateKey, &'a StateEntry)>,
    ) -> StateDigest {
        let mut digester = StateDigester::default();
        for (key, entry) in entries {
            let value = entry.value.as_deref();
            digester.add(key, entry.version, entry.commit_ts, value);
        }
        digester.finish()
    }

    /// The snapshot that a store at `commit_ts` writes.
    fn exported(commit_ts: u64, entries: &BTreeMap<StateKey, StateEntry>) -> Vec<u8> {
        let header = Header {
            created_at: 1,
            commit_ts,
            lineage: "00ff".to_owned(),
            lsn: 1,
            forks: 0,
            commit_forks: None,
            log_tail: None,
        };
        let mut text = Vec::new();
        document::write_header(&mut text, &header).unwrap();
        for (i, (key, entry)) in entries.iter().enumerate() {
            let is_unchecked = is_unchecked(entry, commit_ts, check_value());
            document::write_entry(&mut text, i == 0, key, entry, is_unchecked).unwrap();
        }
        document::write_end(&mut text).unwrap();
        text
    }

    proptest! {
        // Includes what earlier versions accepted: odd values, and entries above the store's commit.
        #[test]
        fn whatever_a_store_has_is_exported_so_that_another_one_takes_it_over_as_it_is(
            commit_ts in number(),
            entries in prop::collection::btree_map(
                ("[\0:%a\"é]{0,3}", "[:%a]{0,3}", "[:%a]{0,3}")
                    .prop_map(|(n, a, k)| StateKey::new(n, a, k)),
                entry(),
                0..8,
            ),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("export.json");
            std::fs::write(&path, exported(commit_ts, &entries)).unwrap();
            let checked = check(&path, 0, check_value()).unwrap();
            prop_assert_eq!(checked.header.commit_ts, commit_ts);
            let (send, mut commands) = mpsc::channel(16);
            prop_assert_eq!(read_commands(&path, &send).unwrap(), checked);
            drop(send);
            let mut taken = BTreeMap::new();
            while let Some(entries) = commands.blocking_recv() {
                for one in entries {
                    let entry = StateEntry {
                        version: one.version,
                        commit_ts: one.commit_ts,
                        forks: one.forks,
                        value: one.value,
                        first: one.version == 1,
                    };
                    taken.insert(StateKey::new(one.namespace, one.agent_id, one.key), entry);
                }
            }
            prop_assert_eq!(digest(&taken), digest(&entries));
            prop_assert_eq!(taken, entries);
        }
    }

    #[test]
    fn what_others_write_is_checked_and_the_way_around_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theirs.json");
        let check_text = |entry: &str| {
            let text = format!(
                r#"{{"version":1,"created_at":1,"commit_ts":"5","state":{{"n:a:k":{entry}}}}}"#
            );
            std::fs::write(&path, text).unwrap();
            check(&path, 0, check_value()).map_err(|e| e.to_string())
        };
        for (entry, why) in [
            (r#"{"value":{"n":"odd"},"version":1,"commit_ts":1"#, "odd"),
            (r#"{"value":{},"version":1,"commit_ts":6"#, "commit_ts 6"),
        ] {
            let refused = check_text(&format!("{entry}}}")).unwrap_err();
            assert!(
                refused.contains(why) && refused.contains("n:a:k"),
                "{refused}"
            );
            assert!(refused.contains(r#""unchecked": true"#), "{refused}");
            check_text(&format!(r#"{entry},"unchecked":true}}"#)).unwrap();
        }
        // Values that no store can have are refused all the same.
        let beyond = format!(
            r#"{{"value":{{}},"version":"{}","commit_ts":1,"unchecked":true}}"#,
            MAX_NUMBER + 1
        );
        assert!(check_text(&beyond).unwrap_err().contains("a version of"));
        for digits in ["", "+1", "-1", "1.5", "0x1"] {
            let entry = format!(r#"{{"value":{{}},"version":"{digits}","commit_ts":1}}"#);
            assert!(check_text(&entry).is_err(), "{digits:?}");
        }
    }

    #[test]
    fn an_import_that_would_leave_no_numbers_is_refused_before_it_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("export.json");
        std::fs::write(&path, exported(7, &BTreeMap::new())).unwrap();
        assert!(check(&path, MAX_NUMBER - GAP, check_value()).is_ok());
        let refused = check(&path, MAX_NUMBER - GAP + 1, check_value()).unwrap_err();
        assert!(matches!(refused, StateError::Exhausted(_)), "{refused}");
    }
}
