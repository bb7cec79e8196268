//! A value that its key cannot have is refused: which key, from where, what is wrong, what is right.

use std::path::PathBuf;

use super::super::{Overrides, load};
use super::{ConfigFile, assert_says, env, from_env, from_set};

const CODE: &str = "config_bad_value";

/// Values of every kind in every way that they can be wrong: key, as `--set` writes it, problem.
const BAD_TEXTS: &[(&str, &str, &str)] = &[
    ("data-dir", "", "it is empty"),
    ("data-dir", "a\0b", "it contains a zero byte"),
    ("data-dir", "a\u{FFFD}b", "it is not UTF-8"),
    ("data-dir", "~/esker", "expanded by shells"),
    ("data-dir", "$HOME/esker", "expanded by shells"),
    ("data-dir", "/srv/${NAME}", "expanded by shells"),
    ("snapshots.destination", "~/backups", "expanded by shells"),
    (
        "snapshots.destination",
        "file:///srv/$NAME",
        "expanded by shells",
    ),
    ("listen", "", "it is empty"),
    ("listen", "127.0.0.1", "the port is missing"),
    ("listen", "::1", "the port is missing"),
    ("listen", "7070", "the IP address is missing"),
    (
        "listen",
        "localhost:7070",
        "names of machines are not looked up",
    ),
    ("listen", "127.0.0.1:65536", "not an IP address with a port"),
    ("insecure-no-auth", "yes", "neither `true` nor `false`"),
    ("insecure-no-auth", "", "it is empty"),
    ("cluster-name", "", "it is empty"),
    (
        "cluster-name",
        "-north",
        "does not begin with a letter or digit",
    ),
    ("cluster-name", "north/1", "it contains '/'"),
    (
        "cluster-name",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "it is too long",
    ),
    ("allowed-hosts", "esker:7070", "the port has to be left out"),
    ("allowed-hosts", "a,,b", "it is empty"),
    ("allowed-hosts", "http://a", "not a name or address"),
    ("allowed-origins", "esker.example", "does not begin with"),
    ("allowed-origins", "https://a/path", "nothing else"),
    ("location", "", "it is empty"),
    ("location", "north/1", "must comprise ASCII letters"),
    (
        "location",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "must be at most 64",
    ),
    ("partitions", "0", "it is less than 1"),
    ("partitions", "1025", "it is more than 1024"),
    ("partitions", "-1", "it is negative"),
    ("partitions", "8.5", "it is not a whole number"),
    ("partitions", "99999999999999999999", "it is too large"),
    ("partitions", "", "it is empty"),
    ("shutdown-grace", "10", "time unit needed"),
    ("shutdown-grace", "1 fortnight", "unknown time unit"),
    ("shutdown-grace", "2h", "it is more than 1h"),
    ("limits.header-timeout", "99ms", "it is less than 100ms"),
    ("log.segment-size", "1023KiB", "it is less than 1MiB"),
    ("log.segment-size", "2GiB", "it is more than 1GiB"),
    ("log.segment-size", "32M", "may mean 1000 or 1024"),
    (
        "log.segment-size",
        "32 parsecs",
        "`parsecs` is not a unit of size",
    ),
    ("log.segment-size", "-1MiB", "not a number of bytes"),
    ("log.segment-size", "1.2.3MiB", "not a number of bytes"),
    ("log.segment-size", "1.5", "a byte cannot be divided"),
    (
        "log.segment-size",
        "99999999999999999999TiB",
        "it is more than 1GiB",
    ),
    ("logs.level", "", "it is empty"),
    ("logs.level", "esker=loud", "error parsing level filter"),
    ("logs.level", "inof", "did you mean `info`?"),
    ("logs.level", "esker=info,wran", "did you mean `warn`?"),
    ("logs.format", "jsn", "did you mean `json`?"),
    ("logs.format", "xml", "it is not one of the words"),
    (
        "snapshots.destination",
        "s3:bucket",
        "two slashes are missing",
    ),
    ("snapshots.destination", "s3://", "the bucket is missing"),
    (
        "snapshots.destination",
        "s3://host:9000/bucket",
        "belongs into `aws-endpoint-url`",
    ),
    (
        "snapshots.destination",
        "s3://bucket//prefix",
        "a segment that is empty",
    ),
    ("snapshots.destination", "s3://bucket?region=x", "a query"),
    (
        "snapshots.destination",
        "file://host/dir",
        "is absolute and has no host",
    ),
    (
        "snapshots.destination",
        "gs://bucket",
        "neither s3:// nor file://",
    ),
    ("snapshots.destination", "a\u{FFFD}b", "it is not UTF-8"),
    ("snapshots.snapshot-interval", "0s", "it is less than 100ms"),
    (
        "snapshots.snapshot-interval-num-records",
        "0",
        "it is less than 1",
    ),
    ("snapshots.recovery-budget", "0s", "it is less than 100ms"),
    ("snapshots.recovery-budget", "2days", "it is more than 1day"),
    ("snapshots.snapshot-kind", "ful", "did you mean `full`?"),
    ("snapshots.num-retained", "0", "it is less than 1"),
    ("snapshots.num-retained", "1001", "it is more than 1000"),
    ("snapshots.orphan-cleanup", "", "it is empty"),
    ("snapshots.upload-rate", "64M", "may mean 1000 or 1024"),
    ("snapshots.upload-rate", "2TiB", "it is more than 1TiB"),
    ("snapshots.upload-rate", "", "it is empty"),
    (
        "snapshots.on-log-full",
        "trim",
        "it is not one of the words",
    ),
    (
        "snapshots.local-snapshot-num-records",
        "-1",
        "it is negative",
    ),
    ("snapshots.local-snapshot-bytes", "", "it is empty"),
    ("snapshots.aws-region", "a\nb", "a control character"),
    (
        "snapshots.aws-endpoint-url",
        "minio:9000",
        "neither https:// nor http://",
    ),
    (
        "snapshots.aws-endpoint-url",
        "http://",
        "the host is missing",
    ),
    (
        "snapshots.aws-allow-http",
        "yes",
        "neither `true` nor `false`",
    ),
];

#[test]
fn a_bad_text_is_refused_from_a_flag_with_key_source_problem_and_what_is_allowed() {
    for (key, value, problem) in BAD_TEXTS {
        let error = from_set(&[&format!("{key}={value}")]).expect_err(key);
        let source = format!("(flag --set {key})");
        assert_says(
            &error,
            CODE,
            &[&format!("`{key}`"), &source, problem, "allowed: "],
        );
    }
}

#[test]
fn a_bad_text_is_refused_from_the_environment() {
    for (key, value, problem) in BAD_TEXTS {
        let name = key.replace('.', "__").replace('-', "_").to_uppercase();
        let name = format!("ESKER_{name}");
        let error = from_env(&[(&name, value)]).expect_err(key);
        let source = format!("(environment variable {name})");
        assert_says(
            &error,
            CODE,
            &[&format!("`{key}`"), &source, problem, "allowed: "],
        );
    }
}

#[test]
fn a_value_of_the_wrong_type_is_refused_from_the_file_with_its_line() {
    let cases = [
        ("data-dir = 1", "an integer is not a path"),
        ("listen = 7070", "an integer is not an address"),
        ("listen = { port = 7070 }", "a table is not an address"),
        ("insecure-no-auth = 'true'", "a string is not a boolean"),
        ("insecure-no-auth = 1", "an integer is not a boolean"),
        ("cluster-name = false", "a boolean is not a name"),
        ("partitions = '8'", "a string is not an integer"),
        (
            "partitions = 8.0",
            "a number with a fraction is not an integer",
        ),
        ("partitions = [8]", "an array is not an integer"),
        ("partitions = -1", "it is negative"),
        ("partitions = 0x1_000", "4096: it is more than 1024"),
        (
            "partitions = 999999999999999999999999999999999999999999",
            "so large a number is not an integer",
        ),
        (
            "shutdown-grace = 10",
            "a duration has a unit, for example \"10s\"",
        ),
        (
            "shutdown-grace = 07:32:00",
            "a date or time is not a duration",
        ),
        (
            "log.segment-size = 1.5",
            "a number with a fraction is not a size",
        ),
        ("log.segment-size = -1", "it is negative"),
        ("log.segment-size = 1", "1: it is less than 1MiB"),
        ("logs.format = true", "a boolean is not a word"),
        ("logs.level = 1", "an integer is not a filter"),
    ];
    for (line, problem) in cases {
        let file = ConfigFile::new(format!("# a comment\n{line}\n"));
        assert_says(
            &file.refused(),
            CODE,
            &[&file.line(2), problem, "allowed: "],
        );
    }
}

#[test]
fn a_section_that_is_no_table_is_refused() {
    for text in ["log = 5", "[[log]]\nsegment-size = '1MiB'"] {
        let file = ConfigFile::new(text);
        assert_says(
            &file.refused(),
            CODE,
            &["`log`", &file.line(1), "is not a section"],
        );
    }
}

#[test]
fn a_bad_value_is_refused_even_if_a_later_source_replaces_it() {
    let file = ConfigFile::new("partitions = 0");
    let overrides = Overrides {
        partitions: Some("4".into()),
        ..file.overrides()
    };
    let error = load(&overrides, env(&[])).expect_err("the file is bad");
    assert_says(&error, CODE, &[&file.line(1)]);
}

#[test]
fn the_bounds_themselves_are_allowed() {
    for partitions in ["1", "1024", " 7 ", "+7"] {
        from_set(&[&format!("partitions={partitions}")]).expect(partitions);
    }
    for size in [
        "1MiB", "1 MiB", "1048576", "1048576B", "1024kib", "1GiB", "1.5MiB", "64MB",
    ] {
        let set = format!("log.segment-size={size}");
        from_set(&[&set, "log.purge-threshold=1GiB"]).expect(size);
    }
    for duration in ["0s", "1h", "1m 30s", "59min 60s"] {
        from_set(&[&format!("shutdown-grace={duration}")]).expect(duration);
    }
    for listen in [
        "127.0.0.1:0",
        "[::1]:7070",
        "[::ffff:127.0.0.1]:7070",
        "127.9.9.9:1",
    ] {
        from_set(&[&format!("listen={listen}")]).expect(listen);
    }
}

#[test]
fn a_flag_that_is_no_assignment_or_contradicts_another_is_refused() {
    let error = from_set(&["listen"]).expect_err("no value");
    assert_says(
        &error,
        "config_bad_flag",
        &["`--set listen`", "there is no `=`"],
    );
    let error = from_set(&["partitions=1", "partitions=2"]).expect_err("twice");
    assert_says(
        &error,
        "config_bad_flag",
        &["--set partitions=2", "sets the same key"],
    );
    let overrides = Overrides {
        listen: Some("127.0.0.1:1".into()),
        set: vec!["listen=127.0.0.1:2".into()],
        ..Overrides::default()
    };
    let error = load(&overrides, env(&[])).expect_err("twice");
    assert_says(
        &error,
        "config_bad_flag",
        &["flag --listen sets the same key"],
    );
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_the_line() {
    for text in [
        "a = 1\nb = \n",
        "a = 1\na = 2\n",
        "[log]\n[log]\n",
        "# fine\n= 1\n",
    ] {
        let file = ConfigFile::new(text);
        assert_says(
            &file.refused(),
            "config_syntax",
            &[&file.line(2), "not TOML"],
        );
    }
    let file = ConfigFile::new(b"# fine\n# \xff\n");
    assert_says(
        &file.refused(),
        "config_syntax",
        &[&file.line(2), "not UTF-8"],
    );
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_and_never_an_empty_configuration() {
    const UNREADABLE: &str = "config_unreadable";
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |path: PathBuf| Overrides {
        config: Some(path),
        ..Overrides::default()
    };

    let missing = load(&at(directory.path().join("none.toml")), env(&[])).expect_err("missing");
    assert_says(
        &missing,
        UNREADABLE,
        &["none.toml", "flag --config", "No such file"],
    );
    let not_a_file = load(&at(directory.path().into()), env(&[])).expect_err("a directory");
    assert_says(&not_a_file, UNREADABLE, &["flag --config"]);
    let empty = from_env(&[("ESKER_CONFIG", "")]).expect_err("no path");
    assert_says(&empty, UNREADABLE, &["ESKER_CONFIG", "the path is empty"]);
    let large = ConfigFile::new(vec![b'\n'; (1 << 20) + 1]).refused();
    assert_says(&large, UNREADABLE, &["larger than 1048576 bytes"]);
}

#[test]
fn a_message_stays_on_its_line_and_short_whatever_the_input() {
    let long = format!("cluster-name=a\nb{}", "x".repeat(100_000));
    let message = from_set(&[&long]).expect_err("bad").to_string();
    assert!(message.len() < 1000, "{} bytes", message.len());
    assert!(!message.contains('\n'), "{message}");
}
