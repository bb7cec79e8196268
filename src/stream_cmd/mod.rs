//! `esker stream`: a thin client for first trials, built on the official SDK.
//!
//! | module | what it holds |
//! |---|---|
//! | [`target`], [`when`] | arguments: basins and streams, points in time |
//! | [`connection`], [`failure`] | the connection to a server, and translation of its errors |
//! | [`ls`], [`info`], [`create`], [`reconfigure`], [`delete`], [`append`], [`read`], [`tail`], [`check_tail`], [`trim`], [`fence`], [`adopt`] | a command each |
//! | [`settings`] | the settings of a stream |
//! | [`lines`] | lines that become records |
//! | [`record`], [`json_record`] | records as lines, for people and as JSON |
//!
//! The result of a command goes to standard output, in a form that other programs can read; remarks and
//! progress go to standard error.

mod adopt;
mod append;
mod check_tail;
pub mod connection;
mod create;
mod delete;
pub mod failure;
mod fence;
mod info;
mod json_record;
mod lines;
mod ls;
mod read;
mod reconfigure;
mod record;
mod resumption;
mod settings;
mod tail;
pub mod target;
pub mod trim;
mod when;

use clap::Subcommand;
use connection::Connection;

use crate::encryption_key::KeyArgs;
use crate::failure::Failure;
use crate::interrupts;
use crate::remote::{AccessArgs, Remote};
use crate::server_address::{DEFAULT_SERVER, SERVER_VARIABLE, ServerAddress};

/// Create, append to, read, trim and delete streams of a running server.
///
/// A stream is written BASIN/STREAM: a basin is a named group of streams, and its name has 8
/// characters at least. s2://BASIN/STREAM means the same. Any server of the S2 API will do.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker stream create my-basin/orders
  echo hello | esker stream append my-basin/orders
  esker stream read my-basin/orders --follow")]
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

    #[command(flatten)]
    key: KeyArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Ls(ls::Args),
    Info(info::Args),
    Create(create::Args),
    Reconfigure(reconfigure::Args),
    Delete(delete::Args),
    Append(append::Args),
    Read(read::Args),
    Tail(tail::Args),
    CheckTail(check_tail::Args),
    Trim(trim::Args),
    Fence(fence::Args),
    Adopt(adopt::Args),
}

impl Command {
    /// What an interruption leaves behind.
    fn left(&self) -> &'static str {
        match self {
            Command::Ls(_)
            | Command::Info(_)
            | Command::Read(_)
            | Command::Tail(_)
            | Command::CheckTail(_) => "nothing was changed",
            Command::Reconfigure(_) => {
                "the settings may have been changed: `esker stream info` shows them"
            }
            Command::Delete(_) => {
                "if the question was answered, it may have been deleted: `esker stream ls` shows what exists"
            }
            Command::Fence(_) => {
                "the stream may have been fenced: `esker stream tail` shows its last records"
            }
            Command::Create(_) => "it may have been created: `esker stream ls` shows what exists",
            Command::Append(_) => {
                "records that were on their way may be in the stream: `esker stream check-tail` \
                 shows where it ends"
            }
            Command::Adopt(_) => {
                "the basin may have been created: `esker stream ls` shows what exists"
            }
            Command::Trim(_) => {
                "the stream may have been trimmed: `esker stream read` shows its head"
            }
        }
    }
}

pub fn run(args: Args, access: &AccessArgs) -> Result<(), Failure> {
    // One thread is enough: a command does one thing at a time, and reads its input on a separate thread.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::wrong("io", format!("starting the runtime: {e}")))?;
    let left = args.command.left();
    let follows = match &args.command {
        Command::Read(read) => read.follows(),
        Command::Tail(tail) => tail.follows(),
        _ => false,
    };
    interrupts::run_following(runtime, left, follows, async {
        let key = args.key.key()?;
        let remote = Remote::new(args.server, access)?;
        if let Command::Adopt(adopt) = args.command {
            return adopt::run(remote, adopt).await;
        }
        if let Command::Reconfigure(args) = &args.command {
            args.check()?;
        }
        let connection = Connection::open(&remote).await?.with_key(key);
        match args.command {
            Command::Ls(args) => ls::run(&connection, args).await,
            Command::Info(args) => info::run(&connection, args).await,
            Command::Create(args) => create::run(&connection, args).await,
            Command::Reconfigure(args) => reconfigure::run(&connection, args).await,
            Command::Delete(args) => delete::run(&connection, args).await,
            Command::Append(args) => append::run(&connection, args).await,
            Command::Read(args) => read::run(&connection, args).await,
            Command::Tail(args) => tail::run(&connection, args).await,
            Command::CheckTail(args) => check_tail::run(&connection, args).await,
            Command::Trim(args) => trim::run(&connection, args).await,
            Command::Fence(args) => fence::run(&connection, args).await,
            Command::Adopt(_) => Ok(()),
        }
    })
}
