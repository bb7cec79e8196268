//! Waiting, in async code, for what runs on threads where blocking is fine.

use tokio::task::JoinHandle;

/// Runs what may wait for a disk.
pub(crate) async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    join(tokio::task::spawn_blocking(f)).await
}

/// Waits for such a task; its panic is the caller's.
pub(crate) async fn join<T>(task: JoinHandle<T>) -> T {
    match task.await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
