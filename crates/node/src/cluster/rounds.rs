//! How often the loops of a cluster's node look at nodes and members.

use std::time::Duration;

use crate::core::Inner;

/// How often nodes and members are looked at.
const INTERVAL: Duration = Duration::from_millis(250);

/// Waits for the next round. Returns whether there is one.
pub(super) async fn next_round(inner: &Inner) -> bool {
    let stopped = tokio::time::timeout(INTERVAL, inner.stopping.cancelled());
    stopped.await.is_err()
}
