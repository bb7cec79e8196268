//! The variables of Statehouse have the same effect here, or an error explains why they have none.

use super::super::{HumanDuration, Overrides, Source, load};
use super::{ConfigFile, assert_says, env, from_env};

const BAD: &str = "config_bad_value";

#[test]
fn every_variable_sets_its_key() {
    let loaded = from_env(&[
        ("STATEHOUSE_ADDR", "127.0.0.1:50051"),
        ("STATEHOUSE_DATA_DIR", "/srv/state"),
        ("STATEHOUSE_SNAPSHOT_INTERVAL", "250"),
        ("STATEHOUSE_TX_TIMEOUT_MS", "1500"),
        ("STATEHOUSE_FSYNC_ON_COMMIT", "true"),
        ("STATEHOUSE_USE_MEMORY", "0"),
    ]);
    let loaded = loaded.expect("all are good");
    assert_eq!(loaded.warnings, [""; 0]);
    let config = &loaded.config;
    assert_eq!(config.state.listen, "127.0.0.1:50051".parse().ok());
    assert_eq!(config.data_dir.to_str(), Some("/srv/state"));
    assert_eq!(config.state.snapshot_interval, 250);
    assert_eq!(
        config.state.transaction_timeout,
        HumanDuration::from_millis(1500)
    );
    let name = "STATEHOUSE_ADDR".into();
    assert_eq!(loaded.source("state.listen"), Source::Environment { name });
}

#[test]
fn they_win_over_the_file_and_lose_to_variables_and_flags_of_esker() {
    let file = ConfigFile::new("[state]\nsnapshot-interval = 1\nlisten = '127.0.0.1:1'\n");
    let variables = [
        ("STATEHOUSE_SNAPSHOT_INTERVAL", "2"),
        ("STATEHOUSE_ADDR", "127.0.0.1:2"),
        ("ESKER_STATE__SNAPSHOT_INTERVAL", "3"),
    ];
    let loaded = load(&file.overrides(), env(&variables)).expect("good");
    assert_eq!(loaded.config.state.snapshot_interval, 3);
    assert_eq!(loaded.config.state.listen, "127.0.0.1:2".parse().ok());
    let overrides = Overrides {
        set: vec!["state.listen=".into()],
        ..Overrides::default()
    };
    let loaded = load(&overrides, env(&variables)).expect("good");
    assert_eq!(loaded.config.state.listen, None);
}

#[test]
fn both_names_of_the_address_may_say_the_same_and_nothing_else() {
    let loaded = from_env(&[
        ("STATEHOUSE_ADDR", "localhost:50051"),
        ("STATEHOUSE_LISTEN_ADDR", "127.0.0.1:50051"),
    ]);
    let loaded = loaded.expect("the same");
    assert_eq!(loaded.config.state.listen, "127.0.0.1:50051".parse().ok());
    let error = from_env(&[
        ("STATEHOUSE_ADDR", "127.0.0.1:1"),
        ("STATEHOUSE_LISTEN_ADDR", "127.0.0.1:2"),
    ]);
    assert_says(
        &error.expect_err("two values"),
        "config_conflict",
        &[
            "variable STATEHOUSE_ADDR to \"127.0.0.1:1\"",
            "variable STATEHOUSE_LISTEN_ADDR to \"127.0.0.1:2\"",
            "keep one of them",
        ],
    );
}

#[test]
fn an_address_that_others_can_reach_is_refused_as_it_is_for_listen() {
    let variables = [("STATEHOUSE_ADDR", "0.0.0.0:50051")];
    let error = from_env(&variables).expect_err("everybody could reach it");
    assert_says(
        &error,
        "config_insecure_listen",
        &[
            "`state.listen` = 0.0.0.0:50051",
            "variable STATEHOUSE_ADDR",
            "such as 127.0.0.1:50051",
            "--insecure-no-auth",
        ],
    );
    let overrides = Overrides {
        insecure_no_auth: true,
        ..Overrides::default()
    };
    let loaded = load(&overrides, env(&variables)).expect("it was spelled out");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(loaded.warnings[0].contains("`state.listen` = 0.0.0.0:50051"));
}

#[test]
fn a_store_in_memory_does_not_exist() {
    for yes in ["1", "true", "TRUE"] {
        let error = from_env(&[("STATEHOUSE_USE_MEMORY", yes)]).expect_err("there is none");
        assert_says(
            &error,
            BAD,
            &[
                "`STATEHOUSE_USE_MEMORY`",
                "this store is durable",
                "--data-dir",
            ],
        );
    }
    for no in ["0", "false", " False "] {
        let loaded = from_env(&[("STATEHOUSE_USE_MEMORY", no)]).expect("not asked for");
        assert_eq!(loaded.warnings, [""; 0]);
    }
}

#[test]
fn a_commit_is_synced_whatever_is_said() {
    for no in ["0", "false"] {
        let loaded = from_env(&[("STATEHOUSE_FSYNC_ON_COMMIT", no)]).expect("a warning");
        assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
        let warning = &loaded.warnings[0];
        assert!(warning.contains("STATEHOUSE_FSYNC_ON_COMMIT"), "{warning}");
        assert!(warning.contains("every commit is synced"), "{warning}");
    }
}

#[test]
fn bad_values_are_refused_by_the_name_of_their_variable() {
    for (name, value, says) in [
        ("STATEHOUSE_ADDR", "everywhere", "not an IP address"),
        ("STATEHOUSE_ADDR", ":50051", "not an IP address"),
        ("STATEHOUSE_ADDR", "db.example:50051", "not looked up"),
        ("STATEHOUSE_DATA_DIR", "", "it is empty"),
        ("STATEHOUSE_SNAPSHOT_INTERVAL", "-1", "negative"),
        ("STATEHOUSE_SNAPSHOT_INTERVAL", "often", "whole number"),
        ("STATEHOUSE_TX_TIMEOUT_MS", "30s", "milliseconds"),
        ("STATEHOUSE_TX_TIMEOUT_MS", "0", "less than 1ms"),
        ("STATEHOUSE_USE_MEMORY", "maybe", "neither yes nor no"),
        ("STATEHOUSE_FSYNC_ON_COMMIT", "", "neither yes nor no"),
    ] {
        let error = from_env(&[(name, value)]).expect_err(value);
        assert_says(&error, BAD, &[name, says]);
    }
}

#[test]
fn a_timeout_beyond_the_longest_is_a_conflict_that_names_the_variable() {
    let error = from_env(&[("STATEHOUSE_TX_TIMEOUT_MS", "600000")]).expect_err("ten minutes");
    assert_says(
        &error,
        "config_conflict",
        &[
            "`state.transaction-timeout` = 10m (environment variable STATEHOUSE_TX_TIMEOUT_MS)",
            "raise `state.transaction-timeout-max`",
        ],
    );
}

#[test]
fn what_is_not_known_is_a_warning_with_a_suggestion() {
    let loaded = from_env(&[
        ("STATEHOUSE_DATA_DIRR", "x"),
        ("STATEHOUSE_SERVICE_HOST", "10.0.0.1"),
    ]);
    let warnings = loaded.expect("only warnings").warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("did you mean `STATEHOUSE_DATA_DIR`?"));
    assert!(warnings[1].contains("those that are understood are `STATEHOUSE_ADDR`"));
}
