//! What the repository retains of a partition with several members, as all of them know it.
//!
//! The member that leads puts the snapshots, and records in the log up to where the oldest retained one goes
//! ([`Kind::NoteArchived`]). Each member keeps the entries above that, so that the snapshot and any member's log
//! lead to the present. While a member is away, only what it does not go on with is recorded: any of the others may lead
//! when it is back. What they keep for it is bounded as what the leader's own log keeps for it
//! ([`esker_raft::KeptForAbsent`]). Of a partition without other members the node keeps what it has read from the repository,
//! and nothing is recorded.

use esker_partition::command::{Kind, NoteArchived, Outcome};
use esker_raft::engine::KeptLog;
use esker_raft::{Group, Lsn, Role};

use super::state::RepositoryState;
use crate::core::Inner;

/// The position up to which the log need not be kept, with the oldest retained snapshot as of `oldest`, if a member that is
/// away goes on from `kept`. Never above `oldest`, because the snapshot needs the entries above it. What is `recorded`
/// already is gone, also if the member needs it.
fn releasable(oldest: u64, kept: Option<Lsn>, recorded: Option<u64>) -> u64 {
    let needed = kept.map(|lsn| lsn.0.max(recorded.unwrap_or_default()));
    needed.map_or(oldest, |lsn| lsn.min(oldest))
}

/// What the log has to record, if that differs from what it has recorded last.
fn position_to_record(oldest: u64, kept: Option<Lsn>, recorded: Option<u64>) -> Option<u64> {
    let position = releasable(oldest, kept, recorded);
    // Without a record, the whole log is kept as well.
    let is_kept_whole = kept.is_some() && position == 0;
    (recorded != Some(position) && !is_kept_whole).then_some(position)
}

/// Keeps the log from the oldest retained snapshot on, or from where a member that is away goes on: this node may follow
/// another leader when the member is back, and lead again after that. [`Inner::follow_archived`] makes up for it.
pub(super) fn keep_log(group: &Group<Outcome>, known: &mut RepositoryState) {
    if let Some(oldest) = known.oldest() {
        let oldest = oldest.lsn;
        let kept = group.kept_for_absent(Lsn(oldest));
        group.keep_from(Lsn(releasable(oldest, kept, known.followed)));
        known.keeps_for_absent = kept.is_some();
    }
}

impl Inner {
    /// What the leader of a partition keeps for members that are away, beside what the snapshots need, if this node leads
    /// it.
    pub(crate) fn log_kept_for_absent(&self, partition: u64) -> Option<KeptLog> {
        let group = self.group(partition);
        let retained = self.snapshots.known[partition as usize]
            .lock()
            .oldest()?
            .lsn;
        // Without a member that is away, the log would go up to there.
        let up_to = Lsn(retained).min(group.status().floor);
        group.log_kept_for_absent(up_to)
    }

    fn has_other_members(&self, partition: u64) -> bool {
        let membership = self.group(partition).membership();
        membership
            .members()
            .any(|member| member.0 != self.identity.node_id)
    }

    /// Keeps the entries above what the log records of the repository, and records what has changed there. Of a partition
    /// without other members, it only lets go what was kept for one that was removed meanwhile.
    pub(super) fn follow_archived(&self, partition: u64) {
        if !self.has_other_members(partition) {
            let mut known = self.snapshots.known[partition as usize].lock();
            if known.keeps_for_absent {
                keep_log(self.group(partition), &mut known);
            }
            return;
        }
        let part = self.partition_db(partition);
        let group = self.group(partition);
        let read = part
            .applied_as_of(group.status().applied.0)
            .and_then(|applied| Ok((applied, part.lineage()?)));
        let (applied, lineage) = match read {
            Ok((applied, lineage)) => (applied.unwrap_or_default(), lineage),
            Err(error) => {
                tracing::warn!(partition, %error, "what the repository retains is not followed");
                return;
            }
        };
        let recorded = applied.archived.map(|archived| archived.lsn);
        let mut known = self.snapshots.known[partition as usize].lock();
        if let Some(lsn) = recorded
            && known.followed.replace(lsn) != Some(lsn)
        {
            group.keep_from(Lsn(lsn));
        }
        let retained = known.oldest().map(|oldest| oldest.lsn);
        drop(known);
        if let Some(oldest) = retained.filter(|oldest| recorded != Some(*oldest))
            && group.status().role == Role::Leader
            && let kept = group.kept_for_absent(Lsn(oldest))
            && let Some(lsn) = position_to_record(oldest, kept, recorded)
        {
            let note = Kind::NoteArchived(NoteArchived {
                lineage: lineage.id().0.to_be_bytes().to_vec(),
                lsn,
            });
            // If it is refused or lost, the next round records it.
            drop(group.propose(note.into_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of a leader that knows of these snapshots, while a member goes on from there, one after the other.
    fn recorded(mut last: Option<u64>, rounds: &[(u64, Option<u64>)]) -> Vec<u64> {
        let mut records = Vec::new();
        for (oldest, kept) in rounds {
            // It comes by again and again, and records nothing twice.
            for _ in 0..3 {
                if let Some(lsn) = position_to_record(*oldest, kept.map(Lsn), last) {
                    records.push(lsn);
                    last = Some(lsn);
                }
            }
            let own = releasable(*oldest, kept.map(Lsn), last);
            assert!(own <= *oldest, "the snapshot needs what is above it");
            assert_eq!(own, last.unwrap_or_default(), "the log of this node");
        }
        records
    }

    #[test]
    fn while_a_member_is_away_the_log_goes_up_to_what_it_has() {
        // It had 900 when it left; the snapshot before that was as of 100.
        let away = [(1000, Some(900)), (2000, Some(900)), (2000, None)];
        assert_eq!(recorded(Some(100), &away), [900, 2000]);
    }

    #[test]
    fn leaders_that_know_nothing_of_a_member_let_the_log_go_behind_the_bound() {
        // Each of them keeps 500 entries.
        let leaders = [(1000, Some(500)), (1400, Some(900)), (1800, Some(1300))];
        assert_eq!(recorded(Some(100), &leaders), [500, 900, 1300]);
    }

    #[test]
    fn what_is_recorded_already_is_not_taken_back_for_a_member() {
        assert!(recorded(Some(1000), &[(1000, Some(500))]).is_empty());
        assert_eq!(
            recorded(Some(700), &[(1000, Some(500)), (1000, None)]),
            [1000]
        );
    }

    #[test]
    fn nothing_above_the_oldest_retained_snapshot_is_let_go() {
        assert_eq!(recorded(Some(700), &[(500, Some(600))]), [500]);
        assert_eq!(recorded(Some(700), &[(500, Some(100))]), [500]);
        assert_eq!(recorded(Some(700), &[(500, None)]), [500]);
    }

    #[test]
    fn where_a_member_needs_the_whole_log_nothing_is_recorded() {
        assert!(recorded(None, &[(1000, Some(0))]).is_empty());
        assert_eq!(recorded(None, &[(1000, None)]), [1000]);
        assert_eq!(recorded(None, &[(1000, Some(300))]), [300]);
    }
}
