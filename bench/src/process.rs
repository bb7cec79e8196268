//! Server processes: start, observation, end.
//!
//! A [`Server`] is one running process with its port and its log file; [`Server::spawn`] makes one of
//! any command, [`Program::start`] one of the two programs that are compared. Dropping a `Server` kills
//! it with SIGKILL and waits for it, so no path through this program leaves one behind. [`low_priority_runtime`] and
//! [`spawn_at_lowest_priority`] are for what would be on other machines, and is to take no processor from a server.
//!
//! Servers run in process groups of their own: a Ctrl-C in the terminal reaches this program alone, which
//! then ends them.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
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
use esker_raft::priority::{DiskPriority, lower_priority};

/// The niceness of the lowest priority. A thread that has it gets a seventieth of a processor for which one of
/// the normal priority competes.
const LOWEST_NICENESS: i32 = 19;

/// Pause between two health checks. A refused connection on loopback costs some 20 µs, so checks at this
/// interval neither delay the answer nor slow the start.
const HEALTH_POLL: Duration = Duration::from_millis(1);

/// Bytes of an answer with metrics, at most.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

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
    /// The name in the table.
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
    /// Which server it is; this determines its arguments.
    pub contender: Contender,
    /// Path of the executable.
    pub path: PathBuf,
}

impl Program {
    /// The program's answer to `--version`, as one line.
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
        let mut command = Command::new(&self.path);
        match self.contender {
            Contender::Peer => {
                command
                    .arg("lite")
                    .arg("--local-root")
                    .arg(data)
                    .arg("--port")
                    .arg(port.to_string())
                    // A log line per request would cost the peer much time.
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
        let log_path = data.with_extension("log");
        Server::spawn(self.contender.name(), &mut command, port, &log_path)
    }
}

/// One running server process. Dropping it kills it.
pub struct Server {
    child: Child,
    name: &'static str,
    port: u16,
    log_path: PathBuf,
    /// Offset in the log at which its output begins.
    log_start: u64,
    spawned: Instant,
}

impl Server {
    /// Starts a command that is to serve on `port` of the loopback interface, without waiting until it does.
    /// Its output is appended to the file `log_path`.
    ///
    /// # Errors
    ///
    /// If the log cannot be opened, or the process cannot be created.
    pub fn spawn(
        name: &'static str,
        command: &mut Command,
        port: u16,
        log_path: &Path,
    ) -> anyhow::Result<Server> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log_path)
            .with_context(|| format!("cannot open {}", log_path.display()))?;
        let log_start = log.metadata()?.len();
        let spawned = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot execute {}", command.get_program().display()))?;
        Ok(Server {
            child,
            name,
            port,
            log_path: log_path.to_owned(),
            log_start,
            spawned,
        })
    }

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
                bail!("{} ended with {end}{}", self.name, self.log());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, get(self.port, "/health")).await {
                Ok(Ok((200, _))) => return Ok(()),
                Ok(_) => tokio::time::sleep(HEALTH_POLL).await,
                Err(_) => bail!(
                    "{} was not healthy within {at_most:?}{}",
                    self.name,
                    self.log()
                ),
            }
        }
    }

    /// How the process ended, if it did.
    ///
    /// # Errors
    ///
    /// If the system call fails.
    pub fn ended(&mut self) -> anyhow::Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Asks the process to stop with SIGTERM, and waits until it has.
    ///
    /// # Errors
    ///
    /// If it does not stop in time, or fails.
    pub async fn stop(&mut self, at_most: Duration) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + at_most;
        loop {
            if let Some(end) = self.ended()? {
                anyhow::ensure!(
                    end.success(),
                    "{} ended with {end}{}",
                    self.name,
                    self.log()
                );
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "{} does not stop", self.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Status and body of a GET.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        get(self.port, path).await
    }

    /// Kills the process with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until the process has used less than a twentieth of one processor for half a second, so that its
    /// work for an earlier row does not affect the next one. Gives up after `at_most`.
    pub async fn settle(&self, at_most: Duration) {
        /// Ticks in one interval of 250 ms that count as idle: 1 of 25.
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
        match self.logged(LOG_QUOTE_BYTES) {
            Ok(text) if !text.trim().is_empty() => format!("; its log ends with:\n{text}"),
            _ => "; its log is empty".to_owned(),
        }
    }

    /// The last bytes, at most `at_most`, of what it wrote since it was started.
    ///
    /// # Errors
    ///
    /// If the log cannot be read.
    pub fn logged(&self, at_most: u64) -> std::io::Result<String> {
        let mut file = File::open(&self.log_path)?;
        let length = file.metadata()?.len();
        let begin = self.log_start.max(length.saturating_sub(at_most));
        file.seek(SeekFrom::Start(begin))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A runtime for a store within this program that gives way to the server. It runs until the program ends,
/// because a runtime cannot be dropped within another one.
///
/// # Errors
///
/// If its thread cannot be started.
pub fn low_priority_runtime() -> anyhow::Result<&'static tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(|| lower_priority(DiskPriority::Lowest))
        .enable_all()
        .build()?;
    Ok(Box::leak(Box::new(runtime)))
}

/// Starts a process whose threads all have the lowest priority, for the processors and for the disk.
///
/// It stays in the session of this program, as servers do that this program starts. Linux may divide the processors
/// among sessions first (`kernel.sched_autogroup_enabled`), and a niceness then counts only within one.
///
/// # Errors
///
/// If the priority cannot be lowered, or the process cannot be created.
pub fn spawn_at_lowest_priority(command: &mut Command) -> anyhow::Result<Child> {
    // A process inherits the priority of the thread that creates it. This one ends afterwards, because nobody may
    // raise its priority again.
    let spawned = std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> anyhow::Result<Child> {
            lower_priority(DiskPriority::Lowest);
            rustix::process::setpriority_process(None, LOWEST_NICENESS)?;
            Ok(command.spawn()?)
        });
        thread.join()
    });
    spawned.map_err(|_| anyhow::anyhow!("the thread that starts the process has panicked"))?
}

/// Status and body of a GET, with a minimal HTTP/1.1 client: starts are measured with it, and one short
/// request on its own connection needs no more.
async fn get(port: u16, path: &str) -> anyhow::Result<(u16, String)> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // The bound limits the answer of another program on this port.
    connection
        .take(MAX_ANSWER_BYTES)
        .read_to_end(&mut answer)
        .await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer
        .split_ascii_whitespace()
        .nth(1)
        .context("no status")?;
    Ok((status.parse()?, answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_server_is_dead() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("log");
        let mut sleep = Command::new("sleep");
        let server = Server::spawn("sleep", sleep.arg("60"), 0, &log).expect("sleep runs");
        let pid = server.pid();
        drop(server);
        assert!(machine::resident_bytes(pid).is_err(), "process {pid} lives");
    }

    #[test]
    fn a_process_of_the_lowest_priority_shares_the_session_of_this_one() {
        let niceness = |pid| rustix::process::getpriority_process(pid).expect("it lives");
        let session = |pid| rustix::process::getsid(pid).expect("it lives");
        let before = niceness(None);
        let mut sleep = Command::new("sleep");
        let mut child = spawn_at_lowest_priority(sleep.arg("60")).expect("sleep runs");
        let pid = Some(rustix::process::Pid::from_child(&child));
        let found = (niceness(pid), session(pid), niceness(None));
        child.kill().expect("it is killed");
        child.wait().expect("it is gone");
        assert_eq!(found, (LOWEST_NICENESS, session(None), before));
    }
}
