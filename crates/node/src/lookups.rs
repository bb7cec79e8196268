//! Reads of the database on behalf of requests, other than those of records: streams that are not open, lists.
//!
//! The threads of async code never read the database: one that waits for a disk would hold up every connection
//! that it serves, and there are few of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::blocking::blocking;
use crate::error::Error;
use crate::node::Node;

/// Most lookups at a time, each on a thread of its own: several disks' worth, and few enough to leave threads
/// to reads of records.
const MAX_LOOKUPS: usize = 16;
/// Longest wait for a turn.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The turns of lookups.
pub(crate) struct Lookups(Arc<Semaphore>);

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups(Arc::new(Semaphore::new(MAX_LOOKUPS)))
    }
}

impl Node {
    /// Runs work that reads the database on a thread where blocking is fine. The thread keeps its turn until it
    /// has ended, even if the caller is gone.
    ///
    /// # Errors
    ///
    /// Those of the work; [`Error::TryLater`] if others have read for 10 s, and [`Error::Stopping`].
    pub async fn look_up<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Node) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = self.inner.lookups.0.clone().acquire_owned();
        let turn = tokio::select! {
            turn = tokio::time::timeout(LOOKUP_TIMEOUT, turn) => turn,
            () = self.inner.stopping.cancelled() => return Err(Error::Stopping),
        };
        let Ok(Ok(turn)) = turn else {
            return Err(Error::TryLater(format!(
                "other requests have waited for the database for {} s, because the disk is slow: nothing \
                 happened, try again",
                LOOKUP_TIMEOUT.as_secs()
            )));
        };
        let node = self.clone();
        blocking(move || {
            let done = work(&node);
            drop(turn);
            done
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use s2_common::config::{BasinConfig, OptionalStreamConfig};

    use super::*;
    use crate::basins::Create;
    use crate::options::NodeOptions;
    use crate::streams::CreateOn;

    #[tokio::test]
    async fn a_stream_that_is_open_is_found_while_all_lookups_wait_for_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(NodeOptions::new(dir.path())).await.unwrap();
        let ensure = Create::Ensure;
        let config = BasinConfig::default();
        let basin = node.provision_basin("test-basin", &config, &ensure);
        basin.await.unwrap();
        let settings = OptionalStreamConfig::default();
        let stream = node.provision_stream("test-basin", "open", &settings, &ensure);
        stream.await.unwrap();

        let turns = node.inner.lookups.0.clone();
        let all = turns.acquire_many_owned(MAX_LOOKUPS as u32).await.unwrap();
        let open = |name| node.open_stream("test-basin", name, CreateOn::Append, &settings);
        open("open").await.unwrap();
        let absent = open("absent");
        tokio::pin!(absent);
        let early = tokio::time::timeout(Duration::from_millis(100), &mut absent).await;
        assert!(early.is_err(), "it was read without a turn");
        drop(all);
        let absent = absent.await;
        assert!(matches!(absent, Err(Error::StreamNotFound { .. })));
        assert_eq!(node.inner.lookups.0.available_permits(), MAX_LOOKUPS);
        node.stop(Duration::from_secs(30)).await;
    }
}
