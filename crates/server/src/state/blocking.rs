//! Runs calls that wait for a disk.

use esker_node::{Client, Error, StateError};
use tonic::Status;

use super::status::{status, unavailable};
use crate::turns::Turns;

/// Runs a read where it may block. All reads go through here, except for single keys that are in the
/// cache. Scans have turns of their own.
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

/// The same, in turn.
///
/// # Errors
///
/// Those of the read; `UNAVAILABLE` if its turn has not come in time.
pub(super) async fn read_in_turn<T: Send + 'static>(
    turns: &Turns,
    client: Client,
    read: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    match turns.run(client, read).await {
        Ok(done) => done,
        Err(Error::TryLater(why)) => Err(unavailable(why)),
        Err(_) => Err(status(&StateError::Stopping)),
    }
}
