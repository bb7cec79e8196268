//! A tick that many wait for: one timer for all of them.
//!
//! Every append and every commit waits for its answer and looks from time to time why it does not come. A timer
//! of its own would be set and removed for each, tens of thousands of times a second, and the first one would
//! wake the thread that waits for timers each time. Here, one task wakes all that wait, and ends when nobody
//! does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Ticks at an interval, while anybody waits for one. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct SharedTicks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    interval: Duration,
    tick: Notify,
    waiting: AtomicUsize,
    /// Whether the task runs.
    is_running: AtomicBool,
}

/// Counts one that waits, until it is dropped.
struct Waiting<'a>(&'a Shared);

impl SharedTicks {
    pub fn new(interval: Duration) -> SharedTicks {
        SharedTicks(Arc::new(Shared {
            interval,
            tick: Notify::new(),
            waiting: AtomicUsize::new(0),
            is_running: AtomicBool::new(false),
        }))
    }

    /// Waits for the next tick, which comes within the interval.
    pub async fn next(&self) {
        let _waiting = Waiting::begin(&self.0);
        // Before the task is started: a tick that comes from here on is not missed.
        let tick = self.0.tick.notified();
        if !self.0.is_running.swap(true, Ordering::SeqCst) {
            tokio::spawn(run(self.0.clone()));
        }
        tick.await;
    }
}

async fn run(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(shared.interval).await;
        shared.tick.notify_waiters();
        shared.is_running.store(false, Ordering::SeqCst);
        // Whoever comes after this look starts the task again.
        let is_over = shared.waiting.load(Ordering::SeqCst) == 0;
        if is_over || shared.is_running.swap(true, Ordering::SeqCst) {
            return;
        }
    }
}

impl<'a> Waiting<'a> {
    fn begin(shared: &'a Shared) -> Waiting<'a> {
        shared.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(250);

    #[tokio::test(start_paused = true)]
    async fn all_that_wait_get_the_next_tick_by_one_task_which_ends_after_them() {
        let alive = || {
            tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks()
        };
        let ticks = SharedTicks::new(INTERVAL);
        for _ in 0..3 {
            let begun = tokio::time::Instant::now();
            let all = futures::future::join_all((0..1000).map(|_| ticks.next()));
            let mut all = std::pin::pin!(all);
            assert!(futures::poll!(&mut all).is_pending());
            assert_eq!(alive(), 1);
            all.await;
            assert!(begun.elapsed() <= INTERVAL + Duration::from_millis(1));
        }
        // Those that do not wait any longer keep no task.
        {
            let mut given_up = std::pin::pin!(ticks.next());
            assert!(futures::poll!(&mut given_up).is_pending());
        }
        tokio::time::sleep(2 * INTERVAL).await;
        assert_eq!(alive(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_again_and_again_gets_a_tick_each_interval() {
        let ticks = SharedTicks::new(INTERVAL);
        let begun = tokio::time::Instant::now();
        for _ in 0..8 {
            ticks.next().await;
        }
        assert!(begun.elapsed() <= 9 * INTERVAL, "{:?}", begun.elapsed());
    }
}
