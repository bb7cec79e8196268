//! `esker cluster try`: what it prints works, and its nodes end with it.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::process::Signal;
use testkit::process::without_configuration;

use crate::support::{Running, esker, eventually, processes_with, run, signal, stderr, stdout};

/// Below the ports that other tests use.
const FIRST_PORT: u16 = 2000;
/// The ports of a trial, and of one beside it.
const PORTS: u16 = 200;
const TRIALS: u16 = 35;
/// The last line of the hints.
const LAST_HINT: &str = "Ctrl-C stops ";

/// The first of ports of which nothing listens on those that a trial of three nodes needs.
fn free_base() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let begin = std::process::id() % u32::from(TRIALS);
    for _ in 0..TRIALS {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        let at = (begin + u32::from(tried)) % u32::from(TRIALS);
        let base = FIRST_PORT + PORTS * u16::try_from(at).unwrap();
        let mut ports = (base..base + 3).chain(base + 100..base + 103);
        if ports.all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return base;
        }
    }
    panic!("there are no free ports");
}

/// A trial that runs. Dropping it kills it, and its nodes end with it.
struct Trial {
    running: Option<Running>,
    /// What it printed until its cluster had formed.
    printed: Vec<String>,
    base: u16,
}

impl Trial {
    /// Starts one whose scratch directories are made in `scratch`, and waits until its cluster has formed.
    fn start(scratch: &Path, base: u16, more: &[&str]) -> Trial {
        let mut running = Running::start(command(scratch, base, more));
        let mut printed = Vec::new();
        while !printed
            .last()
            .is_some_and(|line: &String| line.starts_with(LAST_HINT))
        {
            if running.child.try_wait().unwrap().is_some() {
                let (code, rest, said) = running.finish();
                panic!("it ended with {code:?}: {printed:?} {rest}\n{said}");
            }
            printed.push(running.line());
        }
        Trial {
            running: Some(running),
            printed,
            base,
        }
    }

    fn running(&mut self) -> &mut Running {
        self.running.as_mut().unwrap()
    }

    /// The address for clients of a node, from 1 on.
    fn url(&self, node: u16) -> String {
        format!("http://127.0.0.1:{}", self.base + node - 1)
    }

    /// The process of a node, as it is printed.
    fn pid(&self, node: u16) -> &str {
        let line = format!("n{node}  {}  process ", self.url(node));
        let mut pids = self.printed.iter().filter_map(|it| it.strip_prefix(&line));
        pids.next()
            .unwrap_or_else(|| panic!("no {line}: {:?}", self.printed))
    }

    /// The commands that it prints: those to try, and at last the one that brings a node back.
    fn commands(&self) -> Vec<String> {
        let hints = self
            .printed
            .iter()
            .skip_while(|line| !line.starts_with("Try it"));
        let commands = hints.filter_map(|line| line.strip_prefix("  "));
        commands.map(str::to_owned).collect()
    }

    /// Presses Ctrl-C. Returns what it wrote to standard error.
    fn interrupt(mut self) -> String {
        let running = self.running.take().unwrap();
        signal(&running.child, Signal::INT);
        let (code, rest, said) = running.finish();
        assert_eq!(code, Some(0), "{rest}{said}");
        said
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

fn command(scratch: &Path, base: u16, more: &[&str]) -> Command {
    let mut command = esker();
    let base = base.to_string();
    command
        .args(["cluster", "try", "--base-port", &base])
        .args(more)
        .env("TMPDIR", scratch)
        // It would break the nodes if it applied to them.
        .env("ESKER_LISTEN", "not an address");
    command
}

/// Runs a line as it is printed.
fn shell(line: &str) -> Output {
    let mut shell = without_configuration(Command::new("sh"));
    shell.args(["-c", line]);
    run(shell, b"")
}

#[track_caller]
fn ok(line: &str) -> String {
    let output = shell(line);
    assert!(output.status.success(), "{line}: {}", stderr(&output));
    stdout(&output)
}

/// The records of the stream of the hints, by way of a node, once it has as many.
fn eventually_has(url: &str, records: &[&str]) {
    let expected: String = records.iter().map(|it| format!("{it}\n")).collect();
    eventually("the node has the records", || {
        let mut read = esker();
        read.args(["stream", "read", "my-basin/orders", "--server", url]);
        stdout(&run(read, b"")) == expected
    });
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}

/// As an operator does it who follows what is printed: try the commands, kill a node, bring it back, and end all.
#[test]
fn each_printed_command_of_a_trial_works_and_a_node_that_is_killed_is_brought_back_by_one() {
    let scratch = tempfile::tempdir().unwrap();
    let in_scratch = scratch.path().join("esker-cluster-");
    let in_scratch = in_scratch.to_str().unwrap();
    let mut trial = Trial::start(scratch.path(), free_base(), &[]);
    let shown = trial.printed.join("\n");
    for column in ["node", "leads", "partition", "leader", "replicas"] {
        assert!(shown.contains(column), "who leads what is printed: {shown}");
    }
    let is_led =
        |line: &&String| line.contains(" leader") && line.matches(" follower").count() == 2;
    assert!(trial.printed.iter().any(|line| is_led(&line)), "{shown}");
    for node in 1..=3 {
        let process = format!("/proc/{}", trial.pid(node));
        let nodes = processes_with(in_scratch);
        assert!(nodes.contains(&process.into()), "{shown}\n{nodes:?}");
    }

    let mut commands = trial.commands();
    let back = commands.pop().unwrap();
    let [create, append, kill, status, again] = &commands[..] else {
        panic!("other commands than this test knows: {commands:?}");
    };
    ok(create);
    ok(append);
    assert_eq!(kill, &format!("kill -9 {}", trial.pid(3)));
    ok(kill);
    let ended = trial.running().line();
    assert!(ended.starts_with("node n3 (process "), "{ended}");
    assert!(ended.contains("has ended: signal: 9"), "{ended}");
    assert_eq!(trial.running().line().trim_start(), back);
    assert!(ok(status).contains("n3"));
    ok(again);

    let mut shell = without_configuration(Command::new("sh"));
    shell.args(["-c", &format!("exec {back}")]);
    let brought_back = testkit::process::Process::spawn(&mut shell);
    eventually("the node serves again", || brought_back.url().is_some());
    eventually_has(&trial.url(3), &["hello", "again"]);
    // Those that are left are no majority without it.
    ok(&format!("kill -9 {}", trial.pid(2)));
    eventually("an append is taken", || {
        let line = again.replace(&trial.url(1), &trial.url(3));
        shell_succeeds(&line)
    });

    let said = trial.interrupt();
    assert!(
        said.contains("was started by hand and still runs"),
        "{said}"
    );
    let left = processes_with(in_scratch);
    let by_hand = format!("/proc/{}", brought_back.id());
    assert_eq!(left, [Path::new(&by_hand)], "its own nodes have ended");
    assert!(!is_empty(scratch.path()), "the data of the node is kept");
}

fn shell_succeeds(line: &str) -> bool {
    shell(line).status.success()
}

#[test]
fn a_trial_with_a_directory_goes_on_with_what_is_there_and_takes_its_nodes_with_it_if_it_is_killed()
{
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("trial of three's");
    let in_dir = dir.to_str().unwrap();
    let base = free_base();
    let more = ["--dir", in_dir];
    let trial = Trial::start(scratch.path(), base, &more);
    let commands = trial.commands();
    ok(&commands[0]);
    ok(&commands[1]);
    // Its ports are taken now, whichever directory another one would use.
    let second = run(command(scratch.path(), base, &more), b"");
    assert_eq!(second.status.code(), Some(2), "{}", stderr(&second));
    let said = trial.interrupt();
    assert!(!said.contains("by hand"), "{said}");
    assert!(processes_with(in_dir).is_empty(), "its nodes have ended");

    let mut trial = Trial::start(scratch.path(), base, &more);
    eventually_has(&trial.url(2), &["hello"]);
    let nodes = || processes_with(&format!("{in_dir}/n"));
    assert_eq!(nodes().len(), 3);
    trial.running().child.kill().unwrap();
    eventually("its nodes end, too", || nodes().is_empty());
}

#[test]
fn a_trial_leaves_no_scratch_directory() {
    let scratch = tempfile::tempdir().unwrap();
    let trial = Trial::start(scratch.path(), free_base(), &["--nodes", "1"]);
    assert!(!is_empty(scratch.path()));
    trial.interrupt();
    assert!(is_empty(scratch.path()), "it is removed");
}

#[test]
fn a_trial_whose_ports_are_taken_is_refused_before_anything_is_started() {
    let scratch = tempfile::tempdir().unwrap();
    let base = free_base();
    let dir = scratch.path().join("trial");
    for port in [base + 2, base + 101] {
        let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let refused = run(
            command(scratch.path(), base, &["--dir", dir.to_str().unwrap()]),
            b"",
        );
        let said = stderr(&refused);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("error [listen]"), "{said}");
        assert!(said.contains(&format!("127.0.0.1:{port}")), "{said}");
        assert!(said.contains("--base-port"), "{said}");
        assert!(is_empty(scratch.path()), "nothing was made");
        drop(taken);
    }
}
