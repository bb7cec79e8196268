//! `esker snapshot` on repositories in directories: its decisions, what it leaves behind, and its exit codes.
//!
//! What it prints is in `docs/guides/snapshots.md`, which [`crate::transcripts`] runs.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

mod foreign;
mod pruning;
mod scratch;

use scratch::{Scratch, replace};

use crate::support::{esker, eventually, run, signal, stderr, stdout};

#[test]
fn a_directory_comes_back_as_it_was_put() {
    let scratch = Scratch::with_two();
    let restored = scratch.json(&["restore", "--to", "back"]);
    assert_eq!(restored["lsn"], 200);
    assert_eq!(restored["checked"], "checksums");
    assert_eq!(restored["pinned"], true);
    for (file, text) in [("a", "same"), ("b", "new"), ("sub/c", "added")] {
        let back = fs::read_to_string(scratch.path("back").join(file)).unwrap();
        assert_eq!(back, text, "{file}");
    }
    assert!(scratch.root().get("pins").is_none(), "the pin is gone");
    let restored = scratch.json(&["restore", "100", "--to", "older"]);
    assert_eq!(restored["lsn"], 100);
    let b = fs::read_to_string(scratch.path("older/b")).unwrap();
    assert_eq!(b, "old");
    // An existing directory stays, because it may be a mount point, a link's target, or in use.
    fs::create_dir_all(scratch.path("empty/inner")).unwrap();
    symlink("empty/inner", scratch.path("link")).unwrap();
    let before = fs::metadata(scratch.path("empty/inner")).unwrap().ino();
    let mut here = scratch.snapshot(&["restore", "--to", ".", "--json"]);
    here.current_dir(scratch.path("empty/inner"))
        .env("ESKER_REPOSITORY", scratch.path("backups"));
    let said = stderr(&run(here, b""));
    assert!(!said.contains("error"), "{said}");
    let inner = fs::metadata(scratch.path("empty/inner")).unwrap().ino();
    assert_eq!(inner, before);
    let names = |dir: &str| fs::read_dir(scratch.path(dir)).unwrap().count();
    assert_eq!((names("empty"), names("empty/inner")), (1, 3));
    let said = scratch.fails(2, "invalid", &["restore", "--to", "link"]);
    assert!(said.contains("not empty"), "{said}");
    fs::remove_dir_all(scratch.path("empty/inner")).unwrap();
    fs::create_dir(scratch.path("empty/inner")).unwrap();
    scratch.ok(&["restore", "--to", "link"]);
    assert_eq!((names("empty"), names("empty/inner")), (1, 3));

    let said = scratch.fails(2, "invalid", &["restore", "--to", "back"]);
    assert!(said.contains("not empty"), "{said}");
    scratch.fails(1, "no_snapshot", &["restore", "300", "--to", "none"]);
}

#[test]
fn what_a_retained_snapshot_has_is_not_uploaded_again() {
    let scratch = Scratch::with_two();
    scratch.files("three", &[("a", "same"), ("d", "more")]);
    let put = scratch.json(&["put", "three", "--lsn", "300", "--num-retained", "3"]);
    assert_eq!(put["files_reused"], 1);
    assert_eq!(put["bytes_uploaded"], 4);
    let list = scratch.json(&["list"]);
    let snapshots = list["partitions"][0]["snapshots"].as_array().unwrap();
    let lsns: Vec<_> = snapshots
        .iter()
        .map(|s| s["lsn"].as_u64().unwrap())
        .collect();
    assert_eq!(lsns, [300, 200, 100]);
    assert_eq!(snapshots[0]["states"][0], "newest");
    let diff = scratch.json(&["diff", "200", "300"]);
    assert_eq!(diff["added"][0]["name"], "/d");
    assert_eq!(diff["removed"].as_array().unwrap().len(), 2);
}

#[test]
fn hashes_are_remembered_below_the_cache_directory_unless_that_is_unwanted() {
    let scratch = Scratch::new();
    scratch.files("one", &[("a", "text")]);
    scratch.ok(&["put", "one", "--lsn", "1", "--no-cache"]);
    assert!(!scratch.path("caches").exists());
    scratch.ok(&["put", "one", "--lsn", "2"]);
    let remembered = fs::read_dir(scratch.path("caches/esker/digests")).unwrap();
    assert_eq!(remembered.count(), 1);
}

#[test]
fn the_first_put_probes_the_store_and_leaves_nothing_of_the_probe() {
    let scratch = Scratch::new();
    scratch.files("one", &[("a", "text")]);
    scratch.ok(&["put", "one", "--lsn", "1"]);
    let mut entries: Vec<_> = fs::read_dir(scratch.path("backups"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|name| !name.to_string_lossy().starts_with('.'))
        .collect();
    entries.sort();
    assert_eq!(entries, ["0", "cluster.json"]);
}

#[test]
fn damage_is_named_with_the_snapshots_that_it_hurts_and_passed_over_by_a_restore() {
    let scratch = Scratch::with_two();
    let show = scratch.json(&["show", "200"]);
    let key = show["metadata"]["file_keys"]["/b"]
        .as_str()
        .unwrap()
        .to_owned();
    let newest = show["snapshot"].as_str().unwrap().to_owned();
    replace(&scratch.path("backups/0").join(&key), b"neW");

    let sizes = scratch.json(&["verify"]);
    assert_eq!(sizes["sound"], true, "the size is right");
    let said = scratch.fails(1, "damaged", &["verify", "--data"]);
    assert!(
        said.contains("1 object is damaged, which hurts 1 snapshot of 2"),
        "{said}"
    );
    let output = scratch.run(&["verify", "--data", "--json"]);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["damaged"][0]["key"], key);
    assert_eq!(report["damaged"][0]["hurts"][0], newest);

    let restored = scratch.json(&["restore", "--to", "back"]);
    assert_eq!(restored["lsn"], 100);
    assert_eq!(restored["passed_over"][0]["snapshot"], newest);
    scratch.fails(1, "unusable", &["restore", "200", "--to", "other"]);
    assert!(!scratch.path("other").exists());

    fs::remove_file(scratch.path("backups/0").join(&key)).unwrap();
    let said = scratch.fails(1, "damaged", &["why", &key]);
    assert!(said.contains("needed and missing"), "{said}");
}

#[test]
fn an_object_can_be_named_by_its_key_its_url_and_its_path() {
    let scratch = Scratch::with_two();
    let show = scratch.json(&["show"]);
    let key = show["metadata"]["file_keys"]["/a"]
        .as_str()
        .unwrap()
        .to_owned();
    let repository = show["repository"].as_str().unwrap();
    for name in [
        key.clone(),
        format!("0/{key}"),
        format!("backups/0/{key}"),
        format!("{repository}/0/{key}"),
    ] {
        let why = scratch.json(&["why", &name]);
        assert_eq!(why["key"], key, "{name}");
        assert_eq!(why["kept_by"].as_array().unwrap().len(), 2, "{name}");
    }
    fs::write(scratch.path("backups/0/notes.txt"), "mine").unwrap();
    let why = scratch.json(&["why", "notes.txt"]);
    assert_eq!(why["verdict"]["verdict"], "foreign");
}

#[test]
fn directories_without_a_file_are_named() {
    let scratch = Scratch::new();
    scratch.files("one", &[("a", "same"), ("full/b", "b")]);
    for empty in ["empty/in/each/other", "full/empty"] {
        fs::create_dir_all(scratch.path("one").join(empty)).unwrap();
    }
    let put = scratch.json(&["put", "one", "--lsn", "1"]);
    assert_eq!(
        put["empty_directories"],
        serde_json::json!(["empty", "full/empty"])
    );
    let said = scratch.ok(&["put", "one", "--lsn", "2"]);
    let wanted = "not kept, as there is no file in them: empty, full/empty\n";
    assert!(said.contains(wanted), "{said}");
}

#[test]
fn a_put_with_a_rate_takes_its_time_and_links_none() {
    let scratch = Scratch::new();
    let text = "x".repeat(8 << 10);
    scratch.files(
        "one",
        &[("a", &format!("{text}a")), ("b", &format!("{text}b"))],
    );
    let seconds = |options: &[&str]| {
        let put = scratch.json(&[&["put", "one"], options].concat());
        put["seconds"].as_f64().unwrap()
    };
    // 16 KiB at 8 KiB a second; the amount of one second is sent at once.
    let bound = ["--rate", "8KiB"];
    let copied = seconds(&[&["--lsn", "1", "--no-links"], &bound[..]].concat());
    assert!(copied >= 1.0, "{copied} s");
    // With hard links or without a bound, no time is needed: 16 KiB at 1 KiB a second would be 15 s.
    for options in [&["--rate", "1KiB"][..], &["--rate", "0", "--no-links"]] {
        let took = seconds(&[&["--lsn", "2", "--no-reuse"], options].concat());
        assert!(took < 10.0, "{options:?}: {took} s");
    }
    scratch.ok(&["verify", "--data"]);

    let refused = scratch.run(&["put", "one", "--lsn", "4", "--rate", "64M"]);
    assert_eq!(refused.status.code(), Some(2));
    let said = stderr(&refused);
    assert!(said.contains("may mean 1000 or 1024"), "{said}");
}

#[test]
fn a_put_without_reuse_heals_what_verify_found() {
    let scratch = Scratch::new();
    scratch.files("one", &[("a.bin", "all right"), ("b.bin", "also")]);
    scratch.ok(&["put", "one", "--lsn", "1", "--no-links"]);
    for entry in fs::read_dir(scratch.path("backups/0/ssts")).unwrap() {
        let path = entry.unwrap().path();
        if fs::read(&path).unwrap() == b"all right" {
            fs::write(&path, "ALL WRONG").unwrap();
        }
    }
    // Reused unchanged, the damage is inherited.
    scratch.ok(&["put", "one", "--lsn", "2", "--no-links"]);
    assert_eq!(scratch.run(&["verify", "--data"]).status.code(), Some(1));
    scratch.ok(&["put", "one", "--lsn", "3", "--no-links", "--no-reuse"]);
    scratch.ok(&["verify", "--data"]);
    scratch.ok(&["restore", "--to", "back"]);
    assert_eq!(fs::read(scratch.path("back/a.bin")).unwrap(), b"all right");
}

#[test]
fn every_partition_is_verified_and_planned_for_unless_one_is_named() {
    let scratch = Scratch::new();
    scratch.files("one", &[("a", "text")]);
    for partition in ["0", "3", "5"] {
        for lsn in ["1", "2"] {
            scratch.ok(&[
                "put",
                "one",
                "--lsn",
                lsn,
                "--num-retained",
                "2",
                "--partition",
                partition,
            ]);
        }
    }
    let numbers = |document: &Value| -> Vec<u64> {
        let partitions = document["partitions"].as_array().unwrap().iter();
        partitions
            .map(|one| one["partition"].as_u64().unwrap())
            .collect()
    };
    let verified = scratch.json(&["verify", "--data"]);
    assert_eq!(numbers(&verified), [0, 3, 5]);
    for one in verified["partitions"].as_array().unwrap() {
        assert_eq!(one["sound"], true);
        assert_eq!(one["snapshots"].as_array().unwrap().len(), 2);
    }
    assert_eq!(
        scratch.json(&["verify", "--partition", "3"])["partition"],
        3
    );
    let text = scratch.ok(&["verify"]);
    for partition in ["partition 0: ", "partition 3: ", "partition 5: "] {
        assert!(text.contains(partition), "{text}");
    }

    let planned = scratch.json(&["prune", "--dry-run", "--keep", "1"]);
    assert_eq!(numbers(&planned), [0, 3, 5]);
    for one in planned["partitions"].as_array().unwrap() {
        assert_eq!(one["released"].as_array().unwrap().len(), 1, "{one}");
    }
    let text = scratch.ok(&["prune", "--dry-run", "--keep", "1"]);
    assert_eq!(text.matches("would release ").count(), 3, "{text}");
    // A plan covers one partition, and so does its execution.
    scratch.fails(
        2,
        "partition",
        &["prune", "--dry-run", "--plan-out", "plan.json"],
    );
    scratch.fails(2, "partition", &["prune"]);

    // A partition that cannot be read does not hide the others.
    fs::write(scratch.path("backups/3/latest.json"), "{").unwrap();
    let output = scratch.run(&["verify", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(numbers(&document), [0, 3, 5]);
    assert!(
        document["partitions"][1]["problem"].is_string(),
        "{document}"
    );
    assert_eq!(document["partitions"][2]["sound"], true, "{document}");
    assert_eq!(document["error"]["code"], "damaged", "{document}");
}

#[test]
fn where_nothing_is_named_the_server_on_this_machine_is_asked() {
    let mut command = esker();
    command.args(["snapshot", "list"]);
    let output = run(command, b"");
    // There may be a server at the default address.
    if !output.status.success() {
        let said = stderr(&output);
        assert!(said.contains("http://127.0.0.1:7070"), "{said}");
        assert!(said.contains("--repository"), "{said}");
    }
    // A command that needs a repository contacts no server.
    let mut command = esker();
    command.args(["snapshot", "restore", "--to", "nowhere"]);
    let output = run(command, b"");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("[repository]"),
        "{}",
        stderr(&output)
    );
    let both = [
        "--server",
        "http://127.0.0.1:1",
        "snapshot",
        "list",
        "--repository",
        "x",
    ];
    let mut command = esker();
    command.args(both);
    let output = run(command, b"");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("[usage]"), "{}", stderr(&output));
}

#[test]
fn secrets_are_printed_nowhere() {
    let scratch = Scratch::new();
    let output = scratch.run(&[
        "list",
        "--repository",
        "s3://bucket/prefix",
        "--aws-access-key-id",
        "TheKeyId",
        "--aws-secret-access-key",
        "TheSecret",
        "--aws-endpoint-url",
        "ftp://TheUser:ThePassword@localhost",
    ]);
    let said = stderr(&output) + &stdout(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for secret in ["TheKeyId", "TheSecret", "ThePassword"] {
        assert!(!said.contains(secret), "{said}");
    }
}

#[test]
fn a_put_that_is_interrupted_ends_promptly_and_the_next_one_is_not_hindered() {
    let scratch = Scratch::new();
    let big = scratch.files("big", &[("a", "text")]);
    let file = fs::File::create(big.join("b")).unwrap();
    // A sparse file, large enough for its hash to take a while.
    file.set_len(60 << 30).unwrap();
    let mut command = scratch.snapshot(&["put", "big", "--lsn", "1", "--no-links"]);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let root = scratch.path("backups/0/latest.json");
    eventually("the intent is there", || root.exists());
    std::thread::sleep(Duration::from_millis(100));
    let began = std::time::Instant::now();
    signal(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("error [interrupted]"),
        "{}",
        stderr(&output)
    );
    scratch.fails(1, "unusable", &["show"]);

    fs::remove_file(big.join("b")).unwrap();
    scratch.ok(&["put", "big", "--lsn", "2"]);
    let list = scratch.json(&["list"]);
    assert_eq!(
        list["partitions"][0]["snapshots"].as_array().unwrap().len(),
        1
    );
    assert_eq!(
        list["partitions"][0]["uploads"].as_array().unwrap().len(),
        1
    );
}
