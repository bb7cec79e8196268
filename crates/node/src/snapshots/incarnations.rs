//! Which start of this data directory writes to the repository.
//!
//! Each start draws an incarnation, with random digits ([`starts`]). The roots of the repository name the incarnation that writes,
//! and a start may take over from the incarnations before it: `incarnations.json` has them. The file is
//! written before a new incarnation is used for the first time, so the next start follows whatever
//! incarnation a crash leaves in a root. A copy of the directory draws other incarnations: of the two
//! directories, the second that puts a snapshot of a partition is refused.
//!
//! A node in a cluster shows its incarnation to the others, and writes it to the file before: see [`starts`].

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use esker_repository::{Incarnation, IncarnationId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock::now_ms;
use crate::data_dir::write_durably;
use crate::error::StartError;
use crate::starts::{self, Start};

const FILE: &str = "incarnations.json";
/// Incarnations that are remembered beyond those that a root is known to name. Each is a start in a cluster, or one that
/// began to put a snapshot and never learned whether it has claimed the root.
const MAX_DRAWN: usize = 64;

/// The incarnation of this start, and those before it.
#[derive(Debug)]
pub(crate) struct Incarnations {
    path: PathBuf,
    current: IncarnationId,
    stored: Mutex<Stored>,
    /// Held by whoever writes the file: one at a time, so that what is written last has everything. Requests look at what
    /// is stored, and do not wait for the disk.
    writing: Mutex<()>,
    /// Those of the other nodes of the cluster.
    others: Mutex<Vec<IncarnationId>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    /// Newest last.
    drawn: Vec<IncarnationId>,
    /// By partition, the incarnation that its root is known to name.
    claimed: BTreeMap<u64, IncarnationId>,
}

impl Incarnations {
    /// Draws the incarnation of this start. Writes nothing.
    pub fn draw(data_dir: &Path) -> Result<Incarnations, StartError> {
        let path = data_dir.join(FILE);
        let read = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Stored>(&bytes) {
                Ok(stored) => Some(stored),
                Err(error) => {
                    tracing::warn!(
                        path = %path.display(),
                        %error,
                        "the file is damaged: where this node has put snapshots before, it is refused"
                    );
                    None
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Stored::default()),
            Err(error) => return Err(StartError::unreadable(path.display().to_string(), &error)),
        };
        let current = match &read {
            Some(stored) => starts::draw(stored.drawn.iter().map(|one| one.0)),
            None => starts::draw_without_earlier(now_ms() / 1000),
        };
        let stored = read.unwrap_or_default();
        Ok(Incarnations {
            path,
            current: IncarnationId(current),
            stored: Mutex::new(stored),
            writing: Mutex::new(()),
            others: Mutex::default(),
        })
    }

    /// The writer as which this start claims a partition's root.
    pub fn of(&self, partition: u64) -> Incarnation {
        let stored = self.stored.lock();
        let mut after = stored.drawn.clone();
        after.extend(stored.claimed.get(&partition));
        after.extend(self.others.lock().iter());
        Incarnation {
            id: self.current,
            after,
        }
    }

    /// This start, as other nodes see it.
    pub fn start(&self) -> Start {
        let stored = self.stored.lock();
        let before = stored.drawn.iter().rev().map(|one| one.0);
        Start {
            id: self.current.0,
            earlier: before.filter(|one| *one != self.current.0).collect(),
        }
    }

    /// Takes over from these incarnations, too: those of the nodes of this cluster. Which of the nodes puts
    /// snapshots of a partition is decided by who leads it.
    pub fn take_over_from(&self, others: impl Iterator<Item = IncarnationId>) {
        *self.others.lock() = others.filter(|other| *other != self.current).collect();
    }

    /// Writes the incarnation of this start to the file, before it claims a root for the first time, and before other
    /// nodes see it.
    pub fn begin(&self) -> Result<(), StartError> {
        let _writing = self.writing.lock();
        let mut next = self.stored.lock().clone();
        if next.drawn.last() == Some(&self.current) {
            return Ok(());
        }
        next.drawn.push(self.current);
        let surplus = next.drawn.len().saturating_sub(MAX_DRAWN);
        next.drawn.drain(..surplus);
        self.write(&next)?;
        *self.stored.lock() = next;
        Ok(())
    }

    /// Remembers which incarnation a partition's root names: the current one, or one before it.
    pub fn note_claim(&self, partition: u64, incarnation: IncarnationId) {
        let is_noted = |stored: &Stored| stored.claimed.get(&partition) == Some(&incarnation);
        if is_noted(&self.stored.lock()) {
            return;
        }
        let _writing = self.writing.lock();
        let next = {
            let mut stored = self.stored.lock();
            if is_noted(&stored) {
                return;
            }
            stored.claimed.insert(partition, incarnation);
            stored.clone()
        };
        // The drawn incarnations stay until it can be written.
        if let Err(error) = self.write(&next) {
            tracing::warn!(%error, "the claim of a repository's root is not remembered");
        }
    }

    fn write(&self, stored: &Stored) -> Result<(), StartError> {
        let bytes = serde_json::to_vec_pretty(stored).map_err(|e| StartError::Io {
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
    fn a_start_follows_what_earlier_starts_may_have_claimed_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let first = Incarnations::draw(dir.path()).unwrap();
        assert!(first.of(0).after.is_empty());
        assert!(
            !dir.path().join(FILE).exists(),
            "a start alone writes nothing"
        );
        first.begin().unwrap();
        let second = Incarnations::draw(dir.path()).unwrap();
        let twin = Incarnations::draw(dir.path()).unwrap();
        assert_eq!(second.of(0).after, [first.current]);
        assert_ne!(second.current, twin.current);
        second.begin().unwrap();
        assert!(!twin.of(0).after.contains(&second.current));
    }

    #[test]
    fn whoever_looks_does_not_wait_for_a_disk_that_does_not_answer() {
        let dir = tempfile::tempdir().unwrap();
        let incarnations = Incarnations::draw(dir.path()).unwrap();
        incarnations.begin().unwrap();
        // A write is under way.
        let writing = incarnations.writing.lock();
        std::thread::scope(|threads| {
            let claims = threads.spawn(|| incarnations.note_claim(1, IncarnationId(7)));
            let (looked, looks) = std::sync::mpsc::channel();
            threads.spawn({
                let incarnations = &incarnations;
                move || looked.send(incarnations.of(0))
            });
            let found = looks.recv_timeout(std::time::Duration::from_secs(60));
            assert_eq!(found.unwrap().after, [incarnations.current]);
            assert!(!claims.is_finished(), "one writes at a time");
            drop(writing);
        });
        let again = Incarnations::draw(dir.path()).unwrap();
        assert!(again.of(1).after.contains(&IncarnationId(7)));
    }

    #[test]
    fn what_a_root_names_is_followed_however_many_starts_came_after() {
        let dir = tempfile::tempdir().unwrap();
        let first = Incarnations::draw(dir.path()).unwrap();
        first.begin().unwrap();
        first.note_claim(3, first.current);
        for _ in 0..2 * MAX_DRAWN {
            Incarnations::draw(dir.path()).unwrap().begin().unwrap();
        }
        let last = Incarnations::draw(dir.path()).unwrap();
        assert!(last.of(3).after.contains(&first.current));
        assert!(!last.of(4).after.contains(&first.current));
        assert_eq!(last.of(4).after.len(), MAX_DRAWN);
    }

    #[test]
    fn what_other_nodes_have_seen_of_a_directory_its_next_start_follows_and_its_copy_does_not() {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let start = |dir: &Path| {
            let start = Incarnations::draw(dir).unwrap();
            start.begin().unwrap();
            start
        };
        let follows = |start: &Incarnations, known: &Incarnations| {
            let Start { id, earlier } = start.start();
            starts::follows(id, &earlier, known.current.0)
        };
        let first = start(dir.path());
        std::fs::copy(dir.path().join(FILE), copy.path().join(FILE)).unwrap();
        let second = start(dir.path());
        let copied = start(copy.path());
        assert!(follows(&second, &first) && follows(&copied, &first));
        assert!(follows(&start(dir.path()), &second));
        assert!(!follows(&start(copy.path()), &second));
        // The file lost what it had: it proves nothing, and the node is no copy for that.
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let damaged = start(dir.path());
        assert!(follows(&damaged, &second) && follows(&start(dir.path()), &damaged));
    }

    #[test]
    fn a_damaged_file_is_no_reason_not_to_start_and_follows_nobody() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let start = Incarnations::draw(dir.path()).unwrap();
        assert!(start.of(0).after.is_empty());
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        std::fs::create_dir(dir.path().join(FILE)).unwrap();
        assert!(
            Incarnations::draw(dir.path()).is_err(),
            "it cannot be read now"
        );
    }
}
