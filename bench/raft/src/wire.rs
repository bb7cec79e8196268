//! The protocol between clients and members: frames of a length and that many bytes. A client waits for an
//! answer before the next request.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// Propose the rest of the frame.
pub const PROPOSE: u8 = b'P';
/// Answer with [`Status`].
pub const STATUS: u8 = b'S';
/// Take a snapshot, and answer when it is complete.
pub const SNAPSHOT: u8 = b'T';
/// Add the node with this number as a learner.
pub const ADD_LEARNER: u8 = b'L';

/// The first byte of an answer.
pub const DONE: u8 = b'+';
/// The first byte of an answer to a failed request; the reason follows.
pub const FAILED: u8 = b'-';

/// Most bytes of a frame.
pub const MAX_FRAME: usize = 16 << 20;

/// The state of a member.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    pub leads: bool,
    pub applied: u64,
    pub last: u64,
    pub floor: u64,
    pub log_start: u64,
    pub snapshots_taken: u64,
    pub snapshots_received: u64,
    pub fetches_resumed: u64,
    pub bytes_fetched: u64,
    pub bytes_sent: u64,
    pub write_groups: u64,
}

/// A blocking client.
pub struct Client(TcpStream);

impl Client {
    pub fn connect(address: &str) -> anyhow::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        Ok(Client(stream))
    }

    pub fn ask(&mut self, operation: u8, rest: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut frame = (1 + rest.len() as u32).to_le_bytes().to_vec();
        frame.push(operation);
        frame.extend_from_slice(rest);
        self.0.write_all(&frame)?;
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        anyhow::ensure!(length <= MAX_FRAME, "a frame of {length} bytes");
        let mut answer = vec![0; length];
        self.0.read_exact(&mut answer)?;
        match answer.split_first() {
            Some((&DONE, rest)) => Ok(rest.to_vec()),
            Some((_, why)) => bail!("{}", String::from_utf8_lossy(why)),
            None => bail!("an empty answer"),
        }
    }

    pub fn status(&mut self) -> anyhow::Result<Status> {
        let answer = self.ask(STATUS, &[])?;
        serde_json::from_slice(&answer).context("a status")
    }
}
