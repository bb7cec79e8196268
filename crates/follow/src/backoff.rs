//! Pauses while a server does not answer.

use std::time::Duration;

use rand::Rng as _;
use tokio::time::Instant;

use crate::endpoint::{Endpoint, EndpointError};
use crate::error::Error;

/// First pause.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause: a follower continues at most this much later than the server answers again.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Pauses between attempts that grow, until there is an answer or the limit is reached.
#[derive(Debug)]
pub struct Backoff {
    limit: Option<Duration>,
    since: Option<Instant>,
    pause: Duration,
}

impl Backoff {
    /// Waits this long in all between two answers; without a limit for ever.
    pub fn new(limit: Option<Duration>) -> Backoff {
        Backoff {
            limit,
            since: None,
            pause: MIN_PAUSE,
        }
    }

    /// Notes an answer: the pauses begin again with the shortest.
    pub fn reset(&mut self) {
        self.since = None;
        self.pause = MIN_PAUSE;
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    ///
    /// [`Error::Endpoint`] if the answer will not change, or the limit is reached.
    pub async fn wait(&mut self, endpoint: &dyn Endpoint, why: EndpointError) -> Result<(), Error> {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let is_over = self.limit.is_some_and(|limit| now - since >= limit);
        if is_over || !matches!(why, EndpointError::Unavailable(_)) {
            return Err(Error::Endpoint {
                stream: endpoint.shown(),
                why,
            });
        }
        tracing::debug!(stream = endpoint.shown(), %why, pause = ?self.pause, "waiting for the server");
        // Jitter, so that the followers of a server do not all reconnect at once.
        let pause = self.pause.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        Ok(())
    }
}
