//! Sweeps and prunes.

use super::*;

#[test]
fn a_plan_is_carried_out_as_it_was_shown_or_not_at_all() {
    let scratch = Scratch::with_two();
    let plan = scratch.json(&[
        "prune",
        "--keep",
        "1",
        "--min-age",
        "0s",
        "--dry-run",
        "--plan-out",
        "plan.json",
    ]);
    assert_eq!(plan["released"].as_array().unwrap().len(), 1);
    assert_eq!(plan["objects"].as_array().unwrap().len(), 2);
    let before = scratch.objects("ssts").len();

    // There is no terminal to ask on.
    scratch.fails(2, "needs_yes", &["prune", "--plan", "plan.json"]);
    assert_eq!(scratch.objects("ssts").len(), before, "nothing went");

    scratch.files("three", &[("a", "same")]);
    scratch.ok(&["put", "three", "--lsn", "300", "--num-retained", "3"]);
    let said = scratch.fails(1, "root_moved", &["prune", "--plan", "plan.json", "--yes"]);
    assert!(said.contains("make a new plan"), "{said}");
    assert_eq!(scratch.objects("ssts").len(), before, "nothing went");

    scratch.ok(&[
        "prune",
        "--keep",
        "1",
        "--min-age",
        "0s",
        "--dry-run",
        "--plan-out",
        "plan.json",
        "--force",
    ]);
    let pruned = scratch.json(&["prune", "--plan", "plan.json", "--yes"]);
    assert_eq!(pruned["released"].as_array().unwrap().len(), 2);
    assert_eq!(scratch.objects("ssts").len(), 1);
    assert_eq!(scratch.json(&["verify", "--data"])["sound"], true);
    scratch.fails(2, "plan", &["prune", "--plan", "backups/0/notes.txt"]);
}

#[test]
fn a_sweep_takes_orphans_that_are_old_enough_and_nothing_else() {
    let scratch = Scratch::with_two();
    let orphan = scratch
        .path("backups/0/ssts")
        .join(format!("{}.sst", "0a".repeat(24)));
    fs::write(&orphan, "orphan").unwrap();
    fs::write(scratch.path("backups/0/ssts/readme"), "mine").unwrap();
    let swept = scratch.json(&["prune"]);
    assert_eq!((&swept["deleted"], &swept["young"]), (&0.into(), &1.into()));
    assert!(orphan.exists());
    let swept = scratch.json(&["prune", "--min-age", "0s"]);
    assert_eq!(
        (&swept["deleted"], &swept["foreign"]),
        (&1.into(), &1.into())
    );
    assert!(!orphan.exists());
    assert_eq!(scratch.json(&["verify", "--data"])["sound"], true);
}

#[test]
fn a_dead_upload_is_in_the_plan_and_goes_with_it() {
    let scratch = Scratch::with_two();
    let mut root = scratch.root();
    let generation = root["generation"].as_u64().unwrap();
    root["intents"] = serde_json::json!([{
        "snapshot_ids": ["snap_1dead"],
        "generation": generation,
        "node_name": "gone",
        "renewed_at": "2020-01-01T00:00:00Z",
    }]);
    replace(
        &scratch.path("backups/0/latest.json"),
        &serde_json::to_vec(&root).unwrap(),
    );
    let orphan = scratch
        .path("backups/0/ssts")
        .join(format!("{}{generation:016x}.sst", "0a".repeat(16)));
    fs::write(&orphan, "orphan").unwrap();
    let plan = scratch.json(&[
        "prune",
        "--min-age",
        "0s",
        "--dry-run",
        "--plan-out",
        "plan.json",
    ]);
    assert_eq!(plan["fenced"], serde_json::json!([generation]));
    assert_eq!(plan["objects"].as_array().unwrap().len(), 1);
    scratch.ok(&["prune", "--plan", "plan.json"]);
    assert!(!orphan.exists());
    assert!(scratch.root().get("intents").is_none());
}
