//! Files that cannot be read now are neither damaged nor missing: the start ends with the cause, and the next
//! one, after the cause has gone, has everything.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::everything;
use crate::support::sdk;
use crate::support::{Server, Setup};

/// A killed server with several log files, a checkpoint of each partition and files of the database; and all
/// that it had.
async fn killed(setup: &Setup) -> (Server, String) {
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    for i in 0..3 {
        let stream = sdk::stream(&basin, &format!("orders-{i}")).await;
        for _ in 0..2 {
            sdk::append(&stream, [vec![7; 900_000]]).await;
        }
    }
    server.stop().await;
    server.restart(setup).await;
    let basin = server.sdk().basin(sdk::basin_name("test-basin"));
    for i in 0..3 {
        let stream = basin.stream(sdk::stream_name(&format!("orders-{i}")));
        for _ in 0..2 {
            sdk::append(&stream, [vec![8; 900_000]]).await;
        }
    }
    let before = everything(&server.sdk()).await;
    server.kill();
    (server, before)
}

fn small_segments() -> Setup {
    Setup::default()
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=64MiB")
}

fn files(dir: &Path, is_one: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let name = |path: &PathBuf| is_one(&path.file_name().unwrap().to_string_lossy());
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(name).collect();
    found.sort();
    found
}

/// Runs `start` while a path is unreadable for every user, root included: it is a link to itself.
async fn while_unreadable(path: &Path, start: impl AsyncFnOnce()) {
    let aside = path.with_extension("aside");
    fs::rename(path, &aside).unwrap();
    symlink(path, path).unwrap();
    start().await;
    assert!(
        fs::symlink_metadata(path).unwrap().is_symlink(),
        "{} was replaced",
        path.display()
    );
    fs::remove_file(path).unwrap();
    fs::rename(&aside, path).unwrap();
}

async fn refused_as_unreadable(setup: &Setup, data_dir: &Path, names: &Path) {
    let (exit, log) = setup.start_refused(data_dir).await;
    assert_eq!(exit, 1, "{log}");
    assert!(log.contains("error [unreadable]"), "{log}");
    let name = names.file_name().unwrap().to_string_lossy().into_owned();
    assert!(log.contains(&name), "{name}: {log}");
    assert!(log.contains("symbolic links"), "the cause: {log}");
}

#[tokio::test]
async fn what_cannot_be_read_now_stops_a_start_and_costs_nothing() {
    // Only the stop writes tables: none is unfinished, or about to be removed, when the server is killed.
    let setup = small_segments()
        .set("store.write-buffer=32MiB")
        .set("store.write-buffers-total=128MiB")
        .set("log.flush-after=64MiB")
        .set("snapshots.snapshot-interval=1h");
    let restore = setup.clone().bootstrap("restore");
    let (mut server, before) = killed(&setup).await;
    let data_dir = server.data_dir().to_owned();
    let log = files(&data_dir.join("log"), |name| name.ends_with(".raftlog"));
    let db = data_dir.join("db");
    let manifests = files(&db, |name| name.starts_with("MANIFEST"));
    let tables = files(&db, |name| name.ends_with(".sst"));
    assert!(!log.is_empty() && !tables.is_empty(), "{log:?} {tables:?}");
    let needed = [
        data_dir.join("node.json"),
        log[0].clone(),
        log[log.len() - 1].clone(),
        data_dir.join("log"),
        db.join("CURRENT"),
        db.clone(),
        manifests[0].clone(),
        // The last file of a flush has rows, and so the position, which a start reads.
        tables[tables.len() - 1].clone(),
    ];
    for path in &needed {
        while_unreadable(path, async || {
            refused_as_unreadable(&setup, &data_dir, path).await;
            // The acceptance of a loss does not include a loss that has not happened.
            refused_as_unreadable(&restore, &data_dir, path).await;
        })
        .await;
    }
    assert!(!data_dir.join("damaged").exists());
    assert!(!data_dir.join("restore.json").exists());
    server.restart(&setup).await;
    assert_eq!(everything(&server.sdk()).await, before);
}

#[tokio::test]
async fn no_limit_of_open_files_costs_anything() {
    let setup = small_segments().set("snapshots.snapshot-interval=1h");
    let (mut server, before) = killed(&setup).await;
    let data_dir = server.data_dir().to_owned();
    let mut refused = 0;
    // From a limit with which not even the libraries load, to a sufficient one.
    for limit in (14..=60).step_by(2) {
        let limited = setup.clone().bootstrap("restore").open_files(limit);
        match limited.try_start(&data_dir).await {
            Ok(mut served) => {
                served.kill();
                break;
            }
            Err(log) => {
                refused += 1;
                assert!(
                    !log.contains("put aside") && !log.contains("a new lineage begins"),
                    "{limit}: {log}"
                );
                // Files that are needed before anything is read have causes of their own.
                if log.contains("error [log]") || log.contains("error [database]") {
                    panic!("{limit}: {log}");
                }
            }
        }
    }
    assert!(refused > 0);
    assert!(!data_dir.join("damaged").exists());
    server.restart(&setup).await;
    assert_eq!(everything(&server.sdk()).await, before);
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised_shared_out_and_reported() {
    let setup = Setup::default().open_files(400);
    let server = setup.start_fresh().await;
    let line = server.logged("the limit of open files is 400").await;
    assert!(line.contains("limits.connections"), "{line}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let numbers: Vec<&str> = line.split_whitespace().filter(|w| *w == "400").collect();
    assert_eq!(numbers.len(), 2, "{line}");
    sdk::basin(&server.sdk(), "test-basin").await;
}
