//! What is printed reads back as the same.

use std::time::Duration;

use super::super::{ByteCount, Config, HumanDuration, load, show};
use super::{ConfigFile, env, from_env, from_set};

#[test]
fn the_shown_configuration_loads_to_the_same_configuration() {
    let cases: [&[&str]; 4] = [
        &[],
        &[
            "data-dir=/a b/\"c\"\\d\n#é",
            "listen=[::]:1",
            "insecure-no-auth=true",
            "shutdown-grace=1m 30s 5ms 1us",
            "cluster-name=A.b-c_9",
        ],
        &[
            "log.segment-size=33554433",
            "log.max-group-size=3.3MB",
            "limits.follower-buffer=65537B",
        ],
        &[
            "logs.format=json",
            "logs.level=warn,esker[span{field=\"x\"}]=debug",
        ],
    ];
    for set in cases {
        let loaded = from_set(set).unwrap_or_else(|error| panic!("{set:?}: {error}"));
        let text = show(&loaded);
        let again = ConfigFile::new(&text).load();
        let again = again.unwrap_or_else(|error| panic!("{error} in\n{text}"));
        assert_eq!(again.config, loaded.config, "{text}");
    }
}

#[test]
fn the_shown_configuration_says_what_set_each_value_and_nothing_of_defaults() {
    let file = ConfigFile::new("\npartitions = 4\n");
    let overrides = super::super::Overrides {
        set: vec!["logs.format=json".into()],
        ..file.overrides()
    };
    let loaded = load(&overrides, env(&[("ESKER_LOG__FLUSH_AFTER", "2MiB")])).expect("good");
    let text = show(&loaded);
    for line in [
        format!("# File: {}", file.path.display()),
        format!("partitions = 4  # {}", file.line(2)),
        "flush-after = \"2MiB\"  # environment variable ESKER_LOG__FLUSH_AFTER".into(),
        "format = \"json\"  # flag --set logs.format".into(),
        "listen = \"127.0.0.1:7070\"".into(),
    ] {
        assert!(
            text.lines().any(|shown| shown == line),
            "no line `{line}` in\n{text}"
        );
    }
}

#[test]
fn a_comment_cannot_be_broken_out_of() {
    // The name of the file is in a comment; a line break in it must not end the comment.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("a\npartitions = 1\n.toml");
    std::fs::write(&path, "partitions = 5").expect("the file is written");
    let path = path.to_str().expect("UTF-8");
    let loaded = from_env(&[("ESKER_CONFIG", path)]).expect("a good file");
    let again = ConfigFile::new(show(&loaded)).load().expect("valid TOML");
    assert_eq!(again.config.partitions, 5);
}

#[test]
fn a_file_may_begin_with_a_byte_order_mark_and_have_windows_line_ends() {
    let text = "\u{FEFF}partitions = 5\r\n[log]\r\nsegment-size = \"2MiB\"\r\n";
    let file = ConfigFile::new(text);
    let loaded = file.load().expect("good");
    assert_eq!(loaded.config.partitions, 5);
    assert_eq!(loaded.source("log.segment-size").to_string(), file.line(3));
}

#[test]
fn serialized_values_deserialize_to_the_same_also_without_this_loader() {
    let mut config = Config::default();
    config.log.segment_size = ByteCount::new(1_234_567);
    config.retention.interval = HumanDuration::new(Duration::new(61, 1));
    let text = toml::to_string(&config).expect("TOML");
    assert_eq!(toml::from_str::<Config>(&text).expect("TOML"), config);
    let text = serde_json::to_string(&config).expect("JSON");
    assert_eq!(serde_json::from_str::<Config>(&text).expect("JSON"), config);
}

#[test]
fn sizes_and_durations_print_exactly_and_in_the_largest_unit() {
    let sizes = [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (1025, "1025B"),
        (33_554_432, "32MiB"),
        (3 << 29, "1536MiB"),
        (1 << 41, "2TiB"),
        (u64::MAX, "18446744073709551615B"),
    ];
    for (bytes, text) in sizes {
        assert_eq!(ByteCount::new(bytes).to_string(), text);
        assert_eq!(text.parse(), Ok(ByteCount::new(bytes)));
    }
    for text in ["0s", "250ms", "10s", "1m 30s", "1h", "1day 1ns"] {
        let duration: HumanDuration = text.parse().expect(text);
        assert_eq!(duration.to_string(), text);
    }
}
