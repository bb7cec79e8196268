//! Whether other nodes have replicas, and how a member that lost its log begins again under a new number.
//!
//! A member that lost its log has forgotten votes and acknowledgements. It must never vote again under its
//! number, so its directory gets the identity of another node. Nothing of it is deleted: log, database and
//! checkpoints are put aside in `damaged/`, and `node.json` last but one. After a crash in between, `node.json` is
//! still that of the old node and the log is still missing, so the next start begins again.
//!
//! The number of a node that joins is written down before the cluster is asked (`joining.json`): the cluster never uses
//! a number again, so a start that fails after it was registered must not register another one each time it is
//! repeated.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::damage::put_aside_in;
use super::files::{is_there, remove, write_durably};
use super::identity::{Identity, write_identity};
use super::log_place::{self, is_log_lost};
use super::{DataDir, LockedDir};
use crate::error::StartError;

/// What the cluster has told a node that joins, until the directory is complete.
const JOINED: &str = "joined.json";

/// The number with which a node joins, until the directory is complete.
const JOINING: &str = "joining.json";

/// What is in `joining.json`.
#[derive(Serialize, Deserialize)]
struct Joining {
    /// The number.
    node_id: u64,
    /// The number that the directory had before its log was lost.
    replaces: Option<u64>,
}

/// What belongs to the old number, and is put aside.
const OF_OLD_NODE: [&str; 5] = ["db", "checkpoints", "raft", "log", "restore"];

impl DataDir {
    /// Whether other nodes may have replicas of the partitions: then nothing is given up here, because a lineage
    /// that begins on this node alone would be a second history beside theirs.
    pub fn has_peers(&self) -> bool {
        *self.peers.lock()
    }

    /// Notes whether other nodes may have replicas of the partitions; durable when this returns. Blocking.
    pub fn note_peers(&self, has_peers: bool) -> Result<(), StartError> {
        let mut noted = self.peers.lock();
        if *noted == has_peers {
            return Ok(());
        }
        self.check_in_place(&self.path)?;
        let identity = Identity {
            has_peers: Some(has_peers),
            ..self.identity.clone()
        };
        let name = if self.is_new {
            "node.json.new"
        } else {
            "node.json"
        };
        write_identity(&self.path.join(name), &identity)?;
        *noted = has_peers;
        Ok(())
    }
}

impl LockedDir {
    /// The identity of a node that has lost its log, and of whose partitions other nodes have replicas: it must
    /// not serve under its number again.
    ///
    /// # Errors
    ///
    /// Whether it is lost is not known: see [`is_log_lost`].
    pub fn member_without_log(&self) -> Result<Option<&Identity>, StartError> {
        match self.member() {
            Some(member) => Ok(is_log_lost(&self.path)?.then_some(member)),
            None => Ok(None),
        }
    }

    /// The identity, if the directory is complete and other nodes may have replicas of its partitions.
    pub fn member(&self) -> Option<&Identity> {
        let complete = self.found.as_ref().filter(|(_, is_new)| !is_new);
        let identity = complete.map(|(identity, _)| identity);
        identity.filter(|identity| identity.may_have_peers())
    }

    /// The identity, if the directory has one and is not complete yet.
    pub fn unfinished(&self) -> Option<&Identity> {
        let (identity, is_new) = self.found.as_ref()?;
        is_new.then_some(identity)
    }

    /// The identity with which the directory joins a cluster: an earlier start that has asked the cluster has used the
    /// same number. `before` is the identity that the directory has. Durable when this returns. Blocking.
    pub fn draw_number(
        &self,
        cluster_name: &str,
        partitions: u32,
        before: Option<&Identity>,
    ) -> Result<Identity, StartError> {
        let made = Identity::new(cluster_name, partitions);
        let replaces = before.map(|before| before.node_id);
        let path = self.path.join(JOINING);
        let drawn = match fs::read(&path) {
            // One that cannot be parsed was not written here.
            Ok(text) => serde_json::from_slice::<Joining>(&text).ok(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(StartError::unreadable(path.display().to_string(), &e)),
        };
        let drawn = drawn.filter(|drawn| drawn.replaces == replaces && drawn.node_id != 0);
        if let Some(Joining { node_id, .. }) = drawn {
            return Ok(Identity { node_id, ..made });
        }
        let joining = Joining {
            node_id: made.node_id,
            replaces,
        };
        let text = serde_json::to_vec(&joining).map_err(|e| StartError::BadIdentity {
            path: path.clone(),
            why: e.to_string(),
        })?;
        write_durably(&path, &text)?;
        Ok(made)
    }

    /// Removes the number: the cluster has refused it.
    pub fn forget_number(&self) -> Result<(), StartError> {
        remove(&self.path.join(JOINING))
    }

    /// Gives the directory of a node that lost its log the identity of a new node, and puts aside what belongs to
    /// the old one. Blocking.
    pub fn begin_again(&mut self, identity: Identity) -> Result<(), StartError> {
        let old = match &self.found {
            Some((old, _)) => old.node_id,
            None => return Ok(()),
        };
        for what in OF_OLD_NODE {
            let from = self.path.join(what);
            if is_there(&from)? {
                let aside = put_aside_in(&self.path, &from, what)?;
                tracing::warn!(
                    node = old,
                    aside = %aside.display(),
                    "{what}/ of the node that lost its log was put aside; remove it when you no longer want it"
                );
            }
        }
        for partition in 0..=u64::from(identity.partitions) {
            let note = self
                .path
                .join("damaged")
                .join(format!("partition-{partition}"));
            remove(&note)?;
        }
        remove(&self.path.join("restore.json"))?;
        log_place::forget(&self.path)?;
        write_identity(&self.path.join("node.json.new"), &identity)?;
        let before = self.path.join("node.json");
        put_aside_in(&self.path, &before, &format!("node-{old}.json"))?;
        self.found = Some((identity, true));
        Ok(())
    }
}

/// Writes down what the cluster has told, for a start after a crash. Durable when this returns.
pub(crate) fn write_joined(dir: &Path, told: &[u8]) -> Result<(), StartError> {
    write_durably(&dir.join(JOINED), told)
}

/// What an earlier start was told by the cluster, if it did not complete the directory; and the file.
pub(crate) fn read_joined(dir: &Path) -> Result<Option<(Vec<u8>, PathBuf)>, StartError> {
    let path = dir.join(JOINED);
    match fs::read(&path) {
        Ok(told) => Ok(Some((told, path))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StartError::unreadable(path.display().to_string(), &e)),
    }
}

/// Removes it: the directory is complete.
pub(super) fn remove_joined(dir: &Path) -> Result<(), StartError> {
    remove(&dir.join(JOINED))?;
    remove(&dir.join(JOINING))
}
