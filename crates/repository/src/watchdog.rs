//! Deadlines about progress: a request has no limit while its bytes are sent.
//!
//! Whoever limits a request gives it a count of what it has sent, by way of the task that it runs in.
//! A client that knows how far it is counts there; for one that does not, the limit is that of the
//! whole request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{Either, select};

use crate::env::Env;

/// Pieces of a request that were taken by the network. Clones count together.
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
    /// The counter of the request that this task makes; without a request, a new one that nothing reads.
    pub(crate) fn of_task() -> Ticks {
        TICKS.try_with(Clone::clone).unwrap_or_default()
    }

    pub(crate) fn tick(&self) {
        self.0.ticks.fetch_add(1, Ordering::Relaxed);
    }

    /// The whole body was sent: the answer comes next.
    pub(crate) fn sent(&self) {
        self.tick();
        self.0.sent.store(true, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.ticks.load(Ordering::Relaxed)
    }
}

/// Runs a request until it is silent for longer than `limit`; `None` then.
///
/// Time is looked at once every `limit`. A stretch in which nothing was sent is silence, but for the
/// answer: what the network has taken may still be in a buffer of this machine, so an answer is waited
/// for as long as sending took.
pub(crate) async fn within_progress<T>(
    env: &dyn Env,
    limit: Duration,
    request: impl Future<Output = T>,
) -> Option<T> {
    let ticks = Ticks::of_task();
    within_ticks(env, limit, &ticks, TICKS.scope(ticks.clone(), request)).await
}

/// The same, by ticks that are counted elsewhere.
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
