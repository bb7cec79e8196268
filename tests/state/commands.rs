//! `esker state`, run as a process.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::{Server, Setup};

struct Shell {
    server: Server,
    dir: tempfile::TempDir,
}

impl Shell {
    async fn new() -> Shell {
        Shell {
            server: Setup::default().start_fresh().await,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_esker"))
            .arg("state")
            .args(arguments)
            .current_dir(self.dir.path())
            .env("ESKER_SERVER", self.server.url())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a command, which has to succeed. Returns what it prints.
    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that prints a JSON document per line. Returns these.
    #[track_caller]
    fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        let printed = self.ok(arguments);
        printed
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Runs a command, which has to fail with this exit code and error code. Returns its standard error.
    #[track_caller]
    fn fails(&self, exit: i32, code: &str, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {error}");
        assert!(error.contains(&format!("error [{code}]: ")), "{error}");
        error
    }
}

#[tokio::test]
async fn what_is_put_can_be_read_listed_and_deleted() {
    let shell = Shell::new().await;
    let printed = shell.ok(&["put", "a", "x", r#"{"n":[1,{}]}"#]);
    assert_eq!(printed, "version 1, commit 1\n");
    shell.ok(&["put", "a", "y", "{}", "--namespace", "default"]);
    shell.ok(&["put", "a", "z", "{}", "--namespace", "other"]);
    let expected = "{\n  \"n\": [\n    1,\n    {}\n  ]\n}\n";
    assert_eq!(shell.ok(&["get", "a", "x"]), expected);
    let read = shell.lines(&["get", "a", "x", "--json"]);
    assert_eq!(
        read,
        [json!({
            "namespace": "default", "agent_id": "a", "key": "x",
            "exists": true, "version": 1, "commit_ts": 1, "value": {"n": [1, {}]}
        })]
    );
    let keys = shell.lines(&["keys", "a", "--json"]);
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], json!({"key": "x", "version": 1, "commit_ts": 1}));
    let keys = shell.lines(&["keys", "a", "--prefix", "y", "--values", "--json"]);
    assert_eq!(
        keys,
        [json!({"key": "y", "version": 1, "commit_ts": 2, "value": {}})]
    );
    assert_eq!(
        shell.lines(&["keys", "a", "-n", "other", "--json"]).len(),
        1
    );
    let deleted = shell.lines(&["delete", "a", "x", "--json"]);
    assert_eq!(deleted, [json!({"commit_ts": 4, "version": 2})]);
    let error = shell.fails(1, "key_not_found", &["get", "a", "x"]);
    assert!(error.contains("deleted by commit 4"), "{error}");
    assert!(shell.ok(&["get", "a", "x", "--at", "3"]).contains("\"n\""));
    assert!(
        shell
            .ok(&["get", "a", "x", "--version", "1"])
            .contains("\"n\"")
    );
    assert_eq!(shell.lines(&["keys", "a", "--at", "1", "--json"]).len(), 1);
}

#[tokio::test]
async fn a_version_can_be_expected() {
    let shell = Shell::new().await;
    shell.ok(&["put", "a", "x", "{}", "--expect", "0"]);
    let error = shell.fails(
        1,
        "version_mismatch",
        &["put", "a", "x", "{}", "--expect", "0"],
    );
    assert!(error.contains("version 1, not 0"), "{error}");
    shell.fails(
        1,
        "version_mismatch",
        &["delete", "a", "x", "--expect", "2"],
    );
    shell.ok(&["delete", "a", "x", "--expect", "1"]);
}

#[tokio::test]
async fn history_and_replay_show_what_happened() {
    let shell = Shell::new().await;
    for n in 1..=3 {
        shell.ok(&["put", "a", "x", &format!("{{\"n\":{n}}}")]);
    }
    shell.ok(&["put", "b", "x", "{}"]);
    shell.ok(&["delete", "a", "x"]);
    let history = shell.lines(&["history", "a", "x", "--json"]);
    let versions: Vec<_> = history.iter().map(|it| it["version"].as_u64()).collect();
    assert_eq!(versions, [Some(1), Some(2), Some(3), Some(4)]);
    assert_eq!(history[1]["value"], json!({"n": 2}));
    assert_eq!(history[3]["deleted"], true);
    let history = shell.lines(&["history", "a", "x", "--last", "1", "--at", "2", "--json"]);
    assert_eq!(history[0]["version"], 2);
    let table = shell.ok(&["history", "a", "x"]);
    assert_eq!(table.lines().count(), 5);
    assert!(table.starts_with("VERSION     COMMIT  TIME"), "{table}");
    shell.fails(1, "key_not_found", &["history", "a", "never"]);

    let commits = |arguments: &[&str]| -> Vec<u64> {
        let lines = shell.lines(&[&["replay", "--json"], arguments].concat());
        lines
            .iter()
            .map(|it| it["commit_ts"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(commits(&["a"]), [1, 2, 3, 5]);
    assert_eq!(commits(&["--all"]), [1, 2, 3, 4, 5]);
    assert_eq!(commits(&["--all", "--from", "2", "--to", "3"]), [2, 3]);
    let printed = shell.ok(&["replay", "a", "--from", "5"]);
    assert!(printed.contains("  x  version 4  (deleted)"), "{printed}");
}

#[tokio::test]
async fn a_backup_is_made_restored_and_proven() {
    let shell = Shell::new().await;
    shell.ok(&["put", "a", "x", r#"{"n":1}"#]);
    let printed = shell.ok(&["snapshot"]);
    assert!(printed.starts_with("snapshot-1.json: 1 key, "), "{printed}");
    assert!(
        shell
            .ok(&["snapshot", "--list"])
            .contains("snapshot-1.json")
    );
    assert_eq!(
        shell.lines(&["snapshot", "--list", "--json"])[0]["commit_ts"],
        1
    );
    shell.ok(&["export", "-o", "backup.json"]);
    let file = std::fs::read_to_string(shell.dir.path().join("backup.json")).unwrap();
    let piped: Value = serde_json::from_str(&shell.ok(&["export"])).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    assert_eq!(file["state"], piped["state"]);
    assert!(shell.ok(&["verify"]).contains("the same"));
    shell.fails(1, "not_empty", &["import", "backup.json"]);
    shell.fails(1, "snapshot_not_found", &["export", "--at-snapshot", "7"]);

    let other = Shell::new().await;
    let backup = shell.dir.path().join("backup.json");
    let printed = other.ok(&["import", backup.to_str().unwrap()]);
    assert!(printed.starts_with("imported 1 key ("), "{printed}");
    assert!(other.ok(&["get", "a", "x"]).contains("\"n\": 1"));
    let names = std::fs::read_dir(shell.dir.path()).unwrap().count();
    assert_eq!(names, 1, "an export leaves nothing beside its file");
}

#[tokio::test]
async fn a_follower_goes_on_until_nobody_reads() {
    use std::io::{BufRead as _, BufReader};
    let shell = Shell::new().await;
    shell.ok(&["put", "a", "x", r#"{"n":1}"#]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_esker"))
        .args(["state", "replay", "a", "--follow", "--json"])
        .env("ESKER_SERVER", shell.server.url())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["commit_ts"], 1);
    shell.ok(&["put", "a", "x", r#"{"n":2}"#]);
    assert_eq!(next()["commit_ts"], 2);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_server_without_the_service_is_told_from_none() {
    let nobody = "http://127.0.0.1:1";
    let output = Command::new(env!("CARGO_BIN_EXE_esker"))
        .args(["state", "get", "a", "x", "--server", nobody])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("error [unreachable]: "), "{error}");
}
