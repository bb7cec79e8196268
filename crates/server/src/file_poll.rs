//! Reads files again and again beside requests: a file system that hangs holds up nothing else.

use std::time::Duration;

/// How long a reading may take before that is reported.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// A reading that has ended.
pub(crate) struct Reading<T> {
    /// What has read.
    pub(crate) reader: T,
    /// Whether it took longer than [`READ_TIMEOUT`], so that `on_timeout` was called.
    pub(crate) hung: bool,
}

/// Reads on a thread where blocking is fine. After [`READ_TIMEOUT`], `on_timeout` is called once, and the wait
/// goes on: readings do not pile up. `None` if the reading has panicked, which the panic hook has reported.
pub(crate) async fn read<T: Send + 'static>(
    mut reader: T,
    read: impl FnOnce(&mut T) + Send + 'static,
    on_timeout: impl FnOnce(),
) -> Option<Reading<T>> {
    let mut reading = tokio::task::spawn_blocking(move || {
        read(&mut reader);
        reader
    });
    let in_time = tokio::time::timeout(READ_TIMEOUT, &mut reading).await;
    let hung = in_time.is_err();
    let read = match in_time {
        Ok(read) => read,
        Err(_) => {
            on_timeout();
            reading.await
        }
    };
    let reader = read.ok()?;
    Some(Reading { reader, hung })
}
