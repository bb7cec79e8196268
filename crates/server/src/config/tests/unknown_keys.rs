//! A key that does not exist is refused wherever it is written, with the one that was meant.

use super::super::error::ConfigError;
use super::super::{Overrides, load};
use super::{ConfigFile, assert_says, env, from_env, from_set};

const CODE: &str = "config_unknown_key";

#[test]
fn an_unknown_key_of_the_file_is_refused_with_its_line_and_a_suggestion() {
    let file = ConfigFile::new("# a comment\n\nlisen = '127.0.0.1:1'\n");
    assert_says(
        &file.refused(),
        CODE,
        &[
            "unknown key `lisen`",
            &file.line(3),
            "did you mean `listen`?",
        ],
    );
}

#[test]
fn the_suggestion_finds_other_spellings_other_sections_and_lists_the_rest() {
    let cases = [
        ("data_dir = 'x'", "did you mean `data-dir`?"),
        ("Listen = 'x'", "did you mean `listen`?"),
        (
            "[log]\nsegment_size = 1",
            "did you mean `log.segment-size`?",
        ),
        (
            "[log]\nlevel = 'info'",
            "did you mean `level`, in the section [logs]?",
        ),
        (
            "segment-size = 1",
            "did you mean `segment-size`, in the section [log]?",
        ),
        (
            "'log.segment-size' = 1",
            "did you mean `segment-size`, in the section [log]?",
        ),
        (
            "[log]\npartitions = 1",
            "did you mean `partitions`, which is at the top",
        ),
        ("[lmits]\nconnections = 1", "did you mean `[limits]`?"),
        (
            "[zebra]\na = 1",
            "the sections are [tls], [cluster], [log], [store], [snapshots], [state], [limits], [retention], [logs]",
        ),
        (
            "[retention]\nzebra = 1",
            "the keys of [retention] are `interval`, `streams-per-round`",
        ),
        (
            "zebra = 1",
            "the keys outside the sections are `data-dir`, `listen`",
        ),
    ];
    for (text, suggestion) in cases {
        assert_says(&ConfigFile::new(text).refused(), CODE, &[suggestion]);
    }
}

#[test]
fn an_unknown_key_of_a_flag_is_refused_with_a_suggestion() {
    let cases = [
        (
            "lisen=127.0.0.1:1",
            "(flag --set lisen); did you mean `listen`?",
        ),
        ("log.flush_after=1MiB", "did you mean `log.flush-after`?"),
        ("lgo.flush-after=1MiB", "did you mean `log.flush-after`?"),
        (
            "zebra.zebra=1",
            "there is no section [zebra]; there are [tls], [cluster], [log]",
        ),
        ("a.b.c=1", "unknown key `a.b.c`"),
    ];
    for (set, message) in cases {
        assert_says(&from_set(&[set]).expect_err("unknown"), CODE, &[message]);
    }
}

#[test]
fn a_variable_that_was_meant_for_a_key_is_refused_with_a_suggestion() {
    let cases = [
        ("ESKER_LISTEM", "did you mean `ESKER_LISTEN`?"),
        ("ESKER_CONFIGG", "did you mean `ESKER_CONFIG`?"),
        (
            "ESKER_LOG_SEGMENT_SIZE",
            "did you mean `ESKER_LOG__SEGMENT_SIZE`?",
        ),
        (
            "ESKER_LOG__ZEBRA",
            "the variables of [log] are `ESKER_LOG__SEGMENT_SIZE`",
        ),
    ];
    for (name, suggestion) in cases {
        let error = from_env(&[(name, "1")]).expect_err("unknown");
        assert_says(
            &error,
            CODE,
            &["unknown environment variable", name, suggestion],
        );
    }
}

#[test]
fn a_foreign_variable_is_only_warned_about() {
    let names = [
        "ESKER_SOAK",
        "ESKER_CACHE",
        "ESKER_BLESS",
        // What Kubernetes sets for a service named `esker`.
        "ESKER_SERVICE_HOST",
        "ESKER_PORT",
        "ESKER_PORT_7070_TCP",
    ];
    for name in names {
        let loaded = from_env(&[(name, "1")]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(loaded.warnings.len(), 1, "{name}");
        assert!(loaded.warnings[0].contains(name), "{:?}", loaded.warnings);
    }
    let loaded = from_env(&[("HOME", "/home/ada"), ("ESKER", "1")]).expect("not ours");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn all_problems_of_all_sources_are_reported_at_once_in_their_order() {
    let file = ConfigFile::new("partitions = 0\nlisen = 1\n");
    let overrides = Overrides {
        set: vec!["zebra=1".into()],
        ..file.overrides()
    };
    let error = load(&overrides, env(&[("ESKER_PARTITIONS", "many")])).expect_err("four mistakes");
    assert_eq!(error.code(), "config_several");
    let codes: Vec<_> = error.problems().iter().map(ConfigError::code).collect();
    assert_eq!(codes, ["config_bad_value", CODE, "config_bad_value", CODE]);
    let message = error.to_string();
    assert!(message.starts_with("4 problems"), "{message}");
    assert!(message.contains("ESKER_PARTITIONS"), "{message}");
}
