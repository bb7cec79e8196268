//! Repositories without a root, of Restate, and of other clusters and lineages.

use super::*;

#[test]
fn a_root_that_is_missing_or_damaged_is_told_from_an_empty_repository() {
    let scratch = Scratch::new();
    scratch.files("one", &[("a", "text")]);
    for command in [
        &["list"][..],
        &["show"],
        &["verify"],
        &["restore", "--to", "back"],
        &["prune"],
    ] {
        scratch.fails(1, "no_repository", command);
    }
    assert!(!scratch.path("backups").exists(), "reading makes nothing");
    scratch.ok(&["put", "one", "--lsn", "1"]);
    let root = scratch.path("backups/0/latest.json");
    let good = fs::read(&root).unwrap();

    let name = scratch.root()["path"].as_str().unwrap().to_owned();

    let bad = [
        (&b"{"[..], "damaged"),
        (b"", "damaged"),
        // Of a newer release: neither damaged nor missing.
        (br#"{"version":"V9"}"#, "newer_format"),
    ];
    for (number, (content, code)) in bad.into_iter().enumerate() {
        replace(&root, content);
        // A snapshot that is named in full is found without a root.
        let to = format!("named-{number}");
        scratch.fails(1, code, &["restore", "--to", &to]);
        scratch.ok(&["restore", &name, "--to", &to]);
        assert_eq!(fs::read(scratch.path(&to).join("a")).unwrap(), b"text");
        for command in [
            &["list"][..],
            &["verify"],
            &["put", "one", "--lsn", "2"],
            &["prune"],
        ] {
            scratch.fails(1, code, command);
        }
        assert_eq!(fs::read(&root).unwrap(), content, "it is left as it is");
    }

    fs::remove_file(&root).unwrap();
    for command in [&["list"][..], &["put", "one", "--lsn", "2"], &["prune"]] {
        scratch.fails(1, "root_missing", command);
    }
    scratch.ok(&["restore", &name, "--to", "named"]);
    assert!(!root.exists());
    fs::write(&root, good).unwrap();
    scratch.ok(&["verify", "--data"]);
}

#[test]
fn what_restate_wrote_is_read_and_never_written_to() {
    let scratch = Scratch::new();
    let files = scratch.files("one", &[("000007.sst", "table")]);
    scratch.ok(&["put", "one", "--lsn", "1", "--kind", "full"]);
    // A root as Restate writes it: without a generation and checksums.
    let mut root = scratch.root();
    root.as_object_mut().unwrap().remove("generation");
    let root_file = scratch.path("backups/0/latest.json");
    replace(&root_file, &serde_json::to_vec(&root).unwrap());
    let description = scratch
        .path("backups/0")
        .join(root["path"].as_str().unwrap())
        .join("metadata.json");
    let mut metadata: Value = serde_json::from_slice(&fs::read(&description).unwrap()).unwrap();
    metadata.as_object_mut().unwrap().remove("checksums");
    replace(&description, &serde_json::to_vec(&metadata).unwrap());

    let list = scratch.json(&["list"]);
    assert!(list["partitions"][0]["generation"].is_null());
    let report = scratch.json(&["verify", "--data"]);
    assert_eq!(report["without_checksums"].as_array().unwrap().len(), 1);
    let output = scratch.run(&["restore", "--to", "back", "--json"]);
    let restored: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(restored["checked"], "sizes-only");
    assert_eq!(restored["pinned"], false);
    assert!(stderr(&output).contains("not written by Esker"));
    assert_eq!(
        fs::read(scratch.path("back/000007.sst")).unwrap(),
        fs::read(files.join("000007.sst")).unwrap()
    );
    scratch.fails(1, "not_ours", &["put", "one", "--lsn", "2"]);
    scratch.fails(1, "not_ours", &["prune"]);
    // The same for another partition, for which no cluster has claimed the destination.
    fs::remove_file(scratch.path("backups/cluster.json")).unwrap();
    let elsewhere = &["put", "one", "--lsn", "2", "--partition", "2"];
    scratch.fails(1, "not_ours", elsewhere);
    assert!(!scratch.path("backups/2").exists());
    let after: Value = serde_json::from_slice(&fs::read(&root_file).unwrap()).unwrap();
    assert_eq!(after, root);
}

#[test]
fn other_clusters_histories_and_partitions_are_not_mixed() {
    let scratch = Scratch::new();
    scratch.files("one", &[("a", "text")]);
    let lineage = "0123456789abcdef0123456789abcdef";
    scratch.ok(&[
        "put",
        "one",
        "--lsn",
        "5",
        "--cluster-name",
        "mine",
        "--lineage",
        lineage,
    ]);
    scratch.fails(
        1,
        "other_cluster",
        &[
            "put",
            "one",
            "--lsn",
            "6",
            "--cluster-name",
            "theirs",
            "--lineage",
            lineage,
        ],
    );
    scratch.fails(1, "other_lineage", &["put", "one", "--lsn", "6"]);
    scratch.ok(&["put", "one", "--lsn", "6", "--lineage", lineage]);
    scratch.fails(
        1,
        "superseded",
        &["put", "one", "--lsn", "5", "--lineage", lineage],
    );
    scratch.ok(&["put", "one", "--lsn", "7", "--partition", "3"]);
    let said = scratch.fails(2, "partition", &["show"]);
    assert!(said.contains("one of 0, 3"), "{said}");
    let list = scratch.json(&["list"]);
    assert_eq!(list["partitions"].as_array().unwrap().len(), 2);
    assert_eq!(scratch.json(&["show", "--partition", "3"])["partition"], 3);
}
