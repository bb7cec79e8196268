//! `esker cluster`: the nodes of a cluster, who leads what, and changes of both.
//!
//! | module | what it holds |
//! |---|---|
//! | [`status`] | nodes and partitions, as tables |
//! | [`change`] | removing, draining and activating nodes; transferring leaders |
//! | [`departure`] | what still counts on a node that leaves, and the wait until nothing does |
//! | [`check`] | comparing the replicas of partitions |
//! | [`trust`] | naming the right one of replicas that differ |
//! | [`secret`] | a secret for the nodes |
//! | [`recover`] | a stopped node goes on alone after the others were lost |
//! | [`trial`] | a cluster on this machine, to try it |
//! | [`formation`] | how its nodes become a cluster |
//! | [`trial_node`] | a node of it, as a child process |

mod change;
mod check;
mod departure;
pub mod formation;
mod recover;
mod secret;
mod status;
mod trial;
pub mod trial_node;
mod trust;

use clap::Subcommand;

use crate::admin::Admin;
use crate::failure::Failure;
use crate::interrupts;
use crate::remote::{AccessArgs, Remote};
use crate::server_address::{DEFAULT_SERVER, SERVER_VARIABLE, ServerAddress};

/// Show and change the nodes of a cluster, or try one on this machine.
///
/// Any node of the cluster can be asked: it asks the others.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker cluster try
  esker cluster status --server http://127.0.0.1:7071
  esker cluster drain n2
  esker cluster transfer-leader 3 n1
  esker cluster check")]
pub struct Args {
    /// Address of a node
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

#[derive(Subcommand)]
enum Command {
    Status(status::Args),
    Remove(change::RemoveArgs),
    Drain(change::DrainArgs),
    Activate(change::ActivateArgs),
    TransferLeader(change::LeaderArgs),
    Check(check::Args),
    Trust(trust::Args),
    Recover(recover::Args),
    Secret(secret::Args),
    Try(trial::Args),
}

impl Args {
    /// The name of the command, if it prints no JSON.
    pub fn without_json(&self) -> Option<&'static str> {
        matches!(self.command, Command::Try(_)).then_some("cluster try")
    }
}

/// What an interruption of a change leaves behind.
const MAY_BE_MADE: &str = "the change may have been made: `esker cluster status` shows it";

pub fn run(args: Args, access: &AccessArgs) -> Result<(), Failure> {
    let left = match &args.command {
        Command::Secret(args) => return secret::run(args),
        Command::Recover(_) => "nothing was changed",
        Command::Try(args) => return trial::run(args),
        Command::Status(_) => "nothing was changed",
        Command::Check(_) => "the comparison goes on: `esker cluster status` shows its result",
        _ => MAY_BE_MADE,
    };
    // One thread is enough: a command does one thing at a time.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::wrong("io", format!("starting the runtime: {e}")))?;
    interrupts::run(runtime, left, async {
        if let Command::Recover(args) = &args.command {
            return recover::run(args).await;
        }
        let admin = Admin::open(Remote::new(args.server, access)?).await?;
        match args.command {
            Command::Status(args) => status::run(&admin, &args).await,
            Command::Remove(args) => change::remove(&admin, &args).await,
            Command::Drain(args) => change::drain(&admin, &args).await,
            Command::Activate(args) => change::activate(&admin, &args).await,
            Command::TransferLeader(args) => change::transfer_leader(&admin, &args).await,
            Command::Check(args) => check::run(&admin, &args).await,
            Command::Trust(args) => trust::run(&admin, &args).await,
            // They ask no server.
            Command::Recover(_) | Command::Secret(_) | Command::Try(_) => Ok(()),
        }
    })
}
