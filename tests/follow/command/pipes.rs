//! Runs that continue until they are interrupted, and readers of their output.

use serde_json::json;

use super::{Running, follow, text};
use crate::place::{Place, SOON, append_one};

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
