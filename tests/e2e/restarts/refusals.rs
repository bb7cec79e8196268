//! Refused starts: the message names what to do, and nothing is changed.

use std::fs;

use testkit::corruption::{change_in_place, flip_middle};

use super::{copy_dir, everything};
use crate::small_disk::noise;
use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{Server, Setup, eventually};

/// A server that was used and stopped; it owns its directory.
async fn used(setup: &Setup, kill: bool) -> Server {
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    for i in 0..4 {
        let stream = sdk::stream(&basin, &format!("orders-{i}")).await;
        sdk::append(&stream, ["one", "two"]).await;
    }
    if kill {
        // The first snapshot, which nobody asks for, writes tables.
        eventually("the database has a table", async || {
            let mut files = fs::read_dir(server.data_dir().join("db")).ok()?.flatten();
            let is_table = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".sst");
            files.any(|file| is_table(&file.file_name())).then_some(())
        })
        .await;
        server.kill();
    } else {
        server.stop().await;
    }
    server
}

#[tokio::test]
async fn a_second_process_on_a_data_directory_is_refused_with_the_pid_of_the_first() {
    let setup = Setup::default();
    let server = setup.start_fresh().await;
    let (code, log) = setup.start_refused(server.data_dir()).await;
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("[data_dir_in_use]"), "{log}");
    assert!(log.contains(&format!("pid {}", server.pid())), "{log}");
    // The first server is not affected.
    sdk::basin(&server.sdk(), "test-basin").await;
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_says_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let (code, log) = Setup::default()
        .listen(&address)
        .start_refused(&data_dir)
        .await;
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("[listen]"), "{log}");
    assert!(log.contains(&address) && log.contains("--listen"), "{log}");
    assert!(!data_dir.exists(), "the port comes before the data");
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let setup = Setup::default();
    let server = used(&setup, false).await;
    let path = server.data_dir().join("node.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut identity: serde_json::Value = serde_json::from_str(&text).unwrap();
    identity["format"] = 99.into();
    identity["something-new"] = "ever".into();
    fs::write(&path, identity.to_string()).unwrap();
    let (code, log) = setup.start_refused(server.data_dir()).await;
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("[data_dir_newer_format]"), "{log}");
    assert!(log.contains("use a newer esker"), "{log}");
    fs::write(&path, text).unwrap();
    setup.start(server.data_dir()).await;
}

#[tokio::test]
async fn another_number_of_partitions_is_refused() {
    let setup = Setup::default().partitions(2);
    let mut server = used(&setup, false).await;
    for partitions in [1, 3] {
        let other = setup.clone().partitions(partitions);
        let (code, log) = other.start_refused(server.data_dir()).await;
        assert_eq!(code, 1, "{log}");
        assert!(log.contains("[partitions_changed]"), "{log}");
        assert!(log.contains("made with 2 partitions"), "{log}");
    }
    server.restart(&setup).await;
    let basin = server.sdk().basin(basin_name("test-basin"));
    let records = sdk::read_all(&basin.stream(stream_name("orders-0"))).await;
    assert_eq!(records.len(), 2);
}

#[tokio::test]
async fn a_lost_part_stops_the_start_and_nothing_is_made_in_its_place() {
    for kill in [true, false] {
        let setup = Setup::default();
        let mut server = used(&setup, kill).await;
        let data_dir = server.data_dir().to_owned();
        let aside = data_dir.with_extension("aside");
        for (lost, code) in [
            ("log", "[log_missing]"),
            ("node.json", "[data_dir_bad_identity]"),
        ] {
            let path = data_dir.join(lost);
            fs::rename(&path, &aside).unwrap();
            for _ in 0..2 {
                let (exit, log) = setup.start_refused(&data_dir).await;
                assert_eq!(exit, 1, "{lost}: {log}");
                assert!(log.contains(code), "{lost}: {log}");
                assert!(log.contains(&*data_dir.to_string_lossy()), "{lost}: {log}");
            }
            assert!(!path.exists(), "{lost} was created again");
            fs::rename(&aside, &path).unwrap();
        }
        // An empty directory in the place of a lost one is refused, too.
        let path = data_dir.join("log");
        fs::rename(&path, &aside).unwrap();
        fs::create_dir(&path).unwrap();
        let (exit, log) = setup.start_refused(&data_dir).await;
        assert_eq!(exit, 1, "{log}");
        assert!(log.contains("[log_missing]"), "{log}");
        fs::remove_dir_all(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        server.restart(&setup).await;
        all_is_there(&server).await;
    }
}

/// Checks that everything that [`used`] has appended is there.
async fn all_is_there(server: &Server) {
    let basin = server.sdk().basin(basin_name("test-basin"));
    for i in 0..4 {
        let stream = basin.stream(stream_name(&format!("orders-{i}")));
        assert_eq!(sdk::bodies(&sdk::read_all(&stream).await), ["one", "two"]);
    }
}

#[tokio::test]
async fn a_database_that_is_lost_or_lost_a_file_is_recovered_from_snapshot_and_log() {
    let setup = Setup::default().partitions(2);
    for lost in ["", "CURRENT", "MANIFEST", "sst"] {
        for kill in [true, false] {
            let mut server = used(&setup, kill).await;
            let db = server.data_dir().join("db");
            let of_kind = |entry: std::io::Result<fs::DirEntry>| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name.starts_with(lost) || name.ends_with(lost)).then_some(path)
            };
            match lost {
                "" => fs::remove_dir_all(&db).unwrap(),
                _ => {
                    let file = fs::read_dir(&db).unwrap().find_map(of_kind).unwrap();
                    fs::remove_file(file).unwrap();
                }
            }
            server.restart(&setup).await;
            all_is_there(&server).await;
            // New records can be appended.
            let basin = server.sdk().basin(basin_name("test-basin"));
            let stream = basin.stream(stream_name("orders-0"));
            sdk::append(&stream, ["three"]).await;
            server.kill();
            server.restart(&setup).await;
            let basin = server.sdk().basin(basin_name("test-basin"));
            let stream = basin.stream(stream_name("orders-0"));
            let bodies = sdk::bodies(&sdk::read_all(&stream).await);
            assert_eq!(bodies, ["one", "two", "three"], "{lost}, {kill}");
        }
    }
}

#[tokio::test]
async fn a_log_or_a_database_from_another_time_stops_the_start() {
    let setup = Setup::default()
        .set("log.flush-after=64KiB")
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=1MiB");
    let mut server = used(&setup, false).await;
    let data_dir = server.data_dir().to_owned();
    let old = data_dir.with_extension("old");
    copy_dir(&data_dir, &old);

    server.restart(&setup).await;
    let basin = server.sdk().basin(basin_name("test-basin"));
    for i in 0..4 {
        let stream = basin.stream(stream_name(&format!("orders-{i}")));
        for _ in 0..4 {
            sdk::append(&stream, [vec![1; 900_000]]).await;
        }
    }
    let before = everything(&server.sdk()).await;
    server.stop().await;
    let new = data_dir.with_extension("new");
    copy_dir(&data_dir, &new);

    // The old log lacks entries that the database has applied and that were acknowledged.
    fs::remove_dir_all(data_dir.join("log")).unwrap();
    copy_dir(&old.join("log"), &data_dir.join("log"));
    let (exit, log) = setup.start_refused(&data_dir).await;
    assert_eq!(exit, 1, "{log}");
    assert!(log.contains("partition "), "{log}");
    fs::remove_dir_all(&data_dir).unwrap();
    copy_dir(&new, &data_dir);
    server.restart(&setup).await;
    assert_eq!(everything(&server.sdk()).await, before);
    server.stop().await;
}

#[tokio::test]
async fn a_data_directory_that_is_a_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, "not a directory").unwrap();
    let (exit, log) = Setup::default().start_refused(&path).await;
    assert_eq!(exit, 1, "{log}");
    assert!(log.contains("[data_dir_no_directory]"), "{log}");
    assert!(log.contains(&*path.to_string_lossy()), "{log}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "not a directory");
}

#[tokio::test]
async fn a_damaged_block_of_the_database_is_an_error_and_never_other_data() {
    let setup = Setup::default().partitions(1);
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let damaged = sdk::stream(&basin, "damaged").await;
    let bodies: Vec<String> = (0..40)
        .map(|i| format!("{i} {}", noise(i, 40_000)))
        .collect();
    for body in &bodies {
        sdk::append(&damaged, [body]).await;
    }
    server.stop().await;
    // A byte in the middle of the largest file.
    let mut files: Vec<_> = fs::read_dir(server.data_dir().join("db"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "sst"))
        .collect();
    files.sort_by_key(|path| fs::metadata(path).unwrap().len());
    let file = files.pop().unwrap();
    change_in_place(&file, |bytes| {
        assert!(bytes.len() > 500_000, "{}", file.display());
        flip_middle(bytes);
    });

    server.restart(&setup).await;
    let http = server.http1();
    let mut errors = 0;
    for (i, body) in bodies.iter().enumerate() {
        let answer = http
            .get(&format!("/v1/streams/damaged/records?seq_num={i}&count=1"))
            .basin("test-basin")
            .send()
            .await;
        if answer.status == 200 {
            assert_eq!(answer.json()["records"][0]["body"], **body);
        } else {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            assert!(answer.text().contains(&name), "{}", answer.text());
            answer.refused(500, "storage");
            errors += 1;
        }
    }
    assert!((1..10).contains(&errors), "{errors}");
    // The other streams work.
    let basin = server.sdk().basin(basin_name("test-basin"));
    let healthy = sdk::stream(&basin, "healthy").await;
    sdk::append(&healthy, ["well"]).await;
    assert_eq!(sdk::bodies(&sdk::read_all(&healthy).await), ["well"]);
}

#[tokio::test]
async fn a_changed_cluster_name_is_refused() {
    let setup = Setup::default();
    let mut server = used(&setup, false).await;
    let other = setup.clone().set("cluster-name=another");
    let (exit, log) = other.start_refused(server.data_dir()).await;
    assert_eq!(exit, 1, "{log}");
    assert!(log.contains("error [cluster_name_changed]"), "{log}");
    assert!(log.contains("`another`"), "{log}");
    server.restart(&setup).await;
    all_is_there(&server).await;
}

#[tokio::test]
async fn a_new_cluster_never_begins_over_the_last_local_copies() {
    // The checkpoints of the stop cover everything.
    let setup = Setup::default()
        .set("snapshots.snapshot-interval=1h")
        .set("snapshots.snapshot-on-stop=true");
    let outside = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}", outside.path().display());
    let setup = setup.set(&destination);
    let mut server = used(&setup, false).await;
    let data_dir = server.data_dir().to_owned();
    for lost in ["node.json", "log", "db"] {
        let path = data_dir.join(lost);
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }
    // The repository is lost as well.
    let elsewhere = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}", elsewhere.path().display());
    let setup = setup.set(&destination);
    for bootstrap in [None, Some("new")] {
        let setup = match bootstrap {
            Some(what) => setup.clone().bootstrap(what),
            None => setup.clone(),
        };
        let (exit, log) = setup.start_refused(&data_dir).await;
        assert_eq!(exit, 1, "{log}");
        assert!(log.contains("error [data_dir_holds_copies]"), "{log}");
        assert!(log.contains("partitions 0, 1, 2"), "{log}");
    }
    assert!(!data_dir.join("db").exists());
    // The option that the message names. A new lineage begins, so later appends have other numbers.
    for setup in [setup.clone().bootstrap("restore"), setup] {
        server.restart(&setup).await;
        for i in 0..4 {
            let path = format!("/v1/streams/orders-{i}/records?seq_num=0&count=2");
            let http = server.http1();
            let answer = http.get(&path).basin("test-basin").send().await.expect(200);
            let records = answer.json()["records"].clone();
            let bodies = [&records[0]["body"], &records[1]["body"]];
            assert_eq!(bodies, ["one", "two"], "{records}");
        }
        server.kill();
    }
}

#[tokio::test]
async fn a_destination_among_the_servers_own_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    for inside in ["", "db/backups", "log", "backups"] {
        let path = data_dir.join(inside);
        let setting = format!("snapshots.destination={}", path.display());
        let (exit, log) = Setup::default()
            .set(&setting)
            .start_refused(&data_dir)
            .await;
        assert_eq!(exit, 1, "{log}");
        assert!(log.contains("error [destination]"), "{inside}: {log}");
    }
}
