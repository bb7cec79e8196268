//! `--json`: standard output is JSON in every case, and contains the failure.
//!
//! The commands are those whose help has `--json`; one that is missing in [`COMMANDS`] fails the test.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Server, esker, run, stderr, stdout};

/// What a command contacts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Nothing,
    Server,
    /// A server or a repository.
    Either,
    Repository,
}

/// Every command with `--json`: its name, valid arguments, and what it contacts.
const COMMANDS: &[(&str, &[&str], Asks)] = &[
    ("status", &[], Asks::Server),
    ("cluster status", &[], Asks::Server),
    ("cluster remove", &["n2", "--yes"], Asks::Server),
    ("cluster drain", &["n2"], Asks::Server),
    ("cluster activate", &["n2"], Asks::Server),
    ("cluster transfer-leader", &["1", "n2"], Asks::Server),
    ("cluster recover", &["data", "--yes"], Asks::Nothing),
    ("cluster check", &[], Asks::Server),
    ("cluster trust", &["1", "n2", "--yes"], Asks::Server),
    ("cluster secret", &[], Asks::Nothing),
    ("stream ls", &[], Asks::Server),
    ("stream info", &["my-basin/orders"], Asks::Server),
    ("stream create", &["my-basin/orders"], Asks::Server),
    (
        "stream reconfigure",
        &["my-basin/orders", "--retention", "1d"],
        Asks::Server,
    ),
    ("stream delete", &["my-basin/orders", "--yes"], Asks::Server),
    ("stream append", &["my-basin/orders"], Asks::Server),
    ("stream read", &["my-basin/orders"], Asks::Server),
    ("stream tail", &["my-basin/orders"], Asks::Server),
    ("stream check-tail", &["my-basin/orders"], Asks::Server),
    ("stream trim", &["my-basin/orders", "1"], Asks::Server),
    ("stream fence", &["my-basin/orders", "token"], Asks::Server),
    ("stream adopt", &["my-basin", "1"], Asks::Server),
    (
        "follow",
        &["my-basin/orders", "--by", "/id", "--once"],
        Asks::Server,
    ),
    ("state get", &["agent-1", "memory"], Asks::Server),
    ("state put", &["agent-1", "memory", "{}"], Asks::Server),
    ("state delete", &["agent-1", "memory"], Asks::Server),
    ("state keys", &["agent-1"], Asks::Server),
    ("state agents", &[], Asks::Server),
    ("state namespaces", &[], Asks::Server),
    ("state history", &["agent-1", "memory"], Asks::Server),
    ("state replay", &["--all"], Asks::Server),
    ("state snapshot", &[], Asks::Server),
    ("state export", &[], Asks::Server),
    ("state import", &["export.json"], Asks::Server),
    ("state verify", &[], Asks::Server),
    ("snapshot create", &[], Asks::Server),
    ("snapshot list", &[], Asks::Either),
    ("snapshot show", &[], Asks::Either),
    ("snapshot diff", &["100", "200"], Asks::Either),
    ("snapshot verify", &[], Asks::Either),
    ("snapshot why", &["latest.json"], Asks::Either),
    ("snapshot restore", &["--to", "restored"], Asks::Repository),
    ("snapshot put", &["one", "--lsn", "300"], Asks::Repository),
    ("snapshot prune", &[], Asks::Either),
    ("token issue", &["worker", "--ops", "read"], Asks::Server),
    ("import s2", &["http://127.0.0.1:2"], Asks::Server),
    ("token list", &[], Asks::Server),
    ("token revoke", &["worker"], Asks::Server),
    ("token confirm", &[], Asks::Server),
    ("config check", &[], Asks::Nothing),
    ("config show", &[], Asks::Nothing),
    ("version", &[], Asks::Nothing),
];

/// The command, in a directory of the test.
fn command(dir: &Path, name: &str, arguments: &[&str]) -> Command {
    let mut command = esker();
    command
        .args(name.split(' '))
        .args(arguments)
        .current_dir(dir)
        .env("XDG_CACHE_HOME", dir.join("caches"));
    command
}

/// The commands below this one whose help has `--json`.
fn with_json(name: &str, found: &mut BTreeSet<String>) {
    let mut help = esker();
    help.args(name.split(' ').filter(|word| !word.is_empty()));
    let help = stdout(&run(
        {
            help.arg("--help");
            help
        },
        b"",
    ));
    let mut lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let mut is_leaf = true;
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        // Continuation lines of a long summary are indented further.
        if let Some(word) = line
            .strip_prefix("  ")
            .filter(|rest| !rest.starts_with(' '))
        {
            let word = word.split(' ').next().unwrap();
            // This command shows the help of the others.
            if word == "help" {
                continue;
            }
            with_json(format!("{name} {word}").trim(), found);
            is_leaf = false;
        }
    }
    if is_leaf
        && help
            .lines()
            .any(|line| line.trim_start().starts_with("--json"))
    {
        found.insert(name.to_owned());
    }
}

/// Checks that a run failed, and that standard output has the failure: in the only document, or in the last
/// one of a command that prints several. Returns the code and the document.
fn failure(what: &str, output: &Output) -> (String, Value) {
    let (printed, said) = (stdout(output), stderr(output));
    let context = format!("{what}\nstdout: {printed}\nstderr: {said}");
    assert!(!output.status.success(), "{context}");
    let documents = serde_json::Deserializer::from_str(&printed).into_iter::<Value>();
    let documents: Vec<_> = documents
        .map(|document| document.unwrap_or_else(|e| panic!("{e}\n{context}")))
        .collect();
    assert_eq!(documents.len(), 1, "{context}");
    let error = &documents[0]["error"];
    for field in ["code", "message", "what_to_do"] {
        let text = error[field].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "no {field}: {context}");
    }
    let code = error["code"].as_str().unwrap().to_owned();
    assert!(said.contains(&format!("error [{code}]: ")), "{context}");
    (code, documents[0].clone())
}

/// Two snapshots of a directory, in `backups`.
fn repository(dir: &Path) {
    for (name, text) in [("one", "old"), ("two", "new")] {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("a"), text).unwrap();
    }
    for (name, lsn) in [("one", "100"), ("two", "200")] {
        let arguments = [
            name,
            "--lsn",
            lsn,
            "--num-retained",
            "3",
            "--repository",
            "backups",
        ];
        let output = run(command(dir, "snapshot put", &arguments), b"");
        assert!(output.status.success(), "{}", stderr(&output));
    }
    fs::write(dir.join("export.json"), "{}").unwrap();
}

#[test]
fn every_command_with_json_is_in_the_table() {
    let mut found = BTreeSet::new();
    with_json("", &mut found);
    let listed: BTreeSet<_> = COMMANDS
        .iter()
        .map(|(name, ..)| (*name).to_owned())
        .collect();
    assert_eq!(found, listed);
}

#[test]
fn the_version_is_a_document_by_the_option_and_by_the_command() {
    for arguments in [
        &["--json", "--version"][..],
        &["-V", "--json"],
        &["version", "--json"],
    ] {
        let mut command = esker();
        command.args(arguments);
        let output = run(command, b"");
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            document["version"],
            env!("CARGO_PKG_VERSION"),
            "{arguments:?}"
        );
    }
}

#[test]
fn every_code_that_a_command_gives_is_documented() {
    fn sources(dir: &Path, found: &mut String) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => sources(&path, found),
                false => *found += &fs::read_to_string(path).unwrap(),
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    sources(&root.join("src"), &mut text);
    let documented = fs::read_to_string(root.join("docs/reference/errors.md")).unwrap();
    let mut codes = BTreeSet::new();
    for constructor in [
        "Failure::wrong(",
        "Failure::usage(",
        "Failure::unreachable(",
    ] {
        let calls = text.split(constructor).skip(1);
        let literals = calls.filter_map(|call| call.trim_start().strip_prefix('"'));
        codes.extend(literals.filter_map(|literal| literal.split('"').next()));
    }
    assert!(codes.len() > 30, "{codes:?}");
    for code in codes {
        assert!(documented.contains(&format!("\n| `{code}` |")), "{code}");
    }
}

#[test]
fn arguments_that_cannot_be_meant_are_a_document() {
    let dir = tempfile::tempdir().unwrap();
    for (name, arguments, _) in COMMANDS {
        for json in [
            &["--json", "--no-such-option"][..],
            &["--no-such-option", "--json"],
        ] {
            let output = run(command(dir.path(), name, &[arguments, json].concat()), b"");
            assert_eq!(output.status.code(), Some(2), "{name}");
            let (code, document) = failure(name, &output);
            assert_eq!(code, "usage", "{name}");
            let message = document["error"]["message"].as_str().unwrap();
            assert!(message.contains("--no-such-option"), "{name}: {message}");
        }
    }
    for group in ["stream", "state", "snapshot"] {
        let output = run(command(dir.path(), group, &["--json"]), b"");
        assert_eq!(failure(group, &output).0, "usage");
    }
    // Arguments after two dashes are no options.
    let output = run(command(dir.path(), "stream tail", &["--", "--json"]), b"");
    assert_eq!(stdout(&output), "");
}

#[test]
fn a_server_or_store_that_does_not_answer_is_a_document() {
    let dir = tempfile::tempdir().unwrap();
    repository(dir.path());
    let s3 = [
        "--repository",
        "s3://bucket/prefix",
        "--aws-endpoint-url",
        "http://127.0.0.1:1",
        "--aws-allow-http",
        "--aws-access-key-id",
        "AKIA",
        "--aws-secret-access-key",
        "secret",
    ];
    for (name, arguments, asks) in COMMANDS {
        let (place, wanted): (&[&str], _) = match asks {
            Asks::Nothing => continue,
            Asks::Server | Asks::Either => (&["--server", "http://127.0.0.1:1"], "unreachable"),
            Asks::Repository => (&s3, "store"),
        };
        let arguments = [arguments, place, &["--json"]].concat();
        let output = run(command(dir.path(), name, &arguments), b"");
        assert_eq!(output.status.code(), Some(3), "{name}: {}", stderr(&output));
        assert_eq!(failure(name, &output).0, wanted, "{name}");
    }
}

#[test]
fn what_is_no_server_is_a_document() {
    let dir = tempfile::tempdir().unwrap();
    repository(dir.path());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // A server that closes connections without an answer.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"what?\r\n\r\n");
        }
    });
    for (name, arguments, asks) in COMMANDS {
        if !matches!(asks, Asks::Repository | Asks::Nothing) {
            let arguments = [arguments, &["--server", &url, "--json"][..]].concat();
            let output = run(command(dir.path(), name, &arguments), b"");
            failure(name, &output);
        }
    }
}

#[test]
fn a_damaged_root_is_a_document() {
    let dir = tempfile::tempdir().unwrap();
    repository(dir.path());
    let root = dir.path().join("backups/0/latest.json");
    fs::remove_file(&root).unwrap();
    fs::write(&root, "{\"version\":").unwrap();
    for (name, arguments, asks) in COMMANDS {
        if !matches!(asks, Asks::Server | Asks::Nothing) {
            let arguments = [arguments, &["--repository", "backups", "--json"][..]].concat();
            let output = run(command(dir.path(), name, &arguments), b"");
            assert_eq!(failure(name, &output).0, "damaged", "{name}");
            assert_eq!(output.status.code(), Some(1), "{name}");
        }
    }
    // The partial result is in the same document.
    let listed = run(
        command(
            dir.path(),
            "snapshot list",
            &["--repository", "backups", "--json"],
        ),
        b"",
    );
    let (_, document) = failure("snapshot list", &listed);
    assert_eq!(document["partitions"][0]["partition"], 0, "{document}");
}

#[test]
fn a_snapshot_or_object_that_is_not_there_is_a_document() {
    let dir = tempfile::tempdir().unwrap();
    repository(dir.path());
    for (name, arguments, wanted) in [
        ("snapshot show", &["300"][..], "no_snapshot"),
        ("snapshot diff", &["100", "300"], "no_snapshot"),
        ("snapshot restore", &["300", "--to", "none"], "no_snapshot"),
        ("snapshot put", &["nowhere", "--lsn", "1"], "io"),
        ("snapshot prune", &["--plan", "nowhere"], "plan"),
        ("snapshot prune", &["--keep", "1"], "needs_yes"),
        ("snapshot restore", &["--to", "backups"], "invalid"),
    ] {
        let arguments = [arguments, &["--repository", "backups", "--json"]].concat();
        let output = run(command(dir.path(), name, &arguments), b"");
        assert_eq!(failure(name, &output).0, wanted, "{name}");
    }
    for (name, arguments, asks) in COMMANDS {
        // `snapshot put` creates the repository.
        if !matches!(asks, Asks::Server | Asks::Nothing) && *name != "snapshot put" {
            let arguments = [arguments, &["--repository", "nowhere", "--json"][..]].concat();
            let output = run(command(dir.path(), name, &arguments), b"");
            assert_eq!(failure(name, &output).0, "no_repository", "{name}");
        }
    }
    // The result is in the same document.
    let sst = fs::read_dir(dir.path().join("backups/0/ssts"))
        .unwrap()
        .next();
    fs::remove_file(sst.unwrap().unwrap().path()).unwrap();
    let arguments = ["--repository", "backups", "--json"];
    let output = run(command(dir.path(), "snapshot verify", &arguments), b"");
    let (code, document) = failure("snapshot verify", &output);
    assert_eq!(code, "damaged");
    assert_eq!(document["sound"], false);
    assert_eq!(document["damaged"].as_array().unwrap().len(), 1);
}

#[test]
fn what_a_server_refuses_is_a_document_with_what_was_done_before() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start();
    server.ok_with(
        &["append", "my-basin/lines", "--create"],
        b"{\"id\":1}\nno json\n",
    );
    let run = |name: &str, arguments: &[&str], input: &[u8]| {
        let arguments = [arguments, &["--server", &server.url, "--json"]].concat();
        let output = run(command(dir.path(), name, &arguments), input);
        failure(name, &output)
    };
    for (name, arguments, wanted) in [
        ("stream ls", &["no-basin"][..], "basin_not_found"),
        (
            "stream create",
            &["my-basin/lines"],
            "resource_already_exists",
        ),
        ("stream read", &["my-basin/none"], "stream_not_found"),
        (
            "stream read",
            &["my-basin/lines", "--from", "9"],
            "beyond_tail",
        ),
        ("stream tail", &["my-basin/none"], "stream_not_found"),
        ("stream check-tail", &["my-basin/none"], "stream_not_found"),
        ("stream info", &["my-basin/none"], "stream_not_found"),
        (
            "stream reconfigure",
            &["my-basin/none", "--retention", "1d"],
            "stream_not_found",
        ),
        ("stream reconfigure", &["my-basin/lines"], "usage"),
        (
            "stream delete",
            &["my-basin/none", "--yes"],
            "stream_not_found",
        ),
        ("stream delete", &["my-basin/lines"], "needs_yes"),
        ("stream fence", &["my-basin/none", "t"], "stream_not_found"),
        (
            "stream fence",
            &["my-basin/lines", "t", "--fencing-token", "other"],
            "fencing_token_mismatch",
        ),
        ("stream trim", &["my-basin/lines", "9"], "beyond_tail"),
        (
            "follow",
            &["my-basin/lines", "--by", "/id", "--once"],
            "record_malformed",
        ),
        ("state get", &["agent-1", "memory"], "key_not_found"),
        ("state get", &["agent-1", "memory", "--at", "9"], "invalid"),
        ("state history", &["agent-1", "memory"], "key_not_found"),
        ("state put", &["agent-1", "memory", "{"], "invalid"),
        (
            "state put",
            &["agent-1", "memory", "{}", "--expect", "9"],
            "version_mismatch",
        ),
        ("state import", &["nowhere.json"], "io"),
        (
            "state verify",
            &["--at-snapshot", "9"],
            "snapshot_not_found",
        ),
        ("state snapshot", &[], "nothing_committed"),
        (
            "snapshot show",
            &["--partition", "9"],
            "partition_not_found",
        ),
        (
            "snapshot list",
            &["--partition", "9"],
            "partition_not_found",
        ),
    ] {
        let (code, _) = run(name, arguments, b"");
        assert_eq!(code, wanted, "{name} {arguments:?}");
    }
    let (_, document) = run("state get", &["agent-1", "memory"], b"");
    assert_eq!(document["exists"], false, "{document}");
    let (_, document) = run("snapshot create", &["--partition", "9"], b"");
    assert_eq!(document["failed"][0]["partition"], 9, "{document}");

    let mut lines = b"{}\n{}\n".to_vec();
    lines.extend(vec![b'x'; 1024 * 1024]);
    let (code, document) = run("stream append", &["my-basin/lines"], &lines);
    assert_eq!(code, "input");
    assert_eq!(document["records"], 2, "{document}");
    assert_eq!(document["next_seq_num"], 4, "{document}");
    assert_eq!(document["records_in_doubt"], 0, "{document}");
}
