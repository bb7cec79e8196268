//! The gate of a partition: appends and commits pass it in fair turns, and hold what they took until they are
//! answered.
//!
//! Three bounds: the number of proposals that may be pending, the partition's share of
//! `limits.append-inflight`, and, where several clients compete, the window of the [`Pace`]. What does not
//! pass at once waits in a [`FairQueue`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::fair_queue::{FairQueue, Path, Ticket};
use super::pace::{Pace, Paced};
use crate::error::Error;

/// Requests that wait at the gate of a partition; each has a body, which counts elsewhere. Beyond it, one is
/// refused if another of the same client and stream waits already. Sessions do not count: one append of each
/// waits at most.
const MAX_WAITING: usize = 16_384;
/// Two clients compete if both have come within this time.
const COMPETITION: Duration = Duration::from_secs(2);
/// What a proposal costs the log and the database beside its bytes.
const WORK_OVERHEAD: usize = 2048;

/// Whose appends wait in turns: see [`FairQueue`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Who it is: turns go by this first.
    pub principal: u64,
    /// The connection. Turns of one principal go by this next, unless it is 0 for all of its connections.
    pub connection: u64,
}

impl Client {
    pub(crate) fn path(self, stream: u64) -> Path {
        [self.principal, self.connection, stream]
    }
}

/// Whether a caller waits with a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A request: see [`MAX_WAITING`].
    Request,
    /// A session, whose client is stopped by flow control.
    Session,
}

/// See the [module's head](self). Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gate {
    state: Arc<Mutex<State>>,
    pace: Arc<Pace>,
    share: usize,
}

struct State {
    queue: FairQueue<Waiter>,
    places: usize,
    /// Bytes of the share that are free.
    bytes: usize,
    /// Work that has passed and is not answered.
    work: usize,
    last: Option<(Path, Instant)>,
    competing_until: Option<Instant>,
}

struct Waiter {
    bytes: usize,
    passes: oneshot::Sender<Passed>,
}

/// What an append has taken. It is given back when this is dropped.
pub(crate) struct Passed {
    gate: Gate,
    bytes: usize,
    paced: Paced,
}

/// A place in the queue, until its turn comes or it is dropped.
struct Place<'a> {
    gate: &'a Gate,
    path: &'a Path,
    ticket: Ticket,
}

impl Gate {
    /// A gate for `places` proposals of `share` bytes together.
    pub(crate) fn new(places: usize, share: usize, pace: Arc<Pace>) -> Gate {
        let state = State {
            queue: FairQueue::new(),
            places,
            bytes: share,
            work: 0,
            last: None,
            competing_until: None,
        };
        Gate {
            state: Arc::new(Mutex::new(state)),
            pace,
            share,
        }
    }

    /// How many appends and commits wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().queue.waiting()
    }

    /// Passes with this many bytes, in turn. One that is larger than the share takes all of it. If the future
    /// is dropped, nothing was taken.
    ///
    /// # Errors
    ///
    /// [`Error::TryLater`] if too many requests wait.
    pub(crate) async fn pass(
        &self,
        path: &Path,
        bytes: usize,
        caller: Caller,
    ) -> Result<Passed, Error> {
        let bytes = bytes.min(self.share);
        let (ticket, turn) = {
            let mut state = self.state.lock();
            let now = Instant::now();
            state.note(path, now);
            if state.queue.waiting() == 0 && state.fits(bytes, self.pace.window(), now) {
                let paced = state.take(bytes, &self.pace, now);
                drop(state);
                return Ok(self.passed(bytes, paced));
            }
            let is_full = state.queue.waiting() >= MAX_WAITING && state.queue.has(path);
            if caller == Caller::Request && is_full {
                return Err(Error::TryLater(format!(
                    "{MAX_WAITING} appends to the partition wait already, one of this client among them: nothing \
                     happened, try again"
                )));
            }
            let (passes, turn) = oneshot::channel();
            let waiter = Waiter { bytes, passes };
            let ticket = state.queue.push(path, work(bytes) as u64, waiter);
            (ticket, turn)
        };
        let _place = Place {
            gate: self,
            path,
            ticket,
        };
        // The gate keeps the other end until it has sent.
        turn.await.map_err(|_| Error::Stopping)
    }

    fn passed(&self, bytes: usize, paced: Paced) -> Passed {
        Passed {
            gate: self.clone(),
            bytes,
            paced,
        }
    }

    /// Lets those pass whose turn it is.
    fn advance(&self) {
        loop {
            // One at a time, because one that does not wait any longer gives back what it gets, and that
            // takes the lock.
            let (waiter, paced) = {
                let mut state = self.state.lock();
                let now = Instant::now();
                let Some(bytes) = state.queue.first().map(|waiter| waiter.bytes) else {
                    return;
                };
                if !state.fits(bytes, self.pace.window(), now) {
                    return;
                }
                let Some(waiter) = state.queue.pop() else {
                    return;
                };
                (waiter, state.take(bytes, &self.pace, now))
            };
            let Waiter { bytes, passes } = waiter;
            // If nobody waits any longer, what was taken is dropped, which comes here again.
            drop(passes.send(self.passed(bytes, paced)));
        }
    }
}

impl State {
    fn note(&mut self, path: &Path, now: Instant) {
        if let Some((last, at)) = &self.last
            && last != path
            && now.saturating_duration_since(*at) < COMPETITION
        {
            self.competing_until = Some(now + COMPETITION);
        }
        self.last = Some((*path, now));
    }

    fn is_competing(&self, now: Instant) -> bool {
        self.competing_until.is_some_and(|until| now < until)
    }

    fn fits(&self, bytes: usize, window: usize, now: Instant) -> bool {
        let competing = self.is_competing(now);
        // Something is always in flight while anything waits.
        let in_window = !competing || self.work == 0 || self.work + work(bytes) <= window;
        self.places > 0 && self.bytes >= bytes && in_window
    }

    fn take(&mut self, bytes: usize, pace: &Pace, now: Instant) -> Paced {
        self.places -= 1;
        self.bytes -= bytes;
        self.work += work(bytes);
        pace.begin(work(bytes), self.is_competing(now), now)
    }
}

fn work(bytes: usize) -> usize {
    bytes + WORK_OVERHEAD
}

impl Drop for Passed {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.gate.state.lock();
            state.places += 1;
            state.bytes += self.bytes;
            state.work -= work(self.bytes);
            state.queue.waiting() > 0
        };
        self.gate.pace.end(&self.paced, waiting, Instant::now());
        if waiting {
            self.gate.advance();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let removed = self.gate.state.lock().queue.remove(self.path, self.ticket);
        // Others may have waited behind a large one.
        if removed.is_some() {
            drop(removed);
            self.gate.advance();
        }
    }
}

#[cfg(test)]
impl Gate {
    /// Free places, and free bytes of the share.
    pub(crate) fn free(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.places, state.bytes)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const SHARE: usize = 1 << 20;
    const FLOOD: Path = [1, 1, 1];

    fn gate(places: usize) -> Gate {
        Gate::new(places, SHARE, Arc::new(Pace::new(SHARE)))
    }

    async fn pass(gate: &Gate, path: &Path, bytes: usize) -> Passed {
        gate.pass(path, bytes, Caller::Request).await.unwrap()
    }

    #[tokio::test]
    async fn one_polite_append_passes_before_a_flood_that_came_first() {
        let gate = gate(10_000);
        let all = pass(&gate, &FLOOD, SHARE).await;
        let mut flood: Vec<_> = (0..1000)
            .map(|_| Box::pin(pass(&gate, &FLOOD, SHARE / 4)))
            .collect();
        for waits in &mut flood {
            assert!(waits.now_or_never().is_none());
        }
        let polite: Path = [2, 2, 1];
        let mut polite = Box::pin(pass(&gate, &polite, 1000));
        assert!((&mut polite).now_or_never().is_none());
        drop(all);
        let passed = polite.now_or_never();
        assert!(passed.is_some(), "it waits for none of the flood's queue");
    }

    #[tokio::test]
    async fn what_is_not_awaited_any_longer_takes_nothing_and_delays_nobody() {
        let gate = gate(10);
        let all = pass(&gate, &FLOOD, SHARE).await;
        let mut large = Box::pin(pass(&gate, &FLOOD, SHARE));
        assert!((&mut large).now_or_never().is_none());
        let mut small = Box::pin(pass(&gate, &FLOOD, 10));
        assert!((&mut small).now_or_never().is_none());
        assert_eq!(gate.waiting(), 2);
        drop(all);
        // The large one has passed, and its caller has gone before it noticed.
        drop(large);
        drop(small.now_or_never().expect("its turn came"));
        assert_eq!(gate.free(), (10, SHARE));
        assert_eq!(gate.waiting(), 0);

        let most = pass(&gate, &FLOOD, SHARE - 100).await;
        let mut large = Box::pin(pass(&gate, &FLOOD, SHARE));
        assert!((&mut large).now_or_never().is_none());
        let mut small = Box::pin(pass(&gate, &FLOOD, 10));
        assert!((&mut small).now_or_never().is_none(), "it has its turn");
        drop(large);
        assert!(small.now_or_never().is_some(), "nothing is before it");
        drop(most);
        assert_eq!(gate.free(), (10, SHARE));
    }

    #[tokio::test]
    async fn one_client_alone_has_the_whole_share_and_several_have_the_window() {
        const ONE: usize = 64 * 1024;
        let pace = Arc::new(Pace::new(0));
        let window = pace.window();
        let gate = Gate::new(1000, 64 * window, pace);
        let mut alone = Vec::new();
        while alone.len() * ONE < 32 * window {
            alone.push(
                pass(&gate, &FLOOD, ONE)
                    .now_or_never()
                    .expect("it is alone"),
            );
        }
        let mut other = Box::pin(pass(&gate, &[2, 1, 1], ONE));
        assert!((&mut other).now_or_never().is_none(), "two compete");
        while (&mut other).now_or_never().is_none() {
            assert!(alone.pop().is_some());
        }
        let in_flight = (alone.len() + 1) * work(ONE);
        assert!((window / 2..=window).contains(&in_flight), "{in_flight}");
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_a_client_with_nothing_in_it_finds_a_place() {
        let gate = gate(10_000);
        let all = pass(&gate, &FLOOD, SHARE).await;
        let mut waiting = Vec::new();
        for _ in 0..MAX_WAITING {
            let mut waits = Box::pin(gate.pass(&FLOOD, 1, Caller::Request));
            assert!((&mut waits).now_or_never().is_none());
            waiting.push(waits);
        }
        let refused = gate.pass(&FLOOD, 1, Caller::Request).now_or_never();
        assert!(matches!(refused, Some(Err(Error::TryLater(_)))));
        assert!(
            gate.pass(&FLOOD, 1, Caller::Session)
                .now_or_never()
                .is_none()
        );
        let mut other = Box::pin(pass(&gate, &[2, 1, 1], 1));
        assert!((&mut other).now_or_never().is_none());
        drop(all);
        assert!(other.now_or_never().is_some());
    }
}
