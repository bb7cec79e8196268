//! What the repository retains of a partition with several members, as all of them know it.
//!
//! The member that leads puts the snapshots, and records in the log up to where the oldest retained one goes
//! ([`Kind::NoteArchived`]). Each member keeps the entries above that, so that the snapshot and any member's log
//! lead to the present. While a member is away, nothing is recorded that would let the others remove what it goes on
//! with: any of them may lead when it is back. That is bounded as what the leader's own log keeps for it
//! ([`esker_raft::KeptForAbsent`]). Of a partition without other members the node keeps what it has read from the repository,
//! and nothing is recorded.

use esker_partition::command::{Kind, NoteArchived};
use esker_raft::{Lsn, Role};

use crate::core::Inner;

impl Inner {
    fn has_other_members(&self, partition: u64) -> bool {
        let membership = self.group(partition).membership();
        membership
            .members()
            .any(|member| member.0 != self.identity.node_id)
    }

    /// Keeps the entries above what the log records of the repository, and records what has changed there. Without
    /// effect on a partition without other members.
    pub(super) fn follow_archived(&self, partition: u64) {
        if !self.has_other_members(partition) {
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
        if let Some(lsn) = retained.filter(|lsn| recorded != Some(*lsn))
            && group.status().role == Role::Leader
            && !group.keeps_for_absent(Lsn(lsn))
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
