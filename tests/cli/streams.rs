//! `esker stream ls`, `create`, `tail`, `trim`, and the errors of all of them about missing things.

use std::time::Instant;

use rustix::process::Signal;
use s2_sdk::S2;
use s2_sdk::types::{CreateStreamInput, S2Config, S2Endpoints};
use serde_json::{Value, json};

use crate::support::{Running, SOON, Server, esker, run, signal, stderr};

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
        // A date and a time precede each name.
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
        server.ok(&["check-tail", "my-basin/orders"]),
        "my-basin/orders: no record yet, the first will have sequence number 0\n"
    );
    server.ok_with(&["append", "my-basin/orders"], b"a\nb\nc\n");
    let tail = server.ok(&["check-tail", "my-basin/orders"]);
    assert!(
        tail.starts_with("my-basin/orders: the next sequence number is 3, "),
        "{tail}"
    );
    assert_eq!(
        value(&server.ok(&["check-tail", "my-basin/orders", "--json"]))["seq_num"],
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

    // Nothing listens on this port.
    let url = "http://127.0.0.1:1";
    let mut command = esker();
    command.args(["stream", "ls", "--server", url]);
    let output = run(command, b"");
    assert_eq!(output.status.code(), Some(3));
    let said = stderr(&output);
    let expected = format!("cannot reach {url}: connection refused; is a server running?");
    assert!(said.contains(&expected), "{said}");
}

/// The records of a stream as JSON, without their numbers.
fn records(server: &Server, stream: &str) -> Vec<Value> {
    let printed = server.ok(&["read", stream, "--json"]);
    let mut records: Vec<_> = printed.lines().map(value).collect();
    for record in &mut records {
        record.as_object_mut().unwrap().remove("seq_num");
    }
    records
}

#[test]
fn a_stream_is_copied_by_a_pipe_with_headers_timestamps_and_commands() {
    let server = Server::start();
    let lines = concat!(
        r#"{"body":"a","headers":[["kind","order"],["kind",""]],"timestamp":1700000000123}"#,
        "\n",
        r#"{"body_base64":"AP8=","headers_base64":[["aw==","/w=="]]}"#,
        "\n\n",
        r#"{"command":{"fence":"writer-1"}}"#,
        "\n",
        r#"{"body":"line\nand \u0000"}"#,
        "\n",
    );
    let append = ["append", "my-basin/orders", "--create", "--format", "json"];
    server.ok_with(&append, lines.as_bytes());
    let first = value(
        server
            .ok(&["read", "my-basin/orders", "--json"])
            .lines()
            .next()
            .unwrap(),
    );
    assert_eq!(first["time"], "2023-11-14T22:13:20.123Z");

    let printed = server.ok(&["read", "my-basin/orders", "--json"]);
    let copy = ["append", "my-basin/copy", "--create", "--format", "json"];
    server.ok_with(&copy, printed.as_bytes());
    assert_eq!(server.ok(&["read", "my-basin/copy", "--json"]), printed);
    let said = server.fails(
        1,
        &["append", "my-basin/copy", "--fencing-token", "other"],
        b"x\n",
    );
    assert!(
        said.contains("`writer-1`"),
        "the copy is fenced, too: {said}"
    );

    // A copy has smaller sequence numbers than a trimmed stream, and loses no records by the copied trims.
    server.ok(&["trim", "my-basin/orders", "2"]);
    server.ok_with(&["append", "my-basin/orders"], b"last\n");
    let printed = server.ok(&["read", "my-basin/orders", "--json"]);
    let late = ["append", "my-basin/late", "--create", "--format", "json"];
    server.ok_with(&late, printed.as_bytes());
    let (orders, late) = (
        records(&server, "my-basin/orders"),
        records(&server, "my-basin/late"),
    );
    assert_eq!(orders.len(), 4);
    let bodies = |records: &[Value]| -> Vec<_> {
        let records = records.iter();
        records
            .map(|it| (it["timestamp"].clone(), it["body"].clone()))
            .collect()
    };
    assert_eq!(bodies(&late), bodies(&orders));

    // A trim that is copied into a stream does not drop the records that it had before.
    server.ok_with(
        &["append", "my-basin/kept", "--create"],
        b"keep 1\nkeep 2\n",
    );
    let into = ["append", "my-basin/kept", "--format", "json"];
    let lines = concat!(
        r#"{"seq_num":0,"timestamp":1,"body":"a"}"#,
        "\n",
        r#"{"seq_num":1,"timestamp":2,"body":"b"}"#,
        "\n",
        r#"{"seq_num":2,"timestamp":3,"command":{"trim":1}}"#,
        "\n"
    );
    server.ok_with(&into, lines.as_bytes());
    let kept = records(&server, "my-basin/kept");
    let kept: Vec<_> = kept.iter().filter_map(|it| it["body"].as_str()).collect();
    assert_eq!(kept, ["keep 1", "keep 2", "a", "b"]);

    // The question for confirmation of a deletion creates no stream.
    let refused = server.fails(1, &["delete", "my-basin/mistyped"], b"");
    assert!(refused.contains("stream_not_found"), "{refused}");
}

#[test]
fn a_line_that_is_no_record_as_json_is_named_and_what_came_before_is_appended() {
    let server = Server::start();
    server.ok(&["create", "my-basin/orders"]);
    let said = server.fails(
        1,
        &["append", "my-basin/orders", "--format", "json"],
        b"{\"body\":\"a\"}\n{\"bdoy\":\"b\"}\n",
    );
    assert!(said.contains("[input]: line 2 is no record"), "{said}");
    assert!(said.contains("1 record was appended"), "{said}");
}

#[test]
fn tail_prints_the_last_records_and_goes_on_with_what_comes() {
    let server = Server::start();
    let lines: String = (0..20).map(|number| format!("{number}\n")).collect();
    server.ok_with(&["append", "my-basin/lines", "--create"], lines.as_bytes());
    let printed = |arguments: &[&str]| {
        let output = run(server.stream(arguments), b"");
        assert!(output.status.success(), "{}", stderr(&output));
        (crate::support::stdout(&output), stderr(&output))
    };
    let last = |count: usize| -> String {
        lines
            .lines()
            .skip(20 - count)
            .map(|line| format!("{line}\n"))
            .collect()
    };
    let (ten, said) = printed(&["tail", "my-basin/lines"]);
    assert_eq!(ten, last(10));
    assert!(
        said.contains("esker stream check-tail my-basin/lines"),
        "{said}"
    );
    let (three, said) = printed(&["tail", "my-basin/lines", "-n", "3"]);
    assert_eq!((three, said.as_str()), (last(3), ""));
    let (all, said) = printed(&[
        "tail",
        "my-basin/lines",
        "--lines",
        "100",
        "--json",
        "--quiet",
    ]);
    assert_eq!((all.lines().count(), said.as_str()), (20, ""));
    let (ten, said) = printed(&["tail", "my-basin/lines", "--quiet"]);
    assert_eq!((ten, said.as_str()), (last(10), ""));

    let mut follower = Running::start(server.stream(["tail", "my-basin/lines", "-f", "-n", "1"]));
    assert_eq!(follower.line(), "19");
    server.ok_with(&["append", "my-basin/lines"], b"20\n");
    assert_eq!(follower.line(), "20");
    signal(&follower.child, Signal::INT);
    assert_eq!(follower.finish().0, Some(0));
}

#[test]
fn settings_are_shown_and_changed_and_what_is_not_given_stays() {
    let server = Server::start();
    server.ok(&[
        "create",
        "my-basin/orders",
        "--retention",
        "1h",
        "--delete-on-empty",
        "10m",
    ]);
    server.ok_with(&["append", "my-basin/orders"], b"a\nb\n");
    server.ok(&["trim", "my-basin/orders", "1"]);
    let info = |target: &str| value(&server.ok(&["info", target, "--json"]));
    let stream = info("my-basin/orders");
    assert_eq!(
        (&stream["head"], &stream["tail"]["seq_num"]),
        (&json!(1), &json!(3))
    );
    assert!(
        stream["created_at"].as_str().unwrap().ends_with('Z'),
        "{stream}"
    );
    let settings = json!({
        "retention": 3600,
        "delete_on_empty_seconds": 600,
        "timestamping": "client-prefer",
        "uncapped_timestamps": false,
    });
    assert_eq!(stream["settings"], settings);

    let changed = server.ok(&[
        "reconfigure",
        "my-basin/orders",
        "--retention",
        "infinite",
        "--uncapped-timestamps",
        "--json",
    ]);
    let mut settings = settings;
    settings["retention"] = "infinite".into();
    settings["uncapped_timestamps"] = true.into();
    assert_eq!(value(&changed)["settings"], settings);
    server.ok(&[
        "reconfigure",
        "my-basin/orders",
        "--uncapped-timestamps=false",
    ]);
    server.ok(&[
        "reconfigure",
        "my-basin/orders",
        "--delete-on-empty",
        "never",
    ]);
    settings["uncapped_timestamps"] = false.into();
    settings["delete_on_empty_seconds"] = 0.into();
    assert_eq!(info("my-basin/orders")["settings"], settings);

    server.ok(&["reconfigure", "my-basin", "--retention", "2d"]);
    assert_eq!(
        info("my-basin")["stream_settings"]["retention"],
        2 * 24 * 3600
    );
    server.ok(&["create", "my-basin/later"]);
    assert_eq!(
        info("my-basin/later")["settings"]["retention"],
        2 * 24 * 3600
    );
    assert!(server.ok(&["info", "my-basin/later"]).contains("2days"));
}

#[test]
fn a_fence_refuses_appends_with_another_token_until_it_is_lifted() {
    let server = Server::start();
    server.ok(&["create", "my-basin/orders"]);
    server.ok(&["fence", "my-basin/orders", "writer-1"]);
    let append = |token: &str| {
        let arguments = ["append", "my-basin/orders", "--fencing-token", token];
        run(server.stream(arguments), b"x\n").status.success()
    };
    assert!(append("writer-1") && !append("writer-2"));
    let take_over = ["fence", "my-basin/orders", "writer-2", "--fencing-token"];
    server.fails(1, &[&take_over[..], &["writer-3"]].concat(), b"");
    server.ok(&[&take_over[..], &["writer-1"]].concat());
    assert!(append("writer-2") && !append("writer-1"));
    server.ok(&["fence", "my-basin/orders", "--lift"]);
    assert!(!append("writer-2"));
}

#[test]
fn what_is_deleted_is_gone_and_nothing_is_deleted_without_a_yes() {
    let server = Server::start();
    server.ok_with(&["append", "my-basin/orders", "--create"], b"a\n");
    let said = server.fails(2, &["delete", "my-basin/orders"], b"");
    assert!(
        said.contains("[needs_yes]") && said.contains("all its records"),
        "{said}"
    );
    assert_eq!(server.ok(&["read", "my-basin/orders"]), "a\n");
    assert_eq!(
        server.ok(&["delete", "my-basin/orders", "--yes"]),
        "deleted stream my-basin/orders\n"
    );
    let said = server.fails(1, &["read", "my-basin/orders"], b"");
    assert!(said.contains("[stream_"), "{said}");
    let none = server.ok(&["delete", "my-basin/none", "--yes", "--if-exists", "--json"]);
    assert_eq!(value(&none)["deleted"], false);
    server.ok(&["delete", "my-basin", "--yes"]);
    let listed = server.ok(&["ls"]);
    let kept = listed
        .lines()
        .filter(|line| !line.contains("(being deleted)"));
    assert_eq!(kept.count(), 0, "{listed}");
}

#[test]
fn options_of_every_command_stand_anywhere() {
    let server = Server::start();
    server.ok_with(&["append", "my-basin/orders", "--create"], b"a\n");
    let stdout = |arguments: &[&str]| {
        let mut command = esker();
        command.args(arguments);
        let output = run(command, b"");
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        crate::support::stdout(&output)
    };
    let url = server.url.as_str();
    for arguments in [
        [
            "--json",
            "--server",
            url,
            "stream",
            "check-tail",
            "my-basin/orders",
        ],
        [
            "stream",
            "--server",
            url,
            "--json",
            "check-tail",
            "my-basin/orders",
        ],
        [
            "stream",
            "check-tail",
            "my-basin/orders",
            "--json",
            "--server",
            url,
        ],
    ] {
        assert_eq!(value(&stdout(&arguments))["seq_num"], 1);
    }
    // An option takes precedence over the variable.
    let mut command = server.stream(["ls"]);
    command.args(["--server", "http://127.0.0.1:1"]);
    assert_eq!(run(command, b"").status.code(), Some(3));
    let escape = '\u{1b}';
    let listed = ["--server", url, "stream", "ls", "--color"];
    assert!(stdout(&[&listed[..], &["always"]].concat()).contains(escape));
    assert!(!stdout(&[&listed[..], &["auto"]].concat()).contains(escape));
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&["completion", shell]);
        assert!(
            script.contains("check-tail") && script.contains("fencing-token"),
            "{shell}"
        );
    }
    assert_eq!(stdout(&["version"]), stdout(&["--version"]));
    assert_eq!(
        stdout(&["help", "stream", "tail"]),
        stdout(&["stream", "tail", "--help"])
    );
    for (arguments, said) in [
        (&["server", "--server", url][..], "asks no server"),
        (&["demo", "--json"], "prints no JSON"),
    ] {
        let mut command = esker();
        command.args(arguments);
        let output = run(command, b"");
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
}
