//! Metrics of several nodes as one answer.
//!
//! Each node counts what it serves, and measures sizes by itself: counts are added, and of a size at one time the
//! largest is taken, because a node that was away has older ones. The order is that of names: whichever node is asked,
//! the answer is the same.

use std::collections::BTreeMap;

use s2_api::v1::metrics::{Metric, MetricSetResponse};

/// The metrics of all these answers.
pub(crate) fn merged(answers: impl IntoIterator<Item = MetricSetResponse>) -> MetricSetResponse {
    let mut all: BTreeMap<String, Metric> = BTreeMap::new();
    for metric in answers.into_iter().flat_map(|answer| answer.values) {
        let name = name(&metric);
        match all.remove(&name) {
            None => drop(all.insert(name, metric)),
            Some(before) => drop(all.insert(name, both(before, metric))),
        }
    }
    MetricSetResponse {
        values: all.into_values().collect(),
    }
}

fn name(metric: &Metric) -> String {
    match metric {
        Metric::Scalar(of) => of.name.to_string(),
        Metric::Accumulation(of) => of.name.to_string(),
        Metric::Gauge(of) => of.name.to_string(),
        Metric::Label(of) => of.name.to_string(),
    }
}

/// One metric of two of the same name. They are of one kind, unless a node is of another release.
fn both(one: Metric, other: Metric) -> Metric {
    match (one, other) {
        (Metric::Scalar(mut one), Metric::Scalar(other)) => {
            one.value += other.value;
            Metric::Scalar(one)
        }
        (Metric::Accumulation(mut one), Metric::Accumulation(other)) => {
            one.values = series(one.values, other.values, |a, b| a + b);
            Metric::Accumulation(one)
        }
        (Metric::Gauge(mut one), Metric::Gauge(other)) => {
            one.values = series(one.values, other.values, f64::max);
            Metric::Gauge(one)
        }
        (Metric::Label(mut one), Metric::Label(other)) => {
            one.values.extend(other.values);
            one.values.sort_unstable();
            one.values.dedup();
            Metric::Label(one)
        }
        (one, _) => one,
    }
}

fn series(
    one: Vec<(u32, f64)>,
    other: Vec<(u32, f64)>,
    both: impl Fn(f64, f64) -> f64,
) -> Vec<(u32, f64)> {
    let mut all: BTreeMap<u32, f64> = one.into_iter().collect();
    for (at, value) in other {
        let merged = all.get(&at).map_or(value, |before| both(*before, value));
        all.insert(at, merged);
    }
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use s2_api::v1::metrics::{
        AccumulationMetric, GaugeMetric, LabelMetric, MetricUnit, TimeseriesInterval,
    };

    use super::*;

    fn count(name: &str, values: &[(u32, f64)]) -> Metric {
        Metric::Accumulation(AccumulationMetric {
            name: name.into(),
            unit: MetricUnit::Operations,
            interval: TimeseriesInterval::Minute,
            values: values.to_vec(),
        })
    }

    fn size(values: &[(u32, f64)]) -> Metric {
        Metric::Gauge(GaugeMetric {
            name: "size".into(),
            unit: MetricUnit::Bytes,
            values: values.to_vec(),
        })
    }

    fn labels(values: &[&str]) -> Metric {
        Metric::Label(LabelMetric {
            name: "basins".into(),
            values: values.iter().map(|it| (*it).to_owned()).collect(),
        })
    }

    #[test]
    fn counts_are_added_sizes_and_names_are_not_and_the_order_of_nodes_does_not_matter() {
        let answer = |values: Vec<Metric>| MetricSetResponse { values };
        let one = answer(vec![
            count("b", &[(60, 1.0), (120, 2.0)]),
            size(&[(60, 5.0), (120, 5.0)]),
            labels(&["x", "z"]),
        ]);
        let two = answer(vec![
            count("a", &[(60, 4.0)]),
            count("b", &[(0, 8.0), (120, 16.0)]),
            size(&[(120, 7.0), (180, 3.0)]),
            labels(&["y", "x"]),
        ]);
        let expected = answer(vec![
            count("a", &[(60, 4.0)]),
            count("b", &[(0, 8.0), (60, 1.0), (120, 18.0)]),
            labels(&["x", "y", "z"]),
            size(&[(60, 5.0), (120, 7.0), (180, 3.0)]),
        ]);
        let json = |answer: &MetricSetResponse| serde_json::to_value(answer).unwrap();
        for answers in [[one.clone(), two.clone()], [two, one]] {
            assert_eq!(json(&merged(answers)), json(&expected));
        }
    }
}
