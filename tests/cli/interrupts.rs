//! Ctrl-C and requests to terminate: the first ends a command in order and is reported, the second ends it at
//! once; also while the server is stopped, and where standard output is not read.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Running, Server, esker, eventually, signal, stderr};

/// Commands that wait for a server that is stopped, and how a signal ends them.
const WAITING: &[(&str, Option<i32>)] = &[
    ("status", Some(1)),
    ("status --watch", Some(0)),
    ("stream ls", Some(1)),
    ("stream create my-basin/new", Some(1)),
    ("stream append my-basin/lines", Some(1)),
    ("stream append my-basin/lines --create", Some(1)),
    ("stream read my-basin/lines", Some(1)),
    ("stream read my-basin/lines --follow", Some(0)),
    ("stream info my-basin/lines", Some(1)),
    ("stream reconfigure my-basin/lines --retention 1d", Some(1)),
    ("stream delete my-basin/lines --yes", Some(1)),
    ("stream tail my-basin/lines", Some(1)),
    ("stream tail my-basin/lines -f", Some(0)),
    ("stream check-tail my-basin/lines", Some(1)),
    ("stream fence my-basin/lines token", Some(1)),
    ("stream trim my-basin/lines 1", Some(1)),
    ("stream adopt my-basin 1", Some(1)),
    ("follow my-basin/lines --by /id --once", Some(1)),
    ("follow my-basin/lines --by /id", Some(0)),
    ("follow my-basin/lines --inspect", Some(1)),
    ("state get agent-1 memory", Some(1)),
    ("state put agent-1 memory {}", Some(1)),
    ("state put agent-1 memory -", Some(1)),
    ("state delete agent-1 memory", Some(1)),
    ("state keys agent-1", Some(1)),
    ("state agents", Some(1)),
    ("state namespaces", Some(1)),
    ("state history agent-1 memory", Some(1)),
    ("state replay --all", Some(1)),
    ("state replay --all --follow", Some(0)),
    ("state snapshot", Some(1)),
    ("state export", Some(1)),
    ("state import -", Some(1)),
    ("state verify", Some(1)),
    ("snapshot create", Some(1)),
    ("snapshot list", Some(1)),
    ("snapshot verify --restore", Some(1)),
    ("snapshot prune", Some(1)),
    ("token issue worker --ops read", Some(1)),
    ("token list", Some(1)),
    ("token revoke worker", Some(1)),
    ("token confirm", Some(1)),
];

fn command(server: &Server, arguments: &str) -> Command {
    let mut command = esker();
    command
        .args(arguments.split(' '))
        .env("ESKER_SERVER", &server.url);
    command
}

/// Waits until the command takes signals.
fn listening(child: &Child) {
    let status = format!("/proc/{}/status", child.id());
    eventually("it takes signals", || {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        // Ctrl-C is signal 2, a request to terminate 15.
        caught.is_some_and(|mask| mask & (1 << 1) != 0 && mask & (1 << 14) != 0)
    });
}

#[test]
fn one_signal_ends_every_command_also_while_the_server_is_stopped() {
    let server = Server::start();
    server.ok_with(&["append", "my-basin/lines", "--create"], b"{\"id\":1}\n");
    server.signal(Signal::STOP);
    for end in [Signal::INT, Signal::TERM] {
        // The signal is sent as soon as the command listens for it, because the command does not wait for the
        // server for ever.
        let running: Vec<_> = WAITING
            .iter()
            .map(|(arguments, code)| {
                let running = Running::start(command(&server, arguments));
                listening(&running.child);
                signal(&running.child, end);
                (arguments, code, running)
            })
            .collect();
        for (arguments, code, mut running) in running {
            eventually(arguments, || running.child.try_wait().unwrap().is_some());
            let (found, _, said) = running.finish();
            assert_eq!(found, *code, "{arguments}: {said}");
            if *code == Some(1) {
                let wanted = "error [interrupted]: interrupted";
                assert!(said.contains(wanted), "{arguments}: {said}");
            }
        }
    }
    server.signal(Signal::CONT);
}

#[test]
fn a_command_that_goes_on_until_it_is_interrupted_ends_well_also_while_it_connects() {
    // A connection to a listener whose queue is full is neither established nor refused.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(one) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        queued.push(one);
    }
    let following = WAITING.iter().filter(|(_, code)| *code == Some(0));
    for (arguments, _) in following {
        // A command that gets no processor time gives the connection up before the signal arrives.
        let ends = (0..5).map(|_| {
            let mut command = esker();
            command.args(arguments.split(' '));
            command.env("ESKER_SERVER", format!("http://{address}"));
            let running = Running::start(command);
            listening(&running.child);
            signal(&running.child, Signal::INT);
            running.finish()
        });
        let given_up = |(_, _, said): &(_, _, String)| said.contains("error [unreachable]");
        let (code, _, said) = ends.into_iter().find(|end| !given_up(end)).unwrap();
        assert_eq!(code, Some(0), "{arguments}: {said}");
        assert_eq!(said, "", "{arguments}");
    }
}

#[test]
fn an_append_waits_for_acknowledgements_and_a_second_signal_ends_it_with_an_account() {
    let server = Server::start();
    for (stream, json) in [("my-basin/text", false), ("my-basin/json", true)] {
        let mut arguments = vec!["append", stream, "--create"];
        arguments.extend(json.then_some("--json"));
        let mut append = Running::start(server.stream(&arguments));
        append.write("first\n");
        server.has(stream, 1);
        server.signal(Signal::STOP);
        // More than may be under way, so the command also waits for room.
        let line = "x".repeat(9_999) + "\n";
        let mut stdin = append.child.stdin.take().unwrap();
        let writing = std::thread::spawn(move || {
            // The command ends before it has read everything.
            while stdin.write_all(line.as_bytes()).is_ok() {}
        });
        let io = format!("/proc/{}/io", append.child.id());
        eventually("it has read as much as may be under way", || {
            let io = fs::read_to_string(&io).unwrap();
            let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
            read.unwrap().parse::<u64>().unwrap() > 8_500_000
        });
        signal(&append.child, Signal::INT);
        let mut lines = BufReader::new(append.child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        while !said.contains("once more ends at once") {
            said += &lines.next().unwrap().unwrap();
        }
        assert!(append.child.try_wait().unwrap().is_none(), "it waits");
        signal(&append.child, Signal::INT);
        eventually("it ends", || append.child.try_wait().unwrap().is_some());
        server.signal(Signal::CONT);
        writing.join().unwrap();
        said.extend(lines.map(Result::unwrap));
        let (code, printed, _) = append.finish();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("error [interrupted]"), "{said}");
        assert!(said.contains("1 record was appended"), "{said}");
        assert!(said.contains("may or may not have been"), "{said}");
        if json {
            let document: Value = serde_json::from_str(&printed).unwrap();
            assert_eq!(document["error"]["code"], "interrupted");
            assert_eq!(document["records"], 1);
            assert!(document["records_in_doubt"].as_u64().unwrap() > 0);
        }
    }
}

#[test]
fn a_command_whose_output_nobody_takes_ends_all_the_same() {
    let server = Server::start();
    let lines = "x".repeat(1000) + "\n";
    let lines = lines.repeat(2_000);
    server.ok_with(&["append", "my-basin/lines", "--create"], lines.as_bytes());
    for arguments in [
        "stream read my-basin/lines",
        "stream read my-basin/lines --json",
    ] {
        // The output is larger than the buffer of a pipe.
        let mut reading = command(&server, arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        listening(&reading);
        let wchan = format!("/proc/{}/wchan", reading.id());
        eventually("it waits for its reader", || {
            let wait = fs::read_to_string(&wchan).unwrap_or_default();
            wait.contains("pipe_write") || wait.contains("pipe_wait") || {
                // Not every system shows where a process waits.
                std::thread::sleep(Duration::from_millis(500));
                true
            }
        });
        signal(&reading, Signal::INT);
        eventually("it ends", || reading.try_wait().unwrap().is_some());
        let output = reading.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments}");
        let said = stderr(&output);
        assert!(said.contains("error [interrupted]"), "{arguments}: {said}");
    }
}
