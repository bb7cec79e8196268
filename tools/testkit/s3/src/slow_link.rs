//! A network with a limited rate for all connections together, between a client and a server on this machine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Bytes that are read at a time.
const PIECE: usize = 16 * 1024;

/// The link. It is cut when dropped.
pub struct SlowLink {
    /// The address for clients.
    pub address: SocketAddr,
    taken: Arc<AtomicU64>,
    stalled: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SlowLink {
    /// A link to `server`, given as `http://host:port`, with this rate in bytes.
    pub async fn to(server: &str, per_second: u64) -> SlowLink {
        let server = server.strip_prefix("http://").unwrap().to_owned();
        let socket = TcpSocket::new_v4().unwrap();
        // Without this limit, socket buffers would hold whole parts.
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let (taken, stalled) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let free_at = Arc::new(Mutex::new(Instant::now()));
        let shared = (taken.clone(), stalled.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&server).await else {
                    continue;
                };
                let (taken, stalled) = shared.clone();
                let free_at = free_at.clone();
                connections.spawn(async move {
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let up = async {
                        let mut piece = vec![0; PIECE];
                        loop {
                            let count = from_client.read(&mut piece).await.unwrap_or(0);
                            if count == 0 {
                                return;
                            }
                            taken.fetch_add(count as u64, Ordering::SeqCst);
                            while stalled.load(Ordering::SeqCst) {
                                tokio::time::sleep(Duration::from_millis(5)).await;
                            }
                            let until = {
                                let mut free_at = free_at.lock().await;
                                let cost = count as f64 / per_second as f64;
                                *free_at =
                                    (*free_at).max(Instant::now()) + Duration::from_secs_f64(cost);
                                *free_at
                            };
                            tokio::time::sleep_until(until).await;
                            if to_server.write_all(&piece[..count]).await.is_err() {
                                return;
                            }
                        }
                    };
                    let down = tokio::io::copy(&mut from_server, &mut to_client);
                    tokio::select! {
                        () = up => {}
                        _ = down => {}
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        SlowLink {
            address,
            taken,
            stalled,
            task,
        }
    }

    /// Bytes that clients have sent.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::SeqCst)
    }

    /// Stops reading from clients, or continues.
    pub fn stall(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::SeqCst);
    }
}
