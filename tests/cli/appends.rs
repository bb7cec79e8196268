//! `esker stream append`.

use std::io::Write as _;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Running, Server, address_to_keep, eventually, run, signal, stderr};

#[test]
fn a_hundred_thousand_lines_come_back_byte_for_byte_and_in_order() {
    let server = Server::start();
    let lines: String = (0..100_000)
        .map(|n| format!("{{\"n\":{n},\"pad\":\"{}\"}}\n", "x".repeat(n % 97)))
        .collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(lines.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();

    let printed = server.ok(&["append", "my-basin/lines", path, "--create"]);
    assert!(
        printed.starts_with("appended 100,000 records ("),
        "{printed}"
    );
    assert!(
        printed.contains(" to my-basin/lines: sequence numbers 0 to 99999; "),
        "{printed}"
    );
    assert!(printed.ends_with(" records/s\n"), "{printed}");
    assert!(
        server.ok(&["read", "my-basin/lines"]) == lines,
        "what came back differs"
    );

    // And from standard input, after those lines.
    let summary = server.ok_with(&["append", "my-basin/lines", "--json"], lines.as_bytes());
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["records"], 100_000);
    assert_eq!(summary["bytes"], lines.len() - 100_000);
    assert_eq!(summary["first_seq_num"], 100_000);
    assert_eq!(summary["next_seq_num"], 200_000);
    let again = server.ok(&["read", "my-basin/lines", "--from", "100000"]);
    assert!(again == lines, "what came back the second time differs");
}

#[test]
fn a_line_is_durable_as_soon_as_it_is_typed() {
    let server = Server::start();
    let mut typing = Running::start(server.stream(["append", "my-basin/notes", "--create"]));
    for (number, line) in ["one\n", "two\n"].into_iter().enumerate() {
        typing.write(line);
        let tail = format!("the next sequence number is {}", number + 1);
        eventually("the line is in the stream", || {
            let output = run(server.stream(["check-tail", "my-basin/notes"]), b"");
            String::from_utf8_lossy(&output.stdout).contains(&tail)
        });
    }
    let (code, printed, said) = typing.finish();
    assert_eq!(code, Some(0), "{said}");
    assert!(printed.contains("sequence numbers 0 to 1; "), "{printed}");
}

#[test]
fn a_failed_condition_names_the_value_that_is_in_force() {
    let server = Server::start();
    server.ok_with(&["append", "my-basin/orders", "--create"], b"a\nb\n");

    let append = |condition: &[&'static str]| [&["append", "my-basin/orders"], condition].concat();
    let said = server.fails(1, &append(&["--match-seq-num", "7"]), b"c\n");
    assert!(said.contains("[seq_num_mismatch]"), "{said}");
    assert!(said.contains("has sequence number 2,"), "{said}");
    assert!(said.contains("nothing was appended"), "{said}");

    let said = server.fails(1, &append(&["--fencing-token", "me"]), b"c\n");
    assert!(said.contains("[fencing_token_mismatch]"), "{said}");
    assert!(said.contains("not fenced"), "{said}");

    // Several batches, each with the condition that follows from the previous one.
    let lines = "c\n".repeat(2500);
    let printed = server.ok_with(&append(&["--match-seq-num", "2"]), lines.as_bytes());
    assert!(
        printed.contains("sequence numbers 2 to 2501; "),
        "{printed}"
    );
}

#[test]
fn a_stream_that_is_missing_is_said_before_anything_is_read() {
    let server = Server::start();
    server.ok(&["create", "my-basin"]);
    // Standard input stays open: a command that waits for its end waits for ever.
    let mut append = Running::start(server.stream(["append", "my-basin/orders"]));
    eventually("it ends by itself", || {
        append.child.try_wait().unwrap().is_some()
    });
    let (code, _, said) = append.finish();
    assert_eq!(code, Some(1));
    assert!(said.contains("[stream_not_found]"), "{said}");
}

#[test]
fn a_line_that_is_no_record_ends_the_append_and_is_named() {
    let server = Server::start();
    let mut input = b"first\nsecond\n".to_vec();
    input.extend(vec![b'x'; 1024 * 1024]);
    let said = server.fails(1, &["append", "my-basin/orders", "--create"], &input);
    assert!(
        said.contains("line 3 is longer than a record may be"),
        "{said}"
    );
    assert!(
        said.contains("2 records were appended (sequence numbers 0 to 1)"),
        "{said}"
    );
    assert_eq!(server.ok(&["read", "my-basin/orders"]), "first\nsecond\n");
}

#[test]
fn no_line_at_all_is_no_error() {
    let server = Server::start();
    server.ok(&["create", "my-basin/orders"]);
    assert_eq!(
        server.ok(&["append", "my-basin/orders"]),
        "nothing to append: the input has no line\n"
    );
    let output = run(
        server.stream(["append", "my-basin/orders", "/nowhere"]),
        b"",
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("cannot read /nowhere"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_server_that_dies_leaves_an_account_of_what_was_appended() {
    let mut server = Server::start();
    let mut append = Running::start(server.stream([
        "append",
        "my-basin/orders",
        "--create",
        "--reconnect",
        "0s",
    ]));
    append.write("a\nb\n");
    server.has("my-basin/orders", 2);
    server.kill();
    append.write("c\n");
    let (code, _, said) = append.finish();
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("[unreachable]"), "{said}");
    assert!(
        said.contains("2 records were appended (sequence numbers 0 to 1)"),
        "{said}"
    );
}

#[test]
fn an_interrupted_append_says_how_far_it_came() {
    let server = Server::start();
    let mut append = Running::start(server.stream(["append", "my-basin/orders", "--create"]));
    append.write("a\n");
    server.has("my-basin/orders", 1);
    signal(&append.child, Signal::INT);
    eventually("it ends although its input is open", || {
        append.child.try_wait().unwrap().is_some()
    });
    let (code, _, said) = append.finish();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("[interrupted]"), "{said}");
    assert!(
        said.contains("1 record was appended (sequence number 0)"),
        "{said}"
    );
}

#[test]
fn an_append_goes_on_after_restarts_and_each_line_is_in_the_stream_once() {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data");
    let address = address_to_keep();
    let mut server = Server::start_on(&data, &address);
    // With and without a condition; the second round appends after the first.
    server.ok(&["create", "my-basin/lines"]);
    let mut expected = String::new();
    for condition in [&[][..], &["--match-seq-num", "9000"]] {
        let arguments = [&["append", "my-basin/lines", "--create"], condition].concat();
        let before = expected.lines().count();
        let mut append = Running::start(server.stream(&arguments));
        for round in 0..3 {
            for number in 0..30 {
                // Repeated lines are told apart, too.
                let lines: String = (0..100).map(|n| format!("{}\n", n % 3)).collect();
                append.write(&lines);
                expected.push_str(&lines);
                if (round, number) == (0, 0) {
                    eventually("it has begun", || {
                        let read = server.ok(&["read", "my-basin/lines"]);
                        read.lines().count() > before
                    });
                }
                if number == 15 + 5 * round {
                    server.kill();
                }
            }
            server = Server::start_on(&data, &address);
        }
        let (code, printed, said) = append.finish();
        assert_eq!(code, Some(0), "{said}");
        assert!(printed.contains("appended 9,000 records"), "{printed}");
        assert!(said.contains("; waiting for it]"), "{said}");
        assert!(said.contains("[connected again]"), "{said}");
    }
    assert!(
        server.ok(&["read", "my-basin/lines"]) == expected,
        "what came back differs"
    );
}

#[test]
fn an_append_without_a_line_to_append_needs_no_server_and_ends_with_its_input() {
    let mut server = Server::start();
    let arguments = ["append", "my-basin/orders", "--create", "--reconnect", "1s"];
    let mut append = Running::start(server.stream(arguments));
    append.write("a\n");
    eventually("the line is in the stream", || {
        let output = run(server.stream(["read", "my-basin/orders"]), b"");
        output.stdout == b"a\n"
    });
    // The server answers the appends that it has accepted before it ends.
    server.signal(Signal::TERM);
    server.wait();
    let (code, printed, said) = append.finish();
    assert_eq!(code, Some(0), "{said}");
    assert!(printed.contains("appended 1 record "), "{printed}");
}

#[test]
fn an_append_that_waits_for_a_server_ends_when_it_has_waited_for_long_enough() {
    let mut server = Server::start();
    let arguments = ["append", "my-basin/orders", "--create", "--reconnect", "1s"];
    let mut append = Running::start(server.stream(arguments));
    append.write("a\n");
    server.has("my-basin/orders", 1);
    server.kill();
    append.write("b\n");
    let (code, _, said) = append.finish();
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("1 record was appended (sequence number 0)"),
        "{said}"
    );
}
