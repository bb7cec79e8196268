//! The end of a log that goes on without the other members: entries that may never have been committed.
//!
//! - Whatever the repository has was committed. A snapshot whose last entry is of a later term than the log's shows
//!   that the end of the log was not: it was proposed by a leader that was replaced, and others have other entries in
//!   its place. As among members, the later term counts, and in one term the longer history
//!   ([`Search::restart_after`]).
//! - Where nothing shows that, the end of the log is kept, because most of it was acknowledged. But others may have
//!   committed other entries there, and clients may have read them. So the lineage begins after the last entry that
//!   is known to be committed, and the entries after it are applied behind the gap of that fork: no number that the
//!   others have given out stands for another record. The catalog's lineage begins after all entries, because the
//!   partitions refer to its numbers; it has no records.
//! - A database gets such entries only when it is of the new lineage. So one that was left before that is still that
//!   of a member like any other.

use esker_partition::streams::StreamPartition;
use esker_partition::{PartitionId, Store};
use esker_raft::GroupId;

use super::candidates::{Candidate, LogFacts};
use super::context::{Context, log_state};
use super::search::{RecoverySource, Search};
use super::survivor::apply_up_to;
use crate::error::StartError;

impl Search<'_> {
    /// Up to here the entries of the log are known to be committed: the log has noted it, or the database has applied
    /// them.
    pub(super) fn committed(&self) -> u64 {
        let Some(log) = &self.facts.log else {
            return 0;
        };
        let database = self.facts.database.as_ref().ok();
        let applied = database.filter(|database| database.lineage == log.lineage.id());
        let applied = applied.map_or(0, |database| database.lsn);
        log.commit.max(applied).min(log.last)
    }

    /// Up to where a copy that the log does not contradict shows that entries of it were committed.
    pub(super) fn committed_by(&self, copy: &Candidate) -> u64 {
        let log = self.facts.log.as_ref();
        let is_in = |log: &&LogFacts| log.lineage.id() == copy.lineage && copy.lsn <= log.last;
        log.filter(is_in).map_or(0, |_| copy.lsn)
    }

    /// After which LSN the lineage begins in which this node is alone, if entries of the log up to `committed` are
    /// known to be committed: the LSN that an earlier start has decided on, if it has.
    pub(super) fn lineage_begins_after(
        &self,
        source: &RecoverySource,
        log: &LogFacts,
        committed: u64,
    ) -> u64 {
        if self.facts.partition == 0 {
            return log.last;
        }
        let covered = source.ready.as_ref().map_or(0, |ready| ready.meta.lsn);
        let least = committed.max(covered);
        let planned = self.planned.filter(|planned| {
            planned.parent() == Some(log.lineage.id()) && (least..=log.last).contains(&planned.lsn)
        });
        planned.map_or(least, |planned| planned.lsn)
    }
}

/// Applies what the log has beyond the beginning of the partition's lineage. After a crash it goes on. Blocking.
pub(super) fn replay_rest(cx: &Context, store: &Store, partition: u64) -> Result<(), StartError> {
    let id = PartitionId(partition);
    let last = log_state(&cx.raft, partition)?.last;
    let applied = store.applied(id)?.map_or(0, |applied| applied.lsn);
    if partition == 0 || applied >= last.0 || cx.raft.log().tag(GroupId(partition)).is_none() {
        return Ok(());
    }
    tracing::warn!(
        partition,
        after = applied,
        last = last.0,
        "the log has entries that are not known to be committed: they are kept, and their records get numbers behind the gap of the new lineage"
    );
    let machine = StreamPartition::open_behind_fork(store, id, cx.options.stream_options())?;
    apply_up_to(cx, partition, machine, last)?;
    Ok(store.partition_db(id).flush()?)
}
