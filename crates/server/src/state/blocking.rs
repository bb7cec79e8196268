//! Runs calls that wait for a disk.

use esker_node::StateError;
use tonic::Status;

use super::status::status;

/// Runs a read where it may block. All reads go through here, except for single keys that are in the
/// cache.
///
/// # Errors
///
/// Those of the read.
pub(super) async fn read<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    // A panic in it has been reported by the panic hook; an end of the runtime is a stop.
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|_| Err(status(&StateError::Stopping)))
}
