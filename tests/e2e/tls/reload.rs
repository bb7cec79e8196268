//! New files while the server runs, and a certificate that ends.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{YEAR, metric};
use crate::support::tls::{self, TlsFiles};
use crate::support::{Server, Setup, eventually, sdk, soon};

/// The certificate that a new connection gets.
async fn served(server: &Server, files: &TlsFiles) -> Vec<u8> {
    let config = tls::client(&files.ca(), None);
    let connection = tls::connect(server.address(), &config, &[]).await.unwrap();
    let (_, session) = connection.get_ref();
    session.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn new_files_are_used_by_new_connections_and_open_ones_go_on() {
    let files = TlsFiles::new();
    let server = Setup::with_tls(&files).start_fresh().await;
    let stream = sdk::stream(&sdk::basin(&server.sdk(), "test-basin").await, "orders").await;
    sdk::append(&stream, ["before"]).await;
    let config = tls::client(&files.ca(), None);
    let mut open = tls::connect(server.address(), &config, &[]).await.unwrap();
    let before = served(&server, &files).await;

    // Half of it: the key that was there does not fit.
    let next = files.authority.issue(YEAR);
    tls::replace(&files.certificate(), &next.certificate);
    let problem = server.problem("tls_not_reloaded").await;
    assert!(
        problem.contains("it is not the key of the certificate"),
        "{problem}"
    );
    assert_eq!(served(&server, &files).await, before);
    assert_eq!(
        metric(&server, "esker_tls_reloads_total{result=\"failed\"}").await,
        1
    );
    server.logged("The TLS files cannot be used").await;
    let warned = |line: &&String| line.contains("The TLS files cannot be used");
    assert_eq!(server.log().iter().filter(warned).count(), 1);

    tls::replace(&files.key(), &next.key);
    eventually("the new certificate is served", async || {
        (served(&server, &files).await != before).then_some(())
    })
    .await;
    server.logged("The TLS certificate was read again").await;
    // It is counted after it is served.
    eventually("the reload is counted", async || {
        (metric(&server, "esker_tls_reloads_total{result=\"ok\"}").await == 1).then_some(())
    })
    .await;

    // The connections of before.
    open.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 12];
    soon("an answer", open.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    sdk::append(&stream, ["after"]).await;
    assert_eq!(
        sdk::bodies(&sdk::read_all(&stream).await),
        ["before", "after"]
    );
}

#[tokio::test]
async fn a_certificate_that_ends_soon_is_a_problem_and_one_that_has_ended_is_served_on() {
    let files = TlsFiles::new();
    let day = Duration::from_secs(24 * 3600);
    files.renew(13 * day);
    let server = Setup::with_tls(&files).start_fresh().await;
    let problem = server.problem("tls_certificate_expires_soon").await;
    assert!(problem.contains("\"advice\":true"), "{problem}");
    server.logged("the TLS certificate expires on").await;
    let ends = metric(&server, "esker_tls_certificate_expiry_timestamp_seconds").await;
    let now = crate::support::now_ms() / 1000;
    assert!(
        (12 * 24 * 3600..=13 * 24 * 3600).contains(&(ends - now)),
        "{ends} {now}"
    );
    files.renew(YEAR);
    server.logged("The TLS certificate was read again").await;
    eventually("the problem is gone", async || {
        let status = server.http1().get("/esker/v1/status").send().await.text();
        (!status.contains("tls_certificate_expires_soon")).then_some(())
    })
    .await;

    // It ends while it is served. A machine on which a start takes longer gets another one.
    let files = TlsFiles::new();
    let mut setup = Setup::with_tls(&files);
    let mut validity = Duration::from_secs(10);
    let (server, kept) = loop {
        files.renew(validity);
        let server = setup.clone().start_fresh().await;
        let kept = server.http1();
        match kept.get("/health").try_send().await {
            Ok(answer) => {
                answer.expect(200);
                break (server, kept);
            }
            Err(late) => assert!(validity < Duration::from_secs(30), "{late}"),
        }
        validity *= 3;
    };
    server.logged("the TLS certificate expired on").await;
    // A connection that was made before goes on.
    eventually("the end is a problem", async || {
        let status = kept.get("/esker/v1/status").send().await.text();
        status.contains("tls_certificate_expired").then_some(())
    })
    .await;
    kept.get("/health").send().await.expect(200);
    // Clients count whole seconds.
    eventually("new connections are refused", async || {
        let refused = server.http1().get("/health").try_send().await;
        format!("{:?}", refused.err()?)
            .contains("xpired")
            .then_some(())
    })
    .await;
    // A start serves it, too.
    setup = setup.set("cluster-name=other");
    let again = setup.start_fresh().await;
    again.logged("the TLS certificate expired on").await;
}
