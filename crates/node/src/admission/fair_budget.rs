//! A budget of places or bytes that clients share in fair turns.
//!
//! Whoever finds nothing free waits in a [`FairQueue`]: what becomes free goes to the principal whose turn it is, so
//! that whoever sends many requests waits for its own. Turns suffice where what is taken is given back by the work
//! itself. Where a client decides how long it is kept, each principal has a share as well ([`SharePolicy::OverFree`]), so
//! that one that holds nothing finds some.
//!
//! One that asks for more than is free, and is within its share, keeps those behind it waiting: what becomes free adds
//! up for it. One whose principal has its share is passed over, and those of the same principal that come later wait
//! behind it: otherwise a large one would wait as long as small ones keep coming.

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::fair_queue::{FairQueue, Path, Ticket, Verdict};
use super::gate::Client;

/// Requests that wait for one budget: each holds its head, some KiB. Beyond it, one is refused if another of the same
/// client waits already, so that nobody is refused for what others wait for.
const MAX_WAITING: usize = 16_384;
/// Most that a principal holds, as a multiple of what is free: one alone has three quarters, two have three sevenths
/// each.
const MAX_OVER_FREE: usize = 3;

/// What one principal may hold of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharePolicy {
    /// All of it, if nobody else waits.
    All,
    /// Three times what is free at most. One that holds nothing may take all that is free.
    OverFree,
}

/// Why nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTurn {
    /// The principal holds its share, or many of its requests wait already.
    OwnShare,
    /// Others hold what is missing.
    Others,
}

/// A budget that clients share. Cheap to clone.
#[derive(Clone)]
pub struct FairBudget(Arc<Inner>);

struct Inner {
    total: usize,
    share: SharePolicy,
    state: Mutex<State>,
}

struct State {
    free: usize,
    /// What each principal holds that holds some; empty for [`SharePolicy::All`].
    held_of: HashMap<u64, usize>,
    queue: FairQueue<Waiter>,
}

struct Waiter {
    principal: u64,
    amount: usize,
    grants: oneshot::Sender<FairPermit>,
}

/// What was taken of a budget. It is given back when this is dropped.
#[derive(Debug)]
pub struct FairPermit {
    budget: FairBudget,
    principal: u64,
    amount: usize,
}

/// A request that is served already, or waits.
enum Begun {
    Taken(FairPermit),
    Waits(Waits),
}

/// A place in the queue, until its turn comes or it is dropped.
struct Waits {
    budget: FairBudget,
    path: Path,
    ticket: Ticket,
    granted: oneshot::Receiver<FairPermit>,
}

impl FairBudget {
    /// A budget of so many places or bytes, at least one.
    pub fn new(total: usize, share: SharePolicy) -> FairBudget {
        let total = total.max(1);
        FairBudget(Arc::new(Inner {
            total,
            share,
            state: Mutex::new(State {
                free: total,
                held_of: HashMap::new(),
                queue: FairQueue::new(),
            }),
        }))
    }

    /// What is free.
    pub fn free(&self) -> usize {
        self.0.state.lock().free
    }

    /// What is taken.
    pub fn taken(&self) -> usize {
        self.0.total - self.free()
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.0.state.lock().queue.waiting()
    }

    /// Takes some, if that needs no waiting. More than there is in all counts as all of it.
    ///
    /// # Errors
    ///
    /// It would have to wait.
    pub fn try_take(&self, client: Client, amount: usize) -> Result<FairPermit, NoTurn> {
        let amount = amount.min(self.0.total);
        let principal = client.principal;
        let mut state = self.0.state.lock();
        self.0.may_take(&mut state, principal, amount)?;
        state.take(self.0.share, principal, amount);
        drop(state);
        Ok(self.permit(principal, amount))
    }

    /// Takes some, in turn. More than there is in all counts as all of it. If the future is dropped, nothing was taken.
    ///
    /// # Errors
    ///
    /// Its turn has not come within `timeout`, or too many requests wait.
    pub async fn take(
        &self,
        client: Client,
        amount: usize,
        timeout: Duration,
    ) -> Result<FairPermit, NoTurn> {
        match self.begin(client, amount, true)? {
            Begun::Taken(permit) => Ok(permit),
            Begun::Waits(mut waits) => {
                let granted = tokio::time::timeout(timeout, waits.granted()).await;
                granted.map_err(|_| {
                    let state = self.0.state.lock();
                    self.0.why_not(&state, client.principal, amount)
                })
            }
        }
    }

    /// The same without a limit in time or number, for what its caller bounds: sessions, of which each waits once, and
    /// connections.
    pub async fn wait(&self, client: Client, amount: usize) -> FairPermit {
        match self.begin(client, amount, false) {
            Ok(Begun::Taken(permit)) => permit,
            Ok(Begun::Waits(mut waits)) => waits.granted().await,
            // Only what is bounded is refused.
            Err(_) => pending().await,
        }
    }

    /// Takes a part of what the principal may still have, `most` at most and perhaps nothing; it never waits.
    pub fn take_part(&self, client: Client, divisor: usize, most: usize) -> FairPermit {
        let principal = client.principal;
        let mut state = self.0.state.lock();
        let free = state.free;
        let may_have = match self.0.share {
            SharePolicy::All => free,
            // After that it holds as much as three times what is free then.
            SharePolicy::OverFree => {
                let over = MAX_OVER_FREE.saturating_mul(free);
                over.saturating_sub(state.held(principal)) / (MAX_OVER_FREE + 1)
            }
        };
        let amount = (may_have / divisor.max(1)).min(most);
        state.take(self.0.share, principal, amount);
        drop(state);
        self.permit(principal, amount)
    }

    /// Takes some at once, or begins to wait.
    fn begin(&self, client: Client, amount: usize, is_bounded: bool) -> Result<Begun, NoTurn> {
        let amount = amount.min(self.0.total);
        let principal = client.principal;
        let path = client.path(0);
        let (ticket, granted) = {
            let mut state = self.0.state.lock();
            if self.0.may_take(&mut state, principal, amount).is_ok() {
                state.take(self.0.share, principal, amount);
                drop(state);
                return Ok(Begun::Taken(self.permit(principal, amount)));
            }
            if is_bounded && state.queue.waiting() >= MAX_WAITING && state.queue.has(&path) {
                return Err(NoTurn::OwnShare);
            }
            let (grants, granted) = oneshot::channel();
            let waiter = Waiter {
                principal,
                amount,
                grants,
            };
            // What takes nothing has its turn, too.
            let cost = amount.max(1) as u64;
            (state.queue.push(&path, cost, waiter), granted)
        };
        // Its turn may be before that of the one that all others wait for.
        self.advance();
        Ok(Begun::Waits(Waits {
            budget: self.clone(),
            path,
            ticket,
            granted,
        }))
    }

    /// Serves those whose turn it is.
    fn advance(&self) {
        loop {
            // One at a time, because one that does not wait any longer gives back what it gets, and that takes the
            // lock.
            let Waiter {
                principal,
                amount,
                grants,
            } = {
                let mut state = self.0.state.lock();
                let State {
                    free,
                    held_of,
                    queue,
                } = &mut *state;
                let judge = |waiter: &Waiter| {
                    let Waiter {
                        principal, amount, ..
                    } = waiter;
                    self.0.verdict(*free, held_of, *principal, *amount)
                };
                let Some(waiter) = queue.take(judge) else {
                    return;
                };
                state.take(self.0.share, waiter.principal, waiter.amount);
                waiter
            };
            drop(grants.send(self.permit(principal, amount)));
        }
    }

    fn permit(&self, principal: u64, amount: usize) -> FairPermit {
        FairPermit {
            budget: self.clone(),
            principal,
            amount,
        }
    }
}

impl Inner {
    /// Whether a request that has just come may have what is free: nobody waits but those of other principals that
    /// have their shares.
    fn may_take(&self, state: &mut State, principal: u64, amount: usize) -> Result<(), NoTurn> {
        let State {
            free,
            held_of,
            queue,
        } = state;
        let mut is_blocked = false;
        let mut is_behind_own = false;
        let judge = |waiter: &Waiter| {
            let verdict = self.verdict(*free, held_of, waiter.principal, waiter.amount);
            let is_passed_over = verdict == Verdict::PassOver;
            if is_passed_over && waiter.principal != principal {
                return Verdict::PassOver;
            }
            is_behind_own = is_passed_over;
            is_blocked = true;
            Verdict::Stop
        };
        let none = queue.take(judge);
        debug_assert!(none.is_none(), "nothing was to be taken");
        if is_behind_own {
            return Err(NoTurn::OwnShare);
        }
        if !is_blocked && self.verdict(*free, held_of, principal, amount) == Verdict::Take {
            return Ok(());
        }
        Err(self.why_not(state, principal, amount))
    }

    /// Why a request of this principal was not served.
    fn why_not(&self, state: &State, principal: u64, amount: usize) -> NoTurn {
        let amount = amount.min(self.total);
        match self.is_over_share(state.free, state.held(principal), amount) {
            true => NoTurn::OwnShare,
            false => NoTurn::Others,
        }
    }

    fn verdict(
        &self,
        free: usize,
        held_of: &HashMap<u64, usize>,
        principal: u64,
        amount: usize,
    ) -> Verdict {
        let held = held_of.get(&principal).copied().unwrap_or_default();
        if self.is_over_share(free, held, amount) {
            return Verdict::PassOver;
        }
        match amount <= free {
            true => Verdict::Take,
            false => Verdict::Stop,
        }
    }

    /// Whether a principal that holds so much would hold too much with `amount` more.
    fn is_over_share(&self, free: usize, held: usize, amount: usize) -> bool {
        if self.share == SharePolicy::All || held == 0 || amount == 0 {
            return false;
        }
        let most = match free.checked_sub(amount) {
            Some(left) => left.saturating_mul(MAX_OVER_FREE),
            // It has to wait: what it may have then is not known, but never more than one alone may.
            None => self.total - self.total.div_ceil(MAX_OVER_FREE + 1),
        };
        held.saturating_add(amount) > most
    }
}

impl State {
    fn held(&self, principal: u64) -> usize {
        self.held_of.get(&principal).copied().unwrap_or_default()
    }

    /// Takes what is free.
    fn take(&mut self, share: SharePolicy, principal: u64, amount: usize) {
        self.free -= amount;
        self.charge(share, principal, amount);
    }

    fn charge(&mut self, share: SharePolicy, principal: u64, amount: usize) {
        if share == SharePolicy::OverFree && amount > 0 {
            *self.held_of.entry(principal).or_default() += amount;
        }
    }

    fn discharge(&mut self, principal: u64, amount: usize) {
        if let Some(held) = self.held_of.get_mut(&principal) {
            *held = held.saturating_sub(amount);
            if *held == 0 {
                self.held_of.remove(&principal);
            }
        }
    }
}

impl FairPermit {
    /// How much it is.
    pub fn amount(&self) -> usize {
        self.amount
    }

    /// Splits off so much, or all of it if it has less.
    #[must_use = "what is split off is given back when it is dropped"]
    pub fn split(&mut self, amount: usize) -> FairPermit {
        let amount = amount.min(self.amount);
        self.amount -= amount;
        self.budget.permit(self.principal, amount)
    }

    /// Takes so much more, whatever the share, if it is free and nobody waits for it: for what is held already.
    pub fn try_grow(&mut self, more: usize) -> bool {
        let mut state = self.budget.0.state.lock();
        let is_free = more <= state.free && state.queue.waiting() == 0;
        if is_free {
            state.take(self.budget.0.share, self.principal, more);
            self.amount += more;
        }
        is_free
    }

    /// Counts it for another principal from now on.
    pub fn charge_to(&mut self, client: Client) {
        let mut state = self.budget.0.state.lock();
        state.discharge(self.principal, self.amount);
        state.charge(self.budget.0.share, client.principal, self.amount);
        self.principal = client.principal;
        drop(state);
        // The one before may have more now.
        self.budget.advance();
    }

    /// Whether its principal holds more than its share: others have come since, or it was counted for another one.
    pub fn is_over_share(&self) -> bool {
        let state = self.budget.0.state.lock();
        let most = state.free.saturating_mul(MAX_OVER_FREE);
        self.budget.0.share == SharePolicy::OverFree && state.held(self.principal) > most
    }
}

impl Drop for FairPermit {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let is_awaited = {
            let mut state = self.budget.0.state.lock();
            state.free += self.amount;
            state.discharge(self.principal, self.amount);
            state.queue.waiting() > 0
        };
        if is_awaited {
            self.budget.advance();
        }
    }
}

impl Waits {
    async fn granted(&mut self) -> FairPermit {
        match (&mut self.granted).await {
            Ok(permit) => permit,
            // The queue keeps the other end until it has sent.
            Err(_) => pending().await,
        }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let removed = {
            let mut state = self.budget.0.state.lock();
            state.queue.remove(&self.path, self.ticket)
        };
        // Others may have waited behind a large one.
        if removed.is_some() {
            drop(removed);
            self.budget.advance();
        }
    }
}

impl fmt::Debug for FairBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state.lock();
        f.debug_struct("FairBudget")
            .field("total", &self.0.total)
            .field("free", &state.free)
            .field("waiting", &state.queue.waiting())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn of(principal: u64) -> Client {
        Client {
            principal,
            connection: 0,
        }
    }

    /// Begins to wait.
    fn waits(budget: &FairBudget, principal: u64, amount: usize) -> Waits {
        match budget.begin(of(principal), amount, true) {
            Ok(Begun::Waits(waits)) => waits,
            Ok(Begun::Taken(_)) | Err(_) => panic!("it does not wait"),
        }
    }

    /// Is served at once.
    fn waits_for_nothing(budget: &FairBudget, principal: u64, amount: usize) -> FairPermit {
        match budget.begin(of(principal), amount, true) {
            Ok(Begun::Taken(permit)) => permit,
            Ok(Begun::Waits(_)) | Err(_) => panic!("it waits"),
        }
    }

    fn is_served(waits: &mut Waits) -> Option<FairPermit> {
        waits.granted().now_or_never()
    }

    #[tokio::test]
    async fn one_request_waits_for_one_of_another_principal_whatever_that_has_queued() {
        let budget = FairBudget::new(2, SharePolicy::All);
        let mut held: Vec<_> = (0..2).map(|_| budget.try_take(of(1), 1).unwrap()).collect();
        let mut flood: Vec<_> = (0..480).map(|_| waits(&budget, 1, 1)).collect();
        let mut other = waits(&budget, 2, 1);
        assert_eq!(budget.try_take(of(3), 1).unwrap_err(), NoTurn::Others);
        held.pop();
        // The first one of the flood has waited for its turn as long; after it, the other has its own.
        let first: Vec<_> = flood.iter_mut().filter_map(is_served).collect();
        let served = is_served(&mut other);
        assert!(served.is_some() || first.len() == 1, "{}", first.len());
        drop(first);
        let served = served.or_else(|| is_served(&mut other));
        assert!(served.is_some(), "it waits for one of the flood at most");
        drop((served, held, flood, other));
        assert_eq!((budget.free(), budget.waiting()), (2, 0));
    }

    #[test]
    fn a_principal_holds_its_share_and_those_that_hold_nothing_find_some() {
        let budget = FairBudget::new(4, SharePolicy::OverFree);
        let mut held: Vec<_> = (0..3).map(|_| budget.try_take(of(1), 1).unwrap()).collect();
        assert_eq!(budget.try_take(of(1), 1).unwrap_err(), NoTurn::OwnShare);
        let mut own = waits(&budget, 1, 1);
        // One that waits for its own share holds up nobody.
        let other = budget.try_take(of(2), 1).unwrap();
        assert_eq!(budget.try_take(of(3), 1).unwrap_err(), NoTurn::Others);
        let mut third = waits(&budget, 3, 1);
        held.pop();
        assert!(is_served(&mut own).is_none(), "it has its share");
        drop(is_served(&mut third).unwrap());
        drop(other);
        assert!(is_served(&mut own).is_some());
        drop(held);
        assert_eq!(budget.free(), 4);
        assert!(budget.0.state.lock().held_of.is_empty());
    }

    #[test]
    fn a_large_one_within_its_share_has_what_becomes_free_added_up() {
        let budget = FairBudget::new(100, SharePolicy::OverFree);
        let (one, two) = (
            budget.try_take(of(1), 40).unwrap(),
            budget.try_take(of(2), 40).unwrap(),
        );
        let mut large = waits(&budget, 3, 80);
        let mut small = waits(&budget, 4, 1);
        drop(one);
        assert!(is_served(&mut large).is_none() && is_served(&mut small).is_none());
        drop(two);
        let large = is_served(&mut large).unwrap();
        assert_eq!(large.amount(), 80);
        assert!(is_served(&mut small).is_some());
    }

    #[test]
    fn a_large_one_beyond_its_share_is_not_overtaken_by_those_of_its_own_principal() {
        let budget = FairBudget::new(128, SharePolicy::OverFree);
        let mut held: Vec<_> = (0..2)
            .map(|_| budget.try_take(of(1), 20).unwrap())
            .collect();
        let mut large = waits(&budget, 1, 64);
        assert_eq!(budget.try_take(of(1), 8).unwrap_err(), NoTurn::OwnShare);
        let mut small = waits(&budget, 1, 8);
        // It holds up nobody else.
        drop(budget.try_take(of(2), 8).unwrap());
        drop(waits_for_nothing(&budget, 2, 8));
        assert!(is_served(&mut large).is_none() && is_served(&mut small).is_none());
        held.pop();
        let large = is_served(&mut large).unwrap();
        assert_eq!(large.amount(), 64);
        assert!(is_served(&mut small).is_some());
        drop((large, held));
        assert_eq!((budget.free(), budget.waiting()), (128, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_in_time_and_leaves_nothing_behind() {
        let budget = FairBudget::new(1, SharePolicy::All);
        let all = budget.wait(of(1), 1).await;
        let late = budget.take(of(2), 1, Duration::from_secs(10)).await;
        assert_eq!(late.unwrap_err(), NoTurn::Others);
        assert_eq!(budget.waiting(), 0);
        // Its turn has come, and it has gone before it noticed.
        let gone = waits(&budget, 2, 1);
        drop(all);
        assert_eq!(budget.free(), 0);
        drop(gone);
        assert_eq!(budget.free(), 1);
    }

    #[test]
    fn too_many_that_wait_are_refused_unless_they_are_the_first_of_their_client() {
        let budget = FairBudget::new(1, SharePolicy::All);
        let _all = budget.try_take(of(1), 1).unwrap();
        let _flood: Vec<_> = (0..MAX_WAITING).map(|_| waits(&budget, 1, 1)).collect();
        let refused = budget.begin(of(1), 1, true).err();
        assert_eq!(refused, Some(NoTurn::OwnShare));
        let _other = waits(&budget, 2, 1);
        let refused = budget.begin(of(2), 1, true).err();
        assert_eq!(refused, Some(NoTurn::OwnShare));
    }

    #[test]
    fn a_permit_is_split_and_grows_and_counts_for_another_principal() {
        let budget = FairBudget::new(100, SharePolicy::OverFree);
        let mut permit = budget.try_take(of(1), 40).unwrap();
        let piece = permit.split(10);
        assert_eq!((permit.amount(), piece.amount()), (30, 10));
        assert!(permit.try_grow(60) && !permit.try_grow(1));
        assert_eq!(budget.free(), 0);
        permit.charge_to(of(2));
        let held = |principal| budget.0.state.lock().held(principal);
        assert_eq!((held(1), held(2)), (10, 90));
        assert!(permit.is_over_share() && piece.is_over_share());
        drop(permit);
        drop(piece);
        assert_eq!((held(1), held(2), budget.taken()), (0, 0, 0));
    }

    #[test]
    fn parts_of_one_principal_leave_a_quarter_to_others() {
        const TOTAL: usize = 1 << 20;
        let budget = FairBudget::new(TOTAL, SharePolicy::OverFree);
        let parts: Vec<_> = (0..1000)
            .map(|_| budget.take_part(of(1), 24, TOTAL))
            .collect();
        assert!(budget.free() >= TOTAL / 4, "{}", budget.free());
        let free = budget.free();
        let other = budget.take_part(of(2), 24, TOTAL);
        assert_eq!(other.amount(), free / 32);
        drop(parts);
        assert_eq!(budget.taken(), other.amount());
    }
}
