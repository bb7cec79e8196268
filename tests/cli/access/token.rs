//! Access tokens: where they come from, and to whom they are sent.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::server::Refusing;
use super::{COMMANDS, TOKEN, ask, assert_sent, file, path};
use crate::support::{esker, run, stderr};

#[test]
fn every_command_sends_the_token_and_translates_a_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let token = file(dir.path(), "token", format!("{TOKEN}\n"));
    let token_file = ["--token-file", path(&token)];
    let server = Refusing::start(401, "authn", "no valid token");
    assert_sent(&server, "authn", &token_file, &[("ESKER_TOKEN", "another")]);
    let said = stderr(&ask(&server.url, &["status"], &token_file, &[]));
    assert!(said.contains("ESKER_TOKEN or --token-file"), "{said}");
    let server = Refusing::start(
        403,
        "permission_denied",
        "the access token does not permit this",
    );
    assert_sent(&server, "permission_denied", &token_file, &[]);
    let server = Refusing::start(429, "rate_limited", "too many attempts");
    assert_sent(&server, "rate_limited", &token_file, &[]);
}

#[test]
fn a_token_comes_from_the_first_variable_that_is_set() {
    let server = Refusing::start(401, "authn", "no valid token");
    let ours = [("ESKER_TOKEN", TOKEN), ("S2_ACCESS_TOKEN", "another")];
    assert_sent(&server, "authn", &[], &ours);
    let theirs = [("ESKER_TOKEN", ""), ("S2_ACCESS_TOKEN", TOKEN)];
    assert_sent(&server, "authn", &[], &theirs);
}

#[test]
fn a_token_file_that_cannot_be_used_is_an_error_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let empty = file(dir.path(), "empty", " \n");
    let missing = dir.path().join("missing");
    let server = Refusing::start(401, "authn", "no valid token");
    for command in COMMANDS {
        for (file, reason) in [(&empty, "empty"), (&missing, "No such file")] {
            let output = ask(&server.url, command, &["--token-file", path(file)], &[]);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
            assert!(said.contains("error [token]: "), "{command:?}: {said}");
            assert!(said.contains(reason), "{command:?}: {said}");
        }
    }
    assert!(server.take("authorization").is_empty());
    for command in [
        &["version"][..],
        &["config", "show"],
        &["completion", "bash"],
    ] {
        let mut process = esker();
        process.args(command).args(["--token-file", path(&empty)]);
        let output = run(process, b"");
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(stderr(&output).contains("asks no server"), "{command:?}");
    }
}

#[test]
fn a_token_file_that_others_can_read_is_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let token = file(dir.path(), "token", TOKEN);
    let server = Refusing::start(401, "authn", "no valid token");
    let said = || {
        stderr(&ask(
            &server.url,
            &["status"],
            &["--token-file", path(&token)],
            &[],
        ))
    };
    assert!(!said().contains("warning"), "{}", said());
    for mode in [0o640, 0o604, 0o620] {
        fs::set_permissions(&token, fs::Permissions::from_mode(mode)).unwrap();
        assert!(said().contains("warning: others"), "{mode:o}: {}", said());
    }
}

#[test]
fn a_token_of_an_esker_is_not_sent_to_hosted_s2() {
    let mut process = esker();
    process
        .args(["follow", "my-basin/orders", "--by", "/id", "--once"])
        .args(["--server", "https://a.s2.dev"])
        .env("S2_ACCESS_TOKEN", TOKEN);
    let output = run(process, b"");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("error [token]: "), "{said}");
    assert!(!said.contains(TOKEN), "{said}");
    // Without a server's name, the token is for the one that all commands ask.
    let mut process = esker();
    process
        .args(["follow", "my-basin/orders", "--by", "/id", "--once"])
        .env_remove("ESKER_SERVER")
        .env_remove("ESKER_TOKEN")
        .env("S2_ACCESS_TOKEN", TOKEN)
        // Nothing is looked up, should it be asked for another name.
        .env("SSL_CERT_FILE", "/dev/null");
    let said = stderr(&run(process, b""));
    assert!(
        said.contains("S2_ACCESS_TOKEN is for http://127.0.0.1:7070"),
        "{said}"
    );
}
