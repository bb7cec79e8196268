//! The applied position of a partition, as it is stored with its data.

use esker_raft::{Committed, Membership};

use crate::log_tail::LogTail;
use crate::members::Members;

/// The applied position of a partition, and the members of its group as of it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Applied {
    /// LSN of the last entry whose effects are in the data.
    #[prost(uint64, tag = "1")]
    pub lsn: u64,
    /// Its term.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Members with a vote.
    #[prost(uint64, repeated, tag = "3")]
    pub voters: Vec<u64>,
    /// Members without a vote.
    #[prost(uint64, repeated, tag = "4")]
    pub learners: Vec<u64>,
    /// During a change of the membership: the members that had a vote before it.
    #[prost(uint64, repeated, tag = "5")]
    pub voters_outgoing: Vec<u64>,
    /// During a change of the membership: the members that become learners when it ends.
    #[prost(uint64, repeated, tag = "6")]
    pub learners_next: Vec<u64>,
    /// The learners that get a vote once they have caught up.
    #[prost(uint64, repeated, tag = "7")]
    pub to_promote: Vec<u64>,
    /// Checksums of the last entries; absent until one was applied by a build that computes them.
    #[prost(message, optional, tag = "8")]
    pub log_tail: Option<LogTail>,
    /// What the repository retains; absent until an entry recorded it.
    #[prost(message, optional, tag = "9")]
    pub archived: Option<Archived>,
}

/// What the repository retains of a partition, as an entry of the log recorded it.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Archived {
    /// LSN of the oldest snapshot, or of an entry before it while a member that is away needs the log from there: with
    /// the snapshot and the entries above this, the present state can be reached.
    #[prost(uint64, tag = "1")]
    pub lsn: u64,
    /// LSN of the entry that recorded it.
    #[prost(uint64, tag = "2")]
    pub noted_at: u64,
}

impl From<Applied> for Members {
    fn from(applied: Applied) -> Members {
        Members {
            voters: applied.voters,
            learners: applied.learners,
            voters_outgoing: applied.voters_outgoing,
            learners_next: applied.learners_next,
            to_promote: applied.to_promote,
        }
    }
}

impl Applied {
    /// The members of the group, as of this position.
    pub fn membership(&self) -> Membership {
        Membership::from(&Members::from(self.clone()))
    }

    /// The position after `entries`: that of the last entry, with the membership of the last entry that
    /// changes it.
    #[must_use]
    pub(crate) fn after(&self, entries: &[Committed]) -> Applied {
        let Some(last) = entries.last() else {
            return self.clone();
        };
        let changed = entries.iter().rev().find_map(|e| e.membership.as_deref());
        let members = changed.map_or_else(|| Members::from(self.clone()), Members::from);
        Applied {
            log_tail: LogTail::after(self.log_tail.as_ref(), self.lsn, entries),
            archived: self.archived,
            ..Applied::new(last.lsn.0, last.term.0, members)
        }
    }

    /// A position and the members of the group as of it, without checksums of the entries up to it.
    pub(crate) fn new(lsn: u64, term: u64, members: Members) -> Applied {
        Applied {
            lsn,
            term,
            voters: members.voters,
            learners: members.learners,
            voters_outgoing: members.voters_outgoing,
            learners_next: members.learners_next,
            to_promote: members.to_promote,
            log_tail: None,
            archived: None,
        }
    }
}
