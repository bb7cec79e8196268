//! Snapshots that runs write, restore and pass over.

use serde_json::{Value, json};

use super::{fails, json_of, ok};
use crate::place::Place;
use crate::support::{eventually, sdk};

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
