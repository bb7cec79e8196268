//! The acts of the demo, in order. Each has a file of its own, and gets the [`Cast`]: what is on the
//! stage, and what earlier acts have found out.

mod crash;
mod opening;
mod proof;
mod recovery;

use std::path::PathBuf;
use std::sync::Arc;

use super::follower::Follower;
use super::records::Records;
use super::server::ServerProcess;
use super::stage::Stage;
use crate::exit::Failure;
use crate::stream_cmd::connection::Connection;
use crate::stream_cmd::target::StreamTarget;

/// What is on the stage.
pub struct Cast {
    /// Where the story is told.
    pub stage: Stage,
    /// Scratch directory: the server's data and its logs.
    pub scratch: PathBuf,
    /// What is appended.
    pub records: Arc<Records>,
    /// The stream that it is appended to.
    pub target: StreamTarget,
    /// The server that runs now.
    pub server: Option<ServerProcess>,
    /// The follower.
    pub follower: Option<Follower>,
    /// What the crash left.
    pub crash: Option<Crash>,
}

/// What was known when the server was gone.
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

    /// Starts a server on the data directory; `log` names its log in the scratch directory.
    async fn start_server(&mut self, log: &str) -> Result<&mut ServerProcess, Failure> {
        let server = ServerProcess::start(&self.data_dir(), self.scratch.join(log)).await?;
        Ok(self.server.insert(server))
    }

    /// A new connection to the server.
    async fn connect(&self) -> Result<Connection, Failure> {
        Connection::open(self.server()?.address().clone()).await
    }

    fn server(&self) -> Result<&ServerProcess, Failure> {
        self.server.as_ref().ok_or_else(|| missing("server"))
    }
}

/// An act that came too early.
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
    /// It comes back, and the append goes on.
    Recovery,
    /// Everything is read back and compared.
    Proof,
}

impl Act {
    /// All of them, in order.
    pub const ALL: [Act; 4] = [Act::Opening, Act::Crash, Act::Recovery, Act::Proof];

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Act::Opening => "A server, a stream, a follower",
            Act::Crash => "Killed in mid-append",
            Act::Recovery => "Recovery",
            Act::Proof => "The proof",
        }
    }

    /// Plays it.
    ///
    /// # Errors
    ///
    /// What does not hold, and where.
    pub async fn play(self, cast: &mut Cast) -> Result<(), Failure> {
        match self {
            Act::Opening => opening::play(cast).await,
            Act::Crash => crash::play(cast).await,
            Act::Recovery => recovery::play(cast).await,
            Act::Proof => proof::play(cast).await,
        }
    }
}
