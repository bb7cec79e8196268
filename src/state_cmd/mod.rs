//! `esker state`: the state store of a running server.
//!
//! | module | what it holds |
//! |---|---|
//! | [`connection`] | the connection to a server, and translation of its errors |
//! | [`get`], [`keys`], [`agents`], [`history`], [`replay`] | commands that read |
//! | [`put`] | commands that write: `put` and `delete` |
//! | [`snapshot`], [`export`], [`import`], [`verify`] | JSON snapshots |
//! | [`render`] | printed form of values, keys and commits |
//!
//! The result of a command goes to standard output, in a form that other programs can read; remarks and
//! progress go to standard error.

mod agents;
mod connection;
mod export;
mod get;
mod history;
mod import;
mod keys;
mod put;
mod render;
mod replay;
mod snapshot;
mod verify;

use clap::Subcommand;
use connection::State;

use crate::failure::Failure;
use crate::interrupts;
use crate::remote::{AccessArgs, Remote};
use crate::server_address::{DEFAULT_SERVER, SERVER_VARIABLE, ServerAddress};

/// Read, write, replay and back up the state of agents.
///
/// A key belongs to an agent, and an agent to a namespace. Its value is a JSON object. Each write gives
/// the key a new version; each commit has a place in one order, its commit_ts. Everything can be read as
/// of a commit (--at).
///
/// Clients of Statehouse see the same state.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker state put agent-1 memory '{\"fact\": \"water is wet\"}'
  esker state get agent-1 memory
  esker state keys agent-1
  esker state history agent-1 memory
  esker state export -o backup.json")]
pub struct Args {
    /// Address of the server
    #[arg(
        long,
        global = true,
        env = SERVER_VARIABLE,
        hide_env_values = true,
        value_name = "URL",
        default_value = DEFAULT_SERVER,
        help_heading = "Server"
    )]
    server: ServerAddress,

    #[command(subcommand)]
    command: Command,
}

/// Whose keys.
#[derive(clap::Args)]
struct NamespaceArg {
    /// The agent's namespace
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    namespace: String,
}

#[derive(Subcommand)]
enum Command {
    Get(get::Args),
    Put(put::PutArgs),
    Delete(put::DeleteArgs),
    Keys(keys::Args),
    Agents(agents::AgentsArgs),
    Namespaces(agents::NamespacesArgs),
    History(history::Args),
    Replay(replay::Args),
    Snapshot(snapshot::Args),
    Export(export::Args),
    Import(import::Args),
    Verify(verify::Args),
}

impl Command {
    /// What an interruption leaves behind.
    fn left(&self) -> &'static str {
        match self {
            Command::Put(_) | Command::Delete(_) => {
                "the key may have been changed: `esker state history` shows its versions"
            }
            Command::Import(_) => {
                "the import may have been done, if the server had the whole file: `esker state keys` \
                 shows what is there"
            }
            Command::Snapshot(_) => {
                "a snapshot may have been written: `esker state snapshot --list` shows those that \
                 there are"
            }
            Command::Export(_) => "nothing is left of the export",
            _ => "nothing was changed",
        }
    }
}

pub fn run(args: Args, access: &AccessArgs) -> Result<(), Failure> {
    // One thread is enough: a command does one thing at a time.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::wrong("io", format!("starting the runtime: {e}")))?;
    let left = args.command.left();
    let follows = matches!(&args.command, Command::Replay(replay) if replay.follows());
    interrupts::run_following(runtime, left, follows, async {
        let open = async { State::open(Remote::new(args.server, access)?).await };
        match args.command {
            Command::Get(args) => get::run(open.await?, args).await,
            // Invalid arguments are refused before the server is contacted.
            Command::Put(args) => {
                let value = args.value().await?;
                put::put(open.await?, args, value).await
            }
            Command::Delete(args) => put::delete(open.await?, args).await,
            Command::Keys(args) => keys::run(open.await?, args).await,
            Command::Agents(args) => agents::agents(open.await?, args).await,
            Command::Namespaces(args) => agents::namespaces(open.await?, args).await,
            Command::History(args) => history::run(open.await?, args).await,
            Command::Replay(args) => replay::run(open.await?, args).await,
            Command::Snapshot(args) => snapshot::run(open.await?, args).await,
            Command::Export(args) => {
                let target = args.target()?;
                export::run(open.await?, args, target).await
            }
            Command::Import(args) => {
                let file = import::File::open(&args.file).await?;
                import::run(open.await?, args, file).await
            }
            Command::Verify(args) => verify::run(open.await?, args).await,
        }
    })
}
