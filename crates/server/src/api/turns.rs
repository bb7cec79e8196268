//! Turns of requests that read much of the database: usage metrics, lists of streams.
//!
//! So many read at a time as there are turns; the others wait, by principal and then by connection, as appends do
//! ([`FairQueue`]): whoever sends many requests waits for its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use esker_node::{Client, Error, FairQueue, Path, Ticket};
use tokio::sync::oneshot;

/// Requests whose metrics are read from the database at a time. Each may read 64 MiB of records, and has a
/// thread meanwhile.
const MAX_READINGS: usize = 2;
/// Lists of streams that are read at a time: a quarter of the look-ups of a node, so that those of single streams, for
/// which appends and reads wait, always have the rest.
const MAX_LISTS: usize = 4;
/// How long a request waits for those before it.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// Takes turns in reading the database. Clones share the turns.
#[derive(Clone)]
pub struct Turns {
    state: Arc<Mutex<State>>,
    /// What is read, for messages.
    what: &'static str,
    timeout: Duration,
}

struct State {
    free: usize,
    queue: FairQueue<oneshot::Sender<Turn>>,
}

/// One of the turns; it is given to the next one when this is dropped.
pub(super) struct Turn(Turns);

/// A place in the queue, until its turn comes or it is dropped.
struct Place<'a> {
    turns: &'a Turns,
    path: &'a Path,
    ticket: Ticket,
}

impl Turns {
    /// The turns of requests for usage metrics.
    pub(super) fn of_metrics() -> Turns {
        Turns::new(MAX_READINGS, "requests for metrics")
    }

    /// The turns of lists of streams.
    pub(super) fn of_lists() -> Turns {
        Turns::new(MAX_LISTS, "lists of streams")
    }

    fn new(free: usize, what: &'static str) -> Turns {
        let state = State {
            free,
            queue: FairQueue::new(),
        };
        Turns {
            state: Arc::new(Mutex::new(state)),
            what,
            timeout: TURN_TIMEOUT,
        }
    }

    /// Runs what reads the database on a thread where that is fine, in turn. What has begun keeps its turn
    /// until it ends, even if its client has gone.
    pub(super) async fn run<T: Send + 'static>(
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
        done.await
            .map_err(|error| Error::Storage(error.to_string()))
    }

    /// Waits for a turn.
    ///
    /// # Errors
    ///
    /// [`Error::TryLater`] if others read for 10 s.
    pub(super) async fn turn(&self, client: Client) -> Result<Turn, Error> {
        let turn = tokio::time::timeout(self.timeout, self.next(client)).await;
        turn.map_err(|_| {
            Error::TryLater(format!(
                "other {} have been read for {} s: nothing happened, try again",
                self.what,
                self.timeout.as_secs()
            ))
        })
    }

    async fn next(&self, client: Client) -> Turn {
        let path = [client.principal, client.connection, 0];
        let (ticket, granted) = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn(self.clone());
            }
            let (grants, granted) = oneshot::channel();
            (state.queue.push(&path, 1, grants), granted)
        };
        let _place = Place {
            turns: self,
            path: &path,
            ticket,
        };
        match granted.await {
            Ok(turn) => turn,
            // The queue keeps the other end until it has sent.
            Err(_) => std::future::pending().await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut state = self.0.lock();
            let next = state.queue.pop();
            if next.is_none() {
                state.free += 1;
            }
            next
        };
        if let Some(next) = next {
            // If it does not wait any longer, what it gets is dropped, which comes here again.
            drop(next.send(Turn(self.0.clone())));
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.turns.lock().queue.remove(self.path, self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

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
    async fn one_request_waits_for_one_of_another_principal_and_not_for_all_of_them() {
        let of = |principal| Client {
            principal,
            connection: 0,
        };
        let readings = Turns::of_metrics();
        let held: Vec<_> = (0..MAX_READINGS)
            .map(|_| readings.next(of(1)).now_or_never().unwrap())
            .collect();
        let mut flood: Vec<_> = (0..100).map(|_| Box::pin(readings.next(of(1)))).collect();
        for waits in &mut flood {
            assert!(waits.now_or_never().is_none());
        }
        let mut polite = Box::pin(readings.next(of(2)));
        assert!((&mut polite).now_or_never().is_none());
        drop(held);
        assert!(polite.now_or_never().is_some());
        drop(flood);
        assert_eq!(readings.lock().free, MAX_READINGS);
        assert_eq!(readings.lock().queue.waiting(), 0);
    }
}
