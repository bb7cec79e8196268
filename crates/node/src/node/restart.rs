//! Restarts of a node, as its host makes them.

use std::time::{Duration, Instant};

use super::Node;
use crate::blocking::blocking;

/// A host that does not make a restart is asked for it again after so long.
const HOST_RETRY: Duration = Duration::from_secs(60);

impl Node {
    /// Waits until a restart is needed and safe, and answers why. The host is to call
    /// [`Node::note_restart`], stop the node, and start the process again.
    pub async fn restart_wanted(&self) -> String {
        let mut wanted = self.inner.restarts.wanted.subscribe();
        loop {
            if let Some(cause) = wanted.borrow_and_update().clone() {
                return cause;
            }
            if wanted.changed().await.is_err() {
                // The sender lives as long as this node.
                std::future::pending::<()>().await;
            }
        }
    }

    /// A restart is about to be made: it counts from now on, durably. May be given up at any time, on a
    /// disk that hangs say: then the restart may count, and nothing else has happened.
    ///
    /// # Errors
    ///
    /// Why there must be none ([`Node::hold_restart_back`]): it cannot be noted, so restarts would not be
    /// bounded; or the path of the data directory does not lead to it any more; or its disk hangs.
    pub async fn note_restart(&self, cause: &str) -> Result<(), String> {
        // Without figures, which change: each new reason is logged.
        if self.inner.hanging_write().is_some() {
            return Err("the disk of the log does not answer".to_owned());
        }
        let (inner, cause) = (self.inner.clone(), cause.to_owned());
        let noted = blocking(move || {
            inner.data_dir.check_in_place(&inner.options.data_dir)?;
            inner.restarts.note(&cause)
        });
        noted.await.map_err(|e| e.to_string())
    }

    /// The host does not make the restart, for this reason. It is asked again after [`HOST_RETRY`].
    pub fn hold_restart_back(&self, why: String) {
        let restarts = &self.inner.restarts;
        restarts.hold_back(Some(why));
        *restarts.retry_at.lock() = Some(Instant::now() + HOST_RETRY);
        restarts.wanted.send_replace(None);
    }
}
