//! `esker stream ls`, `create`, `tail`, `trim`, and what all of them say when something is missing.

use std::time::Instant;

use rustix::process::Signal;
use s2_sdk::S2;
use s2_sdk::types::{CreateStreamInput, S2Config, S2Endpoints};
use serde_json::{Value, json};

use crate::support::{SOON, Server, esker, run, stderr};

fn value(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
}

#[test]
fn a_stream_is_created_with_its_basin_and_both_are_listed() {
    let server = Server::start();
    assert_eq!(
        server.ok(&["create", "my-basin/orders"]),
        "created stream my-basin/orders, and its basin\n"
    );
    assert_eq!(
        server.ok(&["create", "s2://my-basin/logs/app"]),
        "created stream my-basin/logs/app\n"
    );
    assert_eq!(
        server.ok(&["create", "other-basin"]),
        "created basin other-basin\n"
    );

    let names = |arguments: &[&str]| -> Vec<String> {
        let listed = server.ok(arguments);
        // A date and a time stand before each.
        let name = |line: &str| line.split_whitespace().nth(2).unwrap().to_owned();
        listed.lines().map(name).collect()
    };
    assert_eq!(names(&["ls"]), ["my-basin", "other-basin"]);
    assert_eq!(
        names(&["ls", "my-basin"]),
        ["my-basin/logs/app", "my-basin/orders"]
    );
    assert_eq!(names(&["ls", "my-basin/or"]), ["my-basin/orders"]);
    assert_eq!(
        names(&["ls", "my-basin", "--limit", "1"]),
        ["my-basin/logs/app"]
    );

    let line = value(&server.ok(&["ls", "my-basin/or", "--json"]));
    assert_eq!(line["name"], "my-basin/orders");
    let created = line["created_at"].as_str().unwrap();
    assert!(created.ends_with('Z') && created.contains('T'), "{created}");

    let remark = run(server.stream(["ls", "other-basin"]), b"");
    assert!(remark.status.success() && remark.stdout.is_empty());
    assert!(stderr(&remark).contains("esker stream create other-basin/orders"));
}

#[test]
fn what_exists_already_is_left_as_it_is() {
    let server = Server::start();
    server.ok(&["create", "my-basin/orders", "--retention", "infinite"]);
    for target in ["my-basin/orders", "my-basin"] {
        let said = server.fails(1, &["create", target, "--retention", "1h"], b"");
        assert!(said.contains("[resource_already_exists]"), "{said}");
        assert!(said.contains(&format!("{target} already")), "{said}");
    }
}

#[test]
fn a_listing_goes_on_through_all_pages() {
    const STREAMS: usize = 1100; // The server answers 1000 at a time.
    let server = Server::start();
    server.ok(&["create", "my-basin"]);
    let config = S2Config::new("none")
        .with_endpoints(S2Endpoints::for_endpoint(&server.url).unwrap())
        .with_insecure_skip_cert_verification(true);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let basin = S2::new(config).unwrap().basin("my-basin".parse().unwrap());
        let create = |number: usize| {
            let input = CreateStreamInput::new(format!("s{number:04}").parse().unwrap());
            let basin = basin.clone();
            async move { basin.create_stream(input).await.unwrap() }
        };
        futures::future::join_all((0..STREAMS).map(create)).await;
    });

    let listed = server.ok(&["ls", "my-basin"]);
    let names: Vec<_> = listed
        .lines()
        .filter_map(|l| l.split(' ').next_back())
        .collect();
    let expected: Vec<_> = (0..STREAMS).map(|n| format!("my-basin/s{n:04}")).collect();
    assert_eq!(names, expected);
    assert_eq!(
        server
            .ok(&["ls", "my-basin", "--limit", "1050"])
            .lines()
            .count(),
        1050
    );
}

#[test]
fn tail_and_trim_say_where_a_stream_ends_and_begins() {
    let server = Server::start();
    server.ok(&["create", "my-basin/orders"]);
    assert_eq!(
        server.ok(&["tail", "my-basin/orders"]),
        "my-basin/orders: no record yet, the first will have sequence number 0\n"
    );
    server.ok_with(&["append", "my-basin/orders"], b"a\nb\nc\n");
    let tail = server.ok(&["tail", "my-basin/orders"]);
    assert!(
        tail.starts_with("my-basin/orders: the next sequence number is 3, "),
        "{tail}"
    );
    assert_eq!(
        value(&server.ok(&["tail", "my-basin/orders", "--json"]))["seq_num"],
        3
    );

    assert_eq!(
        server.ok(&["trim", "my-basin/orders", "2"]),
        "my-basin/orders: records 0 to 1 are gone; it begins at 2; the trim command is record 3\n"
    );
    assert_eq!(server.ok(&["read", "my-basin/orders"]), "c\n");
    assert_eq!(
        server.ok(&["trim", "my-basin/orders", "1"]),
        "my-basin/orders begins at 2: there is nothing before 1 to drop\n"
    );
    let said = server.fails(1, &["trim", "my-basin/orders", "5"], b"");
    assert!(said.contains("sequence number 4"), "{said}");
    assert_eq!(
        value(&server.ok(&["trim", "my-basin/orders", "4", "--json"])),
        json!({ "head": 4, "gone": 2, "command_seq_num": 4 })
    );
    assert_eq!(
        server.ok(&["read", "my-basin/orders"]),
        "",
        "only the command is left"
    );
}

#[test]
fn what_is_missing_is_answered_with_how_to_make_it() {
    let server = Server::start();
    for command in [
        vec!["read", "my-basin/orders"],
        vec!["tail", "my-basin/orders"],
        vec!["trim", "my-basin/orders", "1"],
        vec!["append", "my-basin/orders"],
    ] {
        let said = server.fails(1, &command, b"");
        assert!(said.contains("[basin_not_found]"), "{said}");
        assert!(
            said.contains("`esker stream create my-basin/orders`"),
            "{said}"
        );
    }
    let said = server.fails(1, &["ls", "my-basin"], b"");
    assert!(said.contains("`esker stream create my-basin`"), "{said}");

    server.ok(&["create", "my-basin"]);
    let said = server.fails(1, &["read", "my-basin/orders"], b"");
    assert!(said.contains("[stream_not_found]"), "{said}");
    assert!(
        said.contains("`esker stream create my-basin/orders`"),
        "{said}"
    );
    let said = server.fails(1, &["append", "my-basin/orders"], b"");
    assert!(said.contains("--create"), "{said}");
}

#[test]
fn a_server_that_does_not_answer_is_reported_within_seconds() {
    let server = Server::start();
    server.ok(&["create", "my-basin/orders"]);
    server.signal(Signal::STOP);
    let began = Instant::now();
    let said = server.fails(3, &["tail", "my-basin/orders"], b"");
    let took = began.elapsed();
    server.signal(Signal::CONT);
    assert!(said.contains("did not answer in time"), "{said}");
    assert!(took < SOON / 3, "that took {took:?}");

    // Where nobody listens.
    let url = "http://127.0.0.1:1";
    let mut command = esker();
    command.args(["stream", "ls", "--server", url]);
    let output = run(command, b"");
    assert_eq!(output.status.code(), Some(3));
    let said = stderr(&output);
    let expected = format!("cannot reach {url}: connection refused; is a server running?");
    assert!(said.contains(&expected), "{said}");
}
