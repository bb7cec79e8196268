//! Virtual time: a clock that jumps to the next time that a task waits for, and a set of tasks on one
//! thread, so that a run can be repeated by its seed.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use esker_repository::env::Env;
use futures::FutureExt as _;
use futures::executor::LocalPool;
use futures::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use time::OffsetDateTime;

type Action = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    now: Duration,
    count: u64,
    wakers: BTreeMap<(Duration, u64), Waker>,
    actions: BTreeMap<(Duration, u64), Action>,
}

/// The virtual clock. Clones share it.
#[derive(Clone, Default)]
pub struct Clock {
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.now())
    }
}

impl Clock {
    /// The time since the beginning.
    pub fn now(&self) -> Duration {
        self.state.lock().unwrap().now
    }

    /// Waits.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        Sleep {
            until: self.now() + duration,
            clock: self.clone(),
        }
    }

    /// Runs an action later, even if its caller was dropped meanwhile.
    pub fn later(&self, after: Duration, action: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock().unwrap();
        state.count += 1;
        let key = (state.now + after, state.count);
        state.actions.insert(key, Box::new(action));
    }

    /// Jumps to the next time that a task waits for; false if no task waits.
    fn jump(&self) -> bool {
        let (actions, wakers) = {
            let mut state = self.state.lock().unwrap();
            let next = [
                state.wakers.keys().next().map(|k| k.0),
                state.actions.keys().next().map(|k| k.0),
            ];
            let Some(next) = next.into_iter().flatten().min() else {
                return false;
            };
            state.now = state.now.max(next);
            let later = (state.now, u64::MAX);
            let rest = state.actions.split_off(&later);
            let actions = std::mem::replace(&mut state.actions, rest);
            let rest = state.wakers.split_off(&later);
            let wakers = std::mem::replace(&mut state.wakers, rest);
            (actions, wakers)
        };
        for action in actions.into_values() {
            action();
        }
        for waker in wakers.into_values() {
            waker.wake();
        }
        true
    }
}

/// See [`Clock::sleep`].
pub struct Sleep {
    until: Duration,
    clock: Clock,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.clock.state.lock().unwrap();
        if state.now >= self.until {
            return Poll::Ready(());
        }
        state.count += 1;
        let key = (self.until, state.count);
        state.wakers.insert(key, context.waker().clone());
        Poll::Pending
    }
}

/// Runs tasks until all are done.
pub fn run(clock: &Clock, tasks: Vec<BoxFuture<'static, ()>>) {
    let mut pool = LocalPool::new();
    let mut all = futures::future::join_all(tasks).boxed();
    for _ in 0..10_000_000 {
        let mut done = false;
        pool.run_until(futures::future::poll_fn(|context| {
            done = all.poll_unpin(context).is_ready();
            Poll::Ready(())
        }));
        if done {
            return;
        }
        assert!(clock.jump(), "nobody is waiting, and not all is done");
    }
    panic!("no end");
}

/// A machine: its clock has an error, and its random numbers are its own.
#[derive(Debug)]
pub struct Machine {
    clock: Clock,
    skew: time::Duration,
    dice: Mutex<StdRng>,
}

impl Machine {
    pub fn new(clock: &Clock, skew: time::Duration, seed: u64) -> Arc<Machine> {
        Arc::new(Machine {
            clock: clock.clone(),
            skew,
            dice: Mutex::new(StdRng::seed_from_u64(seed)),
        })
    }
}

/// The time of day at the beginning.
pub fn epoch() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

impl Env for Machine {
    fn now(&self) -> OffsetDateTime {
        epoch() + self.clock.now() + self.skew
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(self.clock.sleep(duration))
    }

    fn random(&self) -> u64 {
        self.dice.lock().unwrap().next_u64()
    }
}

/// A task that pauses at random await points, and may never continue.
pub struct Unreliable {
    inner: BoxFuture<'static, ()>,
    clock: Clock,
    dice: StdRng,
    pause: Option<Sleep>,
    /// One in so many polls.
    pub pause_in: u32,
    /// One in so many polls.
    pub crash_in: u32,
}

impl Unreliable {
    pub fn new(
        inner: BoxFuture<'static, ()>,
        clock: &Clock,
        seed: u64,
        pause_in: u32,
        crash_in: u32,
    ) -> Unreliable {
        Unreliable {
            inner,
            clock: clock.clone(),
            dice: StdRng::seed_from_u64(seed),
            pause: None,
            pause_in,
            crash_in,
        }
    }
}

impl Future for Unreliable {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if let Some(pause) = &mut this.pause {
            if pause.poll_unpin(context).is_pending() {
                return Poll::Pending;
            }
            this.pause = None;
        } else if this.crash_in > 0 && this.dice.next_u32().is_multiple_of(this.crash_in) {
            return Poll::Ready(());
        } else if this.pause_in > 0 && this.dice.next_u32().is_multiple_of(this.pause_in) {
            // From seconds to days.
            let seconds = 1 << (this.dice.next_u32() % 19);
            let mut pause = this.clock.sleep(Duration::from_secs(seconds));
            if pause.poll_unpin(context).is_pending() {
                this.pause = Some(pause);
                return Poll::Pending;
            }
        }
        this.inner.poll_unpin(context)
    }
}
