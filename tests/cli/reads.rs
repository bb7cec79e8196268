//! `esker stream read`.

use std::net::TcpListener;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Running, Server, address_to_keep, eventually, run, signal, stderr, stdout};

fn objects(printed: &str) -> Vec<Value> {
    printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_read_begins_and_ends_where_it_is_told() {
    let server = Server::start();
    server.ok_with(&["append", "my-basin/orders", "--create"], b"a\nb\nc\nd\n");
    let read = |arguments: &[&str]| server.ok(&[&["read", "my-basin/orders"], arguments].concat());
    assert_eq!(read(&[]), "a\nb\nc\nd\n");
    assert_eq!(read(&["--from", "2"]), "c\nd\n");
    assert_eq!(
        read(&["--from", "4"]),
        "",
        "the tail is no error, there is nothing yet"
    );
    assert_eq!(read(&["--last", "1"]), "d\n");
    assert_eq!(read(&["--last", "100"]), "a\nb\nc\nd\n");
    assert_eq!(read(&["--count", "2"]), "a\nb\n");
    assert_eq!(read(&["--since", "1h"]), "a\nb\nc\nd\n");
    assert_eq!(read(&["--since", "2100-01-01"]), "");
    assert_eq!(
        read(&["--since", "2001-01-01T00:00:00Z", "--count", "1"]),
        "a\n"
    );

    let said = server.fails(1, &["read", "my-basin/orders", "--from", "5"], b"");
    assert!(
        said.contains("[beyond_tail]") && said.contains("sequence number 4"),
        "{said}"
    );
}

#[test]
fn a_read_remarks_where_sequence_numbers_jump() {
    let server = Server::start();
    server.ok_with(&["append", "my-basin/orders", "--create"], b"a\nb\nc\nd\n");
    server.ok(&["trim", "my-basin/orders", "2"]);
    eventually("it is trimmed", || {
        server.ok(&["read", "my-basin/orders"]).starts_with("c\n")
    });
    let read = |arguments: &[&str]| {
        let all = [&["read", "my-basin/orders"], arguments].concat();
        let output = run(server.stream(&all), b"");
        assert!(output.status.success(), "{}", stderr(&output));
        (stdout(&output), stderr(&output))
    };
    let remark = |numbers: &str| format!("[{numbers} not there: trimmed, ");
    let (printed, remarks) = read(&["--from", "0", "--count", "1"]);
    assert_eq!(printed, "c\n");
    assert!(remarks.contains(&remark("0 to 1 are")), "{remarks}");
    let (_, remarks) = read(&["--from", "1", "--count", "1"]);
    assert!(remarks.contains(&remark("1 is")), "{remarks}");
    // One who asks for what is there gets no remark, nor does one who gets the numbers anyway.
    for arguments in [&[][..], &["--from", "2"], &["--from", "0", "--json"]] {
        let (_, remarks) = read(arguments);
        assert!(!remarks.contains("not there"), "{arguments:?}: {remarks}");
    }
}

#[test]
fn a_read_without_follow_ends_although_others_go_on_appending() {
    let server = Server::start();
    let mut append = Running::start(server.stream(["append", "my-basin/busy", "--create"]));
    append.write("0\n");
    eventually("the stream is there", || {
        run(server.stream(["read", "my-basin/busy"]), b"").stdout == b"0\n"
    });
    // Ten readers, while lines are appended.
    for round in 1..=10 {
        append.write(&format!("{round}\n").repeat(50));
        let read = server.ok(&["read", "my-basin/busy"]);
        assert!(read.starts_with("0\n"), "round {round}: {read:?}");
    }
    let (code, _, said) = append.finish();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_body_that_is_not_utf8_comes_back_as_it_is_and_in_json_as_base64() {
    let server = Server::start();
    let body: Vec<u8> = (0..=255).filter(|&b| b != b'\n').collect();
    server.ok_with(&["append", "my-basin/bytes", "--create"], &body);
    let output = run(server.stream(["read", "my-basin/bytes"]), b"");
    assert_eq!(output.stdout, [&body[..], b"\n"].concat());

    server.ok_with(&["append", "my-basin/bytes"], "caf\u{e9}\n".as_bytes());
    let printed = objects(&server.ok(&["read", "my-basin/bytes", "--format", "json"]));
    let base64 = printed[0]["body_base64"].as_str().unwrap();
    assert!(base64.starts_with("AAECAwQFBgcICQsM"), "{base64}");
    assert!(printed[0].get("body").is_none());
    assert_eq!(printed[1]["body"], "caf\u{e9}");
    assert_eq!(printed[1]["seq_num"], 1);
    assert_eq!(printed[1]["headers"], Value::Array(Vec::new()));
    assert!(printed[1]["timestamp"].as_u64().unwrap() > 1_600_000_000_000);
}

#[test]
fn a_command_is_no_line_of_a_pipe_but_a_remark_and_an_object_of_json() {
    let server = Server::start();
    server.ok_with(&["append", "my-basin/orders", "--create"], b"a\nb\n");
    server.ok(&["trim", "my-basin/orders", "1"]);
    let output = run(server.stream(["read", "my-basin/orders"]), b"");
    assert_eq!(stdout(&output), "b\n");
    assert_eq!(stderr(&output), "[trim to 1]\n");
    let printed = objects(&server.ok(&["read", "my-basin/orders", "--json"]));
    assert_eq!(printed[1]["command"]["trim"], 1);
    assert!(printed[1].get("body").is_none());
}

#[test]
fn a_reader_whose_output_is_closed_ends_quietly() {
    let server = Server::start();
    let lines = "a line that is long enough to fill the pipe\n".repeat(100_000);
    server.ok_with(&["append", "my-basin/lines", "--create"], lines.as_bytes());
    for format in ["text", "json"] {
        let command = server.stream(["read", "my-basin/lines", "--format", format]);
        let mut read = Running::start(command);
        assert!(read.line().contains("long enough"));
        assert_eq!(read.close(), (Some(0), String::new()), "{format}");
    }

    // The same with a real pipe.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "\"$ESKER\" stream read my-basin/lines | head -n 2"])
        .env("ESKER", env!("CARGO_BIN_EXE_esker"))
        .env("ESKER_SERVER", &server.url);
    let output = run(shell, b"");
    assert_eq!(stdout(&output).lines().count(), 2);
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_follower_whose_output_is_closed_ends_although_nothing_comes() {
    let server = Server::start();
    server.ok_with(&["append", "my-basin/orders", "--create"], b"a\n");
    for format in ["text", "json"] {
        let command = server.stream(["read", "my-basin/orders", "--follow", "--format", format]);
        let mut follow = Running::start(command);
        assert!(follow.line().contains('a'));
        assert_eq!(follow.close(), (Some(0), String::new()), "{format}");
    }
}

#[test]
fn a_follower_prints_what_comes_until_ctrl_c() {
    let server = Server::start();
    server.ok_with(&["append", "my-basin/orders", "--create"], b"a\nb\n");
    let command = server.stream(["read", "my-basin/orders", "--last", "1", "--follow"]);
    let mut follow = Running::start(command);
    assert_eq!(follow.line(), "b");
    server.ok_with(&["append", "my-basin/orders"], b"c\n");
    assert_eq!(follow.line(), "c");
    server.ok(&["trim", "my-basin/orders", "2"]);
    server.ok_with(&["append", "my-basin/orders"], b"d\n");
    assert_eq!(follow.line(), "d");
    signal(&follow.child, Signal::INT);
    let (code, rest, said) = follow.finish();
    assert_eq!((code, rest.as_str()), (Some(0), ""));
    assert_eq!(said, "[trim to 2]\n");
}

#[test]
fn a_follower_that_wants_so_many_ends_with_the_last_of_them() {
    let server = Server::start();
    server.ok_with(&["append", "my-basin/orders", "--create"], b"a\n");
    let command = server.stream(["read", "my-basin/orders", "--count", "3", "--follow"]);
    let mut follow = Running::start(command);
    assert_eq!(follow.line(), "a");
    server.ok_with(&["append", "my-basin/orders"], b"b\nc\nd\n");
    let (code, rest, said) = follow.finish();
    assert_eq!((code, rest.as_str()), (Some(0), "b\nc\n"), "{said}");
}

#[test]
fn a_follower_goes_on_where_it_was_when_the_server_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let mut server = Server::start_on(&data, &address_to_keep());
    server.ok_with(&["append", "my-basin/orders", "--create"], b"a\nb\n");
    let mut follow = Running::start(server.stream(["read", "my-basin/orders", "--follow"]));
    assert_eq!((follow.line(), follow.line()), ("a".into(), "b".into()));

    server.kill();
    // If another process took the port meanwhile, this waits until it is free.
    eventually("the port is free", || {
        TcpListener::bind(server.address()).is_ok()
    });
    let server = Server::start_on(&data, server.address());
    server.ok_with(&["append", "my-basin/orders"], b"c\n");
    assert_eq!(
        follow.line(),
        "c",
        "neither again from the start, nor with a gap"
    );
    signal(&follow.child, Signal::INT);
    let (code, rest, _) = follow.finish();
    assert_eq!((code, rest.as_str()), (Some(0), ""));
}
