//! Values over time, in buckets of a minute, an hour and a day.
//!
//! Only buckets with a value take memory. Times are seconds since the epoch.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// The length of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Interval {
    Minute,
    Hour,
    Day,
}

impl Interval {
    pub(crate) const ALL: [Interval; 3] = [Interval::Minute, Interval::Hour, Interval::Day];

    /// Its length in seconds.
    pub(crate) const fn seconds(self) -> u32 {
        match self {
            Interval::Minute => 60,
            Interval::Hour => 3600,
            Interval::Day => 24 * 3600,
        }
    }

    /// The beginning of the bucket that a time is in.
    pub(crate) const fn begin(self, at: u32) -> u32 {
        at - at % self.seconds()
    }

    /// How long buckets are kept, in seconds: minutes for half a day, hours for a month, days as long as
    /// the longest range of a request.
    const fn retention(self) -> u32 {
        const DAY: u32 = 24 * 3600;
        match self {
            Interval::Minute => DAY / 2,
            Interval::Hour => 32 * DAY,
            Interval::Day => 91 * DAY,
        }
    }

    /// Most buckets of a ring.
    const fn most(self) -> usize {
        (self.retention() / self.seconds()) as usize + 1
    }
}

/// Buckets of one length, in order of their times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ring(VecDeque<(u32, u64)>);

impl Ring {
    /// The bucket that begins at `begin`; a new one is 0.
    fn bucket(&mut self, begin: u32) -> &mut u64 {
        // A clock that went back writes into an earlier bucket.
        let at = match self.0.back() {
            Some((last, _)) if *last >= begin => self.0.partition_point(|(at, _)| *at < begin),
            _ => self.0.len(),
        };
        if self.0.get(at).is_none_or(|(found, _)| *found != begin) {
            self.0.insert(at, (begin, 0));
        }
        &mut self.0[at].1
    }

    fn forget(&mut self, interval: Interval, now: u32) {
        let before = now.saturating_sub(interval.retention());
        let old = self.0.partition_point(|(at, _)| *at < before);
        let surplus = self.0.len().saturating_sub(interval.most());
        self.0.drain(..old.max(surplus));
    }

    fn within(&self, range: &RangeInclusive<u32>) -> impl Iterator<Item = (u32, u64)> + '_ {
        let from = self.0.partition_point(|(at, _)| at < range.start());
        let end = *range.end();
        let rest = self.0.range(from..).copied();
        rest.take_while(move |(at, _)| *at <= end)
    }
}

/// One value over time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Series {
    rings: [Ring; 3],
}

impl Series {
    /// Adds to the buckets of all lengths.
    pub(crate) fn add(&mut self, now: u32, value: u64) {
        for interval in Interval::ALL {
            let bucket = self.rings[interval as usize].bucket(interval.begin(now));
            *bucket = bucket.saturating_add(value);
        }
    }

    /// Sets the reading of a gauge in the bucket of one length.
    pub(crate) fn set(&mut self, interval: Interval, now: u32, value: u64) {
        *self.rings[interval as usize].bucket(interval.begin(now)) = value;
    }

    /// The buckets that begin within a range.
    pub(crate) fn within(
        &self,
        interval: Interval,
        range: &RangeInclusive<u32>,
    ) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.rings[interval as usize].within(range)
    }

    /// The last reading at or before a time.
    pub(crate) fn last_before(&self, interval: Interval, at: u32) -> Option<(u32, u64)> {
        let ring = &self.rings[interval as usize].0;
        let after = ring.partition_point(|(found, _)| *found <= at);
        after.checked_sub(1).map(|last| ring[last])
    }

    /// Removes what is kept no longer.
    pub(crate) fn forget(&mut self, now: u32) {
        for interval in Interval::ALL {
            self.rings[interval as usize].forget(interval, now);
        }
    }

    /// The same for a gauge: its newest reading stays, however old it is. It is the present value, of what has
    /// not changed since.
    pub(crate) fn forget_readings(&mut self, now: u32) {
        let newest = |ring: &Ring| ring.0.back().copied();
        let last = Interval::ALL.map(|interval| newest(&self.rings[interval as usize]));
        self.forget(now);
        for (ring, last) in self.rings.iter_mut().zip(last) {
            if ring.0.is_empty() {
                ring.0.extend(last);
            }
        }
    }

    /// Number of buckets.
    pub(crate) fn points(&self) -> usize {
        self.rings.iter().map(|ring| ring.0.len()).sum()
    }

    /// All buckets of one length.
    pub(crate) fn all(&self, interval: Interval) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.rings[interval as usize].0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_800_000_000;

    fn values(series: &Series, interval: Interval) -> Vec<(u32, u64)> {
        series.within(interval, &(0..=u32::MAX)).collect()
    }

    #[test]
    fn what_is_added_is_in_the_bucket_of_each_length_that_has_its_time() {
        let mut series = Series::default();
        for (after, value) in [(0, 1), (30, 2), (60, 4), (3600, 8), (86_400, 16)] {
            series.add(NOW + after, value);
        }
        let minutes = [(0, 3), (60, 4), (3600, 8), (86_400, 16)];
        let expected = minutes.map(|(at, value)| (Interval::Minute.begin(NOW) + at, value));
        assert_eq!(values(&series, Interval::Minute), expected);
        for interval in Interval::ALL {
            let sum: u64 = values(&series, interval).iter().map(|(_, v)| v).sum();
            assert_eq!(sum, 31, "{interval:?}");
            let begins = |(at, _): &(u32, u64)| at % interval.seconds() == 0;
            assert!(values(&series, interval).iter().all(begins));
        }
        let range = NOW + 60 - NOW % 60..=NOW + 3599;
        assert_eq!(series.within(Interval::Minute, &range).count(), 1);
    }

    #[test]
    fn a_clock_that_goes_back_adds_to_earlier_buckets() {
        let mut series = Series::default();
        for after in [600, 0, 300, 600, 0] {
            series.add(NOW + after, 1);
        }
        let found = values(&series, Interval::Minute);
        let begin = Interval::Minute.begin(NOW);
        assert_eq!(found, [(begin, 2), (begin + 300, 1), (begin + 600, 2)]);
    }

    #[test]
    fn the_number_of_buckets_is_bounded_whatever_the_clock_does() {
        let mut series = Series::default();
        for minute in 0..4_000 {
            series.add(NOW + minute * 60, 1);
            series.forget(NOW + minute * 60);
        }
        let most: usize = Interval::ALL.iter().map(|interval| interval.most()).sum();
        assert!(series.points() <= most, "{} of {most}", series.points());
        assert_eq!(
            values(&series, Interval::Minute).len(),
            Interval::Minute.most()
        );
        // A clock that jumps back does not make it keep more.
        for minute in 0..4_000 {
            series.add(minute * 60, 1);
        }
        series.forget(0);
        assert!(series.points() <= most, "{} of {most}", series.points());
    }

    #[test]
    fn the_newest_reading_of_a_gauge_stays_however_old_it_is() {
        let mut series = Series::default();
        for (at, value) in [(0, 5), (60, 7)] {
            series.set(Interval::Minute, NOW + at, value);
        }
        let later = NOW + 30 * 24 * 3600;
        series.forget_readings(later);
        assert_eq!(series.points(), 1);
        let last = series.last_before(Interval::Minute, later);
        assert_eq!(last.map(|(_, value)| value), Some(7));
        // A later one replaces it.
        series.set(Interval::Minute, later, 9);
        series.forget_readings(later);
        assert_eq!(series.points(), 1);
        series.forget(later + 24 * 3600);
        assert_eq!(series.points(), 0);
    }

    #[test]
    fn a_gauge_has_its_last_reading() {
        let mut series = Series::default();
        series.set(Interval::Hour, NOW, 5);
        series.set(Interval::Hour, NOW + 1, 7);
        let begin = Interval::Hour.begin(NOW);
        assert_eq!(series.last_before(Interval::Hour, NOW), Some((begin, 7)));
        assert_eq!(series.last_before(Interval::Hour, begin - 1), None);
        assert_eq!(values(&series, Interval::Minute), []);
    }
}
