//! `esker demo`: what it leaves behind, however it ends. What it prints is in `demo.trycmd`.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::support::{Running, Server, esker, run, signal, stderr, stdout};

fn demo(scratch: &Path) -> Command {
    let mut command = esker();
    command.args(["demo", "--dir"]).arg(scratch);
    command
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}

#[test]
fn a_demo_leaves_nothing_behind_and_takes_no_settings_from_the_environment() {
    let scratch = tempfile::tempdir().unwrap();
    let mut command = demo(scratch.path());
    // Each of these variables would break the demo if it applied to its server.
    command
        .env("ESKER_LISTEN", "not an address")
        .env("ESKER_SERVER", "http://127.0.0.1:1");
    let output = run(command, b"");
    assert!(
        output.status.success(),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );
    assert!(
        stdout(&output).contains("\nKilled, nothing acknowledged is lost; what a lost disk costs")
    );
    assert_eq!(stderr(&output), "");
    assert!(is_empty(scratch.path()));
}

#[test]
fn what_a_demo_keeps_can_be_served_and_read() {
    let scratch = tempfile::tempdir().unwrap();
    let lines: String = (0..8000).map(|n| format!("record {n}\n")).collect();
    let data = scratch.path().join("lines");
    std::fs::write(&data, &lines).unwrap();
    let mut command = demo(scratch.path());
    command.arg("--keep").arg("--data").arg(&data);
    let output = run(command, b"");
    let printed = stdout(&output);
    assert!(output.status.success(), "{printed}{}", stderr(&output));

    let hint = printed
        .lines()
        .find(|line| line.contains("--data-dir"))
        .unwrap();
    let kept = hint.split_whitespace().next_back().unwrap();
    assert!(kept.starts_with(scratch.path().to_str().unwrap()), "{kept}");
    let server = Server::start_with(Path::new(kept), "127.0.0.1:0", &[]);
    let read = server.ok(&["read", "esker-demo/flights"]);
    // The records, and a tenth of them again for the second snapshot: these were restored. After them and a gap
    // of 2^40 numbers, those that the demo appended then.
    let again: String = lines.split_inclusive('\n').take(800).collect();
    let covered = format!("{lines}{again}");
    let (restored, new) = read.split_at(covered.len().min(read.len()));
    assert!(
        restored == covered,
        "what was kept is not what was appended"
    );
    assert_eq!(new.lines().count(), 100, "{new}");
    assert!(lines.starts_with(new), "{new}");
    let tail = server.ok(&["check-tail", "esker-demo/flights"]);
    let next = (1_u64 << 40) + 8800 + 100;
    assert!(tail.contains(&format!("number is {next},")), "{tail}");
}

/// The first number on the line that begins with `label`.
fn figure(printed: &str, label: &str) -> u64 {
    let line = printed.lines().find(|l| l.trim_start().starts_with(label));
    let line = line.unwrap_or_else(|| panic!("no line {label}: {printed}"));
    let word = line.trim_start()[label.len()..].split_whitespace().next();
    let digits = word.unwrap_or_default().replace(',', "");
    digits.parse().unwrap_or_else(|_| panic!("{line}"))
}

/// The number of replayed entries on the line that begins with `label`.
fn replayed(printed: &str, label: &str) -> u64 {
    let line = printed.lines().find(|l| l.trim_start().starts_with(label));
    let words: Vec<_> = line.unwrap_or_default().split_whitespace().collect();
    let at = words.iter().position(|word| *word == "entries").unwrap();
    words[at - 1].replace(',', "").parse().unwrap()
}

#[test]
fn a_demo_replays_no_more_than_what_came_after_a_snapshot() {
    let scratch = tempfile::tempdir().unwrap();
    let output = run(demo(scratch.path()), b"");
    let printed = stdout(&output);
    assert!(output.status.success(), "{printed}{}", stderr(&output));
    // 2,000 records in batches of 100 came after the second snapshot in the repository, and at most a few entries of
    // the node itself.
    let after = figure(&printed, "replayed");
    assert!((20..40).contains(&after), "{printed}");
    assert_eq!(figure(&printed, "lost"), figure(&printed, "after it"));
    // Every append of the long history, against those since its newest local snapshot.
    let (all, tail) = (
        replayed(&printed, "from zero"),
        replayed(&printed, "snapshot plus tail"),
    );
    let appended = printed
        .lines()
        .find(|l| l.contains("Another server takes"))
        .unwrap();
    let appended: u64 = appended
        .split_whitespace()
        .nth(3)
        .unwrap()
        .replace(',', "")
        .parse()
        .unwrap();
    assert!(all >= appended, "{printed}");
    // A machine that appends so few records in ten seconds has no local snapshot to recover from.
    assert!(tail < all || appended < 50_000, "{printed}");
}

#[test]
fn data_that_will_not_do_is_refused_with_the_reason() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("lines");
    let refused = |content: &str| {
        std::fs::write(&file, content).unwrap();
        let mut command = demo(scratch.path());
        command.arg("--data").arg(&file);
        let output = run(command, b"");
        assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
        stderr(&output)
    };
    let said = refused("one\ntwo\n");
    assert!(said.contains("2 lines; the demo needs 6600"), "{said}");
    let said = refused(&("x\n".repeat(7000) + &"y".repeat(1024 * 1024)));
    assert!(said.contains("line 7001 is longer"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_demo_that_is_ended_takes_its_server_with_it() {
    use crate::support::{eventually, processes_with};

    for end in [Signal::INT, Signal::TERM, Signal::KILL] {
        let scratch = tempfile::tempdir().unwrap();
        let data = scratch.path().join("lines");
        // Long enough for the signal to arrive in the middle.
        std::fs::write(&data, "a line\n".repeat(2_000_000)).unwrap();
        let mut command = demo(scratch.path());
        command.arg("--data").arg(&data);
        let mut demo = Running::start(command);
        let parts: Vec<String> = (0..3).map(|_| demo.line()).collect();
        assert!(parts[2].contains("1. "), "{parts:?}");
        let in_scratch = scratch.path().join("esker-demo-");
        let in_scratch = in_scratch.to_str().unwrap();
        eventually("a server runs in the scratch directory", || {
            !processes_with(in_scratch).is_empty()
        });

        signal(&demo.child, end);
        let (code, _, said) = demo.finish();
        eventually("no server runs there any more", || {
            processes_with(in_scratch).is_empty()
        });
        if end == Signal::KILL {
            assert_eq!(code, None);
        } else {
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains("[interrupted]"), "{said}");
            std::fs::remove_file(&data).unwrap();
            assert!(is_empty(scratch.path()), "the scratch directory is removed");
        }
    }
}

/// A second signal ends a demo during its cleanup at once, and the message names what is left.
#[cfg(target_os = "linux")]
#[test]
fn a_demo_that_is_ended_while_it_cleans_up_names_the_directory_that_is_left() {
    use crate::support::{eventually, processes_with};

    /// Number of files whose removal takes longer than the time that a process has after a second signal.
    const FILES: usize = 150_000;

    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("lines");
    // Long enough for the signal to arrive in the middle.
    std::fs::write(&data, "a line\n".repeat(2_000_000)).unwrap();
    let place = scratch.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let mut command = demo(&place);
    command.arg("--data").arg(&data);
    let mut demo = Running::start(command);
    let in_place = || std::fs::read_dir(&place).unwrap().next();
    eventually("it has a directory", || in_place().is_some());
    let made = in_place().unwrap().unwrap().path();
    let server = made.to_str().unwrap();
    eventually("a server runs in it", || !processes_with(server).is_empty());
    // It stands still meanwhile, or it could end before the last file is there.
    signal(&demo.child, Signal::STOP);
    let many = made.join("many");
    std::fs::create_dir(&many).unwrap();
    for number in 0..FILES {
        std::fs::write(many.join(number.to_string()), "").unwrap();
    }
    signal(&demo.child, Signal::CONT);
    signal(&demo.child, Signal::INT);
    eventually("its server is gone", || processes_with(server).is_empty());
    signal(&demo.child, Signal::INT);
    eventually("it ends", || demo.child.try_wait().unwrap().is_some());
    let (code, _, said) = demo.finish();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error [interrupted]"), "{said}");
    let is_named = said.contains(server);
    assert!(is_named || !made.exists(), "{said}");
}
