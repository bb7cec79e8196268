//! Runs blocking work of async code on threads where blocking is fine.

use tokio::task::JoinError;

/// Most bytes of records that are encrypted or decrypted on a thread of async code. A processor without
/// instructions for AES takes some 300 µs for them; handing less to another thread costs more than it saves.
pub(crate) const MAX_INLINE: usize = 32 * 1024;

/// Runs work that may wait for a disk, or that takes long.
pub(crate) async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    join(tokio::task::spawn_blocking(f)).await
}

/// Waits for a task; a panic of the task is raised again in the caller.
pub(crate) async fn join<T>(task: impl Future<Output = Result<T, JoinError>>) -> T {
    match task.await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
