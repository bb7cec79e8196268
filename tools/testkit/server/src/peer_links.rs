//! The ways between nodes, each of which can be cut by itself, and healed.
//!
//! A node advertises the address of a proxy in this process instead of its own. The proxy finds out which node has
//! opened a connection (`/proc` names the process of a socket), so that the way from one node to another can be cut
//! while the way back works. Nothing passes over a way that is cut, in neither direction of its connections, and they
//! stay open: to both ends it looks as if packets were lost. New connections over it are accepted and never answered.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// From which node to which.
pub type Way = (usize, usize);

/// Bytes that one direction of a connection holds back when its way is cut.
const BUFFER: usize = 16 * 1024;

/// The ways between the nodes of a cluster.
pub struct PeerLinks {
    cut: watch::Sender<BTreeSet<Way>>,
    /// Which node a process is.
    node_of: fn(u32) -> Option<usize>,
}

impl Default for PeerLinks {
    fn default() -> Self {
        PeerLinks {
            cut: watch::Sender::new(BTreeSet::new()),
            node_of,
        }
    }
}

impl PeerLinks {
    /// Opens the ways to a node that listens on this port. Returns the port of the proxy.
    pub async fn open(&self, to: usize, port: u16) -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let (cut, node_of) = (self.cut.subscribe(), self.node_of);
        tokio::spawn(async move {
            while let Ok((incoming, from)) = listener.accept().await {
                let cut = cut.clone();
                tokio::spawn(async move {
                    // One that nobody owns any more was closed at once.
                    let Some(from) = owner(from, proxy).and_then(node_of) else {
                        return;
                    };
                    carry(incoming, port, cut, (from, to)).await;
                });
            }
        });
        proxy.port()
    }

    /// Cuts these ways, and heals all others.
    pub fn cut(&self, ways: impl IntoIterator<Item = Way>) {
        self.cut.send_replace(ways.into_iter().collect());
    }

    /// Heals all ways.
    pub fn heal(&self) {
        self.cut([]);
    }
}

/// The number of a node whose name, `n` and its number, is a setting on the command line of its process.
fn node_of(pid: u32) -> Option<usize> {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = command.split(|byte| *byte == 0);
    words.find_map(|word| {
        let name = std::str::from_utf8(word).ok()?;
        name.strip_prefix("cluster.name=n")?.parse().ok()
    })
}

/// Carries bytes both ways until one end closes the connection.
async fn carry(incoming: TcpStream, port: u16, mut cut: watch::Receiver<BTreeSet<Way>>, way: Way) {
    if is_open(&mut cut, way).await.is_none() {
        return;
    }
    let Ok(outgoing) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let _ = (incoming.set_nodelay(true), outgoing.set_nodelay(true));
    let (from, back) = incoming.into_split();
    let (answers, to) = outgoing.into_split();
    let there = pump(from, to, cut.clone(), way);
    let back = pump(answers, back, cut, way);
    // With either end, the other one's connection ends, too.
    tokio::select! {
        _ = there => {}
        _ = back => {}
    }
}

/// Waits until the way is not cut; `None` once there are no ways any more.
async fn is_open(cut: &mut watch::Receiver<BTreeSet<Way>>, way: Way) -> Option<()> {
    cut.wait_for(|cut| !cut.contains(&way)).await.ok().map(drop)
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut cut: watch::Receiver<BTreeSet<Way>>,
    way: Way,
) -> Option<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await.ok()?;
        is_open(&mut cut, way).await?;
        if read == 0 {
            return None;
        }
        to.write_all(&buffer[..read]).await.ok()?;
    }
}

/// The process whose socket has this address, with this one at its other end.
fn owner(socket: SocketAddr, other: SocketAddr) -> Option<u32> {
    let inode = inode(
        &std::fs::read_to_string("/proc/net/tcp").ok()?,
        socket,
        other,
    )?;
    let wanted = format!("socket:[{inode}]");
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes.find(|pid: &u32| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
        files.is_ok_and(|files| {
            let mut links = files.flatten().map(|file| std::fs::read_link(file.path()));
            links.any(|link| link.is_ok_and(|link| link.as_os_str() == wanted.as_str()))
        })
    })
}

/// The inode of a socket, in the table of the system.
fn inode(table: &str, socket: SocketAddr, other: SocketAddr) -> Option<u64> {
    let (socket, other) = (shown(socket)?, shown(other)?);
    let mut lines = table.lines().map(str::split_ascii_whitespace);
    lines.find_map(|mut fields| {
        let is_it = fields.nth(1) == Some(&socket) && fields.next() == Some(&other);
        // State, queues, timer, retransmits, uid and timeout are in between.
        is_it.then(|| fields.nth(6)?.parse().ok()).flatten()
    })
}

/// An address as in that table: the bytes of a number of 32 bits in the order of the machine, and the port.
fn shown(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else {
        return None;
    };
    let ip = u32::from_ne_bytes(address.ip().octets());
    Some(format!("{ip:08X}:{:04X}", address.port()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// An end of a connection through the links, of this process, which is node 0, to node 1, and the other end.
    async fn connected(links: &PeerLinks) -> (TcpStream, TcpStream) {
        let node = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = links.open(1, node.local_addr().unwrap().port()).await;
        let here = TcpStream::connect(("127.0.0.1", proxy)).await.unwrap();
        let (there, _) = node.accept().await.unwrap();
        (here, there)
    }

    async fn arrives(from: &mut TcpStream, to: &mut TcpStream) -> bool {
        from.write_all(b"x").await.unwrap();
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_millis(200), to.read_exact(&mut byte));
        read.await.is_ok_and(|read| read.is_ok())
    }

    #[tokio::test]
    async fn a_way_that_is_cut_carries_nothing_until_it_is_healed_and_other_ways_work() {
        let links = PeerLinks {
            node_of: |pid| (pid == std::process::id()).then_some(0),
            ..PeerLinks::default()
        };
        let (mut here, mut there) = connected(&links).await;
        assert!(arrives(&mut here, &mut there).await);
        assert!(arrives(&mut there, &mut here).await);
        links.cut([(1, 0)]);
        assert!(arrives(&mut here, &mut there).await, "this way is not cut");
        links.cut([(0, 1)]);
        assert!(!arrives(&mut here, &mut there).await, "the way is cut");
        assert!(!arrives(&mut there, &mut here).await, "answers use it, too");
        links.heal();
        // What was held back comes, too.
        let mut bytes = [0; 2];
        here.write_all(b"y").await.unwrap();
        there.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"xy");
    }
}
