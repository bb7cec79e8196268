//! Turns of the followers of a stream that many follow.
//!
//! Each delivery to a follower costs about the same, however much it brings. So from [`PACED_FOLLOWERS`] on,
//! followers are woken in turns: what was appended since the last turn is delivered at once. A task for each
//! such stream wakes them, in [`GROUPS`] groups one after the other: what all wait for is not the last of all
//! deliveries, and nobody else has to wake thousands. Not many are woken at once, because tasks that do not fit into
//! the queue of a thread of the runtime are served after those that come later. A turn ends at the tail as it is when the turn begins, so
//! followers of a group stay at the same record and share what is scanned and encoded
//! ([`crate::shared_records`]).
//!
//! Time between two turns of a group, the pace: [`DELIVERY`] for each follower, [`USUAL_MAX_PACE`] at most. If
//! followers are woken later than their turn, because there is more to do than processors can, the pace is
//! prolonged, up to [`MAX_PACE`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use esker_partition::Stream;
use esker_partition::stream::Follower;
use parking_lot::Mutex;
use s2_common::record::SeqNum;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// From so many followers on, they have turns; with half as many, they have none any more.
const PACED_FOLLOWERS: usize = 256;
/// About what a delivery to one follower costs, the work of the system for its connection included: with a pace
/// of so much for each, deliveries take no more than a processor, however often something is appended.
const DELIVERY: Duration = Duration::from_micros(20);
/// Longest pace of followers that are woken in time.
const USUAL_MAX_PACE: Duration = Duration::from_millis(180);
/// Longest pace.
const MAX_PACE: Duration = Duration::from_millis(240);
/// Followers of a stream are divided into so many groups: 10,000 into groups of 80. The queue of a thread has 256
/// places.
const GROUPS: usize = 128;
/// Least time between two groups; if the pace has less for each, several are woken at once.
const MIN_STEP: Duration = Duration::from_millis(1);
/// Time between two rounds while nothing is appended.
const IDLE_ROUND: Duration = Duration::from_secs(1);
/// What a group has been given when there are no turns any more: everything.
const NO_TURNS: SeqNum = SeqNum::MAX;

/// The streams whose followers have turns. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct FollowerTurns {
    streams: Arc<Mutex<Streams>>,
}

/// By partition and stream.
type Streams = HashMap<(u64, u64), Arc<Turns>>;

/// The turns of the followers of one stream.
struct Turns {
    groups: Vec<Group>,
    begun: Instant,
    /// The longest time from a turn to the moment when a follower noticed it, in microseconds, since the last
    /// round.
    lateness: AtomicU64,
}

struct Group {
    /// Up to where its followers may read.
    released: watch::Sender<SeqNum>,
    /// When that was, in microseconds since the beginning.
    at: AtomicU64,
}

impl Turns {
    fn new(tail: SeqNum) -> Turns {
        let group = |_| Group {
            released: watch::Sender::new(tail),
            at: AtomicU64::new(0),
        };
        Turns {
            groups: (0..GROUPS).map(group).collect(),
            begun: Instant::now(),
            lateness: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    /// Lets a group read up to the tail; returns whether there was something to read.
    fn release(&self, group: &Group, tail: SeqNum) -> bool {
        group.at.store(self.now(), Ordering::Relaxed);
        group.released.send_if_modified(|released| {
            let is_more = tail > *released;
            *released = tail.max(*released);
            is_more
        })
    }

    /// Wakes the groups in turn while the stream has many followers.
    async fn run(&self, stream: &Stream) {
        let mut tail = stream.changes();
        let mut stretch = Stretch::default();
        let mut turn = Instant::now();
        loop {
            let pace = stretch.pace(stream.followers());
            let (at_once, step) = steps(pace);
            let mut is_idle = true;
            for groups in self.groups.chunks(at_once) {
                // One that is late is not made up for.
                turn = (turn + step).max(Instant::now() - step);
                sleep_until(turn).await;
                if stream.is_gone() || stream.followers() < PACED_FOLLOWERS / 2 {
                    return;
                }
                let tail = *tail.borrow_and_update();
                for group in groups {
                    is_idle &= !self.release(group, tail);
                }
            }
            let lateness = self.lateness.swap(0, Ordering::Relaxed);
            stretch.note(Duration::from_micros(lateness), pace);
            // From time to time it has to notice that nobody follows any more.
            if is_idle {
                let _ = timeout(IDLE_ROUND, tail.changed()).await;
            }
        }
    }
}

/// Ends the turns, whatever ended the task.
struct Ends {
    of: FollowerTurns,
    key: (u64, u64),
    turns: Arc<Turns>,
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.of.streams.lock().remove(&self.key);
        for group in &self.turns.groups {
            group.released.send_replace(NO_TURNS);
        }
    }
}

/// By how much the pace is longer than it would be if all were woken in time.
struct Stretch(f64);

impl Default for Stretch {
    fn default() -> Stretch {
        Stretch(1.0)
    }
}

impl Stretch {
    fn pace(&self, followers: usize) -> Duration {
        pace(followers).mul_f64(self.0).min(MAX_PACE)
    }

    /// Notes how late followers were woken in a round of this pace.
    fn note(&mut self, lateness: Duration, pace: Duration) {
        if lateness > pace / 4 && pace < MAX_PACE {
            self.0 *= 1.25;
        } else if lateness < pace / 16 {
            self.0 = (self.0 * 0.95).max(1.0);
        }
    }
}

/// How many groups are woken at once, and the time until the next ones are.
fn steps(pace: Duration) -> (usize, Duration) {
    let steps = (pace.as_nanos() / MIN_STEP.as_nanos()).clamp(1, GROUPS as u128) as usize;
    let at_once = GROUPS.div_ceil(steps);
    (at_once, pace / GROUPS.div_ceil(at_once) as u32)
}

/// Time between two turns of so many followers that are woken in time.
fn pace(followers: usize) -> Duration {
    let followers = u32::try_from(followers).unwrap_or(u32::MAX);
    DELIVERY.saturating_mul(followers).min(USUAL_MAX_PACE)
}

impl FollowerTurns {
    /// The turns of a stream's followers, if it has many.
    fn of(&self, stream: &Arc<Stream>, stopping: &CancellationToken) -> Option<Arc<Turns>> {
        if stream.followers() < PACED_FOLLOWERS {
            return None;
        }
        let key = (stream.partition.0, stream.id.0);
        let mut streams = self.streams.lock();
        if let Some(turns) = streams.get(&key) {
            return Some(turns.clone());
        }
        let turns = Arc::new(Turns::new(stream.tail().seq_num));
        streams.insert(key, turns.clone());
        let ends = Ends {
            of: self.clone(),
            key,
            turns: turns.clone(),
        };
        let (stream, stopping) = (stream.clone(), stopping.clone());
        tokio::spawn(async move {
            let run = ends.turns.run(&stream);
            stopping.run_until_cancelled(run).await;
            drop(ends);
        });
        Some(turns)
    }
}

/// What wakes a follower: the stream, or its turn.
pub(crate) struct Wakeup {
    follower: Follower,
    stream: Arc<Stream>,
    of: FollowerTurns,
    stopping: CancellationToken,
    turn: Option<Turn>,
}

struct Turn {
    turns: Arc<Turns>,
    group: usize,
    released: watch::Receiver<SeqNum>,
}

impl Turn {
    fn new(turns: Arc<Turns>, follower: usize) -> Turn {
        let group = follower % turns.groups.len();
        let released = turns.groups[group].released.subscribe();
        Turn {
            turns,
            group,
            released,
        }
    }

    /// Waits for the turn in which there is something beyond `seq`; `None` if there are no turns any more.
    async fn beyond(&mut self, seq: SeqNum) -> Option<SeqNum> {
        // One that comes after its turn was busy, and was not woken late.
        let released = *self.released.borrow();
        if released > seq {
            return (released != NO_TURNS).then_some(released);
        }
        let released = self.released.wait_for(|released| *released > seq).await;
        let released = released.map_or(NO_TURNS, |released| *released);
        let begun = self.turns.groups[self.group].at.load(Ordering::Relaxed);
        let lateness = self.turns.now().saturating_sub(begun);
        self.turns.lateness.fetch_max(lateness, Ordering::Relaxed);
        (released != NO_TURNS).then_some(released)
    }
}

impl Wakeup {
    /// Follows a stream.
    pub fn new(stream: &Arc<Stream>, of: FollowerTurns, stopping: CancellationToken) -> Wakeup {
        Wakeup {
            follower: stream.follow(),
            stream: stream.clone(),
            of,
            stopping,
            turn: None,
        }
    }

    /// How many follow the stream.
    pub fn followers(&self) -> usize {
        self.follower.followers()
    }

    /// Up to where the followers that have their turn with this one read in the last turn, if there are turns.
    /// They may all read further.
    pub fn turn_end(&self) -> Option<SeqNum> {
        let turn = self.turn.as_ref()?;
        let released = *turn.released.borrow();
        (released != NO_TURNS).then_some(released)
    }

    /// Waits until there is something beyond `seq` for this follower, or the stream is gone. Safe to cancel.
    pub async fn beyond(&mut self, seq: SeqNum) {
        while !self.stream.is_gone() {
            if self.turn.is_none() {
                let turns = self.of.of(&self.stream, &self.stopping);
                self.turn = turns.map(|turns| Turn::new(turns, self.follower.number()));
            }
            let Some(turn) = &mut self.turn else {
                return self.follower.beyond(seq).await;
            };
            if turn.beyond(seq).await.is_some() {
                return;
            }
            self.turn = None;
        }
        self.turn = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_grows_with_the_number_of_followers_and_is_never_long() {
        assert_eq!(pace(1000), DELIVERY * 1000);
        for many in [10_000, 1_000_000, usize::MAX] {
            assert_eq!(pace(many), USUAL_MAX_PACE);
        }
    }

    #[test]
    fn few_are_woken_at_once_and_each_once_in_a_pace() {
        for followers in [256, 1000, 5000, 10_000, 16_000] {
            let pace = pace(followers);
            let (at_once, step) = steps(pace);
            assert!(step >= MIN_STEP, "{followers}");
            assert!(at_once * followers / GROUPS <= 150, "{followers}");
            let round = step * GROUPS.div_ceil(at_once) as u32;
            assert!(
                pace.abs_diff(round) < Duration::from_micros(1),
                "{followers}: {round:?}"
            );
        }
    }

    #[test]
    fn followers_that_are_woken_late_have_turns_less_often_until_they_are_woken_in_time() {
        let mut stretch = Stretch::default();
        for _ in 0..100 {
            let pace = stretch.pace(10_000);
            stretch.note(pace / 2, pace);
        }
        assert_eq!(stretch.pace(10_000), MAX_PACE);
        for _ in 0..100 {
            let pace = stretch.pace(10_000);
            stretch.note(pace / 100, pace);
        }
        assert_eq!(stretch.pace(10_000), pace(10_000));
    }
}
