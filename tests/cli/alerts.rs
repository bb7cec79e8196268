//! The alert rules in `packaging/prometheus`, and the pages of recovery and monitoring, name metrics that a
//! server has, and sections that exist.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use crate::support::{Server, eventually};

const RULES: &str = include_str!("../../packaging/prometheus/alerts.yml");
const GUIDE: &str = include_str!("../../docs/operating/recovery.md");
const MONITORING: &str = include_str!("../../docs/operating/monitoring.md");

/// Words of a text with the prefix of Esker's metrics.
fn metrics(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("esker_"))
        .map(str::to_owned)
        .collect()
}

/// The value of each line of the rules that begins with this key.
fn values(key: &str) -> impl Iterator<Item = &str> {
    let lines = RULES
        .lines()
        .map(|line| line.trim_start().trim_start_matches("- "));
    lines.filter_map(move |line| line.strip_prefix(key)?.strip_prefix(": "))
}

fn exposed(server: &Server) -> BTreeSet<String> {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let request = format!(
        "GET /metrics HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        server.address()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    metrics(&answer)
}

/// Names of metrics in the code.
fn declared() -> BTreeSet<String> {
    fn read(directory: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let quoted = text.split('"').filter(|part| part.starts_with("esker_"));
                found.extend(quoted.map(str::to_owned));
            }
        }
    }
    let mut found = BTreeSet::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["node", "repository", "server"] {
        read(&root.join("crates").join(name).join("src"), &mut found);
    }
    found
}

#[test]
fn every_metric_of_an_alert_exists() {
    let wanted: BTreeSet<String> = values("expr").flat_map(metrics).collect();
    assert!(wanted.len() >= 10, "{wanted:?}");
    let declared = declared();
    let undeclared: Vec<_> = wanted.difference(&declared).collect();
    assert!(undeclared.is_empty(), "no code names {undeclared:?}");

    // These metrics exist only after the first proof.
    let later = |metric: &String| metric.ends_with("_proof_age_seconds");
    let server = Server::start();
    eventually("a server shows every metric that alerts ask for", || {
        let there = exposed(&server);
        wanted.iter().all(|m| later(m) || there.contains(m))
    });
}

#[test]
fn every_metric_that_operators_are_told_of_exists() {
    let declared = declared();
    let named = &metrics(GUIDE) | &metrics(MONITORING);
    assert!(named.len() >= 10, "{named:?}");
    let missing: Vec<_> = named.difference(&declared).collect();
    assert!(missing.is_empty(), "no code names {missing:?}");
}

/// The page of monitoring lists every alert.
#[test]
fn every_alert_is_on_the_page_of_monitoring() {
    for alert in values("alert") {
        let listed = MONITORING.contains(&format!("`{alert}`"));
        assert!(listed, "docs/operating/monitoring.md has no {alert}");
    }
}

#[test]
fn every_alert_says_what_is_wrong_and_where_it_is_explained() {
    let alerts = values("alert").count();
    assert!(alerts > 5, "{alerts}");
    for key in ["expr", "summary", "description"] {
        assert_eq!(values(key).count(), alerts, "{key}");
    }
    let tab = RULES.lines().find(|line| line.contains('\t'));
    assert_eq!(tab, None, "YAML takes no tabs");
    let anchors: BTreeSet<String> = GUIDE
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect();
    for description in values("description") {
        let (_, link) = description
            .rsplit_once("docs/operating/recovery.md#")
            .unwrap_or_else(|| panic!("no link: {description}"));
        let link = link.trim_end_matches('"');
        assert!(
            anchors.contains(link),
            "docs/operating/recovery.md has no #{link}"
        );
    }
}

/// Links within the guide lead to existing headings.
#[test]
fn links_within_the_guide_lead_somewhere() {
    let anchors: BTreeSet<String> = GUIDE
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect();
    for link in GUIDE.split("](#").skip(1) {
        let link = link.split(')').next().unwrap();
        assert!(anchors.contains(link), "no #{link}");
    }
}

/// The anchor of a heading.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

#[test]
fn every_metric_and_label_of_the_dashboard_exists() {
    let dashboard = include_str!("../../packaging/grafana/esker.json");
    let reference = include_str!("../../docs/reference/metrics.md");
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array());
    let expressions = targets.flatten().map(|it| it["expr"].as_str().unwrap());
    let mut seen = 0;
    for expression in expressions {
        for metric in metrics(expression) {
            seen += 1;
            // A histogram has buckets.
            let name = metric.strip_suffix("_bucket").unwrap_or(&metric);
            let row = reference
                .lines()
                .find(|line| line.starts_with(&format!("| `{name}` |")));
            let row = row.unwrap_or_else(|| panic!("{metric} of {expression} does not exist"));
            let labels = expression.split("by (").skip(1);
            let labels = labels.filter_map(|it| it.split(')').next());
            for label in labels.flat_map(|it| it.split(", ")) {
                // Prometheus adds the one, and a histogram has the other.
                let is_known = ["instance", "le"].contains(&label);
                assert!(
                    is_known || row.contains(&format!("`{label}`")),
                    "{label} in {expression}"
                );
            }
        }
    }
    assert!(seen >= 20, "{seen}");
}
