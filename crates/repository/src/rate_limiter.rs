//! The rate at which files are uploaded: a token bucket that uploads share.
//!
//! An upload waits for a turn *before* its request begins, so that the wait is no part of the request's
//! time limit. Turns are granted in the order of the calls, whatever their size. No lock is held while
//! waiting: a turn is a point in time that is computed at the call, so an upload that is not polled for a
//! while, or never again, delays no other. A turn that is dropped returns what it did not use.
//!
//! The rate may change at any time ([`RateLimiter::set_rate`]). What is owed and what is left of each wait
//! then changes in the same proportion, so a rate that rises is felt at once by the uploads that wait.
//!
//! The clock is that of [`Env`], which may be set. A jump admits one burst more or less, and no upload
//! waits longer than the bytes ahead of it take.
//!
//! This module depends on no store: callers wait for turns, and charge what they send again.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{Either, select};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::env::Env;
use crate::part::PART;

/// Maximum length of a burst. After a pause, as many bytes are admitted at once as the rate yields in this
/// time, or one part of an upload if that is less.
const MAX_BURST: Duration = Duration::from_secs(1);

/// A limit on what uploads send, in bytes a second. Clones share the limit: one that is given to several
/// repositories applies to all of their uploads together.
///
/// ```
/// use std::num::NonZeroU64;
/// use esker_repository::{Options, RateLimiter};
///
/// let limiter = RateLimiter::new(NonZeroU64::new(64 << 20).unwrap());
/// let options = Options {
///     rate_limiter: Some(limiter.clone()),
///     ..Options::default()
/// };
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
pub struct RateLimiter {
    bucket: Arc<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    debt: Mutex<Debt>,
    limit: watch::Sender<Limit>,
    /// Bytes of all turns that have come, and of what was charged.
    admitted: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Limit {
    per_second: NonZeroU64,
    lifted: bool,
}

/// Bytes that were admitted and that the rate has not covered yet.
#[derive(Debug, Default)]
struct Debt {
    /// The time that these bytes take at this rate.
    owed: Duration,
    /// When `owed` was last reduced by the time that has passed.
    paid_at: Option<OffsetDateTime>,
}

/// A place in the queue. Dropping it returns its cost, unless it was used.
struct Turn<'a> {
    bucket: &'a Bucket,
    bytes: u64,
    wait: Duration,
    used: bool,
}

impl RateLimiter {
    /// A limit of so many bytes a second.
    pub fn new(per_second: NonZeroU64) -> RateLimiter {
        let limit = Limit {
            per_second,
            lifted: false,
        };
        RateLimiter {
            bucket: Arc::new(Bucket {
                debt: Mutex::default(),
                limit: watch::Sender::new(limit),
                admitted: AtomicU64::new(0),
            }),
        }
    }

    /// The present rate, in bytes a second.
    pub fn rate(&self) -> NonZeroU64 {
        self.bucket.limit.borrow().per_second
    }

    /// Bytes that were admitted since it was created, also while it is lifted.
    pub fn admitted_bytes(&self) -> u64 {
        self.bucket.admitted.load(Ordering::Relaxed)
    }

    /// Changes the rate, also for uploads that wait.
    pub fn set_rate(&self, env: &dyn Env, per_second: NonZeroU64) {
        let bucket = &*self.bucket;
        // Under this lock, so that no turn is computed with one rate and noted with the other.
        let mut debt = bucket.debt();
        let before = self.rate();
        if before == per_second {
            return;
        }
        // What has passed was at the rate before.
        debt.pay(env.now());
        debt.owed = scaled(debt.owed, before, per_second);
        bucket
            .limit
            .send_modify(|limit| limit.per_second = per_second);
    }

    /// Removes the limit permanently, also for uploads that wait. For a node that stops, where uploads
    /// compete with nothing else.
    pub fn lift(&self) {
        self.bucket.limit.send_modify(|limit| limit.lifted = true);
    }

    /// Whether the limit was removed.
    pub fn is_lifted(&self) -> bool {
        self.bucket.limit.borrow().lifted
    }

    /// Waits until so many bytes may be sent. Call it before they are read, and before a request with a
    /// time limit begins. If the future is dropped, nothing is charged.
    pub(crate) async fn turn(&self, env: &dyn Env, bytes: u64) {
        let mut limits = self.bucket.limit.subscribe();
        let (mut turn, mut rate) = self.bucket.queue(env, bytes);
        loop {
            let limit = *limits.borrow_and_update();
            if limit.lifted {
                break;
            }
            turn.wait = scaled(turn.wait, rate, limit.per_second);
            rate = limit.per_second;
            if turn.wait.is_zero() {
                break;
            }
            let began = env.now();
            let changed = std::pin::pin!(limits.changed());
            if let Either::Left(_) = select(env.sleep(turn.wait), changed).await {
                break;
            }
            turn.wait = turn.wait.saturating_sub(between(began, env.now()));
        }
        turn.admit();
    }

    /// Charges bytes that are sent without waiting; later turns wait for them.
    pub(crate) fn charge(&self, env: &dyn Env, bytes: u64) {
        self.bucket.queue(env, bytes).0.admit();
    }
}

impl Debt {
    /// Reduces what is owed by the time that has passed.
    fn pay(&mut self, now: OffsetDateTime) {
        if let Some(paid_at) = self.paid_at {
            self.owed = self.owed.saturating_sub(between(paid_at, now));
        }
        self.paid_at = Some(now);
    }
}

impl Bucket {
    fn debt(&self) -> std::sync::MutexGuard<'_, Debt> {
        // Each change is one assignment, so a poisoned lock can be used.
        self.debt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn, and the rate with which its wait was computed.
    fn queue(&self, env: &dyn Env, bytes: u64) -> (Turn<'_>, NonZeroU64) {
        let mut debt = self.debt();
        let rate = self.limit.borrow().per_second;
        debt.pay(env.now());
        debt.owed = debt.owed.saturating_add(time_of(bytes, rate));
        let burst = time_of(PART, rate).min(MAX_BURST);
        let turn = Turn {
            bucket: self,
            bytes,
            wait: debt.owed.saturating_sub(burst),
            used: false,
        };
        (turn, rate)
    }
}

impl Turn<'_> {
    fn admit(mut self) {
        self.used = true;
        let admitted = &self.bucket.admitted;
        admitted.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.used {
            let mut debt = self.bucket.debt();
            let cost = time_of(self.bytes, self.bucket.limit.borrow().per_second);
            debt.owed = debt.owed.saturating_sub(cost);
        }
    }
}

/// The time from one reading of the clock to a later one; zero if the clock was set back.
fn between(then: OffsetDateTime, now: OffsetDateTime) -> Duration {
    Duration::try_from(now - then).unwrap_or_default()
}

/// A time at one rate as a time at another, rounded up.
fn scaled(time: Duration, from: NonZeroU64, to: NonZeroU64) -> Duration {
    if from == to {
        return time;
    }
    let nanos = time.as_nanos().saturating_mul(u128::from(from.get()));
    let nanos = nanos.div_ceil(u128::from(to.get()));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The time that so many bytes take, rounded up, so that the limit is never exceeded.
fn time_of(bytes: u64, per_second: NonZeroU64) -> Duration {
    let rest = u128::from(bytes % per_second) * 1_000_000_000;
    let nanos = rest.div_ceil(u128::from(per_second.get()));
    // At most one second, in nanoseconds.
    let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
    Duration::from_secs(bytes / per_second).saturating_add(Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::task::{Context, Poll, Wake, Waker};

    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A clock that only the test advances; the time of day can be set.
    #[derive(Clone, Debug, Default)]
    struct Clock {
        state: Arc<Mutex<Passed>>,
    }

    #[derive(Debug, Default)]
    struct Passed {
        since_start: Duration,
        set_by: time::Duration,
        sleepers: Vec<(Duration, Waker)>,
    }

    impl Clock {
        fn pass(&self, time: Duration) {
            let mut state = self.state.lock().unwrap();
            state.since_start += time;
            let now = state.since_start;
            for (_, waker) in state.sleepers.extract_if(.., |(until, _)| *until <= now) {
                waker.wake();
            }
        }

        fn set(&self, by: time::Duration) {
            self.state.lock().unwrap().set_by += by;
        }

        fn since_start(&self) -> Duration {
            self.state.lock().unwrap().since_start
        }
    }

    impl Env for Clock {
        fn now(&self) -> OffsetDateTime {
            let state = self.state.lock().unwrap();
            OffsetDateTime::UNIX_EPOCH + state.since_start + state.set_by
        }

        fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
            let (clock, until) = (self.clone(), self.since_start() + duration);
            Box::pin(std::future::poll_fn(move |context| {
                let mut state = clock.state.lock().unwrap();
                if state.since_start >= until {
                    return Poll::Ready(());
                }
                state.sleepers.push((until, context.waker().clone()));
                Poll::Pending
            }))
        }

        fn random(&self) -> u64 {
            0
        }
    }

    /// A task that waits for a turn.
    struct Waiter {
        turn: BoxFuture<'static, ()>,
        woken: Arc<Woken>,
    }

    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    impl Waiter {
        /// Whether the turn has come. Polls only after a wake-up.
        fn may_send(&mut self) -> bool {
            if !self.woken.0.swap(false, Ordering::Relaxed) {
                return false;
            }
            let waker = Waker::from(self.woken.clone());
            let mut context = Context::from_waker(&waker);
            self.turn.poll_unpin(&mut context).is_ready()
        }
    }

    fn limiter(mib_per_second: u64) -> (Clock, RateLimiter) {
        let per_second = NonZeroU64::new(mib_per_second * MIB).unwrap();
        (Clock::default(), RateLimiter::new(per_second))
    }

    fn wait(clock: &Clock, limiter: &RateLimiter, bytes: u64) -> Waiter {
        let (clock, limiter) = (clock.clone(), limiter.clone());
        Waiter {
            turn: async move { limiter.turn(&clock, bytes).await }.boxed(),
            woken: Arc::new(Woken(AtomicBool::new(true))),
        }
    }

    fn may_send_at_once(clock: &Clock, limiter: &RateLimiter, bytes: u64) -> bool {
        wait(clock, limiter, bytes).may_send()
    }

    #[test]
    fn one_part_goes_at_once_and_the_next_when_its_time_is_over() {
        let (clock, limiter) = limiter(64);
        assert!(may_send_at_once(&clock, &limiter, PART));
        let mut next = wait(&clock, &limiter, PART);
        assert!(!next.may_send());
        clock.pass(Duration::from_millis(124));
        assert!(!next.may_send());
        // 8 MiB at 64 MiB a second.
        clock.pass(Duration::from_millis(1));
        assert!(next.may_send());
    }

    #[test]
    fn what_is_larger_than_a_burst_waits_until_only_a_burst_of_it_is_owed() {
        let (clock, limiter) = limiter(2);
        let mut part = wait(&clock, &limiter, PART);
        assert!(!part.may_send());
        clock.pass(Duration::from_secs(3));
        assert!(
            part.may_send(),
            "8 MiB are 4 seconds, of which a burst is 1"
        );
    }

    #[test]
    fn a_pause_saves_up_one_burst_and_no_more() {
        let (clock, limiter) = limiter(64);
        assert!(may_send_at_once(&clock, &limiter, PART));
        clock.pass(Duration::from_secs(3600));
        for _ in 0..8 {
            assert!(may_send_at_once(&clock, &limiter, MIB));
        }
        assert!(!may_send_at_once(&clock, &limiter, 1));
    }

    #[test]
    fn turns_come_in_the_order_in_which_they_are_asked_for_and_small_ones_overtake_nobody() {
        let (clock, limiter) = limiter(8);
        assert!(may_send_at_once(&clock, &limiter, PART));
        let mut line: Vec<Waiter> = [PART, 1, 4 * MIB, 1]
            .map(|bytes| wait(&clock, &limiter, bytes))
            .into();
        for waiter in &mut line {
            assert!(!waiter.may_send());
        }
        let mut sent = Vec::new();
        for _ in 0..1600 {
            clock.pass(Duration::from_millis(1));
            for (place, waiter) in line.iter_mut().enumerate() {
                if !sent.contains(&place) && waiter.may_send() {
                    sent.push(place);
                }
            }
        }
        assert_eq!(sent, [0, 1, 2, 3]);
    }

    #[test]
    fn whoever_gives_up_waiting_takes_nothing() {
        let (clock, limiter) = limiter(8);
        assert!(may_send_at_once(&clock, &limiter, PART));
        let mut line: Vec<Waiter> = (0..100).map(|_| wait(&clock, &limiter, PART)).collect();
        for waiter in &mut line {
            assert!(!waiter.may_send());
        }
        drop(line);
        clock.pass(Duration::from_secs(1));
        assert!(may_send_at_once(&clock, &limiter, PART));
    }

    #[test]
    fn one_that_is_never_polled_again_stops_no_other() {
        let (clock, limiter) = limiter(8);
        assert!(may_send_at_once(&clock, &limiter, PART));
        let mut forgotten = wait(&clock, &limiter, PART);
        assert!(!forgotten.may_send());
        let mut next = wait(&clock, &limiter, PART);
        assert!(!next.may_send());
        clock.pass(Duration::from_secs(2));
        assert!(next.may_send());
    }

    #[test]
    fn what_was_sent_again_is_paid_for_by_what_comes_later() {
        let (clock, limiter) = limiter(8);
        assert!(may_send_at_once(&clock, &limiter, PART));
        limiter.charge(&clock, PART);
        clock.pass(Duration::from_secs(1));
        let mut next = wait(&clock, &limiter, PART);
        assert!(!next.may_send());
        clock.pass(Duration::from_secs(1));
        assert!(next.may_send());
    }

    #[test]
    fn a_clock_that_is_set_back_makes_nobody_wait_for_it() {
        let (clock, limiter) = limiter(8);
        assert!(may_send_at_once(&clock, &limiter, PART));
        let mut waiting = wait(&clock, &limiter, PART);
        assert!(!waiting.may_send());
        clock.set(-time::Duration::days(1));
        clock.pass(Duration::from_secs(1));
        assert!(waiting.may_send());
        let mut next = wait(&clock, &limiter, PART);
        assert!(!next.may_send());
        clock.pass(Duration::from_secs(2));
        assert!(
            next.may_send(),
            "the second that the clock lost, and its own"
        );
    }

    #[test]
    fn a_clock_that_is_set_forward_lets_one_burst_more_through() {
        let (clock, limiter) = limiter(8);
        assert!(may_send_at_once(&clock, &limiter, PART));
        clock.set(time::Duration::days(1));
        assert!(may_send_at_once(&clock, &limiter, PART));
        assert!(!may_send_at_once(&clock, &limiter, PART));
    }

    #[test]
    fn a_bound_that_is_lifted_holds_nobody_back_not_even_those_who_wait() {
        let (clock, limiter) = limiter(1);
        let mut waiting = wait(&clock, &limiter, 3600 * MIB);
        assert!(!waiting.may_send());
        limiter.lift();
        assert!(waiting.may_send());
        assert!(may_send_at_once(&clock, &limiter, 3600 * MIB));
    }

    #[test]
    fn a_rate_that_rises_is_felt_by_those_who_wait_and_one_that_falls_too() {
        let rate = |mib: u64| NonZeroU64::new(mib * MIB).unwrap();
        let (clock, limiter) = limiter(8);
        assert!(may_send_at_once(&clock, &limiter, PART));
        let mut waiting = wait(&clock, &limiter, PART);
        let mut behind = wait(&clock, &limiter, PART);
        assert!(!waiting.may_send() && !behind.may_send());
        // 1 s and 2 s are left; at half the rate 2 s and 4 s.
        limiter.set_rate(&clock, rate(4));
        assert_eq!(limiter.rate(), rate(4));
        assert!(!waiting.may_send() && !behind.may_send());
        clock.pass(Duration::from_millis(1999));
        assert!(!waiting.may_send() && !behind.may_send());
        clock.pass(Duration::from_millis(1));
        assert!(waiting.may_send() && !behind.may_send());
        // 2 s are left; at 16 times the rate an eighth of one.
        limiter.set_rate(&clock, rate(64));
        assert!(!behind.may_send());
        clock.pass(Duration::from_millis(124));
        assert!(!behind.may_send());
        clock.pass(Duration::from_millis(1));
        assert!(behind.may_send());
        // What is owed has changed, too: one part at 64 MiB a second.
        let mut next = wait(&clock, &limiter, PART);
        assert!(!next.may_send());
        clock.pass(Duration::from_millis(125));
        assert!(next.may_send());
    }

    #[test]
    fn a_turn_that_is_given_up_after_the_rate_changed_returns_what_it_owes_now() {
        let rate = |mib: u64| NonZeroU64::new(mib * MIB).unwrap();
        let (clock, limiter) = limiter(8);
        assert!(may_send_at_once(&clock, &limiter, PART));
        let mut waiting = wait(&clock, &limiter, 100 * PART);
        assert!(!waiting.may_send());
        limiter.set_rate(&clock, rate(1));
        assert!(!waiting.may_send());
        drop(waiting);
        limiter.set_rate(&clock, rate(8));
        clock.pass(Duration::from_secs(1));
        assert!(may_send_at_once(&clock, &limiter, PART));
        assert!(!may_send_at_once(&clock, &limiter, 1));
    }

    #[test]
    fn small_and_large_numbers_lose_nothing() {
        let per_second = |n| NonZeroU64::new(n).unwrap();
        assert_eq!(time_of(0, per_second(1)), Duration::ZERO);
        assert_eq!(time_of(1, per_second(1 << 40)), Duration::from_nanos(1));
        assert_eq!(time_of(3, per_second(2)), Duration::from_millis(1500));
        assert_eq!(
            time_of(u64::MAX, per_second(1)),
            Duration::from_secs(u64::MAX)
        );
        let most = per_second(u64::MAX);
        assert_eq!(time_of(u64::MAX - 1, most), Duration::from_secs(1));
    }
}
