//! Where the log is, so that an empty mount point is not taken for a lost log.
//!
//! ```text
//! log.json          in the data directory: the id of the log, and whether a file system is mounted at `log/`
//! log/esker.json    in the log's directory: the same id
//! ```
//!
//! Both are written at each start that has opened the log, if they are not as they should be: the marker first, and
//! what it is compared with after it. A directory of an earlier build has neither, and is opened as before.
//!
//! What `log/` without a file of a log means:
//!
//! | `log/` | when it was last open | means |
//! |---|---|---|
//! | is not there, not even the directory | any | lost: a mount point does not vanish by itself |
//! | has the marker of this log | any | lost: it is the right place |
//! | nothing is mounted there | a disk was mounted there | not mounted yet |
//! | a disk is mounted there | nothing was mounted there | what is below the mount cannot be read |
//! | as it was | as it is | lost; or the disk that was mounted there was replaced by an empty one |
//!
//! Whether a file system is mounted is compared, and not which one: the numbers of devices change with every start of
//! a machine. A link counts as what it leads to.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files::{is_there, or_absent, remove, write_durably};
use crate::error::StartError;

/// What is known of the log, in the data directory.
const NOTE: &str = "log.json";
/// The marker in the log's directory.
const MARKER: &str = "esker.json";

/// What is in [`NOTE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The id of the log.
    id: String,
    /// Whether a file system was mounted at the log's directory.
    is_mounted: bool,
}

/// What is in [`MARKER`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    /// The id of the log.
    log_id: String,
}

/// Whether a file system is mounted at a directory, or at what a link leads to.
pub(super) fn is_mounted(dir: &Path) -> io::Result<bool> {
    if let Some(said) = asked(dir)? {
        return Ok(said);
    }
    let (own, above) = (fs::metadata(dir)?, fs::metadata(dir.join(".."))?);
    Ok(own.dev() != above.dev())
}

/// What the system says; `None` if it cannot tell.
#[cfg(target_os = "linux")]
fn asked(dir: &Path) -> io::Result<Option<bool>> {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    match statx(CWD, dir, AtFlags::empty(), StatxFlags::empty()) {
        Ok(found) => {
            let is_said = (found.stx_attributes_mask).contains(StatxAttributes::MOUNT_ROOT);
            Ok(is_said.then(|| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)))
        }
        Err(rustix::io::Errno::NOSYS) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// What the system says; `None` if it cannot tell.
#[cfg(not(target_os = "linux"))]
fn asked(_: &Path) -> io::Result<Option<bool>> {
    Ok(None)
}

/// Whether a directory has any file of a log: that of a node in use always has one.
///
/// # Errors
///
/// It cannot be read now, or is a symlink whose target is missing.
pub(super) fn has_log(dir: &Path) -> Result<bool, StartError> {
    let failed = |e| StartError::unreadable(format!("the log in {}", dir.display()), &e);
    let Some(files) = or_absent(fs::read_dir(dir), dir)? else {
        return Ok(false);
    };
    for file in files {
        let path = file.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "raftlog") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the log of a directory that was in use is lost.
///
/// # Errors
///
/// It is not known: the disk that it is on is not mounted, or another one is. Or it cannot be read now.
pub(crate) fn is_log_lost(data_dir: &Path) -> Result<bool, StartError> {
    judge(data_dir, is_mounted)
}

fn judge(
    data_dir: &Path,
    is_mounted: impl Fn(&Path) -> io::Result<bool>,
) -> Result<bool, StartError> {
    let log = data_dir.join("log");
    let note: Option<Note> = read(&data_dir.join(NOTE))?;
    let has_log = has_log(&log)?;
    let marker: Option<Marker> = match read(&log.join(MARKER)) {
        // It only tells a wrong log from the right one, and a log is there.
        Err(error) if has_log => {
            tracing::warn!(%error, "the marker of the log is not used: it cannot be read");
            None
        }
        read => read?,
    };
    let is_marked = |note: &Note| marker.as_ref().map(|marker| marker.log_id == note.id);
    let elsewhere = |what, remedy| {
        Err(StartError::LogNotMounted {
            log: log.clone(),
            what,
            remedy,
        })
    };
    if has_log {
        return match note.as_ref().and_then(is_marked) {
            Some(false) => elsewhere(
                "it has another log than this node's: another disk is mounted there",
                "Mount the disk with this node's log. If the log there is the right one, remove log.json",
            ),
            _ => Ok(false),
        };
    }
    let Some(note) = note else {
        return Ok(true);
    };
    if is_marked(&note) == Some(true) || !is_there(&log)? {
        return Ok(true);
    }
    let is_mounted = is_mounted(&log);
    let is_mounted =
        is_mounted.map_err(|e| StartError::unreadable(log.display().to_string(), &e))?;
    match (note.is_mounted, is_mounted) {
        (true, false) => elsewhere(
            "it is empty, and the disk that was mounted there is not",
            "Mount it. If that disk is lost for good, mount a new one there, or remove the empty directory (`rmdir`): then the log counts as lost",
        ),
        (false, true) => elsewhere(
            "it is empty, and a disk is mounted over the directory that had the log",
            "Unmount the disk, and move the log onto it before it is mounted there. If the log is lost for good, remove log.json from the data directory: then it counts as lost",
        ),
        _ => Ok(true),
    }
}

/// Marks the log of a data directory, which is open, and notes where it is. One that cannot be marked is used as before:
/// only the next start knows less. Blocking.
pub(crate) fn mark_log(data_dir: &Path) {
    if let Err(error) = mark(data_dir, is_mounted) {
        tracing::warn!(
            %error,
            "the directory of the log is not marked: if its disk is not mounted at a later start, the log looks lost"
        );
    }
}

fn mark(data_dir: &Path, is_mounted: impl Fn(&Path) -> io::Result<bool>) -> Result<(), StartError> {
    let log = data_dir.join("log");
    let (note_path, marker_path) = (data_dir.join(NOTE), log.join(MARKER));
    let note: Option<Note> = read(&note_path)?;
    let marker: Option<Marker> = read(&marker_path)?;
    let marked = marker.as_ref().map(|marker| marker.log_id.clone());
    let id = marked.or_else(|| note.as_ref().map(|note| note.id.clone()));
    let id = id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    if marker.is_none() {
        write(&marker_path, &Marker { log_id: id.clone() })?;
    }
    let is_mounted = is_mounted(&log);
    let now = Note {
        id,
        is_mounted: is_mounted
            .map_err(|e| StartError::unreadable(log.display().to_string(), &e))?,
    };
    match note.as_ref() == Some(&now) {
        true => Ok(()),
        false => write(&note_path, &now),
    }
}

/// Forgets where the log of the directory was, because another one begins. Durable when this returns. Blocking.
pub(super) fn forget(data_dir: &Path) -> Result<(), StartError> {
    remove(&data_dir.join(NOTE))
}

/// What a file has; `None` if there is none, or it is not what was written: then nothing is known, as of a directory
/// of an earlier build.
fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>, StartError> {
    let Some(text) = or_absent(fs::read(path), path)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_slice(&text);
    Ok(parsed
        .inspect_err(|error| {
            tracing::warn!(path = %path.display(), %error, "a file about the place of the log is not used");
        })
        .ok())
}

fn write<T: Serialize>(path: &Path, what: &T) -> Result<(), StartError> {
    let text = serde_json::to_vec(what).map_err(|e| StartError::BadIdentity {
        path: path.to_owned(),
        why: e.to_string(),
    })?;
    write_durably(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data directory whose log was open, with a disk at `log/` or without.
    fn used(was_mounted: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        fs::write(dir.path().join("log/1.raftlog"), "x").unwrap();
        mark(dir.path(), |_| Ok(was_mounted)).unwrap();
        dir
    }

    fn lose(dir: &Path) {
        fs::remove_dir_all(dir.join("log")).unwrap();
        fs::create_dir(dir.join("log")).unwrap();
    }

    fn judged(dir: &Path, mounted: bool) -> Result<bool, &'static str> {
        judge(dir, |_| Ok(mounted)).map_err(|e| e.code())
    }

    #[test]
    fn an_empty_mount_point_is_not_a_lost_log() {
        let dir = used(true);
        assert_eq!(judged(dir.path(), true), Ok(false));
        lose(dir.path());
        assert_eq!(judged(dir.path(), false), Err("log_not_mounted"));
        // The disk was replaced by an empty one, or the operator has removed the mount point.
        assert_eq!(judged(dir.path(), true), Ok(true));
        fs::remove_dir(dir.path().join("log")).unwrap();
        assert_eq!(judged(dir.path(), false), Ok(true));
    }

    #[test]
    fn a_log_on_the_disk_of_the_data_directory_that_is_empty_is_lost() {
        let dir = used(false);
        lose(dir.path());
        assert_eq!(judged(dir.path(), false), Ok(true));
        // What is below a mount cannot be seen.
        assert_eq!(judged(dir.path(), true), Err("log_not_mounted"));
        fs::remove_dir(dir.path().join("log")).unwrap();
        assert_eq!(judged(dir.path(), false), Ok(true));
    }

    #[test]
    fn a_directory_with_the_marker_and_without_a_log_has_lost_it_wherever_it_is() {
        for was_mounted in [false, true] {
            let dir = used(was_mounted);
            fs::remove_file(dir.path().join("log/1.raftlog")).unwrap();
            for mounted in [false, true] {
                assert_eq!(judged(dir.path(), mounted), Ok(true));
            }
        }
    }

    #[test]
    fn a_directory_of_an_earlier_build_is_judged_as_before_and_gets_its_marker() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(judged(dir.path(), false), Ok(true));
        fs::create_dir(dir.path().join("log")).unwrap();
        for mounted in [false, true] {
            assert_eq!(judged(dir.path(), mounted), Ok(true));
        }
        fs::write(dir.path().join("log/1.raftlog"), "x").unwrap();
        assert_eq!(judged(dir.path(), false), Ok(false));
        mark(dir.path(), |_| Ok(true)).unwrap();
        lose(dir.path());
        assert_eq!(judged(dir.path(), false), Err("log_not_mounted"));
    }

    #[test]
    fn another_log_than_the_nodes_is_refused_and_counts_once_its_operator_says_so() {
        let (dir, other) = (used(true), used(true));
        let marker = other.path().join("log").join(MARKER);
        fs::copy(marker, dir.path().join("log").join(MARKER)).unwrap();
        assert_eq!(judged(dir.path(), true), Err("log_not_mounted"));
        fs::remove_file(dir.path().join(NOTE)).unwrap();
        assert_eq!(judged(dir.path(), true), Ok(false));
        mark(dir.path(), |_| Ok(true)).unwrap();
        assert_eq!(judged(dir.path(), true), Ok(false));
    }

    #[test]
    fn a_crash_between_marker_and_note_leaves_one_id_and_a_log_that_moves_is_followed() {
        let dir = used(false);
        let note = || fs::read_to_string(dir.path().join(NOTE)).unwrap();
        let before = note();
        fs::remove_file(dir.path().join(NOTE)).unwrap();
        mark(dir.path(), |_| Ok(false)).unwrap();
        assert_eq!(note(), before);
        // A copy of the log's files alone is still this log.
        fs::remove_file(dir.path().join("log").join(MARKER)).unwrap();
        assert_eq!(judged(dir.path(), false), Ok(false));
        mark(dir.path(), |_| Ok(false)).unwrap();
        assert_eq!(note(), before);
        // It was moved onto a disk of its own.
        mark(dir.path(), |_| Ok(true)).unwrap();
        assert_eq!(note(), before.replace("false", "true"));
        lose(dir.path());
        assert_eq!(judged(dir.path(), false), Err("log_not_mounted"));
    }

    #[test]
    fn what_cannot_be_read_now_is_neither_lost_nor_there() {
        let dir = used(true);
        lose(dir.path());
        let error = judge(dir.path(), |_| Err(io::Error::other("the disk"))).unwrap_err();
        assert_eq!(error.code(), "unreadable", "{error}");
        assert!(error.is_unreadable());
    }

    #[test]
    fn a_log_whose_marker_cannot_be_read_is_there_and_what_has_no_log_is_not_judged_without_it() {
        let dir = used(true);
        let marker = dir.path().join("log").join(MARKER);
        fs::remove_file(&marker).unwrap();
        // A directory cannot be read as a file.
        fs::create_dir(&marker).unwrap();
        assert_eq!(judged(dir.path(), true), Ok(false));
        fs::remove_file(dir.path().join("log/1.raftlog")).unwrap();
        assert_eq!(judged(dir.path(), true), Err("unreadable"));
    }

    #[test]
    fn what_is_mounted_over_a_lost_log_counts_once_the_note_is_removed() {
        let dir = used(false);
        lose(dir.path());
        let error = judge(dir.path(), |_| Ok(true)).unwrap_err();
        assert!(error.to_string().contains("remove log.json"), "{error}");
        fs::remove_file(dir.path().join(NOTE)).unwrap();
        assert_eq!(judged(dir.path(), true), Ok(true));
    }

    #[test]
    fn the_root_of_a_mount_is_recognised() {
        assert!(is_mounted(Path::new("/proc")).unwrap());
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_mounted(dir.path()).unwrap());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        assert!(is_mounted(&link).unwrap());
    }
}
