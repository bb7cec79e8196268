//! A log that has lost its end, as copies on this disk show.
//!
//! Database and local snapshots are made of entries that the log has synced. One that is of the log's own lineage and
//! covers more than the log was made before the log lost entries: the log was cut, or an older copy of it was put
//! back. All partitions are in the same files of the log, so what one partition shows holds for all: of none of them
//! is it known any more that the log reaches every acknowledged entry.
//!
//! Descriptions alone are read here. A local snapshot whose files are damaged shows as much as one that is whole.

use std::path::PathBuf;

use esker_partition::{Checkpoint, checkpoint};

use super::candidates::{Candidate, copy_of};
use super::context::Context;
use super::contradiction::Witness;
use super::inspect::{Facts, PartitionFacts, copy_in};
use super::plan::Plan;
use crate::error::StartError;

/// Notes in the facts what they show of the log. Blocking.
pub(super) fn note_cut(cx: &Context, facts: &mut Facts, plan: &Plan) -> Result<(), StartError> {
    for facts in &mut facts.partitions {
        facts.cut = cut_of(cx, facts)?;
    }
    facts.cut = cut_of_any(&facts.partitions, plan);
    Ok(())
}

/// Why the log does not have everything of a partition, where a copy on this disk shows that. Blocking.
///
/// # Errors
///
/// A local snapshot that covers more than the log cannot be read now.
pub(super) fn cut_of(cx: &Context, facts: &PartitionFacts) -> Result<Option<String>, StartError> {
    let Some(log) = &facts.log else {
        return Ok(None);
    };
    let beyond = |copy: &Candidate| copy.lineage == log.lineage.id() && copy.lsn > log.last;
    let database = facts.database.as_ref().ok().map(copy_in);
    let mut copies: Vec<Candidate> = database.into_iter().filter(beyond).collect();
    let dirs = locals_beyond(cx, facts.partition, log.last);
    for dir in dirs {
        match Checkpoint::described(&dir) {
            Ok(found) if is_itself(&found, facts.partition) => {
                copies.extend(Some(copy_of(&found)).filter(beyond));
            }
            Err(error) if error.is_unreadable() => {
                let what = format!(
                    "a local snapshot that covers more than the log, {}",
                    dir.display()
                );
                return Err(StartError::unreadable(what, &error));
            }
            // It is damaged, and shows nothing.
            _ => {}
        }
    }
    let witness = Witness::new(&cx.raft, facts.partition, log.clone());
    for copy in copies {
        if witness.contradicts(&copy)?.is_none() {
            return Ok(Some(format!(
                "log: it ends at LSN {} in partition {}, and the {} has LSN {}: it was cut or replaced",
                log.last, facts.partition, copy.source, copy.lsn
            )));
        }
    }
    Ok(None)
}

/// Why the log does not have everything of the partitions: one of them shows it; or an earlier start has found it,
/// and has begun the new lineages of some partitions since.
pub(super) fn cut_of_any(partitions: &[PartitionFacts], plan: &Plan) -> Option<String> {
    let shown = partitions.iter().find_map(|facts| facts.cut.clone());
    let is_begun = || partitions.iter().any(|facts| has_begun(facts, plan));
    let known = || "log: an earlier start has found that it was cut or replaced".to_owned();
    shown.or_else(|| (plan.log_is_cut && is_begun()).then(known))
}

/// Whether the lineage that an earlier start has planned for a partition has begun in the log.
pub(super) fn has_begun(facts: &PartitionFacts, plan: &Plan) -> bool {
    let planned = plan.forks.get(&facts.partition);
    let log = facts.log.as_ref().map(|log| log.lineage.id());
    log.is_some() && planned.is_some_and(|planned| planned.id() == log)
}

/// Local snapshots of a partition whose names have an LSN beyond the log. Those that cannot be listed now are not
/// used either.
fn locals_beyond(cx: &Context, partition: u64, last: u64) -> Vec<PathBuf> {
    let base = cx.data_dir.checkpoints().join(partition.to_string());
    let mut there = checkpoint::all(&base).unwrap_or_default();
    there.retain(|dir| checkpoint::lsn_of(dir).is_some_and(|lsn| lsn > last));
    there
}

/// Whether a description is the one of its directory: it has no checksum.
fn is_itself(found: &Checkpoint, partition: u64) -> bool {
    found.meta.partition == partition && checkpoint::lsn_of(&found.dir) == Some(found.meta.lsn)
}
