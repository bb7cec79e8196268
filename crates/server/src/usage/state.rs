//! All that is measured, in memory, and its bounds.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use esker_node::Position;
use s2_common::access::Operation;

use super::meters::{Meter, Meters};
use super::series::Interval;

/// Most basins whose usage is kept. Beyond them, that of the basin is dropped that was unused for the
/// longest time; the account's counts go on.
pub(crate) const MAX_BASINS: usize = 1000;
/// Most streams whose size is kept over time: those that were appended to last. Of others, the present
/// size alone is known.
pub(crate) const MAX_STREAMS: usize = 1000;
/// Most values in all, of 16 bytes each: 32 MiB. A basin that is used in every minute for a month takes
/// some 1,600 for each of its series, of which most basins have six. Beyond this number, usage is dropped
/// as with too many basins.
pub(crate) const MAX_POINTS: usize = 2 << 20;
/// Most uses of streams by connections that are remembered within a minute, of 8 bytes each. Beyond them,
/// each append counts as an operation.
const MAX_SEEN: usize = 64 * 1024;

/// What is measured of one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(crate) meters: Meters,
    /// When it was last used, in seconds since the epoch.
    pub(crate) last_used: u32,
    /// When its size was last read in this run of the server, in seconds since the epoch; 0 for not yet.
    pub(crate) sized: u32,
    /// What a stream had at that time.
    pub(crate) extent: Extent,
}

/// Where a stream begins and ends: while it is the same, so is its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Extent {
    head: u64,
    tail: u64,
    /// Another stream may have had the name before.
    created_ms: u64,
}

impl Extent {
    pub(crate) fn of(position: &Position) -> Extent {
        Extent {
            head: position.head,
            tail: position.tail.seq_num,
            created_ms: position.created_ms,
        }
    }

    #[cfg(test)]
    pub(super) fn at(tail: u64) -> Extent {
        Extent {
            tail,
            ..Extent::default()
        }
    }
}

/// What is measured of a basin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BasinUsage {
    pub(crate) measured: Measured,
    pub(crate) streams: HashMap<String, Measured>,
}

impl BasinUsage {
    fn points(&self) -> usize {
        let streams = self.streams.values().map(|stream| stream.meters.points());
        self.measured.meters.points() + streams.sum::<usize>()
    }
}

/// The uses of streams by connections in the present minute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    minute: u32,
    uses: HashSet<u64>,
}

impl Seen {
    /// Whether this is the first use of its minute.
    fn is_first(&mut self, now: u32, used: u64) -> bool {
        let minute = Interval::Minute.begin(now);
        // Who read the clock just before another began this minute does not begin the last one again.
        let is_late = minute.saturating_add(Interval::Minute.seconds()) == self.minute;
        if self.minute != minute && !is_late {
            self.minute = minute;
            self.uses.clear();
        }
        if self.uses.len() >= MAX_SEEN {
            return !self.uses.contains(&used);
        }
        self.uses.insert(used)
    }
}

/// All that is measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) account: Measured,
    pub(crate) basins: HashMap<String, BasinUsage>,
    /// Number of streams that were added since the last round that drops some.
    new_streams: usize,
    seen: Seen,
}

impl State {
    /// The usage of a basin, which is used now.
    pub(crate) fn used(&mut self, basin: &str, now: u32) -> &mut BasinUsage {
        if !self.basins.contains_key(basin) {
            if self.basins.len() >= MAX_BASINS {
                self.drop_longest_unused();
            }
            self.basins.insert(basin.to_owned(), BasinUsage::default());
        }
        let usage = self.basins.entry(basin.to_owned()).or_default();
        usage.measured.last_used = now;
        usage
    }

    /// Counts a request.
    pub(crate) fn requested(&mut self, operation: Operation, basin: Option<&str>, now: u32) {
        let meters = match basin {
            Some(basin) => &mut self.used(basin, now).measured.meters,
            None => &mut self.account.meters,
        };
        meters.add(Meter::Requests(operation), now, 1);
    }

    /// Counts a use of a stream as an operation, unless the same connection has used it in this minute.
    pub(crate) fn use_once(&mut self, meter: Meter, basin: &str, used: u64, now: u32) {
        if self.seen.is_first(now, used) {
            self.used(basin, now).measured.meters.add(meter, now, 1);
        }
    }

    /// The stream's measurements, which is appended to now.
    pub(crate) fn appended_to(&mut self, basin: &str, stream: &str, now: u32) {
        let new_streams = self.new_streams;
        let basin = self.used(basin, now);
        if let Some(known) = basin.streams.get_mut(stream) {
            known.last_used = now;
            return;
        }
        // Until the next round, that many are enough.
        if new_streams >= 2 * MAX_STREAMS {
            return;
        }
        let new = Measured {
            last_used: now,
            ..Measured::default()
        };
        basin.streams.insert(stream.to_owned(), new);
        self.new_streams += 1;
    }

    /// Removes what is kept no longer, and what is too much.
    pub(crate) fn forget(&mut self, now: u32) {
        self.account.meters.forget(now);
        for basin in self.basins.values_mut() {
            basin.measured.meters.forget(now);
            basin
                .streams
                .values_mut()
                .for_each(|s| s.meters.forget(now));
        }
        self.drop_streams();
        let mut points: usize = self.basins.values().map(BasinUsage::points).sum();
        while points > MAX_POINTS {
            match self.drop_longest_unused() {
                Some(dropped) => points -= dropped.points(),
                None => break,
            }
        }
    }

    /// Drops the streams that were not appended to for the longest time.
    fn drop_streams(&mut self) {
        self.new_streams = 0;
        let streams = self
            .basins
            .values()
            .flat_map(|basin| basin.streams.values());
        let mut uses: Vec<u32> = streams.map(|stream| stream.last_used).collect();
        let Some(surplus) = uses.len().checked_sub(MAX_STREAMS).filter(|n| *n > 0) else {
            return;
        };
        uses.sort_unstable();
        let (before, mut left) = (uses[surplus], surplus);
        for strictly in [true, false] {
            for basin in self.basins.values_mut() {
                basin.streams.retain(|_, stream| {
                    let is_old = match strictly {
                        true => stream.last_used < before,
                        false => stream.last_used == before,
                    };
                    let drops = is_old && left > 0;
                    left -= usize::from(drops);
                    !drops
                });
            }
        }
    }

    fn drop_longest_unused(&mut self) -> Option<BasinUsage> {
        let oldest = self.basins.iter().min_by_key(|(_, b)| b.measured.last_used);
        let name = oldest.map(|(name, _)| name.clone())?;
        self.basins.remove(&name)
    }

    /// Basins that had a stream within a range of hours.
    pub(crate) fn active_basins(&self, range: &RangeInclusive<u32>) -> Vec<String> {
        let had_streams = |usage: &BasinUsage| {
            let streams = usage.measured.meters.get(Meter::Streams);
            streams.is_some_and(|s| s.within(Interval::Hour, range).any(|(_, count)| count > 0))
        };
        let active = self.basins.iter().filter(|(_, usage)| had_streams(usage));
        active.map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_800_000_000;

    #[test]
    fn uses_of_a_stream_by_one_connection_within_a_minute_are_one_operation() {
        let mut state = State::default();
        let minute = Interval::Minute.begin(NOW);
        for (used, now) in [(1, 0), (1, 59), (2, 59), (1, 60), (1, 61)] {
            state.use_once(Meter::StandardAppends, "basin", used, minute + now);
        }
        let series = state.basins["basin"]
            .measured
            .meters
            .get(Meter::StandardAppends);
        let found: Vec<_> = series.unwrap().all(Interval::Minute).collect();
        assert_eq!(found, [(minute, 2), (minute + 60, 1)]);
        // A request that was delayed after it had read the clock.
        state.use_once(Meter::StandardAppends, "basin", 3, minute + 59);
        state.use_once(Meter::StandardAppends, "basin", 1, minute + 62);
        let series = state.basins["basin"]
            .measured
            .meters
            .get(Meter::StandardAppends);
        let found: Vec<_> = series.unwrap().all(Interval::Minute).collect();
        assert_eq!(found, [(minute, 3), (minute + 60, 1)]);
    }

    #[test]
    fn beyond_the_number_of_basins_the_one_that_is_unused_for_longest_is_dropped() {
        let mut state = State::default();
        for basin in 0..MAX_BASINS {
            state.requested(Operation::ListStreams, Some(&format!("b-{basin}")), NOW);
        }
        state.requested(Operation::ListStreams, Some("b-0"), NOW + 1);
        state.requested(Operation::ListStreams, Some("new"), NOW + 2);
        assert_eq!(state.basins.len(), MAX_BASINS);
        assert!(state.basins.contains_key("b-0") && state.basins.contains_key("new"));
    }

    #[test]
    fn beyond_the_number_of_streams_those_that_are_appended_to_last_stay() {
        let mut state = State::default();
        let surplus = 7;
        for stream in 0..MAX_STREAMS + surplus {
            let basin = format!("basin-{}", stream % 3);
            state.appended_to(&basin, &format!("s-{stream}"), NOW + stream as u32 / 5);
        }
        state.forget(NOW);
        let left: usize = state.basins.values().map(|b| b.streams.len()).sum();
        assert_eq!(left, MAX_STREAMS);
        let last = format!("s-{}", MAX_STREAMS + surplus - 1);
        assert!(state.basins.values().any(|b| b.streams.contains_key(&last)));
        assert!(
            state
                .basins
                .values()
                .all(|b| !b.streams.contains_key("s-0"))
        );
    }

    #[test]
    fn the_number_of_values_is_bounded() {
        let mut state = State::default();
        let meters = [
            Meter::StandardAppends,
            Meter::AppendedBytes,
            Meter::ReadBytes,
        ];
        for basin in 0..MAX_BASINS {
            let usage = state.used(&format!("b-{basin}"), NOW + basin as u32);
            for minute in 0..720 {
                for meter in meters {
                    usage.measured.meters.add(meter, NOW + minute * 60, 1);
                }
            }
        }
        state.forget(NOW + 720 * 60);
        let points: usize = state.basins.values().map(BasinUsage::points).sum();
        assert!(points <= MAX_POINTS);
        assert!(!state.basins.contains_key("b-0"));
        assert!(state.basins.contains_key(&format!("b-{}", MAX_BASINS - 1)));
    }
}
