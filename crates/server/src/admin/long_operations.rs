//! Operations that take long: proving, verifying and pruning snapshots. One runs per partition at a time, in turns by
//! principal: whoever begins one after the other does not keep others from theirs.

use std::sync::Arc;
use std::time::Duration;

use esker_node::{Client, FairBudget, FairPermit, SharePolicy};

use super::AdminError;

/// How long one waits for the one before it. Many last longer: then it is refused, and its client decides.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// The turns of long operations. Clones share them.
#[derive(Clone)]
pub(super) struct LongOperations {
    turns: Arc<Vec<FairBudget>>,
}

impl LongOperations {
    /// Of a node with so many partitions, with the catalog.
    pub(super) fn new(partitions: u64) -> LongOperations {
        let turn = |_| FairBudget::new(1, SharePolicy::All);
        LongOperations {
            turns: Arc::new((0..partitions).map(turn).collect()),
        }
    }

    /// How many partitions there are, with the catalog.
    pub(super) fn partitions(&self) -> u64 {
        self.turns.len() as u64
    }

    /// Runs an operation in turn. Once begun, it runs to its end and keeps its turn, even if its client disconnects.
    ///
    /// # Errors
    ///
    /// Those of the operation; `busy` if its turn has not come in time.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        client: Client,
        partition: u64,
        work: impl Future<Output = Result<T, AdminError>> + Send + 'static,
    ) -> Result<T, AdminError> {
        let turn = self.turn(client, partition).await?;
        let running = tokio::spawn(async move {
            let _turn = turn;
            work.await
        });
        // A panic in it has been reported by the panic hook.
        running
            .await
            .unwrap_or_else(|_| Err(esker_node::Error::Stopping.into()))
    }

    async fn turn(&self, client: Client, partition: u64) -> Result<Option<FairPermit>, AdminError> {
        // For a partition that does not exist, the node returns the error.
        let turns = usize::try_from(partition)
            .ok()
            .and_then(|at| self.turns.get(at));
        let Some(turns) = turns else {
            return Ok(None);
        };
        let turn = turns.take(client, 1, TURN_TIMEOUT).await;
        turn.map(Some).map_err(|_| AdminError::busy(partition))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;

    fn of(principal: u64) -> Client {
        Client {
            principal,
            connection: 0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_runs_per_partition_and_goes_on_when_nobody_waits() {
        let operations = LongOperations::new(3);
        let (finish, finished) = oneshot::channel::<()>();
        let mut first = Box::pin(operations.run(of(1), 1, async move {
            let _ = finished.await;
            Ok(())
        }));
        assert!((&mut first).now_or_never().is_none());
        let next = || operations.run(of(2), 1, async { Ok(()) });
        let busy = tokio::time::timeout(2 * TURN_TIMEOUT, next()).await;
        let busy = busy.expect("it does not wait for ever").unwrap_err();
        assert!(format!("{busy:?}").contains("busy"), "{busy:?}");
        // Another partition does not wait for this one, and one that is not there is not waited for.
        operations.run(of(2), 2, async { Ok(()) }).await.unwrap();
        operations.run(of(2), 9, async { Ok(()) }).await.unwrap();
        drop(first);
        assert!(next().await.is_err(), "it runs without its client");
        let mut waits = Box::pin(next());
        assert!((&mut waits).now_or_never().is_none());
        finish.send(()).unwrap();
        waits.await.unwrap();
    }

    #[tokio::test]
    async fn whoever_begins_one_after_the_other_leaves_turns_to_others() {
        let operations = LongOperations::new(1);
        let turn = |principal| Box::pin(operations.turn(of(principal), 0));
        let first = turn(1).await.unwrap();
        let mut queued: Vec<_> = (0..100).map(|_| turn(1)).collect();
        for waits in &mut queued {
            assert!(waits.now_or_never().is_none());
        }
        let mut other = turn(2);
        assert!((&mut other).now_or_never().is_none());
        // The first one that waits has the next turn at the latest before it.
        drop(first);
        let own: Vec<_> = queued
            .iter_mut()
            .filter_map(|it| it.now_or_never())
            .collect();
        assert!(own.len() <= 1, "{}", own.len());
        drop(own);
        assert!(other.now_or_never().is_some());
    }
}
