//! Runs the program and servers.
//!
//! A [`Server`] stops when it is dropped, and even when the test process is killed, because it ends when its
//! standard input closes.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::process::Process;

pub use testkit::process::{esker, signal};
pub use testkit::wait::{SOON, eventually};

/// A server on a free loopback port.
pub struct Server {
    process: Process,
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// Its data directory, unless one was given.
    _temporary: Option<tempfile::TempDir>,
}

impl Server {
    /// A server with a temporary data directory.
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

    /// A server on this data directory and address, with these settings. If another process took a fixed port
    /// meanwhile, this retries.
    pub fn start_with(data_dir: &Path, listen: &str, settings: &[&str]) -> Server {
        let began = Instant::now();
        loop {
            match Server::try_start(data_dir, listen, settings) {
                Ok(server) => return server,
                Err(log) => {
                    let may_be_taken = !listen.ends_with(":0") && began.elapsed() < SOON;
                    assert!(may_be_taken, "the server ended:\n{log}");
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    /// The same without retries. The error is all that the server wrote, if it ended.
    fn try_start(data_dir: &Path, listen: &str, settings: &[&str]) -> Result<Server, String> {
        let mut command = esker();
        command
            .args(["server", "--until-stdin-closes"])
            .args(settings)
            .args(["--listen", listen, "--data-dir"])
            .arg(data_dir)
            .stdin(Stdio::piped());
        let mut process = Process::spawn(&mut command);
        let url = process.wait_to_serve()?;
        Ok(Server {
            process,
            url,
            _temporary: None,
        })
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

    /// Runs `esker stream`, which has to succeed, and returns its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, b"")
    }

    /// The same, with `input` on standard input.
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

    /// Runs `esker stream`, which has to fail with this exit code, and returns its standard error.
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

    /// Waits until a stream has this many records, and their appends have been answered: a later request is
    /// answered later.
    pub fn has(&self, stream: &str, records: u64) {
        let tail = || {
            let output = run(self.stream(["check-tail", stream, "--json"]), b"");
            let tail: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            tail["seq_num"].as_u64()
        };
        eventually("the records are in the stream", || tail() == Some(records));
        for _ in 0..3 {
            assert_eq!(tail(), Some(records));
        }
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) {
        self.process.wait();
    }

    /// Kills it with SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

/// An address for a server that is started again at the same one: no connection of another test takes it meanwhile.
pub fn address_to_keep() -> String {
    format!("127.0.0.1:{}", testkit::ports::free_port().unwrap())
}

/// Runs a command with `input` on standard input.
pub fn run(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A separate thread writes while this one reads the output; otherwise each process could wait for the
    // other.
    let writing = std::thread::spawn(move || {
        // The command may end without reading its input.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

/// The standard output of a command, as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The standard error of a command, as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A command whose output is read while it runs.
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
