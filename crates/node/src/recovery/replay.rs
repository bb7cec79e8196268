//! Waits until the log is applied.

use std::time::{Duration, Instant};

use esker_partition::command::Outcome;
use esker_raft::Group;

use crate::core::Inner;
use crate::error::StartError;

/// How often replay is checked for progress.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Replay of a partition in which nothing is applied for this long fails: one step is 2 MiB of entries at
/// most, and a disk that is too slow for that cannot serve requests.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until every partition serves; of one that has other members, until everything is applied that was known
/// to be committed: who leads it is decided among them, and takes as long as they take.
///
/// # Errors
///
/// A partition halts for good, meets damage, or applies nothing for [`STALL_TIMEOUT`].
pub(super) async fn wait(inner: &Inner) -> Result<(), StartError> {
    let all_serve = async {
        for group in inner.groups() {
            while !is_replayed(inner, group) {
                // Not without looking again: by an entry that is replayed, others may become members, one of which leads.
                let _ = tokio::time::timeout(LOOK_INTERVAL, group.wait_until_serving()).await;
                is_well(inner, group)?;
                if group.halted().is_some() {
                    // It reopens automatically; until then the wait above ends at once.
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
            }
            is_well(inner, group)?;
        }
        Ok(())
    };
    tokio::select! {
        served = all_serve => served,
        given_up = watch(inner) => Err(given_up),
    }
}

/// Whether the group has, or waits for, other members.
fn has_others(inner: &Inner, group: &Group<Outcome>) -> bool {
    let Some(peers) = &inner.peers else {
        return false;
    };
    let membership = group.membership();
    membership.voters.len() != 1 || !membership.voters.iter().all(|node| node.0 == peers.me())
}

fn is_replayed(inner: &Inner, group: &Group<Outcome>) -> bool {
    let status = group.status();
    has_diverged(inner, group)
        || group.is_serving()
        || (has_others(inner, group) && status.applied >= status.committed)
}

/// Whether the replica is stopped for good: the node serves what it has of the other partitions.
fn has_diverged(inner: &Inner, group: &Group<Outcome>) -> bool {
    inner.replicas.diverged.why(group.id().0).is_some()
}

fn is_well(inner: &Inner, group: &Group<Outcome>) -> Result<(), StartError> {
    let partition = group.id().0;
    // A cause that may pass is waited for as long as a stall.
    let halted = || group.halted().filter(|halted| !halted.reopens);
    let halted = || halted().filter(|_| !has_diverged(inner, group));
    match inner.damage(partition).or_else(|| halted().map(|h| h.why)) {
        Some(why) => Err(StartError::Halted { partition, why }),
        None => Ok(()),
    }
}

/// Waits until replay has to fail; returns why.
async fn watch(inner: &Inner) -> StartError {
    let applied = || {
        inner
            .groups()
            .map(|group| group.status().applied.0)
            .collect::<Vec<_>>()
    };
    let mut seen = applied();
    let mut since = vec![Instant::now(); seen.len()];
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = applied();
        for (at, group) in inner.groups().enumerate() {
            if let Err(why) = is_well(inner, group) {
                return why;
            }
            if now[at] != seen[at] || is_replayed(inner, group) {
                since[at] = Instant::now();
            }
            if since[at].elapsed() >= STALL_TIMEOUT {
                let halted = || group.halted().map(|halted| halted.why);
                let cause = group.stall_cause().or_else(halted);
                let cause = cause.unwrap_or_else(|| "its log is not read on".to_owned());
                return StartError::Halted {
                    partition: group.id().0,
                    why: format!(
                        "nothing was applied for {} s after LSN {}: {cause}",
                        STALL_TIMEOUT.as_secs(),
                        now[at]
                    ),
                };
            }
        }
        seen = now;
    }
}
