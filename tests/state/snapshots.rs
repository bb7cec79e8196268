//! JSON snapshots: made, listed, exported, imported, verified.

use bytes::Bytes;
use esker_proto::state::v1::*;
use serde_json::Value;
use tonic::{Code, Status};

use crate::client::{Name, Read, State, assert_refused, collect, key};
use crate::support::eventually;

async fn export(state: &State, commit_ts: Option<u64>) -> Result<Vec<u8>, Status> {
    let request = ExportRequest { commit_ts };
    let pieces = state.esker.clone().export(request).await?;
    let pieces = collect(pieces.into_inner()).await?;
    Ok(pieces.into_iter().flat_map(|it| it.data).collect())
}

async fn import(state: &State, text: &[u8], replace: bool) -> Result<ImportResponse, Status> {
    let message = |part| ImportRequest { part: Some(part) };
    let mut messages = vec![message(import_request::Part::Options(ImportOptions {
        replace,
    }))];
    let pieces = text.chunks(1000).map(Bytes::copy_from_slice);
    messages.extend(pieces.map(|data| message(import_request::Part::Data(data))));
    let messages = futures::stream::iter(messages);
    Ok(state.esker.clone().import(messages).await?.into_inner())
}

async fn filled() -> State {
    let state = State::with(&["state.snapshot-interval=0"]).await;
    state.put(key("x"), r#"{"n":1}"#).await;
    state
        .put(Name("n:b", "a%", "k"), r#"{"n":[{"a":1}]}"#)
        .await;
    state.put(key("gone"), "{}").await;
    state.remove(key("gone")).await;
    state
}

#[tokio::test]
async fn a_snapshot_is_a_file_that_people_can_read() {
    let state = filled().await;
    let made = state.esker.clone().snapshot(SnapshotRequest {}).await;
    let made = made.unwrap().into_inner().snapshot.unwrap();
    assert_eq!(made.name, "snapshot-4.json");
    assert_eq!((made.commit_ts, made.local), (4, true));
    let file = state.server.data_dir().join("snapshots").join(&made.name);
    let text = std::fs::read(file).unwrap();
    assert_eq!(made.bytes, text.len() as u64);
    let json: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["commit_ts"], 4);
    let entry = &json["state"]["default:a:x"];
    assert_eq!(entry["value"]["n"], 1);
    assert_eq!(
        (&entry["version"], &entry["commit_ts"]),
        (&1.into(), &1.into())
    );
    assert_eq!(json["state"]["n%3Ab:a%25:k"]["version"], 1);
    assert_eq!(json["state"]["default:a:gone"]["deleted"], true);
    assert_eq!(json["state"]["default:a:gone"]["version"], 2);
    let listed = state
        .esker
        .clone()
        .list_snapshots(ListSnapshotsRequest {})
        .await;
    let listed = listed.unwrap().into_inner().snapshots;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].name, made.name);
    assert_eq!(listed[0].problem, None);
}

#[tokio::test]
async fn what_is_exported_can_be_imported_elsewhere_and_goes_on_counting() {
    let state = filled().await;
    let text = export(&state, None).await.unwrap();
    let other = State::fresh().await;
    let done = import(&other, &text, false).await.unwrap();
    assert_eq!(
        (done.imported_commit_ts, done.commit_ts, done.keys),
        (4, 4, 3)
    );
    assert_eq!(done.bytes, text.len() as u64);
    assert_eq!(other.get(key("x")).await, Read::of(r#"{"n":1}"#, 1, 1));
    let read = other.get(Name("n:b", "a%", "k")).await;
    assert_eq!(read, Read::of(r#"{"n":[{"a":1}]}"#, 1, 2));
    assert_eq!(other.get(key("gone")).await, Read::deleted(2, 4));
    assert_eq!(other.put(key("gone"), "{}").await, 5);
    assert_eq!(other.get(key("gone")).await.version, 3);
}

#[tokio::test]
async fn an_import_replaces_only_if_that_is_said() {
    let state = filled().await;
    let text = export(&state, None).await.unwrap();
    let other = State::fresh().await;
    other.put(key("mine"), "{}").await;
    assert_refused(
        import(&other, &text, false).await,
        Code::FailedPrecondition,
        "not_empty",
    );
    assert_eq!(other.get(key("mine")).await.version, 1);
    let done = import(&other, &text, true).await.unwrap();
    assert!(done.commit_ts >= 4);
    assert_eq!(other.get(key("mine")).await.value, None);
    assert_eq!(
        other.get(key("x")).await.value.as_deref(),
        Some(r#"{"n":1}"#)
    );
    assert!(other.put(key("x"), "{}").await > done.commit_ts);
}

#[tokio::test]
async fn what_is_no_snapshot_is_refused_and_nothing_changes() {
    let state = filled().await;
    let text = export(&state, None).await.unwrap();
    let other = State::fresh().await;
    for bad in [&b""[..], b"{}", b"not json", &text[..text.len() - 10]] {
        let refused = import(&other, bad, true).await;
        assert_refused(refused, Code::InvalidArgument, "invalid");
    }
    assert!(other.keys("default", "a").await.is_empty());
    assert_eq!(other.put(key("x"), "{}").await, 1);
}

#[tokio::test]
async fn an_import_without_options_is_refused() {
    let state = State::fresh().await;
    let message = ImportRequest {
        part: Some(import_request::Part::Data(Bytes::from_static(b"{}"))),
    };
    let messages = futures::stream::iter([message]);
    let refused = state.esker.clone().import(messages).await;
    assert_refused(refused, Code::InvalidArgument, "invalid");
}

#[tokio::test]
async fn a_snapshot_and_what_came_after_it_prove_the_live_state() {
    let state = filled().await;
    state
        .esker
        .clone()
        .snapshot(SnapshotRequest {})
        .await
        .unwrap();
    state.put(key("x"), r#"{"n":2}"#).await;
    let found = state
        .esker
        .clone()
        .verify(VerifyRequest { commit_ts: None })
        .await;
    let found = found.unwrap().into_inner();
    assert_eq!(found.differences, [""; 0]);
    assert_eq!(found.folded_digest, found.live_digest);
    assert_eq!(
        (found.snapshot_commit_ts, found.commit_ts, found.replayed),
        (4, 5, 1)
    );
    let none = VerifyRequest { commit_ts: Some(3) };
    assert_refused(
        state.esker.clone().verify(none).await,
        Code::NotFound,
        "snapshot_not_found",
    );
    assert_refused(
        export(&state, Some(3)).await,
        Code::NotFound,
        "snapshot_not_found",
    );
}

#[tokio::test]
async fn snapshots_are_made_by_themselves_and_the_newest_are_kept() {
    let state = State::with(&["state.snapshot-interval=5", "state.snapshots-retained=2"]).await;
    for n in 0..23 {
        state.put(key("x"), &format!("{{\"n\":{n}}}")).await;
    }
    state.server.logged("Snapshot created: snapshot-").await;
    state
        .esker
        .clone()
        .snapshot(SnapshotRequest {})
        .await
        .unwrap();
    // Another one may be under way.
    let listed = eventually("the newest two are kept", async || {
        let listed = state.snapshots().await;
        (listed.len() <= 2).then_some(listed)
    })
    .await;
    assert_eq!(listed[0].commit_ts, 23);
}

/// A snapshot's text as of commit 5.
fn snapshot_of(entries: &[&str]) -> String {
    format!(
        r#"{{"version":1,"created_at":1,"commit_ts":5,"state":{{{}}}}}"#,
        entries.join(",")
    )
}

#[tokio::test]
async fn a_snapshot_that_could_not_be_one_is_refused_by_the_key_and_writes_nothing() {
    let state = State::with(&["state.snapshot-interval=0"]).await;
    let good = r#""default:a:0":{"value":{},"version":1,"commit_ts":1}"#;
    let bad = [
        (
            r#"{"value":{"s":"\ud800"},"version":1,"commit_ts":1}"#,
            "string",
        ),
        (
            r#"{"value":{"n":1e999},"version":1,"commit_ts":1}"#,
            "too large",
        ),
        (
            r#"{"value":{"n":9007199254740993},"version":1,"commit_ts":1}"#,
            "beyond 2^53",
        ),
        (
            r#"{"value":{},"version":4611686018427387905,"commit_ts":1}"#,
            "a version of",
        ),
        (r#"{"value":{},"version":1,"commit_ts":6}"#, "commit_ts 6"),
    ];
    for (entry, why) in bad {
        let text = snapshot_of(&[good, &format!(r#""default:a:bad":{entry}"#)]);
        let refused = import(&state, text.as_bytes(), true).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains("default:a:bad"), "{refused:?}");
        assert!(refused.message().contains(why), "{refused:?}");
    }
    let other = good.replace("a:0", "a:1");
    let twice = snapshot_of(&[&other, good, &other]);
    let refused = import(&state, twice.as_bytes(), true).await.unwrap_err();
    assert!(refused.message().contains("occurs twice"), "{refused:?}");
    // Nothing of the refused imports was proposed, and no file is left.
    let log = state.server.log().join("\n");
    assert!(
        !log.contains("an import into the state store did not end"),
        "{log}"
    );
    let left = std::fs::read_dir(state.server.data_dir().join("snapshots")).unwrap();
    let left = left.filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with(".tmp-")
    });
    assert_eq!(left.count(), 0);
    assert_eq!(state.put(key("x"), "{}").await, 1);
}

/// The entries of an export, as text.
fn entries_of(export: &[u8]) -> String {
    let text = std::str::from_utf8(export).unwrap();
    text.split_once("\"state\"").unwrap().1.to_owned()
}

/// Imports an export into a new store. Returns that store and its export.
async fn taken_over(export_of: &[u8]) -> (State, Vec<u8>) {
    let other = State::with(&["state.snapshot-interval=0"]).await;
    import(&other, export_of, false).await.unwrap();
    let again = export(&other, None).await.unwrap();
    (other, again)
}

#[tokio::test]
async fn what_a_store_has_of_earlier_versions_is_exported_and_imported_as_it_is() {
    // Earlier versions imported these without a check.
    let entries = [
        r#""default:a:0":{"value":{"n":1},"version":1,"commit_ts":1}"#,
        r#""default:a:1":{"value":{"n":9007199254740993},"version":1,"commit_ts":2,"unchecked":true}"#,
        r#""default:a:2":{"value":{"s":"\ud800"},"version":1,"commit_ts":3,"unchecked":true}"#,
        r#""default:a:3":{"value":{"n":1e999},"version":1,"commit_ts":77,"unchecked":true}"#,
        // The form in which jq writes a large float.
        r#""default:a:4":{"value":{"n":123456789012345670000},"version":1,"commit_ts":4}"#,
    ];
    let (state, first) = taken_over(snapshot_of(&entries).as_bytes()).await;
    let text = entries_of(&first);
    for (at, value) in [(1, "9007199254740993"), (2, r"\ud800"), (3, "1e999")] {
        let line = text
            .lines()
            .find(|line| line.contains(&format!("default:a:{at}")));
        let line = line.unwrap();
        assert!(
            line.contains(value) && line.contains(r#""unchecked": true"#),
            "{line}"
        );
    }
    assert_eq!(text.matches("unchecked").count(), 3);
    let (_other, second) = taken_over(&first).await;
    assert_eq!(entries_of(&second), text);
    // The entry that can be read is imported.
    assert_eq!(state.get(key("0")).await, Read::of(r#"{"n":1}"#, 1, 1));
}

#[tokio::test]
async fn numbers_beyond_two_to_the_53rd_are_exported_exactly_and_imported_again() {
    let most = 1u64 << 53;
    let entry = format!(r#""default:a:x":{{"value":{{}},"version":{most},"commit_ts":{most}}}"#);
    let text =
        snapshot_of(&[&entry]).replace(r#""commit_ts":5"#, &format!(r#""commit_ts":{most}"#));
    let (state, _) = taken_over(text.as_bytes()).await;
    assert_eq!(state.put(key("x"), "{}").await, most + 1);
    let first = export(&state, None).await.unwrap();
    let shown = String::from_utf8(first.clone()).unwrap();
    // A number in quotes is not rounded by a program that reads numbers as floats.
    let quoted = format!(r#""{}""#, most + 1);
    assert_eq!(shown.matches(&quoted).count(), 3, "{shown}");
    let (other, second) = taken_over(&first).await;
    assert_eq!(entries_of(&second), entries_of(&first));
    assert_eq!(other.put(key("x"), "{}").await, most + 2);
    assert_eq!(
        other.get(key("x")).await,
        Read::of("{}", most + 2, most + 2)
    );
}

#[tokio::test]
async fn what_was_imported_can_be_proved_at_once() {
    let other = State::fresh().await;
    other.put(key("mine"), "{}").await;
    let text = export(&filled().await, None).await.unwrap();
    let done = import(&other, &text, true).await.unwrap();
    let proof = other.verify().await;
    assert_eq!(proof.snapshot_commit_ts, done.commit_ts);
    assert!(proof.differences.is_empty(), "{proof:?}");
}

#[tokio::test]
async fn a_store_without_a_snapshot_has_nothing_to_verify_and_says_which() {
    let state = State::with(&["state.snapshot-interval=0"]).await;
    let verify = async || {
        let request = VerifyRequest { commit_ts: None };
        state.esker.clone().verify(request).await
    };
    assert_refused(
        verify().await,
        Code::FailedPrecondition,
        "nothing_committed",
    );
    state.put(key("a"), "{}").await;
    assert_refused(verify().await, Code::NotFound, "no_state_snapshot");
    assert_eq!(state.snapshot().await, 1);
    assert!(verify().await.unwrap().into_inner().differences.is_empty());
}
