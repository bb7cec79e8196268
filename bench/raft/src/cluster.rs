//! Members as processes of this program; they end when this is dropped.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::Context;

use crate::member::WAIT_TIMEOUT;
use crate::wait_for;
use crate::wire::{Client, Status};
use bench_harness::machine;

pub struct Cluster {
    dir: PathBuf,
    peers: BTreeMap<u64, String>,
    clients: BTreeMap<u64, String>,
    running: BTreeMap<u64, Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}

/// Addresses that are free now, chosen at once so that they differ.
pub fn free_addresses(count: usize) -> anyhow::Result<Vec<String>> {
    let free: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    let address = |l: &TcpListener| l.local_addr().map(|a| a.to_string());
    Ok(free.iter().map(address).collect::<Result<_, _>>()?)
}

impl Cluster {
    /// A cluster of at most `members` members, none of them running.
    pub fn new(dir: &Path, members: u64) -> anyhow::Result<Cluster> {
        let addresses = free_addresses(2 * members as usize)?;
        let (peers, clients) = addresses.split_at(members as usize);
        Ok(Cluster {
            dir: dir.to_owned(),
            peers: (1..).zip(peers.iter().cloned()).collect(),
            clients: (1..).zip(clients.iter().cloned()).collect(),
            running: BTreeMap::new(),
        })
    }

    /// Starts a member, with arguments beside those that all members have.
    pub fn start(&mut self, id: u64, arguments: &[&str]) -> anyhow::Result<()> {
        let peers: Vec<_> = (self.peers.iter())
            .map(|(id, at)| format!("{id}={at}"))
            .collect();
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["member", "--id", &id.to_string(), "--dir"])
            .arg(self.dir.join(id.to_string()))
            .args(["--clients", &self.clients[&id], "--peers", &peers.join(",")])
            .args(arguments)
            // A member ends when its standard input closes, so it never outlives the bench.
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        self.running.insert(id, command.spawn()?);
        wait_for("a member listens", WAIT_TIMEOUT, || {
            Ok(self.client(id).ok().map(drop))
        })
    }

    pub fn kill(&mut self, id: u64) -> anyhow::Result<()> {
        let mut child = self.running.remove(&id).context("it does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    pub fn pid(&self, id: u64) -> u32 {
        self.running[&id].id()
    }

    pub fn pids(&self) -> Vec<u32> {
        self.running.values().map(Child::id).collect()
    }

    pub fn address(&self, id: u64) -> &str {
        &self.clients[&id]
    }

    pub fn client(&self, id: u64) -> anyhow::Result<Client> {
        Client::connect(self.address(id))
    }

    pub fn status(&self, id: u64) -> anyhow::Result<Status> {
        self.client(id)?.status()
    }

    /// Waits for a leader that serves, and returns its id.
    pub fn leader(&self) -> anyhow::Result<u64> {
        let ids: Vec<_> = self.running.keys().copied().collect();
        wait_for("somebody leads", WAIT_TIMEOUT, || {
            Ok(ids
                .iter()
                .copied()
                .find(|id| self.status(*id).is_ok_and(|s| s.leads)))
        })
    }
}

/// Resident memory of a process over some time.
pub struct Memory {
    pid: u32,
    before: u64,
    pub began: Instant,
}

impl Memory {
    /// Begins to observe a process: records its present memory, and resets its peak.
    pub fn begin(pid: u32) -> anyhow::Result<Memory> {
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("clear_refs")?;
        let (before, _) = machine::resident_bytes(pid)?;
        Ok(Memory {
            pid,
            before,
            began: Instant::now(),
        })
    }

    /// By how much its peak exceeded the memory at the beginning, in MiB.
    pub fn extra(&self) -> anyhow::Result<f64> {
        let (_, highest) = machine::resident_bytes(self.pid)?;
        Ok(highest.saturating_sub(self.before) as f64 / f64::from(1 << 20))
    }
}

/// Processor seconds that processes have used so far.
pub fn cpu_seconds(pids: &[u32]) -> anyhow::Result<f64> {
    let ticks: Vec<_> = pids
        .iter()
        .map(|pid| machine::cpu_ticks(*pid))
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<u64>() as f64 / 100.0)
}
