//! Memory for incoming data: request bodies, and frames of append sessions.
//!
//! `limits.request-bodies` is divided: the size of the largest body is a reserve for one claim at a time, and
//! the rest is shared. A waiting claim takes either. A claim of known length covers all of it once a
//! sixteenth has arrived ([`of_known_length`]), so a client that announces much and sends little holds
//! little. A claim of unknown length grows while it holds memory, so many of them could wait for each other.
//! One waiting claim always gets the reserve, which covers it to its end. So it ends, and the next one gets
//! the reserve.
//!
//! No principal holds all of it. A principal may hold [`MAX_OVER_FREE`] times what is free: one alone has three
//! quarters of the shared memory, and the more there are, the less each has, so something is always free for
//! one that holds nothing. Claims that wait are served in turns, by principal and then by connection, as
//! appends are ([`FairQueue`]); a principal that holds as much as it may gets the reserve in its turn, and is
//! passed over while another claim has that.
//!
//! A request that waits is refused after [`CLAIM_TIMEOUT`], because its client waits for an answer. A
//! session waits without a limit: frames of others hold their memory until they are admitted, which a
//! slow disk may delay, and the session is not the cause of that. Flow control stops its client
//! meanwhile. The wait ends when the client disconnects or the server stops.
//!
//! Claims of up to [`MAX_SMALL`] have [`MAX_SMALL_TOTAL`] of their own besides, and use the shared memory
//! when that is used up, so large bodies on slow networks do not delay small ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use esker_node::{Client, FairQueue, Path, Ticket, Verdict};
use tokio::sync::oneshot;

/// Most bytes of a small claim.
pub(super) const MAX_SMALL: usize = 64 * 1024;
/// Bytes of all small claims: 256 of the largest, many thousand of usual ones.
const MAX_SMALL_TOTAL: usize = 16 * 1024 * 1024;
/// Most shared bytes of a principal, as a multiple of those that are free.
const MAX_OVER_FREE: usize = 3;
/// How long the claim of a request waits for others to end.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);

/// The memory that all claims share. Cheap to clone.
#[derive(Clone)]
pub(super) struct BodyBudget {
    state: Arc<Mutex<State>>,
    shared_total: usize,
    max_claim: usize,
    pub(super) timeout: Duration,
}

struct State {
    /// Free bytes for small claims.
    small: usize,
    /// Free bytes for all claims.
    shared: usize,
    has_reserve: bool,
    /// Shared bytes of each principal that holds some.
    held: HashMap<u64, usize>,
    queue: FairQueue<Waiter>,
}

/// A claim that waits.
struct Waiter {
    principal: u64,
    missing: usize,
    granted: oneshot::Sender<Part>,
}

/// Claimed bytes. They are released when it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    budget: BodyBudget,
    client: Client,
    covered: usize,
    part: Option<Part>,
}

/// Bytes that were taken. They are released when it is dropped.
struct Part {
    budget: BodyBudget,
    principal: u64,
    small: usize,
    shared: usize,
    is_reserve: bool,
}

/// There was no memory in time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Full;

/// A place in the queue, until the claim has what it waits for, or is dropped.
struct Place<'a> {
    budget: &'a BodyBudget,
    path: &'a Path,
    ticket: Ticket,
}

impl std::fmt::Debug for BodyBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BodyBudget")
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part")
            .field("small", &self.small)
            .field("shared", &self.shared)
            .field("is_reserve", &self.is_reserve)
            .finish_non_exhaustive()
    }
}

impl BodyBudget {
    /// A budget of `total` bytes, with at most `max_claim` for one claim.
    pub(super) fn new(total: usize, max_claim: usize) -> BodyBudget {
        let shared_total = total.saturating_sub(max_claim);
        let state = State {
            small: MAX_SMALL_TOTAL,
            shared: shared_total,
            has_reserve: true,
            held: HashMap::new(),
            queue: FairQueue::new(),
        };
        BodyBudget {
            state: Arc::new(Mutex::new(state)),
            shared_total,
            max_claim,
            timeout: CLAIM_TIMEOUT,
        }
    }

    /// A claim of this client, which covers nothing yet.
    pub(super) fn claim(&self, client: Client) -> Claim {
        Claim {
            budget: self.clone(),
            client,
            covered: 0,
            part: None,
        }
    }

    /// Most bytes of one claim.
    pub(super) fn max_claim(&self) -> usize {
        self.max_claim
    }

    /// Bytes that are claimed now.
    pub(super) fn claimed(&self) -> usize {
        let state = self.lock();
        let reserve = match state.has_reserve {
            true => 0,
            false => self.max_claim,
        };
        reserve + MAX_SMALL_TOTAL - state.small + self.shared_total - state.shared
    }

    /// How many claims wait for others to end.
    pub(super) fn waiting(&self) -> usize {
        self.lock().queue.waiting()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was taken from the state, which is unlocked.
    fn part(&self, principal: u64, taken: Taken) -> Part {
        let (small, shared, is_reserve) = match taken {
            Taken::Small(bytes) => (bytes, 0, false),
            Taken::Shared(bytes) => (0, bytes, false),
            Taken::Reserve => (0, 0, true),
        };
        Part {
            budget: self.clone(),
            principal,
            small,
            shared,
            is_reserve,
        }
    }

    /// Serves those that wait and whose turn it is.
    fn advance(&self) {
        loop {
            // One at a time, and without the lock: what a claim that does not wait any longer gets is released
            // again.
            let (waiter, taken) = {
                let mut state = self.lock();
                match state.next() {
                    Some(next) => next,
                    None => return,
                }
            };
            let part = self.part(waiter.principal, taken);
            drop(waiter.granted.send(part));
        }
    }
}

enum Taken {
    Small(usize),
    Shared(usize),
    Reserve,
}

impl State {
    /// Whether a principal may have so much more of the shared memory: always if it has nothing of it. What is
    /// free is what is left after that.
    fn may_hold(&self, principal: u64, more: usize) -> bool {
        match self.held.get(&principal) {
            None => true,
            Some(held) => {
                let left = self.shared.saturating_sub(more);
                held + more <= left.saturating_mul(MAX_OVER_FREE)
            }
        }
    }

    fn take_shared(&mut self, principal: u64, bytes: usize) -> Taken {
        self.shared -= bytes;
        *self.held.entry(principal).or_default() += bytes;
        Taken::Shared(bytes)
    }

    /// The next one that waits and gets something, and what that is.
    fn next(&mut self) -> Option<(Waiter, Taken)> {
        if self.queue.waiting() == 0 {
            return None;
        }
        let mut queue = std::mem::take(&mut self.queue);
        let mut gets_reserve = false;
        let next = queue.take(|waiter| {
            let may_hold = self.may_hold(waiter.principal, waiter.missing);
            gets_reserve = !may_hold || waiter.missing > self.shared;
            match gets_reserve && !self.has_reserve {
                false => Verdict::Take,
                // It is not too much for the principal, and comes next.
                true if may_hold => Verdict::Stop,
                true => Verdict::PassOver,
            }
        });
        self.queue = queue;
        let waiter = next?;
        let taken = match gets_reserve {
            true => {
                self.has_reserve = false;
                Taken::Reserve
            }
            false => self.take_shared(waiter.principal, waiter.missing),
        };
        Some((waiter, taken))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let is_waiting = {
            let mut state = self.budget.lock();
            state.small += self.small;
            state.shared += self.shared;
            state.has_reserve |= self.is_reserve;
            if self.shared > 0
                && let Some(held) = state.held.get_mut(&self.principal)
            {
                *held -= self.shared;
                if *held == 0 {
                    state.held.remove(&self.principal);
                }
            }
            state.queue.waiting() > 0
        };
        if is_waiting {
            self.budget.advance();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let removed = self.budget.lock().queue.remove(self.path, self.ticket);
        // Others may have waited behind a large one.
        if removed.is_some() {
            drop(removed);
            self.budget.advance();
        }
    }
}

impl Claim {
    /// Whether it covers this many bytes.
    pub(super) fn covers(&self, bytes: usize) -> bool {
        bytes <= self.covered
    }

    /// The bytes that it covers.
    pub(super) fn covered(&self) -> usize {
        self.covered
    }

    /// Releases all that it has.
    pub(super) fn release(&mut self) {
        self.covered = 0;
        self.part = None;
    }

    fn add(&mut self, covered: usize, mut part: Part) {
        self.covered = covered;
        match &mut self.part {
            None => self.part = Some(part),
            Some(all) => {
                all.small += std::mem::take(&mut part.small);
                all.shared += std::mem::take(&mut part.shared);
                all.is_reserve |= std::mem::take(&mut part.is_reserve);
            }
        }
    }

    /// Makes it cover `bytes` in all, if that needs no waiting.
    pub(super) fn try_extend(&mut self, bytes: usize) -> bool {
        if self.covers(bytes) {
            return true;
        }
        let missing = bytes - self.covered;
        let principal = self.client.principal;
        let taken = {
            let mut state = self.budget.lock();
            if self.covered == 0 && bytes <= MAX_SMALL && missing <= state.small {
                state.small -= missing;
                Taken::Small(missing)
            } else if state.queue.waiting() == 0
                && missing <= state.shared
                && state.may_hold(principal, missing)
            {
                state.take_shared(principal, missing)
            } else {
                return false;
            }
        };
        let part = self.budget.part(principal, taken);
        self.add(bytes, part);
        true
    }

    /// Makes the claim of a request cover `bytes` in all. While it waits, it holds what it has.
    ///
    /// # Errors
    ///
    /// If there is no memory within [`CLAIM_TIMEOUT`].
    pub(super) async fn extend(self, bytes: usize) -> Result<Claim, Full> {
        let timeout = self.budget.timeout;
        let granted = tokio::time::timeout(timeout, self.extend_without_limit(bytes));
        granted.await.unwrap_or(Err(Full))
    }

    /// The same for a session, which waits without a limit.
    ///
    /// # Errors
    ///
    /// None: a claim that waits is granted memory at last.
    pub(super) async fn extend_without_limit(mut self, bytes: usize) -> Result<Claim, Full> {
        if self.try_extend(bytes) {
            return Ok(self);
        }
        let budget = self.budget.clone();
        let missing = bytes - self.covered;
        let Client {
            principal,
            connection,
        } = self.client;
        let path: Path = [principal, connection, 0];
        let (granted, turn) = oneshot::channel();
        let waiter = Waiter {
            principal,
            missing,
            granted,
        };
        let ticket = budget.lock().queue.push(&path, missing as u64, waiter);
        let place = Place {
            budget: &budget,
            path: &path,
            ticket,
        };
        // Those that came first may be passed over.
        budget.advance();
        // The queue keeps the other end until it has sent.
        let part = turn.await.map_err(|_| Full)?;
        drop(place);
        let covered = match part.is_reserve {
            true => budget.max_claim.max(bytes),
            false => bytes,
        };
        self.add(covered, part);
        Ok(self)
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn of(principal: u64) -> Client {
        Client {
            principal,
            connection: 0,
        }
    }

    async fn claim(budget: &BodyBudget, bytes: usize) -> Result<Claim, Full> {
        budget.claim(of(0)).extend(bytes).await
    }

    /// Claims of a principal until one more is refused.
    async fn flood(budget: &BodyBudget, principal: u64, bytes: usize) -> Vec<Claim> {
        let mut claims = Vec::new();
        while let Ok(claim) = budget.claim(of(principal)).extend(bytes).await {
            claims.push(claim);
        }
        claims
    }

    fn impatient(total: usize, max_claim: usize) -> BodyBudget {
        BodyBudget {
            timeout: Duration::from_millis(50),
            ..BodyBudget::new(total, max_claim)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn claims_never_have_more_than_the_budget_and_give_it_back() {
        let budget = impatient(10 * MIB, 2 * MIB);
        let mut claims = flood(&budget, 0, MIB).await;
        // Three quarters of the shared memory, and the reserve.
        assert_eq!(claims.len(), 7);
        assert_eq!(budget.claimed(), 8 * MIB);
        // Other principals have the rest of it.
        for principal in 1.. {
            let more = flood(&budget, principal, MIB / 4).await;
            if more.is_empty() {
                break;
            }
            claims.extend(more);
            assert!(budget.claimed() <= 10 * MIB);
        }
        assert!(budget.claimed() > 9 * MIB, "{}", budget.claimed());
        // Small ones have memory of their own.
        let before = budget.claimed();
        let small = claim(&budget, MAX_SMALL).await.unwrap();
        assert_eq!(budget.claimed(), before + MAX_SMALL);
        drop(small);
        claims.pop();
        drop(claims);
        assert_eq!(budget.claimed(), 0);
        assert!(budget.lock().held.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_principal_leaves_memory_to_others_however_much_it_claims() {
        let budget = impatient(36 * MIB, 4 * MIB);
        let flood = flood(&budget, 1, MIB).await;
        // Some more of it wait, as long as sessions do.
        let mut waiting = Vec::new();
        for _ in 0..100 {
            let claim = budget.claim(of(1));
            waiting.push(tokio::spawn(claim.extend_without_limit(MIB)));
        }
        while budget.waiting() < 100 {
            tokio::task::yield_now().await;
        }
        let mut others = Vec::new();
        for principal in 2..5 {
            let mut claim = budget.claim(of(principal));
            for grown in 1..=4 {
                claim = claim.extend(grown * MIB / 4).await.expect("it is free");
            }
            others.push(claim);
        }
        assert_eq!(budget.waiting(), 100);
        for waits in waiting {
            waits.abort();
        }
        drop((flood, others));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_released_goes_to_whoever_has_the_next_turn_and_not_to_whoever_came_first() {
        let budget = BodyBudget::new(2 * MIB, MIB);
        let all = (budget.claim(of(9)).extend(3 * MIB / 4).await.unwrap(), {
            let reserve = budget.claim(of(9)).extend(MIB).await;
            reserve.unwrap()
        });
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = Vec::new();
        for principal in [1, 1, 1, 1, 2] {
            let (claim, order) = (budget.claim(of(principal)), order.clone());
            let before = budget.waiting();
            waiting.push(tokio::spawn(async move {
                let _claim = claim.extend_without_limit(MIB).await.unwrap();
                order.lock().unwrap().push(principal);
            }));
            while budget.waiting() == before {
                tokio::task::yield_now().await;
            }
        }
        drop(all);
        for waits in waiting {
            waits.await.unwrap();
        }
        let place = order.lock().unwrap().iter().position(|it| *it == 2);
        assert!(place <= Some(1), "{order:?}");
        assert_eq!((budget.claimed(), budget.waiting()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn large_claims_of_one_principal_leave_a_quarter_to_others() {
        let budget = impatient(14 * MIB, 4 * MIB);
        let flood = flood(&budget, 1, 4 * MIB).await;
        // One has shared memory, because two would leave a fifth of it, and one the reserve.
        assert_eq!(flood.len(), 2);
        let mut other = budget.claim(of(2));
        assert!(other.try_extend(4 * MIB));
    }

    #[tokio::test(start_paused = true)]
    async fn a_principal_that_holds_much_gets_the_reserve_in_its_turn() {
        let budget = BodyBudget::new(8 * MIB, 4 * MIB);
        let much = budget.claim(of(1)).extend(3 * MIB).await.unwrap();
        let rest = budget.claim(of(2)).extend(MIB).await.unwrap();
        let reserve = budget.claim(of(3)).extend(MIB).await.unwrap();
        assert_eq!(budget.claimed(), 8 * MIB);
        let first = tokio::spawn(much.extend_without_limit(4 * MIB));
        let mut others = Vec::new();
        for principal in 4..8 {
            while budget.waiting() < others.len() + 1 {
                tokio::task::yield_now().await;
            }
            let claim = budget.claim(of(principal));
            others.push(tokio::spawn(claim.extend_without_limit(MIB)));
        }
        while budget.waiting() < 5 {
            tokio::task::yield_now().await;
        }
        drop(reserve);
        while budget.waiting() == 5 {
            tokio::task::yield_now().await;
        }
        let first = tokio::time::timeout(CLAIM_TIMEOUT, first).await;
        let first = first.expect("it was first").unwrap().unwrap();
        assert!(first.covers(4 * MIB));
        drop(first);
        drop(rest);
        for other in others {
            other.await.unwrap().unwrap();
        }
        assert_eq!((budget.claimed(), budget.waiting()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn claims_that_grow_while_they_hold_all_end() {
        let budget = BodyBudget::new(8 * MIB, 2 * MIB);
        let mut growing = Vec::new();
        for number in 0..40 {
            let budget = budget.clone();
            growing.push(tokio::spawn(async move {
                let mut claim = budget.claim(of(number % 3));
                for step in 1..=32 {
                    claim = claim.extend(step * 2 * MIB / 32).await?;
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
        let claims = flood(&budget, 0, MAX_SMALL).await;
        let shared = 3 * MIB / 4;
        assert_eq!(claims.len(), (MAX_SMALL_TOTAL + shared) / MAX_SMALL + 1);
    }
}
