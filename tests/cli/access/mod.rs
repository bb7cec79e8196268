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

/// A command of each group, and of each way to a server.
const COMMANDS: &[&[&str]] = &[
    &["status"],
    &["snapshot", "list"],
    &["stream", "ls"],
    &["stream", "info", "my-basin/orders"],
    &["stream", "create", "my-basin/orders"],
    &["stream", "append", "my-basin/orders"],
    &["stream", "read", "my-basin/orders"],
    &["stream", "read", "my-basin/orders", "--follow"],
    &["stream", "check-tail", "my-basin/orders"],
    &["stream", "adopt", "my-basin", "1"],
    &["follow", "my-basin/orders", "--by", "/id", "--once"],
    &["state", "get", "agent-1", "memory"],
    &["state", "put", "agent-1", "memory", "{}"],
    &["state", "export"],
];

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
