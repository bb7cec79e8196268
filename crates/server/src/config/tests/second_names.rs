//! Keys and sections of other programs are understood under the names that they have there.

use super::super::key::keys;
use super::super::{Overrides, SnapshotKind, load};
use super::{ConfigFile, assert_says, env, from_env, from_set};

const CONFLICT: &str = "config_conflict";

#[test]
fn a_section_and_keys_are_accepted_under_their_second_names() {
    for text in [
        "[worker.snapshots]\nexperimental-snapshot-kind = 'incremental'\n\
         experimental-num-retained = 3\nexperimental-orphan-cleanup = false\n",
        "[worker.snapshots]\nsnapshot-kind = 'incremental'\nnum-retained = 3\n\
         orphan-cleanup = false\n",
        "[snapshots]\nexperimental-snapshot-kind = 'incremental'\n\
         experimental-num-retained = 3\nexperimental-orphan-cleanup = false\n",
        "worker = { snapshots = { snapshot-kind = 'incremental', num-retained = 3, \
         orphan-cleanup = false } }",
    ] {
        let loaded = ConfigFile::new(text).load();
        let loaded = loaded.unwrap_or_else(|error| panic!("{error} in\n{text}"));
        let snapshots = loaded.config.snapshots;
        assert_eq!(snapshots.snapshot_kind, SnapshotKind::Incremental);
        assert_eq!(snapshots.num_retained, Some(3));
        assert!(!snapshots.orphan_cleanup);
        assert!(loaded.sources.contains_key("snapshots.num-retained"));
    }
    let set = ["worker.snapshots.experimental-num-retained=4"];
    let loaded = from_set(&set).expect("a second name");
    assert_eq!(loaded.config.snapshots.num_retained, Some(4));
    let variable = [("ESKER_SNAPSHOTS__EXPERIMENTAL_NUM_RETAINED", "5")];
    let loaded = from_env(&variable).expect("a second name");
    assert_eq!(loaded.config.snapshots.num_retained, Some(5));
}

#[test]
fn both_names_of_a_key_in_one_source_are_an_error_that_names_both_places() {
    let file = ConfigFile::new(
        "[snapshots]\nnum-retained = 2\n\n[worker.snapshots]\nexperimental-num-retained = 3\n",
    );
    let problem = format!("{} and {}", file.line(2), file.line(5));
    let parts = ["`snapshots.num-retained` is set twice", &problem];
    assert_says(&file.refused(), CONFLICT, &parts);

    let file =
        ConfigFile::new("[snapshots]\norphan-cleanup = true\nexperimental-orphan-cleanup = true");
    let problem = format!("{} and {}", file.line(2), file.line(3));
    assert_says(&file.refused(), CONFLICT, &[&problem]);

    let error = from_env(&[
        ("ESKER_SNAPSHOTS__NUM_RETAINED", "2"),
        ("ESKER_SNAPSHOTS__EXPERIMENTAL_NUM_RETAINED", "2"),
    ]);
    let parts = [
        "variable ESKER_SNAPSHOTS__NUM_RETAINED",
        "variable ESKER_SNAPSHOTS__EXPERIMENTAL_NUM_RETAINED",
    ];
    assert_says(&error.expect_err("twice"), CONFLICT, &parts);

    let error = from_set(&[
        "snapshots.num-retained=2",
        "snapshots.experimental-num-retained=2",
    ]);
    let error = error.expect_err("twice");
    assert_says(
        &error,
        "config_bad_flag",
        &["--set snapshots.num-retained sets the same key"],
    );
}

#[test]
fn a_second_name_takes_part_in_precedence_like_the_first() {
    let file = ConfigFile::new("[worker.snapshots]\nexperimental-num-retained = 2\n");
    let variables = [("ESKER_SNAPSHOTS__NUM_RETAINED", "3")];
    let loaded = load(&file.overrides(), env(&variables)).expect("good");
    assert_eq!(loaded.config.snapshots.num_retained, Some(3));
    let overrides = Overrides {
        set: vec!["snapshots.experimental-num-retained=4".into()],
        ..file.overrides()
    };
    let loaded = load(&overrides, env(&variables)).expect("good");
    assert_eq!(loaded.config.snapshots.num_retained, Some(4));
}

#[test]
fn unknown_names_near_second_ones_keep_their_suggestions() {
    for (text, suggestion) in [
        (
            "[worker.snapshots]\nnum-retaind = 3",
            "did you mean `snapshots.num-retained`?",
        ),
        (
            "[snapshots]\nexperimental-num-retaind = 3",
            "did you mean `snapshots.num-retained`?",
        ),
        (
            "[worker.snapshot]\nnum-retained = 3",
            "did you mean `[worker.snapshots]`?",
        ),
        ("[worker.zebra]\na = 3", "unknown section `[worker.zebra]`"),
        ("[worker]\nzebra = 3", "unknown key `worker.zebra`"),
        (
            "[snapshot]\nnum-retained = 3",
            "did you mean `[snapshots]`?",
        ),
        (
            "[snapshots]\nexperimental-destination = 'x'",
            "the keys of [snapshots] are",
        ),
    ] {
        assert_says(
            &ConfigFile::new(text).refused(),
            "config_unknown_key",
            &[suggestion],
        );
    }
    let set = from_env(&[("ESKER_WORKER__SNAPSHOTS__NUM_RETAINED", "7")]);
    let set = set.expect("the section's second name is understood");
    assert_eq!(set.config.snapshots.num_retained, Some(7));
    let error = from_env(&[("ESKER_WORKER__SNAPSHOTS__ZEBRA", "x")]);
    assert_says(
        &error.expect_err("no such variable"),
        "config_unknown_key",
        &["`ESKER_SNAPSHOTS__DESTINATION`"],
    );
    let file = ConfigFile::new("worker = 5");
    assert_says(
        &file.refused(),
        "config_unknown_key",
        &["unknown key `worker`"],
    );
}

#[test]
fn no_second_name_is_the_first_of_anything() {
    for key in &keys().keys {
        if let Some(alias) = &key.alias {
            let mut section = keys().of_section(key.section.as_deref());
            assert!(section.all(|key| key.name != *alias), "{alias}");
        }
    }
}
