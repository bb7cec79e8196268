//! Prepares a copy of a damaged partition while the other partitions are served.

use std::sync::Arc;

use super::activity::Activity;
use super::candidates::Source;
use super::context::Context;
use super::inspect::{PartitionFacts, log_facts};
use super::search::Search;
use crate::blocking::blocking;
use crate::core::Inner;
use crate::error::StartError;

/// Finds the copy that the next start continues from, fetches it if necessary, and compares all of its
/// blocks; returns where it is from. `activity` has what it does. Writes below `restore/` alone, where the next start finds what was
/// fetched.
///
/// # Errors
///
/// Those of a start: no copy leads to the present, or one cannot be read now.
pub(crate) async fn make_ready(
    inner: &Inner,
    partition: u64,
    damage: String,
    activity: Arc<Activity>,
) -> Result<Source, StartError> {
    activity.begin("reading the log", 0);
    let cx = Context::of(inner, activity);
    let raft = inner.raft.clone();
    let facts = PartitionFacts {
        partition,
        log: blocking(move || log_facts(&raft, partition)).await?,
        database: Err(damage),
        is_damaged: true,
        cut: None,
    };
    Ok(Search::lossless(&cx, &facts).find().await?.source)
}
