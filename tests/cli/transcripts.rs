//! What is printed, word for word: help, errors and the demo in `*.trycmd`, and what the README
//! shows.
//!
//! The README shows real numbers, which differ from run to run. Its transcripts are run as they
//! stand, against a server of their own, and compared in shape: every number, duration and
//! directory counts as any other.

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
            .env("PATH", &path)
            .env("ESKER_SERVER", &server.url);
        let output = run(shell, b"");
        let actual = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            shape(&printed),
            shape(&actual),
            "README.md: `{command}` prints\n{actual}"
        );
    }
}

/// A command, and what it prints.
struct Step {
    command: String,
    printed: String,
}

/// The commands in the ```` ```console ```` blocks of a page that call `esker`.
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
    steps.retain(|step| step.command.contains("esker "));
    steps
}

/// A text with every number as `0`, every duration as `0 s`, the scratch directory of a demo as
/// `DIR`, and every space as one.
fn shape(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| {
            let mut words: Vec<String> = Vec::new();
            for word in line.split_whitespace() {
                let word = match word.find("/esker-demo-") {
                    Some(_) => "DIR".to_owned(),
                    None => numbers_as_zero(word),
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
}
