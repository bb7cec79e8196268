//! A relay to a server with TLS, for clients that cannot present a certificate or choose the authorities they trust.
//!
//! The official SDK has no setting for either. It connects to the relay instead, without TLS over loopback; for each
//! connection, the relay makes one of TLS to the server, checks its certificate against [`Trust`] alone, presents the
//! client certificate if there is one, and copies bytes both ways. If the server's certificate is not accepted,
//! nothing of the client is sent, and the reason is printed once.
//!
//! Whoever connects to the relay acts with the client certificate. So it takes connections only of the user of this
//! process, who can read the key anyway. It finds the user in the kernel's table of connections, which only Linux
//! has in that form.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::failure::Failure;
use crate::server_address::{REACH_TIMEOUT, ServerAddress};
use crate::tls::{HTTP1, HTTP2, Trust};

/// The kernel's table of TCP connections over IPv4.
const CONNECTIONS: &str = "/proc/net/tcp";
/// The state of an open connection in that table.
const ESTABLISHED: &str = "01";
/// What every connection of HTTP/2 starts with, and no request of HTTP/1.1 does.
const HTTP2_START: &[u8; 4] = b"PRI ";
/// Pause after a connection could not be accepted, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A relay that runs until the runtime ends.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
}

impl Relay {
    /// Starts one to this server.
    ///
    /// # Errors
    ///
    /// `client` if it cannot listen, or cannot tell whose connections it gets.
    pub async fn start(server: &ServerAddress, trust: &Trust) -> Result<Relay, Failure> {
        let cannot = |what: &str, why: std::io::Error| {
            let message = format!(
                "{what}: {why}; a client certificate for requests about streams, and --ca-file of \
                 `esker follow`, need it: leave them out, or use a proxy that speaks TLS to the server"
            );
            Failure::wrong("client", message)
        };
        fs::metadata(CONNECTIONS).map_err(|e| cannot(&format!("reading {CONNECTIONS}"), e))?;
        let listening = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listening.map_err(|e| cannot("listening on 127.0.0.1", e))?;
        let address = listener.local_addr();
        let address = address.map_err(|e| cannot("listening on 127.0.0.1", e))?;
        let (server, trust) = (server.clone(), trust.clone());
        let refusal = Arc::new(Refusal::default());
        tokio::spawn(async move {
            loop {
                let Ok((connection, peer)) = listener.accept().await else {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                };
                if is_of_this_user(peer, address) {
                    let (server, trust) = (server.clone(), trust.clone());
                    tokio::spawn(relay(connection, server, trust, refusal.clone()));
                }
            }
        });
        Ok(Relay { address })
    }

    /// The URL that clients connect to.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Why the last connection to the server failed, if its certificate or this client's was not accepted. The client of
/// the relay sees a closed connection alone, and tries again.
#[derive(Default)]
struct Refusal {
    last: Mutex<Option<String>>,
}

impl Refusal {
    /// Notes how a handshake went. Prints the reason unless the last one failed for the same.
    fn note(&self, failure: Option<&Failure>) {
        if let Some(message) = self.change(failure.map(|failure| failure.message.clone())) {
            say!("warning: {message}");
        }
    }

    /// The message that is to be printed.
    fn change(&self, message: Option<String>) -> Option<String> {
        // Nothing panics while it holds the lock.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = message.is_some() && *last != message;
        last.clone_from(&message);
        message.filter(|_| is_new)
    }
}

/// Copies one connection to the server and back. Where the server cannot be reached, the connection is closed.
async fn relay(mut client: TcpStream, server: ServerAddress, trust: Trust, refusal: Arc<Refusal>) {
    // Without it, a small frame waits for the acknowledgement of the one before.
    let _ = client.set_nodelay(true);
    let mut start = [0; HTTP2_START.len()];
    if client.read_exact(&mut start).await.is_err() {
        return;
    }
    let protocol = match &start == HTTP2_START {
        true => HTTP2,
        false => HTTP1,
    };
    let connecting = async {
        let connection = TcpStream::connect((server.host(), server.port()))
            .await
            .ok()?;
        let _ = connection.set_nodelay(true);
        let connected = trust.connect(protocol, connection, &server).await;
        refusal.note(connected.as_ref().err());
        connected.ok()
    };
    let Ok(Some(mut connection)) = tokio::time::timeout(REACH_TIMEOUT, connecting).await else {
        return;
    };
    if connection.write_all(&start).await.is_ok() && connection.flush().await.is_ok() {
        // The client sees the end of its connection, and reports it.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut connection).await;
    }
}

/// Whether the other end of an accepted connection belongs to the user of this process.
fn is_of_this_user(peer: SocketAddr, relay: SocketAddr) -> bool {
    let (SocketAddr::V4(peer), SocketAddr::V4(relay)) = (peer, relay) else {
        return false;
    };
    let Ok(table) = fs::read_to_string(CONNECTIONS) else {
        return false;
    };
    owner(&table, peer, relay) == Some(rustix::process::geteuid().as_raw())
}

/// The user whose end of an open connection is `local`.
fn owner(table: &str, local: SocketAddrV4, remote: SocketAddrV4) -> Option<u32> {
    // An address as four bytes in the order of the network, printed as a number of this machine.
    let shown = |address: SocketAddrV4| {
        let ip = u32::from_ne_bytes(address.ip().octets());
        format!("{ip:08X}:{:04X}", address.port())
    };
    let (local, remote) = (shown(local), shown(remote));
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let is_it =
            fields.next()? == local && fields.next()? == remote && fields.next()? == ESTABLISHED;
        // Queues, timer and retransmissions come before the user.
        let user = fields.nth(3)?;
        is_it.then(|| user.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 21417 1
   1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 21418 1
   2: 0100007F:C351 0100007F:1F90 06 00000000:00000000 03:00000000 00000000     0        0 0 3
";

    #[test]
    #[cfg(target_endian = "little")]
    fn a_connection_belongs_to_the_user_of_the_clients_end() {
        let relay = "127.0.0.1:8080".parse().unwrap();
        let owner = |peer: &str| owner(TABLE, peer.parse().unwrap(), relay);
        assert_eq!(owner("127.0.0.1:50000"), Some(1000));
        // One that is closed already, and one that is not there.
        assert_eq!(owner("127.0.0.1:50001"), None);
        assert_eq!(owner("127.0.0.2:50000"), None);
    }

    #[test]
    fn a_refusal_is_printed_again_only_after_a_connection_or_for_another_reason() {
        let refusal = Refusal::default();
        let change = |message: Option<&str>| refusal.change(message.map(str::to_owned));
        assert_eq!(change(Some("expired")).as_deref(), Some("expired"));
        assert_eq!(change(Some("expired")), None);
        assert_eq!(change(Some("unknown")).as_deref(), Some("unknown"));
        assert_eq!(change(None), None);
        assert_eq!(change(Some("unknown")).as_deref(), Some("unknown"));
    }

    #[tokio::test]
    async fn a_connection_of_this_process_is_one_of_this_user() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (_accepted, peer) = listener.accept().await.unwrap();
        assert!(is_of_this_user(peer, address));
    }
}
