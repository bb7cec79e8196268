//! Deadlines that progress extends: a request has no limit while its bytes are sent.
//!
//! The code that limits a request provides a counter of what was sent, through the task that the request
//! runs in. A client that sends bodies in pieces counts them there. For a client that does not count, the
//! limit applies to the whole request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{Either, select};

use crate::env::Env;

/// Counts the pieces of a request that the network has taken. Clones share the count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ticks(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    ticks: AtomicU64,
    /// Whether the whole body was taken.
    sent: AtomicBool,
}

tokio::task_local! {
    static TICKS: Ticks;
}

impl Ticks {
    /// The counter of the request that this task sends; outside of a request, a new one that nothing reads.
    pub(crate) fn of_task() -> Ticks {
        TICKS.try_with(Clone::clone).unwrap_or_default()
    }

    pub(crate) fn tick(&self) {
        self.0.ticks.fetch_add(1, Ordering::Relaxed);
    }

    /// The whole body was sent: the answer is awaited.
    pub(crate) fn sent(&self) {
        self.tick();
        self.0.sent.store(true, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.ticks.load(Ordering::Relaxed)
    }
}

/// Runs a request until it makes no progress for longer than `limit`; then returns `None`.
///
/// Progress is checked once every `limit`. An interval in which nothing was sent ends the request, except
/// after the whole body was sent: the network may still transmit what is in a buffer of this machine, so
/// the answer may take as many intervals as the body took.
pub(crate) async fn within_progress<T>(
    env: &dyn Env,
    limit: Duration,
    request: impl Future<Output = T>,
) -> Option<T> {
    let ticks = Ticks::of_task();
    within_ticks(env, limit, &ticks, TICKS.scope(ticks.clone(), request)).await
}

/// As [`within_progress`], with ticks that are counted elsewhere.
pub(crate) async fn within_ticks<T>(
    env: &dyn Env,
    limit: Duration,
    ticks: &Ticks,
    request: impl Future<Output = T>,
) -> Option<T> {
    let mut request = std::pin::pin!(request);
    let mut before = ticks.count();
    let (mut busy, mut silent) = (0_u64, 0_u64);
    loop {
        match select(request, env.sleep(limit)).await {
            Either::Left((done, _)) => return Some(done),
            Either::Right(((), unfinished)) => request = unfinished,
        }
        let now = ticks.count();
        if now > before {
            (busy, silent) = (busy + 1, 0);
        } else {
            silent += 1;
            let waits_for_answer = ticks.0.sent.load(Ordering::Relaxed);
            if !waits_for_answer || silent > busy {
                return None;
            }
        }
        before = now;
    }
}
