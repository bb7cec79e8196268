//! The peer's own benchmark, `s2 bench`, against either server.
//!
//! It writes 8 KiB records as fast as they are acknowledged, reads them while they are written,
//! reads them again afterwards, and checks a hash chain over them. Its summary goes to standard
//! error and is parsed here.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, bail};

use super::{BASIN, Load};
use crate::targets::{Metric, Reading};

/// Metered size of each record, in bytes.
const RECORD_BYTES: &str = "8192";

/// Throttle in MiB/s, far above what any disk does.
const UNTHROTTLED: &str = "1000000";

/// Time that it may take beyond its duration: for reading everything again, on a slow server.
const GRACE: Duration = Duration::from_secs(60);

/// Runs `s2 bench` and returns its figures.
pub async fn measure(load: &Load<'_>) -> anyhow::Result<Vec<Reading>> {
    let url = load.server.url();
    let run = tokio::process::Command::new(&load.s2)
        .arg("bench")
        .arg(format!("s2://{BASIN}"))
        .args(["--record-size", RECORD_BYTES])
        .args(["--target-mibps", UNTHROTTLED])
        .args([
            "--duration",
            &format!("{}ms", load.sizes.duration.as_millis()),
        ])
        .args(["--catchup-delay", "0s"])
        .env("S2_ACCOUNT_ENDPOINT", &url)
        .env("S2_BASIN_ENDPOINT", &url)
        .env("S2_ACCESS_TOKEN", "bench")
        .env("S2_NO_UPDATE_CHECK", "1")
        .env("NO_COLOR", "1")
        // The user's settings of the program must not apply.
        .env("HOME", &load.scratch)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(load.sizes.duration + GRACE, run)
        .await
        .context("s2 bench did not end")?
        .with_context(|| format!("cannot execute {}", load.s2.display()))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("s2 bench ended with {}: {}", output.status, text.trim());
    }
    parse(&text).with_context(|| format!("cannot find the figures in:\n{text}"))
}

/// Finds the figures in what `s2 bench` prints.
fn parse(text: &str) -> Option<Vec<Reading>> {
    let rate = |label: &str| -> Option<f64> {
        let rest = text.lines().find_map(|line| line.strip_prefix(label))?;
        rest.split_once(" MiB/s")?.0.trim().parse().ok()
    };
    // Acknowledgements are in the first of two tables, beside or above the second, which is end to end.
    let times = |label: &str| -> Vec<f64> {
        let cells = text.lines().flat_map(|line| line.split(label).skip(1));
        let times = cells.filter_map(|cell| cell.trim_start().strip_prefix(':'));
        let times = times.filter_map(|time| time.split_ascii_whitespace().next());
        times.filter_map(parse_ms).collect()
    };
    let [ack_p50_ms, _] = times("p50")[..] else {
        return None;
    };
    let [_, end_to_end_p99_ms] = times("p99")[..] else {
        return None;
    };
    Some(vec![
        Reading::new(Metric::BenchWrite, rate("Write:")?),
        Reading::new(Metric::BenchAck, ack_p50_ms),
        Reading::new(Metric::BenchEndToEnd, end_to_end_p99_ms),
        Reading::new(Metric::BenchCatchUp, rate("Catchup:")?),
    ])
}

/// Parses `12ns`, `12.3us`, `12.34ms` or `12.34s` into milliseconds.
fn parse_ms(text: &str) -> Option<f64> {
    let scales = [("ns", 1e-6), ("us", 1e-3), ("ms", 1.0), ("s", 1e3)];
    let (number, scale) = scales
        .iter()
        .find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))?;
    Some(number.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "\
Creating temporary stream s2://bench-basin/bench/x (storage class: <default>)
Running for 2s targeting 1000000 MiB/s with 8192 byte records, Ctrl+C to end early

Write: 103.25 MiB/s, 13216 records/s (216530944 bytes, 26432 records in 2.00s)
Read: 102.01 MiB/s, 13057 records/s (216530944 bytes, 26432 records in 2.02s)

Ack Latency Statistics (n=26432)                Ac End-to-End Latency Statistics (n=26432)
min    :    9.21ms                              min    :    9.80ms
p50    :   41.03ms                              p50    :   43.11ms
p90    :   55.00ms                              p90    :   60.00ms
p99    :   80.00ms                              p99    :    1.65s

Waiting 0ns before catchup read...
Catchup: 523.10 MiB/s, 66957 records/s (216530944 bytes, 26432 records in 0.39s)
";

    #[test]
    fn the_figures_are_found_in_the_summary() {
        let readings = parse(SUMMARY).expect("all figures are there");
        let values: Vec<f64> = readings.iter().map(|reading| reading.value).collect();
        assert_eq!(values, [103.25, 41.03, 1650.0, 523.10]);
        // On a narrow terminal one table is above the other.
        let (left, right) = (
            "Ack Latency Statistics (n=26432)",
            "End-to-End Latency Statistics",
        );
        let stacked = SUMMARY.replace("                              p", "\np");
        assert_ne!(stacked, SUMMARY);
        assert!(stacked.contains(left) && stacked.contains(right));
        let readings = parse(&stacked).expect("all figures are there");
        assert_eq!(readings[2].value, 1650.0);
    }

    #[test]
    fn a_summary_without_a_figure_is_not_taken() {
        assert!(parse(&SUMMARY.replace("Catchup", "Nothing")).is_none());
        assert!(parse(&SUMMARY.replace("p50", "p51")).is_none());
    }

    #[test]
    fn times_are_read_in_every_unit() {
        assert_eq!(parse_ms("500ns"), Some(0.0005));
        assert_eq!(parse_ms("812.5us"), Some(0.8125));
        assert_eq!(parse_ms("41.03ms"), Some(41.03));
        assert_eq!(parse_ms("1.50s"), Some(1500.0));
        assert_eq!(parse_ms("-"), None);
    }
}
