//! `esker import s2`, from a server to another: real servers of this program, and s2-lite where it is installed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::support::{Server, esker, eventually, run, stderr, stdout};

/// `esker import s2` with arguments.
fn import(source: &str, target: &Server, arguments: &[&str]) -> Output {
    let mut command = esker();
    command
        .args(["import", "s2", source, "--server", &target.url])
        .args(arguments);
    run(command, b"")
}

/// The same, which has to succeed. Returns its standard output.
fn imported(source: &str, target: &Server, arguments: &[&str]) -> String {
    let output = import(source, target, arguments);
    assert!(
        output.status.success(),
        "import {arguments:?}:\n{}{}",
        stdout(&output),
        stderr(&output)
    );
    stdout(&output)
}

/// `esker stream` against a server of any kind.
fn stream(url: &str, arguments: &[&str], input: &str) -> String {
    let mut command = esker();
    command
        .arg("stream")
        .args(arguments)
        .args(["--server", url]);
    let output = run(command, input.as_bytes());
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        stderr(&output)
    );
    stdout(&output)
}

fn numbered(from: u64, to: u64) -> String {
    (from..to).map(|n| format!("record {n}\n")).collect()
}

/// All records of a stream with their positions, timestamps and headers, and its settings.
fn contents(url: &str, name: &str) -> (String, serde_json::Value) {
    let tail = stream(url, &["check-tail", name, "--json"], "");
    let tail: serde_json::Value = serde_json::from_str(&tail).unwrap();
    let records = match tail["seq_num"].as_u64() {
        Some(0) => String::new(),
        _ => stream(url, &["read", name, "--json"], ""),
    };
    let info = stream(url, &["info", name, "--json"], "");
    let mut info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info.as_object_mut().unwrap().remove("created_at");
    (records, info)
}

/// The fencing token in force, which the error of an append with another one has.
fn fencing_token(url: &str, name: &str) -> String {
    let mut command = esker();
    command.args([
        "stream",
        "append",
        name,
        "--fencing-token",
        "no-such-token",
        "--server",
        url,
    ]);
    let output = run(command, b"not appended\n");
    assert!(!output.status.success());
    stderr(&output)
}

/// Streams of every kind, on a server that may have a first, empty basin.
fn fill(url: &str) {
    stream(url, &["create", "my-basin", "--retention", "30d"], "");
    stream(url, &["create", "my-basin/orders"], "");
    stream(url, &["append", "my-basin/orders"], &numbered(0, 2500));
    stream(url, &["fence", "my-basin/orders", "owner-1"], "");
    stream(
        url,
        &["append", "my-basin/orders", "--fencing-token", "owner-1"],
        &numbered(2501, 2600),
    );
    let settings = ["--retention", "infinite", "--timestamping", "arrival"];
    stream(
        url,
        &[&["create", "my-basin/by arrival/é"][..], &settings].concat(),
        "",
    );
    stream(url, &["append", "my-basin/by arrival/é"], &numbered(0, 10));
    stream(url, &["create", "my-basin/empty"], "");
    // Trimmed, with the fencing token set before that.
    stream(url, &["create", "other-basin/trimmed"], "");
    stream(url, &["fence", "other-basin/trimmed", "owner-2"], "");
    let fenced = [
        "append",
        "other-basin/trimmed",
        "--fencing-token",
        "owner-2",
    ];
    stream(url, &fenced, &numbered(1, 1500));
    stream(
        url,
        &[
            "trim",
            "other-basin/trimmed",
            "1200",
            "--fencing-token",
            "owner-2",
        ],
        "",
    );
    stream(url, &fenced, &numbered(1501, 1600));
}

const STREAMS: [&str; 4] = [
    "my-basin/orders",
    "my-basin/by arrival/é",
    "my-basin/empty",
    "other-basin/trimmed",
];

fn assert_same(source: &str, target: &Server) {
    for name in STREAMS {
        let (theirs, ours) = (contents(source, name), contents(&target.url, name));
        assert!(theirs.0 == ours.0, "the records of {name} differ");
        for field in ["head", "tail", "settings", "cipher"] {
            assert_eq!(theirs.1[field], ours.1[field], "{field} of {name}");
        }
    }
    for name in ["my-basin/orders", "other-basin/trimmed"] {
        assert_eq!(
            fencing_token(source, name),
            fencing_token(&target.url, name)
        );
    }
    let basin = |url: &str| {
        let info = stream(url, &["info", "my-basin", "--json"], "");
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        info["stream_settings"].clone()
    };
    assert_eq!(basin(source), basin(&target.url));
}

#[test]
fn an_import_copies_records_with_their_positions_and_settings_and_can_be_repeated() {
    let (source, target) = (Server::start(), Server::start());
    fill(&source.url);
    let plan = imported(&source.url, &target, &["--dry-run"]);
    assert!(
        plan.contains("my-basin/orders: 2,600 records to copy"),
        "{plan}"
    );
    assert_eq!(stream(&target.url, &["ls"], ""), "");

    let done = imported(&source.url, &target, &[]);
    assert!(
        done.contains("my-basin/orders: 2,600 records copied, 2,600 records compared"),
        "{done}"
    );
    assert_same(&source.url, &target);

    let again = imported(&source.url, &target, &[]);
    assert!(
        again.contains("my-basin/orders: 0 records copied, 2,600 records compared"),
        "{again}"
    );
    assert_same(&source.url, &target);

    let more = ["append", "my-basin/orders", "--fencing-token", "owner-1"];
    stream(&source.url, &more, &numbered(2600, 2700));
    let next = imported(&source.url, &target, &["--basin", "my-basin", "--json"]);
    let lines: Vec<serde_json::Value> = next
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let orders = lines
        .iter()
        .find(|line| line["stream"] == "my-basin/orders")
        .unwrap();
    assert_eq!(
        (&orders["copied"], &orders["tail"]),
        (&100.into(), &2700.into())
    );
    assert_same(&source.url, &target);
    imported(&source.url, &target, &["--verify"]);
}

#[test]
fn a_stream_with_other_records_is_not_written_and_does_not_keep_the_others_from_being_copied() {
    let (source, target) = (Server::start(), Server::start());
    fill(&source.url);
    stream(&target.url, &["create", "my-basin/orders"], "");
    stream(
        &target.url,
        &["append", "my-basin/orders"],
        &numbered(7, 2700),
    );
    let before = contents(&target.url, "my-basin/orders").0;
    let output = import(&source.url, &target, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).contains("my-basin/orders: [import_conflict]"),
        "{}",
        stdout(&output)
    );
    assert!(
        stderr(&output).contains("error [import_incomplete]: 1 of 4"),
        "{}",
        stderr(&output)
    );
    assert!(contents(&target.url, "my-basin/orders").0 == before);
    let same = |name| contents(&source.url, name).0 == contents(&target.url, name).0;
    assert!(STREAMS[1..].iter().all(|name| same(name)));

    // Fewer records, and others: also where the source begins behind them.
    for name in ["my-basin/few", "other-basin/few"] {
        stream(&target.url, &["create", name], "");
        stream(&source.url, &["create", name], "");
        stream(&target.url, &["append", name], &numbered(0, 5));
        stream(&source.url, &["append", name], &numbered(1, 100));
    }
    stream(&source.url, &["trim", "other-basin/few", "50"], "");
    let before = ["my-basin/few", "other-basin/few"].map(|name| contents(&target.url, name));
    let said = stdout(&import(&source.url, &target, &[]));
    assert!(said.contains("my-basin/few: [import_conflict]"), "{said}");
    assert!(
        said.contains("other-basin/few: [import_conflict]"),
        "{said}"
    );
    let after = ["my-basin/few", "other-basin/few"].map(|name| contents(&target.url, name));
    assert!(before == after, "{before:?}, {after:?}");

    // As many records, and others.
    stream(&target.url, &["create", "other-basin/changed"], "");
    stream(&source.url, &["create", "other-basin/changed"], "");
    stream(
        &target.url,
        &["append", "other-basin/changed"],
        &numbered(0, 5),
    );
    stream(
        &source.url,
        &["append", "other-basin/changed"],
        &numbered(1, 6),
    );
    for (mode, code) in [
        (&["--verify"][..], "import_differs"),
        (&[], "import_conflict"),
    ] {
        let output = import(&source.url, &target, mode);
        let said = stdout(&output);
        let expected = format!("other-basin/changed: [{code}]");
        assert!(said.contains(&expected), "{said}");
        assert!(said.contains("the record at 0 is another"), "{said}");
    }
}

#[test]
fn a_stream_whose_records_have_expired_here_is_not_continued() {
    let (source, target) = (Server::start(), Server::start());
    let name = "my-basin/orders";
    stream(&source.url, &["create", name], "");
    stream(&source.url, &["append", name], &numbered(0, 100));
    stream(&target.url, &["create", name, "--retention", "1s"], "");
    stream(&target.url, &["append", name], &numbered(0, 5));
    eventually("the records expire", || {
        let info = stream(&target.url, &["info", name, "--json"], "");
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        info["head"] == 5
    });
    // Otherwise the first five records would be missing, and the import would succeed.
    let output = import(&source.url, &target, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    let said = stdout(&output);
    assert!(
        said.contains("my-basin/orders: [import_conflict]"),
        "{said}"
    );
    let tail = stream(&target.url, &["check-tail", name, "--json"], "");
    assert!(tail.contains("\"seq_num\":5"), "{tail}");
}

/// A server with a root token of its own, and the file that has it.
fn guarded(dir: &Path, name: &str) -> (Server, PathBuf) {
    let token = dir.join(format!("{name}.token"));
    let settings = [
        "--partitions",
        "2",
        "--create-root-token",
        "--root-token-file",
        token.to_str().unwrap(),
    ];
    let server = Server::start_with(&dir.join(name), "127.0.0.1:0", &settings);
    (server, token)
}

#[test]
fn each_server_of_an_import_gets_its_own_token_and_not_that_of_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let (source, source_token) = guarded(dir.path(), "source");
    let (target, target_token) = guarded(dir.path(), "target");
    let command = |arguments: &[&str], token: &Path, input: &str| {
        let mut command = esker();
        command.args(arguments).arg("--token-file").arg(token);
        let output = run(command, input.as_bytes());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let at = |url: &str, action: &str| {
        let arguments = ["stream", action, "my-basin/orders", "--server", url];
        arguments.map(str::to_owned)
    };
    let records = numbered(0, 20);
    for (action, input) in [("create", ""), ("append", &*records)] {
        let arguments = at(&source.url, action);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        command(&arguments, &source_token, input);
    }
    let import = |of_source: &Path, of_target: &Path| {
        let mut command = esker();
        command
            .args(["import", "s2", &source.url, "--server", &target.url])
            .arg("--source-token-file")
            .arg(of_source)
            .arg("--token-file")
            .arg(of_target)
            .env_remove("ESKER_TOKEN")
            .env_remove("S2_ACCESS_TOKEN");
        run(command, b"")
    };
    for (of_source, of_target) in [
        (&target_token, &target_token),
        (&source_token, &source_token),
        (&target_token, &source_token),
    ] {
        let refused = import(of_source, of_target);
        let said = format!("{}{}", stdout(&refused), stderr(&refused));
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("[authn]"), "{said}");
    }
    let done = import(&source_token, &target_token);
    assert!(done.status.success(), "{}{}", stdout(&done), stderr(&done));
    let read = at(&target.url, "read");
    let read: Vec<_> = read.iter().map(String::as_str).collect();
    assert_eq!(command(&read, &target_token, ""), records);
}

#[test]
fn records_of_an_encrypted_stream_are_not_stored_as_plain_text() {
    let (source, target) = (Server::start(), Server::start());
    let name = "my-basin/secret";
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    std::fs::write(&key, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=").unwrap();
    let key = ["--encryption-key-file", key.to_str().unwrap()];
    let create = ["create", "my-basin", "--stream-cipher", "aegis-256"];
    stream(&source.url, &create, "");
    stream(&source.url, &["create", name], "");
    let append = [&["append", name][..], &key].concat();
    stream(&source.url, &append, &numbered(0, 10));
    // The basin is there already, without a cipher.
    stream(&target.url, &["create", "my-basin"], "");
    let output = import(&source.url, &target, &key);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    let said = stdout(&output);
    assert!(
        said.contains("my-basin/secret: [import_conflict]"),
        "{said}"
    );
    let tail = stream(&target.url, &["check-tail", name, "--json"], "");
    assert!(tail.contains("\"seq_num\":0"), "{tail}");
}

#[test]
fn an_encrypted_stream_is_copied_with_its_key_and_is_encrypted_with_it_here() {
    let (source, target) = (Server::start(), Server::start());
    let name = "my-basin/secret";
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, key: &str| {
        let file = directory.path().join(name);
        std::fs::write(&file, key).unwrap();
        file.display().to_string()
    };
    let right = file("right", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=");
    let wrong = file("wrong", "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=");
    let key = ["--encryption-key-file", &*right];
    let create = ["create", "my-basin", "--stream-cipher", "aegis-256"];
    stream(&source.url, &create, "");
    stream(&source.url, &["create", name], "");
    let append = [&["append", name][..], &key].concat();
    stream(&source.url, &append, &numbered(0, 1500));
    // Without the key nothing can be read.
    for options in [&["--encryption-key-file", &*wrong][..], &[]] {
        let output = import(&source.url, &target, options);
        assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    }

    let done = imported(&source.url, &target, &key);
    assert!(
        done.contains("my-basin/secret: 1,500 records copied, 1,500 records compared"),
        "{done}"
    );
    let read = [&["read", name, "--json"][..], &key].concat();
    let (theirs, ours) = (
        stream(&source.url, &read, ""),
        stream(&target.url, &read, ""),
    );
    assert!(theirs == ours, "the records differ");
    let info = stream(&target.url, &["info", name, "--json"], "");
    assert!(info.contains("aegis-256"), "{info}");
    for options in [&["--encryption-key-file", &*wrong][..], &[]] {
        let mut command = esker();
        let read = ["stream", "read", name, "--server", &target.url];
        command.args(read).args(options);
        let output = run(command, b"");
        assert!(!output.status.success(), "{}", stdout(&output));
    }
    // It goes on where it ended.
    stream(&source.url, &append, &numbered(1500, 1600));
    let next = imported(&source.url, &target, &key);
    assert!(next.contains("100 records copied"), "{next}");
    imported(&source.url, &target, &["--verify", key[0], key[1]]);
}

#[test]
fn a_front_that_is_too_long_is_refused_before_anything_is_written_to_it() {
    let (source, target) = (Server::start(), Server::start());
    fill(&source.url);
    let output = import(&source.url, &target, &["--max-front", "1000"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).contains("trimmed: [import_front]"),
        "{}",
        stdout(&output)
    );
    let tail = stream(
        &target.url,
        &["check-tail", "other-basin/trimmed", "--json"],
        "",
    );
    assert!(tail.contains("\"seq_num\":0"), "{tail}");
    imported(&source.url, &target, &[]);
    assert_same(&source.url, &target);
}

#[test]
fn an_import_that_was_killed_continues_where_it_ended() {
    let (source, target) = (Server::start(), Server::start());
    let name = "my-basin/large";
    stream(&source.url, &["create", name], "");
    let text = "x".repeat(2000);
    let records: String = (0..20_000).map(|n| format!("{n} {text}\n")).collect();
    stream(&source.url, &["append", name], &records);
    let tail = || {
        let mut command = esker();
        command.args([
            "stream",
            "check-tail",
            name,
            "--json",
            "--server",
            &target.url,
        ]);
        let output = run(command, b"");
        let tail: Option<serde_json::Value> = serde_json::from_slice(&output.stdout).ok();
        tail.and_then(|tail| tail["seq_num"].as_u64()).unwrap_or(0)
    };
    let mut command = esker();
    command.args(["import", "s2", &source.url, "--server", &target.url]);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("some records are copied", || tail() > 0);
    child.kill().unwrap();
    child.wait().unwrap();
    let begun = tail();
    assert!(begun > 0);
    let done = imported(&source.url, &target, &["--json"]);
    let done: serde_json::Value = serde_json::from_str(done.trim()).unwrap();
    assert!(done["copied"].as_u64().unwrap() <= 20_000 - begun, "{done}");
    assert_eq!(done["compared"], 20_000);
    assert!(contents(&source.url, name) == contents(&target.url, name));
}

/// A process that ends with the test.
struct Lite(Child);

impl Drop for Lite {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program `s2`: `ESKER_TEST_S2`, or the one that `make follow-lite` installs. `None` if that was never done.
fn s2_program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("ESKER_TEST_S2") {
        // Whoever names one wants it tried.
        return Some(named.into());
    }
    let of_home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let program = cache.or_else(of_home)?.join("esker/peers/bin/s2");
    if program.exists() {
        return Some(program);
    }
    testkit::skipped(&format!(
        "the import of what s2-lite holds: there is no {}; `make follow-lite` installs it",
        program.display()
    ));
    None
}

#[test]
fn what_s2_lite_holds_is_imported() {
    let Some(program) = s2_program() else {
        return;
    };
    let port = testkit::ports::free_port().unwrap().to_string();
    let lite = Command::new(&program)
        .args(["lite", "--port", &port, "--no-dashboard"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _lite = Lite(lite);
    let url = format!("http://127.0.0.1:{port}");
    eventually("s2-lite answers", || {
        let mut command = esker();
        command.args(["stream", "ls", "--server", &url]);
        run(command, b"").status.success()
    });
    fill(&url);
    let target = Server::start();
    imported(&url, &target, &[]);
    assert_same(&url, &target);
    imported(&url, &target, &["--verify"]);
}
