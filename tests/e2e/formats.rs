//! Every format of an earlier release can be opened by every later build.
//!
//! `tests/fixtures/format-N.tar.gz` contains `data/`, the data directory of a server that was killed, and
//! `repository/`, what that server had put into a repository by then. Both were written when the data
//! directory's format was N, and are never rewritten. A fixture has a cluster named `fixture` with two
//! partitions and basin `fixtures`:
//!
//! - `orders`: 170 records, the last 20 in the log alone;
//! - `trimmed`: 90 records, trimmed up to 45, and the trim command;
//! - `empty`, without a record; `deleted`, which was deleted; and basin `gone-basin`, which was deleted,
//!   too.
//!
//! From format 3 on, agent `tower` has a state: `memory`, in its third version, and `draft`, deleted; a JSON
//! snapshot was written before the last two of five commits.
//!
//! `state-replaced-3.tar.gz` contains `data/` alone. Its state store was forked after three commits, replaced
//! by an import after two more, and forked again right after that, by a release in which gaps in a stream did
//! not record their cause yet.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::recovery::contents::GAP;
use crate::recovery::positions::{fork, position};
use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{Server, Setup};

/// The fixtures, by format.
pub fn fixtures() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("format-"))
        })
        .collect();
    found.sort();
    assert!(!found.is_empty(), "there are fixtures");
    found
}

/// Whether a fixture has a state store.
pub fn has_state(fixture: &Path) -> bool {
    !fixture.ends_with("format-2.tar.gz")
}

/// The directories of a fixture.
pub fn unpack(fixture: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new("tar")
        .arg("-xzf")
        .arg(fixture)
        .arg("-C")
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(status.success(), "{}", fixture.display());
    dir
}

/// A server of a fixture's directories.
pub fn setup(dir: &Path) -> Setup {
    Setup::default()
        .set("cluster-name=fixture")
        // The records of the fixtures are older than the retention of their streams.
        .set("retention.interval=1h")
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=1MiB")
        .set(&format!(
            "snapshots.destination={}",
            dir.join("repository").display()
        ))
}

fn numbers(ranges: &[std::ops::Range<u32>]) -> Vec<String> {
    let all = ranges.iter().cloned().flatten();
    all.map(|number| number.to_string()).collect()
}

/// Checks the state of the agent through the command line.
pub fn check_state(server: &Server) {
    let get = |key: &str, more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_esker"))
            .args([
                "state",
                "get",
                "tower",
                key,
                "--json",
                "--server",
                server.url(),
            ])
            .args(more)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let memory = get("memory", &[]);
    assert!(
        memory.contains(r#""version":3,"commit_ts":4,"value":{"n":3}"#),
        "{memory}"
    );
    let first = get("memory", &["--at", "1"]);
    assert!(
        first.contains(r#""version":1,"commit_ts":1,"value":{"n":1}"#),
        "{first}"
    );
    let draft = get("draft", &[]);
    assert!(draft.contains(r#""exists":false,"version":2"#), "{draft}");
}

/// Checks the streams: `orders` has these records.
pub async fn check(server: &Server, orders: &[std::ops::Range<u32>]) {
    let basin = server.sdk().basin(basin_name("fixtures"));
    let records = sdk::read_all(&basin.stream(stream_name("orders"))).await;
    assert_eq!(sdk::bodies(&records), numbers(orders));
    let expected: Vec<u64> = (0..records.len() as u64).collect();
    assert_eq!(sdk::seq_nums(&records), expected);
    let trimmed = sdk::read_all(&basin.stream(stream_name("trimmed"))).await;
    let expected: Vec<u64> = (45..=90).collect();
    assert_eq!(sdk::seq_nums(&trimmed), expected);
    let empty = sdk::read_all(&basin.stream(stream_name("empty"))).await;
    assert!(empty.is_empty());
    let deleted = basin.stream(stream_name("deleted"));
    assert!(deleted.check_tail().await.is_err());
    let gone = server.sdk().basin(basin_name("gone-basin"));
    assert!(gone.stream(stream_name("s")).check_tail().await.is_err());
}

#[tokio::test]
async fn a_data_directory_of_every_promised_format_is_opened_and_lost_nothing() {
    for fixture in fixtures() {
        let dir = unpack(&fixture);
        let mut server = setup(dir.path()).start(&dir.path().join("data")).await;
        let all = [100..150, 200..250, 300..350, 900..920];
        check(&server, &all).await;
        if has_state(&fixture) {
            check_state(&server);
        }
        // New records can be appended.
        let basin = server.sdk().basin(basin_name("fixtures"));
        sdk::append(&basin.stream(stream_name("orders")), ["more"]).await;
        server.kill();
        server.restart(&setup(dir.path())).await;
        let basin = server.sdk().basin(basin_name("fixtures"));
        let records = sdk::read_all(&basin.stream(stream_name("orders"))).await;
        assert_eq!(records.len(), 171);
    }
}

#[tokio::test]
async fn a_database_is_made_of_snapshots_of_every_promised_format() {
    for fixture in fixtures() {
        // Checkpoints were in `snapshots` up to format 2.
        for lost in [&["db"][..], &["db", "snapshots", "checkpoints"]] {
            let dir = unpack(&fixture);
            for part in lost {
                let part = dir.path().join("data").join(part);
                if part.exists() {
                    fs::remove_dir_all(part).unwrap();
                }
            }
            let server = setup(dir.path()).start(&dir.path().join("data")).await;
            let all = [100..150, 200..250, 300..350, 900..920];
            check(&server, &all).await;
            if has_state(&fixture) {
                check_state(&server);
            }
        }
    }
}

#[tokio::test]
async fn forks_and_imports_that_an_earlier_build_did_not_tell_apart_are_listed_apart() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let dir = unpack(&fixtures.join("state-replaced-3.tar.gz"));
    let mut server = setup(dir.path()).start(&dir.path().join("data")).await;
    let imported = 5 + 2 * GAP;
    let forks = json!([
        fork("3ce172e3de1acbc31b18f6e442a3a2eb", 3, 3 + GAP),
        fork("b5ccecbdca616f91feed3da7882c5f99", imported, imported + GAP),
    ]);
    let gaps = json!([{ "seq_num": 5 + GAP, "resumes_at": imported }]);
    // The same holds after it has been written back and read again.
    for commits in 1..=2 {
        let stands = position(&server, "esker-state", "default").await;
        assert_eq!((&stands["forks"], &stands["gaps"]), (&forks, &gaps));
        assert_eq!(stands["tail"], json!(imported + GAP + commits));
        let put = Command::new(env!("CARGO_BIN_EXE_esker"))
            .args(["state", "put", "tower", "memory", "{}"])
            .args(["--server", server.url()])
            .output()
            .unwrap();
        assert!(put.status.success(), "{put:?}");
        server.kill();
        server.restart(&setup(dir.path())).await;
    }
}
