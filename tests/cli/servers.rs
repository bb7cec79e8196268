//! What `esker server` says to a person and to a program, and how it ends with its parent.

use std::time::Duration;

use crate::support::{Running, Server, esker, run, stderr};

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
    // Its standard input closes here.
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
