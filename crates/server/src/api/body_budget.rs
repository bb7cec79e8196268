//! Memory for incoming data: request bodies, and frames of append sessions.
//!
//! `limits.request-bodies` is divided: the size of the largest body is reserved for one claim at a time
//! ([`BodyBudget::last`]), and the rest is shared. A waiting claim takes either. A claim of known length
//! covers all of it once a sixteenth has arrived ([`of_known_length`]), so a client that announces much
//! and sends little holds little. A claim of unknown length grows while it holds memory, so many of them
//! could wait for each other. One waiting claim always gets the reserve, which covers it to its end. So
//! it ends, and the next one gets the reserve.
//!
//! A request that waits is refused after [`CLAIM_TIMEOUT`], because its client waits for an answer. A
//! session waits without a limit: frames of others hold their memory until they are admitted, which a
//! slow disk may delay, and the session is not the cause of that. Flow control stops its client
//! meanwhile. The wait ends when the client disconnects or the server stops.
//!
//! Claims of up to [`MAX_SMALL`] have [`MAX_SMALL_TOTAL`] of their own besides, and use the shared memory
//! when that is used up, so large bodies on slow networks do not delay small ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most bytes of a small claim.
pub(super) const MAX_SMALL: usize = 64 * 1024;
/// Bytes of all small claims: 256 of the largest, many thousand of usual ones.
const MAX_SMALL_TOTAL: usize = 16 * 1024 * 1024;
/// How long the claim of a request waits for others to end.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);

/// The memory that all claims share.
#[derive(Clone, Debug)]
pub(super) struct BodyBudget {
    small: Arc<Semaphore>,
    shared: Arc<Semaphore>,
    /// One permit, for the reserve: a claim of any size.
    last: Arc<Semaphore>,
    shared_total: usize,
    max_claim: usize,
    /// How many claims wait for others.
    waiting: Arc<AtomicUsize>,
    pub(super) timeout: Duration,
}

/// Counts a claim among those that wait, until it is dropped.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn begin(counter: &Arc<AtomicUsize>) -> Waiting {
        counter.fetch_add(1, Ordering::Relaxed);
        Waiting(counter.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Claimed bytes. They are released when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Claim {
    covered: usize,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Claim {
    /// Whether it covers this many bytes.
    pub(super) fn covers(&self, bytes: usize) -> bool {
        bytes <= self.covered
    }

    fn add(&mut self, covered: usize, permit: OwnedSemaphorePermit) {
        self.covered = covered;
        match self
            .permits
            .iter_mut()
            .find(|it| Arc::ptr_eq(it.semaphore(), permit.semaphore()))
        {
            Some(same) => same.merge(permit),
            None => self.permits.push(permit),
        }
    }
}

/// There was no memory in time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Full;

impl BodyBudget {
    /// A budget of `total` bytes, with at most `max_claim` for one claim.
    pub(super) fn new(total: usize, max_claim: usize) -> BodyBudget {
        let shared_total = total.saturating_sub(max_claim).min(Semaphore::MAX_PERMITS);
        BodyBudget {
            small: Arc::new(Semaphore::new(MAX_SMALL_TOTAL)),
            shared: Arc::new(Semaphore::new(shared_total)),
            last: Arc::new(Semaphore::new(1)),
            shared_total,
            max_claim,
            waiting: Arc::default(),
            timeout: CLAIM_TIMEOUT,
        }
    }

    /// Most bytes of one claim.
    pub(super) fn max_claim(&self) -> usize {
        self.max_claim
    }

    /// Bytes that are claimed now.
    pub(super) fn claimed(&self) -> usize {
        let last = match self.last.available_permits() {
            0 => self.max_claim,
            _ => 0,
        };
        let small = MAX_SMALL_TOTAL - self.small.available_permits();
        last + small + self.shared_total - self.shared.available_permits()
    }

    /// How many claims wait for others to end.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Makes a claim cover `bytes` in all, if it can do so without waiting.
    pub(super) fn try_extend(&self, claim: &mut Claim, bytes: usize) -> bool {
        if claim.covers(bytes) {
            return true;
        }
        let missing = permits(bytes - claim.covered);
        if claim.covered == 0
            && bytes <= MAX_SMALL
            && let Ok(permit) = self.small.clone().try_acquire_many_owned(missing)
        {
            claim.add(bytes, permit);
            return true;
        }
        match self.shared.clone().try_acquire_many_owned(missing) {
            Ok(permit) => {
                claim.add(bytes, permit);
                true
            }
            Err(_) => false,
        }
    }

    /// Makes the claim of a request cover `bytes` in all. While it waits, it holds what it has.
    ///
    /// # Errors
    ///
    /// If there is no memory within [`CLAIM_TIMEOUT`].
    pub(super) async fn extend(self, claim: Claim, bytes: usize) -> Result<Claim, Full> {
        let granted = tokio::time::timeout(self.timeout, self.extend_without_limit(claim, bytes));
        granted.await.unwrap_or(Err(Full))
    }

    /// The same for a session, which waits without a limit.
    ///
    /// # Errors
    ///
    /// None: the semaphores are never closed.
    pub(super) async fn extend_without_limit(
        &self,
        mut claim: Claim,
        bytes: usize,
    ) -> Result<Claim, Full> {
        if self.try_extend(&mut claim, bytes) {
            return Ok(claim);
        }
        let _waiting = Waiting::begin(&self.waiting);
        let missing = permits(bytes - claim.covered);
        let (shared, last) = (self.shared.clone(), self.last.clone());
        let (covered, permit) = tokio::select! {
            biased;
            permit = shared.acquire_many_owned(missing) => (bytes, permit),
            permit = last.acquire_owned() => (self.max_claim.max(bytes), permit),
        };
        // The semaphores are never closed.
        claim.add(covered, permit.map_err(|_| Full)?);
        Ok(claim)
    }
}

/// One part in this many of a known length has to arrive before all of it is claimed: a client holds at
/// most sixteen times what it has sent, or [`STEP`].
const BEGUN_SHARE: usize = 16;
/// Bytes that are claimed at a time before that: more than a small claim, so that these claims do not use
/// the memory of small ones.
pub(super) const STEP: usize = 2 * MAX_SMALL;

/// What to claim for a body or a frame of `length` bytes, of which `arrived` have arrived.
pub(super) fn of_known_length(length: usize, arrived: usize) -> usize {
    match arrived >= length / BEGUN_SHARE {
        true => length,
        false => arrived.next_multiple_of(STEP).min(length),
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    async fn claim(budget: &BodyBudget, bytes: usize) -> Result<Claim, Full> {
        budget.clone().extend(Claim::default(), bytes).await
    }

    fn impatient(total: usize, max_claim: usize) -> BodyBudget {
        BodyBudget {
            timeout: Duration::from_millis(50),
            ..BodyBudget::new(total, max_claim)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn claims_never_have_more_than_the_budget_and_give_it_back() {
        let budget = impatient(8 * MIB, 2 * MIB);
        let mut claims = Vec::new();
        while let Ok(claim) = claim(&budget, MIB).await {
            claims.push(claim);
        }
        // Six claims of the shared memory, and the reserve.
        assert_eq!(claims.len(), 7);
        assert_eq!(budget.claimed(), 8 * MIB);
        // Small ones have memory of their own.
        let small = claim(&budget, MAX_SMALL).await.unwrap();
        assert_eq!(budget.claimed(), 8 * MIB + MAX_SMALL);
        drop(small);
        claims.pop();
        claim(&budget, 2 * MIB).await.unwrap();
        drop(claims);
        assert_eq!(budget.claimed(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn claims_that_grow_while_they_hold_all_end() {
        let budget = BodyBudget::new(8 * MIB, 2 * MIB);
        let mut growing = Vec::new();
        for _ in 0..40 {
            let budget = budget.clone();
            growing.push(tokio::spawn(async move {
                let mut claim = Claim::default();
                for step in 1..=32 {
                    claim = budget.clone().extend(claim, step * 2 * MIB / 32).await?;
                    assert!(budget.claimed() <= 8 * MIB + MAX_SMALL_TOTAL);
                    tokio::task::yield_now().await;
                }
                Ok::<_, Full>(())
            }));
        }
        for claim in growing {
            claim.await.unwrap().unwrap();
        }
        assert_eq!(budget.claimed(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn small_claims_share_with_others_when_their_own_memory_is_used_up() {
        let budget = impatient(2 * MIB, MIB);
        let mut claims = Vec::new();
        while let Ok(claim) = claim(&budget, MAX_SMALL).await {
            claims.push(claim);
        }
        assert_eq!(claims.len(), (MAX_SMALL_TOTAL + MIB) / MAX_SMALL + 1);
    }
}
