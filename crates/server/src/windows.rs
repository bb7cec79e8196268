//! Windows of HTTP/2 connections: how many bytes a client may send ahead of what is read.
//!
//! Bytes that have arrived and were not read are in memory, so windows are bounded together: by
//! `limits.http2-windows`, and [`MIN_WINDOW`] for each connection besides, which the protocol grants in
//! any case. A connection gets a [`SHARE`] of what is free when it begins, [`MAX_WINDOW`] at most, and
//! keeps it until it ends: if there are few connections, each has a large window.

use std::sync::Arc;

use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What every connection has: HTTP/2 begins with it, and it cannot be made smaller.
pub(crate) const MIN_WINDOW: usize = 65_535;
/// The largest window of a connection.
const MAX_WINDOW: usize = 8 * 1024 * 1024;
/// The part of what is free that one connection gets: the first of 256 MiB has 8 MiB, the hundredth 350 KiB.
const SHARE: usize = 32;

/// The windows of all connections.
#[derive(Clone, Debug)]
pub(crate) struct Windows {
    free: Arc<Semaphore>,
}

/// The window of a connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Window {
    bytes: usize,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Windows {
    /// Windows of `total` bytes beside [`MIN_WINDOW`] for each connection.
    pub(crate) fn new(total: usize) -> Windows {
        Windows {
            free: Arc::new(Semaphore::new(total.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// The window of a new connection.
    pub(crate) fn open(&self) -> Window {
        let share = (self.free.available_permits() / SHARE).min(MAX_WINDOW - MIN_WINDOW);
        let permits = u32::try_from(share).unwrap_or(u32::MAX);
        // Another connection may have taken it meanwhile.
        let permit = self.free.clone().try_acquire_many_owned(permits).ok();
        Window {
            bytes: MIN_WINDOW + permit.as_ref().map_or(0, |permit| permit.num_permits()),
            _permit: permit,
        }
    }
}

impl Window {
    /// Sets it for a connection. One request may have half of it in flight, so that a request that is not
    /// read leaves something for the others.
    pub(crate) fn apply(&self, http: &mut auto::Builder<TokioExecutor>) {
        let bytes = u32::try_from(self.bytes).unwrap_or(u32::MAX);
        http.http2()
            .initial_connection_window_size(bytes)
            .initial_stream_window_size(bytes / 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_all_connections_are_within_their_budget_and_few_have_large_ones() {
        const TOTAL: usize = 256 * 1024 * 1024;
        let windows = Windows::new(TOTAL);
        let open: Vec<_> = (0..1040).map(|_| windows.open()).collect();
        let sum: usize = open.iter().map(|window| window.bytes).sum();
        assert!(sum <= TOTAL + open.len() * MIN_WINDOW, "{sum}");
        assert_eq!(open[0].bytes, MAX_WINDOW);
        assert!(open[100].bytes > 300 * 1024, "{}", open[100].bytes);
        assert!(open.iter().all(|window| window.bytes >= MIN_WINDOW));
        // Connections that end release theirs.
        drop(open);
        assert_eq!(windows.open().bytes, MAX_WINDOW);
    }
}
