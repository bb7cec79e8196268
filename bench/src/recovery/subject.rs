//! The measured server: a process with settings of its own, its metrics, and what it logged.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::process::free_port;
use bench_harness::machine;

/// Bound on one start. Restoring or scanning gigabytes dominates.
const READY_AT_MOST: Duration = Duration::from_secs(240);

/// Bound on an answer with metrics.
const ANSWER_AT_MOST: u64 = 16 << 20;

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
    /// With more settings; the last one of a key holds.
    pub fn with(&self, more: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut other = self.clone();
        other.settings.extend(more.into_iter().map(Into::into));
        other
    }

    /// Starts the server and waits until it is healthy; how long that took from the start of the
    /// process on.
    ///
    /// # Errors
    ///
    /// If it ends, or is not healthy in time.
    pub async fn start(&self, arguments: &[&str]) -> anyhow::Result<(Subject, Duration)> {
        let port = free_port()?;
        let log = self.data.with_extension("log");
        let file = File::options().create(true).append(true).open(&log)?;
        let from = file.metadata()?.len();
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
        let spawned = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot execute {}", self.program.display()))?;
        let mut subject = Subject {
            child,
            port,
            log,
            from,
        };
        loop {
            if let Some(end) = subject.child.try_wait()? {
                bail!("the server ended with {end}: {}", subject.logged()?);
            }
            if spawned.elapsed() > READY_AT_MOST {
                bail!("the server is not healthy: {}", subject.logged()?);
            }
            if get(port, "/health")
                .await
                .is_ok_and(|(status, _)| status == 200)
            {
                return Ok((subject, spawned.elapsed()));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A running server. Dropping it kills it.
pub struct Subject {
    child: Child,
    port: u16,
    log: PathBuf,
    /// Where its output begins in the log.
    from: u64,
}

/// What a start says about itself.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// `Replaying N events`.
    pub events: u64,
    /// Seconds: looking at a long log, restoring, replaying, and all.
    pub scan: f64,
    pub restore: f64,
    pub replay: f64,
    pub total: f64,
    /// Bytes of the log.
    pub log_bytes: u64,
}

impl Subject {
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Errors
    ///
    /// If it does not stop in time, or fails.
    pub async fn stop(mut self, at_most: Duration) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + at_most;
        loop {
            if let Some(end) = self.child.try_wait()? {
                anyhow::ensure!(
                    end.success(),
                    "the server ended with {end}: {}",
                    self.logged()?
                );
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "the server does not stop");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The same for one that is replaced.
    pub fn end(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// MiB resident now and at the most so far.
    pub fn resident_mib(&self) -> anyhow::Result<(f64, f64)> {
        let (now, most) = machine::resident_bytes(self.child.id())?;
        let mib = |bytes| bytes as f64 / f64::from(1 << 20);
        Ok((mib(now), mib(most)))
    }

    /// Waits until it has used nearly no processor for a second, or `at_most` has passed.
    pub async fn settle(&self, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        let ticks = || machine::cpu_ticks(self.child.id()).unwrap_or_default();
        let (mut quiet, mut before) = (0, ticks());
        while quiet < 4 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let now = ticks();
            quiet = if now - before <= 2 { quiet + 1 } else { 0 };
            before = now;
        }
    }

    /// All metrics, summed over their labels.
    ///
    /// # Errors
    ///
    /// If the server does not answer.
    pub async fn metrics(&self) -> anyhow::Result<HashMap<String, f64>> {
        let (status, text) = get(self.port, "/metrics").await?;
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

    /// Waits until a metric is as wanted.
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
        let mut file = File::open(&self.log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(
            self.from.max(length.saturating_sub(256 << 10)),
        ))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// What its start said.
    ///
    /// # Errors
    ///
    /// If it did not say it.
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

impl Drop for Subject {
    fn drop(&mut self) {
        self.end();
    }
}

impl Said {
    /// Where the time went, in short.
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

/// As Rust writes durations: `1.5s`, `12.3ms`, `7µs`.
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

/// Status and body of a GET. HTTP/1.1 by hand: starts are measured with it, and one short request on
/// a connection of its own needs no client.
async fn get(port: u16, path: &str) -> anyhow::Result<(u16, String)> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    connection
        .take(ANSWER_AT_MOST)
        .read_to_end(&mut answer)
        .await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer
        .split_ascii_whitespace()
        .nth(1)
        .context("no status")?;
    Ok((status.parse()?, answer))
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
