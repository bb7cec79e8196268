//! `esker status`, and `esker snapshot` against a real server.
//!
//! What they print is in `docs/reference/admin-api.md`, which [`crate::transcripts`] runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use rustix::process::Signal;
use serde_json::Value;
use testkit::corruption::{change_alone, flip};

use crate::support::{Running, Server, esker, eventually, run, signal, stderr, stdout};

/// A server, and its repository outside its data directory.
struct World {
    server: Server,
    repository: PathBuf,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("backups");
        let destination = format!("snapshots.destination={}", repository.display());
        let settings = [
            "--partitions",
            "2",
            "--set",
            &destination,
            "--set",
            "snapshots.num-retained=3",
        ];
        let server = Server::start_with(&dir.path().join("data"), "127.0.0.1:0", &settings);
        let world = World {
            server,
            repository,
            dir,
        };
        eventually("every partition has its first snapshot", || {
            let status: Value = world.json(&["status"]);
            let partitions = status["partitions"].as_array().unwrap();
            partitions.iter().all(|one| !one["newest"].is_null())
        });
        world
    }

    /// Runs any command, with the server in its variable.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = esker();
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env("ESKER_SERVER", &self.server.url);
        run(command, b"")
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = stderr(&output);
        assert!(output.status.success(), "{arguments:?}: {said}");
        stdout(&output)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// Runs a command, which has to fail with this exit code and error code. Returns its standard error.
    fn fails(&self, exit: i32, code: &str, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {said}");
        let code = format!("error [{code}]: ");
        assert!(said.contains(&code), "{arguments:?}: {said}");
        said
    }

    fn append(&self, records: usize) {
        let lines: String = (0..records).map(|n| format!("{n}\n")).collect();
        self.server
            .ok_with(&["append", "my-basin/orders"], lines.as_bytes());
    }
}

/// Makes a repository unusable: it is a directory, and a file takes its place.
fn break_down(repository: &Path) {
    fs::rename(repository, repository.with_extension("away")).unwrap();
    fs::write(repository, "no directory").unwrap();
}

fn mend(repository: &Path) {
    fs::remove_file(repository).unwrap();
    fs::rename(repository.with_extension("away"), repository).unwrap();
}

#[test]
fn a_fresh_server_is_healthy_and_has_advice() {
    let server = Server::start();
    let mut command = esker();
    command.args(["status", "--server", &server.url]);
    let output = run(command, b"");
    let page = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{page}{}", stderr(&output));
    for expected in [": healthy", "restart", "repository_on_this_disk", "Advice"] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    assert!(!page.contains("What is wrong"), "{page}");
}

#[test]
fn a_status_tells_what_only_this_disk_has() {
    let world = World::new();
    world.server.ok(&["create", "my-basin/orders"]);
    world.append(100);
    let status = world.json(&["status"]);
    let at_risk = |status: &Value| -> u64 {
        let partitions = status["partitions"].as_array().unwrap();
        partitions
            .iter()
            .map(|one| one["entries_at_risk"].as_u64().unwrap())
            .sum()
    };
    assert!(at_risk(&status) > 0, "{status:#}");
    let created = world.json(&["snapshot", "create"]);
    let done = created["done"].as_array().unwrap();
    assert_eq!(done.len(), 3);
    for one in done {
        assert!(one["archived_lsn"].as_u64() <= one["lsn"].as_u64(), "{one}");
    }
    assert!(created["failed"].as_array().unwrap().is_empty());
    assert_eq!(at_risk(&world.json(&["status"])), 0);
}

#[test]
fn a_repository_that_is_down_is_a_problem_and_no_reason_to_stop() {
    let world = World::new();
    world.server.ok(&["create", "my-basin/orders"]);
    break_down(&world.repository);
    let said = world.fails(
        1,
        "unavailable",
        &["snapshot", "create", "--partition", "1"],
    );
    assert!(said.contains("backups"), "{said}");
    let output = world.run(&["status"]);
    let page = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{page}");
    assert!(page.contains("What is wrong"), "{page}");
    assert!(page.contains("repository_missing"), "{page}");
    assert!(stderr(&output).contains("error [unhealthy]: "));
    world.append(10);

    mend(&world.repository);
    world.ok(&["snapshot", "create"]);
    world.ok(&["status"]);
}

#[test]
fn what_a_server_tells_of_its_snapshots_is_what_the_repository_tells() {
    let world = World::new();
    world.server.ok(&["create", "my-basin/orders"]);
    world.append(10);
    world.ok(&["snapshot", "create"]);
    let repository = world.repository.to_str().unwrap();
    let of_two = |name: &str| {
        let list = world.json(&["snapshot", "list", "--partition", "0"]);
        let snapshots = &list["partitions"][0]["snapshots"];
        let at = if name == "newest" { 0 } else { 1 };
        snapshots[at]["snapshot"].as_str().unwrap().to_owned()
    };
    let (newest, older) = (of_two("newest"), of_two("older"));
    let key = format!("{newest}/metadata.json");
    for command in [
        vec!["list"],
        vec!["list", "--partition", "2"],
        vec!["show", "--partition", "0"],
        vec!["show", &older, "--partition", "0"],
        vec!["diff", &older, &newest, "--partition", "0"],
        vec!["why", &key, "--partition", "0"],
        vec!["why", "latest.json", "--partition", "1"],
    ] {
        let command = [&["snapshot"], command.as_slice()].concat();
        let of_repository = [command.as_slice(), &["--repository", repository]].concat();
        assert_eq!(
            world.json(&command),
            world.json(&of_repository),
            "{command:?}"
        );
    }
    let report = world.json(&["snapshot", "verify", "--data", "--partition", "0"]);
    assert_eq!(report["sound"], true, "{report}");
    let reports = world.json(&["snapshot", "verify"]);
    assert_eq!(reports["partitions"].as_array().unwrap().len(), 3);
    for command in [
        &["snapshot", "verify"][..],
        &["snapshot", "prune", "--dry-run", "--keep", "1"],
    ] {
        let of_repository = [command, &["--repository", repository]].concat();
        let numbers = |document: Value| -> Vec<Value> {
            let partitions = document["partitions"].as_array().unwrap().iter();
            partitions.map(|one| one["partition"].clone()).collect()
        };
        assert_eq!(numbers(world.json(command)), [0, 1, 2]);
        assert_eq!(numbers(world.json(&of_repository)), [0, 1, 2]);
    }
    world.fails(
        1,
        "no_snapshot",
        &["snapshot", "show", "77", "--partition", "0"],
    );
}

#[test]
fn a_snapshot_is_proven_against_the_live_partition() {
    let world = World::new();
    world.server.ok(&["create", "my-basin/orders"]);
    world.append(50);
    let proven = world.json(&["snapshot", "verify", "--restore"]);
    let done = proven["done"].as_array().unwrap();
    assert_eq!(done.len(), 3, "{proven:#}");
    // The records after the snapshots are replayed on them.
    let replayed: u64 = done
        .iter()
        .map(|one| one["replayed"].as_u64().unwrap())
        .sum();
    assert!(replayed > 0, "{proven:#}");
    let status = world.json(&["status"]);
    for (one, proven) in status["partitions"].as_array().unwrap().iter().zip(done) {
        assert_eq!(one["proven"]["digest"], proven["digest"]);
    }
    let newest = done[1]["snapshot"].as_str().unwrap();
    let text = world.ok(&[
        "snapshot",
        "verify",
        "--restore",
        newest,
        "--partition",
        "1",
    ]);
    assert!(text.contains("equal at LSN"), "{text}");
}

#[test]
fn a_snapshot_that_is_damaged_is_not_proven_and_needs_action() {
    let world = World::new();
    let newest = world.json(&["snapshot", "show", "--partition", "1"]);
    let newest = newest["snapshot"].as_str().unwrap();
    let files = fs::read_dir(world.repository.join("1").join(newest)).unwrap();
    let file = files
        .map(|file| file.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "sst"));
    let file = file.unwrap();
    // The database has the same file, by a hard link, so only this name is changed.
    change_alone(&file, |bytes| flip(bytes, 0));
    let restore = ["snapshot", "verify", "--restore", "--partition", "1"];
    world.fails(1, "proof_failed", &restore);
    let verify = ["snapshot", "verify", "--data", "--partition", "1"];
    world.fails(1, "damaged", &verify);
    let output = world.run(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("proof_failed of partition 1"));
}

#[test]
fn a_server_lets_go_of_snapshots_that_were_named_before() {
    let world = World::new();
    world.server.ok(&["create", "my-basin/orders"]);
    // A record in the stream's partition, because a second snapshot of the same state would replace the
    // first.
    world.append(1);
    world.ok(&["snapshot", "create", "--partition", "2"]);
    let prune = ["snapshot", "prune", "--partition", "2"];
    let plan = world.json(&[&prune[..], &["--keep", "1", "--dry-run"]].concat());
    assert_eq!(plan["released"].as_array().unwrap().len(), 1, "{plan:#}");
    let keep = [&prune[..], &["--keep", "1"]].concat();
    let said = world.fails(2, "needs_yes", &keep);
    assert!(said.contains("releases lsn_"), "{said}");
    let done = world.json(&[keep.as_slice(), &["--yes"]].concat());
    assert_eq!(done["released"], plan["released"]);
    let status = world.json(&["status"]);
    eventually("the status knows", || {
        status["partitions"][2]["retained"] == 1
            || world.json(&["status"])["partitions"][2]["retained"] == 1
    });
    world.ok(&prune);
    let out = ["--dry-run", "--plan-out", "plan.json"];
    world.fails(2, "repository", &[&prune[..], &out].concat());
}

/// A proxy that passes on every request. For the first `times` requests to execute a prune that was planned
/// before, it changes the partition's repository first.
fn changing(real: &Server, mut change: impl FnMut() + Send + 'static, mut times: u32) -> String {
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream};

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let real = real.address().to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut request = Vec::new();
            let mut one = [0];
            while !request.ends_with(b"\r\n\r\n") && client.read(&mut one).is_ok_and(|n| n == 1) {
                request.push(one[0]);
            }
            let head = String::from_utf8(request).unwrap();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let is_length = name.eq_ignore_ascii_case("content-length");
                is_length.then(|| value.trim().parse::<usize>().unwrap())
            });
            let mut body = vec![0; length.unwrap_or(0)];
            client.read_exact(&mut body).unwrap();
            let planned = String::from_utf8_lossy(&body).contains("\"apply\":true");
            if planned && times > 0 {
                times -= 1;
                change();
            }
            let Some(head) = head.strip_suffix("\r\n") else {
                continue;
            };
            let mut server = TcpStream::connect(&real).unwrap();
            write!(server, "{head}connection: close\r\n\r\n").unwrap();
            server.write_all(&body).unwrap();
            let mut answer = Vec::new();
            server.read_to_end(&mut answer).unwrap();
            let _ = client.write_all(&answer);
            let _ = client.shutdown(Shutdown::Both);
        }
    });
    url
}

/// Puts a snapshot of partition 2 with new content.
fn snapshot_of_something_new(server: &str) {
    for (arguments, input) in [
        (&["stream", "append", "my-basin/orders"][..], &b"more\n"[..]),
        (&["snapshot", "create", "--partition", "2"], b""),
    ] {
        let mut command = esker();
        command.args(arguments).args(["--server", server]);
        let output = run(command, input);
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

#[test]
fn a_prune_goes_on_with_a_new_plan_when_a_snapshot_was_put_after_its_plan_was_made() {
    let world = World::new();
    world.server.ok(&["create", "my-basin/orders"]);
    let real = world.server.url.clone();
    snapshot_of_something_new(&real);
    let prune = |url: &str| {
        let keep = ["snapshot", "prune", "--partition", "2", "--keep", "1"];
        world.run(&[&keep[..], &["--yes", "--json", "--server", url]].concat())
    };
    let change = move || snapshot_of_something_new(&real);
    let output = prune(&changing(&world.server, change.clone(), 1));
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("a new plan is made"), "{said}");
    let pruned: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(pruned["released"].as_array().unwrap().len(), 2, "{pruned}");
    let retained = || {
        let list = world.json(&["snapshot", "list", "--partition", "2"]);
        list["partitions"][0]["snapshots"].as_array().unwrap().len()
    };
    assert_eq!(retained(), 1);

    // If the repository changes every time, the prune ends with the cause, and nothing is deleted.
    let output = prune(&changing(&world.server, change, u32::MAX));
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let document: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(document["error"]["code"], "root_moved", "{document}");
    assert_eq!(retained(), 3);
}

#[test]
fn a_command_says_whom_it_can_ask() {
    let world = World::new();
    let dir = world.dir.path().join("directory");
    fs::create_dir(&dir).unwrap();
    let dir = dir.to_str().unwrap();
    let said = world.fails(2, "repository", &["snapshot", "restore", "--to", "there"]);
    for expected in ["--repository", "--bootstrap restore"] {
        assert!(said.contains(expected), "{said}");
    }
    let said = world.fails(2, "repository", &["snapshot", "put", dir, "--lsn", "1"]);
    assert!(said.contains("esker snapshot create"), "{said}");
    let create = ["snapshot", "create", "--repository", dir];
    let said = world.fails(2, "repository", &create);
    assert!(said.contains("--server"), "{said}");
    let said = world.fails(2, "partition", &["snapshot", "show"]);
    assert!(said.contains("0 (the catalog) to 2"), "{said}");
    let create = ["snapshot", "create", "--partition", "9"];
    world.fails(2, "partition_not_found", &create);
    let nobody = ["snapshot", "list", "--server", "http://127.0.0.1:1"];
    world.fails(3, "unreachable", &nobody);
    world.fails(
        3,
        "unreachable",
        &["status", "--server", "http://127.0.0.1:1"],
    );
}

/// A proxy that passes on requests whose head begins with one of these, and never answers others.
fn hanging(real: &str) -> String {
    passing_on(real, &["GET /esker/v1/status "], true)
}

/// A proxy that passes on requests whose head begins with one of these. Depending on `others_hang`, it never
/// answers others, or closes their connections.
fn passing_on(real: &str, passed: &'static [&'static str], others_hang: bool) -> String {
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream};

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let real = real.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, real) = (client.unwrap(), real.clone());
            std::thread::spawn(move || {
                let mut head = [0; 4096];
                let read = client.read(&mut head).unwrap_or(0);
                if passed
                    .iter()
                    .any(|one| head[..read].starts_with(one.as_bytes()))
                {
                    let mut server = TcpStream::connect(&real).unwrap();
                    // One request per connection, so that the end of the answer is the end of the connection.
                    let text = String::from_utf8(head[..read].to_vec()).unwrap();
                    let text = text.replacen("\r\n", "\r\nconnection: close\r\n", 1);
                    server.write_all(text.as_bytes()).unwrap();
                    let mut rest = client.try_clone().unwrap();
                    let mut to_server = server.try_clone().unwrap();
                    std::thread::spawn(move || std::io::copy(&mut rest, &mut to_server));
                    let mut answer = Vec::new();
                    server.read_to_end(&mut answer).unwrap();
                    let _ = client.write_all(&answer);
                    let _ = client.shutdown(Shutdown::Both);
                    return;
                }
                // This waits until the client has disconnected.
                while others_hang && client.read(&mut head).is_ok_and(|read| read > 0) {}
            });
        }
    });
    url
}

#[test]
fn what_was_done_of_several_partitions_is_printed_when_the_server_goes_away() {
    let world = World::new();
    let passed = &[
        "GET /esker/v1/status ",
        "POST /esker/v1/partitions/0/snapshots ",
        "POST /esker/v1/partitions/0/snapshots/",
    ];
    let url = passing_on(world.server.address(), passed, false);
    for (arguments, member) in [
        (&["create"][..], "done"),
        (&["verify"], "partitions"),
        (&["verify", "--restore"], "done"),
    ] {
        let arguments = [&["snapshot"], arguments, &["--json", "--server", &url]].concat();
        let output = world.run(&arguments);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {said}");
        let printed = stdout(&output);
        let document: Value =
            serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{e}: {printed} {said}"));
        assert_eq!(document["error"]["code"], "unreachable", "{document}");
        let done = document[member].as_array().unwrap();
        assert_eq!(done.len(), 1, "{document}");
        assert_eq!(done[0]["partition"], 0, "{document}");
    }
}

#[test]
fn what_was_done_of_several_partitions_is_printed_when_a_signal_ends_the_command() {
    use std::io::{BufRead as _, BufReader};

    let world = World::new();
    let passed = &[
        "GET /esker/v1/status ",
        "POST /esker/v1/partitions/0/snapshots ",
    ];
    let url = passing_on(world.server.address(), passed, true);
    let mut command = esker();
    command.args(["snapshot", "create", "--json", "--server", &url]);
    let mut create = Running::start(command);
    let mut said = String::new();
    let mut stderr = BufReader::new(create.child.stderr.take().unwrap());
    while !said.contains("partition 1: no answer yet after ") {
        assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
    }
    signal(&create.child, Signal::INT);
    let (code, printed, _) = create.finish();
    assert_eq!(code, Some(1), "{printed}");
    let document: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(document["error"]["code"], "interrupted", "{document}");
    let done = document["done"].as_array().unwrap();
    assert_eq!(done.len(), 1, "{document}");
    assert_eq!(done[0]["partition"], 0, "{document}");
}

#[test]
fn a_command_that_waits_long_for_a_repository_says_what_it_waits_for() {
    use std::io::{BufRead as _, BufReader};

    let world = World::new();
    let url = hanging(world.server.address());
    for arguments in [
        &["create", "--partition", "1"][..],
        &["list", "--partition", "1", "--json"],
    ] {
        let mut child = esker()
            .arg("snapshot")
            .args(arguments)
            .args(["--server", &url])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        lines.read_line(&mut said).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            said.starts_with("partition 1: no answer yet after "),
            "{said}"
        );
        assert!(said.contains("works with the repository file://"), "{said}");
    }
}
