//! The handshake of one connection.
//!
//! It is bounded by the deadline of a request's head, and takes a place among the connections meanwhile, so
//! that handshakes in progress are at most as many as connections. It takes memory of its messages alone:
//! those of a client are 64 KiB at most, of which rustls keeps nothing afterwards.

use std::time::Duration;

use rustls::Error as Tls;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::auth::PeerAddress;

/// The first byte of a connection that begins with a handshake.
const HANDSHAKE: u8 = 22;
/// How long a client has to take an answer, or an alert, before the connection is closed.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// Most bytes that are read and dropped meanwhile: unread ones would let the system discard the answer.
const MAX_LINGER: u64 = 64 * 1024;

/// Why a handshake failed: the label `reason` of `esker_tls_handshakes_failed_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The client speaks no TLS.
    Cleartext,
    /// The client took too long.
    Timeout,
    /// The connection was closed meanwhile.
    Closed,
    /// The client refused, the certificate most often.
    RefusedByClient,
    /// The client has no certificate, and needs one.
    NoClientCertificate,
    /// The client's certificate was not accepted.
    BadClientCertificate,
    /// No version, cipher suite or protocol in common.
    Incompatible,
    /// Messages that are not those of TLS, or do not follow its rules.
    Protocol,
}

impl Failure {
    const ALL: [Failure; 8] = [
        Failure::Cleartext,
        Failure::Timeout,
        Failure::Closed,
        Failure::RefusedByClient,
        Failure::NoClientCertificate,
        Failure::BadClientCertificate,
        Failure::Incompatible,
        Failure::Protocol,
    ];

    fn label(self) -> &'static str {
        match self {
            Failure::Cleartext => "cleartext",
            Failure::Timeout => "timeout",
            Failure::Closed => "closed",
            Failure::RefusedByClient => "refused_by_client",
            Failure::NoClientCertificate => "no_client_certificate",
            Failure::BadClientCertificate => "bad_client_certificate",
            Failure::Incompatible => "incompatible",
            Failure::Protocol => "protocol",
        }
    }

    /// Of an error of a handshake.
    pub(super) fn of(error: &std::io::Error) -> Failure {
        let inner = error.get_ref().and_then(|e| e.downcast_ref::<Tls>());
        match inner {
            None => Failure::Closed,
            Some(Tls::AlertReceived(_)) => Failure::RefusedByClient,
            Some(Tls::NoCertificatesPresented) => Failure::NoClientCertificate,
            Some(Tls::InvalidCertificate(_)) => Failure::BadClientCertificate,
            Some(Tls::PeerIncompatible(_) | Tls::NoApplicationProtocol) => Failure::Incompatible,
            Some(_) => Failure::Protocol,
        }
    }
}

/// Counters that exist from the start.
pub(crate) fn register() {
    metrics::counter!("esker_tls_handshakes_total").increment(0);
    for failure in Failure::ALL {
        failed_counter(failure).increment(0);
    }
}

fn failed_counter(failure: Failure) -> metrics::Counter {
    metrics::counter!("esker_tls_handshakes_failed_total", "reason" => failure.label())
}

/// Takes a connection through its handshake; `None` if it failed, which has been counted and answered then.
pub(crate) async fn accept(
    tls: &super::Tls,
    mut stream: TcpStream,
    peer: PeerAddress,
    deadline: Instant,
) -> Option<TlsStream<TcpStream>> {
    let mut first = [0];
    match timeout_at(deadline, stream.peek(&mut first)).await {
        // Nothing was sent: a check of whether the port is open.
        Ok(Ok(0) | Err(_)) => return None,
        Ok(Ok(_)) => {}
        Err(_) => {
            failed(Failure::Timeout, peer, "no byte was sent");
            return None;
        }
    }
    if first[0] != HANDSHAKE && first[0].is_ascii_graphic() {
        failed(
            Failure::Cleartext,
            peer,
            "the client speaks HTTP without TLS: it has to use https://",
        );
        answer_cleartext(&mut stream).await;
        return None;
    }
    let acceptor = TlsAcceptor::from(tls.config());
    match timeout_at(deadline, acceptor.accept(stream).into_fallible()).await {
        Ok(Ok(stream)) => {
            metrics::counter!("esker_tls_handshakes_total").increment(1);
            Some(stream)
        }
        Ok(Err((error, mut stream))) => {
            match Failure::of(&error) {
                Failure::Incompatible => failed(
                    Failure::Incompatible,
                    peer,
                    format_args!("{error}; TLS 1.2 is the oldest version that this server speaks"),
                ),
                failure => failed(failure, peer, &error),
            }
            linger(&mut stream).await;
            None
        }
        Err(_) => {
            failed(Failure::Timeout, peer, "the handshake took too long");
            None
        }
    }
}

fn failed(failure: Failure, peer: PeerAddress, error: impl std::fmt::Display) {
    failed_counter(failure).increment(1);
    let PeerAddress(peer) = peer;
    let reason = failure.label();
    match failure {
        // Scanners and clients that give up.
        Failure::Closed | Failure::Timeout => {
            tracing::debug!(%peer, reason, %error, "a TLS handshake failed");
        }
        _ => tracing::warn!(%peer, reason, %error, "a TLS handshake failed"),
    }
}

/// Answers a client that does not speak TLS to a port that does.
async fn answer_cleartext(stream: &mut TcpStream) {
    const TEXT: &str = "this port speaks TLS: use https://";
    let mut start = [0; 4];
    match timeout(LINGER_TIMEOUT, stream.peek(&mut start)).await {
        // HTTP/2 with prior knowledge: SETTINGS without any, and GOAWAY with HTTP_1_1_REQUIRED and the text.
        Ok(Ok(4)) if start == *b"PRI " => {
            let length = u8::try_from(8 + TEXT.len()).unwrap_or(u8::MAX);
            let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
            frames.extend([0, 0, length, 7, 0, 0, 0, 0, 0]);
            frames.extend([0, 0, 0, 0, 0, 0, 0, 0xd]);
            frames.extend(TEXT.as_bytes());
            send(stream, &frames).await;
        }
        _ => answer(stream, TEXT).await,
    }
}

/// Refuses a client that speaks TLS to a port that does not.
pub(crate) async fn refuse_tls(mut stream: TcpStream, peer: PeerAddress) {
    metrics::counter!("esker_http_refused_total", "reason" => "tls").increment(1);
    let PeerAddress(peer) = peer;
    tracing::warn!(
        %peer,
        "a client speaks TLS to a port without TLS: it has to use http://, or the server `tls.certificate`"
    );
    // A client of TLS does not understand it, and reports that there is no TLS here.
    answer(&mut stream, "this port does not speak TLS: use http://").await;
}

/// Answers HTTP/1.1 with a text, and closes the connection.
async fn answer(stream: &mut TcpStream, text: &str) {
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{text}\n",
        text.len() + 1
    );
    send(stream, answer.as_bytes()).await;
}

/// Sends the last bytes of a connection.
async fn send(stream: &mut TcpStream, bytes: &[u8]) {
    let written = timeout(LINGER_TIMEOUT, stream.write_all(bytes)).await;
    if matches!(written, Ok(Ok(()))) {
        linger(stream).await;
    }
}

/// Ends the sending side, and drops what the client still sends, so that it gets the last bytes.
async fn linger(stream: &mut TcpStream) {
    let drained = async {
        stream.shutdown().await?;
        let mut rest = stream.take(MAX_LINGER);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // The connection is closed either way.
    let _ = timeout(LINGER_TIMEOUT, drained).await;
}
