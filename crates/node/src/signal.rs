//! Wakes and ends threads and tasks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Wakes a thread that does periodic work, and ends it.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    stopping: AtomicBool,
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    /// Waits for `interval`, a wake-up or the end; returns whether to continue.
    pub fn wait(&self, interval: Duration) -> bool {
        let mut woken = self.woken.lock();
        if !*woken && !self.stopping.load(Ordering::Relaxed) {
            self.changed.wait_for(&mut woken, interval);
        }
        *woken = false;
        !self.stopping.load(Ordering::Relaxed)
    }

    pub fn wake(&self) {
        *self.woken.lock() = true;
        self.changed.notify_all();
    }

    /// Ends the thread soon.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.wake();
    }
}

/// Waits for a time, a wake-up or the end; returns whether to continue.
pub(crate) async fn pause(
    stopping: &CancellationToken,
    wake: Option<&Notify>,
    time: Duration,
) -> bool {
    let woken = async {
        match wake {
            Some(wake) => wake.notified().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stopping.cancelled() => false,
        () = woken => true,
        () = tokio::time::sleep(time) => true,
    }
}
