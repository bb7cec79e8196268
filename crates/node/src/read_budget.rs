//! The memory of read sessions: records that were read, and that clients have not received yet.
//!
//! `limits.read-sessions` bounds all sessions together. A session claims [`MAX_SCAN`] bytes before it reads
//! a batch, keeps what the encoded batch takes, and releases that when the connection has sent it. Where
//! nothing is free, sessions wait in turns, by principal and then by connection ([`FairBudget`]), without a limit in
//! time, and hold nothing meanwhile. Of what all share, a principal holds three times as much as is free at most:
//! sessions whose client takes little keep others from little. A session whose turn comes while its client takes
//! nothing has [`GRANT_TIMEOUT`] to continue; then the next one has its turn, and it waits for another ([`Place`]). The
//! session of a client that takes nothing ends after `limits.stall-timeout`, and with it its connection if nothing
//! else is under way there; where others wait, the connection ends a `limits.stall-timeout` later in any
//! case.
//!
//! Replays and watches of the state store count here, too. What a client reads nothing of must not keep all others
//! waiting, so those of one principal have at most [`REPLAYS_SHARE`] of the memory ([`ReadBudget::claim_page`]). They
//! send no heartbeats, so each waits for [`PAGE_TIMEOUT`] at most.
//!
//! A quarter is reserved for sessions that follow a stream at its tail, in the same turns; these may use the rest as
//! well. Sessions that are stuck while they catch up cannot take the reserved memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use crate::admission::{Client, FairBudget, FairPermit, NoTurn, SharePolicy};

/// Bytes that are claimed for a batch until it is encoded: records of 1 MiB, the appended batches in which
/// they begin and end, of 1 MiB each, and the encoded form.
pub(crate) const MAX_SCAN: usize = 4 * 1024 * 1024;
/// The divisor of the budget that gives the share of sessions at the tail.
const TAIL_SHARE: usize = 4;

/// The divisor of the shared memory that gives what the replays of one principal may hold.
const REPLAYS_SHARE: usize = 4;

/// Sessions for which a thread reads more than one batch. Each has a thread and a view of the database; for
/// others, a thread reads one batch at a time.
const MAX_RUNS: usize = 16;

/// Threads that scan at a time, of the 512 of the process, in turns by principal: one has 192 of them at most. Memory
/// allows fewer unless `limits.read-sessions` is 1 GiB or more.
pub(crate) const MAX_SCANNING: usize = 256;

/// How long memory is kept for a session whose turn has come. A session whose client takes records continues
/// at once.
const GRANT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a replay waits for memory for a page. Its client sees nothing of the wait, and those that hold the memory
/// may take little of it for as long as they like. Twice as long as a single read waits: a replay that was refused has
/// to be begun again.
pub(crate) const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The memory that all read sessions share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ReadBudget {
    shared: FairBudget,
    tail: FairBudget,
    shared_total: usize,
    waiting: Arc<AtomicUsize>,
    runs: Arc<Semaphore>,
    scanning: FairBudget,
    /// What the replays of each principal that has some may still hold.
    replays: Arc<Mutex<HashMap<u64, Weak<Semaphore>>>>,
}

/// Bytes that a replay holds, of its principal and of all. They are released when it is dropped.
#[derive(Debug)]
pub(crate) struct PagePermit {
    own: OwnedSemaphorePermit,
    read: ReadPermit,
}

impl PagePermit {
    /// Releases what is more than `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let surplus = self.own.num_permits().saturating_sub(bytes);
        drop(self.own.split(surplus));
        self.read.fit(bytes.min(self.read.bytes()));
    }
}

/// Bytes that a read session holds. They are released when it is dropped.
#[derive(Debug)]
pub struct ReadPermit(FairPermit);

impl ReadBudget {
    /// A budget of `total` bytes, but at least one batch at the tail and one of the other sessions.
    pub fn new(total: usize) -> ReadBudget {
        let tail_total = (total / TAIL_SHARE).max(MAX_SCAN);
        let shared_total = total.saturating_sub(tail_total).max(MAX_SCAN);
        ReadBudget {
            shared: FairBudget::new(shared_total, SharePolicy::OverFree),
            tail: FairBudget::new(tail_total, SharePolicy::All),
            shared_total,
            waiting: Arc::default(),
            runs: Arc::new(Semaphore::new(MAX_RUNS)),
            scanning: FairBudget::new(MAX_SCANNING, SharePolicy::OverFree),
            replays: Arc::default(),
        }
    }

    /// Bytes that the replays of one principal may hold.
    fn replays_total(&self) -> usize {
        (self.shared_total / REPLAYS_SHARE).clamp(MAX_SCAN, u32::MAX as usize)
    }

    fn replays_of(&self, principal: u64) -> Arc<Semaphore> {
        let mut replays = self.replays.lock();
        if let Some(own) = replays.get(&principal).and_then(Weak::upgrade) {
            return own;
        }
        // Those of principals that have none any more.
        if replays.len().is_power_of_two() {
            replays.retain(|_, own| own.strong_count() > 0);
        }
        let own = Arc::new(Semaphore::new(self.replays_total()));
        replays.insert(principal, Arc::downgrade(&own));
        own
    }

    /// Waits for memory for a page of a replay, [`MAX_SCAN`] bytes, and holds nothing meanwhile: first behind the other
    /// replays of its principal, then in the queue of all sessions.
    ///
    /// # Errors
    ///
    /// There was none within [`PAGE_TIMEOUT`], and who holds it.
    pub(crate) async fn claim_page(
        &self,
        client: Client,
        at_tail: bool,
    ) -> Result<PagePermit, NoTurn> {
        let deadline = Instant::now() + PAGE_TIMEOUT;
        loop {
            let own = self.replays_of(client.principal);
            let own = timeout_at(deadline, own.acquire_many_owned(MAX_SCAN as u32)).await;
            // The semaphores are never closed.
            let Ok(Ok(own)) = own else {
                return Err(NoTurn::OwnShare);
            };
            if let Some(read) = self.try_claim(client, at_tail) {
                return Ok(PagePermit { own, read });
            }
            let mut place = self.wait_in_line(client, at_tail);
            match timeout_at(deadline, place.turn()).await {
                Ok(Some(read)) => return Ok(PagePermit { own, read }),
                Ok(None) => {}
                Err(_) => return Err(NoTurn::Others),
            }
        }
    }

    /// Bytes that sessions hold now.
    pub fn held(&self) -> usize {
        self.shared.taken() + self.tail.taken()
    }

    /// Number of sessions that wait for memory.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Claims memory for a batch, if that needs no waiting.
    pub fn try_claim(&self, client: Client, at_tail: bool) -> Option<ReadPermit> {
        self.try_claim_bytes(client, at_tail, MAX_SCAN)
    }

    /// Claims memory for records that are read already, if that needs no waiting.
    pub(crate) fn try_claim_bytes(
        &self,
        client: Client,
        at_tail: bool,
        bytes: usize,
    ) -> Option<ReadPermit> {
        let claimed = match self.shared.try_take(client, bytes) {
            Err(_) if at_tail => self.tail.try_take(client, bytes),
            claimed => claimed,
        };
        claimed.ok().map(ReadPermit)
    }

    /// The turns of threads that scan.
    pub(crate) fn scanning(&self) -> &FairBudget {
        &self.scanning
    }

    /// A place among the sessions for which a thread reads more than one batch.
    pub(crate) fn try_run(&self) -> Option<OwnedSemaphorePermit> {
        self.runs.clone().try_acquire_owned().ok()
    }

    /// Claims memory for a batch that is read ahead, if at least half of the shared part is free.
    pub(crate) fn try_claim_ahead(&self, client: Client) -> Option<ReadPermit> {
        match self.shared.free() >= self.shared_total / 2 {
            true => self.try_claim(client, false),
            false => None,
        }
    }

    /// Takes a place in the queue of sessions that wait for memory for a batch.
    pub(crate) fn wait_in_line(&self, client: Client, at_tail: bool) -> Place {
        let turn = Arc::new(Turn::default());
        let (budget, granted) = (self.clone(), turn.clone());
        let task = tokio::spawn(async move {
            granted.set(Grant::Here(budget.claim(client, at_tail).await));
            tokio::time::sleep(GRANT_TIMEOUT).await;
            granted.set(Grant::Over);
        });
        Place {
            turn,
            task: task.abort_handle(),
        }
    }

    /// Waits for memory for a batch.
    async fn claim(self, client: Client, at_tail: bool) -> ReadPermit {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        let claimed = tokio::select! {
            biased;
            claimed = self.shared.wait(client, MAX_SCAN) => claimed,
            claimed = self.tail.wait(client, MAX_SCAN), if at_tail => claimed,
        };
        ReadPermit(claimed)
    }
}

/// A place in the queue of sessions that wait for memory. It is given up when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    turn: Arc<Turn>,
    task: AbortHandle,
}

/// The state of a place.
#[derive(Debug, Default)]
struct Turn {
    grant: Mutex<Grant>,
    changed: Notify,
}

#[derive(Debug, Default)]
enum Grant {
    /// Its turn has not come.
    #[default]
    NotYet,
    /// Its turn has come.
    Here(ReadPermit),
    /// Its turn has passed.
    Over,
}

impl Turn {
    fn set(&self, grant: Grant) {
        *self.grant.lock() = grant;
        self.changed.notify_one();
    }
}

impl Place {
    /// Waits for its turn. `None` if the turn has passed, because nothing called this for [`GRANT_TIMEOUT`].
    /// The future can be dropped and this be called again.
    pub async fn turn(&mut self) -> Option<ReadPermit> {
        loop {
            {
                let mut grant = self.turn.grant.lock();
                match std::mem::replace(&mut *grant, Grant::Over) {
                    Grant::NotYet => *grant = Grant::NotYet,
                    Grant::Here(permit) => return Some(permit),
                    Grant::Over => return None,
                }
            }
            self.turn.changed.notified().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.task.abort();
        self.turn.set(Grant::Over);
    }
}

/// Decrements a counter when it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ReadPermit {
    /// Bytes of the permit.
    pub fn bytes(&self) -> usize {
        self.0.amount()
    }

    /// Changes the permit to `bytes`: releases the surplus, or takes the missing bytes if they are free.
    pub fn fit(&mut self, bytes: usize) {
        let has = self.bytes();
        if has > bytes {
            drop(self.0.split(has - bytes));
        } else if has < bytes {
            self.0.try_grow(bytes - has);
        }
    }

    /// Splits off a permit for `bytes`, or for all of its bytes if these are fewer.
    pub(crate) fn split(&mut self, bytes: usize) -> ReadPermit {
        ReadPermit(self.0.split(bytes))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const TOTAL: usize = 16 * MAX_SCAN;

    fn of(principal: u64) -> Client {
        Client {
            principal,
            connection: 0,
        }
    }

    /// All of what sessions share, held by several principals.
    fn all(budget: &ReadBudget) -> Vec<ReadPermit> {
        let mut all = Vec::new();
        for principal in 100..200 {
            while let Some(claim) = budget.try_claim(of(principal), false) {
                all.push(claim);
            }
        }
        all
    }

    #[tokio::test]
    async fn sessions_of_one_principal_that_take_little_leave_memory_and_turns_to_others() {
        let budget = ReadBudget::new(TOTAL);
        let mut slow = Vec::new();
        while let Some(claim) = budget.try_claim(of(1), false) {
            slow.push(claim);
        }
        assert_eq!(slow.len(), 9, "three quarters of what all share");
        let mut queued: Vec<_> = (0..100)
            .map(|_| Box::pin(budget.clone().claim(of(1), false)))
            .collect();
        for waits in &mut queued {
            assert!(waits.now_or_never().is_none());
        }
        // Another one that has nothing does not wait for them.
        let mut others = all(&budget);
        assert_eq!(slow.len() + others.len(), 12);
        let mut other = Box::pin(budget.clone().claim(of(2), false));
        assert!((&mut other).now_or_never().is_none());
        slow.pop();
        assert!(other.now_or_never().is_some(), "it has the next turn");
        others.clear();
        drop((slow, queued));
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn replays_of_one_principal_leave_memory_for_those_of_others_and_for_sessions() {
        let budget = ReadBudget::new(TOTAL);
        let most = budget.replays_total();
        let mut held = Vec::new();
        // Of each page, a little is not taken. Without the budget of a task, which ends such a loop.
        while let Some(page) =
            tokio::task::unconstrained(budget.claim_page(of(1), false)).now_or_never()
        {
            let mut page = page.unwrap();
            page.shrink(64 * 1024);
            held.push(page);
            assert!(budget.held() <= most, "{}", budget.held());
        }
        assert!(!held.is_empty());
        let next = tokio::spawn({
            let budget = budget.clone();
            async move { budget.claim_page(of(1), false).await }
        });
        tokio::task::yield_now().await;
        assert!(!next.is_finished(), "it waits, and holds nothing");
        assert!(budget.held() <= most);
        assert!(budget.claim_page(of(2), false).now_or_never().is_some());
        assert!(budget.try_claim(of(1), false).is_some());
        drop(held);
        drop(next.await.unwrap().unwrap());
        assert_eq!(budget.held(), 0);
        budget.replays_of(3);
        assert!(
            budget.replays.lock().len() <= 3,
            "what has gone is forgotten"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_replay_for_whose_page_no_memory_comes_is_refused_in_time() {
        let budget = ReadBudget::new(TOTAL);
        // Somebody takes nothing of what they replay, for as long as they like.
        let mut held = Vec::new();
        while let Some(page) =
            tokio::task::unconstrained(budget.claim_page(of(1), false)).now_or_never()
        {
            held.push(page.unwrap());
        }
        let in_time = |principal| {
            let page = budget.claim_page(of(principal), false);
            tokio::time::timeout(2 * PAGE_TIMEOUT, page)
        };
        let own = in_time(1).await.expect("it does not wait for ever");
        assert_eq!(own.unwrap_err(), NoTurn::OwnShare);
        let others = all(&budget);
        let refused = in_time(2).await.expect("it does not wait for ever");
        assert_eq!(refused.unwrap_err(), NoTurn::Others);
        // Neither has left anything behind.
        drop((held, others));
        while budget.held() + budget.waiting() > 0 {
            tokio::task::yield_now().await;
        }
        drop(in_time(1).await.unwrap().unwrap());
    }

    #[tokio::test]
    async fn sessions_hold_no_more_than_the_budget_and_those_at_the_tail_have_a_part_of_their_own()
    {
        let budget = ReadBudget::new(TOTAL);
        let mut stuck = all(&budget);
        assert_eq!(stuck.len(), 12);
        assert_eq!(budget.held(), 12 * MAX_SCAN);
        // Sessions that follow still get memory, before others that wait.
        let mut catching_up = Box::pin(budget.clone().claim(of(1), false));
        assert!((&mut catching_up).now_or_never().is_none());
        let mut following = Vec::new();
        for _ in 0..4 {
            following.push(budget.clone().claim(of(1), true).now_or_never().unwrap());
        }
        let mut at_tail = Box::pin(budget.clone().claim(of(1), true));
        assert!((&mut at_tail).now_or_never().is_none());
        assert_eq!((budget.held(), budget.waiting()), (TOTAL, 2));
        // The shared part goes to the session that waits longest, the reserved one to sessions at the tail.
        drop(following.pop());
        assert!((&mut catching_up).now_or_never().is_none());
        let at_tail = at_tail.now_or_never().unwrap();
        stuck.pop();
        let catching_up = catching_up.now_or_never().unwrap();
        assert_eq!((budget.held(), budget.waiting()), (TOTAL, 0));
        drop((stuck, following, at_tail, catching_up));
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_leaves_nothing_behind() {
        let budget = ReadBudget::new(TOTAL);
        let mut all = all(&budget);
        let mut waiting = Box::pin(budget.clone().claim(of(1), false));
        assert!((&mut waiting).now_or_never().is_none());
        drop(waiting);
        all.pop();
        assert_eq!(budget.waiting(), 0);
        assert!(budget.try_claim(of(1), false).is_some());
    }

    #[tokio::test]
    async fn a_session_that_does_not_come_for_its_turn_leaves_the_memory_to_the_next() {
        let budget = ReadBudget::new(TOTAL);
        let mut all = all(&budget);
        // Its client takes nothing, so the session is not polled for more.
        let mut stalled = budget.wait_in_line(of(1), false);
        tokio::task::yield_now().await;
        let mut waiting = budget.wait_in_line(of(1), false);
        assert!(waiting.turn().now_or_never().is_none());
        let held = budget.held();
        all.pop();
        // It has its turn after the other's has passed; without a limit it would wait for ever.
        let permit = waiting.turn().await.unwrap();
        assert_eq!(budget.held(), held);
        assert!(stalled.turn().await.is_none(), "its turn has passed");
        // It waits behind those that arrived meanwhile.
        let mut first = budget.wait_in_line(of(1), false);
        tokio::task::yield_now().await;
        stalled = budget.wait_in_line(of(1), false);
        assert!(stalled.turn().now_or_never().is_none());
        drop(permit);
        assert!(first.turn().await.is_some());
        drop((first, stalled));
        drop(all);
        while budget.held() + budget.waiting() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_place_that_is_given_up_leaves_nothing_behind() {
        let budget = ReadBudget::new(TOTAL);
        let mut all = all(&budget);
        let mut waiting = budget.wait_in_line(of(1), false);
        assert!(waiting.turn().now_or_never().is_none());
        drop(waiting);
        while budget.waiting() > 0 {
            tokio::task::yield_now().await;
        }
        // The same for a place whose turn has come.
        let place = budget.wait_in_line(of(1), false);
        all.pop();
        while budget.waiting() > 0 || budget.try_claim(of(1), false).is_some() {
            tokio::task::yield_now().await;
        }
        drop(place);
        while budget.try_claim(of(1), false).is_none() {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_permit_fits_what_is_held_and_is_given_back_in_pieces() {
        let budget = ReadBudget::new(TOTAL);
        let mut permit = budget.try_claim(of(1), false).unwrap();
        permit.fit(1000);
        assert_eq!(budget.held(), 1000);
        permit.fit(MAX_SCAN + 1);
        assert_eq!(budget.held(), MAX_SCAN + 1);
        let piece = permit.split(64);
        assert_eq!((piece.bytes(), permit.bytes()), (64, MAX_SCAN - 63));
        drop(permit);
        assert_eq!(budget.held(), 64);
        drop(piece);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn nothing_is_read_ahead_where_memory_is_short() {
        let budget = ReadBudget::new(TOTAL);
        let mut ahead = Vec::new();
        while let Some(claim) = budget.try_claim_ahead(of(1)) {
            ahead.push(claim);
        }
        assert_eq!(ahead.len(), 7);
        assert!(budget.try_claim(of(1), false).is_some());
    }
}
