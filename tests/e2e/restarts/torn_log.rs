//! The end of the log after a crash, and damage that no crash explains.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use testkit::corruption::{flip, truncate};

use super::{everything, last_log_file};
use crate::support::sdk;
use crate::support::{Server, Setup};

/// A killed server with everything in its log and nothing flushed.
async fn killed(setup: &Setup) -> (Server, String) {
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    for i in 0..3 {
        let stream = sdk::stream(&basin, &format!("orders-{i}")).await;
        for j in 0..20 {
            sdk::append(&stream, [format!("{i} {j}"), "x".repeat(500)]).await;
        }
    }
    let before = everything(&server.sdk()).await;
    server.kill();
    (server, before)
}

/// The offset after the last byte of a file that is not zero: the space behind it is only reserved.
fn written(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    last as u64 + 1
}

#[tokio::test]
async fn garbage_behind_the_log_is_cut_and_reported_in_bytes() {
    let setup = Setup::default();
    let (mut server, before) = killed(&setup).await;
    for garbage in [&b"\x01"[..], &[0xFF; 100], &[0x5A; 70_000]] {
        let path = last_log_file(server.data_dir());
        // Some zeros later, because a checksum may end in zero.
        let at = written(&path) + 16;
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(garbage, at).unwrap();
        drop(file);
        server.restart(&setup).await;
        let line = server.logged("bytes removed").await;
        assert!(line.contains(&*path.to_string_lossy()), "{line}");
        let bytes: usize = line
            .split(" bytes removed")
            .next()
            .and_then(|text| text.rsplit(' ').next())
            .unwrap()
            .parse()
            .unwrap();
        assert!(
            (garbage.len()..garbage.len() + 32).contains(&bytes),
            "{line}"
        );
        assert_eq!(everything(&server.sdk()).await, before);
        server.kill();
    }
}

#[tokio::test]
async fn half_a_write_at_the_end_of_the_log_is_cut_and_the_rest_is_there() {
    let setup = Setup::default();
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    for i in 0..10 {
        sdk::append(&stream, [format!("{i}")]).await;
    }
    let path = last_log_file(server.data_dir());
    let before_last = written(&path);
    sdk::append(&stream, ["x".repeat(5_000)]).await;
    server.kill();
    let end = written(&path);
    assert!(end > before_last + 5_000, "one append, one write");
    // The state as if the machine had stopped in the middle of the last write, before it was acknowledged.
    truncate(&path, before_last + 3_000);
    server.restart(&setup).await;
    server.logged("bytes removed").await;
    let basin = server.sdk().basin(sdk::basin_name("test-basin"));
    let stream = basin.stream(sdk::stream_name("orders"));
    let expected: Vec<String> = (0..10).map(|i| i.to_string()).collect();
    assert_eq!(sdk::bodies(&sdk::read_all(&stream).await), expected);
    // Appends continue from there, also after another crash.
    let ack = sdk::append(&stream, ["10"]).await;
    assert_eq!(ack.start.seq_num, 10);
    server.kill();
    server.restart(&setup).await;
    let basin = server.sdk().basin(sdk::basin_name("test-basin"));
    let stream = basin.stream(sdk::stream_name("orders"));
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 11);
}

#[tokio::test]
async fn a_flipped_byte_in_the_middle_of_the_log_stops_the_start_with_file_and_offset() {
    let setup = Setup::default();
    let (mut server, before) = killed(&setup).await;
    let path = last_log_file(server.data_dir());
    let whole = fs::read(&path).unwrap();
    let end = usize::try_from(written(&path)).unwrap();
    for part in [1, 3, 5, 8] {
        let at = end * part / 10;
        let mut bytes = whole.clone();
        flip(&mut bytes, at);
        fs::write(&path, &bytes).unwrap();
        let (exit, log) = setup.start_refused(server.data_dir()).await;
        assert_eq!(exit, 1, "{log}");
        assert!(log.contains("[log]"), "{log}");
        assert!(log.contains(&*path.to_string_lossy()), "{log}");
        let offset: usize = log
            .split("at offset ")
            .nth(1)
            .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next())
            .unwrap_or_else(|| panic!("no offset: {log}"))
            .parse()
            .unwrap();
        assert!(offset <= at && at - offset < 4_000, "{at}: {log}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "a refusal changes nothing");
    }
    fs::write(&path, &whole).unwrap();
    server.restart(&setup).await;
    assert_eq!(everything(&server.sdk()).await, before);
}

#[tokio::test]
async fn a_missing_log_file_stops_the_start() {
    let setup = Setup::default()
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=64MiB")
        .set("log.flush-after=64MiB");
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    for _ in 0..10 {
        sdk::append(&stream, [vec![3; 900_000]]).await;
    }
    server.kill();
    let mut files: Vec<_> = fs::read_dir(server.data_dir().join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "raftlog"))
        .collect();
    files.sort();
    assert!(files.len() >= 4, "{files:?}");
    // Any file but the last, whose loss cannot be distinguished from a log that ended before it.
    for file in &files[..files.len() - 1] {
        let aside = file.with_extension("aside");
        fs::rename(file, &aside).unwrap();
        let (exit, log) = setup.start_refused(server.data_dir()).await;
        assert_eq!(exit, 1, "{}: {log}", file.display());
        assert!(log.contains("[log]"), "{}: {log}", file.display());
        fs::rename(&aside, file).unwrap();
    }
    server.restart(&setup).await;
    let basin = server.sdk().basin(sdk::basin_name("test-basin"));
    let stream = basin.stream(sdk::stream_name("orders"));
    assert_eq!(sdk::read_all(&stream).await.len(), 10);
}
