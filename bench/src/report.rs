//! The table: medians of both servers, their ratio, the target and whether it is met.

use std::fmt::Write;

use crate::{
    client::Kind,
    process::Contender,
    rows::Row,
    sizes::Sizes,
    targets::{Metric, Reading, median_of},
};
use bench_harness::machine::Machine;

/// Fraction of the machine that other programs may use without a remark below the table.
const DISTURBANCE: f64 = 0.1;

/// A row that could not be measured against one of the servers.
pub struct Failure {
    contender: Contender,
    row: Row,
    reason: String,
}

impl Failure {
    /// Records the reason.
    pub fn new(contender: Contender, row: Row, error: &anyhow::Error) -> Self {
        Self {
            contender,
            row,
            reason: format!("{error:#}"),
        }
    }
}

/// The results of a run of the bench.
pub struct Report {
    machine: Machine,
    sizes: Sizes,
    versions: Vec<(Contender, String)>,
    peer: Vec<Reading>,
    esker: Vec<Reading>,
    /// Rows in the order in which they were first measured, with the client that they used.
    rows: Vec<(Row, Option<Kind>)>,
    failures: Vec<Failure>,
    /// Fraction of the machine that other programs used before each measurement.
    others: Vec<f64>,
}

impl Report {
    /// A report without readings.
    pub fn new(machine: Machine, sizes: Sizes) -> Self {
        Self {
            machine,
            sizes,
            versions: Vec::new(),
            peer: Vec::new(),
            esker: Vec::new(),
            rows: Vec::new(),
            failures: Vec::new(),
            others: Vec::new(),
        }
    }

    /// Notes the fraction of the machine that other programs used just before a measurement.
    pub fn others_used(&mut self, fraction: f64) {
        self.others.push(fraction);
    }

    /// The sizes of the load of the rows.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Notes the version of a server.
    pub fn version(&mut self, contender: Contender, version: String) {
        self.versions.push((contender, version));
    }

    /// Adds what a row measured.
    pub fn add(
        &mut self,
        contender: Contender,
        row: Row,
        client: Option<Kind>,
        readings: Vec<Reading>,
    ) {
        match contender {
            Contender::Peer => self.peer.extend(readings),
            Contender::Esker => self.esker.extend(readings),
        }
        if !self.rows.iter().any(|(known, _)| *known == row) {
            self.rows.push((row, client));
        }
    }

    /// Adds a row that failed.
    pub fn fail(&mut self, failure: Failure) {
        self.failures.push(failure);
    }

    /// Whether any row failed.
    pub fn has_failures(&self) -> bool {
        !self.failures.is_empty()
    }

    /// The table as Markdown, with what failed below it.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let columns = [
            "what",
            "client",
            Contender::Peer.name(),
            Contender::Esker.name(),
            "unit",
            "ratio",
            "target",
            "met",
        ];
        let mut lines = vec![columns.map(str::to_owned)];
        // Milliseconds of an fdatasync on the disk of Esker's appends.
        let disk_sync = median_of(Metric::DiskSync, &self.esker);
        for (row, client) in &self.rows {
            for metric in row.metrics() {
                let peer = median_of(*metric, &self.peer);
                let esker = median_of(*metric, &self.esker);
                if peer.is_none() && esker.is_none() {
                    continue;
                }
                let goal = metric.goal();
                // The disk probe does not depend on the client.
                let client = client.filter(|_| *metric != Metric::DiskSync);
                let ratio = match (peer, esker) {
                    (Some(peer), Some(esker)) => format!("{:.2}x", esker / peer),
                    _ => String::new(),
                };
                lines.push([
                    metric.label(&self.sizes),
                    client.map(|client| client.to_string()).unwrap_or_default(),
                    figure(peer),
                    figure(esker),
                    metric.unit().to_owned(),
                    ratio,
                    goal.text(),
                    goal.judge(peer, esker, disk_sync).text().to_owned(),
                ]);
            }
        }
        render(&lines, &mut text);
        let disturbed = self
            .others
            .iter()
            .filter(|fraction| **fraction > DISTURBANCE);
        match disturbed.count() {
            0 => {}
            // Writing to a string cannot fail.
            disturbed => {
                let _ = writeln!(
                    text,
                    "\nThe machine was not idle: just before {disturbed} of {} measurements, other \
                     programs used more than {:.0} % of its processors.",
                    self.others.len(),
                    DISTURBANCE * 100.0
                );
            }
        }
        for failure in &self.failures {
            let name = failure.contender.name();
            let _ = writeln!(
                text,
                "\nfailed: {:?}, {name}: {}",
                failure.row, failure.reason
            );
        }
        text
    }

    /// The page for the documentation.
    pub fn page(&self) -> String {
        let date = bench_harness::page::now();
        let machine = &self.machine;
        let mut versions = String::new();
        for (contender, version) in &self.versions {
            let _ = writeln!(versions, "- {}: `{version}`", contender.name());
        }
        format!(
            "# Benchmarks\n\n\
             This page is written by the bench itself (`make bench`); it is not edited by hand.\n\n\
             - Date: {date}\n\
             - Machine: {machine} under the data directories\n\
             {versions}\
             - Command: `{}`\n\n\
             {}\n\
             ## How to read it\n\n\
             Each figure is the median of {} runs, except for restarts, where it is the slowest of \
             {} restarts. *Ratio* is Esker's figure divided by that of `s2 lite`, the single-node \
             server that ships in the crate `s2-cli`. Both run on the same machine with a fresh \
             directory on the same disk, both make every acknowledged record durable first, and \
             take turns row by row; the client, which shares the machine's processors with them, \
             is the same for both. `s2 lite` runs with its request log switched off \
             (`RUST_LOG=warn`), Esker with its defaults.\n\n\
             - *Client* is the official S2 SDK, or a plain HTTP/2 client with requests encoded \
             beforehand where the SDK would use most of the machine itself. The plain client \
             acknowledges TCP segments at once: `s2 lite` leaves Nagle's algorithm on, and would \
             otherwise wait 40 ms within every short read.\n\
             - *The disk alone* is a write of 4 KiB at the end of a file and an `fdatasync`, \
             measured on the same file system just before the row above it.\n\
             - *End to end* is the age of a record when a follower has it, counted from its append, \
             while the stream is written as fast as it is acknowledged: the faster a server \
             acknowledges, the more its followers have to take.\n\
             - *Catch-up reads* count the bytes in the bodies of 1 KiB records. *Cold*: the server was killed and \
             started again, and the operating system's cache was dropped.\n\
             - *Restart* is the time from the start of the process, after SIGKILL, until it is \
             healthy, has answered a check of a tail with everything acknowledged, and has \
             delivered the last record. The operating system's cache is warm. Records have 100 \
             bytes and lie in {} streams.\n\
             - Memory is the server process's resident set after the rows above it.\n",
            command_line(),
            self.table(),
            self.sizes.runs,
            self.sizes.restarts,
            self.sizes.restart_streams,
        )
    }
}

/// A figure with as many digits as are significant; `-` if there is none.
fn figure(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// Writes `lines`, the first being the head, as a Markdown table with aligned columns.
fn render<const N: usize>(lines: &[[String; N]], text: &mut String) {
    let width = |column: usize| {
        let widths = lines.iter().map(|line| line[column].chars().count());
        widths.max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    for (number, line) in lines.iter().enumerate() {
        text.push('|');
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, " {cell:width$} |");
        }
        text.push('\n');
        if number == 0 {
            text.push('|');
            for width in &widths {
                let _ = write!(text, " {} |", "-".repeat(*width));
            }
            text.push('\n');
        }
    }
}

/// The command with which this program was started, in a form that can be repeated.
fn command_line() -> String {
    let home = std::env::var("HOME").unwrap_or_default();
    let mut command = "cargo run --release -p esker-bench --".to_owned();
    for argument in std::env::args().skip(1) {
        let argument = match argument.strip_prefix(&home) {
            Some(rest) if !home.is_empty() => format!("~{rest}"),
            _ => argument,
        };
        let _ = write!(command, " {argument}");
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let machine = Machine {
            cpu: "a processor".to_owned(),
            cores: 2,
            memory_gib: 24.0,
            kernel: "6.0".to_owned(),
            file_system: "ext4".to_owned(),
            returns_memory: false,
        };
        Report::new(machine, Sizes::full())
    }

    #[test]
    fn the_table_shows_medians_their_ratio_and_the_verdict() {
        let mut report = report();
        for (peer, esker) in [(2000.0, 9000.0), (2200.0, 8000.0), (100.0, 70_000.0)] {
            let reading = |value| vec![Reading::new(Metric::ManyRate, value)];
            report.add(Contender::Peer, Row::Many, Some(Kind::Sdk), reading(peer));
            report.add(Contender::Esker, Row::Many, Some(Kind::Sdk), reading(esker));
        }
        let table = report.table();
        let line = table.lines().nth(2).expect("one figure");
        for part in ["2000", "9000", "4.50x", "≥ 3x (aim 5x)", "| yes"] {
            assert!(line.contains(part), "{part:?} is not in {line:?}");
        }
    }

    #[test]
    fn a_failed_row_is_named_and_leaves_the_other_server_s_figure() {
        let mut report = report();
        let readings = vec![Reading::new(Metric::BatchRate, 1000.0)];
        report.add(Contender::Peer, Row::Batches, Some(Kind::Wire), readings);
        let error = anyhow::anyhow!("connection refused");
        report.fail(Failure::new(Contender::Esker, Row::Batches, &error));
        let table = report.table();
        assert!(table.contains("| 1000"), "{table}");
        assert!(
            table.contains("failed: Batches, Esker: connection refused"),
            "{table}"
        );
        assert!(report.has_failures());
    }

    #[test]
    fn a_busy_machine_is_remarked_upon() {
        let mut report = report();
        report.others_used(0.01);
        assert!(!report.table().contains("not idle"));
        report.others_used(0.5);
        let table = report.table();
        assert!(table.contains("just before 1 of 2 measurements"), "{table}");
    }

    #[test]
    fn the_page_names_machine_versions_and_date() {
        let mut report = report();
        report.version(Contender::Esker, "esker 0.1.0".to_owned());
        let page = report.page();
        for part in [
            "a processor, 2 cores",
            "esker 0.1.0",
            "UTC",
            "median of 3 runs",
        ] {
            assert!(page.contains(part), "{part:?} is not in the page");
        }
    }
}
