//! Marks: the objects of retained snapshots that were found damaged or missing, noted in the root.
//!
//! A mark is made by a swap before anything else is done about the damage. From that swap on no commit reuses
//! the object (see [`crate::repair`]), so the set of snapshots that have it only shrinks. A mark is removed
//! with its snapshot, by a repair, or when the object is found as it was written.

use std::collections::HashSet;

use serde_json::Map;
use time::OffsetDateTime;

use crate::error::Error;
use crate::metadata::SnapshotMetadata;
use crate::ownership;
use crate::repository::{CurrentRoot, Repository, SWAP_ATTEMPTS, Swapped};
use crate::root::{Mark, Retained, Root};
use crate::store::Store;

/// Maximum number of marks that a root lists for one snapshot, some 20 KiB. The others are counted, and no
/// object of the snapshot is reused.
pub const MAX_MARKS: usize = 100;
/// Maximum length of the cause in a mark, in characters.
const MAX_CAUSE: usize = 200;

/// An object that was found damaged or missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadObject {
    /// Its key, below the partition.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
}

/// Objects that were read and are as they were written.
///
/// A reading proves nothing about a mark that was made after it began: another reading has found the damage since.
/// So only marks that were in the root before the first object was read are removed.
#[derive(Clone, Debug, Default)]
pub struct SoundObjects {
    keys: HashSet<String>,
    /// The marks from before, each as a key and the time at which the damage was found.
    known: HashSet<(String, OffsetDateTime)>,
}

impl SoundObjects {
    /// None yet. `root` is that of before the first object is read.
    pub fn before_reading(root: &Root) -> SoundObjects {
        let marks = root.retained_snapshots.iter().flat_map(|r| &r.damaged);
        SoundObjects {
            keys: HashSet::new(),
            known: marks
                .map(|mark| (mark.key.clone(), mark.found_at))
                .collect(),
        }
    }

    /// Adds an object that was read.
    pub fn insert(&mut self, key: String) {
        self.keys.insert(key);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    fn contains(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// Whether a mark names an object that was read after the mark was made.
    fn disproves(&self, mark: &Mark) -> bool {
        self.contains(&mark.key) && self.known.contains(&(mark.key.clone(), mark.found_at))
    }
}

impl Repository {
    /// Marks objects in every retained snapshot that has them, and removes the marks of objects that were
    /// found `sound`. Returns the root that has the marks. Objects that no retained snapshot has are not
    /// marked.
    ///
    /// # Errors
    ///
    /// [`Error::OtherWriter`] if another incarnation writes to the root; errors of reading descriptions and
    /// of a swap.
    pub async fn mark(
        &self,
        bad: &[BadObject],
        sound: &SoundObjects,
    ) -> Result<CurrentRoot, Error> {
        let store = self.store.operation();
        // Another disk may be mounted there, or none.
        ownership::check_with(&store, self.cluster()?).await?;
        let found_at = store.env().now();
        let mut current = self.read_root(&store).await?;
        for attempt in 1..=SWAP_ATTEMPTS {
            self.next_generation(&store, &current)?;
            self.check_repairer(&current)?;
            let mut next = current.root().clone();
            for retained in &mut next.retained_snapshots {
                let described = self.description_if_whole(&store, retained).await?;
                let has = keys_of(retained, described.as_deref());
                let bad = bad.iter().filter(|object| has.contains(&object.key));
                let marks = bad.map(|object| Mark {
                    key: object.key.clone(),
                    why: object.why.chars().take(MAX_CAUSE).collect(),
                    found_at,
                    extra: Map::new(),
                });
                change_marks(retained, marks, sound, &has);
            }
            if next == *current.root() {
                return Ok(current);
            }
            current = match self.try_swap(&store, &current, next).await? {
                Swapped::Done(current) => return Ok(current),
                // The next round finds nothing to change if the swap was done.
                Swapped::ReadBack(current) => current,
            };
            self.back_off(&store, attempt).await;
        }
        Err(self.contended(&store))
    }

    /// Refuses a root that another incarnation writes to. A process without an incarnation, such as a
    /// command, may mark and repair beside the writer: neither adds to a history.
    pub(crate) fn check_repairer(&self, root: &Root) -> Result<(), Error> {
        match self.options.incarnation {
            Some(_) => self.check_writer(root),
            None => Ok(()),
        }
    }

    /// A snapshot's description; `None` if it is damaged or missing, or of a newer format: then its objects are
    /// not known here, and are neither marked nor repaired.
    pub(crate) async fn description_if_whole(
        &self,
        store: &Store,
        retained: &Retained,
    ) -> Result<Option<std::sync::Arc<SnapshotMetadata>>, Error> {
        match self.read_description(store, &retained.dir()).await {
            Ok(metadata) => Ok(Some(metadata)),
            Err(Error::NewerFormat { .. }) => Ok(None),
            Err(error) if error.is_damage() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The keys of a snapshot's objects, as far as its description names them.
fn keys_of(retained: &Retained, metadata: Option<&SnapshotMetadata>) -> HashSet<String> {
    let files = metadata.into_iter().flat_map(|metadata| {
        let files = metadata.files.iter();
        files.map(|file| metadata.key_of(file))
    });
    files.chain([retained.dir().metadata()]).collect()
}

/// Adds marks, and removes those of objects that are sound. The number of objects that are not listed is
/// known to be 0 only if all objects of the snapshot are sound.
fn change_marks(
    retained: &mut Retained,
    marks: impl Iterator<Item = Mark>,
    sound: &SoundObjects,
    has: &HashSet<String>,
) {
    retained.damaged.retain(|mark| !sound.disproves(mark));
    let metadata = retained.dir().metadata();
    if retained.damaged.is_empty()
        && has.len() > 1
        && has
            .iter()
            .all(|key| sound.contains(key) || *key == metadata)
    {
        retained.damaged_further = 0;
    }
    let (mut listed, mut further) = (retained.damaged.len(), 0);
    for mark in marks {
        if retained.damaged.iter().any(|known| known.key == mark.key) {
            continue;
        }
        if listed < MAX_MARKS {
            retained.damaged.push(mark);
            listed += 1;
        } else {
            further += 1;
        }
    }
    // The same objects may be found again, so the larger number counts.
    retained.damaged_further = retained.damaged_further.max(further);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Cluster;
    use crate::ids::{Generation, Lsn, PartitionId, SnapshotId};

    #[test]
    fn marks_beyond_the_bound_are_counted_and_vanish_only_when_everything_is_sound() {
        let snapshot_id = SnapshotId::from_bits(1);
        let mut retained = Retained {
            snapshot_id,
            min_applied_lsn: Lsn(1),
            created_at: OffsetDateTime::UNIX_EPOCH,
            path: String::new(),
            damaged: Vec::new(),
            damaged_further: 0,
            extra: Map::new(),
        };
        let key = |i: usize| format!("ssts/{i:048x}.sst");
        let count = MAX_MARKS + 7;
        let has: HashSet<String> = (0..count)
            .map(key)
            .chain([retained.dir().metadata()])
            .collect();
        let marks = || {
            (0..count).map(|i| Mark {
                key: key(i),
                why: "it is missing".to_owned(),
                found_at: OffsetDateTime::UNIX_EPOCH,
                extra: Map::new(),
            })
        };
        for _ in 0..2 {
            change_marks(&mut retained, marks(), &SoundObjects::default(), &has);
            assert_eq!((retained.damaged.len(), retained.damaged_further), (100, 7));
            assert_eq!(retained.count_damaged(), count as u64);
        }
        let sound = |keys: HashSet<String>| SoundObjects {
            known: marks().map(|mark| (mark.key, mark.found_at)).collect(),
            keys,
        };
        let some = sound((0..MAX_MARKS).map(key).collect());
        change_marks(&mut retained, std::iter::empty(), &some, &has);
        assert_eq!((retained.damaged.len(), retained.damaged_further), (0, 7));
        let all = sound((0..count).map(key).collect());
        change_marks(&mut retained, std::iter::empty(), &all, &has);
        assert_eq!(retained.count_damaged(), 0);
    }

    #[test]
    fn a_mark_that_was_made_after_a_reading_began_stays() {
        let mark = |second| Mark {
            key: "ssts/a.sst".to_owned(),
            why: "it is missing".to_owned(),
            found_at: OffsetDateTime::UNIX_EPOCH + std::time::Duration::from_secs(second),
            extra: Map::new(),
        };
        let cluster = Cluster {
            name: "test".to_owned(),
            fingerprint: None,
            node_name: "node".to_owned(),
        };
        let mut root = Root::empty(PartitionId(1), &cluster, Generation(1));
        root.retained_snapshots.push(Retained {
            snapshot_id: SnapshotId::from_bits(1),
            min_applied_lsn: Lsn(1),
            created_at: OffsetDateTime::UNIX_EPOCH,
            path: String::new(),
            damaged: Vec::new(),
            damaged_further: 0,
            extra: Map::new(),
        });
        let has = HashSet::from(["ssts/a.sst".to_owned()]);
        let read = |root: &Root| {
            let mut sound = SoundObjects::before_reading(root);
            sound.insert("ssts/a.sst".to_owned());
            sound
        };
        let none = SoundObjects::default();
        // Another process finds the damage while the object is read, or just afterwards.
        let early = read(&root);
        let retained = &mut root.retained_snapshots[0];
        change_marks(retained, [mark(1)].into_iter(), &none, &has);
        change_marks(retained, std::iter::empty(), &early, &has);
        assert_eq!(retained.damaged, [mark(1)]);
        let late = read(&root);
        let retained = &mut root.retained_snapshots[0];
        change_marks(retained, std::iter::empty(), &late, &has);
        assert_eq!(retained.damaged, []);
    }
}
