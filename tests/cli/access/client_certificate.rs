//! Client certificates: commands present them to servers that demand one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use testkit_server::tls::{Authority, TlsFiles};

use super::server::{Refusing, tls_for};
use super::{COMMANDS, TOKEN, ask, assert_sent, file, path};
use crate::support::{Server, esker, run, stderr, stdout};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The files of a client certificate that an authority issued.
fn client_files(dir: &Path, name: &str, authority: &Authority) -> (PathBuf, PathBuf) {
    let issued = authority.issue(YEAR);
    (
        file(dir, &format!("{name}.pem"), issued.certificate),
        file(dir, &format!("{name}.key"), issued.key),
    )
}

#[test]
fn every_command_presents_the_client_certificate_and_says_if_the_server_wants_another() {
    let dir = tempfile::tempdir().unwrap();
    let (clients, others) = (Authority::new(), Authority::new());
    let (certificate, key) = client_files(dir.path(), "client", &clients);
    let (other, other_key) = client_files(dir.path(), "other", &others);
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        let (acceptor, authority) = tls_for(Some(clients.certificate()), versions);
        let authority = file(dir.path(), "authority.pem", authority);
        let server = Refusing::start_with(401, "authn", "no valid token", Some(acceptor));
        let by_options = [
            "--ca-file",
            path(&authority),
            "--client-cert",
            path(&certificate),
            "--client-key",
            path(&key),
        ];
        let token = [("ESKER_TOKEN", TOKEN)];
        assert_sent(&server, "authn", &by_options, &token);
        let by_variables = [
            ("ESKER_TOKEN", TOKEN),
            ("ESKER_CA_FILE", path(&authority)),
            ("ESKER_CLIENT_CERT", path(&certificate)),
            ("ESKER_CLIENT_KEY", path(&key)),
        ];
        assert_sent(&server, "authn", &[], &by_variables);
        let without = &by_options[..2];
        let with_other = [
            without,
            &[
                "--client-cert",
                path(&other),
                "--client-key",
                path(&other_key),
            ],
        ]
        .concat();
        for (options, wanted) in [
            (without, "it demands a client certificate"),
            (&with_other, "it does not accept the client certificate"),
        ] {
            for command in COMMANDS {
                let output = ask(&server.url, command, options, &token);
                let said = stderr(&output);
                assert_eq!(output.status.code(), Some(3), "{command:?}: {said}");
                assert!(said.contains("error [tls]: "), "{command:?}: {said}");
                assert!(said.contains(wanted), "{command:?}: {said}");
                assert!(said.contains("--client-cert"), "{command:?}: {said}");
            }
        }
        assert!(server.take("authorization").is_empty());
    }
}

#[test]
fn commands_work_on_a_server_that_demands_client_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let (files, clients) = (TlsFiles::new(), Authority::new());
    let (certificate, key) = client_files(dir.path(), "client", &clients);
    let authority = file(dir.path(), "clients.pem", clients.certificate());
    let settings = [
        ("tls.certificate", files.certificate()),
        ("tls.private-key", files.key()),
        ("tls.client-ca", authority),
    ]
    .map(|(name, path)| format!("{name}={}", path.display()));
    let mut arguments = vec!["--partitions", "2"];
    for setting in &settings {
        arguments.extend(["--set", setting]);
    }
    let server = Server::start_with(&dir.path().join("data"), "127.0.0.1:0", &arguments);
    let trusted = files.ca();
    let options = [
        "--ca-file",
        path(&trusted),
        "--client-cert",
        path(&certificate),
        "--client-key",
        path(&key),
    ];
    let records: String = (0..2_000).map(|n| format!("{{\"id\":{n}}}\n")).collect();
    let ok = |command: &[&str], input: &str| {
        let mut process = esker();
        process.args(command).args(options);
        process.args(["--server", &server.url]);
        let output = run(process, input.as_bytes());
        let said = stderr(&output);
        assert!(output.status.success(), "{command:?}: {said}");
        stdout(&output)
    };
    ok(&["stream", "create", "my-basin/orders"], "");
    ok(&["stream", "append", "my-basin/orders"], &records);
    assert_eq!(ok(&["stream", "read", "my-basin/orders"], ""), records);
    let folded = ok(
        &[
            "follow",
            "my-basin/orders",
            "--by",
            "/id",
            "--once",
            "--json",
        ],
        "",
    );
    assert!(folded.contains("1999"), "{folded}");
    ok(&["state", "put", "agent-1", "memory", "{}"], "");
    ok(&["status"], "");
}

#[test]
fn a_client_certificate_that_cannot_be_used_is_an_error_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let clients = Authority::new();
    let (certificate, key) = client_files(dir.path(), "client", &clients);
    let (_, other_key) = client_files(dir.path(), "other", &clients);
    let missing = dir.path().join("missing");
    let url = "https://127.0.0.1:1";
    let cert = |path_of| ["--client-cert", path(path_of)];
    let private = |path_of| ["--client-key", path(path_of)];
    for (options, reason) in [
        (
            cert(&certificate).to_vec(),
            "--client-key, or ESKER_CLIENT_KEY, is missing",
        ),
        (
            private(&key).to_vec(),
            "--client-cert, or ESKER_CLIENT_CERT, is missing",
        ),
        ([cert(&missing), private(&key)].concat(), "No such file"),
        (
            [cert(&certificate), private(&missing)].concat(),
            "No such file",
        ),
        (
            [cert(&key), private(&key)].concat(),
            "no certificate in PEM form",
        ),
        (
            [cert(&certificate), private(&certificate)].concat(),
            "no private key in PEM form",
        ),
        (
            [cert(&certificate), private(&other_key)].concat(),
            "does not go with the certificate",
        ),
    ] {
        let output = ask(url, &["status"], &options, &[]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{options:?}: {said}");
        assert!(
            said.contains("error [certificates]: "),
            "{options:?}: {said}"
        );
        assert!(said.contains(reason), "{options:?}: {said}");
        assert!(!said.contains("PRIVATE KEY"), "{said}");
    }
}
