//! Turns of requests that read much, or wait for a disk: usage metrics, lists of streams, pages of the state store, the
//! status of a node.
//!
//! So many read at a time as there are turns; the others wait, by principal and then by connection, as appends do
//! ([`FairBudget`]): whoever sends many requests waits for its own.

use std::time::Duration;

use esker_node::{Client, Error, FairBudget, FairPermit, SharePolicy};

/// Requests whose metrics are read from the database at a time. Each may read 64 MiB of records, and has a
/// thread meanwhile.
const MAX_READINGS: usize = 2;
/// Lists of streams that are read at a time: a quarter of the look-ups of a node, so that those of single streams, for
/// which appends and reads wait, always have the rest.
const MAX_LISTS: usize = 4;
/// Pages of the state store that are read for people at a time. Each reads 16 MiB at most.
const MAX_PAGES: usize = 4;
/// Keys of the state store that are not in memory, and are read at a time: each has a thread meanwhile, of the 512 of
/// the process.
const MAX_KEYS: usize = 64;
/// Lists of the JSON snapshots of the state store that are made at a time. Each reads all of them, to check them.
const MAX_SNAPSHOT_LISTS: usize = 2;
/// Requests that read the repository at a time. Each reads the root and descriptions, on threads if it is a directory.
const MAX_REPOSITORY_READS: usize = 8;
/// Times that a node's status is read at a time. Each looks at the files of all partitions.
const MAX_STATUS: usize = 4;
/// How long a request waits for those before it.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long work keeps its turn while what it asks does not answer: a store that hangs is asked again after 60 s, and
/// its turns must not be gone for as long as it hangs.
const MAX_WORK: Duration = Duration::from_secs(120);

/// Takes turns in reading. Clones share the turns.
#[derive(Clone)]
pub(crate) struct Turns {
    turns: FairBudget,
    /// What is read, for messages.
    what: &'static str,
    timeout: Duration,
}

impl Turns {
    /// The turns of requests for usage metrics.
    pub(crate) fn of_metrics() -> Turns {
        Turns::new(MAX_READINGS, "requests for metrics")
    }

    /// The turns of lists of streams.
    pub(crate) fn of_lists() -> Turns {
        Turns::new(MAX_LISTS, "lists of streams")
    }

    /// The turns of pages of the state store.
    pub(crate) fn of_pages() -> Turns {
        Turns::new(MAX_PAGES, "pages of the state store")
    }

    /// The turns of keys of the state store.
    pub(crate) fn of_keys() -> Turns {
        Turns::new(MAX_KEYS, "keys of the state store")
    }

    /// The turns of lists of JSON snapshots.
    pub(crate) fn of_snapshots() -> Turns {
        Turns::new(MAX_SNAPSHOT_LISTS, "lists of JSON snapshots")
    }

    /// The turns of reads of the repository.
    pub(crate) fn of_repository() -> Turns {
        Turns::new(MAX_REPOSITORY_READS, "requests for snapshots")
    }

    /// The turns of the status of a node.
    pub(crate) fn of_status() -> Turns {
        Turns::new(MAX_STATUS, "requests for the status")
    }

    fn new(turns: usize, what: &'static str) -> Turns {
        Turns {
            turns: FairBudget::new(turns, SharePolicy::All),
            what,
            timeout: TURN_TIMEOUT,
        }
    }

    /// Runs what reads on a thread where that is fine, in turn. What has begun keeps its turn until it ends, even if
    /// its client has gone.
    ///
    /// # Errors
    ///
    /// [`Error::TryLater`] if its turn has not come within 10 s; [`Error::Storage`] if the work has panicked, and
    /// [`Error::Stopping`].
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        client: Client,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let turn = self.turn(client).await?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        done.await.map_err(|error| match error.is_panic() {
            true => Error::Storage(error.to_string()),
            false => Error::Stopping,
        })
    }

    /// Runs what waits for a disk or a repository on threads of its own, in turn. What has begun goes on and keeps its
    /// turn until it ends, even if its client has gone.
    ///
    /// # Errors
    ///
    /// Those of the work; [`Error::TryLater`] if its turn has not come within 10 s, or if the work takes longer than
    /// [`MAX_WORK`]; and [`Error::Stopping`] if the work has panicked, which the panic hook has reported.
    pub(crate) async fn run_async<T: Send + 'static>(
        &self,
        client: Client,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = self.turn(client).await?;
        let under_way = tokio::spawn(async move {
            let done = tokio::time::timeout(MAX_WORK, work).await;
            drop(turn);
            done.unwrap_or_else(|_| {
                let why = format!(
                    "what was asked has not answered for {} s: try again",
                    MAX_WORK.as_secs()
                );
                Err(Error::TryLater(why))
            })
        });
        under_way.await.unwrap_or_else(|_| Err(Error::Stopping))
    }

    /// Waits for a turn.
    ///
    /// # Errors
    ///
    /// [`Error::TryLater`] if it has not come within 10 s.
    pub(crate) async fn turn(&self, client: Client) -> Result<FairPermit, Error> {
        let turn = self.turns.take(client, 1, self.timeout).await;
        turn.map_err(|_| {
            Error::TryLater(format!(
                "other {} have been read for {} s: nothing happened, try again",
                self.what,
                self.timeout.as_secs()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};

    use futures::FutureExt as _;
    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn no_more_requests_read_for_metrics_at_a_time_than_there_are_turns() {
        let (readings, running) = (Turns::of_metrics(), Arc::new(AtomicUsize::new(0)));
        let most = join_all((0..40).map(|_| {
            let running = running.clone();
            readings.run(Client::default(), move || {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                std::thread::yield_now();
                std::thread::sleep(Duration::from_millis(1));
                running.fetch_sub(1, Ordering::SeqCst);
                now
            })
        }));
        let most = most.await.into_iter().map(Result::unwrap).max();
        assert!(most <= Some(MAX_READINGS), "{most:?}");
    }

    #[tokio::test]
    async fn a_request_that_has_gone_keeps_its_turn_until_its_reading_ends_and_others_wait_in_time()
    {
        let readings = Turns {
            timeout: Duration::from_millis(20),
            ..Turns::of_metrics()
        };
        let ends: Vec<_> = (0..MAX_READINGS)
            .map(|_| {
                let (end, ended) = mpsc::channel::<()>();
                // Its client goes at once.
                let gone = readings
                    .run(Client::default(), move || ended.recv())
                    .now_or_never();
                assert!(gone.is_none());
                end
            })
            .collect();
        let late = readings.run(Client::default(), || ()).await.unwrap_err();
        assert!(matches!(late, Error::TryLater(_)), "{late}");
        drop(ends);
        let readings = Turns {
            timeout: TURN_TIMEOUT,
            ..readings
        };
        readings.run(Client::default(), || ()).await.unwrap();
    }

    #[tokio::test]
    async fn what_waits_for_a_repository_keeps_its_turn_until_it_ends_although_its_client_has_gone()
    {
        let reads = Turns {
            timeout: Duration::from_millis(20),
            ..Turns::of_repository()
        };
        let (answer, answered) = tokio::sync::watch::channel(false);
        let read = || {
            let mut answered = answered.clone();
            reads.run_async(Client::default(), async move {
                let answered = answered.wait_for(|answered| *answered).await;
                answered.map(|_| ()).map_err(|_| Error::Stopping)
            })
        };
        for _ in 0..MAX_REPOSITORY_READS {
            assert!(read().now_or_never().is_none());
        }
        let late = read().await.unwrap_err();
        assert!(matches!(late, Error::TryLater(_)), "{late}");
        answer.send(true).unwrap();
        while reads.turns.free() < MAX_REPOSITORY_READS {
            tokio::task::yield_now().await;
        }
        read().await.unwrap();
    }

    #[tokio::test]
    async fn one_request_waits_for_one_of_another_principal_and_not_for_all_of_them() {
        let of = |principal| Client {
            principal,
            connection: 0,
        };
        let readings = Turns::of_metrics();
        let held: Vec<_> = (0..MAX_READINGS)
            .map(|_| readings.turn(of(1)).now_or_never().unwrap().unwrap())
            .collect();
        let mut flood: Vec<_> = (0..100).map(|_| Box::pin(readings.turn(of(1)))).collect();
        for waits in &mut flood {
            assert!(waits.now_or_never().is_none());
        }
        let mut polite = Box::pin(readings.turn(of(2)));
        assert!((&mut polite).now_or_never().is_none());
        drop(held);
        assert!(polite.now_or_never().is_some());
        drop(flood);
        let turns = (readings.turns.free(), readings.turns.waiting());
        assert_eq!(turns, (MAX_READINGS, 0));
    }
}
