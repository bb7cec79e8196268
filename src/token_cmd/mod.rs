//! `esker token`: the access tokens of a server.
//!
//! | module | what it holds |
//! |---|---|
//! | [`scope`] | what a token allows: on the wire, and for people |
//! | [`permissions`] | the arguments that become a scope |
//! | [`issue`], [`list`], [`revoke`], [`confirm`] | a command each |
//!
//! Tokens are issued, listed and revoked with the S2 API's operations; `confirm` is one of the admin API.

mod confirm;
mod issue;
mod list;
mod permissions;
mod revoke;
mod scope;

use clap::Subcommand;

use crate::admin::Admin;
use crate::failure::Failure;
use crate::interrupts;
use crate::remote::{AccessArgs, Remote};
use crate::server_address::{DEFAULT_SERVER, SERVER_VARIABLE, ServerAddress};

/// Issue, list and revoke the access tokens of a server.
///
/// A token allows what its scope says: operations, on the basins, streams and keys that it names. It is
/// issued by the holder of another one, and never allows more than that. The first is the root token, which
/// the server's configuration names.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker token issue worker --basins =my-basin --streams jobs/ --op-group-perms stream=rw > worker.token
  esker token issue reader --basins '' --streams '' --ops read,check-tail --expires-in 30d
  esker token list
  esker token revoke worker")]
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

#[derive(Subcommand)]
enum Command {
    Issue(Box<issue::Args>),
    List(list::Args),
    Revoke(revoke::Args),
    Confirm(confirm::Args),
}

impl Command {
    /// What an interruption leaves behind.
    fn left(&self) -> &'static str {
        match self {
            Command::Issue(_) => {
                "the token may have been issued, and its text is lost then: `esker token list` shows it, \
                 `esker token revoke` makes room for another"
            }
            Command::List(_) => "nothing was changed",
            Command::Revoke(_) => {
                "the token may have been revoked: `esker token list` shows those that are valid"
            }
            Command::Confirm(_) => {
                "suspended tokens may be valid again: `esker token list` shows which are suspended"
            }
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
    interrupts::run(runtime, left, async {
        // Arguments that cannot be meant are refused before the server is asked.
        let request = match &args.command {
            Command::Issue(args) => Some(args.request()?),
            _ => None,
        };
        let admin = Admin::open(Remote::new(args.server, access)?).await?;
        match (args.command, request) {
            (Command::Issue(args), Some(request)) => {
                issue::run(&admin, &args, &request, left).await
            }
            (Command::List(args), _) => list::run(&admin, args).await,
            (Command::Revoke(args), _) => revoke::run(&admin, args).await,
            (Command::Confirm(args), _) => confirm::run(&admin, args).await,
            // A request was made above.
            (Command::Issue(_), None) => Ok(()),
        }
    })
}
