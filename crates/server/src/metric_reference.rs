//! What each metric means: the `# HELP` lines of `/metrics`, and `docs/reference/metrics.md`.
//!
//! The modules below this one have the rows, by area; this one has their form, their order and the page.

mod observability;
mod partitions;
mod replication;
mod requests;
mod risk;
mod snapshots;
mod state;
mod streams;

/// What kind of value a metric is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    #[cfg(test)]
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// A metric.
struct Metric {
    name: &'static str,
    kind: Kind,
    #[cfg_attr(not(test), expect(dead_code, reason = "for the page alone"))]
    unit: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "for the page alone"))]
    labels: &'static [&'static str],
    meaning: &'static str,
}

const fn counter(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    meaning: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        unit,
        labels,
        meaning,
    }
}

const fn gauge(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    meaning: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Gauge,
        unit,
        labels,
        meaning,
    }
}

const fn seconds(
    name: &'static str,
    labels: &'static [&'static str],
    meaning: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Histogram,
        unit: "seconds",
        labels,
        meaning,
    }
}

/// Metrics that belong together.
#[cfg_attr(not(test), expect(dead_code, reason = "titles are for the page alone"))]
struct Section {
    title: &'static str,
    about: &'static str,
    metrics: &'static [Metric],
}

const PARTITION: &[&str] = &["partition"];
const GROUP: &[&str] = &["group"];

/// All metrics of the server, in the order of the page.
const SECTIONS: &[Section] = &[
    risk::RISK,
    streams::STREAMS,
    requests::FORWARDING,
    requests::HTTP,
    requests::ACCESS_TOKENS,
    partitions::LOG,
    partitions::PARTITIONS,
    snapshots::SNAPSHOTS,
    state::STATE,
    replication::REPLICATION,
    observability::LOGGING,
    observability::TRACES,
];

/// Describes all metrics to the recorder, which prints the descriptions as `# HELP` lines.
pub(crate) fn describe() {
    for metric in SECTIONS.iter().flat_map(|section| section.metrics) {
        let meaning = metric.meaning;
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, meaning),
            Kind::Gauge => metrics::describe_gauge!(metric.name, meaning),
            Kind::Histogram => metrics::describe_histogram!(metric.name, meaning),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;

    const PAGE: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/reference/metrics.md"
    );

    /// The reference of all metrics, as a page.
    fn markdown() -> String {
        let mut page = String::from(
            "# Metrics\n\n\
         `GET /metrics` answers in the text format of Prometheus, on `listen`. Counters exist from the \
         start with the value 0, so that an alert on their increase sees the first event; series with a label \
         exist from the start where what they name does. Histograms have a `_bucket`, a `_sum` and a `_count`.\n\n\
         This page is written from the code (`crates/server/src/metric_reference.rs`), and a test compares both.\n",
        );
        for section in SECTIONS {
            let Section {
                title,
                about,
                metrics,
            } = section;
            write!(
            page,
            "\n## {title}\n\n{about}\n\n| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n"
        )
        .unwrap();
            for metric in *metrics {
                let labels: Vec<_> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
                writeln!(
                    page,
                    "| `{}` | {} | {} | {} | {} |",
                    metric.name,
                    metric.kind.name(),
                    metric.unit,
                    labels.join(", "),
                    metric.meaning
                )
                .unwrap();
            }
        }
        page
    }

    #[test]
    fn the_page_of_metrics_is_current() {
        let wanted = markdown();
        if std::env::var_os("ESKER_BLESS").is_some() {
            std::fs::create_dir_all(Path::new(PAGE).parent().unwrap()).unwrap();
            std::fs::write(PAGE, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(PAGE).unwrap_or_default();
        assert_eq!(
            found, wanted,
            "docs/reference/metrics.md is not what the code says; run this test with ESKER_BLESS=1"
        );
    }

    /// Names of metrics in quotation marks, in the sources below a directory.
    fn names_in(dir: &Path, names: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            // The descriptions themselves.
            if path
                .file_stem()
                .is_some_and(|stem| stem == "metric_reference")
            {
                continue;
            }
            if path.is_dir() {
                names_in(&path, names);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                let literals = source.split('"').filter(|text| {
                    let name = text.strip_prefix("esker_");
                    let is_word =
                        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                    name.is_some_and(|name| !name.is_empty() && name.chars().all(is_word))
                });
                names.extend(literals.map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_metric_of_the_code_is_described_and_nothing_else() {
        let mut used = BTreeSet::new();
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for name in ["node", "partition", "raft", "repository", "server"] {
            names_in(&crates.join(name).join("src"), &mut used);
        }
        // Names of crates have the same prefix.
        used.retain(|name| !crates.join(name.trim_start_matches("esker_")).is_dir());
        let described = SECTIONS.iter().flat_map(|section| section.metrics);
        let described: Vec<_> = described.map(|metric| metric.name.to_owned()).collect();
        let listed: BTreeSet<_> = described.iter().cloned().collect();
        assert_eq!(listed.len(), described.len(), "each is described once");
        let missing: Vec<_> = used.difference(&listed).collect();
        let surplus: Vec<_> = listed.difference(&used).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "describe {missing:?}, and remove {surplus:?}"
        );
    }

    #[test]
    fn names_say_what_kind_of_value_they_are() {
        for metric in SECTIONS.iter().flat_map(|section| section.metrics) {
            let is_total = metric.name.ends_with("_total");
            assert_eq!(is_total, metric.kind == Kind::Counter, "{}", metric.name);
        }
    }
}
