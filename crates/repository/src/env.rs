//! What the protocol needs beside the store: the time, waiting, and random numbers.
//!
//! They are injected through a trait, so that a simulation controls them.

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use time::OffsetDateTime;

use crate::steady::SteadyClock;

/// A clock and a source of random numbers. See [`System`].
pub trait Env: fmt::Debug + Send + Sync + 'static {
    /// The time of day. It is printed, and compared with other machines' clocks to compute ages; no
    /// promise depends on it.
    fn now(&self) -> OffsetDateTime;

    /// The time of day to compute ages with after which something is deleted. It may be behind, and does
    /// not follow a clock that jumps ahead: see [`crate::steady`].
    fn now_for_ages(&self) -> OffsetDateTime {
        self.now()
    }

    /// Waits.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// 64 random bits.
    fn random(&self) -> u64;
}

/// The machine's clock and random numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

#[allow(clippy::disallowed_methods)]
impl Env for System {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn now_for_ages(&self) -> OffsetDateTime {
        steady_now().0
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}

/// The time of day that this process computes ages with, and by how much the machine's clock is ahead of
/// it. The clock is ahead if it jumped less than [`TRUST_AFTER`](crate::steady::TRUST_AFTER) ago.
#[allow(clippy::disallowed_methods)]
pub fn steady_now() -> (OffsetDateTime, Duration) {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    static CLOCK: Mutex<Option<SteadyClock>> = Mutex::new(None);
    let mut clock = CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
    // The time is read under the lock, so that readings are in order.
    let passed = STARTED.get_or_init(Instant::now).elapsed();
    let clock = clock.get_or_insert_default();
    clock.read(OffsetDateTime::now_utc(), passed)
}

/// Waits for a future, but no longer than `limit`; then returns `None`.
pub(crate) async fn within<T>(
    env: &dyn Env,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let work = std::pin::pin!(work);
    match futures::future::select(work, env.sleep(limit)).await {
        futures::future::Either::Left((done, _)) => Some(done),
        futures::future::Either::Right(((), _)) => None,
    }
}
