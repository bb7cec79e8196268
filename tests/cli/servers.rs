//! The output of `esker server` for people and for programs, and its end when its parent ends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::process::Process;

use crate::support::{Running, SOON, Server, esker, eventually, run, signal, stderr};

#[test]
fn a_person_is_told_what_to_try_and_it_works() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = esker();
    command
        .args([
            "server",
            "--hints",
            "--until-stdin-closes",
            "--listen",
            "127.0.0.1:0",
        ])
        .arg("--data-dir")
        .arg(directory.path().join("data"));
    let mut server = Running::start(command);
    assert!(server.line().contains(" serves http://127.0.0.1:"));
    assert_eq!(server.line(), "");
    assert_eq!(server.line(), "Try it in another terminal:");
    for expected in ["created stream", "appended 1 record", "hello"] {
        let hint = server.line();
        let mut shell = std::process::Command::new("sh");
        let count = if hint.ends_with("--follow") {
            " --count 1"
        } else {
            ""
        };
        shell.args(["-c", &format!("{hint}{count}")]);
        let output = run(shell, b"");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            printed.contains(expected),
            "{hint}: {printed}{}",
            stderr(&output)
        );
    }
    assert_eq!(server.line(), "Ctrl-C stops the server.");
    // This closes its standard input.
    let (code, _, said) = server.finish();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_program_gets_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = esker();
    command
        .args([
            "server",
            "--until-stdin-closes",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
        ])
        .arg(directory.path().join("data"));
    let mut server = Running::start(command);
    assert!(server.line().contains(" serves http://127.0.0.1:"));
    let (code, rest, said) = server.finish();
    assert_eq!((code, rest.as_str()), (Some(0), ""), "{said}");
}

#[test]
fn the_variable_for_clients_is_no_matter_to_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = esker();
    command
        .env("ESKER_SERVER", "http://127.0.0.1:7070")
        .args(["config", "check", "--data-dir"])
        .arg(directory.path());
    let output = run(command, b"");
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_port_that_is_taken_is_said_and_nothing_is_made() {
    let first = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let mut command = esker();
    command
        .args(["server", "--listen", first.address(), "--data-dir"])
        .arg(&data);
    let output = run(command, b"");
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.contains("[listen]") && said.contains("--listen"),
        "{said}"
    );
    std::thread::sleep(Duration::from_millis(20));
    assert!(!data.exists());
}

#[test]
fn a_configuration_can_be_piped_into_head() {
    let mut command = esker();
    command.args(["config", "show"]);
    assert_eq!(Running::start(command).close(), (Some(0), String::new()));
}

/// Starts a server with the given standard error.
fn server_with_stderr(data: &std::path::Path, settings: &[&str], stderr: Stdio) -> (Child, String) {
    let mut child = esker()
        .args(["server", "--partitions", "1", "--listen", "127.0.0.1:0"])
        .args(settings)
        .arg("--data-dir")
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line.split("http://").nth(1).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("the server did not say where it serves: {line:?}")
    });
    let address = address.split(' ').next().unwrap().to_owned();
    (child, address)
}

/// The answer to a GET, as text.
fn get(address: &str, path: &str) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    connection.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

/// Lines of the log that were lost.
fn lost_lines(address: &str) -> u64 {
    let metrics = get(address, "/metrics");
    let line = metrics
        .lines()
        .find(|line| line.starts_with("esker_log_lines_lost_total "));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

fn end(mut child: Child) -> Option<i32> {
    signal(&child, Signal::INT);
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if began.elapsed() > SOON {
            let _ = child.kill();
            panic!("the server did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_server_whose_log_cannot_be_written_serves_counts_what_is_lost_and_stops_gracefully() {
    let directory = tempfile::tempdir().unwrap();
    let full = || {
        Stdio::from(
            std::fs::File::options()
                .write(true)
                .open("/dev/full")
                .unwrap(),
        )
    };
    // A pipe whose reader is gone, as after `2>&1 | tee log` and Ctrl-C.
    let gone = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    for (name, stderr) in [("full", full()), ("gone", gone())] {
        let data = directory.path().join(name);
        let settings = ["--set", "logs.level=debug"];
        let (child, address) = server_with_stderr(&data, &settings, stderr);
        eventually("lost lines are counted", || lost_lines(&address) > 0);
        assert!(get(&address, "/health").ends_with("OK"), "{name}");
        assert_eq!(end(child), Some(0), "{name}");
    }
}

#[test]
fn a_server_whose_log_nobody_reads_serves_and_stops_gracefully() {
    let directory = tempfile::tempdir().unwrap();
    let (_reader, writer) = std::io::pipe().unwrap();
    let data = directory.path().join("data");
    let settings = ["--set", "logs.level=trace"];
    let (child, address) = server_with_stderr(&data, &settings, Stdio::from(writer));
    // First the pipe fills up, then the queue of lines, and then lines are lost.
    eventually("lost lines are counted", || {
        // Every frame of HTTP/2 is several lines.
        let mut connection = TcpStream::connect(&address).unwrap();
        let mut frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        for _ in 0..500 {
            frames.extend_from_slice(b"\0\0\x08\x06\0\0\0\0\0esker-42");
        }
        connection.write_all(&frames).unwrap();
        assert!(get(&address, "/health").ends_with("OK"));
        lost_lines(&address) > 0
    });
    assert_eq!(end(child), Some(0));
}

#[test]
fn what_clients_ask_for_in_vain_does_not_fill_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let stderr = Stdio::from(std::fs::File::create(&log).unwrap());
    let data = directory.path().join("data");
    let (child, address) = server_with_stderr(&data, &[], stderr);
    let began = Instant::now();
    for _ in 0..1000 {
        assert!(get(&address, "/v1/access-tokens").starts_with("HTTP/1.1 403"));
    }
    // At most fifty lines of one place in ten seconds, and a count of the others.
    let intervals = began.elapsed().as_secs() as usize / 10 + 2;
    assert_eq!(end(child), Some(0));
    let lines = std::fs::read_to_string(&log).unwrap();
    let of_clients = lines.lines().filter(|line| line.contains("access-tokens"));
    assert!(of_clients.count() <= 51 * intervals, "{lines}");
    let lines = lines.lines().count();
    assert!(lines <= 51 * intervals + 100, "{lines} lines");
}

#[test]
fn a_command_ends_as_documented_wherever_its_output_goes() {
    let server = Server::start();
    server.ok(&["create", "my-basin/orders"]);
    let nowhere = "http://127.0.0.1:1";
    let missing = tempfile::tempdir().unwrap();
    let missing = missing.path().join("nothing-here").display().to_string();
    let url = server.url.as_str();
    // Commands that print to standard error, and their exit codes.
    let commands: &[(&[&str], i32)] = &[
        (&["no-such-command"], 2),
        (&["stream", "ls", "--server", nowhere], 3),
        (&["stream", "ls", "empty-basin", "--server", url], 1),
        (&["stream", "read", "my-basin/none", "--server", url], 1),
        (&["stream", "append", "my-basin/orders", "--server", url], 0),
        (&["state", "get", "agent", "none", "--server", url], 1),
        (&["state", "keys", "agent", "--server", url], 0),
        (&["status", "--server", nowhere], 3),
        (&["snapshot", "list", "--server", nowhere], 3),
        (&["snapshot", "list", "--repository", &missing], 1),
        (&["config", "check", "--set", "listen=0.0.0.0:1"], 2),
        (&["config", "check"], 0),
        (&["--version"], 0),
    ];
    for (arguments, expected) in commands {
        let run_with = |out: Stdio, err: Stdio| {
            let mut command = esker();
            command
                .args(*arguments)
                .stdin(Stdio::null())
                .stdout(out)
                .stderr(err);
            command.status().unwrap().code()
        };
        let usual = run_with(Stdio::null(), Stdio::null());
        let full = || {
            Stdio::from(
                std::fs::File::options()
                    .write(true)
                    .open("/dev/full")
                    .unwrap(),
            )
        };
        let gone = || {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            Stdio::from(writer)
        };
        assert_eq!(usual, Some(*expected), "{arguments:?}");
        assert_eq!(
            run_with(Stdio::null(), full()),
            usual,
            "{arguments:?}, full stderr"
        );
        assert_eq!(
            run_with(Stdio::null(), gone()),
            usual,
            "{arguments:?}, closed stderr"
        );
        assert_eq!(
            run_with(gone(), gone()),
            usual,
            "{arguments:?}, both closed"
        );
        let with_full_output = run_with(full(), full());
        let failed = with_full_output == Some(1);
        assert!(
            failed || with_full_output == usual,
            "{arguments:?}: {with_full_output:?}"
        );
    }
    // The requested output could not be printed.
    for arguments in [&["--version"][..], &["--help"], &["config", "show"]] {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let status = esker()
            .args(arguments)
            .stdout(full)
            .stderr(Stdio::null())
            .status();
        assert_eq!(status.unwrap().code(), Some(1), "{arguments:?}");
    }
}

#[test]
fn what_a_server_keeps_is_nobody_elses() {
    use std::os::unix::fs::PermissionsExt as _;
    fn open_to_others(path: &std::path::Path, found: &mut Vec<String>) {
        let mode = path.symlink_metadata().unwrap().permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            found.push(format!("{} {mode:o}", path.display()));
        }
        if path.is_dir() {
            for entry in path.read_dir().unwrap() {
                open_to_others(&entry.unwrap().path(), found);
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let server = Server::start_on(&data, "127.0.0.1:0");
    server.ok(&["create", "my-basin/orders"]);
    server.ok_with(&["append", "my-basin/orders"], b"hello\n");
    let mut snapshot = esker();
    snapshot.args(["snapshot", "create", "--server", &server.url]);
    assert!(run(snapshot, b"").status.success());
    let mut put = esker();
    put.args([
        "state",
        "put",
        "agent",
        "key",
        "{}",
        "--server",
        &server.url,
    ]);
    assert!(run(put, b"").status.success());
    let mut found = Vec::new();
    open_to_others(&data, &mut found);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_variable_that_is_set_to_nothing_says_nothing() {
    let server = Server::start();
    for arguments in [
        &["stream", "ls"][..],
        &["state", "keys", "agent"],
        &["status"],
    ] {
        let usual = {
            let mut command = esker();
            command.args(arguments).args(["--server", &server.url]);
            run(command, b"").status.code()
        };
        assert_ne!(usual, Some(2), "{arguments:?}");
        let mut command = esker();
        command.env("ESKER_SERVER", "").args(arguments);
        let output = run(command, b"");
        // There may or may not be a server at the default address, which this command contacts.
        assert_ne!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn the_second_name_of_a_section_is_understood_in_the_environment() {
    let mut command = esker();
    command
        .env(
            "ESKER_WORKER__SNAPSHOTS__SNAPSHOT_INTERVAL_NUM_RECORDS",
            "777",
        )
        .args(["config", "show"]);
    let output = run(command, b"");
    assert!(output.status.success(), "{}", stderr(&output));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        shown.contains("snapshot-interval-num-records = 777"),
        "{shown}"
    );

    let mut twice = esker();
    twice
        .env("ESKER_WORKER__SNAPSHOTS__NUM_RETAINED", "2")
        .env("ESKER_SNAPSHOTS__NUM_RETAINED", "3")
        .args(["config", "check"]);
    let output = run(twice, b"");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("set twice"), "{}", stderr(&output));
}

#[test]
fn a_destination_that_the_server_refuses_is_not_valid_for_config_check_either() {
    let keys = "snapshots.aws-access-key-id=AKIA";
    let endpoint = "snapshots.aws-endpoint-url=http://127.0.0.1:1";
    for settings in [
        &["snapshots.destination=https://bucket.s3.amazonaws.com/prefix"][..],
        &["snapshots.destination=s3://"],
        &["snapshots.destination=s3://key:secret@bucket/prefix"],
        &["snapshots.destination=gs://bucket/prefix"],
        &["snapshots.destination=s3://bucket/prefix", keys],
        &["snapshots.destination=s3://bucket/prefix", endpoint],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data").display().to_string();
        let ends = |arguments: &[&str]| {
            let mut command = esker();
            command.args(arguments).args(["--data-dir", &data]);
            settings.iter().for_each(|setting| {
                command.args(["--set", setting]);
            });
            let output = run(command, b"");
            let said = stderr(&output);
            let code = said.lines().find_map(|line| {
                let (code, _) = line.strip_prefix("error [")?.split_once(']')?;
                Some(code.to_owned())
            });
            (output.status.success(), code, said)
        };
        let (valid, code, said) = ends(&["config", "check"]);
        assert!(!valid, "{settings:?}: {said}");
        assert!(code.is_some(), "{settings:?}: {said}");
        assert!(
            !std::path::Path::new(&data).exists(),
            "{settings:?}: a look changes nothing"
        );
        let (serves, refusal, said) = ends(&["server", "--listen", "127.0.0.1:0"]);
        assert!(!serves, "{settings:?}: {said}");
        assert_eq!(code, refusal, "{settings:?}: {said}");
    }
}

/// The next reports to a service manager, until one contains this text. Returns them all.
fn reports_until(manager: &UnixDatagram, wanted: &str) -> Vec<String> {
    let mut reports = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = manager.recv(&mut buffer);
        let length = length.unwrap_or_else(|e| panic!("no {wanted} after {reports:?}: {e}"));
        reports.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        if reports.last().is_some_and(|report| report.contains(wanted)) {
            return reports;
        }
    }
}

#[test]
fn a_service_manager_gets_readiness_pings_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let mut command = esker();
    command
        .args(["server", "--until-stdin-closes", "--partitions", "2"])
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path().join("data"))
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "300000")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::piped());
    let mut process = Process::spawn(&mut command);
    let starting = reports_until(&manager, "READY=1");
    assert!(starting[0].contains("STATUS=starting"), "{starting:?}");
    let url = process.wait_to_serve().unwrap();
    let ready = starting.last().unwrap();
    let address = url.strip_prefix("http://").unwrap();
    assert!(
        ready.contains(&format!("STATUS=serving at {address}")),
        "{ready}"
    );
    for _ in 0..3 {
        reports_until(&manager, "WATCHDOG=1");
    }
    process.signal(Signal::TERM);
    let ending = reports_until(&manager, "STOPPING=1");
    assert!(
        ending.iter().all(|report| !report.contains("READY=1")),
        "{ending:?}"
    );
    process.wait();
}
