//! A server of the demo: this program, as a child process.
//!
//! It never outlives the demo. Dropping a [`ServerProcess`] kills it by its process id. If the demo itself is
//! killed, so that nothing is dropped, the server's standard input closes, and it stops. It is in a process
//! group of its own, so that a Ctrl-C reaches the demo alone.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::log_events::Told;
use crate::failure::Failure;
use crate::server_address::ServerAddress;

/// Longest wait for a server to serve, or to end.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of the log that are quoted when a server fails.
const QUOTED: u64 = 2048;

/// A running server.
pub struct ServerProcess {
    child: Child,
    pid: u32,
    address: ServerAddress,
    started: Instant,
    served_after: Duration,
    log: PathBuf,
    /// The server stops when this is closed.
    _stdin: Option<ChildStdin>,
}

impl ServerProcess {
    /// Starts a server on a data directory and any free port, with these further arguments, and waits until
    /// it serves. Its log is written to `log`.
    ///
    /// # Errors
    ///
    /// If it does not serve; the message has the end of its log.
    pub async fn start(
        data_dir: &Path,
        log: PathBuf,
        arguments: &[String],
    ) -> Result<ServerProcess, Failure> {
        let cannot =
            |e: std::io::Error| Failure::wrong("demo", format!("cannot start a server: {e}"));
        let program = std::env::current_exe().map_err(cannot)?;
        let mut command = Command::new(program);
        command
            .args(["server", "--listen", "127.0.0.1:0", "--until-stdin-closes"])
            .args(["--set", "logs.level=info", "--data-dir"])
            .arg(data_dir)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).map_err(cannot)?)
            .process_group(0)
            .kill_on_drop(true);
        // The demo shows the defaults, whatever the environment configures.
        for (name, _) in std::env::vars_os() {
            let name_bytes = name.as_encoded_bytes();
            if name_bytes.starts_with(b"ESKER_") || name_bytes.starts_with(b"STATEHOUSE_") {
                command.env_remove(name);
            }
        }
        let started = Instant::now();
        let mut child = command.spawn().map_err(cannot)?;
        let pid = child.id().unwrap_or_default();
        let stdin = child.stdin.take();
        let announced = match child.stdout.take() {
            Some(stdout) => {
                tokio::time::timeout(WAIT_TIMEOUT, address(BufReader::new(stdout))).await
            }
            None => Ok(None),
        };
        let problem = match announced {
            Ok(Some(address)) => {
                return Ok(ServerProcess {
                    child,
                    pid,
                    address,
                    started,
                    served_after: started.elapsed(),
                    log,
                    _stdin: stdin,
                });
            }
            Ok(None) => "it ended at once".to_owned(),
            Err(_) => format!("it did not serve within {} s", WAIT_TIMEOUT.as_secs()),
        };
        Err(Failure::wrong(
            "demo",
            format!("a server did not start: {problem}\n{}", end_of(&log)),
        ))
    }

    /// Where it listens.
    pub fn address(&self) -> &ServerAddress {
        &self.address
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// From its start (`exec`) until it served.
    pub fn served_after(&self) -> Duration {
        self.served_after
    }

    /// Since it was started (`exec`).
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// The events of its log so far.
    pub fn told(&self) -> Told {
        Told::of(&std::fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// Sends SIGKILL without waiting for the end.
    pub fn kill(&mut self) -> Result<(), Failure> {
        self.child
            .start_kill()
            .map_err(|e| Failure::wrong("demo", format!("cannot kill the server: {e}")))
    }

    /// Waits until it is gone.
    pub async fn gone(mut self) -> Result<(), Failure> {
        match tokio::time::timeout(WAIT_TIMEOUT, self.child.wait()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(Failure::wrong("demo", format!("waiting for a server: {e}"))),
            Err(_) => Err(Failure::wrong(
                "demo",
                format!(
                    "process {} did not end within {} s",
                    self.pid,
                    WAIT_TIMEOUT.as_secs()
                ),
            )),
        }
    }

    /// Sends SIGTERM, and waits until it has ended.
    pub async fn stop(self) -> Result<(), Failure> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        // A process that has ended needs no signal.
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        self.gone().await
    }
}

/// The address in the line that a server prints: `esker X serves http://… from …`.
async fn address(stdout: BufReader<tokio::process::ChildStdout>) -> Option<ServerAddress> {
    let mut lines = stdout.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut words = line.split(' ').skip_while(|word| *word != "serves");
        if let Some(address) = words.nth(1) {
            return address.parse().ok();
        }
    }
    None
}

fn end_of(log: &Path) -> String {
    let mut end = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(QUOTED)))?;
        file.read_to_end(&mut end)
    });
    match read {
        Ok(_) => String::from_utf8_lossy(&end).trim_end().to_owned(),
        Err(e) => format!("(its log {}: {e})", log.display()),
    }
}
