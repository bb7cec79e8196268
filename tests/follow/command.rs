//! `esker follow` as people and programs meet it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use esker_follow::Encoding;
use esker_follow::snapshot::meta::FORMAT;
use esker_follow::snapshot::{Meta, Totals, record};
use rustix::process::{Pid, Signal, kill_process};
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch, CommandRecord};
use serde_json::{Value, json};
use testkit::corruption::{change_in_place, flip};
use uuid::Uuid;

use super::place::{Place, SOON, append_one};
use crate::support::{eventually, sdk};

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

/// Runs it, which has to succeed.
fn ok(place: &Place, arguments: &[&str]) -> Output {
    let output = follow(place, arguments).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    output
}

fn json_of(place: &Place, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    let output = ok(place, &arguments);
    assert_eq!(text(&output.stderr), "", "{arguments:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs it, which has to fail with this exit code, and answers what it said.
fn fails(place: &Place, code: i32, arguments: &[&str]) -> String {
    let output = follow(place, arguments).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

/// A run that goes on.
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

    /// Interrupts it; answers its exit code, the rest of what it printed, and what it said.
    fn interrupt(mut self) -> (Option<i32>, String, String) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), rest, text(&output.stderr))
    }
}

#[tokio::test]
async fn the_state_of_each_fold_is_printed_once() {
    let place = Place::new().await;
    place.append(0..10, 3).await;

    let latest = ok(&place, &["--by", "/id", "--once"]);
    assert_eq!(
        text(&latest.stdout),
        "0\t{\"id\":0,\"n\":9}\n1\t{\"id\":1,\"n\":7}\n2\t{\"id\":2,\"n\":8}\n"
    );
    let said = text(&latest.stderr);
    assert!(
        said.contains("/orders at 10: 3 keys; 10 records applied in "),
        "{said}"
    );

    let counts = ok(&place, &["--count-by", "/id", "--once"]);
    assert_eq!(text(&counts.stdout), "4\t0\n3\t1\n3\t2\n");

    let merged = ok(&place, &["--merge", "--once"]);
    assert_eq!(text(&merged.stdout), "{\n  \"id\": 0,\n  \"n\": 9\n}\n");
}

#[tokio::test]
async fn a_stream_without_a_record_has_an_empty_state() {
    let place = Place::new().await;
    assert_eq!(text(&ok(&place, &["--by", "/id", "--once"]).stdout), "");
    assert_eq!(text(&ok(&place, &["--merge", "--once"]).stdout), "null\n");
    let document = json_of(&place, &["--count-by", "/id", "--once"]);
    assert_eq!(
        (&document["tail"], &document["state"]),
        (&json!(0), &json!({}))
    );
}

#[tokio::test]
async fn the_json_document_has_everything_and_bodies_as_they_were_written() {
    let place = Place::new().await;
    place.append(0..4, 2).await;
    append_one(
        &place.stream(),
        "{\n\t\"id\": 7,\n\t\"big\": 123456789012345678901234567890\n}",
    )
    .await;
    let output = ok(&place, &["--by", "/id", "--once", "--json"]);
    // No number was made another on the way.
    assert!(text(&output.stdout).contains("123456789012345678901234567890"));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let without_state: Vec<&String> = document.as_object().unwrap().keys().collect();
    assert_eq!(
        without_state,
        [
            "cursor",
            "records_applied",
            "restored",
            "skipped",
            "state",
            "stream",
            "tail",
            "taken"
        ]
    );
    assert_eq!(document["stream"], format!("{}/orders", place.basin()));
    assert_eq!(document["cursor"], 5);
    assert_eq!(document["tail"], 5);
    assert_eq!(document["records_applied"], 5);
    assert_eq!(document["skipped"], 0);
    assert_eq!(document["restored"], Value::Null);
    assert_eq!(document["taken"], Value::Null);
    assert_eq!(document["state"]["1"], json!({ "id": 1, "n": 3 }));
}

#[tokio::test]
async fn a_second_run_restores_the_snapshot_and_applies_only_what_is_new() {
    let directory = tempfile::tempdir().unwrap();
    let external = format!(
        "external:file://{}",
        directory.path().join("orders").display()
    );
    for (snapshot, kind, own_records) in [("in-stream", "single", 2), (&external, "external", 0)] {
        let place = Place::new().await;
        place.append(0..100, 7).await;
        let run = || {
            json_of(
                &place,
                &[
                    "--by",
                    "/id",
                    "--snapshot",
                    snapshot,
                    "--every",
                    "50",
                    "--once",
                ],
            )
        };

        let first = run();
        assert_eq!(first["records_applied"], 100);
        assert_eq!(first["restored"], Value::Null);
        assert_eq!(first["taken"]["kind"], kind);
        assert_eq!(first["taken"]["cursor"], 100);

        place.append(100..110, 7).await;
        let second = run();
        assert_eq!(second["restored"], first["taken"], "{snapshot}");
        assert_eq!(second["records_applied"], 10);
        assert_eq!(second["taken"], Value::Null, "10 records are not 50");
        assert_eq!(second["cursor"], 110 + own_records);
        let all: Value = (0..7)
            .map(|id| (id.to_string(), json!({ "id": id, "n": last(id, 110) })))
            .collect();
        assert_eq!(second["state"], all);
    }
}

/// The last number below a limit whose id this is, of seven.
fn last(id: u64, limit: u64) -> u64 {
    (0..limit).rev().find(|n| n % 7 == id).unwrap()
}

#[tokio::test]
async fn external_snapshots_are_kept_and_the_stream_trimmed_to_the_oldest() {
    let place = Place::new().await;
    let directory = tempfile::tempdir().unwrap();
    let external = format!("external:{}", directory.path().display());
    for round in 0..4 {
        place.append(10 * round..10 * (round + 1), 7).await;
        ok(
            &place,
            &[
                "--count-by",
                "/id",
                "--snapshot",
                &external,
                "--every",
                "1",
                "--keep",
                "2",
                "--trim",
                "--encoding",
                "none",
                "--once",
            ],
        );
    }
    let entries = std::fs::read_dir(directory.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(
        names.iter().all(|name| name.ends_with(".json")),
        "{names:?}"
    );
    let oldest: u64 = names[0].split('.').next().unwrap().parse().unwrap();
    eventually("the stream is trimmed", async || {
        let batch = place.stream().read(sdk::from_seq(0, 1)).await.unwrap();
        (batch.records[0].seq_num == oldest).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pipe_gets_the_state_and_then_each_key_that_changes_and_sigint_ends_it_with_0() {
    let place = Place::new().await;
    place.append(0..4, 2).await;
    let mut running = Running::start(follow(&place, &["--by", "/id"]));
    assert_eq!(running.line(), "0\t{\"id\":0,\"n\":2}\n");
    assert_eq!(running.line(), "1\t{\"id\":1,\"n\":3}\n");
    append_one(&place.stream(), r#"{"id":1,"n":4}"#).await;
    assert_eq!(running.line(), "1\t{\"id\":1,\"n\":4}\n");
    append_one(&place.stream(), r#"{"id":"new","n":5}"#).await;
    assert_eq!(running.line(), "new\t{\"id\":\"new\",\"n\":5}\n");
    let (code, rest, said) = running.interrupt();
    assert_eq!((code, rest.as_str()), (Some(0), ""), "{said}");
    assert!(said.contains("/orders: stopped at 6"), "{said}");
}

#[tokio::test]
async fn as_json_each_line_says_what_happened() {
    let place = Place::new().await;
    place.append(0..4, 2).await;
    let arguments = [
        "--count-by",
        "/id",
        "--snapshot",
        "in-stream",
        "--every",
        "6",
        "--json",
    ];
    let mut running = Running::start(follow(&place, &arguments));
    let state = running.json();
    assert_eq!(
        (&state["event"], &state["cursor"]),
        (&json!("state"), &json!(4))
    );
    assert_eq!(state["state"], json!({ "0": 2, "1": 2 }));
    place.append(4..6, 2).await;
    let (mut counts, mut taken) = (None, None);
    while counts.is_none() || taken.is_none() {
        let line = running.json();
        match line["event"].as_str().unwrap() {
            "changed" => counts = Some(line["changed"].clone()),
            "snapshot_taken" => taken = Some(line["snapshot"]["cursor"].clone()),
            other => panic!("{other}"),
        }
    }
    assert_eq!(counts, Some(json!({ "0": 3, "1": 3 })));
    assert_eq!(taken, Some(json!(6)));
    let (code, _, said) = running.interrupt();
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("; the single-record snapshot at 6 ("),
        "{said}"
    );
}

#[tokio::test]
async fn a_pipe_that_is_closed_ends_it_although_nothing_changes() {
    let place = Place::new().await;
    place.append(0..4, 2).await;
    for arguments in [["--by", "/id"].as_slice(), &["--by", "/id", "--json"]] {
        let mut running = Running::start(follow(&place, arguments));
        running.line();
        let Running { child, lines } = running;
        drop(lines);
        let output = tokio::task::spawn_blocking(move || child.wait_with_output());
        let output = tokio::time::timeout(SOON, output).await.unwrap();
        assert_eq!(output.unwrap().unwrap().status.code(), Some(0));
    }
}

#[tokio::test]
async fn a_read_of_the_stream_shows_snapshots_in_brackets_and_not_as_bytes() {
    let place = Place::new().await;
    place.append(0..100, 7).await;
    let snapshot = ["--by", "/id", "--snapshot", "in-stream", "--every", "50"];
    ok(&place, &[&snapshot[..], &["--once"]].concat());
    place.append(100..101, 7).await;
    // Of one in many records, and of one that makes no sense.
    let meta = Meta {
        format: FORMAT,
        fold: "latest by /\u{1b}[31m".to_owned(),
        fold_version: 1,
        cursor: 7,
        created_at: None,
        lineage: None,
        taken_at: 1,
        encoding: Encoding::None,
    };
    let totals = Totals {
        bytes: 9,
        xxh3: "0".repeat(32),
    };
    let id = Uuid::new_v4();
    let odd = AppendRecord::new("x").unwrap();
    let odd = odd.with_headers([s2_sdk::types::Header::new("esker-snapshot", "odd")]);
    let records = [
        record::fragment_record(id, 0, Some(&meta), "\u{1b}one".into()).unwrap(),
        record::fragment_record(id, 1, None, "three".into()).unwrap(),
        record::final_record(id, 2, &totals).unwrap(),
        odd.unwrap(),
    ];
    let batch = AppendRecordBatch::try_from_iter(records).unwrap();
    let stream = place.stream();
    stream.append(AppendInput::new(batch)).await.unwrap();

    let read = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_esker"))
            .args(["stream", "read", &format!("{}/orders", place.basin())])
            .args(["--server", place.url()])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (text(&output.stdout), text(&output.stderr))
    };
    let (bodies, said) = read(&[]);
    assert_eq!(bodies, "{\"id\":2,\"n\":100}\n");
    let said: Vec<_> = said.lines().collect();
    assert!(
        said[0].starts_with("[snapshot of `latest by /id`, everything before 100, "),
        "{said:?}"
    );
    assert_eq!(
        said[1..],
        [
            "[snapshot of `latest by /\\u{1b}[31m`, everything before 7, part 1, 4 B]",
            "[snapshot, part 2, 5 B]",
            "[snapshot, end: 2 parts, 9 B]",
            "[snapshot, 1 B: it is neither single nor fragment nor final]",
        ]
    );
    // All of it is there for programs.
    let (lines, said) = read(&["--json"]);
    assert_eq!(said, "");
    assert_eq!(lines.lines().count(), 6);
    assert!(lines.contains(r#"["esker-snapshot","single"]"#), "{lines}");
}

#[tokio::test]
async fn a_pipe_that_is_closed_ends_it_without_a_word() {
    let place = Place::new().await;
    place.append(0..4, 2).await;
    let mut running = Running::start(follow(&place, &["--count-by", "/id", "--json"]));
    running.line();
    let Running { child, lines } = running;
    drop(lines);
    append_one(&place.stream(), r#"{"id":1,"n":4}"#).await;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output());
    let output = tokio::time::timeout(SOON, output)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(!said.contains("error"), "{said}");
}

#[tokio::test]
async fn a_malformed_record_is_named_or_skipped_and_counted() {
    let place = Place::new().await;
    place.append(0..3, 3).await;
    append_one(&place.stream(), "not json \u{1b}[31m").await;
    append_one(&place.stream(), r#"{"other":1}"#).await;
    let said = fails(&place, 1, &["--by", "/id", "--once"]);
    assert!(
        said.contains("error [record_malformed]: record 3 of "),
        "{said}"
    );
    assert!(
        said.contains("--skip-malformed") && !said.contains('\u{1b}'),
        "{said}"
    );
    let document = json_of(&place, &["--by", "/id", "--once", "--skip-malformed"]);
    assert_eq!(
        (&document["skipped"], &document["records_applied"]),
        (&json!(2), &json!(3))
    );
}

#[tokio::test]
async fn what_a_stream_says_cannot_drive_the_terminal() {
    let place = Place::new().await;
    append_one(
        &place.stream(),
        "{\"id\":\"a\\t\\u001b[2J\",\n\"x\":\"\u{9b}31m\"}",
    )
    .await;
    let output = ok(&place, &["--by", "/id", "--once"]);
    assert_eq!(
        text(&output.stdout),
        "a\\t\\u{1b}[2J\t{\"id\":\"a\\t\\u001b[2J\", \"x\":\"\\u009b31m\"}\n"
    );
}

#[tokio::test]
async fn a_snapshot_of_another_fold_is_not_taken_for_ones_own() {
    let place = Place::new().await;
    place.append(0..4, 2).await;
    ok(
        &place,
        &[
            "--by",
            "/id",
            "--snapshot",
            "in-stream",
            "--every",
            "1",
            "--once",
        ],
    );
    let said = fails(&place, 1, &["--by", "/n", "--once"]);
    assert!(said.contains("error [snapshot_unusable]"), "{said}");
    assert!(
        said.contains("`latest by /id`") && said.contains("--pass-over"),
        "{said}"
    );
    let said = fails(&place, 1, &["--by", "/n", "--once", "--pass-over"]);
    assert!(said.contains("error [history_gone]"), "{said}");
}

#[tokio::test]
async fn the_variables_of_the_official_command_line_say_where_the_server_is() {
    let place = Place::new().await;
    place.append(0..2, 2).await;
    let mut command = follow(&place, &["--count-by", "/id", "--once"]);
    // The last two are --server and its value.
    let arguments: Vec<_> = command.get_args().map(|a| a.to_owned()).collect();
    let program = command.get_program().to_owned();
    command = Command::new(program);
    command
        .args(&arguments[..arguments.len() - 2])
        .env_remove("ESKER_SERVER")
        .env("S2_ACCESS_TOKEN", "ignored")
        .env("S2_ACCOUNT_ENDPOINT", place.url())
        .env("S2_BASIN_ENDPOINT", place.url());
    let output = command.output().unwrap();
    assert_eq!(
        text(&output.stdout),
        "1\t0\n1\t1\n",
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_at_once() {
    let place = Place::new().await;
    let begun = Instant::now();
    let said = fails(
        &place,
        3,
        &["--by", "/id", "--once", "--server", "127.0.0.1:1"],
    );
    assert!(
        said.contains("error [unreachable]: cannot reach http://127.0.0.1:1"),
        "{said}"
    );
    let took = begun.elapsed();
    // One that is waited for has thirty seconds.
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test]
async fn inspect_shows_what_is_whole_torn_and_damaged_and_how_far_behind() {
    let place = Place::new().await;
    place.append(0..20, 3).await;
    let stream = place.stream();
    let meta = |cursor| Meta {
        format: FORMAT,
        fold: "latest by /id".to_owned(),
        fold_version: 1,
        cursor,
        created_at: None,
        lineage: None,
        taken_at: 1_700_000_000_000,
        encoding: Encoding::None,
    };
    let wrong = Totals {
        bytes: 3,
        xxh3: "0".repeat(32),
    };
    let append = async |records: Vec<AppendRecord>| {
        let batch = AppendRecordBatch::try_from_iter(records).unwrap();
        let ack = stream.append(AppendInput::new(batch)).await.unwrap();
        ack.start.seq_num
    };
    let (unfinished, damaged, gap) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    // At 20: a single one whose bytes are wrong.
    append(vec![
        record::single_record(damaged, &meta(20), &wrong, "abc".into()).unwrap(),
    ])
    .await;
    // At 21 to 23: one whose fragment 1 is missing.
    let fragment = |id, index, meta: Option<&Meta>| {
        record::fragment_record(id, index, meta, "abc".into()).unwrap()
    };
    append(vec![
        fragment(gap, 0, Some(&meta(21))),
        fragment(gap, 2, None),
        record::final_record(gap, 3, &wrong).unwrap(),
    ])
    .await;
    // At 24 and 25: one that has no end.
    append(vec![
        fragment(unfinished, 0, Some(&meta(24))),
        fragment(unfinished, 1, None),
    ])
    .await;
    place.append(20..25, 3).await;

    let found = json_of(&place, &["--inspect"]);
    assert_eq!((&found["head"], &found["tail"]), (&json!(0), &json!(31)));
    let row = |found: &Value, place: &str| {
        let rows = found["snapshots"].as_array().unwrap();
        let row = rows.iter().find(|row| row["place"] == place);
        row.unwrap_or_else(|| panic!("{place} is missing in {found:#}"))
            .clone()
    };
    assert_eq!(found["snapshots"].as_array().unwrap().len(), 3, "{found:#}");
    assert_eq!(row(&found, "20")["standing"], "damaged");
    assert_eq!(row(&found, "21")["standing"], "torn");
    assert_eq!(row(&found, "21")["why"], "fragment 1 is missing");
    assert_eq!(
        row(&found, "24")["why"],
        "it has no end: 2 fragments are there"
    );
    assert_eq!(
        row(&found, "24")["replay"],
        5,
        "records for the fold, and nothing else"
    );
    assert_eq!(row(&found, "24")["recovery_seconds"], Value::Null);
    // The end of the one with a gap comes after it was given up.
    assert_eq!(found["strays"], 1);

    // None of them hurts: the history is there. And a whole one is taken behind them.
    let taken = json_of(
        &place,
        &[
            "--by",
            "/id",
            "--snapshot",
            "in-stream",
            "--every",
            "1",
            "--once",
        ],
    );
    assert_eq!(taken["records_applied"], 25);
    assert_eq!(taken["taken"]["cursor"], 31);
    place.append(25..28, 3).await;
    let found = eventually("the stream is trimmed", async || {
        let found = json_of(&place, &["--inspect"]);
        (found["head"] != 0).then_some(found)
    })
    .await;
    assert_eq!(found["snapshots"].as_array().unwrap().len(), 1, "{found:#}");
    let whole = &found["snapshots"][0];
    assert_eq!(whole["standing"], "whole");
    assert_eq!(whole["fold"], "latest by /id");
    assert_eq!(
        (&whole["cursor"], &whole["replay"]),
        (&json!(31), &json!(3))
    );
    assert!(whole["recovery_seconds"].as_f64().unwrap() > 0.0);

    let table = text(&ok(&place, &["--inspect"]).stdout);
    assert!(
        table.contains("single-record") && table.contains("whole"),
        "{table}"
    );
    let other = text(&ok(&place, &["--inspect", "--count-by", "/id"]).stdout);
    assert!(other.contains("whole, of another fold"), "{other}");
}

#[tokio::test]
async fn inspect_reads_objects_to_their_last_byte() {
    let place = Place::new().await;
    let directory = tempfile::tempdir().unwrap();
    let external = format!("external:{}", directory.path().display());
    for round in 0..2 {
        place.append(10 * round..10 * (round + 1), 7).await;
        let arguments = [
            "--by",
            "/id",
            "--snapshot",
            &external,
            "--every",
            "1",
            "--once",
        ];
        ok(&place, &arguments);
    }
    let newest = directory.path().join("20.json.zst");
    // Of the state: what it adds up to comes after it.
    change_in_place(&newest, |bytes| {
        let at = bytes.len() - 120;
        flip(bytes, at);
    });
    std::fs::write(directory.path().join("15.json"), "{}").unwrap();

    let found = json_of(&place, &["--inspect", "--snapshot", &external]);
    let rows = found["snapshots"].as_array().unwrap();
    let seen: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row["place"].as_str().unwrap(),
                row["standing"].as_str().unwrap(),
            )
        })
        .map(|(place, standing)| (place.to_owned(), standing.to_owned()))
        .collect();
    let expected = [
        ("20.json.zst", "damaged"),
        ("15.json", "useless"),
        ("10.json.zst", "whole"),
    ];
    let expected: Vec<_> = expected.map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    assert_eq!(seen, expected, "{found:#}");
    assert_eq!(rows[2]["replay"], 10);

    // The damaged one is passed over, and it is said so.
    let output = ok(&place, &["--by", "/id", "--snapshot", &external, "--once"]);
    let said = text(&output.stderr);
    assert!(
        said.contains("passed over: 20.json.zst: it is damaged"),
        "{said}"
    );
    assert!(said.contains("the external snapshot at 10 "), "{said}");
}

#[tokio::test]
async fn a_stream_whose_history_is_gone_says_so_and_how_to_go_on() {
    let place = Place::new().await;
    place.append(0..20, 3).await;
    let trim: AppendRecord = CommandRecord::trim(10).into();
    let trim = AppendRecordBatch::try_from_iter([trim]).unwrap();
    place.stream().append(AppendInput::new(trim)).await.unwrap();
    eventually("the stream is trimmed", async || {
        let batch = place.stream().read(sdk::from_seq(0, 1)).await.unwrap();
        (batch.records[0].seq_num == 10).then_some(())
    })
    .await;
    let said = fails(&place, 1, &["--by", "/id", "--once"]);
    assert!(
        said.contains("error [history_gone]: history before 10 of "),
        "{said}"
    );
    let table = text(&ok(&place, &["--inspect"]).stdout);
    assert!(
        table.contains("What was before 10 is gone, and no snapshot here covers it"),
        "{table}"
    );
}
