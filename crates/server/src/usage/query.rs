//! The metrics that a request asks for.

use std::ops::RangeInclusive;
use std::time::Instant;

use esker_node::{Error, Node};
use s2_common::ValidationError;
use s2_common::access::Operation;
use s2_common::metrics::{
    AccountMetricSet, AccumulationMetric, BasinMetricSet, GaugeMetric, LabelMetric, Metric,
    MetricUnit, TimeseriesInterval,
};

use super::meters::Meter;
use super::series::{Interval, Series};
use super::state::{Measured, State};
use super::{Usage, now};

/// Longest range: 90 days, as the S2 API has it.
const MAX_RANGE: u32 = 90 * 24 * 3600;
/// How far the end of a range may be in the future, because clocks differ.
const CLOCK_TOLERANCE: u32 = 300;
/// Most intervals of a range: a week of minutes. Each series of an answer has at most so many values.
const MAX_INTERVALS: u32 = 7 * 24 * 60;
/// Most basins that are examined for present streams.
const MAX_LISTED_BASINS: usize = 1000;

/// The range and the interval that a request names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) start: Option<u32>,
    pub(crate) end: Option<u32>,
    pub(crate) interval: Option<TimeseriesInterval>,
}

/// A valid range, and the length of the intervals that it is divided into.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    /// Begins with an interval.
    times: RangeInclusive<u32>,
    interval: Interval,
}

impl Range {
    fn with_interval(start: u32, end: u32, interval: Interval) -> Range {
        Range {
            times: interval.begin(start)..=end,
            interval,
        }
    }

    /// Times at which its intervals begin.
    fn times(&self) -> impl Iterator<Item = u32> + '_ {
        self.times.clone().step_by(self.interval.seconds() as usize)
    }
}

impl Bounds {
    /// Start and end.
    fn times(self, now: u32) -> Result<(u32, u32), ValidationError> {
        let (Some(start), Some(end)) = (self.start, self.end) else {
            return Err("`start` and `end` are required".into());
        };
        if start > end {
            return Err(format!("`start` ({start}) is after `end` ({end})").into());
        }
        if end > now.saturating_add(CLOCK_TOLERANCE) {
            return Err(format!("`end` ({end}) is in the future: it is {now} now").into());
        }
        if end - start > MAX_RANGE {
            return Err("the range is longer than 90 days".into());
        }
        Ok((start, end))
    }

    /// The range, in the requested intervals. Without any, in those of `default`, or in longer ones if the
    /// range has too many of these.
    fn range(self, default: Interval, now: u32) -> Result<Range, ValidationError> {
        let (start, end) = self.times(now)?;
        let count = |interval: Interval| (end - interval.begin(start)) / interval.seconds() + 1;
        let fits = |interval: Interval| count(interval) <= MAX_INTERVALS;
        let interval = match self.interval {
            Some(wanted) => {
                let interval = interval_of(wanted);
                if !fits(interval) {
                    let name: &str = wanted.into();
                    return Err(format!(
                        "the range has {} intervals of a {name}; at most {MAX_INTERVALS} are answered: ask for longer intervals, or for a shorter range",
                        count(interval)
                    )
                    .into());
                }
                interval
            }
            None => {
                let mut longer = Interval::ALL.into_iter().filter(|i| *i >= default);
                longer.find(|i| fits(*i)).unwrap_or(Interval::Day)
            }
        };
        Ok(Range::with_interval(start, end, interval))
    }

    /// The range of a gauge that has one reading for each of these intervals.
    fn range_of_gauge(self, interval: Interval, now: u32) -> Result<Range, ValidationError> {
        let fixed = Bounds {
            interval: Some(wire_interval(interval)),
            ..self
        };
        fixed.range(interval, now)
    }
}

fn interval_of(interval: TimeseriesInterval) -> Interval {
    match interval {
        TimeseriesInterval::Minute => Interval::Minute,
        TimeseriesInterval::Hour => Interval::Hour,
        TimeseriesInterval::Day => Interval::Day,
    }
}

fn wire_interval(interval: Interval) -> TimeseriesInterval {
    match interval {
        Interval::Minute => TimeseriesInterval::Minute,
        Interval::Hour => TimeseriesInterval::Hour,
        Interval::Day => TimeseriesInterval::Day,
    }
}

/// A count over time; `None` if there is nothing within the range.
fn accumulation(
    name: &str,
    unit: MetricUnit,
    series: Option<&Series>,
    range: &Range,
) -> Option<Metric> {
    let values = series?.within(range.interval, &range.times);
    let values: Vec<_> = values.map(|(at, value)| (at, value as f64)).collect();
    (!values.is_empty()).then(|| {
        Metric::Accumulation(AccumulationMetric {
            name: name.into(),
            unit,
            interval: wire_interval(range.interval),
            values,
        })
    })
}

/// A gauge at each interval of the range from its first reading on. Between readings it has not changed.
fn gauge(series: Option<&Series>, range: &Range) -> Metric {
    let reading = |at: u32| {
        // A reading may be made at any time within its interval.
        let last = series?.last_before(range.interval, at)?;
        Some((at, last.1 as f64))
    };
    Metric::Gauge(GaugeMetric {
        name: "metered_size".into(),
        unit: MetricUnit::Bytes,
        values: range.times().filter_map(reading).collect(),
    })
}

/// Requests by operation: one series for each that there was.
fn requests(measured: &Measured, range: &Range) -> Vec<Metric> {
    let series = measured.meters.iter().filter_map(|(meter, series)| {
        let Meter::Requests(operation) = meter else {
            return None;
        };
        let name = operation_name(operation);
        accumulation(&name, MetricUnit::Operations, Some(series), range)
    });
    series.collect()
}

/// The name of an operation as the S2 API writes it.
fn operation_name(operation: Operation) -> String {
    let name = format!("{operation:?}");
    let mut kebab = String::with_capacity(name.len() + 4);
    for character in name.chars() {
        if character.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(character.to_ascii_lowercase());
    }
    kebab
}

/// Metrics of the account. Blocks while the database reads.
pub(crate) fn account(
    usage: &Usage,
    node: &Node,
    set: AccountMetricSet,
    bounds: Bounds,
) -> Result<Vec<Metric>, ValidationError> {
    let now = now();
    match set {
        AccountMetricSet::ActiveBasins => {
            let (start, end) = bounds.times(now)?;
            let range = Range::with_interval(start, end, Interval::Hour);
            let mut active = usage.state().active_basins(&range.times);
            if end >= Interval::Minute.begin(now) {
                active.extend(basins_with_streams(node));
            }
            active.sort_unstable();
            active.dedup();
            Ok(vec![Metric::Label(LabelMetric {
                name: "active-basins".into(),
                values: active,
            })])
        }
        AccountMetricSet::AccountOps => {
            let range = bounds.range(Interval::Hour, now)?;
            Ok(requests(&usage.state().account, &range))
        }
        AccountMetricSet::EstimatedBillableUsage => {
            if matches!(bounds.interval, Some(TimeseriesInterval::Minute)) {
                return Err("`estimated-billable-usage` has intervals of an hour and a day".into());
            }
            let range = bounds.range(Interval::Hour, now)?;
            Ok(billable(&usage.state(), &range, now))
        }
    }
}

/// Basins that have a stream now.
fn basins_with_streams(node: &Node) -> Vec<String> {
    let (basins, _) = node.list_basins("", "", MAX_LISTED_BASINS);
    let names = basins.into_iter().map(|basin| basin.name);
    let has_stream = |name: &String| {
        let listed = node.list_streams(name, "", "", 1);
        listed.is_ok_and(|(streams, _)| !streams.is_empty())
    };
    names.filter(has_stream).collect()
}

/// What is billed: nothing. There is one series for each kind of usage that there was in the range, and the
/// total, with the hours that are over.
fn billable(state: &State, range: &Range, now: u32) -> Vec<Metric> {
    const DIMENSIONS: [(&str, &[Meter]); 5] = [
        ("storage", &[Meter::StoredBytes]),
        (
            "append-ops",
            &[Meter::StandardAppends, Meter::ExpressAppends],
        ),
        ("append-throughput", &[Meter::AppendedBytes]),
        ("read-ops", &[Meter::UnaryReads, Meter::StreamingReads]),
        ("read-throughput", &[Meter::ReadBytes]),
    ];
    let over = Range {
        times: *range.times.start()..=(*range.times.end()).min(Interval::Hour.begin(now) - 1),
        interval: range.interval,
    };
    if over.times.is_empty() {
        return Vec::new();
    }
    let (start, seconds) = (*over.times.start(), over.interval.seconds());
    let intervals = ((over.times.end() - start) / seconds + 1) as usize;
    let free = |name: &str, used: &[bool]| {
        let times = over.times().zip(used).filter(|(_, used)| **used);
        let values: Vec<_> = times.map(|(at, _)| (at, 0.0)).collect();
        (!values.is_empty()).then(|| {
            Metric::Accumulation(AccumulationMetric {
                name: name.into(),
                unit: MetricUnit::Usd,
                interval: wire_interval(over.interval),
                values,
            })
        })
    };
    let mut all = vec![false; intervals];
    let mut metrics = Vec::new();
    for (name, meters) in DIMENSIONS {
        // One flag for each interval: appends and reads wait for the lock, and there may be a million hours.
        let mut used = vec![false; intervals];
        let basins = state.basins.values();
        let series = basins.flat_map(|b| meters.iter().filter_map(|m| b.measured.meters.get(*m)));
        // Hours are what every meter has.
        for (at, _) in series.flat_map(|s| s.within(Interval::Hour, &over.times)) {
            let place = ((at - start) / seconds) as usize;
            used[place] = true;
            all[place] = true;
        }
        metrics.extend(free(name, &used));
    }
    metrics.extend(free("total", &all));
    metrics
}

/// Metrics of a basin. Blocks while the database reads.
pub(crate) fn basin(
    usage: &Usage,
    node: &Node,
    name: &str,
    set: BasinMetricSet,
    bounds: Bounds,
) -> Result<Vec<Metric>, ValidationError> {
    let now = now();
    if matches!(set, BasinMetricSet::Storage) {
        let range = bounds.range_of_gauge(Interval::Hour, now)?;
        if *range.times.end() >= Interval::Hour.begin(now) {
            usage.refresh_basin(node, name);
        }
        let state = usage.state();
        let basin = state.basins.get(name);
        let series = basin.and_then(|b| b.measured.meters.get(Meter::StoredBytes));
        return Ok(vec![gauge(series, &range)]);
    }
    let default = match set {
        BasinMetricSet::BasinOps => Interval::Hour,
        _ => Interval::Minute,
    };
    let range = bounds.range(default, now)?;
    let state = usage.state();
    let Some(usage) = state.basins.get(name) else {
        return Ok(Vec::new());
    };
    let series = |name: &str, unit: MetricUnit, meter: Meter| {
        accumulation(name, unit, usage.measured.meters.get(meter), &range)
    };
    let (operations, bytes) = (MetricUnit::Operations, MetricUnit::Bytes);
    Ok(match set {
        BasinMetricSet::AppendOps => {
            let standard = series("standard", operations, Meter::StandardAppends);
            let express = series("express", operations, Meter::ExpressAppends);
            standard.into_iter().chain(express).collect()
        }
        BasinMetricSet::ReadOps => {
            let unary = series("unary", operations, Meter::UnaryReads);
            let streaming = series("streaming", operations, Meter::StreamingReads);
            unary.into_iter().chain(streaming).collect()
        }
        BasinMetricSet::AppendThroughput => {
            let appended = series("append-throughput", bytes, Meter::AppendedBytes);
            appended.into_iter().collect()
        }
        BasinMetricSet::ReadThroughput => {
            let read = series("read-throughput", bytes, Meter::ReadBytes);
            read.into_iter().collect()
        }
        BasinMetricSet::BasinOps => requests(&usage.measured, &range),
        BasinMetricSet::Storage => Vec::new(),
    })
}

/// The size of a stream over time, for a request that arrived at this time. Blocks while the database reads.
pub(crate) fn storage_of_stream(
    usage: &Usage,
    node: &Node,
    (basin, stream): (&str, &str),
    bounds: Bounds,
    arrived: Instant,
) -> Result<Result<Vec<Metric>, Error>, ValidationError> {
    let now = now();
    let range = bounds.range_of_gauge(Interval::Minute, now)?;
    if *range.times.end() < Interval::Minute.begin(now) {
        return Ok(Ok(vec![gauge(Some(&usage.sizes(basin, stream)), &range)]));
    }
    Ok(usage
        .refreshed_sizes(node, basin, stream, arrived)
        .map(|series| vec![gauge(Some(&series), &range)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_800_000_000;
    const DAY: u32 = 24 * 3600;

    fn bounds(start: u32, end: u32, interval: Option<TimeseriesInterval>) -> Bounds {
        Bounds {
            start: Some(start),
            end: Some(end),
            interval,
        }
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        let minutes = Some(TimeseriesInterval::Minute);
        let invalid = [
            bounds(NOW, NOW - 1, None),
            bounds(NOW - 3600, NOW + CLOCK_TOLERANCE + 1, None),
            bounds(NOW - MAX_RANGE - 1, NOW, None),
            bounds(NOW - 8 * DAY, NOW, minutes),
            Bounds {
                start: None,
                ..bounds(0, NOW, None)
            },
            Bounds {
                end: None,
                ..bounds(NOW, 0, None)
            },
        ];
        for one in invalid {
            assert!(one.range(Interval::Minute, NOW).is_err(), "{one:?}");
        }
        let valid = [
            bounds(NOW, NOW, None),
            bounds(0, 3600, None),
            bounds(NOW - MAX_RANGE, NOW, None),
            bounds(NOW - 7 * DAY + 60, NOW, minutes),
            bounds(NOW, NOW + CLOCK_TOLERANCE, minutes),
        ];
        for one in valid {
            assert!(one.range(Interval::Minute, NOW).is_ok(), "{one:?}");
        }
    }

    #[test]
    fn without_an_interval_a_long_range_has_longer_ones() {
        let interval = |days| {
            let bounds = bounds(NOW - days * DAY, NOW, None);
            bounds.range(Interval::Minute, NOW).unwrap().interval
        };
        assert_eq!(interval(1), Interval::Minute);
        assert_eq!(interval(30), Interval::Hour);
        let hours = bounds(NOW - DAY, NOW, None).range(Interval::Hour, NOW);
        assert_eq!(hours.unwrap().interval, Interval::Hour);
    }

    #[test]
    fn a_gauge_has_a_reading_for_every_interval_since_the_first_one() {
        let mut series = Series::default();
        series.set(Interval::Minute, NOW - 600, 5);
        series.set(Interval::Minute, NOW - 300, 7);
        let range = bounds(NOW - 900, NOW, None).range(Interval::Minute, NOW);
        let Metric::Gauge(gauge) = gauge(Some(&series), &range.unwrap()) else {
            panic!("not a gauge");
        };
        let begin = Interval::Minute.begin(NOW);
        let expected: Vec<(u32, f64)> = (0..=10)
            .map(|minute| {
                (
                    begin - 600 + minute * 60,
                    if minute < 5 { 5.0 } else { 7.0 },
                )
            })
            .collect();
        assert_eq!(gauge.values, expected);
    }

    #[test]
    fn a_count_has_only_the_intervals_in_which_something_was_counted() {
        let mut series = Series::default();
        series.add(NOW - 7200, 3);
        series.add(NOW, 4);
        for (interval, expected) in [
            (Interval::Minute, 2),
            (Interval::Hour, 2),
            (Interval::Day, 1),
        ] {
            let bounds = bounds(NOW - 10_800, NOW, Some(wire_interval(interval)));
            let range = bounds.range(interval, NOW).unwrap();
            let found = accumulation("name", MetricUnit::Bytes, Some(&series), &range);
            let Some(Metric::Accumulation(found)) = found else {
                panic!("no accumulation");
            };
            let is_one_day = Interval::Day.begin(NOW - 7200) == Interval::Day.begin(NOW);
            assert!(
                found.values.len() == expected || !is_one_day,
                "{interval:?}"
            );
            assert_eq!(found.values.iter().map(|(_, v)| *v).sum::<f64>(), 7.0);
        }
        let before = bounds(0, 3600, None).range(Interval::Hour, NOW).unwrap();
        assert!(accumulation("name", MetricUnit::Bytes, Some(&series), &before).is_none());
    }

    #[test]
    fn operations_have_the_names_of_the_api() {
        for operation in esker_node::OPERATIONS {
            let wire = s2_api::v1::access::Operation::from(operation);
            let expected = serde_json::to_value(wire).unwrap();
            assert_eq!(operation_name(operation), expected);
        }
    }

    #[test]
    fn nothing_is_billed_and_only_hours_that_are_over_are_listed() {
        let mut state = State::default();
        let meters = &mut state.used("basin", NOW).measured.meters;
        for at in [NOW - 7200, NOW - 3600, NOW] {
            meters.add(Meter::AppendedBytes, at, 10);
        }
        let range = bounds(NOW - DAY, NOW, None)
            .range(Interval::Hour, NOW)
            .unwrap();
        let metrics = billable(&state, &range, NOW);
        let hour = Interval::Hour.begin(NOW);
        let expected = [(hour - 7200, 0.0), (hour - 3600, 0.0)];
        let names: Vec<_> = metrics
            .iter()
            .map(|metric| match metric {
                Metric::Accumulation(of) => {
                    assert!(matches!(of.unit, MetricUnit::Usd));
                    assert_eq!(of.values, expected);
                    of.name.to_string()
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names, ["append-throughput", "total"]);
        let ahead = bounds(NOW, NOW, None).range(Interval::Hour, NOW).unwrap();
        assert!(billable(&state, &ahead, NOW).is_empty());
    }
}
