//! Reads of the database on behalf of requests, other than those of records: streams that are not open, lists, and the
//! first record of a time, where a read begins.
//!
//! The threads of async code never read the database: one that waits for a disk would hold up every connection
//! that it serves, and there are few of them. Lookups wait in turns, by principal and then by connection
//! ([`FairBudget`]): whoever sends many waits for its own.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::admission::{Client, FairBudget, SharePolicy};
use crate::blocking::blocking;
use crate::error::Error;

/// Most lookups at a time, each on a thread of its own: several disks' worth, and few enough to leave threads
/// to reads of records.
pub(crate) const MAX_LOOKUPS: usize = 16;
/// Most reads at a time whose first record is looked up by its time, each on a thread of its own: an eighth of the 512
/// threads that the process has for what blocks, as keys of the state store have. On a disk that takes seconds for each,
/// a principal has 48 of them, and others find the rest.
pub(crate) const MAX_STARTS: usize = 64;
/// Longest wait for a turn.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The turns of lookups of one kind.
pub(crate) struct Lookups {
    pub(crate) turns: FairBudget,
    most: usize,
}

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups {
            turns: FairBudget::new(MAX_LOOKUPS, SharePolicy::All),
            most: MAX_LOOKUPS,
        }
    }
}

impl Lookups {
    /// The turns of reads that begin at a time.
    pub fn of_starts() -> Lookups {
        Lookups {
            turns: FairBudget::new(MAX_STARTS, SharePolicy::OverFree),
            most: MAX_STARTS,
        }
    }

    /// Runs work that reads the database on a thread where blocking is fine. The thread keeps its turn until it
    /// has ended, even if the caller is gone.
    ///
    /// # Errors
    ///
    /// Those of the work; [`Error::TryLater`] if its turn has not come within 10 s, and [`Error::Stopping`].
    pub async fn run<T: Send + 'static>(
        &self,
        client: Client,
        stopping: &CancellationToken,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = tokio::select! {
            turn = self.turns.take(client, 1, LOOKUP_TIMEOUT) => turn,
            () = stopping.cancelled() => return Err(Error::Stopping),
        };
        let Ok(turn) = turn else {
            return Err(Error::TryLater(format!(
                "other requests have read the database for {} s, {} at a time, in turns by principal: this one has \
                 sent many, or the disk is slow: nothing happened, try again",
                LOOKUP_TIMEOUT.as_secs(),
                self.most
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_lookup_waits_for_one_of_another_principal_and_not_for_all_that_it_has_sent() {
        let of = |principal| Client {
            principal,
            connection: 0,
        };
        let (lookups, stopping) = (Lookups::default(), CancellationToken::new());
        let (mut ends, hang): (Vec<_>, Vec<_>) = (0..MAX_LOOKUPS)
            .map(|_| {
                let (end, ended) = mpsc::channel::<()>();
                let work = move || Ok(ended.recv().is_ok());
                let mut hangs = Box::pin(lookups.run(of(1), &stopping, work));
                assert!((&mut hangs).now_or_never().is_none());
                (end, hangs)
            })
            .unzip();
        let queued: Vec<_> = (0..1000)
            .map(|_| {
                let mut waits = Box::pin(lookups.run(of(1), &stopping, || Ok(())));
                assert!((&mut waits).now_or_never().is_none());
                waits
            })
            .collect();
        let mut other = Box::pin(lookups.run(of(2), &stopping, || Ok(())));
        assert!((&mut other).now_or_never().is_none());
        // Two turns become free: the first one in the queue has one, and the other principal the next.
        ends.truncate(MAX_LOOKUPS - 2);
        other.await.unwrap();
        drop((ends, hang, queued));
        assert_eq!(lookups.turns.waiting(), 0);
    }

    #[tokio::test]
    async fn reads_of_one_principal_that_a_slow_disk_holds_up_leave_threads_to_others() {
        let of = |principal| Client {
            principal,
            connection: 0,
        };
        let (starts, stopping) = (Lookups::of_starts(), CancellationToken::new());
        let (ends, hang): (Vec<_>, Vec<_>) = (0..2 * MAX_STARTS)
            .map(|_| {
                let (end, ended) = mpsc::channel::<()>();
                let work = move || Ok(ended.recv().is_ok());
                let mut hangs = Box::pin(starts.run(of(1), &stopping, work));
                assert!((&mut hangs).now_or_never().is_none());
                (end, hangs)
            })
            .unzip();
        assert_eq!(starts.turns.taken(), MAX_STARTS / 4 * 3);
        starts.run(of(2), &stopping, || Ok(())).await.unwrap();
        drop((ends, hang));
    }
}
