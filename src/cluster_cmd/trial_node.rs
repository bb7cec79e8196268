//! A node of a trial: this program, as a child process in a process group of its own.
//!
//! It does not outlive this process: dropping it kills it by its process id, and if this process is killed, its
//! standard input closes, and it stops.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};

use crate::failure::Failure;

/// The code of what a trial could not do.
pub const FAILED: &str = "cluster_try";
/// How far the ports for other nodes are above those for clients.
pub const PEER_PORTS: u16 = 100;
/// The file of the secret, in the directory of the trial.
pub const SECRET: &str = "secret";
/// Bytes of the log that are quoted when a node fails.
const QUOTED: u64 = 2048;

/// The port of a node for other nodes. Nodes count from 1.
pub fn peer_port(base_port: u16, number: u16) -> u16 {
    base_port + PEER_PORTS + number - 1
}

/// Tries to listen on all ports of so many nodes. The error is the first port on which that is not possible.
pub fn find_taken(base_port: u16, nodes: u16) -> Result<(), (u16, std::io::Error)> {
    let ports =
        (1..=nodes).flat_map(|number| [base_port + number - 1, peer_port(base_port, number)]);
    for port in ports {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|e| (port, e))?;
    }
    Ok(())
}

/// A node of a trial.
pub struct TrialNode {
    pub name: String,
    pub client_port: u16,
    log: PathBuf,
    arguments: Vec<String>,
    pub pid: u32,
    child: Child,
    ended: bool,
    /// The node stops when this is closed.
    _stdin: Option<ChildStdin>,
}

impl TrialNode {
    /// Starts the node with this number, from 1 on, with these further settings.
    pub fn start(
        dir: &Path,
        number: u16,
        base_port: u16,
        settings: &[&str],
    ) -> Result<TrialNode, Failure> {
        let name = format!("n{number}");
        let client_port = base_port + number - 1;
        let peer = |number: u16| format!("127.0.0.1:{}", peer_port(base_port, number));
        let shown = |path: PathBuf| path.display().to_string();
        let mut arguments = vec![
            "server".to_owned(),
            "--data-dir".to_owned(),
            shown(dir.join(&name)),
            "--listen".to_owned(),
            format!("127.0.0.1:{client_port}"),
        ];
        let mut set = |key: &str, value: String| {
            arguments.extend(["--set".to_owned(), format!("{key}={value}")]);
        };
        set("cluster.name", name.clone());
        set("cluster.peer-listen", peer(number));
        set("cluster.secret-file", shown(dir.join(SECRET)));
        if number > 1 {
            set("cluster.join", peer(1));
        }
        for setting in settings {
            arguments.extend(["--set".to_owned(), (*setting).to_owned()]);
        }
        let cannot = |e: std::io::Error| {
            Failure::wrong(FAILED, format!("cannot start the node {name}: {e}"))
        };
        let log = dir.join(format!("node{number}.log"));
        let output = File::options().create(true).append(true).open(&log);
        let output = output.map_err(cannot)?;
        let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
        command
            .args(&arguments)
            .arg("--until-stdin-closes")
            .stdin(Stdio::piped())
            .stdout(output.try_clone().map_err(cannot)?)
            .stderr(output)
            .process_group(0)
            .kill_on_drop(true);
        // The command that brings it back has these arguments alone.
        for (variable, _) in std::env::vars_os() {
            let bytes = variable.as_encoded_bytes();
            if bytes.starts_with(b"ESKER_") || bytes.starts_with(b"STATEHOUSE_") {
                command.env_remove(variable);
            }
        }
        let mut child = command.spawn().map_err(cannot)?;
        Ok(TrialNode {
            client_port,
            log,
            arguments,
            pid: child.id().unwrap_or_default(),
            _stdin: child.stdin.take(),
            child,
            ended: false,
            name,
        })
    }

    /// Where clients reach it.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// The command that starts it again.
    pub fn command(&self) -> String {
        let program = std::env::current_exe();
        let program =
            program.map_or_else(|_| "esker".to_owned(), |path| path.display().to_string());
        let words = std::iter::once(&program).chain(&self.arguments);
        let quoted = words.map(|word| match word.contains([' ', '\'', '$', '"']) {
            true => format!("'{}'", word.replace('\'', r"'\''")),
            false => word.clone(),
        });
        quoted.collect::<Vec<_>>().join(" ")
    }

    /// How it has ended, once.
    pub fn newly_ended(&mut self) -> Option<ExitStatus> {
        if self.ended {
            return None;
        }
        let status = self.child.try_wait().ok().flatten()?;
        self.ended = true;
        Some(status)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.newly_ended();
        self.ended
    }

    /// Asks it to stop.
    pub fn terminate(&mut self) {
        // It is not reaped, so the id is its own.
        if !self.has_ended()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            // A process that has ended needs no signal.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if !self.has_ended() {
            let _ = self.child.start_kill();
        }
    }

    /// The end of its log.
    pub fn end_of_log(&self) -> String {
        let mut end = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(QUOTED)))?;
            file.read_to_end(&mut end)
        });
        match read {
            Ok(_) => String::from_utf8_lossy(&end).trim_end().to_owned(),
            Err(e) => format!("(its log {}: {e})", self.log.display()),
        }
    }
}
