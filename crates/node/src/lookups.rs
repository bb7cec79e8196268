//! Reads of the database on behalf of requests, other than those of records: streams that are not open, lists.
//!
//! The threads of async code never read the database: one that waits for a disk would hold up every connection
//! that it serves, and there are few of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::blocking::blocking;
use crate::error::Error;

/// Most lookups at a time, each on a thread of its own: several disks' worth, and few enough to leave threads
/// to reads of records.
pub(crate) const MAX_LOOKUPS: usize = 16;
/// Longest wait for a turn.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The turns of lookups.
pub(crate) struct Lookups(pub(crate) Arc<Semaphore>);

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups(Arc::new(Semaphore::new(MAX_LOOKUPS)))
    }
}

impl Lookups {
    /// Runs work that reads the database on a thread where blocking is fine. The thread keeps its turn until it
    /// has ended, even if the caller is gone.
    ///
    /// # Errors
    ///
    /// Those of the work; [`Error::TryLater`] if others have read for 10 s, and [`Error::Stopping`].
    pub async fn run<T: Send + 'static>(
        &self,
        stopping: &CancellationToken,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = self.0.clone().acquire_owned();
        let turn = tokio::select! {
            turn = tokio::time::timeout(LOOKUP_TIMEOUT, turn) => turn,
            () = stopping.cancelled() => return Err(Error::Stopping),
        };
        let Ok(Ok(turn)) = turn else {
            return Err(Error::TryLater(format!(
                "{MAX_LOOKUPS} other requests have read the database for {} s, for there are many or the disk is \
                 slow: nothing happened, try again",
                LOOKUP_TIMEOUT.as_secs()
            )));
        };
        blocking(move || {
            let done = work();
            drop(turn);
            done
        })
        .await
    }
}
