//! `esker token` against a real server with a root token: issued, used in every way, confined to their scope,
//! listed, confirmed, revoked.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Running, Server, esker, run, stderr, stdout};

/// A revocation ends what is under way within 2 s; the rest is what a busy machine takes.
const REVOCATION: Duration = Duration::from_secs(7);

/// A server with a root token, and a stream with one record.
struct World {
    server: Server,
    root: PathBuf,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root.token");
        let settings = [
            "--partitions",
            "1",
            "--create-root-token",
            "--root-token-file",
        ];
        let settings = [&settings[..], &[path(&root)]].concat();
        let server = Server::start_with(&dir.path().join("data"), "127.0.0.1:0", &settings);
        let world = World { server, root, dir };
        world.as_root(&["stream", "create", "my-basin/orders"]);
        world.as_root(&["stream", "create", "my-basin/bills"]);
        let append = world.command(&["stream", "append", "my-basin/orders"], &world.root);
        assert!(run(append, b"hello\n").status.success());
        world
    }

    /// A command without a token.
    fn without_token(&self, arguments: &[&str]) -> Command {
        let mut command = esker();
        command
            .args(arguments)
            .env("ESKER_SERVER", &self.server.url);
        for name in ["ESKER_TOKEN", "S2_ACCESS_TOKEN"] {
            command.env_remove(name);
        }
        command
    }

    /// A command with the token in this file.
    fn command(&self, arguments: &[&str], token_file: &Path) -> Command {
        let mut command = self.without_token(arguments);
        command.arg("--token-file").arg(token_file);
        command
    }

    /// Runs a command as the holder of the root token: it has to succeed, and its output is returned.
    fn as_root(&self, arguments: &[&str]) -> String {
        succeeds(self.command(arguments, &self.root))
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn succeeds(command: Command) -> String {
    let output = run(command, b"");
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

/// Fails with this code, and with one message of it.
fn assert_refused(output: &Output, code: &str) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("error [{code}]: ")), "{said}");
    assert!(said.matches("valid access token").count() < 2, "{said}");
    assert_eq!(stdout(output), "");
}

const READ: [&str; 3] = ["stream", "read", "my-basin/orders"];

#[test]
fn a_token_is_issued_used_in_every_way_confined_listed_and_refused_when_it_is_revoked() {
    let world = World::new();
    let file = world.dir.path().join("reader.token");
    let issue = [
        "token",
        "issue",
        "reader",
        "--basins",
        "=my-basin",
        "--streams",
        "ord",
    ];
    let permissions = ["--op-group-perms", "stream=r", "--output-file", path(&file)];
    world.as_root(&[&issue[..], &permissions].concat());
    let token = std::fs::read_to_string(&file).unwrap().trim().to_owned();

    assert_refused(&run(world.without_token(&READ), b""), "authn");
    assert!(succeeds(world.command(&READ, &file)).contains("hello"));
    for variable in ["ESKER_TOKEN", "S2_ACCESS_TOKEN"] {
        let mut read = world.without_token(&READ);
        read.env(variable, &token);
        assert!(succeeds(read).contains("hello"), "{variable}");
    }
    // Another stream, another operation, the account, and what is the root token's.
    let outside: [&[&str]; 5] = [
        &["stream", "read", "my-basin/bills"],
        &["stream", "append", "my-basin/orders"],
        &["token", "list"],
        &["token", "revoke", "reader"],
        &["token", "confirm"],
    ];
    for command in outside {
        let refused = run(world.command(command, &file), b"one\n");
        assert_refused(&refused, "permission_denied");
    }

    assert!(world.as_root(&["token", "list"]).contains("reader"));
    let listed = world.as_root(&["token", "list", "--json", "--prefix", "read"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["id"], "reader");
    assert!(!listed.to_string().contains(&token));
    let confirmed = world.as_root(&["token", "confirm"]);
    assert_eq!(confirmed, "no access token was suspended\n");

    let follow = [&READ[..], &["--follow"]].concat();
    let mut follow = Running::start(world.command(&follow, &file));
    assert!(follow.line().contains("hello"));
    assert_eq!(
        world.as_root(&["token", "revoke", "reader"]),
        "revoked reader\n"
    );
    let revoked = Instant::now();
    assert_refused(&run(world.command(&READ, &file), b""), "authn");
    let (code, rest, said) = follow.finish();
    let took = revoked.elapsed();
    assert_eq!((code, rest.as_str()), (Some(1), ""), "{said}");
    assert!(said.contains("error [authn]: "), "{said}");
    assert!(took < REVOCATION, "the session ended after {took:?}");
    assert!(!world.as_root(&["token", "list"]).contains("reader"));
    let gone = run(
        world.command(&["token", "revoke", "reader"], &world.root),
        b"",
    );
    assert_refused(&gone, "access_token_not_found");
}
