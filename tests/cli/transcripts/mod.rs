//! Output, word for word: help, errors and the demo in `*.trycmd`, and the transcripts on the pages of the
//! project.
//!
//! Pages show real numbers, which differ from run to run. Their transcripts (blocks marked `console`) are run
//! unchanged, one command after the other in a directory of their own, and compared in shape: any number,
//! duration, directory or random name equals any other. With `ESKER_BLESS=all`, each page is rewritten with
//! the actual output.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

mod page;

use page::{Page, shell};

use crate::links::pages;
use crate::support::{Server, esker, eventually, run, stderr, stdout};

/// Pages whose transcripts are run here. Every page with a transcript is in this list.
const PAGES: &[&str] = &[
    "README.md",
    "docs/demo.md",
    "docs/guides/clients/curl.md",
    "docs/guides/coming-from-s2-lite.md",
    "docs/guides/coming-from-statehouse.md",
    "docs/guides/follow.md",
    "docs/guides/snapshots.md",
    "docs/guides/state.md",
    "docs/guides/streams.md",
    "docs/operating/configuration.md",
    "docs/operating/install.md",
    "docs/operating/monitoring.md",
    "docs/operating/recovery.md",
    "docs/reference/admin-api.md",
];

/// If set, pages are rewritten with the actual output: with `all`, everything; with any other value, only
/// what differs in shape.
const BLESS: &str = "ESKER_BLESS";

/// The server of the pages.
const SHOWN_URL: &str = "http://127.0.0.1:7070";

#[test]
fn help_errors_and_the_demo_are_printed_as_they_are_written() {
    trycmd::TestCases::new()
        .register_bin("esker", Path::new(env!("CARGO_BIN_EXE_esker")))
        .case("tests/cli/*.trycmd");
}

#[test]
fn every_page_with_commands_is_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    pages(root, &mut all);
    let mut with_commands = BTreeSet::new();
    for path in all {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        // A prompt outside of a transcript would show a command that no test runs.
        let mut block = None;
        for line in text.lines() {
            match line.strip_prefix("```") {
                Some(kind) if block.is_none() => block = Some(kind),
                Some(_) => block = None,
                None => {}
            }
            if line.starts_with("$ ") {
                assert_eq!(block, Some("console"), "{name}: {line}");
                with_commands.insert(name.clone());
            }
        }
    }
    let listed: BTreeSet<_> = PAGES.iter().map(|&page| page.to_owned()).collect();
    assert_eq!(with_commands, listed);
}

/// Runs all commands of a page against a server.
fn holds(page: &str, server: &Server) {
    let mut page = Page::read(page);
    let dir = tempfile::tempdir().unwrap();
    page.run("", dir.path(), &[("ESKER_SERVER", &server.url)], server);
    page.finish();
}

#[test]
fn what_the_readme_shows_is_what_happens() {
    assert!(
        Page::read("README.md").lines.len() <= 120,
        "README is too long"
    );
    holds("README.md", &Server::start());
}

#[test]
fn what_the_page_of_the_demo_shows_is_what_happens() {
    holds("docs/demo.md", &Server::start());
}

/// The page shows one run: the total time is not less than the sum of its parts.
#[test]
fn the_time_of_the_demo_is_that_of_its_acts() {
    fn seconds(text: &str) -> f64 {
        let mut words = text.split_whitespace();
        let number: f64 = words.next().unwrap().parse().unwrap();
        match words.next().unwrap() {
            "ms" => number / 1000.0,
            "s" => number,
            unit => panic!("{unit}: {text}"),
        }
    }
    let page = Page::read("docs/demo.md");
    let acts: Vec<f64> = page
        .lines
        .iter()
        .filter_map(|line| line.trim().strip_prefix("done in "))
        .map(seconds)
        .collect();
    assert_eq!(acts.len(), 10);
    let end = page.lines.iter().find(|line| line.starts_with("Killed,"));
    let (_, total) = end.unwrap().rsplit_once('(').unwrap();
    let total = seconds(total.trim_end_matches(')'));
    let sum: f64 = acts.iter().sum();
    assert!(
        (0.98..1.1).contains(&(total / sum)),
        "{total} s, and acts of {sum} s"
    );
}

#[test]
fn what_the_guide_to_snapshots_shows_is_what_happens() {
    let mut page = Page::read("docs/guides/snapshots.md");
    let dir = tempfile::tempdir().unwrap();
    let variables = [("ESKER_REPOSITORY", "backups")];
    page.run_without_server("", dir.path(), &variables);
    page.finish();
}

#[test]
fn what_the_guide_to_the_admin_api_shows_is_what_happens() {
    let dir = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}/backups", dir.path().display());
    let settings = ["--partitions", "2", "--set", &destination];
    let data = dir.path().join("data");
    let mut server = Server::start_with(&data, "127.0.0.1:0", &settings);
    let mut page = Page::read("docs/reference/admin-api.md");
    let url = server.url.clone();
    let variables = [("ESKER_SERVER", url.as_str())];
    for heading in ["On the command line", "Over HTTP"] {
        page.run(heading, dir.path(), &variables, &server);
    }

    // 40 records, of which a snapshot has 25; then everything else is lost.
    server.ok(&["create", "my-basin/orders/eu"]);
    server.ok_with(&["append", "my-basin/orders/eu"], lines(25).as_bytes());
    online(&server, &["snapshot", "create"]);
    server.ok_with(&["append", "my-basin/orders/eu"], lines(15).as_bytes());
    server.kill();
    std::fs::remove_dir_all(&data).unwrap();
    let settings = [&settings[..], &["--bootstrap", "restore"]].concat();
    let server = Server::start_with(&data, "127.0.0.1:0", &settings);
    let variables = [("ESKER_SERVER", server.url.as_str())];
    page.run("Where a stream stands", dir.path(), &variables, &server);
    page.finish();
}

#[test]
fn what_the_guide_to_following_shows_is_what_happens() {
    holds("docs/guides/follow.md", &Server::start());
}

#[test]
fn what_the_guide_to_the_state_store_shows_is_what_happens() {
    holds("docs/guides/state.md", &Server::start());
}

#[test]
fn what_the_page_for_those_who_come_from_s2_lite_shows_is_what_happens() {
    let (source, server) = (Server::start(), Server::start());
    source.ok(&["create", "my-basin/orders"]);
    source.ok_with(&["append", "my-basin/orders"], b"apple\npear\nplum\n");
    source.ok(&["create", "my-basin/trimmed"]);
    source.ok_with(&["append", "my-basin/trimmed"], lines(10).as_bytes());
    source.ok(&["trim", "my-basin/trimmed", "7"]);
    let dir = tempfile::tempdir().unwrap();
    let mut page = Page::read("docs/guides/coming-from-s2-lite.md");
    let variables = [
        ("ESKER_SERVER", server.url.as_str()),
        ("S2_LITE", source.url.as_str()),
    ];
    page.run("", dir.path(), &variables, &server);
    page.finish();
}

#[test]
fn what_the_page_for_those_who_come_from_statehouse_shows_is_what_happens() {
    holds("docs/guides/coming-from-statehouse.md", &Server::start());
}

#[test]
fn what_the_guide_to_streams_shows_is_what_happens() {
    holds("docs/guides/streams.md", &Server::start());
}

#[test]
fn what_the_page_of_curl_shows_is_what_happens() {
    holds("docs/guides/clients/curl.md", &Server::start());
}

#[test]
fn what_the_page_of_monitoring_shows_is_what_happens() {
    let dir = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}/backups", dir.path().display());
    let settings = ["--partitions", "2", "--set", &destination];
    let data = dir.path().join("data");
    let server = Server::start_with(&data, "127.0.0.1:0", &settings);
    // The page shows a server whose first snapshots exist.
    online(&server, &["snapshot", "create"]);
    holds("docs/operating/monitoring.md", &server);
}

#[test]
fn what_the_page_of_installing_shows_is_what_happens() {
    holds("docs/operating/install.md", &Server::start());
}

/// Each command of the page starts a server with the packaged configuration.
#[test]
fn the_servers_on_the_page_of_the_configuration_start() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::copy(
        root.join("packaging/esker.toml"),
        dir.path().join("esker.toml"),
    )
    .unwrap();
    let page = Page::read("docs/operating/configuration.md");
    assert_eq!(page.steps.len(), 2);
    for step in &page.steps {
        // Any free port, and an end when this process ends.
        let command = step.command.replace("127.0.0.1:7171", "127.0.0.1:0");
        let mut shell = shell(&format!("{command} --until-stdin-closes"), dir.path());
        shell.env("ESKER_LISTEN", "127.0.0.1:0");
        let output = run(shell, b"");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(
            printed.contains(" serves http://127.0.0.1:"),
            "{command}: {printed}"
        );
        assert_eq!(step.printed, "", "{command}");
    }
}

/// Runs the runbook's commands, each on a server that was damaged for it.
#[test]
fn what_the_runbook_shows_is_what_happens() {
    let mut page = Page::read("docs/operating/recovery.md");
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let backups = dir.path().join("backups");
    let destination = format!("snapshots.destination={}", backups.display());
    let settings = [
        "--partitions",
        "2",
        "--set",
        &destination,
        "--set",
        "snapshots.snapshot-kind=incremental",
        "--set",
        "snapshots.num-retained=3",
        "--set",
        "snapshots.snapshot-interval=1h",
    ];
    let mut server = Server::start_with(&data, "127.0.0.1:0", &settings);
    server.ok(&["create", "basin-eu1/orders"]);
    let mut shown = Vec::new();
    for records in [5000, 1000] {
        server.ok_with(&["append", "basin-eu1/orders"], lines(records).as_bytes());
        online(&server, &["snapshot", "create", "--partition", "2"]);
        let newest = ["snapshot", "show", "newest", "--partition", "2"];
        shown.push(objects(&online(&server, &newest)));
    }
    server.ok_with(&["append", "basin-eu1/orders"], lines(500).as_bytes());

    // A file that the newest snapshot alone has.
    let object = shown[1].iter().find(|object| !shown[0].contains(object));
    let object = object.expect("the newest snapshot has a new file");
    let file = backups.join("2").join(object);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    page.run("The newest snapshot is damaged", dir.path(), &[], &server);

    // The data directory is lost as well: the snapshot before it is restored.
    server.kill();
    std::fs::remove_dir_all(&data).unwrap();
    let restore = [&settings[..], &["--bootstrap", "restore"]].concat();
    let server = Server::start_with(&data, "127.0.0.1:0", &restore);
    server.ok_with(&["append", "basin-eu1/orders"], lines(10).as_bytes());
    page.run("Lineages", dir.path(), &[], &server);
    page.run("Abandoned snapshots", dir.path(), &[], &server);
    drop(server);

    // A repository that cannot be reached, and a log that is full.
    let full = tempfile::tempdir().unwrap();
    std::fs::write(full.path().join("more"), lines(100_000)).unwrap();
    let settings = [
        ("snapshots.destination", "s3://backups/esker"),
        ("snapshots.aws-endpoint-url", "http://127.0.0.1:1"),
        ("snapshots.aws-allow-http", "true"),
        ("snapshots.aws-access-key-id", "key"),
        ("snapshots.aws-secret-access-key", "secret"),
        ("snapshots.on-log-full", "refuse-appends"),
        ("snapshots.max-log-bytes", "4MiB"),
        ("log.segment-size", "1MiB"),
        ("log.purge-threshold", "1MiB"),
    ]
    .map(|(key, value)| format!("{key}={value}"));
    let mut arguments = vec!["--partitions", "2", "--bootstrap", "new"];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let server = Server::start_with(&full.path().join("data"), "127.0.0.1:0", &arguments);
    server.ok(&["create", "basin-eu1/orders"]);
    let record = format!("{}\n", "x".repeat(100_000));
    eventually("the log is full", || {
        let append = server.stream(["append", "basin-eu1/orders"]);
        !run(append, record.repeat(10).as_bytes()).status.success()
    });
    page.run(
        "The log is larger than max-log-bytes",
        full.path(),
        &[],
        &server,
    );

    // A disk that is full or hangs needs a mount: see `tests/e2e/runbook.rs`.
    page.shown_elsewhere(&["Disk full", "The disk hangs"]);
    page.finish();
}

/// The source of the program, with string literals over several lines joined, and any white space as one
/// space.
fn source() -> String {
    fn read(dir: &Path, found: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let joined: Vec<_> = text.split("\\\n").map(str::trim_start).collect();
                found.push_str(&joined.concat());
                found.push('\n');
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = String::new();
    read(&root.join("crates"), &mut found);
    read(&root.join("src"), &mut found);
    found.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The code has some consecutive words of each message, or the beginning of each line of the log.
#[test]
fn every_message_that_the_runbook_shows_is_one_of_the_code() {
    /// Number of consecutive words that distinguish one message from another.
    const WORDS: usize = 4;

    let source = source();
    let page = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating/recovery.md"),
    );
    let mut checked = 0;
    for line in page.unwrap().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [first, second, message @ ..] = &words[..] else {
            continue;
        };
        let mut runs = message.windows(WORDS);
        let has_run = runs.any(|words| source.contains(&words.join(" ")));
        let is_in_code = match (*first, *second) {
            ("INFO" | "WARN" | "ERROR", "…") => {
                let is_value =
                    |word: &&&str| word.contains(['=', '/']) || word.contains(char::is_numeric);
                let fixed = message
                    .iter()
                    .take_while(|word| !is_value(word))
                    .take(WORDS);
                let mut fixed: Vec<&str> = fixed.copied().collect();
                // The text after a colon is a value.
                if let Some(end) = fixed.iter().position(|word| word.ends_with(':')) {
                    fixed.truncate(end + 1);
                }
                has_run || !fixed.is_empty() && source.contains(&fixed.join(" "))
            }
            ("error", code) if code.starts_with('[') => has_run,
            _ => continue,
        };
        checked += 1;
        assert!(is_in_code, "no code has this message: {line}");
    }
    assert!(checked > 25, "{checked}");
}

/// Objects of a snapshot, as `esker snapshot show` lists them.
fn objects(shown: &str) -> Vec<String> {
    let words = shown.split_whitespace();
    words
        .filter(|word| word.starts_with("ssts/"))
        .map(str::to_owned)
        .collect()
}

/// This many lines, each a number.
fn lines(count: u32) -> String {
    (1..=count).map(|n| format!("{n}\n")).collect()
}

/// Runs a command against a server, which has to succeed, and returns its standard output.
fn online(server: &Server, arguments: &[&str]) -> String {
    let mut command = esker();
    command.args(arguments).args(["--server", &server.url]);
    let output = run(command, b"");
    let printed = stdout(&output);
    let said = stderr(&output);
    assert!(output.status.success(), "{arguments:?}: {printed}{said}");
    printed
}
