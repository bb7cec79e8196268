//! Which JSON snapshots on this disk count: those that are valid and of this store's history.
//!
//! A name proves nothing: a file may have been copied from another store, or be damaged. Each file is read
//! to its end once, and again only when it has changed. A file that does not count is named in a warning and
//! in the status, and is neither removed nor overwritten.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use esker_partition::Lineage;

use super::error::FileError;
use super::files::{Files, name_of};
use super::lineage::is_of;

/// Size, inode, modification and change time: they show whether a file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(u64, u64, (i64, i64), (i64, i64));

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp(
            metadata.len(),
            metadata.ino(),
            (metadata.mtime(), metadata.mtime_nsec()),
            (metadata.ctime(), metadata.ctime_nsec()),
        )
    }
}

/// The stamps of a snapshot and of its checksum, if it has one.
type Stamps = (Stamp, Option<Stamp>);

/// The files that were read.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// By commit: its stamps, and why it does not count, unless it does.
    read: BTreeMap<u64, (Stamps, Option<String>)>,
}

/// The snapshots that were found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Commits of the snapshots that count, newest first.
    pub own: Vec<u64>,
    /// Commits of those that do not count, each with the reason, newest first.
    pub ignored: Vec<(u64, String)>,
    /// Whether one of them could not be read now: it may count.
    pub unreadable: bool,
}

impl Inventory {
    /// Reads the directory. `newest` returns the newest commit of the store; it is called once the directory
    /// is listed, so that no listed snapshot of this store is newer.
    ///
    /// # Errors
    ///
    /// The directory cannot be listed.
    pub fn inspect(
        &mut self,
        files: &Files,
        lineage: &Lineage,
        newest: impl FnOnce() -> u64,
    ) -> io::Result<Found> {
        let mut found = Found::default();
        let listed = files.list()?;
        let newest = newest();
        self.read
            .retain(|known, _| listed.iter().any(|one| one.commit_ts == *known));
        for one in listed {
            let commit_ts = one.commit_ts;
            let why = match self.judge(files, lineage, commit_ts) {
                Ok(Some(why)) => Some(why),
                Ok(None) if commit_ts > newest => Some(format!(
                    "the newest commit of this store is {newest}: it is of another copy of it"
                )),
                Ok(None) => None,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    found.unreadable = true;
                    Some(format!("it cannot be read now: {error}"))
                }
            };
            match why {
                None => found.own.push(commit_ts),
                Some(why) => found.ignored.push((commit_ts, why)),
            }
        }
        Ok(found)
    }

    /// Notes a snapshot that this node has just written: it need not be read.
    ///
    /// # Errors
    ///
    /// Its metadata cannot be read now; the file is read by the next inspection.
    pub fn written(&mut self, files: &Files, commit_ts: u64) -> io::Result<()> {
        let stamps = stamps(files, commit_ts)?;
        self.read.insert(commit_ts, (stamps, None));
        Ok(())
    }

    /// Why a file does not count, or `None` if it counts.
    fn judge(
        &mut self,
        files: &Files,
        lineage: &Lineage,
        commit_ts: u64,
    ) -> io::Result<Option<String>> {
        let stamps = stamps(files, commit_ts)?;
        if let Some((known, why)) = self.read.get(&commit_ts)
            && *known == stamps
        {
            return Ok(why.clone());
        }
        let why = match files.check(commit_ts) {
            Ok((written, has_sum)) => {
                if !has_sum {
                    tracing::warn!(
                        snapshot = name_of(commit_ts),
                        "a snapshot of the state store has no checksum; it was read strictly, entry by entry"
                    );
                }
                is_of(lineage, &written.header).err()
            }
            Err(FileError::Unreadable(error)) => return Err(error),
            Err(FileError::Damaged(why)) => Some(why),
        };
        if let Some(why) = &why {
            tracing::warn!(
                snapshot = name_of(commit_ts),
                why,
                "a file in snapshots/ is not a snapshot of this state store and does not count; it stays where \
                 it is: move it away, or import it with `esker state import`"
            );
        }
        self.read.insert(commit_ts, (stamps, why.clone()));
        Ok(why)
    }
}

fn stamps(files: &Files, commit_ts: u64) -> io::Result<Stamps> {
    let snapshot = Stamp::of(&std::fs::metadata(files.path(commit_ts))?);
    let sum = match std::fs::metadata(files.sum_path(commit_ts)) {
        Ok(metadata) => Some(Stamp::of(&metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok((snapshot, sum))
}

#[cfg(test)]
mod tests {
    use esker_partition::{Lineage, PartitionId};

    use super::*;
    use crate::state::document::Header;

    fn write(files: &Files, commit_ts: u64, lineage: &str) {
        let header = Header {
            created_at: 1,
            commit_ts,
            lineage: lineage.to_owned(),
            lsn: 1,
            forks: 0,
            commit_forks: None,
            log_tail: None,
        };
        files
            .write::<io::Error>(header, |_| Ok(()))
            .expect("it is written");
    }

    #[test]
    fn only_valid_snapshots_of_this_history_count_whatever_a_file_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("snapshots")).unwrap();
        let ours = Lineage::first("ours", 1, PartitionId(1));
        let theirs = Lineage::first("theirs", 1, PartitionId(1));
        for commit_ts in [3, 4, 90] {
            write(&files, commit_ts, &ours.id().to_string());
        }
        write(&files, 5, &theirs.id().to_string());
        write(&files, 6, "");
        std::fs::write(files.path(5000), "").unwrap();
        let mut inventory = Inventory::default();
        let found = inventory.inspect(&files, &ours, || 10).unwrap();
        assert_eq!(found.own, [4, 3]);
        let ignored: Vec<u64> = found.ignored.iter().map(|(ts, _)| *ts).collect();
        assert_eq!(ignored, [5000, 90, 6, 5]);
        assert!(!found.unreadable);
        // Unchanged files are not read again; changed files are.
        assert_eq!(inventory.inspect(&files, &ours, || 10).unwrap(), found);
        std::fs::write(files.path(4), "{}").unwrap();
        assert_eq!(inventory.inspect(&files, &ours, || 10).unwrap().own, [3]);
    }
}
