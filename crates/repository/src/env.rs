//! What the protocol needs from the world beside the store: the time, waiting, and chance.
//!
//! They come in through a trait, so that a simulation can own them.

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use time::OffsetDateTime;

/// Clock and dice. See [`System`].
pub trait Env: fmt::Debug + Send + Sync + 'static {
    /// The time of day. It is shown and compared with other machines' clocks for ages; nothing
    /// that must not happen depends on it.
    fn now(&self) -> OffsetDateTime;

    /// Waits.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// 64 random bits.
    fn random(&self) -> u64;
}

/// The machine's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

#[allow(clippy::disallowed_methods)]
impl Env for System {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}

/// Waits for a future, but no longer than so.
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
