//! Turns of requests that change basins, streams and access tokens.
//!
//! Of the proposals that may be pending in a partition, appends leave 1,024 to all else. Whoever sends many changes
//! must not fill these, or changes of others would be refused: changes have half of them, in turns by principal, and of
//! these a principal has its share.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::admission::{Client, FairBudget, FairPermit, SharePolicy, unless_stopping};
use crate::blocking::join;
use crate::error::Error;

/// Changes at a time, in all partitions: whatever partition they are of, they fit into what appends leave there.
const MAX_CHANGES: usize = 512;
/// Longest wait for a turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// The turns of changes.
pub(crate) struct ChangeTurns(FairBudget);

impl Default for ChangeTurns {
    fn default() -> ChangeTurns {
        // A partition that does not answer keeps what was proposed to it for a while.
        ChangeTurns(FairBudget::new(MAX_CHANGES, SharePolicy::OverFree))
    }
}

impl ChangeTurns {
    /// Waits for a turn and makes a change. Once begun, it goes on and keeps its turn even if the caller is gone: what it
    /// has proposed is pending until it is applied.
    ///
    /// # Errors
    ///
    /// Those of the change; [`Error::TryLater`] if its turn has not come within 10 s, and [`Error::Stopping`]: nothing
    /// happened then.
    pub async fn run<T: Send + 'static, E: From<Error> + Send + 'static>(
        &self,
        client: Client,
        stopping: &CancellationToken,
        change: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E> {
        let turn = unless_stopping(stopping, self.turn(client)).await?;
        let under_way = tokio::spawn(async move {
            let changed = change.await;
            drop(turn);
            changed
        });
        join(under_way).await
    }

    async fn turn(&self, client: Client) -> Result<FairPermit, Error> {
        let turn = self.0.take(client, 1, TURN_TIMEOUT).await;
        turn.map_err(|_| {
            Error::TryLater(format!(
                "other changes of basins, streams and access tokens were under way for {} s, {MAX_CHANGES} at a time, \
                 in turns by principal: nothing happened, try again",
                TURN_TIMEOUT.as_secs()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn changes_of_one_principal_leave_turns_to_others() {
        let of = |principal| Client {
            principal,
            connection: 0,
        };
        let turns = ChangeTurns::default();
        let mut under_way = Vec::new();
        while let Some(turn) = turns.turn(of(1)).now_or_never() {
            under_way.push(turn.unwrap());
        }
        assert_eq!(under_way.len(), MAX_CHANGES / 4 * 3);
        let mut queued: Vec<_> = (0..1000).map(|_| Box::pin(turns.turn(of(1)))).collect();
        for waits in &mut queued {
            assert!(waits.now_or_never().is_none());
        }
        let other = turns.turn(of(2)).now_or_never();
        drop(other.expect("it does not wait").unwrap());
        drop((under_way, queued));
        assert_eq!((turns.0.taken(), turns.0.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn a_change_whose_caller_is_gone_goes_on_and_keeps_its_turn_until_it_is_made() {
        let turns = ChangeTurns::default();
        let (apply, applied) = tokio::sync::oneshot::channel::<()>();
        let (made, is_made) = tokio::sync::oneshot::channel();
        let change = async move {
            applied.await.unwrap();
            made.send(()).unwrap();
            Ok::<_, Error>(())
        };
        let stopping = CancellationToken::new();
        let mut asked = Box::pin(turns.run(Client::default(), &stopping, change));
        assert!((&mut asked).now_or_never().is_none());
        drop(asked);
        tokio::task::yield_now().await;
        assert_eq!(turns.0.taken(), 1, "its proposal is pending");
        apply.send(()).unwrap();
        is_made.await.unwrap();
        while turns.0.taken() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
