//! Refusals and their messages.

use std::process::Command;
use std::time::{Duration, Instant};

use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch, CommandRecord};
use serde_json::json;

use super::{fails, follow, json_of, ok, text};
use crate::place::{Place, append_one};
use crate::support::{eventually, sdk};

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
    // A command that waits for a server would take thirty seconds.
    assert!(took < Duration::from_secs(15), "{took:?}");
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
