//! TLS: every client over it, new files while the server runs, and clients that do not get in.

mod floods;
mod handshakes;
mod reload;

use std::time::Duration;

use s2_sdk::types::{ReadFrom, ReadInput, ReadSessionConfig, ReadStart};
use tokio_stream::StreamExt as _;

use crate::support::http::TRANSPORTS;
use crate::support::tls::{self, TlsFiles};
use crate::support::{Http, Server, Setup, Transport, eventually, sdk, soon};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The number of a metric whose line begins so.
async fn metric(server: &Server, start: &str) -> u64 {
    let text = server.http1().get("/metrics").send().await.text();
    let line = text.lines().find(|line| line.starts_with(start));
    let line = line.unwrap_or_else(|| panic!("no {start} in {text}"));
    line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
}

/// Failed handshakes of a reason.
async fn failed(server: &Server, reason: &str) -> u64 {
    let start = format!("esker_tls_handshakes_failed_total{{reason=\"{reason}\"}}");
    metric(server, &start).await
}

#[tokio::test]
async fn every_api_is_served_over_both_versions_of_http_and_by_the_official_client() {
    let files = TlsFiles::new();
    let server = Setup::with_tls(&files).start_fresh().await;
    assert!(server.url().starts_with("https://"), "{}", server.url());
    for transport in TRANSPORTS {
        let http = server.http(transport);
        http.get("/health").send().await.expect(200);
        http.get("/v1/basins").send().await.expect(200);
        http.get("/esker/v1/status").send().await.expect(200);
    }
    let stream = sdk::stream(&sdk::basin(&server.sdk(), "test-basin").await, "orders").await;
    let session = stream
        .read_session(ReadInput::new(), ReadSessionConfig::new())
        .await
        .unwrap();
    let mut session = std::pin::pin!(session);
    let bodies: Vec<String> = (0..50)
        .map(|number| format!("{number} {}", "x".repeat(10_000)))
        .collect();
    sdk::append(&stream, &bodies).await;
    let mut read = Vec::new();
    while read.len() < bodies.len() {
        let batch = soon("records", session.next()).await.unwrap().unwrap();
        read.extend(sdk::bodies(&batch.records));
    }
    assert_eq!(read, bodies);
    let from_start = ReadStart::new().with_from(ReadFrom::SeqNum(0));
    let all = stream.read(ReadInput::new().with_start(from_start)).await;
    assert_eq!(sdk::bodies(&all.unwrap().records), bodies);
    // Without ALPN, HTTP/1.1 is spoken.
    let config = tls::client(&files.ca(), None);
    let connection = tls::connect(server.address(), &config, &[]).await.unwrap();
    let answer = get_health(connection).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(metric(&server, "esker_tls_handshakes_total").await >= 5);
}

/// The answer to a request of `/health` over HTTP/1.1.
async fn get_health(
    mut connection: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    connection.write_all(request).await.unwrap();
    connection.flush().await.unwrap();
    let mut answer = Vec::new();
    // The end is announced, or it could have been cut off.
    soon("an answer", connection.read_to_end(&mut answer))
        .await
        .unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_server_with_a_certificate_of_its_own_is_trusted_by_way_of_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let certificate = data.join("tls/certificate.pem");
    let setup = Setup::default()
        .set("tls.self-signed=true")
        .trusting(&certificate);
    let mut server = setup.start(&data).await;
    server.http2().get("/health").send().await.expect(200);
    let line = server.logged("clients trust it with --ca-file").await;
    assert!(line.contains(certificate.to_str().unwrap()), "{line}");
    assert!(line.contains("SHA-256: "), "{line}");
    let before = std::fs::read(&certificate).unwrap();
    server.stop().await;
    server.restart(&setup).await;
    server.http1().get("/health").send().await.expect(200);
    assert_eq!(std::fs::read(&certificate).unwrap(), before);
}

#[tokio::test]
async fn a_client_needs_a_certificate_of_the_configured_authority() {
    let files = TlsFiles::new();
    let clients = tls::Authority::new();
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), clients.certificate()).unwrap();
    let server = Setup::with_tls(&files)
        .set(&format!("tls.client-ca={}", ca.path().display()))
        .start_fresh()
        .await;
    let http = |issued: Option<&tls::Issued>| {
        let config = std::sync::Arc::new(tls::client(&files.ca(), issued));
        Http::new(server.address(), Transport::Http2).with_tls(config)
    };
    let issued = clients.issue(YEAR);
    let known = http(Some(&issued));
    known.get("/health").send().await.expect(200);
    known.get("/v1/basins").send().await.expect(200);
    // A connection that is made again shows the certificate again.
    http(Some(&issued)).get("/health").send().await.expect(200);

    let stranger = files.authority.issue(YEAR);
    for issued in [None, Some(&stranger)] {
        assert!(http(issued).get("/health").try_send().await.is_err());
    }
    // A client gets its refusal before that is counted.
    eventually("both are counted", async || {
        let metrics = known.get("/metrics").send().await.text();
        let mut reasons = ["no_client_certificate", "bad_client_certificate"].into_iter();
        let is_counted = |reason| {
            let line = format!("esker_tls_handshakes_failed_total{{reason=\"{reason}\"}} 1\n");
            metrics.contains(&line)
        };
        reasons.all(is_counted).then_some(())
    })
    .await;
    server.logged("no_client_certificate").await;
}

#[tokio::test]
async fn a_loopback_listener_is_without_tls_only_if_that_is_configured() {
    let files = TlsFiles::new();
    let server = Setup::with_tls(&files)
        .set("state.listen=127.0.0.1:0")
        .start_fresh()
        .await;
    let line = server.logged("the state service listens on ").await;
    let address = line
        .split_whitespace()
        .find(|it| it.starts_with("127."))
        .unwrap();
    let config = std::sync::Arc::new(tls::client(&files.ca(), None));
    let encrypted = Http::new(address, Transport::Http2).with_tls(config);
    encrypted.get("/health").send().await.expect(200);
    let plain = Http::new(address, Transport::Http1);
    plain.get("/health").send().await.expect(400);

    let server = Setup::with_tls(&files)
        .set("tls.cleartext-loopback=true")
        .start_fresh()
        .await;
    assert!(server.url().starts_with("http://"), "{}", server.url());
    let plain = Http::new(server.address(), Transport::Http1);
    plain.get("/health").send().await.expect(200);
}

#[tokio::test]
async fn places_are_kept_for_monitoring_over_tls_too() {
    let files = TlsFiles::new();
    let server = Setup::with_tls(&files)
        .set("limits.connections=2")
        .start_fresh()
        .await;
    let config = tls::client(&files.ca(), None);
    let mut taken = Vec::new();
    for _ in 0..2 {
        taken.push(
            tls::connect(server.address(), &config, &["http/1.1"])
                .await
                .unwrap(),
        );
    }
    server.http1().get("/health").send().await.expect(200);
    server.http2().get("/metrics").send().await.expect(200);
    drop(taken);
    server.http1().get("/v1/basins").send().await.expect(200);
}

#[tokio::test]
async fn files_that_cannot_be_used_are_an_error_before_anything_is_made() {
    let files = TlsFiles::new();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for (path, text, said) in [
        (files.certificate(), "", "`tls.certificate` = "),
        (files.key(), "nonsense", "`tls.private-key` = "),
    ] {
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, text).unwrap();
        let (code, log) = Setup::with_tls(&files).start_refused(&data).await;
        assert_eq!(code, 1);
        assert!(
            log.contains("error [tls_files]") && log.contains(said),
            "{log}"
        );
        assert!(log.contains(path.to_str().unwrap()), "{log}");
        assert!(!data.exists());
        std::fs::write(&path, before).unwrap();
    }
}
