//! What waits to be written to the log, and which of it comes next.
//!
//! Groups take turns, so the request of a group that writes little is in the next write, whatever others
//! have queued; requests of one group keep their order. While several groups write, whoever comes during a
//! write waits for that one, and then for its own, so writes are kept short: a write takes at most
//! [`MAX_OVER_LEAST`] times as long as the shortest one of late, which is about one sync.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Bytes of a write while several groups write: at first, and at least.
const FIRST_SHARED_WRITE: u64 = 512 * 1024;
const MIN_SHARED_WRITE: u64 = 256 * 1024;
/// How long a full write may take while several groups write, as a multiple of the shortest one of late: then
/// the time of a sync is a quarter of it.
const MAX_OVER_LEAST: u32 = 4;
/// The shortest time of late grows by this share with each write that is not full, or that is long although it may
/// not be shorter, so that it follows a disk that becomes slow.
const AGING: u32 = 256;
/// Bytes that a group writes in its turn, except that a request is not divided.
const TURN: u64 = 64 * 1024;
/// Bytes of small requests that a full write takes along for a group whose turn has not come, and in all: they
/// make it hardly longer, and do not wait for a turn of each group with large requests.
const SMALL: u64 = 4 * 1024;
const SMALL_IN_ALL: u64 = 64 * 1024;
/// Several groups write if two have come within this time.
const COMPETITION: Duration = Duration::from_secs(2);

/// See the [module's head](self). `G` identifies a group.
pub(super) struct WriteQueue<G, R> {
    /// Requests of each group, the next one at the front; none is empty.
    groups: HashMap<G, VecDeque<Waiting<R>>>,
    /// The groups that have requests; the one whose turn it is at the front.
    turns: VecDeque<G>,
    arrivals: u64,
    last: Option<(G, Instant)>,
    competing_until: Option<Instant>,
    /// Most bytes of a write while several groups write.
    shared_write: u64,
    /// The shortest time that a write took of late.
    least: Option<Duration>,
}

struct Waiting<R> {
    arrival: u64,
    bytes: u64,
    request: R,
}

impl<G: Copy + Eq + Hash, R> WriteQueue<G, R> {
    pub fn new() -> WriteQueue<G, R> {
        WriteQueue {
            groups: HashMap::new(),
            turns: VecDeque::new(),
            arrivals: 0,
            last: None,
            competing_until: None,
            shared_write: FIRST_SHARED_WRITE,
            least: None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Adds a request. Returns its number: requests are numbered in the order of their arrival.
    pub fn push(&mut self, group: G, bytes: u64, request: R, now: Instant) -> u64 {
        if let Some((last, at)) = self.last
            && last != group
            && now.saturating_duration_since(at) < COMPETITION
        {
            self.competing_until = Some(now + COMPETITION);
        }
        self.last = Some((group, now));
        self.arrivals += 1;
        let waiting = self.groups.entry(group).or_default();
        if waiting.is_empty() {
            self.turns.push_back(group);
        }
        waiting.push_back(Waiting {
            arrival: self.arrivals,
            bytes,
            request,
        });
        self.arrivals
    }

    fn is_competing(&self, now: Instant) -> bool {
        self.competing_until.is_some_and(|until| now < until)
    }

    /// A write of so many bytes, of at most `max`, took so long.
    pub fn written(&mut self, bytes: u64, max: u64, took: Duration, now: Instant) {
        let least = self.least.unwrap_or(took).min(took);
        // One that was not full tells nothing about the bound.
        let is_full = self.is_competing(now) && bytes >= self.shared_write / 4 * 3;
        let is_long = took > least * MAX_OVER_LEAST;
        // One that is long because it is large tells nothing about the shortest time.
        let ages = !is_full || (is_long && self.shared_write == MIN_SHARED_WRITE);
        self.least = Some(match ages {
            true => took.min(least + least / AGING),
            false => least,
        });
        if is_full {
            self.shared_write = match is_long {
                true => (self.shared_write / 4 * 3).max(MIN_SHARED_WRITE),
                false => (self.shared_write / 4 * 5).min(max.max(MIN_SHARED_WRITE)),
            };
        }
    }

    /// The number of the oldest request that waits.
    pub fn oldest(&self) -> Option<u64> {
        let first = |waiting: &VecDeque<Waiting<R>>| waiting.front().map(|it| it.arrival);
        self.groups.values().filter_map(first).min()
    }

    /// The requests of the next write: at most `max` bytes, or one request.
    pub fn take(&mut self, max: u64, now: Instant) -> Vec<R> {
        let most = max;
        let max = match self.is_competing(now) {
            true => max.min(self.shared_write),
            false => max,
        };
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(group) = self.turns.pop_front() {
            let Some(waiting) = self.groups.get_mut(&group) else {
                continue;
            };
            let (mut of_turn, mut is_full) = (0, false);
            while let Some(next) = waiting.front().map(|it| it.bytes) {
                is_full = !taken.is_empty() && bytes + next > max;
                if is_full || (of_turn > 0 && of_turn + next > TURN) {
                    break;
                }
                of_turn += next.max(1);
                bytes += next;
                taken.extend(waiting.pop_front().map(|it| it.request));
            }
            if waiting.is_empty() {
                self.groups.remove(&group);
            } else if is_full && of_turn == 0 {
                // It has had nothing of this turn.
                self.turns.push_front(group);
            } else {
                self.turns.push_back(group);
            }
            if is_full {
                break;
            }
        }
        let mut small_in_all = SMALL_IN_ALL;
        self.turns.retain(|group| {
            let Some(waiting) = self.groups.get_mut(group) else {
                return false;
            };
            let mut small = SMALL.min(small_in_all).min(most.saturating_sub(bytes));
            while let Some(next) = waiting.front().map(|it| it.bytes)
                && next <= small
            {
                small -= next;
                small_in_all -= next;
                bytes += next;
                taken.extend(waiting.pop_front().map(|it| it.request));
            }
            let has_more = !waiting.is_empty();
            if !has_more {
                self.groups.remove(group);
            }
            has_more
        });
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn writes(queue: &mut WriteQueue<u64, &'static str>, max: u64, now: Instant) -> Vec<usize> {
        let mut sizes = Vec::new();
        while !queue.is_empty() {
            sizes.push(queue.take(max, now).len());
        }
        sizes
    }

    #[test]
    fn one_group_alone_has_whole_writes_in_order() {
        let now = Instant::now();
        let mut queue = WriteQueue::new();
        for name in ["a", "b", "c", "d", "e"] {
            queue.push(1, 1024 * KIB, name, now);
        }
        assert_eq!(queue.take(4096 * KIB, now), ["a", "b", "c", "d"]);
        assert_eq!(queue.oldest(), Some(5));
        assert_eq!(queue.take(4096 * KIB, now), ["e"]);
        assert!(queue.is_empty() && queue.groups.is_empty());
        queue.push(1, 9999 * KIB, "larger than a write", now);
        assert_eq!(writes(&mut queue, 4096 * KIB, now), [1]);
    }

    #[test]
    fn a_group_that_writes_little_is_in_the_next_write_whatever_others_have_queued() {
        let now = Instant::now();
        let mut queue = WriteQueue::new();
        for _ in 0..1000 {
            queue.push(1, 64 * KIB, "flood", now);
            queue.push(2, 64 * KIB, "flood", now);
        }
        for number in 0..10 {
            queue.push(3, KIB, "polite", now);
            let write = queue.take(4096 * KIB, now);
            assert!(write.contains(&"polite"), "write {number}");
            assert!(write.len() as u64 <= FIRST_SHARED_WRITE / (64 * KIB) + 1);
        }
        // Nothing is lost.
        let rest: usize = writes(&mut queue, 4096 * KIB, now).into_iter().sum();
        let before = 10 * (FIRST_SHARED_WRITE / (64 * KIB)) as usize;
        assert!((2000 - before..2000).contains(&rest), "{rest}");
        // Later, one is alone again.
        let later = now + 2 * COMPETITION;
        for _ in 0..32 {
            queue.push(1, 64 * KIB, "alone", later);
        }
        assert_eq!(writes(&mut queue, 4096 * KIB, later), [32]);
    }

    #[test]
    fn a_small_request_does_not_wait_for_a_turn_of_each_group_with_large_ones() {
        let now = Instant::now();
        let mut queue = WriteQueue::new();
        for number in 0..10 {
            for group in 0..24 {
                queue.push(group, 1024 * KIB, "flood", now);
            }
            queue.push(99, KIB, "polite", now);
            assert!(queue.take(4096 * KIB, now).contains(&"polite"), "{number}");
        }
        let rest: usize = writes(&mut queue, 4096 * KIB, now).into_iter().sum();
        assert_eq!(rest, 24 * 10 - 10);
    }

    /// Bytes of a full write in the end, and its time, on a disk with this time for a sync.
    fn settled(sync: Duration, bytes_per_ms: u64) -> (u64, Duration) {
        const MAX: u64 = 4096 * KIB;
        let time = |bytes: u64| sync + Duration::from_micros(bytes * 1000 / bytes_per_ms);
        let mut now = Instant::now();
        let mut queue = WriteQueue::new();
        let mut full = (0, Duration::ZERO);
        for number in 0..2000 {
            queue.push(1, KIB, KIB, now);
            // Sometimes a write is small.
            if number % 50 > 0 {
                for _ in 0..MAX / (32 * KIB) {
                    queue.push(2, 32 * KIB, 32 * KIB, now);
                }
            }
            while !queue.is_empty() {
                let bytes = queue.take(MAX, now).into_iter().sum();
                let took = time(bytes);
                now += took;
                queue.written(bytes, MAX, took, now);
                if bytes >= queue.shared_write / 4 * 3 {
                    full = (bytes, took);
                }
            }
        }
        full
    }

    #[test]
    fn full_writes_take_a_few_syncs_on_any_disk_while_several_groups_write() {
        for sync in [1, 4] {
            let sync = Duration::from_millis(sync);
            let (bytes, took) = settled(sync, 200 * KIB);
            assert!(took <= sync * MAX_OVER_LEAST * 3 / 2, "{took:?}, {bytes}");
            assert!(took >= sync * MAX_OVER_LEAST / 2, "{took:?}, {bytes}");
        }
        // A disk with slow syncs is not asked for more of them than without competition.
        let (bytes, _) = settled(Duration::from_millis(20), 200 * KIB);
        assert!(bytes >= 3072 * KIB, "{bytes}");
    }

    #[test]
    fn writes_stay_short_while_a_flood_fills_all_of_them() {
        const MAX: u64 = 4096 * KIB;
        let sync = Duration::from_millis(1);
        let time = |bytes: u64| sync + Duration::from_micros(bytes * 1000 / (200 * KIB));
        let (mut queue, mut now) = (WriteQueue::new(), Instant::now());
        for _ in 0..10 {
            queue.push(1, KIB, KIB, now);
            let bytes = queue.take(MAX, now).into_iter().sum();
            now += time(bytes);
            queue.written(bytes, MAX, time(bytes), now);
        }
        for number in 0..20_000 {
            queue.push(1, KIB, KIB, now);
            while queue.groups.get(&2).map_or(0, VecDeque::len) < 128 {
                queue.push(2, 32 * KIB, 32 * KIB, now);
            }
            let bytes = queue.take(MAX, now).into_iter().sum();
            let took = time(bytes);
            now += took;
            queue.written(bytes, MAX, took, now);
            assert!(took <= sync * MAX_OVER_LEAST * 3 / 2, "{number}: {took:?}");
        }
    }

    #[test]
    fn many_groups_all_have_their_turn_and_each_keeps_its_order() {
        let now = Instant::now();
        let mut queue = WriteQueue::new();
        for number in 0..5 {
            for group in 0..100_u64 {
                queue.push(group, 60 * KIB, (group, number), now);
            }
        }
        let mut seen = [0; 100];
        let mut writes = 0;
        while !queue.is_empty() {
            for (group, number) in queue.take(4096 * KIB, now) {
                assert_eq!(seen[group as usize], number);
                seen[group as usize] += 1;
            }
            writes += 1;
            let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
            assert!(most - least <= 1, "after {writes} writes: {seen:?}");
        }
        assert!(seen.iter().all(|count| *count == 5));
    }
}
