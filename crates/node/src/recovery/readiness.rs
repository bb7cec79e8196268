//! A copy of a damaged partition, made ready while the others are served.

use super::acceptance::Accepted;
use super::attempts::Attempts;
use super::candidates::Source;
use super::copies::Search;
use super::inspect::{PartitionFacts, log_facts};
use crate::core::Inner;
use crate::error::StartError;

/// Finds the copy that the next start goes on from, fetches it if need be, and compares all of its blocks;
/// answers where it is from. Writes below `restore/` alone, where the next start finds what was fetched.
///
/// # Errors
///
/// Those of a start: no copy leads to the present, or one cannot be read now.
pub(crate) async fn make_ready(
    inner: &Inner,
    partition: u64,
    damage: String,
) -> Result<Source, StartError> {
    let facts = PartitionFacts {
        partition,
        log: log_facts(&inner.raft, partition)?,
        database: Err(damage),
        is_damaged: true,
    };
    let attempts = Attempts::default();
    let archive = &inner.snapshots.archive;
    let accepted = Accepted::default();
    let search = Search::lossless(
        &facts,
        &inner.data_dir,
        &inner.raft,
        archive,
        &attempts,
        &accepted,
    );
    Ok(search.find().await?.source)
}
