//! `esker follow` as people and programs use it.
//!
//! | module | what it shows |
//! |---|---|
//! | [`output`] | the output of one run |
//! | [`snapshots`] | snapshots that runs write, restore and pass over |
//! | [`pipes`] | runs that continue until they are interrupted, and readers of their output |
//! | [`encryption`] | streams whose records are encrypted |
//! | [`errors`] | refusals and their messages |
//! | [`inspect`] | `--inspect` |

mod encryption;
mod errors;
mod inspect;
mod output;
mod pipes;
mod snapshots;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::place::Place;

/// `esker follow` of the place's stream, with nothing from the environment.
fn follow(place: &Place, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("ESKER_") || name.starts_with("S2_") {
            command.env_remove(name);
        }
    }
    command
        .arg("follow")
        .arg(format!("s2://{}/orders", place.basin()))
        .args(arguments)
        .stdin(Stdio::null());
    if !arguments.contains(&"--server") {
        command.args(["--server", place.url()]);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs `esker follow`, which has to succeed.
fn ok(place: &Place, arguments: &[&str]) -> Output {
    let output = follow(place, arguments).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    output
}

fn json_of(place: &Place, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    let output = ok(place, &arguments);
    // On a busy machine, it says what it waits for.
    let is_remark = |line: &&str| line.starts_with("A snapshot that is being taken");
    let said = text(&output.stderr);
    let said: Vec<_> = said.lines().filter(|line| !is_remark(line)).collect();
    assert!(said.is_empty(), "{arguments:?}: {said:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs `esker follow`, which has to fail with this exit code. Returns its standard error.
fn fails(place: &Place, code: i32, arguments: &[&str]) -> String {
    let output = follow(place, arguments).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

/// A run that continues until it is interrupted.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn start(mut command: Command) -> Running {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    fn json(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }

    /// Interrupts it. Returns its exit code, the rest of its standard output, and its standard error.
    fn interrupt(mut self) -> (Option<i32>, String, String) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), rest, text(&output.stderr))
    }
}
