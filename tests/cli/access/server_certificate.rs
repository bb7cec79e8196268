//! The certificates of servers: which authorities are trusted, and for which server.

use std::fs;

use super::server::{Refusing, tls};
use super::{COMMANDS, TOKEN, ask, assert_sent, file, path};
use crate::support::{esker, run, stderr};

#[test]
fn a_certificate_is_accepted_only_of_an_authority_that_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let (acceptor, authority) = tls();
    let (_, other) = tls();
    let authority = file(dir.path(), "authority.pem", authority);
    let other = file(dir.path(), "other.pem", other);
    let variables = [("ESKER_TOKEN", TOKEN)];
    let server = Refusing::start_with(401, "authn", "no valid token", Some(acceptor));
    assert_sent(
        &server,
        "authn",
        &["--ca-file", path(&authority)],
        &variables,
    );
    let by_variable = [("ESKER_TOKEN", TOKEN), ("ESKER_CA_FILE", path(&authority))];
    assert_sent(&server, "authn", &[], &by_variable);
    for command in COMMANDS {
        let output = ask(
            &server.url,
            command,
            &["--ca-file", path(&other)],
            &variables,
        );
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{command:?}: {said}");
        assert!(said.contains("error [tls]: "), "{command:?}: {said}");
        assert!(said.contains("--ca-file"), "{command:?}: {said}");
    }
    assert!(server.take("authorization").is_empty());
    // The certificate is for the address, not for the name.
    let named = server.url.replace("127.0.0.1", "localhost");
    for command in COMMANDS {
        let output = ask(
            &named,
            command,
            &["--ca-file", path(&authority)],
            &variables,
        );
        let said = stderr(&output);
        assert!(said.contains("error [tls]: "), "{command:?}: {said}");
    }
    assert!(server.take("authorization").is_empty());
}

#[test]
fn follow_sends_nothing_to_a_server_that_an_authority_of_the_system_vouches_for_and_not_the_named_one()
 {
    let dir = tempfile::tempdir().unwrap();
    let (named, authority) = tls();
    let (others, of_system) = tls();
    let authority = file(dir.path(), "authority.pem", authority);
    let system = dir.path().join("system");
    fs::create_dir(&system).unwrap();
    // The name that the store of a system has for a certificate.
    file(&system, "0123abcd.0", of_system);
    // Another server takes the address after the first handshake, as it may while a client follows.
    let server = Refusing::start_in_turn(401, "authn", "no valid token", vec![named, others]);
    let output = ask(
        &server.url,
        &["follow", "my-basin/orders", "--by", "/id", "--once"],
        &["--ca-file", path(&authority)],
        &[("ESKER_TOKEN", TOKEN), ("SSL_CERT_DIR", path(&system))],
    );
    let said = stderr(&output);
    assert_eq!(server.take("authorization"), [], "{said}");
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("its certificate is not accepted"), "{said}");
}

#[test]
fn an_authority_is_named_for_one_server_only() {
    let dir = tempfile::tempdir().unwrap();
    let (_, authority) = tls();
    let authority = file(dir.path(), "authority.pem", authority);
    let endpoints = ["S2_ACCOUNT_ENDPOINT", "S2_BASIN_ENDPOINT"];
    let of_variables = endpoints.map(|name| (name, "https://127.0.0.1:1"));
    for (server, variables) in [(Some("https://a.s2.dev"), &[][..]), (None, &of_variables)] {
        let mut process = esker();
        process
            .args(["follow", "my-basin/orders", "--by", "/id", "--once"])
            .args(["--ca-file", path(&authority)])
            .env_remove("ESKER_SERVER")
            .envs(variables.iter().copied());
        if let Some(server) = server {
            process.args(["--server", server]);
        }
        let output = run(process, b"");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("error [certificates]: --ca-file is for"),
            "{said}"
        );
    }
}

#[test]
fn a_file_of_certificates_that_cannot_be_used_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let key = file(
        dir.path(),
        "key.pem",
        rcgen::KeyPair::generate().unwrap().serialize_pem(),
    );
    let server = Refusing::start(401, "authn", "no valid token");
    let url = server.url.replace("http:", "https:");
    for (file, reason) in [
        (key, "no certificate"),
        (dir.path().join("missing"), "No such file"),
    ] {
        let output = ask(&url, &["status"], &["--ca-file", path(&file)], &[]);
        assert_eq!(output.status.code(), Some(2));
        let said = stderr(&output);
        assert!(said.contains("error [certificates]: "), "{said}");
        assert!(said.contains(reason), "{said}");
    }
    // A server without TLS is no server with a bad certificate.
    let (_, authority) = tls();
    let authority = file(dir.path(), "authority.pem", authority);
    let output = ask(&url, &["status"], &["--ca-file", path(&authority)], &[]);
    assert!(
        stderr(&output).contains("does not speak TLS"),
        "{}",
        stderr(&output)
    );
}
