//! Proposers: each has its own connection to the leader, and waits for an answer before the next proposal.
//! `etcd-load` does the same for etcd.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::host;
use crate::wire::{DONE, PROPOSE};

/// The parameters of a load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub clients: u64,
    pub value_bytes: usize,
    /// Number of different keys.
    pub keys: u64,
    pub warm: Duration,
    pub measured: Duration,
}

async fn propose(
    address: String,
    load: Load,
    number: u64,
    done: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let value = vec![b'v'; load.value_bytes];
    let mut n = number;
    let mut answer = [0; 1024];
    while !over.load(Ordering::Relaxed) {
        let command = host::command(n % load.keys, &value);
        let mut frame = (1 + command.len() as u32).to_le_bytes().to_vec();
        frame.push(PROPOSE);
        frame.extend_from_slice(&command);
        stream.write_all(&frame).await?;
        let mut read = 0;
        // An answer usually fits into one packet.
        while read < 5 || read < 4 + u32::from_le_bytes(*answer.first_chunk().expect("4")) as usize
        {
            match stream.read(&mut answer[read..]).await? {
                0 => bail!("the member has gone"),
                more => read += more,
            }
        }
        if answer[4] != DONE {
            bail!("{}", String::from_utf8_lossy(&answer[5..read]));
        }
        done.fetch_add(1, Ordering::Relaxed);
        n += load.clients;
    }
    Ok(())
}

/// Returns how many proposals were committed and applied in the measured time, and how long that was; `begin`
/// and `end` are called at its ends.
pub fn run(
    address: &str,
    load: Load,
    begin: impl FnOnce() -> anyhow::Result<()>,
    end: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<(u64, Duration)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (done, over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let tasks: Vec<_> = (0..load.clients)
            .map(|number| {
                let (done, over) = (done.clone(), over.clone());
                tokio::spawn(propose(address.to_owned(), load, number, done, over))
            })
            .collect();
        tokio::time::sleep(load.warm).await;
        begin()?;
        let (began, before) = (Instant::now(), done.load(Ordering::Relaxed));
        tokio::time::sleep(load.measured).await;
        let (took, after) = (began.elapsed(), done.load(Ordering::Relaxed));
        end()?;
        over.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await??;
        }
        Ok((after - before, took))
    })
}
