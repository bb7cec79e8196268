//! The data directory.
//!
//! ```text
//! LOCK            held while a process uses the directory; has its pid
//! node.json       who this is: format version, node id, cluster id, number of partitions
//! node.json.new   the same, while the directory is being made for the first time
//! log/            the Raft log of all partitions
//! db/             RocksDB
//! ```
//!
//! Making one: write `node.json.new`, make log and database, and when every partition serves, rename
//! to `node.json`. A crash in between leaves `node.json.new`, and the next start goes on with the
//! same identity. From then on a missing part is damage and never made anew.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::StartError;

/// Version of the layout of a data directory.
pub const FORMAT: u32 = 1;

/// Who a data directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the directory's layout, and of everything in it.
    pub format: u32,
    /// This node. Never 0.
    pub node_id: u64,
    /// Random, the same for all nodes of a cluster.
    pub cluster_id: String,
    /// For people.
    pub cluster_name: String,
    /// Stream partitions; the catalog comes on top.
    pub partitions: u32,
    /// RFC 3339.
    pub created_at: String,
}

/// A locked data directory.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the lock for as long as it is open.
    _lock: File,
    /// Who it belongs to.
    pub identity: Identity,
    /// Whether it is still being made.
    pub is_new: bool,
}

impl DataDir {
    /// Locks the directory, and reads its identity or begins to make it.
    pub fn open(path: &Path, cluster_name: &str, partitions: u32) -> Result<DataDir, StartError> {
        fs::create_dir_all(path).map_err(io("creating", path))?;
        let path = fs::canonicalize(path).map_err(io("resolving", path))?;
        if let Some(parent) = path.parent() {
            sync_dir(parent)?;
        }
        let lock = lock(&path)?;
        let final_path = path.join("node.json");
        let new_path = path.join("node.json.new");
        let (identity, is_new) = if final_path.exists() {
            (read_identity(&path, &final_path)?, false)
        } else if new_path.exists() {
            (read_identity(&path, &new_path)?, true)
        } else {
            for what in ["log", "db"] {
                if path.join(what).exists() {
                    return Err(StartError::NoIdentity {
                        dir: path,
                        what: format!("{what}/"),
                    });
                }
            }
            let identity = Identity {
                format: FORMAT,
                node_id: rand::random_range(1..=u64::from(u32::MAX)),
                cluster_id: uuid::Uuid::new_v4().to_string(),
                cluster_name: cluster_name.to_owned(),
                partitions,
                created_at: now_rfc3339(),
            };
            write_identity(&path, &new_path, &identity)?;
            (identity, true)
        };
        if identity.partitions != partitions {
            return Err(StartError::PartitionsChanged {
                dir: path,
                made: identity.partitions,
                configured: partitions,
            });
        }
        Ok(DataDir {
            path,
            _lock: lock,
            identity,
            is_new,
        })
    }

    /// Everything has been made: from now on a missing part is damage.
    pub fn finish(&mut self) -> Result<(), StartError> {
        if self.is_new {
            sync_dir(&self.path)?;
            let to = self.path.join("node.json");
            fs::rename(self.path.join("node.json.new"), &to).map_err(io("renaming to", &to))?;
            sync_dir(&self.path)?;
            self.is_new = false;
        }
        Ok(())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the log is.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where the database is.
    pub fn db(&self) -> PathBuf {
        self.path.join("db")
    }
}

fn lock(dir: &Path) -> Result<File, StartError> {
    let path = dir.join("LOCK");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io("opening", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The owner may be about to write it.
            let _ = file.read_to_string(&mut pid);
            let pid = match pid.trim() {
                "" => "unknown".to_owned(),
                pid => pid.to_owned(),
            };
            return Err(StartError::InUse {
                dir: dir.to_owned(),
                pid,
            });
        }
        Err(TryLockError::Error(source)) => return Err(io("locking", &path)(source)),
    }
    let pid = std::process::id();
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{pid}"))
        .map_err(io("writing", &path))?;
    Ok(file)
}

fn read_identity(dir: &Path, path: &Path) -> Result<Identity, StartError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let bad = |why: String| StartError::BadIdentity {
        path: path.to_owned(),
        why,
    };
    let text = fs::read_to_string(path).map_err(io("reading", path))?;
    let Format { format } =
        serde_json::from_str(&text).map_err(|e| bad(format!("not an identity: {e}")))?;
    if format > FORMAT {
        return Err(StartError::NewerFormat {
            dir: dir.to_owned(),
            found: format,
            known: FORMAT,
        });
    }
    let identity: Identity =
        serde_json::from_str(&text).map_err(|e| bad(format!("not an identity: {e}")))?;
    if identity.format == 0 || identity.node_id == 0 || identity.partitions == 0 {
        return Err(bad(
            "format, node_id and partitions must not be 0".to_owned()
        ));
    }
    Ok(identity)
}

fn write_identity(dir: &Path, path: &Path, identity: &Identity) -> Result<(), StartError> {
    let text = serde_json::to_string_pretty(identity).map_err(|e| StartError::BadIdentity {
        path: path.to_owned(),
        why: e.to_string(),
    })?;
    // A torn file is not taken for an identity: it goes through a name of its own.
    let temporary = dir.join("node.json.tmp");
    let mut file = File::create(&temporary).map_err(io("creating", &temporary))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(io("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(io("renaming to", path))?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> Result<(), StartError> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(io("syncing", dir))
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StartError {
    let path = path.to_owned();
    move |source| StartError::Io {
        operation,
        path,
        source,
    }
}

fn now_rfc3339() -> String {
    time::OffsetDateTime::now_utc()
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(dir: &Path) -> Identity {
        let mut made = DataDir::open(dir, "test", 8).unwrap();
        made.finish().unwrap();
        made.identity.clone()
    }

    #[test]
    fn identity_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = made(dir.path());
        let again = DataDir::open(dir.path(), "another name", 8).unwrap();
        assert_eq!(again.identity, first);
        assert!(!again.is_new);
    }

    #[test]
    fn a_crash_while_it_is_made_keeps_the_identity() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path(), "test", 8)
            .unwrap()
            .identity
            .clone();
        let again = DataDir::open(dir.path(), "test", 8).unwrap();
        assert!(again.is_new);
        assert_eq!(again.identity, first);
    }

    #[test]
    fn a_second_process_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let _first = DataDir::open(dir.path(), "test", 8).unwrap();
        let error = DataDir::open(dir.path(), "test", 8).unwrap_err();
        let pid = std::process::id().to_string();
        assert!(
            matches!(&error, StartError::InUse { pid: p, .. } if *p == pid),
            "{error}"
        );
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path());
        let path = dir.path().join("node.json");
        fs::write(&path, r#"{"format": 99, "what": "ever"}"#).unwrap();
        let error = DataDir::open(dir.path(), "test", 8).unwrap_err();
        assert!(
            matches!(error, StartError::NewerFormat { found: 99, .. }),
            "{error}"
        );
    }

    #[test]
    fn another_number_of_partitions_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path());
        let error = DataDir::open(dir.path(), "test", 9).unwrap_err();
        assert!(
            matches!(
                error,
                StartError::PartitionsChanged {
                    made: 8,
                    configured: 9,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn data_without_an_identity_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("db")).unwrap();
        let error = DataDir::open(dir.path(), "test", 8).unwrap_err();
        assert!(matches!(error, StartError::NoIdentity { .. }), "{error}");
        assert!(!dir.path().join("node.json.new").exists());
    }

    #[test]
    fn a_truncated_identity_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path());
        fs::write(dir.path().join("node.json"), "{\"format\"").unwrap();
        let error = DataDir::open(dir.path(), "test", 8).unwrap_err();
        assert!(matches!(error, StartError::BadIdentity { .. }), "{error}");
    }
}
