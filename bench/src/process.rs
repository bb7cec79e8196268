//! Server processes: started, watched, killed.
//!
//! A [`Program`] says how to start a server; [`Program::start`] makes a [`Server`], which is one
//! running process with its port, data directory and log file. Dropping a `Server` kills it with
//! SIGKILL and waits for it, so no path through this program leaves one behind.
//!
//! Servers run in a process group of their own: a Ctrl-C in the terminal reaches this program
//! alone, which then decides what dies.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use bench_harness::machine;

/// Pause between two questions for health. A refused connection on loopback costs some 20 µs, so
/// asking this often neither delays the answer nor slows the start.
const HEALTH_POLL: Duration = Duration::from_millis(1);

/// How much of a server's log is quoted when it fails.
const LOG_QUOTE_BYTES: u64 = 2048;

/// Which of the two servers is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Contender {
    /// `s2 lite`.
    Peer,
    /// The Esker server.
    Esker,
}

impl Contender {
    /// Name as it stands in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peer => "s2 lite",
            Self::Esker => "Esker",
        }
    }
}

/// A server program that can be started.
#[derive(Debug, Clone)]
pub struct Program {
    /// Whose program it is; decides its arguments.
    pub contender: Contender,
    /// Path of the executable.
    pub path: PathBuf,
}

impl Program {
    /// What the program answers to `--version`, in one line.
    ///
    /// # Errors
    ///
    /// If it cannot be executed or fails.
    pub fn version(&self) -> anyhow::Result<String> {
        let output = Command::new(&self.path)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot execute {}", self.path.display()))?;
        if !output.status.success() {
            bail!("{} --version: {}", self.path.display(), output.status);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// Starts the server on `data`, listening on `port` of the loopback interface, without waiting
    /// until it serves. Its output goes to `data` + `.log`.
    ///
    /// # Errors
    ///
    /// If the process cannot be created.
    pub fn start(&self, data: &Path, port: u16) -> anyhow::Result<Server> {
        let log_path = data.with_extension("log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| format!("cannot open {}", log_path.display()))?;
        let mut command = Command::new(&self.path);
        match self.contender {
            Contender::Peer => {
                command
                    .arg("lite")
                    .arg("--local-root")
                    .arg(data)
                    .arg("--port")
                    .arg(port.to_string())
                    // One log line per request costs the peer a good deal; spare it that.
                    .env("RUST_LOG", "warn");
            }
            Contender::Esker => {
                command
                    .arg("server")
                    .arg("--data-dir")
                    .arg(data)
                    .arg("--listen")
                    .arg(format!("127.0.0.1:{port}"));
            }
        }
        let spawned = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot execute {}", self.path.display()))?;
        Ok(Server {
            child,
            contender: self.contender,
            port,
            log_path,
            spawned,
        })
    }
}

/// One running server process. Dropping it kills it.
pub struct Server {
    child: Child,
    contender: Contender,
    port: u16,
    log_path: PathBuf,
    spawned: Instant,
}

impl Server {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// When the process was created.
    pub fn spawned(&self) -> Instant {
        self.spawned
    }

    /// Waits until `GET /health` answers 200.
    ///
    /// # Errors
    ///
    /// If the process ends, or does not answer within `at_most`; the end of its log is quoted.
    pub async fn ready(&mut self, at_most: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + at_most;
        loop {
            if let Some(end) = self.ended()? {
                bail!("{} ended with {end}{}", self.contender.name(), self.log());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, health(self.port)).await {
                Ok(Ok(200)) => return Ok(()),
                Ok(_) => tokio::time::sleep(HEALTH_POLL).await,
                Err(_) => bail!(
                    "{} was not healthy within {at_most:?}{}",
                    self.contender.name(),
                    self.log()
                ),
            }
        }
    }

    /// How the process ended, if it did.
    ///
    /// # Errors
    ///
    /// If the system cannot say.
    pub fn ended(&mut self) -> anyhow::Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Kills the process with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until the process has used less than a twentieth of one processor for half a second,
    /// so that what it still does for an earlier row does not fall into the next one. Gives up
    /// after `at_most`.
    pub async fn settle(&self, at_most: Duration) {
        /// Ticks in one look of 250 ms that count as idle: 1 of 25.
        const IDLE_TICKS: u64 = 1;
        let deadline = Instant::now() + at_most;
        let mut quiet_looks = 0;
        let mut before = machine::cpu_ticks(self.pid()).unwrap_or(0);
        while quiet_looks < 2 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let now = machine::cpu_ticks(self.pid()).unwrap_or(before);
            quiet_looks = if now - before <= IDLE_TICKS {
                quiet_looks + 1
            } else {
                0
            };
            before = now;
        }
    }

    /// The end of the server's log, as a quotation to append to a message.
    pub fn log(&self) -> String {
        match tail(&self.log_path, LOG_QUOTE_BYTES) {
            Ok(text) if !text.trim().is_empty() => format!("; its log ends with:\n{text}"),
            _ => "; its log is empty".to_owned(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port of the loopback interface that nothing listens on now.
///
/// # Errors
///
/// If the system has none.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Status of `GET /health`. HTTP/1.1 by hand: a start is measured with it, and one short request
/// on a connection of its own needs no client.
async fn health(port: u16) -> anyhow::Result<u16> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
    connection
        .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    // An answer to this is a few hundred bytes; the bound keeps a stranger on the port harmless.
    connection.take(64 * 1024).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer
        .split_ascii_whitespace()
        .nth(1)
        .context("no status")?;
    Ok(status.parse()?)
}

fn tail(path: &Path, bytes: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(String::from_utf8_lossy(&end).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_listened_on() {
        let port = free_port().expect("loopback has ports");
        TcpListener::bind(("127.0.0.1", port)).expect("nothing listens there");
    }

    #[test]
    fn a_dropped_server_is_dead() {
        let directory = tempfile::tempdir().expect("a directory");
        let child = Command::new("sleep").arg("60").spawn().expect("sleep runs");
        let pid = child.id();
        drop(Server {
            child,
            contender: Contender::Peer,
            port: 0,
            log_path: directory.path().join("log"),
            spawned: Instant::now(),
        });
        assert!(machine::resident_bytes(pid).is_err(), "process {pid} lives");
    }
}
