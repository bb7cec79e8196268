//! The output of one run.

use std::process::{Command, Stdio};

use esker_follow::Encoding;
use esker_follow::snapshot::meta::FORMAT;
use esker_follow::snapshot::{Meta, Totals, record};
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{json_of, ok, text};
use crate::place::{Place, append_one};

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
    // Large numbers are unchanged.
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
async fn a_read_of_the_stream_shows_snapshots_in_brackets_and_not_as_bytes() {
    let place = Place::new().await;
    place.append(0..100, 7).await;
    let snapshot = ["--by", "/id", "--snapshot", "in-stream", "--every", "50"];
    ok(&place, &[&snapshot[..], &["--once"]].concat());
    place.append(100..101, 7).await;
    // The description of a snapshot in many records, and one that makes no sense.
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
    // The JSON output has everything.
    let (lines, said) = read(&["--json"]);
    assert_eq!(said, "");
    assert_eq!(lines.lines().count(), 6);
    assert!(lines.contains(r#"["esker-snapshot","single"]"#), "{lines}");
}
