//! Clients that make a server compute: whole handshakes in great number, and renegotiation.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join_all;
use rustls::client::Resumption;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{get_health, metric};
use crate::support::tls::{self, TlsFiles};
use crate::support::{Server, Setup, eventually, soon};

/// Clients of a flood that make handshakes at once, fewer than there are places.
const FLOODERS: usize = 12;
/// Handshakes of each.
const HANDSHAKES: usize = 40;
/// What the server may grow by in a flood, bytes: what is kept of each handshake must be nothing.
const MAX_GROWTH: u64 = 32 * 1024 * 1024;

/// Makes connections that end after their handshakes. Every other one is cut off without a word.
async fn flood(server: &Server, files: &TlsFiles) {
    let flooders = (0..FLOODERS).map(async |_| {
        let mut config = tls::client(&files.ca(), None);
        // With a ticket, the next handshake would be a short one.
        config.resumption = Resumption::disabled();
        for number in 0..HANDSHAKES {
            let connection = tls::connect(server.address(), &config, &["h2"]).await;
            let mut connection = connection.unwrap();
            if number % 2 == 0 {
                // The server may have closed it.
                let _ = connection.shutdown().await;
            }
        }
    });
    join_all(flooders).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_handshakes_in_great_number_leave_nothing_behind_and_others_are_served() {
    let files = TlsFiles::new();
    let server = Setup::with_tls(&files)
        .set("limits.connections=32")
        .start_fresh()
        .await;
    let kept = server.http2();
    kept.get("/health").send().await.expect(200);
    // What is allocated once is there after the first one.
    flood(&server, &files).await;
    let before = server.resident_bytes();

    let config = tls::client(&files.ca(), None);
    let is_over = AtomicBool::new(false);
    let polite = async {
        let mut served = 0;
        while !is_over.load(Ordering::Relaxed) {
            kept.get("/v1/basins").send().await.expect(200);
            let connection = tls::connect(server.address(), &config, &["http/1.1"]).await;
            let answer = get_health(connection.unwrap()).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            served += 1;
        }
        served
    };
    let flooding = async {
        flood(&server, &files).await;
        is_over.store(true, Ordering::Relaxed);
    };
    // The one that was under way at the end of the flood does not count.
    let (served, ()) = tokio::join!(polite, flooding);
    assert!(served > 1, "nobody else was served during the flood");
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < MAX_GROWTH, "{} MiB", grown >> 20);
    // All were handshakes, and none keeps its place.
    let flooded = (2 * FLOODERS * HANDSHAKES) as u64;
    eventually("all handshakes are counted", async || {
        let done = metric(&server, "esker_tls_handshakes_total").await;
        (done >= flooded).then_some(())
    })
    .await;
    for _ in 0..40 {
        let connection = tls::connect(server.address(), &config, &["http/1.1"]).await;
        let answer = get_health(connection.unwrap()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// A client that asks for a second handshake on its connection of TLS 1.2 makes the server compute again at no cost to
/// itself. The client is that of OpenSSL: rustls, of which the others are, cannot ask for one.
#[tokio::test]
async fn a_client_that_renegotiates_gets_no_second_handshake_and_its_connection_alone_ends() {
    let files = TlsFiles::new();
    let server = Setup::with_tls(&files)
        .set("limits.header-timeout=3s")
        .set("limits.idle-timeout=3s")
        .start_fresh()
        .await;
    let mut command = tokio::process::Command::new("openssl");
    command
        // `-msg` prints a line for each message.
        .args(["s_client", "-msg", "-tls1_2", "-connect", server.address()])
        .arg("-CAfile")
        .arg(files.ca())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let Ok(mut client) = command.spawn() else {
        testkit::skipped("renegotiation of TLS: there is no openssl");
        return;
    };
    let mut input = client.stdin.take().unwrap();
    let mut output = client.stdout.take().unwrap();
    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    input.write_all(request).await.unwrap();
    let mut seen = Vec::new();
    soon("the first answer", async {
        while !String::from_utf8_lossy(&seen).contains("HTTP/1.1 200") {
            let read = output.read_buf(&mut seen).await.unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
        }
    })
    .await;
    // The client reads lines as they come: this one alone asks it for another handshake, before what it sends next.
    input.write_all(b"R\n").await.unwrap();
    let mut errors = client.stderr.take().unwrap();
    let mut said = Vec::new();
    soon("the client asks for another handshake", async {
        while !String::from_utf8_lossy(&said).contains("RENEGOTIATING") {
            let read = errors.read_buf(&mut said).await.unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&said));
        }
    })
    .await;
    input.write_all(request).await.unwrap();
    // The server ends the connection, because no request comes.
    let ended = async {
        output.read_to_end(&mut seen).await.unwrap();
        client.wait().await.unwrap()
    };
    soon("the end of the client", ended).await;
    let seen = String::from_utf8_lossy(&seen).into_owned();
    let messages = |name: &str| seen.lines().filter(|line| line.ends_with(name)).count();
    assert_eq!(messages(", ClientHello"), 2, "{seen}");
    assert_eq!(messages(", ServerHello"), 1, "{seen}");
    assert_eq!(seen.matches("HTTP/1.1 200").count(), 1, "{seen}");
    server.http2().get("/health").send().await.expect(200);
}
