//! Retries: which failures of a store are retried, how often, and after what wait.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Store;
use crate::error::{Error, StoreFailure};
use crate::lanes::Lanes;
use crate::watchdog::within_progress;

/// Whether another attempt may succeed.
pub(super) fn is_transient(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    match error {
        E::NotFound { .. }
        | E::AlreadyExists { .. }
        | E::Precondition { .. }
        | E::NotModified { .. }
        | E::PermissionDenied { .. }
        | E::Unauthenticated { .. }
        | E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::InvalidPath { .. }
        | E::UnknownConfigurationKey { .. } => false,
        // A full disk stays full for longer than the retries last.
        other => !has_full_disk(other),
    }
}

/// Whether an error reports that the bucket does not exist. S3 returns the same status as for a missing
/// object, with this code in the body.
pub(crate) fn is_no_bucket(error: &object_store::Error) -> bool {
    error.to_string().contains("<Code>NoSuchBucket</Code>")
}

fn has_full_disk(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(
                io.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            )
        {
            return true;
        }
        next = error.source();
    }
    false
}

impl Store {
    /// Tries a request until it succeeds, is refused, or the budget is spent.
    pub(super) async fn attempt<T, F>(
        &self,
        what: &'static str,
        key: &str,
        request: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        self.attempt_in(None, what, key, request).await
    }

    /// As [`Store::attempt`], each attempt in a lane if `lanes` is given.
    pub(super) async fn attempt_in<T, F>(
        &self,
        lanes: Option<&Lanes>,
        what: &'static str,
        key: &str,
        mut request: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let lane = match lanes {
                Some(lanes) => Some(lanes.enter().await),
                None => None,
            };
            let failure = match within_progress(&*self.env, self.retries.silence, request()).await {
                Some(Ok(done)) => {
                    if let Some(lane) = lane {
                        lane.went_well();
                    }
                    return Ok(done);
                }
                Some(Err(source)) if is_no_bucket(&source) => return Err(self.no_bucket()),
                Some(Err(object_store::Error::NotFound { .. })) => {
                    return Err(Error::Missing {
                        object: self.display_url(key),
                    });
                }
                Some(Err(source)) if !is_transient(&source) => {
                    return Err(Error::Denied {
                        what,
                        object: self.display_url(key),
                        source,
                    });
                }
                Some(Err(source)) => StoreFailure::Failed(source),
                None => StoreFailure::Silent(self.retries.silence),
            };
            // Failures of other files count too, so that the retries of a failing store do not multiply
            // with the number of files.
            let in_a_row = lane.map_or(0, |lane| lane.failed());
            self.again(what, key, attempts.max(in_a_row), failure)
                .await?;
        }
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] if the attempts or the budget are used up.
    pub(super) async fn again(
        &self,
        what: &'static str,
        key: &str,
        attempts: u32,
        failure: StoreFailure,
    ) -> Result<(), Error> {
        let spent = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_err();
        if attempts >= self.retries.attempts || spent {
            return Err(Error::Store {
                what,
                object: self.display_url(key),
                attempts,
                source: failure,
            });
        }
        tracing::debug!(object = self.display_url(key), attempts, %failure, "Trying again to {what}");
        metrics::counter!("esker_repository_retries_total").increment(1);
        self.env.sleep(self.wait_after(attempts)).await;
        Ok(())
    }

    /// A random time between half and all of the wait, so that many clients do not retry at the same time.
    pub(crate) fn wait_after(&self, attempts: u32) -> Duration {
        let doubled = self.retries.first_wait * 2_u32.pow(attempts.saturating_sub(1).min(16));
        let most = doubled.min(self.retries.longest_wait);
        let share = 500 + u32::try_from(self.env.random() % 500).unwrap_or(0);
        most * share / 1000
    }
}
