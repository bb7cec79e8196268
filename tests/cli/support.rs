//! Runs the program, and servers for it.
//!
//! A [`Server`] stops when it is dropped, and even when the test process is killed: it ends when its
//! standard input closes.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for something that should take a moment, on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(90);

/// The program, with no configuration from the environment.
pub fn esker() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
    for (name, _) in std::env::vars_os() {
        let name_bytes = name.as_encoded_bytes();
        if name_bytes.starts_with(b"ESKER_") || name_bytes.starts_with(b"STATEHOUSE_") {
            command.env_remove(name);
        }
    }
    command
}

/// A server on a free loopback port.
pub struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// Its own, unless it was given one.
    _temporary: Option<tempfile::TempDir>,
}

impl Server {
    /// A server with a data directory that goes with it.
    pub fn start() -> Server {
        let temporary = tempfile::tempdir().unwrap();
        let mut server = Server::start_on(&temporary.path().join("data"), "127.0.0.1:0");
        server._temporary = Some(temporary);
        server
    }

    /// A server on this data directory and address, with few partitions.
    pub fn start_on(data_dir: &Path, listen: &str) -> Server {
        Server::start_with(data_dir, listen, &["--partitions", "2"])
    }

    /// A server on this data directory and address, with these settings. Whoever took a fixed port
    /// meanwhile gets time to go.
    pub fn start_with(data_dir: &Path, listen: &str, settings: &[&str]) -> Server {
        let began = Instant::now();
        loop {
            match Server::try_start(data_dir, listen, settings) {
                Ok(server) => return server,
                Err(line) => {
                    let may_be_taken = !listen.ends_with(":0") && began.elapsed() < SOON;
                    assert!(
                        may_be_taken,
                        "the server did not say where it serves: {line:?}"
                    );
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    /// The same, once; what it said instead of an address.
    fn try_start(data_dir: &Path, listen: &str, settings: &[&str]) -> Result<Server, String> {
        let mut child = esker()
            .args(["server", "--until-stdin-closes"])
            .args(settings)
            .args(["--listen", listen, "--data-dir"])
            .arg(data_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let url = line.split(' ').find(|word| word.starts_with("http://"));
        let url = url.unwrap_or_default().to_owned();
        let server = Server {
            child,
            stdin,
            url,
            _temporary: None,
        };
        match server.url.is_empty() {
            true => Err(line),
            false => Ok(server),
        }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// `esker stream` with arguments, against this server.
    pub fn stream<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = esker();
        command
            .arg("stream")
            .args(arguments)
            .env("ESKER_SERVER", &self.url);
        command
    }

    /// Runs `esker stream`, which has to succeed, and answers what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, b"")
    }

    /// The same, with something on standard input.
    pub fn ok_with(&self, arguments: &[&str], input: &[u8]) -> String {
        let output = run(self.stream(arguments), input);
        assert!(
            output.status.success(),
            "esker stream {arguments:?}: {}\n{}",
            output.status,
            stderr(&output)
        );
        stdout(&output)
    }

    /// Runs `esker stream`, which has to fail with this exit code, and answers what it said.
    pub fn fails(&self, code: i32, arguments: &[&str], input: &[u8]) -> String {
        let output = run(self.stream(arguments), input);
        assert_eq!(
            output.status.code(),
            Some(code),
            "esker stream {arguments:?}\n{}{}",
            stdout(&output),
            stderr(&output)
        );
        stderr(&output)
    }

    /// Waits until a stream has so many records, and whoever appended them has been told so: a request
    /// that comes later is answered later.
    pub fn has(&self, stream: &str, records: u64) {
        let tail = || {
            let output = run(self.stream(["tail", stream, "--json"]), b"");
            let tail: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            tail["seq_num"].as_u64()
        };
        eventually("the records are in the stream", || tail() == Some(records));
        for _ in 0..3 {
            assert_eq!(tail(), Some(records));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self::signal(&self.child, signal);
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) {
        self.child.wait().unwrap();
    }

    /// Kills it with SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a child.
pub fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Runs a command with something on standard input.
pub fn run(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // Beside reading the output, or both would wait for each other.
    let writing = std::thread::spawn(move || {
        // A command need not read what it gets.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

/// What a command printed, as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a command said, as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A command whose output is read as it comes.
pub struct Running {
    /// The process.
    pub child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Running {
    /// Starts it.
    pub fn start(mut command: Command) -> Running {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running { child, lines }
    }

    /// The next line, without its line feed. Waits for it.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.strip_suffix('\n').unwrap_or(&line).to_owned()
    }

    /// Writes to its standard input.
    pub fn write(&mut self, input: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Stops reading what it prints, as `head` does, and waits for its end.
    pub fn close(self) -> (Option<i32>, String) {
        drop(self.lines);
        end(self.child)
    }

    /// Reads the rest of what it prints, and waits for its end.
    pub fn finish(mut self) -> (Option<i32>, String, String) {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        let (code, said) = end(self.child);
        (code, rest, said)
    }
}

fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), stderr(&output))
}

/// Processes that have a text among their arguments.
#[cfg(target_os = "linux")]
pub fn processes_with(argument: &str) -> Vec<PathBuf> {
    let processes = std::fs::read_dir("/proc").unwrap();
    processes
        .filter_map(|process| {
            let path = process.ok()?.path();
            let arguments = std::fs::read(path.join("cmdline")).ok()?;
            String::from_utf8_lossy(&arguments)
                .contains(argument)
                .then_some(path)
        })
        .collect()
}
