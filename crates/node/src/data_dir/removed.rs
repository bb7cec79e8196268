//! `removed.json`: that the cluster has removed this node, and the deletion of its replicas.
//!
//! ```text
//! noted      the cluster has told it; the replicas are kept
//! may_go     all partitions have everything without them
//! deleting   some of it may be gone
//! deleted    only the identity and what is no replica is left
//! ```
//!
//! The file is the tombstone: a directory that has it from `deleting` on is never started again. It is written before
//! the first file is deleted. After a crash in between, the next start deletes the rest, and nothing opens a part of a
//! replica. A start that finds `may_go` asks the others again: what was true of them then may have ended.
//!
//! What is deleted are the log, the database, the local snapshots, and what was sent and fetched, by the names that the
//! program makes ([`own_names`](super::own_names)). JSON snapshots, a repository in the data directory and what a
//! recovery has put aside stay: they are not replicas, and may be the only copy of something.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files::{io, or_absent, remove, sync_dir, write_durably};
use super::identity::now_rfc3339;
use super::own_names::{IsOwn, REPLICAS, inner_of};
use super::{DataDir, LockedDir};
use crate::error::StartError;

/// The file.
const NAME: &str = "removed.json";

/// How far the deletion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// The replicas are kept.
    Noted,
    /// All partitions had everything without them when they were asked.
    MayGo,
    /// Some of it may be gone.
    Deleting,
    /// It is done.
    Deleted,
}

/// Why the replica of a partition may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Without {
    /// The partition.
    pub partition: u64,
    /// As of this LSN its leader had applied that the node is no member.
    pub as_of: u64,
    /// The nodes that vote, and have acknowledged all that this replica had.
    pub kept_by: Vec<u64>,
}

/// That the cluster has removed a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removed {
    /// The number of the node.
    pub node: u64,
    /// Its cluster.
    pub cluster_id: String,
    /// Its name in the catalog.
    pub name: String,
    /// When it was removed, in RFC 3339; `None` if that was not recorded.
    pub removed_at: Option<String>,
    /// The node that has taken its place and its name.
    pub replaced_by: Option<u64>,
    /// When this node has noted it, in RFC 3339.
    pub noted_at: String,
    /// How far the deletion is.
    pub stage: Stage,
    /// By partition; empty before [`Stage::MayGo`].
    #[serde(default)]
    pub without: Vec<Without>,
}

impl Removed {
    /// `node n3 (3) was removed from the cluster at …`.
    pub fn describe(&self) -> String {
        let at = self.removed_at.as_ref();
        let at = at.map_or_else(String::new, |at| format!(" at {at}"));
        let by = self.replaced_by.map_or_else(String::new, |by| {
            format!(", and node {by} has taken its place and its name")
        });
        format!(
            "node {} ({}) was removed from the cluster{at}{by}: its number is never used again",
            self.name, self.node
        )
    }

    /// Writes it down; durable when this returns. Blocking.
    fn write(&self, dir: &Path) -> Result<(), StartError> {
        let path = dir.join(NAME);
        let text = serde_json::to_vec_pretty(self).map_err(|e| StartError::BadIdentity {
            path: path.clone(),
            why: e.to_string(),
        })?;
        write_durably(&path, &text)
    }

    /// Deletes the replicas, or the rest of them. Blocking.
    ///
    /// # Errors
    ///
    /// Something cannot be deleted now: the rest is deleted at the next attempt.
    pub fn delete_replicas(&mut self, dir: &Path) -> Result<(), StartError> {
        if self.stage == Stage::Deleted {
            return Ok(());
        }
        self.stage = Stage::Deleting;
        self.write(dir)?;
        for (name, is_own) in REPLICAS {
            delete(&dir.join(name), is_own, inner_of(name))?;
        }
        sync_dir(dir)?;
        self.stage = Stage::Deleted;
        self.write(dir)
    }
}

/// Deletes what the program has made in a directory, or in the one that a link leads to, and the directory if nothing
/// else is in it and no disk is mounted there. `inner` is which names are its own in the directories in it, if not all.
fn delete(dir: &Path, is_own: IsOwn, inner: Option<IsOwn>) -> Result<(), StartError> {
    let Some(entries) = or_absent(fs::read_dir(dir), dir)? else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry.map_err(io("reading", dir))?;
        let path = entry.path();
        if !entry.file_name().to_str().is_some_and(is_own) {
            tracing::warn!(path = %path.display(), "this is no part of a replica, and is not deleted");
            continue;
        }
        let kind = entry.file_type().map_err(io("looking at", &path))?;
        let deleted = match (kind.is_dir(), inner) {
            (true, Some(inner)) => {
                delete(&path, inner, None)?;
                continue;
            }
            (true, None) => fs::remove_dir_all(&path),
            (false, _) => fs::remove_file(&path),
        };
        match deleted {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(io("deleting", &path)(e)),
            _ => {}
        }
    }
    match fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        Err(e) => match e.kind() {
            // A link, a disk that is mounted there, or something that is not the program's.
            ErrorKind::NotFound
            | ErrorKind::NotADirectory
            | ErrorKind::ResourceBusy
            | ErrorKind::DirectoryNotEmpty => sync_dir(dir),
            _ => Err(io("deleting", dir)(e)),
        },
    }
}

/// What the directory has of a node and its cluster; `None` if there is nothing, or it is about another number.
fn read(dir: &Path, node: u64, cluster_id: &str) -> Result<Option<Removed>, StartError> {
    let path = dir.join(NAME);
    let Some(text) = or_absent(fs::read(&path), &path)? else {
        return Ok(None);
    };
    let removed: Removed = match serde_json::from_slice(&text) {
        Ok(removed) => removed,
        Err(e) => {
            return Err(StartError::BadIdentity {
                path,
                why: format!(
                    "{e}. It says that the cluster has removed this node, and whether its replicas may be incomplete"
                ),
            });
        }
    };
    let is_mine = removed.node == node && removed.cluster_id == cluster_id;
    Ok(Some(removed).filter(|_| is_mine))
}

impl LockedDir {
    /// That the cluster has removed the node of this directory, if an earlier start was told.
    ///
    /// # Errors
    ///
    /// It cannot be read now, or is not what was written.
    pub(crate) fn removed(&self) -> Result<Option<Removed>, StartError> {
        match &self.found {
            Some((identity, _)) => read(&self.path, identity.node_id, &identity.cluster_id),
            None => Ok(None),
        }
    }
}

impl DataDir {
    /// As [`LockedDir::removed`].
    pub(crate) fn removed(&self) -> Result<Option<Removed>, StartError> {
        read(&self.path, self.identity.node_id, &self.identity.cluster_id)
    }

    /// Notes that the cluster has removed this node; durable when this returns. Blocking.
    pub(crate) fn note_removed(&self, removed: &Removed) -> Result<(), StartError> {
        let _noting = self.noting.lock();
        // Nothing is written below a mount that is gone.
        self.check_in_place(&self.path)?;
        removed.write(&self.path)
    }

    /// Deletes the replicas of a removed node. The caller has closed log and database. Blocking.
    pub(crate) fn delete_replicas(&self, removed: &mut Removed) -> Result<(), StartError> {
        let _noting = self.noting.lock();
        self.check_in_place(&self.path)?;
        removed.delete_replicas(&self.path)
    }

    /// Removes the note: the node goes on without the others, and what they had decided does not count.
    pub(crate) fn forget_removal(&self) -> Result<(), StartError> {
        remove(&self.path.join(NAME))
    }
}

/// That a node of this directory was removed, as of now.
pub(crate) fn noted_now(
    node: u64,
    cluster_id: &str,
    name: &str,
    removed_at: Option<String>,
    replaced_by: Option<u64>,
) -> Removed {
    Removed {
        node,
        cluster_id: cluster_id.to_owned(),
        name: name.to_owned(),
        removed_at,
        replaced_by,
        noted_at: now_rfc3339(),
        stage: Stage::Noted,
        without: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::Identity;

    /// What a node has made.
    const OWN: [&str; 8] = [
        "db/CURRENT",
        "db/000007.sst",
        "checkpoints/1/lsn_00000000000000000007/000007.sst",
        "raft/group-1/snap-1/files/000007.sst",
        "restore/1/lsn_00000000000000000007/000007.sst",
        "scratch/1-23/db/CURRENT",
        "log/0000000000000001.raftlog",
        "log/esker.json",
    ];
    /// What is no replica.
    const OTHERS: [&str; 3] = [
        "snapshots/inner/file",
        "damaged/db-1/inner/file",
        "node.json.old",
    ];

    fn used() -> (tempfile::TempDir, Identity) {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::new("c", 2);
        let text = serde_json::to_vec(&identity).unwrap();
        fs::write(dir.path().join("node.json"), text).unwrap();
        for path in OWN.into_iter().chain(OTHERS) {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        (dir, identity)
    }

    fn removed(identity: &Identity, stage: Stage) -> Removed {
        let at = Some("2026-01-02T03:04:05Z".to_owned());
        Removed {
            stage,
            ..noted_now(identity.node_id, &identity.cluster_id, "n3", at, Some(4))
        }
    }

    fn stage(dir: &Path) -> Option<Stage> {
        let locked = LockedDir::open(dir).unwrap();
        locked.removed().unwrap().map(|removed| removed.stage)
    }

    #[test]
    fn the_replicas_go_and_what_is_no_replica_stays() {
        let (dir, identity) = used();
        let mut note = removed(&identity, Stage::MayGo);
        note.delete_replicas(dir.path()).unwrap();
        for (name, _) in REPLICAS {
            assert!(!dir.path().join(name).exists(), "{name}");
        }
        for name in OTHERS.into_iter().chain(["node.json"]) {
            assert!(dir.path().join(name).exists(), "{name}");
        }
        assert_eq!(stage(dir.path()), Some(Stage::Deleted));
        note.delete_replicas(dir.path()).unwrap();
    }

    #[test]
    fn a_deletion_that_a_crash_has_interrupted_is_completed_from_what_is_written() {
        let (dir, identity) = used();
        // The crash: the first directories are gone, one is gone in part.
        removed(&identity, Stage::Deleting)
            .write(dir.path())
            .unwrap();
        fs::remove_dir_all(dir.path().join("db")).unwrap();
        fs::remove_file(dir.path().join(OWN[2])).unwrap();
        assert_eq!(stage(dir.path()), Some(Stage::Deleting));
        let locked = LockedDir::open(dir.path()).unwrap();
        let mut found = locked.removed().unwrap().unwrap();
        found.delete_replicas(dir.path()).unwrap();
        assert!(!dir.path().join("log").exists());
        assert_eq!(locked.removed().unwrap().unwrap().stage, Stage::Deleted);
    }

    /// As where a disk is mounted at the directory: what a recovery has put aside is below the mount.
    #[test]
    fn what_was_put_aside_below_a_mount_and_what_is_not_the_programs_stays() {
        let (dir, identity) = used();
        let kept = [
            "log/put-aside-1/0000000000000001.raftlog",
            "db/put-aside-1/CURRENT",
            "checkpoints/1/put-aside-1/lsn_00000000000000000003/000003.sst",
            "checkpoints/put-aside-2/1/lsn_00000000000000000003/000003.sst",
            "raft/put-aside-1/group-1/snap-1/000003.sst",
            "log/photos/1.raftlog",
            "log/backup.log",
            "db/notes.txt",
        ];
        for path in kept {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        removed(&identity, Stage::MayGo)
            .delete_replicas(dir.path())
            .unwrap();
        for path in kept {
            assert!(dir.path().join(path).exists(), "{path}");
        }
        for path in OWN {
            assert!(!dir.path().join(path).exists(), "{path}");
        }
        assert_eq!(stage(dir.path()), Some(Stage::Deleted));
    }

    #[test]
    fn what_a_link_leads_to_loses_the_log_and_nothing_else() {
        let (dir, identity) = used();
        let elsewhere = tempfile::tempdir().unwrap();
        let log = elsewhere.path().join("log");
        fs::rename(dir.path().join("log"), &log).unwrap();
        fs::create_dir(log.join("another")).unwrap();
        fs::write(log.join("another/file"), "x").unwrap();
        std::os::unix::fs::symlink(&log, dir.path().join("log")).unwrap();
        removed(&identity, Stage::MayGo)
            .delete_replicas(dir.path())
            .unwrap();
        let left = fs::read_dir(&log).unwrap();
        let left: Vec<_> = left.map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["another"]);
        assert!(log.join("another/file").exists());
    }

    #[test]
    fn a_note_of_another_number_does_not_count_and_one_that_cannot_be_parsed_ends_the_start() {
        let (dir, identity) = used();
        assert_eq!(stage(dir.path()), None);
        removed(&Identity::new("c", 2), Stage::Deleted)
            .write(dir.path())
            .unwrap();
        assert_eq!(stage(dir.path()), None);
        removed(&identity, Stage::Noted).write(dir.path()).unwrap();
        assert_eq!(stage(dir.path()), Some(Stage::Noted));
        fs::write(dir.path().join(NAME), "{").unwrap();
        let error = LockedDir::open(dir.path()).unwrap().removed().unwrap_err();
        assert_eq!(error.code(), "data_dir_bad_identity", "{error}");
    }

    #[test]
    fn the_message_has_who_when_and_by_whom() {
        let said = removed(&Identity::new("c", 2), Stage::Noted).describe();
        assert!(said.contains("n3 ("), "{said}");
        assert!(
            said.contains("at 2026-01-02T03:04:05Z, and node 4 has taken its place"),
            "{said}"
        );
    }
}
