//! Files that commands write: an existing file is replaced only on request, and only by a complete one.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Running, Server, esker, eventually, run, signal, stderr, stdout};

/// A server with some state, and a repository.
struct World {
    server: Server,
    dir: tempfile::TempDir,
}

/// The commands that write a file, without the file's name.
const COMMANDS: [&str; 2] = [
    "state export -o",
    "snapshot prune --keep 1 --dry-run --repository backups --plan-out",
];

impl World {
    fn new() -> World {
        let world = World {
            server: Server::start(),
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(world.path("files")).unwrap();
        fs::write(world.path("files/a"), "a").unwrap();
        for command in [
            "snapshot put files --lsn 1 --repository backups",
            "state put agent-1 memory {\"a\":1}",
        ] {
            let output = run(world.command(command, &[]), b"");
            assert!(output.status.success(), "{}", stderr(&output));
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, command: &str, more: &[&str]) -> Command {
        let mut esker = esker();
        esker
            .args(command.split(' '))
            .args(more)
            .current_dir(self.dir.path())
            .env("XDG_CACHE_HOME", self.path("caches"));
        if !command.contains("--repository") {
            esker.env("ESKER_SERVER", &self.server.url);
        }
        esker
    }

    fn ok(&self, command: &str, more: &[&str]) -> Output {
        let output = run(self.command(command, more), b"");
        let said = stderr(&output);
        assert!(output.status.success(), "{command} {more:?}: {said}");
        output
    }

    /// All files below the directory that a command may have left.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn is_json(path: &Path) -> bool {
    serde_json::from_slice::<Value>(&fs::read(path).unwrap()).is_ok()
}

/// `Commands:` of a help, without `help`.
fn commands_of(words: &[&str]) -> Vec<String> {
    let mut process = esker();
    let help = stdout(&run(
        {
            process.args(words).arg("-h");
            process
        },
        b"",
    ));
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    let words = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let words = words.filter(|word| !word.is_empty() && *word != "help");
    words.map(str::to_owned).collect()
}

#[test]
fn every_command_has_a_manual_page_and_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("pages");
    let mut process = esker();
    process.args(["man", "--output"]).arg(&pages);
    let output = run(process, b"");
    assert!(output.status.success(), "{}", stderr(&output));
    let mut process = esker();
    process.args(["completion", "bash"]);
    let completion = stdout(&run(process, b""));
    let mut expected = vec!["esker.1".to_owned()];
    for group in commands_of(&[]) {
        assert!(completion.contains(&group), "{group}");
        expected.push(format!("esker-{group}.1"));
        for command in commands_of(&[&group]) {
            expected.push(format!("esker-{group}-{command}.1"));
        }
    }
    assert!(expected.len() > 40, "{expected:?}");
    let found = fs::read_dir(&pages).unwrap();
    let mut found: Vec<_> = found
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    for page in found {
        let text = fs::read_to_string(pages.join(&page)).unwrap();
        assert!(
            text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"),
            "{page}"
        );
        // An absolute path or a time of the build would make packages differ.
        assert!(!text.contains(env!("CARGO_MANIFEST_DIR")), "{page}");
    }
    let page = fs::read_to_string(pages.join("esker-stream-append.1")).unwrap();
    assert!(page.contains("encryption"), "{page}");
}

#[test]
fn a_file_is_replaced_only_by_force_and_keeps_its_mode() {
    let world = World::new();
    for command in COMMANDS {
        let file = world.path("out.json");
        fs::write(&file, "before").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let names = world.names();
        let output = run(world.command(command, &["out.json"]), b"");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("error [file_exists]"), "{command}: {said}");
        assert!(said.contains("--force"), "{command}: {said}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "before", "{command}");
        world.ok(command, &["out.json", "--force"]);
        assert!(is_json(&file), "{command}");
        assert_eq!(
            fs::metadata(&file).unwrap().mode() & 0o7777,
            0o644,
            "{command}"
        );
        assert_eq!(world.names(), names, "{command}");
    }
}

#[test]
fn what_is_no_regular_file_is_written_through() {
    let world = World::new();
    for (number, command) in COMMANDS.into_iter().enumerate() {
        // A symbolic link stays, wherever it leads.
        let link = format!("null-{number}");
        symlink("/dev/null", world.path(&link)).unwrap();
        world.ok(command, &[&link]);
        let metadata = fs::symlink_metadata(world.path(&link)).unwrap();
        assert!(metadata.is_symlink(), "{command}");
        assert!(
            fs::metadata("/dev/null")
                .unwrap()
                .file_type()
                .is_char_device()
        );

        let link = format!("link-{number}");
        symlink(format!("to-{number}"), world.path(&link)).unwrap();
        world.ok(command, &[&link]);
        assert!(is_json(&world.path(&format!("to-{number}"))), "{command}");
        let metadata = fs::symlink_metadata(world.path(&link)).unwrap();
        assert!(metadata.is_symlink(), "{command}");

        // A path that leads to standard output.
        let link = format!("stdout-{number}");
        symlink("/proc/self/fd/1", world.path(&link)).unwrap();
        let output = world.ok(command, &[&link]);
        let documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
        let first = documents.map(Result::ok).next().flatten();
        assert!(first.is_some_and(|value| value.is_object()), "{command}");

        let fifo = world.path(&format!("fifo-{number}"));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let reading = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo).unwrap()
        });
        world.ok(command, &[fifo.to_str().unwrap()]);
        assert!(
            fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo(),
            "{command}"
        );
        let read = reading.join().unwrap();
        assert!(serde_json::from_slice::<Value>(&read).is_ok(), "{command}");
    }
}

#[test]
fn a_file_that_cannot_be_written_to_its_end_is_named_with_the_cause() {
    let world = World::new();
    for command in COMMANDS {
        for (file, cause) in [
            ("/dev/full", "No space left on device"),
            ("nowhere/out", "No such file or directory"),
            (".", "is a directory"),
            ("backups", "is a directory"),
        ] {
            let output = run(world.command(command, &[file]), b"");
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{command} {file}: {said}");
            assert!(said.contains("error [io]"), "{command} {file}: {said}");
            assert!(said.contains(cause), "{command} {file}: {said}");
        }
    }
}

#[test]
fn an_export_that_a_signal_ends_leaves_no_file() {
    let world = World::new();
    let names = world.names();
    // The command has created its file, and gets no answer.
    world.server.signal(Signal::STOP);
    for (name, end) in [
        ("int", Signal::INT),
        ("term", Signal::TERM),
        ("kill", Signal::KILL),
    ] {
        let mut export = Running::start(world.command("state export -o", &[name]));
        let fds = format!("/proc/{}/fd", export.child.id());
        eventually("the file is begun", || {
            let links = fs::read_dir(&fds).into_iter().flatten().flatten();
            links
                .filter_map(|link| fs::read_link(link.path()).ok())
                .any(|path| path.starts_with(world.dir.path()))
        });
        signal(&export.child, end);
        eventually("it ends", || export.child.try_wait().unwrap().is_some());
        assert_eq!(world.names(), names, "{name}");
    }
    world.server.signal(Signal::CONT);
}
