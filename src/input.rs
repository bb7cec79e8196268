//! Standard input, read on a thread: a command that waits for it can be interrupted.

use std::io::{self, Read as _};

use tokio::sync::oneshot;

/// Reads it to its end.
///
/// # Errors
///
/// The system's.
pub async fn read_to_end() -> io::Result<Vec<u8>> {
    on_a_thread(|| {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes)?;
        Ok(bytes)
    })
    .await
}

/// Reads a line.
///
/// # Errors
///
/// The system's.
pub async fn read_line() -> io::Result<String> {
    on_a_thread(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line)?;
        Ok(line)
    })
    .await
}

/// Not a thread of the runtime, because the runtime would wait for it at its end.
async fn on_a_thread<T: Send + 'static>(
    read: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, wait) = oneshot::channel();
    std::thread::Builder::new().spawn(move || {
        // The receiver may have been dropped.
        let _ = done.send(read());
    })?;
    wait.await.map_err(io::Error::other).flatten()
}
