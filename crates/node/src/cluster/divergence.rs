//! The replicas here whose state is not that of the majority, in `diverged.json`.
//!
//! Such a replica is stopped for good: it neither votes nor leads, and serves nothing. A start finds it here, and
//! stops it again at once. Only a node that joins has replicas that are known to be right, so nothing here is
//! removed, but where this node goes on without the others (`esker cluster recover`): then there is nothing that it
//! could differ from. What is here of another number than the node has now does not count.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use esker_partition::digest::Divergence;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::data_dir::{sync_dir, write_durably};
use crate::error::StartError;

/// The file.
const NAME: &str = "diverged.json";

/// The replicas here that have diverged.
pub(crate) struct Diverged {
    path: PathBuf,
    node: u64,
    known: Mutex<BTreeMap<u64, Stored>>,
}

/// What is in `diverged.json`.
#[derive(Default, Serialize, Deserialize)]
struct Contents {
    /// The number of the node.
    node: u64,
    replicas: Vec<Stored>,
}

/// A replica that has diverged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    partition: u64,
    /// As of this LSN.
    lsn: u64,
    /// Its digest: 32 hexadecimal digits.
    own: String,
    /// That of the majority.
    right: String,
    /// The nodes that have that one.
    others: Vec<u64>,
}

impl Stored {
    fn why(&self) -> String {
        let others: Vec<_> = self.others.iter().map(u64::to_string).collect();
        format!(
            "its state is not that of the majority: as of LSN {} its digest is {}, and that of the nodes {} is {}. \
             This replica is stopped for good; what was acknowledged is on the others. Replace this node: stop it, move \
             its data directory away, and start it again with `cluster.join`: it takes its own place",
            self.lsn,
            self.own,
            others.join(", "),
            self.right
        )
    }
}

impl Diverged {
    /// Reads the file of the node with this number.
    ///
    /// # Errors
    ///
    /// It cannot be read now, or is not what was written: then it is not known which replicas may take part.
    pub fn open(data_dir: &Path, node: u64) -> Result<Diverged, StartError> {
        let path = data_dir.join(NAME);
        let contents = match std::fs::read(&path) {
            // An empty one is not what was written either.
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|e| StartError::BadIdentity {
                    path: path.clone(),
                    why: format!(
                        "{e}. It names replicas that must not take part, so nothing is started without it: replace \
                         this node"
                    ),
                })?
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Contents::default(),
            Err(e) => return Err(StartError::unreadable(path.display().to_string(), &e)),
        };
        let known = contents.replicas.into_iter();
        let known = known.filter(|_| contents.node == node);
        Ok(Diverged {
            path,
            node,
            known: Mutex::new(known.map(|it| (it.partition, it)).collect()),
        })
    }

    /// Those of a node whose replicas are the only ones: none of them has diverged from anything.
    pub fn none(data_dir: &Path, node: u64) -> Diverged {
        Diverged {
            path: data_dir.join(NAME),
            node,
            known: Mutex::default(),
        }
    }

    /// The partitions whose replicas must not take part.
    pub fn partitions(&self) -> Vec<u64> {
        self.known.lock().keys().copied().collect()
    }

    /// Forgets all, and removes the file.
    ///
    /// # Errors
    ///
    /// The file cannot be removed now.
    pub fn forget_all(&self) -> Result<(), StartError> {
        let mut known = self.known.lock();
        known.clear();
        match std::fs::remove_file(&self.path) {
            Ok(()) => self.path.parent().map_or(Ok(()), sync_dir),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(StartError::Io {
                operation: "removing",
                path: self.path.clone(),
                source,
            }),
        }
    }

    /// Why the replica of a partition must not take part, if it must not.
    pub fn why(&self, partition: u64) -> Option<String> {
        self.known.lock().get(&partition).map(Stored::why)
    }

    /// Notes that a replica has diverged: durable when this returns. Blocking.
    ///
    /// # Errors
    ///
    /// The file cannot be written now. What is known in memory has it.
    pub fn note(&self, partition: u64, found: &Divergence) -> Result<(), StartError> {
        let mut known = self.known.lock();
        known.entry(partition).or_insert_with(|| Stored {
            partition,
            lsn: found.lsn,
            own: format!("{:032x}", found.own),
            right: format!("{:032x}", found.right),
            others: found.others.clone(),
        });
        let contents = Contents {
            node: self.node,
            replicas: known.values().cloned().collect(),
        };
        let bytes = serde_json::to_vec_pretty(&contents).map_err(|e| StartError::Io {
            operation: "writing",
            path: self.path.clone(),
            source: e.into(),
        })?;
        write_durably(&self.path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_has_diverged_is_known_to_every_later_start() {
        let dir = tempfile::tempdir().unwrap();
        let diverged = Diverged::open(dir.path(), 7).unwrap();
        assert_eq!(diverged.why(3), None);
        let found = Divergence {
            lsn: 70,
            own: 0xa,
            right: 0xb,
            others: vec![1, 2],
        };
        diverged.note(3, &found).unwrap();
        let again = Diverged::open(dir.path(), 7).unwrap();
        let why = again.why(3).unwrap();
        assert_eq!(diverged.why(3), Some(why.clone()));
        for part in ["LSN 70", "nodes 1, 2", "Replace this node"] {
            assert!(why.contains(part), "{why}");
        }
        assert_eq!(again.why(2), None);
        // A node that has joined again has other replicas.
        assert_eq!(Diverged::open(dir.path(), 8).unwrap().why(3), None);
    }

    #[test]
    fn a_file_that_is_not_whole_lets_no_replica_take_part() {
        let dir = tempfile::tempdir().unwrap();
        for torn in ["{\"replicas\": [", ""] {
            std::fs::write(dir.path().join(NAME), torn).unwrap();
            let refused = Diverged::open(dir.path(), 7).err().unwrap().to_string();
            assert!(refused.contains("diverged.json"), "{refused}");
        }
    }
}
