//! The program `esker`, and its processes.
//!
//! A [`Process`] collects its output, standard output and standard error in the order in which they were written; when
//! the test that owns it fails, the end of the output is printed.
//! Dropping a [`Process`] kills it with SIGKILL and waits for it, so that no test leaves one behind.

use std::io::{BufRead as _, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::SOON;

/// Lines of the log that are printed when a test fails.
const QUOTED_LINES: usize = 60;

/// The program under test. Cargo sets its path for the tests of its package; elsewhere it is the one beside
/// the directory of the test's own program.
///
/// # Panics
///
/// If it does not exist.
pub fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("CARGO_BIN_EXE_esker") {
        return program.into();
    }
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("esker");
    assert!(program.is_file(), "there is no {}", program.display());
    program
}

/// A command that runs the program, with no configuration from the environment.
pub fn esker() -> Command {
    without_configuration(Command::new(program()))
}

/// A command without the variables that configure Esker.
pub fn without_configuration(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(b"ESKER_") || bytes.starts_with(b"STATEHOUSE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Sends a signal to a child.
///
/// # Panics
///
/// If it has ended and was reaped.
pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// A process, and what it wrote so far.
pub struct Process {
    child: Child,
    lines: Lines,
    reader: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts it. Its standard input is that of the command.
    ///
    /// One pipe takes standard output and standard error: whoever has seen a line of one has seen all that was written
    /// to the other before.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn spawn(command: &mut Command) -> Process {
        let (output, stdout) = std::io::pipe().unwrap();
        let stderr = stdout.try_clone().unwrap();
        let child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
        // The command has the pipe open as long as it is there; without these, it would have no end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let lines = Lines::default();
        let reader = lines.collect(output);
        Process {
            child,
            lines,
            reader: Some(reader),
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// All lines that it wrote so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.0.lock().unwrap().clone()
    }

    /// The first line that contains a text.
    pub fn line_with(&self, text: &str) -> Option<String> {
        let lines = self.lines.0.lock().unwrap();
        lines.iter().find(|line| line.contains(text)).cloned()
    }

    /// The URL at which it serves, `http://HOST:PORT` or `https://HOST:PORT`, if it does by now.
    pub fn url(&self) -> Option<String> {
        let line = self.line_with(" serves http")?;
        let url = line
            .split_whitespace()
            .find(|word| word.starts_with("http://") || word.starts_with("https://"));
        url.map(str::to_owned)
    }

    /// Its exit status, if it has ended; all its output is collected then.
    ///
    /// # Panics
    ///
    /// If the system call fails.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().unwrap()?;
        self.join();
        Some(status)
    }

    /// Its URL if it serves, or its exit status and all its output if it has ended; `None` if neither is the
    /// case yet.
    pub fn started(&mut self) -> Option<Result<String, String>> {
        if let Some(url) = self.url() {
            return Some(Ok(url));
        }
        let status = self.ended()?;
        Some(Err(format!("{status}\n{}", self.lines().join("\n"))))
    }

    /// Waits until it serves, or has ended; the error is all its output.
    ///
    /// # Panics
    ///
    /// If it does neither soon.
    pub fn wait_to_serve(&mut self) -> Result<String, String> {
        let began = Instant::now();
        loop {
            if let Some(started) = self.started() {
                return started;
            }
            assert!(began.elapsed() < SOON, "no server after {SOON:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self::signal(&self.child, signal);
    }

    /// Waits until it has ended, however long that takes.
    ///
    /// # Panics
    ///
    /// If the system call fails.
    pub fn wait(&mut self) -> ExitStatus {
        // `Child::wait` would close its standard input, on which the process may be waiting.
        let stdin = self.child.stdin.take();
        let status = self.child.wait().unwrap();
        drop(stdin);
        self.join();
        status
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.join();
    }

    /// Waits until all its output is collected.
    fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.lines();
            let skipped = lines.len().saturating_sub(QUOTED_LINES);
            eprintln!("the log of process {} ends with:", self.id());
            for line in &lines[skipped..] {
                eprintln!("    {line}");
            }
        }
        // The reader is not awaited, because a child of the process may keep its output open.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a process's output.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn collect(&self, from: impl Read + Send + 'static) -> JoinHandle<()> {
        let lines = self.0.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        })
    }
}
