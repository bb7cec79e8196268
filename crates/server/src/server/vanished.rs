//! Clients that have vanished without a word: a machine without power, a NAT that has forgotten the connection.
//!
//! HTTP/2 has pings of its own. Over HTTP/1.1 nothing is sent to an append session, which may stay silent for as long
//! as it likes, so only TCP can find out: after [`IDLE`] without traffic it asks for a sign of life, and again every
//! [`INTERVAL`]. What was sent and is not acknowledged for [`loss_timeout`] ends the connection as well; without that,
//! TCP repeats it for about 15 minutes.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Time without traffic after which TCP asks for a sign of life.
const IDLE: Duration = Duration::from_secs(30);
/// Time between two questions.
const INTERVAL: Duration = Duration::from_secs(10);
/// Questions without an answer that end the connection.
const RETRIES: u32 = 3;
/// Time by which a client that is there and reads nothing is ended by `limits.stall-timeout` before TCP ends it: it
/// does not tell one that takes nothing from one that has vanished while its window is closed.
const MARGIN: Duration = Duration::from_secs(30);

/// Time without an acknowledgement after which a connection is lost.
fn loss_timeout(stall_timeout: Duration) -> Duration {
    stall_timeout.saturating_add(MARGIN)
}

/// Lets TCP find out that the client has vanished.
pub(super) fn notice_loss(stream: &TcpStream, stall_timeout: Duration) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(IDLE)
        .with_interval(INTERVAL)
        .with_retries(RETRIES);
    let set = socket
        .set_tcp_keepalive(&keepalive)
        .and_then(|()| socket.set_tcp_user_timeout(Some(loss_timeout(stall_timeout))));
    if let Err(error) = set {
        // A connection is of use without it.
        tracing::debug!(%error, "the loss of a client's connection will be noticed late");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_asks_for_a_sign_of_life_and_is_lost_after_the_stall_timeout() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        notice_loss(&accepted, Duration::from_secs(60));
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), RETRIES);
        let loss = socket.tcp_user_timeout().unwrap();
        assert_eq!(loss, Some(Duration::from_secs(90)));
    }
}
