//! Every key is documented, and the documentation matches this program.

use std::collections::BTreeSet;
use std::path::Path;

use clap::{Args, Command, FromArgMatches};
use serde_json::Value;

use super::super::check::RULES;
use super::super::docs::{SNAPSHOT_TRIGGERS, example};
use super::super::key::{keys, schema};
use super::super::{CODES, Config, Overrides, SnapshotKind, markdown};
use super::{ConfigFile, from_set};

#[test]
fn configuration_docs_are_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating/configuration.md");
    let current = markdown();
    if std::env::var_os("ESKER_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("docs")).expect("docs is created");
        std::fs::write(&path, &current).expect("the page is written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == current,
        "docs/operating/configuration.md is not what the program says; run this test with ESKER_BLESS=1"
    );
}

#[test]
fn the_page_of_limits_has_every_limit_with_its_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating/limits.md");
    let page = std::fs::read_to_string(path).expect("docs/operating/limits.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows: Vec<_> = rows.filter_map(|row| row.split_once("` | ")).collect();
    for key in &keys().keys {
        let row = rows.iter().find(|(path, _)| *path == key.path);
        assert!(
            row.is_some() || !key.path.starts_with("limits."),
            "{} is missing",
            key.path
        );
        if let Some((path, row)) = row {
            let default = match &key.default {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert!(
                row.starts_with(&format!("{default} |")),
                "{path}: {default}"
            );
        }
    }
    for (path, _) in rows {
        let known = keys().keys.iter().any(|key| key.path == path);
        assert!(known, "{path} is no key");
    }
}

#[test]
fn every_field_is_a_key_with_a_meaning_and_bounds() {
    // The schema knows each field; a field that is no key could be neither set nor documented.
    fn leaves(schema: &Value, prefix: &str, into: &mut BTreeSet<String>) {
        let properties = schema["properties"].as_object().expect("a table");
        for (name, field) in properties {
            match field.get("properties") {
                Some(_) => leaves(field, &format!("{prefix}{name}."), into),
                None => assert!(into.insert(format!("{prefix}{name}"))),
            }
        }
    }
    let mut fields = BTreeSet::new();
    leaves(&schema(), "", &mut fields);
    let listed: BTreeSet<_> = keys().keys.iter().map(|key| key.path.clone()).collect();
    assert_eq!(fields, listed, "a field whose schema is no kind of value");

    for key in &keys().keys {
        assert!(
            key.meaning.ends_with('.'),
            "`{}` has no full sentence",
            key.path
        );
        assert!(
            key.optional || !key.default.is_null(),
            "`{}` has no default",
            key.path
        );
        assert!(
            !key.optional || key.meaning.contains("Unset, "),
            "`{}` does not say what unset means",
            key.path
        );
        assert!(!key.kind.allowed().is_empty(), "{}", key.path);
    }
    for section in &keys().sections {
        assert!(
            section.meaning.ends_with('.'),
            "[{}] has no full sentence",
            section.name
        );
    }
    let variables: BTreeSet<_> = keys().keys.iter().map(|key| &key.variable).collect();
    assert_eq!(
        variables.len(),
        keys().keys.len(),
        "two keys share a variable"
    );
}

#[test]
fn keys_are_listed_in_the_order_of_the_fields() {
    let paths: Vec<_> = keys().keys.iter().map(|key| key.path.as_str()).collect();
    assert_eq!(paths[..2], ["data-dir", "listen"]);
    assert_eq!(
        paths[paths.len() - 2..],
        ["traces.sampled-per-thousand", "traces.service-name"]
    );
    let sections: Vec<_> = keys()
        .sections
        .iter()
        .map(|section| section.name.as_str())
        .collect();
    assert_eq!(
        sections,
        [
            "tls",
            "cluster",
            "log",
            "store",
            "snapshots",
            "state",
            "limits",
            "retention",
            "logs",
            "traces"
        ]
    );
    let place = |path: &str| paths.iter().position(|at| *at == path);
    assert_eq!(
        place("snapshots.destination"),
        place("store.background-jobs").map(|at| at + 1)
    );
    assert_eq!(
        place("snapshots.aws-allow-http"),
        place("state.listen").map(|at| at - 1)
    );
}

#[test]
fn the_page_names_every_key_rule_and_code() {
    let page = markdown();
    for key in &keys().keys {
        assert!(
            page.contains(&format!("\n| `{}` | ", key.name)),
            "no row of `{}`",
            key.path
        );
    }
    for section in &keys().sections {
        assert!(
            page.contains(&format!("\n## `[{}]`\n", section.name)),
            "[{}]",
            section.name
        );
    }
    for text in RULES {
        assert!(page.contains(text), "{text}");
    }
    for (code, _) in CODES {
        assert!(page.contains(&format!("| `{code}` |")), "{code}");
    }
}

#[test]
fn the_example_file_sets_every_key_to_its_default() {
    let loaded = ConfigFile::new(example())
        .load()
        .expect("the example is a good file");
    assert_eq!(loaded.config, Config::default());
    let set: BTreeSet<_> = loaded.sources.keys().cloned().collect();
    let with_default = keys().keys.iter().filter(|key| !key.default.is_null());
    let all: BTreeSet<_> = with_default.map(|key| key.path.clone()).collect();
    assert_eq!(set, all);
    for key in keys().keys.iter().filter(|key| key.default.is_null()) {
        let line = format!("\n# {} = (unset)\n", key.name);
        assert!(example().contains(&line), "no line{line}");
    }
}

#[test]
fn the_table_of_triggers_names_keys_that_exist() {
    let mut named = BTreeSet::new();
    for (knobs, ..) in SNAPSHOT_TRIGGERS {
        let words = knobs.split('`').skip(1).step_by(2);
        named.extend(words.filter(|word| !word.starts_with("esker ")));
    }
    for name in &named {
        assert!(keys().find(Some("snapshots"), name).is_some(), "{name}");
    }
    // Whatever has an interval, a budget or a threshold triggers something, but for restore tests and the scrub.
    for key in keys().of_section(Some("snapshots")) {
        let triggers = ["interval", "budget", "local-", "on-stop"];
        let is_trigger = triggers.iter().any(|part| key.name.contains(part));
        if is_trigger && !["restore-test-interval", "scrub-interval"].contains(&&*key.name) {
            assert!(named.contains(key.name.as_str()), "`{}`", key.path);
        }
    }
}

#[test]
fn the_packaged_file_loads_without_a_warning_and_keeps_snapshots_to_fall_back_on() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/esker.toml");
    let text = std::fs::read_to_string(path).expect("the packaged file");
    let loaded = ConfigFile::new(&text).load().expect("a good file");
    assert_eq!(loaded.warnings, [""; 0]);
    assert_eq!(loaded.reminders, [""; 0]);
    assert_eq!(
        loaded.config.snapshots.snapshot_kind,
        SnapshotKind::Incremental
    );
    assert_eq!(loaded.config.snapshots.num_retained, Some(3));

    // What the example has in comments is valid as well.
    let offered = |line: &str| {
        line.strip_prefix("# ")
            .filter(|rest| rest.contains(" = ") || rest.starts_with('['))
            .is_some()
    };
    let lines = text.lines().map(|line| match offered(line) {
        true => &line[2..],
        false => line,
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    let loaded = ConfigFile::new(&text).load().expect("good");
    assert_eq!(
        loaded.config.snapshots.destination.as_deref(),
        Some("s3://bucket/prefix")
    );
}

#[test]
fn the_command_line_of_the_page_is_understood() {
    let command = || Overrides::augment_args(Command::new("esker"));
    command().debug_assert();
    let matches = command().try_get_matches_from([
        "esker",
        "--config=esker.toml",
        "--listen",
        "127.0.0.1:7171",
        "--insecure-no-auth",
        "--partitions=2",
        "--data-dir=d",
        "--set",
        "log.segment-size=64MiB",
        "--set=logs.level=debug",
    ]);
    let matches = matches.expect("flags");
    let overrides = Overrides::from_arg_matches(&matches).expect("flags");
    assert_eq!(overrides.config.as_deref(), Some(Path::new("esker.toml")));
    assert_eq!(overrides.listen.as_deref(), Some("127.0.0.1:7171"));
    assert!(overrides.insecure_no_auth);
    assert_eq!(overrides.partitions.as_deref(), Some("2"));
    assert_eq!(overrides.data_dir.as_deref(), Some(Path::new("d")));
    assert_eq!(
        overrides.set,
        ["log.segment-size=64MiB", "logs.level=debug"]
    );
}

#[test]
fn every_code_that_an_error_has_is_listed() {
    let codes: BTreeSet<_> = CODES.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes.len(), CODES.len(), "a code is listed twice");
    for set in [
        &["x=1"][..],
        &["x"],
        &["partitions=0"],
        &["x=1", "y=1"],
        &["listen=0.0.0.0:1"],
    ] {
        let error = from_set(set).expect_err("bad");
        assert!(codes.contains(error.code()), "{}", error.code());
    }
}

/// What stands between backticks in a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn the_pages_for_operators_name_keys_that_exist() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating");
    for page in ["install", "monitoring", "security", "sizing", "upgrading"] {
        let text = std::fs::read_to_string(directory.join(page).with_extension("md")).unwrap();
        // A formula has several keys.
        let words =
            quoted(&text).flat_map(|code| code.split(|c: char| c.is_whitespace() || c == '='));
        for word in words {
            let Some((section, _)) = word.split_once('.') else {
                continue;
            };
            let is_key = keys().sections.iter().any(|it| it.name == section);
            assert!(
                !is_key || keys().by_path(word).is_some(),
                "{page}.md: `{word}` is no key"
            );
        }
    }
}

#[test]
fn the_sums_of_sizing_are_those_of_the_defaults() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating/sizing.md");
    let text = std::fs::read_to_string(page).unwrap();
    let default = Config::default();
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let row = |what: &str, expected: String| {
        let row = text
            .lines()
            .find(|line| line.starts_with(&format!("| {what} |")))
            .unwrap_or_else(|| panic!("no row `{what}`"));
        let cell = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
        assert_eq!(cell, expected, "{row}");
    };
    let limits = &default.limits;
    row(
        "blocks of the database",
        mib(default.store.block_cache.as_u64()),
    );
    row(
        "writes that are not in files yet",
        mib(default.store.write_buffers_total.as_u64()),
    );
    row("appends in flight", mib(limits.append_inflight.as_u64()));
    row(
        "request bodies",
        mib(limits.request_bodies.as_u64() + (16 << 20)),
    );
    let windows = limits.http2_windows.as_u64() + u64::from(limits.connections) * (64 << 10);
    row("what clients send ahead", mib(windows));
    row(
        "newest records for followers",
        mib(limits.follower_buffers_total.as_u64()),
    );
    row("batches of readers", mib(limits.read_sessions.as_u64()));
    row(
        "open transactions",
        mib(default.state.transactions_bytes.as_u64()),
    );
    let most = default.log.purge_threshold.as_u64();
    let most = most.max(default.snapshots.max_log_bytes.as_u64());
    let segment = default.log.segment_size.as_u64();
    let log = most / 4 * 7 + 2 * segment + limits.append_inflight.as_u64();
    row(
        "the log",
        format!("{:.1} GiB", log as f64 / (1_u64 << 30) as f64),
    );
    row(
        "kept free",
        mib(default.store.write_buffers_total.as_u64() + 2 * segment),
    );
    row("the reserve", mib(2 * default.store.write_buffer.as_u64()));
    let files = u64::from(default.store.max_open_files) + u64::from(limits.connections);
    // Beside what is opened temporarily: the reserve of connections, and those that wait for a place.
    let files = files + log / segment + 168 + 16 + 512;
    row(
        "open files",
        format!("{},{:03}", files / 1000, files % 1000),
    );
}

/// The files of a directory below `packaging`.
fn packaged(directory: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../packaging")
        .join(directory);
    let files = std::fs::read_dir(path).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        (path.display().to_string(), text)
    });
    files.collect()
}

#[test]
fn containers_set_keys_that_exist() {
    let mut variables = 0;
    for (file, text) in [packaged("docker"), packaged("kubernetes")].concat() {
        let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        for word in text.split(|c: char| !is_part(c)) {
            if word.starts_with("ESKER_") {
                let is_key = keys().keys.iter().any(|key| key.variable == word);
                assert!(is_key, "{file}: {word} is no key's variable");
                variables += 1;
            }
        }
    }
    assert!(variables >= 10, "{variables}");
}

#[test]
fn the_configuration_for_kubernetes_loads_and_warns_of_nothing_but_tls() {
    let (_, text) = packaged("kubernetes")
        .into_iter()
        .find(|(file, _)| file.ends_with("/configmap.yaml"))
        .expect("a file");
    let (_, block) = text.split_once("  esker.toml: |\n").expect("a block");
    let file: Vec<_> = block
        .lines()
        .map_while(|line| line.strip_prefix("    ").or(line.is_empty().then_some("")))
        .collect();
    let loaded = ConfigFile::new(file.join("\n"))
        .load()
        .expect("a good file");
    // Certificates are not something that an example has.
    let [warning] = &loaded.warnings[..] else {
        panic!("{:?}", loaded.warnings);
    };
    assert!(warning.contains("without TLS"), "{warning}");
    assert_eq!(loaded.reminders, [""; 0]);
    assert_eq!(loaded.config.snapshots.num_retained, Some(3));
}

#[test]
fn probes_ask_routes_that_exist() {
    let routes = include_str!("../../api/mod.rs");
    let files = [packaged("docker"), packaged("kubernetes")].concat();
    let asked = files.iter().flat_map(|(_, text)| {
        text.split(['"', ' ', ','])
            .filter_map(|word| word.find("/health").map(|at| &word[at..]))
    });
    let asked: BTreeSet<_> = asked
        .map(|path| path.trim_end_matches([',', '.', '`']))
        .collect();
    assert!(asked.len() >= 2, "{asked:?}");
    for path in asked {
        assert!(
            routes.contains(&format!(".at(Get, \"{path}\",")),
            "{path} is no route"
        );
    }
}
