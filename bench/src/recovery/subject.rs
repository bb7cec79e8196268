//! The measured server: a process with its own settings, its metrics, and its log.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bench_harness::machine;
use testkit::ports::free_port;

use crate::process::Server;

/// Time limit of one start. Restoring or scanning gigabytes dominates.
const READY_AT_MOST: Duration = Duration::from_secs(240);

/// Most bytes that are read of its log.
const LOG_AT_MOST: u64 = 256 << 10;

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The program `esker`.
    pub program: PathBuf,
    /// Its data directory.
    pub data: PathBuf,
    /// `key=value` each.
    pub settings: Vec<String>,
}

impl Setup {
    /// Adds settings; the last one of a key counts.
    pub fn with(&self, more: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut other = self.clone();
        other.settings.extend(more.into_iter().map(Into::into));
        other
    }

    /// Starts the server and waits until it is healthy. Returns how long that took from the start of the
    /// process on.
    ///
    /// # Errors
    ///
    /// If it ends, or is not healthy in time.
    pub async fn start(&self, arguments: &[&str]) -> anyhow::Result<(Subject, Duration)> {
        let port = free_port()?;
        let mut settings = HashMap::new();
        for setting in &self.settings {
            let (key, value) = setting.split_once('=').context("a setting is key=value")?;
            settings.insert(key, value);
        }
        let mut command = Command::new(&self.program);
        command
            .arg("server")
            .arg("--data-dir")
            .arg(&self.data)
            .arg("--listen")
            .arg(format!("127.0.0.1:{port}"))
            .args(arguments);
        for (key, value) in settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        let log = self.data.with_extension("log");
        let mut process = Server::spawn("the server", &mut command, port, &log)?;
        process.ready(READY_AT_MOST).await?;
        let took = process.spawned().elapsed();
        Ok((Subject { process }, took))
    }
}

/// A running server. Dropping it kills it.
pub struct Subject {
    process: Server,
}

/// The log of a start, parsed.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// `Replaying N events`.
    pub events: u64,
    /// Seconds: scanning a long log, restoring, replaying, and in all.
    pub scan: f64,
    pub restore: f64,
    pub replay: f64,
    pub total: f64,
    /// Bytes of the log.
    pub log_bytes: u64,
}

impl Subject {
    pub fn url(&self) -> String {
        self.process.url()
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Errors
    ///
    /// If it does not stop in time, or fails.
    pub async fn stop(mut self, at_most: Duration) -> anyhow::Result<()> {
        self.process.stop(at_most).await
    }

    /// The same as [`Subject::kill`] for a server that is replaced.
    pub fn end(&mut self) {
        self.process.kill();
    }

    /// Resident memory now and at its peak, in MiB.
    pub fn resident_mib(&self) -> anyhow::Result<(f64, f64)> {
        let (now, most) = machine::resident_bytes(self.process.pid())?;
        let mib = |bytes| bytes as f64 / f64::from(1 << 20);
        Ok((mib(now), mib(most)))
    }

    /// Processor time that it has used, in seconds.
    pub fn processor_seconds(&self) -> anyhow::Result<f64> {
        Ok(machine::cpu_ticks(self.process.pid())? as f64 / 100.0)
    }

    /// Waits until it has used almost no processor time for a second, or `at_most` has passed.
    pub async fn settle(&self, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        let ticks = || machine::cpu_ticks(self.process.pid()).unwrap_or_default();
        let (mut quiet, mut before) = (0, ticks());
        while quiet < 4 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let now = ticks();
            quiet = if now - before <= 2 { quiet + 1 } else { 0 };
            before = now;
        }
    }

    /// Status and answer of a GET.
    ///
    /// # Errors
    ///
    /// If the server does not answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        self.process.get(path).await
    }

    /// All metrics, summed over their labels.
    ///
    /// # Errors
    ///
    /// If the server does not answer.
    pub async fn metrics(&self) -> anyhow::Result<HashMap<String, f64>> {
        let (status, text) = self.process.get("/metrics").await?;
        anyhow::ensure!(status == 200, "/metrics answers {status}");
        let mut sums = HashMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let name = name.split('{').next().unwrap_or(name);
            if let Ok(value) = value.trim().parse::<f64>() {
                *sums.entry(name.to_owned()).or_insert(0.0) += value;
            }
        }
        Ok(sums)
    }

    /// One of them; 0 if there is none yet.
    ///
    /// # Errors
    ///
    /// If the server does not answer.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        Ok(self.metrics().await?.get(name).copied().unwrap_or_default())
    }

    /// Waits until a metric satisfies a condition.
    ///
    /// # Errors
    ///
    /// If it does not become so in time.
    pub async fn wait(
        &self,
        name: &str,
        at_most: Duration,
        wanted: impl Fn(f64) -> bool,
    ) -> anyhow::Result<f64> {
        let deadline = Instant::now() + at_most;
        loop {
            let value = self.metric(name).await?;
            if wanted(value) {
                return Ok(value);
            }
            if Instant::now() > deadline {
                bail!("{name} is still {value}: {}", self.logged()?);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What it wrote since it was started, at most the last 256 KiB of that.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn logged(&self) -> anyhow::Result<String> {
        Ok(self.process.logged(LOG_AT_MOST)?)
    }

    /// Parses the log of its start.
    ///
    /// # Errors
    ///
    /// If the lines are not in the log.
    pub fn said(&self) -> anyhow::Result<Said> {
        let text = self.logged()?;
        let line = |what: &str| text.lines().find(|line| line.contains(what));
        let complete = line("Partitions recovered").context("no recovery was reported")?;
        let replaying = line("log entries of the partitions").context("no replay was reported")?;
        let events = replaying
            .split_once("Replaying ")
            .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        let field = |line: &str, name: &str| {
            let (_, rest) = line.split_once(&format!("{name}="))?;
            Some(rest.split([' ', ',']).next()?.to_owned())
        };
        let seconds = |name| {
            field(complete, name)
                .and_then(|text| seconds(&text))
                .unwrap_or(0.0)
        };
        let log_bytes = line("Loading partitions").and_then(|line| field(line, "log_bytes"));
        Ok(Said {
            events: events.context("no number of events")?,
            scan: seconds("scan"),
            restore: seconds("restore"),
            replay: seconds("replay"),
            total: seconds("total"),
            log_bytes: log_bytes.and_then(|n| n.parse().ok()).unwrap_or_default(),
        })
    }
}

impl Said {
    /// The parts of the time, in short.
    pub fn parts(&self) -> String {
        let Self {
            scan,
            restore,
            replay,
            total,
            ..
        } = self;
        format!("scan {scan:.2} s, restore {restore:.2} s, replay {replay:.2} s of {total:.2} s")
    }
}

/// Parses a duration as Rust writes it: `1.5s`, `12.3ms`, `7µs`.
fn seconds(text: &str) -> Option<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        "ns" => 1e-9,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * scale)
}

/// Bytes of all files below a directory.
///
/// # Errors
///
/// If it cannot be read.
pub fn bytes_below(directory: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += match meta.is_dir() {
            true => bytes_below(&entry.path())?,
            false => meta.len(),
        };
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_rust_writes_them() {
        for duration in [
            Duration::from_nanos(7),
            Duration::from_micros(1_500),
            Duration::from_millis(12_345),
        ] {
            let read = seconds(&format!("{duration:?}")).unwrap();
            let off = (read - duration.as_secs_f64()).abs();
            assert!(off < 1e-12, "{duration:?} is read as {read} s");
        }
        assert_eq!(seconds("soon"), None);
    }
}
