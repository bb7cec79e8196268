//! Admission: what appends and commits may have in flight, and whose turn it is.
//!
//! | module | what it holds |
//! |---|---|
//! | [`gate`] | the bounds of a partition, and who waits for them |
//! | [`fair_queue`] | the order of those that wait |
//! | [`fair_budget`] | places or bytes that clients share in that order, each with a share |
//! | [`pace`] | how much is in flight where several compete |

mod fair_budget;
mod fair_queue;
mod gate;
mod pace;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

pub use fair_budget::{FairBudget, FairPermit, NoTurn, SharePolicy};
pub use fair_queue::{FairQueue, Path, Ticket, Verdict};
pub use gate::Client;
pub(crate) use gate::{Caller, Gate};
pub(crate) use pace::Pace;

use crate::error::Error;

/// How long a single append or commit waits for those in flight: as long as its body waits for memory.
pub(crate) const ADMISSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for admission, or until the node stops. What does not have to wait is admitted all the same: it would take
/// locks that all requests share to find out first whether the node stops, and whoever proposes looks at that anyway
/// ([`Node::is_draining`](crate::Node::is_draining)).
pub(crate) async fn unless_stopping<T>(
    stopping: &CancellationToken,
    admitted: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::select! {
        biased;
        admitted = admitted => admitted,
        () = stopping.cancelled() => Err(Error::Stopping),
    }
}

/// Takes part of a budget; waits for it without a deadline.
pub(crate) async fn admit(
    budget: &Arc<Semaphore>,
    permits: usize,
) -> Result<OwnedSemaphorePermit, Error> {
    let permits = u32::try_from(permits).unwrap_or(u32::MAX);
    let admitted = budget.clone().acquire_many_owned(permits).await;
    admitted.map_err(|_| Error::Stopping)
}

/// Waits for admission, at most so long.
///
/// # Errors
///
/// [`Error::TryLater`] if others keep the budget for longer; nothing happened then.
pub(crate) async fn in_time<T>(
    timeout: Duration,
    admitted: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let admitted = tokio::time::timeout(timeout, admitted).await;
    admitted.unwrap_or_else(|_| {
        Err(Error::TryLater(format!(
            "for {timeout:?}, appends in flight have taken the partition's share of `limits.append-inflight`, or all \
             of its places, because the disk is slower than they come: nothing happened, try again"
        )))
    })
}
