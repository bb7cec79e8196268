//! Access tokens, certificates and keys of encryption, for every way to a server: the admin API, the S2 API and
//! gRPC. The server is one that records what it gets and refuses every request.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use testkit_server::tls::{Authority, TlsFiles};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{Server, esker, run, stderr, stdout};

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

/// A server that answers every request with an error.
struct Refusing {
    url: String,
    headers: Arc<Mutex<Vec<HeaderMap>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Refusing {
    fn start(status: u16, code: &'static str, message: &'static str) -> Refusing {
        Refusing::start_with(status, code, message, None)
    }

    fn start_with(
        status: u16,
        code: &'static str,
        message: &'static str,
        tls: Option<TlsAcceptor>,
    ) -> Refusing {
        Refusing::start_in_turn(status, code, message, tls.into_iter().collect())
    }

    /// The same with an acceptor for each connection in turn; the last one is for all that follow.
    fn start_in_turn(
        status: u16,
        code: &'static str,
        message: &'static str,
        mut tls: Vec<TlsAcceptor>,
    ) -> Refusing {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let scheme = if !tls.is_empty() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let headers: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
        let seen = headers.clone();
        runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let acceptor = tls.first().cloned();
                if tls.len() > 1 {
                    tls.remove(0);
                }
                let (seen, tls) = (seen.clone(), acceptor);
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        seen.lock().unwrap().push(request.headers().clone());
                        std::future::ready(Ok::<_, std::convert::Infallible>(answer(
                            &request, status, code, message,
                        )))
                    });
                    let builder = Builder::new(TokioExecutor::new());
                    // A client that refuses the certificate ends the connection.
                    let _ = match tls {
                        None => {
                            builder
                                .serve_connection(TokioIo::new(connection), service)
                                .await
                        }
                        Some(tls) => match tls.accept(connection).await {
                            Ok(connection) => {
                                builder
                                    .serve_connection(TokioIo::new(connection), service)
                                    .await
                            }
                            Err(_) => Ok(()),
                        },
                    };
                });
            }
        });
        Refusing {
            url,
            headers,
            _runtime: runtime,
        }
    }

    /// The values of a header in the requests since the last call.
    fn take(&self, name: &str) -> Vec<Option<String>> {
        let headers = std::mem::take(&mut *self.headers.lock().unwrap());
        let value = |headers: &HeaderMap| {
            let value = headers.get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        headers.iter().map(value).collect()
    }
}

fn answer(
    request: &Request<Incoming>,
    status: u16,
    code: &str,
    message: &str,
) -> Response<Full<Bytes>> {
    let content = request.headers().get("content-type");
    if content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc")) {
        let grpc = match status {
            401 => "16",
            403 => "7",
            _ => "8",
        };
        return Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", grpc)
            .header("grpc-message", message.replace(' ', "%20"))
            .header("esker-code", code)
            .body(Full::default())
            .unwrap();
    }
    let mut body = serde_json::json!({ "code": code, "message": message });
    let mut status = StatusCode::from_u16(status).unwrap();
    // Where a stream ends is no secret.
    if code == "decryption_failed" && request.uri().path().ends_with("/records/tail") {
        body = serde_json::json!({ "tail": { "seq_num": 5, "timestamp": 0 } });
        status = StatusCode::OK;
    }
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::new(body.to_string().into()))
        .unwrap()
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

/// The acceptor of a server with a certificate for 127.0.0.1, and the certificate of its authority.
fn tls() -> (TlsAcceptor, String) {
    tls_for(None, rustls::ALL_VERSIONS)
}

/// The same with some versions of TLS. With the certificate of an authority, clients have to present a certificate
/// that it issued.
fn tls_for(
    clients: Option<&str>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> (TlsAcceptor, String) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned()];
    let params = rcgen::CertificateParams::new(names).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap();
    let config = match clients {
        None => config.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            let authority = CertificateDer::from_pem_slice(authority.as_bytes());
            roots.add(authority.unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            config.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut config = config
        .with_single_cert(
            vec![certificate.der().clone()],
            key.serialize_der().try_into().unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (TlsAcceptor::from(Arc::new(config)), authority)
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

#[test]
fn commands_on_records_send_the_encryption_key() {
    let dir = tempfile::tempdir().unwrap();
    let text = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let key = file(dir.path(), "key", format!("{text}\n"));
    let server = Refusing::start(400, "decryption_failed", "record decryption failed");
    let commands: [&[&str]; 5] = [
        &["stream", "append", "my-basin/orders"],
        &["stream", "read", "my-basin/orders"],
        &["stream", "tail", "my-basin/orders"],
        &["stream", "trim", "my-basin/orders", "1"],
        &["stream", "fence", "my-basin/orders", "token"],
    ];
    for command in commands {
        let of_file = ["--encryption-key-file", path(&key)];
        for (options, variables) in [
            (&of_file[..], &[][..]),
            (&[], &[("ESKER_ENCRYPTION_KEY", text)]),
        ] {
            let output = ask(&server.url, command, options, variables);
            let said = stderr(&output);
            assert!(
                said.contains("error [decryption_failed]"),
                "{command:?}: {said}"
            );
            assert!(
                said.contains("--encryption-key-file"),
                "{command:?}: {said}"
            );
            assert!(!said.contains(text), "{command:?}: {said}");
            let sent = server.take("s2-encryption-key");
            let sent: Vec<_> = sent.iter().flatten().collect();
            assert!(!sent.is_empty(), "{command:?}");
            assert!(sent.iter().all(|sent| *sent == text), "{command:?}");
        }
    }
    let short = file(dir.path(), "short", "MDEyMzQ1Njc4OQ==");
    let options = ["--encryption-key-file", path(&short)];
    let output = ask(&server.url, commands[0], &options, &[]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("error [encryption_key]: "), "{said}");
    assert!(!said.contains("MDEy"), "{said}");
}
