//! The acts of the demo, in order. Each has a file of its own, and gets the [`Cast`]: the running processes,
//! the directories and the results of earlier acts.

mod bound;
mod crash;
mod database;
mod disk;
mod failover;
mod follow;
mod opening;
mod proof;
mod recovery;
mod state;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use s2_sdk::types::{ReadInput, ReadStop};

use super::appender::Appended;
use super::follower::{Follower, check};
use super::records::Records;
use super::server::ServerProcess;
use super::stage::Stage;
use crate::cluster_cmd::formation::ended;
use crate::cluster_cmd::trial_node::TrialNode;
use crate::failure::Failure;
use crate::remote::Remote;
use crate::stream_cmd::connection::Connection;
use crate::stream_cmd::target::StreamTarget;

/// Stream partitions of a server with the default configuration.
const PARTITIONS: u64 = 8;
/// Longest wait for a first snapshot of each partition.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval between checks for these snapshots.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What the acts share: processes, directories, records and results.
pub struct Cast {
    /// Where the text of the demo is printed.
    pub stage: Stage,
    /// Scratch directory: the server's data and its logs.
    pub scratch: PathBuf,
    /// The records that are appended.
    pub records: Arc<Records>,
    /// The stream that they are appended to.
    pub target: StreamTarget,
    /// The server that runs now.
    pub server: Option<ServerProcess>,
    /// The nodes of a cluster that run now, or have ended.
    pub nodes: Vec<TrialNode>,
    /// The follower.
    pub follower: Option<Follower>,
    /// What was sent and acknowledged when the server was killed.
    pub crash: Option<Crash>,
    /// Records before this number are in the repository.
    pub covered: u64,
}

/// What the demo knew when the server had ended.
pub struct Crash {
    /// Records before this number were acknowledged.
    pub acknowledged: u64,
    /// Records before this number were sent.
    pub sent: u64,
}

impl Cast {
    /// Where the server keeps its data.
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.join("data")
    }

    /// The repository's directory, used from the act on that puts snapshots.
    pub fn repository(&self) -> PathBuf {
        self.scratch.join("repository")
    }

    /// Arguments of a server that keeps snapshots there.
    fn with_repository(&self) -> Vec<String> {
        let destination = format!("snapshots.destination={}", self.repository().display());
        let settings = [
            &destination,
            "snapshots.snapshot-kind=incremental",
            "snapshots.num-retained=3",
        ];
        let arguments = settings.iter().flat_map(|setting| ["--set", setting]);
        arguments.map(str::to_owned).collect()
    }

    /// Starts a server on the data directory, with these further arguments; `log` names its log in the
    /// scratch directory.
    async fn start_server(
        &mut self,
        log: &str,
        arguments: &[String],
    ) -> Result<&mut ServerProcess, Failure> {
        let log = self.scratch.join(log);
        let server = ServerProcess::start(&self.data_dir(), log, arguments).await?;
        Ok(self.server.insert(server))
    }

    /// Waits until a repository has a snapshot of this many stream partitions and of the catalog, and the
    /// server has logged it.
    async fn wait_for_snapshots(&self, repository: &Path, partitions: u64) -> Result<(), Failure> {
        let began = Instant::now();
        let missing = || (0..=partitions).find(|p| !has_snapshot(&repository.join(p.to_string())));
        while let Some(partition) = missing() {
            if began.elapsed() > WAIT_TIMEOUT {
                return Err(Failure::wrong(
                    "demo",
                    format!(
                        "no snapshot of partition {partition} was put into {} within {} s",
                        repository.display(),
                        WAIT_TIMEOUT.as_secs()
                    ),
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// A new connection to the server.
    async fn connect(&self) -> Result<Connection, Failure> {
        Connection::open(&Remote::open(self.server()?.address().clone())).await
    }

    fn server(&self) -> Result<&ServerProcess, Failure> {
        self.server.as_ref().ok_or_else(|| missing("server"))
    }

    /// Kills the nodes, and waits until they are gone.
    pub async fn end_nodes(&mut self) -> Result<(), Failure> {
        self.nodes.iter_mut().for_each(TrialNode::kill);
        let gone = tokio::time::timeout(WAIT_TIMEOUT, ended(&mut self.nodes)).await;
        self.nodes.clear();
        gone.map_err(|_| {
            let seconds = WAIT_TIMEOUT.as_secs();
            Failure::wrong("demo", format!("the nodes did not end within {seconds} s"))
        })
    }
}

/// Whether the root of a partition's snapshots names one.
fn has_snapshot(partition: &Path) -> bool {
    let root = std::fs::read(partition.join("latest.json")).ok();
    let root: Option<serde_json::Value> = root.and_then(|text| serde_json::from_slice(&text).ok());
    root.is_some_and(|root| root["retained_snapshots"].get(0).is_some())
}

/// Fails unless every record was appended.
fn whole(connection: &Connection, cast: &Cast, appended: &Appended) -> Result<(), Failure> {
    let Some(error) = &appended.broke else {
        return Ok(());
    };
    let failure = connection.asked_stream(&cast.target).append_session(error);
    Err(Failure::wrong(
        "demo",
        format!(
            "the append could not go on behind record {}: {}",
            appended.acknowledged, failure.message
        ),
    ))
}

/// Reads the stream from its first record to its end, and checks that it has these `count` records, each
/// once, in order. Returns how long that took.
async fn expect_records(cast: &Cast, count: u64) -> Result<Duration, Failure> {
    expect_records_at(&cast.connect().await?, cast, count).await
}

/// The same, of the server of this connection.
async fn expect_records_at(
    connection: &Connection,
    cast: &Cast,
    count: u64,
) -> Result<Duration, Failure> {
    let asked = connection.asked_stream(&cast.target);
    let began = Instant::now();
    // From the first record to the end, without waiting for more.
    let everything = ReadInput::new().with_stop(ReadStop::new().with_wait(0));
    let mut session = connection
        .session(&cast.target)
        .read_session(everything, Default::default())
        .await
        .map_err(|e| asked.read_session(&e))?;
    let mut next = 0;
    while let Some(batch) = session.next().await {
        for record in &batch.map_err(|e| asked.read_session(&e))?.records {
            check(&cast.records, next, record)
                .map_err(|problem| Failure::wrong("demo", format!("reading back {problem}")))?;
            next += 1;
        }
    }
    if next != count {
        return Err(Failure::wrong(
            "demo",
            format!("of {count} records {next} can be read back"),
        ));
    }
    Ok(began.elapsed())
}

/// A file operation of the demo that failed.
fn io(operation: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::wrong("io", format!("{operation} {}: {error}", path.display()))
}

/// The failure of an act that needs the result of an earlier one.
fn missing(what: &str) -> Failure {
    Failure::wrong("demo", format!("there is no {what} in this act"))
}

/// An act.
#[derive(Clone, Copy)]
pub enum Act {
    /// A server, a stream, a follower.
    Opening,
    /// The server is killed in mid-append.
    Crash,
    /// The server is started again, and the append continues.
    Recovery,
    /// Everything is read back and compared.
    Proof,
    /// A snapshot is put into a repository, and the database is lost.
    Database,
    /// The whole data directory is lost.
    Disk,
    /// The same history is recovered from its beginning, and from a snapshot.
    Bound,
    /// A service that follows a stream restarts from its own snapshot.
    Follow,
    /// An agent keeps its state in transactions.
    State,
    /// One of three nodes is killed in mid-append, the one that leads.
    Failover,
}

impl Act {
    /// All of them, in order.
    pub const ALL: [Act; 10] = [
        Act::Opening,
        Act::Crash,
        Act::Recovery,
        Act::Proof,
        Act::Database,
        Act::Disk,
        Act::Bound,
        Act::Follow,
        Act::State,
        Act::Failover,
    ];

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Act::Opening => "A server, a stream, a follower",
            Act::Crash => "Killed in mid-append",
            Act::Recovery => "Recovery",
            Act::Proof => "The proof",
            Act::Database => "The database is lost",
            Act::Disk => "The whole data directory is lost",
            Act::Bound => "From zero, or from a snapshot",
            Act::Follow => "A service that follows a stream",
            Act::State => "An agent's state",
            Act::Failover => "A leader is lost",
        }
    }

    /// Runs it.
    ///
    /// # Errors
    ///
    /// What was checked and does not hold.
    pub async fn play(self, cast: &mut Cast) -> Result<(), Failure> {
        match self {
            Act::Opening => opening::play(cast).await,
            Act::Crash => crash::play(cast).await,
            Act::Recovery => recovery::play(cast).await,
            Act::Proof => proof::play(cast).await,
            Act::Database => database::play(cast).await,
            Act::Disk => disk::play(cast).await,
            Act::Bound => bound::play(cast).await,
            Act::Follow => follow::play(cast).await,
            Act::State => state::play(cast).await,
            Act::Failover => failover::play(cast).await,
        }
    }
}
