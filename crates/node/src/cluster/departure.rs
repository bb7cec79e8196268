//! Whether the cluster has removed this node, and what the others have said of its replicas.
//!
//! What is done about it is in [`departure_task`](super::departure_task).

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::wire::{Fate, RemovalOf, Standing};
use crate::clock::rfc3339_of;
use crate::data_dir::{DataDir, Removed, Stage, Without};
use crate::error::StartError;

/// How to come back.
const JOIN_AGAIN: &str = "To join again, stop it, move its data directory away, and start it with an empty one and \
                          `cluster.join`";

/// Whether the cluster has removed this node, and what becomes of its replicas.
pub(crate) struct Departure {
    known: Mutex<Option<Removed>>,
    /// Why replicas are still needed, or that nobody has answered.
    waits: Mutex<String>,
    /// Why the process is to end, if it is.
    ended: watch::Sender<Option<String>>,
}

impl Departure {
    /// What an earlier start was told. What the others could do without then does not count.
    pub fn new(known: Option<Removed>) -> Departure {
        let known = known.map(|removed| Removed {
            stage: Stage::Noted,
            without: Vec::new(),
            ..removed
        });
        Departure {
            known: Mutex::new(known),
            waits: Mutex::new("they were not asked yet".to_owned()),
            ended: watch::Sender::new(None),
        }
    }

    /// That this node was removed, when, what becomes of its replicas, and what to do; `None` if it was not.
    pub fn describe(&self) -> Option<String> {
        let known = self.known.lock();
        let removed = known.as_ref()?;
        let replicas = match removed.stage {
            Stage::Noted => format!(
                "Its replicas are kept until all partitions have everything without them ({})",
                self.waits.lock()
            ),
            _ => "All partitions have everything without its replicas: they are asked once more within about a minute, \
                  and if it is still so, this process ends by itself and deletes them. A stop before that keeps them"
                .to_owned(),
        };
        Some(format!("{}. {replicas}. {JOIN_AGAIN}", removed.describe()))
    }

    /// Waits until this process is to end because the node was removed. Returns the reason.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.subscribe();
        loop {
            if let Some(why) = ended.borrow_and_update().clone() {
                return why;
            }
            if ended.changed().await.is_err() {
                // The sender lives as long as this node.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Deletes the replicas, if the process ends because they are not needed, and not because it was asked to stop. The
    /// caller has closed log and database. Blocking.
    pub fn delete_replicas(&self, data_dir: &DataDir) -> Result<(), StartError> {
        if self.ended.borrow().is_none() {
            return Ok(());
        }
        let mut known = self.known.lock();
        let Some(removed) = known.as_mut().filter(|it| it.stage >= Stage::MayGo) else {
            return Ok(());
        };
        data_dir.delete_replicas(removed)?;
        tracing::info!(
            path = %data_dir.path().display(),
            "the replicas of this node were deleted, because the cluster has removed it"
        );
        Ok(())
    }

    pub(super) fn known(&self) -> Option<Removed> {
        self.known.lock().clone()
    }

    /// Takes what was noted.
    pub(super) fn take(&self, removed: Removed) {
        *self.known.lock() = Some(removed);
    }

    /// Takes why the replicas are still needed.
    pub(super) fn wait_for(&self, why: String) {
        *self.waits.lock() = why;
    }

    /// The replicas are kept, for this reason, whatever was so before.
    pub(super) fn keep(&self, why: String) {
        if let Some(removed) = self.known.lock().as_mut() {
            (removed.stage, removed.without) = (Stage::Noted, Vec::new());
        }
        self.wait_for(why);
    }

    /// The process is to end.
    pub(super) fn end(&self) {
        self.ended.send_replace(self.describe());
    }
}

/// What the others have answered in one round.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub name: String,
    pub removed_at: Option<String>,
    pub replaced_by: Option<u64>,
    /// By partition.
    pub fates: BTreeMap<u64, Fate>,
}

/// What the answers of one round come to: `None` if the node was not removed, or was given up.
pub(super) fn merge(answers: &[RemovalOf], cluster_id: &str) -> Option<Told> {
    let mine = || answers.iter().filter(|it| it.cluster_id == cluster_id);
    // After a loss, what is here may be nowhere else.
    if mine().any(|it| it.standing == Standing::GivenUp) {
        return None;
    }
    let removed = || mine().filter(|it| it.standing == Standing::Removed);
    let first = removed().next()?;
    let mut fates: BTreeMap<u64, Fate> = BTreeMap::new();
    for fate in removed().flat_map(|it| &it.fates) {
        let known = fates.get(&fate.partition);
        // Of two that lead, one may not know yet that it does not: whoever needs the replica counts.
        if known.is_none_or(|known| known.needed.is_none()) {
            fates.insert(fate.partition, fate.clone());
        }
    }
    Some(Told {
        name: first.name.clone(),
        removed_at: removed().find_map(|it| it.removed_at_ms).map(rfc3339_of),
        replaced_by: removed().find_map(|it| it.replaced_by),
        fates,
    })
}

/// Why the replicas of all partitions may go; or the partitions whose replicas are needed, and why one of them is.
pub(super) fn decide(told: &Told, last_partition: u64) -> Result<Vec<Without>, (usize, String)> {
    let (mut without, mut needed, mut first) = (Vec::new(), 0, None);
    for partition in 0..=last_partition {
        let why = match told.fates.get(&partition) {
            Some(fate) => match &fate.needed {
                None => {
                    without.push(Without {
                        partition,
                        as_of: fate.as_of,
                        kept_by: fate.kept_by.clone(),
                    });
                    continue;
                }
                Some(why) => why.clone(),
            },
            None => "its leader has not answered".to_owned(),
        };
        needed += 1;
        first.get_or_insert_with(|| format!("partition {partition}: {why}"));
    }
    match first {
        None => Ok(without),
        Some(why) => Err((needed, why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::{Identity, LockedDir, noted_now};

    const CLUSTER: &str = "a cluster";

    fn fate(partition: u64, needed: Option<&str>) -> Fate {
        Fate {
            partition,
            as_of: 7,
            kept_by: vec![1, 2],
            needed: needed.map(str::to_owned),
        }
    }

    fn answer(standing: Standing, fates: &[Fate]) -> RemovalOf {
        RemovalOf {
            cluster_id: CLUSTER.to_owned(),
            standing,
            name: "n3".to_owned(),
            removed_at_ms: Some(1_500_000_000_000),
            replaced_by: None,
            fates: fates.to_vec(),
        }
    }

    #[test]
    fn replicas_go_once_the_leaders_of_all_partitions_say_so_in_one_round() {
        let all = [
            answer(Standing::Removed, &[fate(0, None), fate(2, None)]),
            answer(Standing::Removed, &[fate(1, None)]),
        ];
        let told = merge(&all, CLUSTER).unwrap();
        assert_eq!(told.removed_at.as_deref(), Some("2017-07-14T02:40:00Z"));
        let without = decide(&told, 2).unwrap();
        let partitions: Vec<u64> = without.iter().map(|it| it.partition).collect();
        assert_eq!(partitions, [0, 1, 2]);
        // One that nobody has answered for keeps all.
        let told = merge(&all[..1], CLUSTER).unwrap();
        let (needed, why) = decide(&told, 2).unwrap_err();
        assert_eq!(needed, 1);
        assert_eq!(why, "partition 1: its leader has not answered");
    }

    #[test]
    fn of_two_answers_for_a_partition_the_one_that_needs_the_replica_counts() {
        let one = answer(Standing::Removed, &[fate(0, None)]);
        let other = answer(Standing::Removed, &[fate(0, Some("still a member"))]);
        for answers in [[one.clone(), other.clone()], [other, one]] {
            let told = merge(&answers, CLUSTER).unwrap();
            assert_eq!(
                decide(&told, 0).unwrap_err().1,
                "partition 0: still a member"
            );
        }
    }

    #[test]
    fn what_was_given_up_what_belongs_and_what_another_cluster_answers_deletes_nothing() {
        let removed = answer(Standing::Removed, &[fate(0, None)]);
        let given_up = answer(Standing::GivenUp, &[]);
        assert_eq!(merge(&[removed.clone(), given_up], CLUSTER), None);
        assert_eq!(merge(&[answer(Standing::Belongs, &[])], CLUSTER), None);
        assert_eq!(merge(&[], CLUSTER), None);
        assert_eq!(merge(&[removed], "another"), None);
    }

    #[test]
    fn a_removed_node_says_when_it_was_removed_what_it_waits_for_and_what_to_do() {
        assert_eq!(Departure::new(None).describe(), None);
        let at = Some("2026-01-02T03:04:05Z".to_owned());
        let mut removed = noted_now(3, CLUSTER, "n3", at, None);
        let departure = Departure::new(Some(removed.clone()));
        departure.wait_for("partition 1: its leader has not answered".to_owned());
        let said = departure.describe().unwrap();
        for part in [
            "node n3 (3) was removed from the cluster at 2026-01-02T03:04:05Z",
            "are kept until all partitions have everything without them (partition 1: its leader",
            "start it with an empty one and `cluster.join`",
        ] {
            assert!(said.contains(part), "{said}");
        }
        removed.stage = Stage::MayGo;
        departure.take(removed);
        let said = departure.describe().unwrap();
        assert!(said.contains("ends by itself and deletes them"), "{said}");
        departure.keep("partition 2: its leader has not answered".to_owned());
        let said = departure.describe().unwrap();
        assert!(said.contains("are kept until"), "{said}");
    }

    /// Only at its own end, after this process has asked: not after an earlier one has, and not at a stop.
    #[test]
    fn a_stop_and_what_an_earlier_start_was_told_delete_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let locked = LockedDir::open(dir.path()).unwrap();
        let data_dir = locked
            .belonging_to(|| Identity::new(CLUSTER, 1), 1)
            .unwrap();
        let log = dir.path().join("log/0000000000000001.raftlog");
        std::fs::create_dir(dir.path().join("log")).unwrap();
        std::fs::write(&log, "x").unwrap();
        let identity = &data_dir.identity;
        let mut may_go = noted_now(identity.node_id, &identity.cluster_id, "n3", None, None);
        may_go.stage = Stage::MayGo;
        data_dir.note_removed(&may_go).unwrap();

        let departure = Departure::new(data_dir.removed().unwrap());
        let said = departure.describe().unwrap();
        assert!(said.contains("were not asked yet"), "{said}");
        departure.end();
        departure.delete_replicas(&data_dir).unwrap();
        assert!(log.exists(), "nobody was asked in this process");

        let departure = Departure::new(data_dir.removed().unwrap());
        departure.take(may_go);
        departure.delete_replicas(&data_dir).unwrap();
        assert!(log.exists(), "a stop");

        departure.end();
        departure.delete_replicas(&data_dir).unwrap();
        assert!(!log.exists());
        assert_eq!(data_dir.removed().unwrap().unwrap().stage, Stage::Deleted);
    }
}
