//! Access tokens, certificates and keys of encryption, for every way to a server: the admin API, the S2 API and
//! gRPC. The server is one that records what it gets and refuses every request.

mod client_certificate;
mod encryption_key;
mod server;
mod server_certificate;
mod token;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::{esker, run, stderr, stdout};
use server::Refusing;

const TOKEN: &str = "esk_abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";

/// Every command that asks a server, but for those of [`ELSEWHERE`].
const COMMANDS: &[&[&str]] = &[
    &["status"],
    &["cluster", "status"],
    &["cluster", "remove", "n2", "--yes"],
    &["cluster", "drain", "n2"],
    &["cluster", "activate", "n2"],
    &["cluster", "transfer-leader", "1", "n2"],
    &["cluster", "check"],
    &["cluster", "trust", "1", "n2", "--yes"],
    &["snapshot", "create"],
    &["snapshot", "list"],
    &["snapshot", "show"],
    &["snapshot", "diff", "1", "2"],
    &["snapshot", "verify"],
    &["snapshot", "why", "1/latest.json"],
    &["snapshot", "prune", "--dry-run"],
    &["stream", "ls"],
    &["stream", "info", "my-basin/orders"],
    &["stream", "create", "my-basin/orders"],
    &[
        "stream",
        "reconfigure",
        "my-basin/orders",
        "--retention",
        "1d",
    ],
    &["stream", "delete", "my-basin/orders", "--yes"],
    &["stream", "append", "my-basin/orders"],
    &["stream", "read", "my-basin/orders"],
    &["stream", "read", "my-basin/orders", "--follow"],
    &["stream", "tail", "my-basin/orders"],
    &["stream", "check-tail", "my-basin/orders"],
    &["stream", "trim", "my-basin/orders", "1"],
    &["stream", "fence", "my-basin/orders", "owner"],
    &["stream", "adopt", "my-basin", "1"],
    &["follow", "my-basin/orders", "--by", "/id", "--once"],
    &["state", "get", "agent-1", "memory"],
    &["state", "put", "agent-1", "memory", "{}"],
    &["state", "delete", "agent-1", "memory"],
    &["state", "keys", "agent-1"],
    &["state", "agents"],
    &["state", "namespaces"],
    &["state", "history", "agent-1", "memory"],
    &["state", "replay", "agent-1"],
    &["state", "snapshot"],
    &["state", "export"],
    &["state", "import", "-"],
    &["state", "verify"],
    &["token", "issue", "worker", "--ops", "list-basins"],
    &["token", "list"],
    &["token", "revoke", "worker"],
    &["token", "confirm"],
];

/// Commands with `--server` in their help that are not among [`COMMANDS`], and why.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "import s2",
        "asks two servers, each with a token of its own: `imports.rs`",
    ),
    ("snapshot put", "asks a repository alone"),
    ("snapshot restore", "asks a repository alone"),
    ("cluster recover", "works on a data directory"),
    ("cluster secret", "writes a file"),
    ("cluster try", "starts servers of its own"),
];

/// All commands without subcommands below one, with their help.
fn leaves(of: &[&str]) -> Vec<(String, String)> {
    let mut process = esker();
    process.args(of).arg("-h");
    let help = stdout(&run(process, b""));
    let below = help.lines().skip_while(|line| *line != "Commands:");
    let below: Vec<_> = below
        .skip(1)
        .take_while(|line| !line.is_empty())
        // What is indented further continues the line before it.
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .collect();
    match below.is_empty() {
        true => vec![(of.join(" "), help.clone())],
        false => below
            .into_iter()
            .flat_map(|name| leaves(&[of, &[name]].concat()))
            .collect(),
    }
}

#[test]
fn every_command_that_asks_a_server_is_tried() {
    let all = leaves(&[]);
    assert!(all.len() > COMMANDS.len(), "{all:?}");
    for (name, why) in ELSEWHERE {
        let is_there = all.iter().any(|(leaf, _)| leaf == name);
        assert!(is_there, "there is no command {name:?}, which {why}");
    }
    let asks_a_server = |help: &str| help.contains("--server <URL>");
    let is_tried = |leaf: &str| {
        let words: Vec<_> = leaf.split(' ').collect();
        COMMANDS.iter().any(|command| command.starts_with(&words))
            || ELSEWHERE.iter().any(|(name, _)| *name == leaf)
    };
    let missing = all
        .iter()
        .filter(|(leaf, help)| asks_a_server(help) && !is_tried(leaf));
    let missing: Vec<_> = missing.map(|(leaf, _)| leaf).collect();
    assert!(missing.is_empty(), "add these to COMMANDS: {missing:?}");
}

/// Runs a command against a server, with variables.
fn ask(url: &str, command: &[&str], options: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut process = esker();
    process.args(command).args(["--server", url]).args(options);
    for name in [
        "ESKER_TOKEN",
        "S2_ACCESS_TOKEN",
        "ESKER_CA_FILE",
        "ESKER_CLIENT_CERT",
        "ESKER_CLIENT_KEY",
        "ESKER_ENCRYPTION_KEY",
    ] {
        process.env_remove(name);
    }
    process.envs(variables.iter().copied());
    run(process, b"one\n")
}

/// A file in the directory, which only its owner can read.
fn file(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every command sends this token, fails with this code, and does not print the token.
fn assert_sent(server: &Refusing, code: &str, options: &[&str], variables: &[(&str, &str)]) {
    for command in COMMANDS {
        let output = ask(&server.url, command, options, variables);
        let (out, said) = (stdout(&output), stderr(&output));
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(
            said.contains(&format!("error [{code}]: ")),
            "{command:?}: {said}"
        );
        assert!(
            !format!("{out}{said}").contains(TOKEN),
            "{command:?}: {said}"
        );
        let sent = server.take("authorization");
        assert!(!sent.is_empty(), "{command:?} sent nothing");
        for sent in sent {
            assert_eq!(sent, Some(format!("Bearer {TOKEN}")), "{command:?}");
        }
    }
}
