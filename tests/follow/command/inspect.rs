//! `--inspect`.

use esker_follow::Encoding;
use esker_follow::snapshot::meta::FORMAT;
use esker_follow::snapshot::{Meta, Totals, record};
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch};
use serde_json::{Value, json};
use testkit::corruption::{change_in_place, flip};
use uuid::Uuid;

use super::{json_of, ok, text};
use crate::place::Place;
use crate::support::eventually;

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
    // At 20: a single-record snapshot whose bytes are wrong.
    append(vec![
        record::single_record(damaged, &meta(20), &wrong, "abc".into()).unwrap(),
    ])
    .await;
    // At 21 to 23: a snapshot without its fragment 1.
    let fragment = |id, index, meta: Option<&Meta>| {
        record::fragment_record(id, index, meta, "abc".into()).unwrap()
    };
    append(vec![
        fragment(gap, 0, Some(&meta(21))),
        fragment(gap, 2, None),
        record::final_record(gap, 3, &wrong).unwrap(),
    ])
    .await;
    // At 24 and 25: a snapshot without an end.
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
    // The end of the snapshot with a gap comes after the snapshot was given up.
    assert_eq!(found["strays"], 1);

    // None of them does harm: the history is complete. And a complete snapshot is taken behind them.
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
    // A byte of the state is changed: its checksum comes after it.
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

    // The damaged snapshot is passed over, with a remark.
    let output = ok(&place, &["--by", "/id", "--snapshot", &external, "--once"]);
    let said = text(&output.stderr);
    assert!(
        said.contains("passed over: 20.json.zst: it is damaged"),
        "{said}"
    );
    assert!(said.contains("the external snapshot at 10 "), "{said}");
}
