//! Restarts of a node by its host, and its end for good.

use std::time::{Duration, Instant};

use super::Node;
use crate::blocking::blocking;

/// Wait before a restart that the host has not made is requested again.
const HOST_RETRY: Duration = Duration::from_secs(60);

impl Node {
    /// Waits until the process is to end for good, because the cluster has removed this node and needs nothing of what
    /// it has. Returns the reason. [`Node::stop`] deletes the replicas then.
    pub async fn removed_from_cluster(&self) -> String {
        self.inner.replicas.departure.ended().await
    }

    /// Waits until a restart is needed and safe, and returns the reason. The host then has to call
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

    /// Counts a restart durably, before it is made. The caller may drop this at any time, for example
    /// because the disk hangs: then the restart may count, and nothing else has happened.
    ///
    /// # Errors
    ///
    /// The reason why the restart must not be made, for [`Node::hold_restart_back`]: it cannot be noted, so
    /// restarts would not be bounded; or the path of the data directory does not lead to it any more; or its
    /// disk hangs.
    pub async fn note_restart(&self, cause: &str) -> Result<(), String> {
        // The message has no figures that change, because each new reason is logged.
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

    /// Shows what the host waits for before it makes the restart or calls [`Node::hold_restart_back`].
    pub fn show_restart_waits(&self, why: String) {
        self.inner.restarts.hold_back(Some(why));
    }

    /// Notes that the host does not make the restart, and why. It is requested again after [`HOST_RETRY`].
    pub fn hold_restart_back(&self, why: String) {
        let restarts = &self.inner.restarts;
        restarts.hold_back(Some(why));
        *restarts.retry_at.lock() = Some(Instant::now() + HOST_RETRY);
        restarts.wanted.send_replace(None);
    }
}
