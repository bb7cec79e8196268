//! What is printed, word for word: help, errors and the demo in `*.trycmd`, and what the README and
//! the guide to snapshots show.
//!
//! They show real numbers, which differ from run to run. Their transcripts are run as they stand, one
//! command after the other in a directory of their own, and compared in shape: every number,
//! duration, directory and random name counts as any other.

use std::path::Path;
use std::process::Command;

use crate::support::{Server, run};

#[test]
fn help_errors_and_the_demo_are_printed_as_they_are_written() {
    trycmd::TestCases::new()
        .register_bin("esker", Path::new(env!("CARGO_BIN_EXE_esker")))
        .case("tests/cli/*.trycmd");
}

#[test]
fn what_the_readme_shows_is_what_happens() {
    let readme = include_str!("../../README.md");
    let steps = steps(readme);
    for wanted in ["esker demo", "esker stream append"] {
        assert!(
            steps.iter().any(|step| step.command.contains(wanted)),
            "README.md has no ```console block that shows `{wanted}`"
        );
    }

    let server = Server::start();
    follow("README.md", steps, &[("ESKER_SERVER", &server.url)]);
}

#[test]
fn what_the_guide_to_snapshots_shows_is_what_happens() {
    let guide = include_str!("../../docs/guides/snapshots.md");
    follow(
        "docs/guides/snapshots.md",
        steps(guide),
        &[("ESKER_REPOSITORY", "backups")],
    );
}

#[test]
fn what_the_guide_to_the_admin_api_shows_is_what_happens() {
    let guide = include_str!("../../docs/reference/admin-api.md");
    let dir = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}/backups", dir.path().display());
    let server = Server::start_with(
        &dir.path().join("data"),
        "127.0.0.1:0",
        &["--partitions", "2", "--set", &destination],
    );
    follow(
        "docs/reference/admin-api.md",
        steps(guide),
        &[("ESKER_SERVER", &server.url)],
    );
}

#[test]
fn what_the_guide_to_following_shows_is_what_happens() {
    let guide = include_str!("../../docs/guides/follow.md");
    let server = Server::start();
    follow(
        "docs/guides/follow.md",
        steps(guide),
        &[("ESKER_SERVER", &server.url)],
    );
}

#[test]
fn what_the_guide_to_the_state_store_shows_is_what_happens() {
    let guide = include_str!("../../docs/guides/state.md");
    let server = Server::start();
    follow(
        "docs/guides/state.md",
        steps(guide),
        &[("ESKER_SERVER", &server.url)],
    );
}

/// Runs the commands of a page one after the other in a directory of their own.
fn follow(page: &str, steps: Vec<Step>, variables: &[(&str, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_esker"));
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    for Step { command, printed } in steps {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("{{ {command}; }} 2>&1")])
            .current_dir(dir.path())
            .env("XDG_CACHE_HOME", dir.path().join(".cache"))
            .env("PATH", &path)
            .envs(variables.iter().copied());
        let output = run(shell, b"");
        let actual = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            shape(&printed),
            shape(&actual),
            "{page}: `{command}` prints\n{actual}"
        );
    }
}

/// A command, and what it prints.
struct Step {
    command: String,
    printed: String,
}

/// The commands in the ```` ```console ```` blocks of a page.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if let Some(command) = line.strip_prefix("$ ").filter(|_| inside) {
            steps.push(Step {
                command: command.to_owned(),
                printed: String::new(),
            });
        } else if let Some(step) = steps.last_mut().filter(|_| inside) {
            step.printed += line;
            step.printed.push('\n');
        }
    }
    steps
}

/// A text with every number as `0`, every duration as `0 s`, the scratch directory of a demo as
/// `DIR`, random names as one, this host as `node-1`, and every space as one.
fn shape(text: &str) -> Vec<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    text.lines()
        .map(|line| {
            let line = without_random_names(line);
            let mut words: Vec<String> = Vec::new();
            for word in line.split_whitespace() {
                let word = match word {
                    _ if word.contains("/esker-demo-") => "DIR".to_owned(),
                    _ if word == host.trim() => "node-0".to_owned(),
                    _ => numbers_as_zero(word),
                };
                let unit = word.trim_end_matches([',', ';', ')', ':', '.']);
                let after_number = words.last().is_some_and(|last| last.ends_with('0'));
                if after_number && matches!(unit, "ms" | "s" | "min") {
                    let rest = &word[unit.len()..];
                    // `2 min 5 s` is one duration.
                    if words.len() > 1 && words[words.len() - 2] == "s" {
                        words.pop();
                        words.pop();
                    }
                    words.push(format!("s{rest}"));
                } else {
                    words.push(word);
                }
            }
            words.join(" ")
        })
        .filter(|line| !line.is_empty())
        .collect()
}

/// A line whose snapshots, checksums, directories and units of speed are any.
fn without_random_names(line: &str) -> String {
    let word_end = |rest: &str| {
        rest.find(|c: char| !c.is_ascii_alphanumeric())
            .unwrap_or(rest.len())
    };
    let mut shaped = String::new();
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let end = word_end(rest);
        let word = &rest[..end];
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if let Some(id) = rest.strip_prefix("snap_1") {
            shaped += "snap";
            rest = &id[word_end(id)..];
        } else if let Some(path) = rest.strip_prefix("file://")
            && let Some(at) = path.find("/backups")
        {
            shaped += "file://";
            rest = &path[at..];
        } else if end >= 32 && word.bytes().all(is_hex) {
            shaped += "HEX";
            rest = &rest[end..];
        } else if matches!(word, "B" | "KiB" | "MiB" | "GiB") && rest[end..].starts_with("/s") {
            shaped += "B";
            rest = &rest[end..];
        } else {
            let end = end.max(c.len_utf8());
            shaped += &rest[..end];
            rest = &rest[end..];
        }
    }
    shaped
}

/// `10,400` and `1.68` as `0`.
fn numbers_as_zero(word: &str) -> String {
    let mut zeroed = String::new();
    let mut rest = word;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        zeroed += &rest[..start];
        zeroed.push('0');
        let number = &rest[start..];
        let end = number
            .char_indices()
            .find(|&(index, c)| {
                let within = matches!(c, ',' | '.')
                    && number[index + 1..].starts_with(|c: char| c.is_ascii_digit());
                !c.is_ascii_digit() && !within
            })
            .map_or(number.len(), |(index, _)| index);
        rest = &number[end..];
    }
    zeroed + rest
}

#[test]
fn a_shape_forgets_numbers_and_nothing_else() {
    assert_eq!(
        shape(
            "  first answer     86 ms   after exec; 1,134 log entries\n\n at /tmp/esker-demo-a/data."
        ),
        ["first answer 0 s after exec; 0 log entries", "at DIR"]
    );
    assert_eq!(shape("in 1.24 s, (2 min 5 s)"), shape("in 9 ms, (101 ms)"));
    assert_ne!(shape("records 0 to 1 are gone"), shape("record 0 is gone"));
    assert_eq!(
        shape("file:///tmp/x/backups/0/lsn_00042-snap_1ab, 3.2 MiB/s"),
        shape("file:///srv/backups/7/lsn_00200-snap_1ZzTop09, 120 KiB/s")
    );
    assert_eq!(
        shape(&format!("ssts/{}.sst", "0a".repeat(24))),
        ["ssts/HEX.sst"]
    );
}
