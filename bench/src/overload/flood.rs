//! Clients that flood: each appends large batches over a connection of its own, without a pause.
//!
//! They run within this program, where they compete for the processors with the server and the polite client
//! ([`Flooders::Beside`]), or in a process of the lowest priority, which has what those two leave
//! ([`Flooders::Yielding`]). Either way [`Flood::appended`] counts what the server acknowledged, by the tail of
//! their stream.

use std::io::Read as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use tokio::task::JoinSet;

use super::BASIN;
use crate::client::{Batches, Connection, Kind, Stream};
use crate::process::spawn_at_lowest_priority;

/// Clients that flood, each with a connection of its own.
pub(super) const FLOODERS: usize = 64;
/// Appends that each has under way.
const UNDER_WAY: usize = 8;
/// Records of an append of a flooder: 64 of 1000 bytes.
const RECORDS: usize = 64;
const RECORD_BYTES: usize = 1000;
/// Their stream.
const STREAM: &str = "flood";

/// Where the flooders run, and what they take of the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Flooders {
    /// In the process of the polite client, at the same priority as it and the server.
    Beside,
    /// In a process of their own, at the lowest priority.
    Yielding,
}

impl Flooders {
    /// The name in the figures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Flooders::Beside => "others",
            Flooders::Yielding => "others of the lowest priority",
        }
    }
}

/// A running flood. It ends when this is dropped.
pub(super) struct Flood {
    stream: Stream,
    running: Running,
}

enum Running {
    Beside {
        ends: Arc<AtomicBool>,
        clients: JoinSet<()>,
    },
    Yielding(Process),
}

impl Flood {
    /// Makes the stream of the flood, and starts it.
    ///
    /// # Errors
    ///
    /// If the server cannot be reached, or the process cannot be started.
    pub(super) async fn start(flooders: Flooders, url: &str) -> anyhow::Result<Flood> {
        let connection = Connection::open(Kind::Wire, url, BASIN).await?;
        connection.create_stream(STREAM).await?;
        let running = match flooders {
            Flooders::Beside => {
                let ends = Arc::new(AtomicBool::new(false));
                let clients = clients(url, &ends).await?;
                Running::Beside { ends, clients }
            }
            Flooders::Yielding => Running::Yielding(Process::start(url)?),
        };
        Ok(Flood {
            stream: connection.stream(STREAM)?,
            running,
        })
    }

    /// Bytes in the bodies of all records that were acknowledged so far.
    ///
    /// # Errors
    ///
    /// If the server does not answer.
    pub(super) async fn appended(&self) -> anyhow::Result<u64> {
        Ok(self.stream.tail().await? * RECORD_BYTES as u64)
    }

    /// Ends it, and waits until it has ended.
    ///
    /// # Errors
    ///
    /// If it had ended by itself.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        match self.running {
            Running::Beside { ends, mut clients } => {
                ends.store(true, Ordering::Relaxed);
                while clients.join_next().await.is_some() {}
            }
            Running::Yielding(mut process) => {
                let ended = process.child.try_wait()?;
                ensure!(ended.is_none(), "the flood ended early: {ended:?}");
            }
        }
        Ok(())
    }
}

/// Starts the clients; they end when `ends` is set.
async fn clients(url: &str, ends: &Arc<AtomicBool>) -> anyhow::Result<JoinSet<()>> {
    let batches = Arc::new(Batches::new(RECORDS, RECORD_BYTES, 2)?);
    let mut clients = JoinSet::new();
    for _ in 0..FLOODERS {
        let connection = Connection::open(Kind::Wire, url, BASIN).await?;
        let stream = Arc::new(connection.stream(STREAM)?);
        for turn in 0..UNDER_WAY {
            let (stream, batches, ends) = (stream.clone(), batches.clone(), ends.clone());
            clients.spawn(async move {
                while !ends.load(Ordering::Relaxed) {
                    // One that is refused comes again, as a flooder's does.
                    let _ = stream.append(batches.at(turn)).await;
                }
            });
        }
    }
    Ok(clients)
}

/// This program as a flood. Dropping it kills it.
struct Process {
    child: Child,
}

impl Process {
    fn start(url: &str) -> anyhow::Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["overload-flood", "--url", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let child = spawn_at_lowest_priority(&mut command).context("cannot start the flood")?;
        Ok(Process { child })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A hidden subcommand: a flood in a process of its own, until its standard input ends. That happens also if
/// the program that started it is killed.
#[derive(clap::Args, Clone, Debug)]
pub struct Step {
    /// The server.
    #[arg(long)]
    url: String,
}

/// Floods in this process.
///
/// # Errors
///
/// If the server cannot be reached.
pub async fn run(step: Step) -> anyhow::Result<ExitCode> {
    let ends = Arc::new(AtomicBool::new(false));
    let mut clients = clients(&step.url, &ends).await?;
    let (end, ended) = tokio::sync::oneshot::channel();
    // A thread of its own: one of the runtime would keep the runtime from ending while it waits.
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        let _ = end.send(());
    });
    let _ = ended.await;
    ends.store(true, Ordering::Relaxed);
    clients.abort_all();
    while clients.join_next().await.is_some() {}
    Ok(ExitCode::SUCCESS)
}
