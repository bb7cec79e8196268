//! Ends what is under way when its token has been revoked or replaced, or has expired.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::authority::{Authority, now_ms};
use super::catalog_check::InUse;
use super::error::AccessError;
use super::principal::Principal;

/// How often a token is looked at while something is under way: it ends a second after a revocation at most.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The permission to go on. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Lease {
    pub(super) authority: Arc<Authority>,
    pub(super) principal: Principal,
    /// Held so that the catalog goes on to be checked.
    pub(super) _in_use: Option<Arc<InUse>>,
}

impl Lease {
    /// Whether it may go on now.
    ///
    /// # Errors
    ///
    /// It may not.
    pub(crate) fn check(&self) -> Result<(), AccessError> {
        self.authority.check(&self.principal)
    }

    /// What is put before the names of streams that its holder uses.
    pub(crate) fn auto_prefix(&self) -> Option<&str> {
        self.principal.auto_prefix()
    }

    /// Waits until it may not go on. Never, without a token that could end.
    pub(crate) async fn ended(&self) -> AccessError {
        let token = match &self.principal {
            Principal::Token(token) => token,
            Principal::Root(hash) => {
                self.authority.root_replaced(hash).await;
                return AccessError::Unauthenticated;
            }
            Principal::Anonymous(_) | Principal::Unauthenticated(_) => {
                return std::future::pending().await;
            }
        };
        // The process may have stood still since the request was identified, too.
        let mut is_late = true;
        loop {
            let checked = match is_late {
                true => self.authority.check_late(&self.principal).await,
                false => self.check(),
            };
            if let Err(error) = checked {
                return error;
            }
            let left = token.expires_at.map_or(CHECK_INTERVAL, |at| {
                Duration::from_millis(at.ms().saturating_sub(now_ms()).max(1))
            });
            let due = Instant::now() + left.min(CHECK_INTERVAL);
            sleep_until(due).await;
            // The process stood still (a stopped machine, no processor): the catalog was not asked meanwhile either.
            is_late = due.elapsed() > CHECK_INTERVAL;
        }
    }

    /// Runs work unless it may not go on meanwhile.
    pub(crate) async fn unless_ended<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, AccessError> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            error = self.ended() => Err(error),
        }
    }

    /// The same for work that ends with an answer, or with what is done next: it may have waited long, so whether it
    /// may go on is looked at once more when it is done.
    pub(crate) async fn while_valid<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, AccessError> {
        let done = self.unless_ended(work).await?;
        self.check()?;
        Ok(done)
    }
}
