//! A key may have no value, and a default can be unset.

use super::super::{Overrides, load, show};
use super::{ConfigFile, assert_says, env, from_env, from_set};

#[test]
fn the_empty_text_unsets_an_optional_key_wherever_it_is_said() {
    let file = ConfigFile::new("[snapshots]\nsnapshot-interval = ''\nnum-retained = ''\n");
    let by_file = file.load().expect("unset");
    let variables = [("ESKER_SNAPSHOTS__SNAPSHOT_INTERVAL", "")];
    let by_variable = from_env(&variables).expect("unset");
    let by_flag = from_set(&["snapshots.snapshot-interval= "]).expect("unset");
    for loaded in [by_file, by_variable, by_flag] {
        assert_eq!(loaded.config.snapshots.snapshot_interval, None);
        assert_eq!(loaded.config.snapshots.num_retained, None);
        assert!(loaded.sources.contains_key("snapshots.snapshot-interval"));
    }
}

#[test]
fn unset_wins_over_what_a_source_below_it_sets() {
    let file = ConfigFile::new("[snapshots]\nnum-retained = 3\ndestination = 'backups'\n");
    let overrides = Overrides {
        set: vec!["snapshots.destination=".into()],
        ..file.overrides()
    };
    let loaded = load(&overrides, env(&[("ESKER_SNAPSHOTS__NUM_RETAINED", "")])).expect("good");
    assert_eq!(loaded.config.snapshots.num_retained, None);
    assert_eq!(loaded.config.snapshots.destination, None);
}

#[test]
fn a_key_that_is_not_optional_cannot_be_unset() {
    let error = from_set(&["snapshots.orphan-min-age="]).expect_err("it has to have a value");
    assert_says(
        &error,
        "config_bad_value",
        &["it is empty; allowed: 0s to 30days"],
    );
    let error = from_set(&["snapshots.num-retained=0"]).expect_err("0 is not unset");
    assert_says(&error, "config_bad_value", &["1 to 1000; or `\"\"`, unset"]);
}

#[test]
fn what_is_unset_is_shown_as_a_comment_and_what_was_unset_loads_to_the_same() {
    let set = ["snapshots.snapshot-interval=", "snapshots.aws-region="];
    let loaded = from_set(&set).expect("good");
    let text = show(&loaded);
    for line in [
        "# num-retained = (unset)",
        "# destination = (unset)",
        "# aws-region = (unset)  # flag --set snapshots.aws-region",
        "snapshot-interval = \"\"  # flag --set snapshots.snapshot-interval",
        "recovery-budget = \"30s\"",
    ] {
        assert!(
            text.lines().any(|shown| shown == line),
            "no line `{line}` in\n{text}"
        );
    }
    let again = ConfigFile::new(&text).load().expect("TOML");
    assert_eq!(again.config, loaded.config, "{text}");
}

#[test]
fn all_that_can_be_set_is_shown_and_loads_to_the_same() {
    let loaded = from_set(&[
        "snapshots.destination=s3://bucket/a b/%20",
        "snapshots.snapshot-interval-num-records=1000000000000",
        "snapshots.restore-test-interval=1h 30m",
        "snapshots.num-retained=1000",
        "snapshots.on-log-full=refuse-appends",
        "snapshots.local-snapshot-num-records=0",
        "snapshots.local-snapshot-bytes=0",
        "snapshots.aws-allow-http=false",
        "snapshots.aws-endpoint-url=http://localhost:9000",
    ]);
    let loaded = loaded.expect("good");
    let again = ConfigFile::new(show(&loaded)).load().expect("TOML");
    assert_eq!(again.config, loaded.config);
}

#[test]
fn a_configuration_made_in_code_may_have_unset_values() {
    let mut config = super::super::Config::default();
    config.snapshots.snapshot_interval = None;
    config.validate().expect("unset is allowed");
    config.snapshots.num_retained = Some(0);
    let error = config.validate().expect_err("0 is not");
    assert_says(&error, "config_bad_value", &["`snapshots.num-retained`"]);
}

#[test]
fn what_is_said_once_is_no_key_and_no_mistake() {
    for value in ["restore", ""] {
        let loaded = from_env(&[("ESKER_BOOTSTRAP", value)]).expect("not a key");
        assert_eq!(loaded.warnings, [""; 0]);
    }
    let error = from_env(&[("ESKER_BOOTSTRP", "new")]).expect_err("a mistake");
    assert_says(
        &error,
        "config_unknown_key",
        &["did you mean `ESKER_BOOTSTRAP`?"],
    );
}
