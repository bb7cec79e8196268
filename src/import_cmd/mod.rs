//! `esker import s2`: basins, streams and records of another S2 server.
//!
//! | module | what it holds |
//! |---|---|
//! | [`basins`] | which basins and streams there are, and their creation with the same settings |
//! | [`stream`] | one stream: what is missing, copying, settings |
//! | [`records`] | reads and appends of one stream |
//! | [`front`] | the positions before a stream's first record |
//! | [`verify`] | comparison of all records of both streams |
//!
//! Nothing is remembered beside the streams: where a copy continues follows from the tail of the copy. Each
//! append has the condition that the tail is where the import left it, so a second import, or another client,
//! fails it instead of mixing records.

mod basins;
mod front;
mod records;
mod stream;
mod verify;

use clap::Subcommand;
use s2_sdk::types::BasinName;

use crate::encryption_key::KeyArgs;
use crate::failure::Failure;
use crate::interrupts;
use crate::remote::{AccessArgs, Remote};
use crate::server_address::{DEFAULT_SERVER, SERVER_VARIABLE, ServerAddress};
use crate::stream_cmd::connection::Connection;

/// What an interruption leaves behind.
const LEFT: &str = "what was copied is there; run it again to continue";

/// Copy what another server holds.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    S2(S2Args),
}

/// Copy basins, streams and records of a server of the S2 API, such as s2-lite.
///
/// Records keep their sequence numbers, timestamps and headers, and streams their settings and fencing tokens.
/// It can be run again at any time: it continues where it ended, and copies what has come since. After each
/// stream, all records of both servers are compared.
///
/// The access token of the source comes from --source-token-file or S2_ACCESS_TOKEN, that of this server from
/// --token-file or ESKER_TOKEN.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker import s2 http://127.0.0.1:8080 --dry-run
  esker import s2 http://127.0.0.1:8080
  esker import s2 http://127.0.0.1:8080 --basin my-basin --verify")]
struct S2Args {
    /// The server to copy from
    #[arg(value_name = "URL")]
    source: ServerAddress,

    /// Address of the server to copy to
    #[arg(
        long,
        env = SERVER_VARIABLE,
        hide_env_values = true,
        value_name = "URL",
        default_value = DEFAULT_SERVER
    )]
    server: ServerAddress,

    /// Only this basin; can be given several times
    #[arg(long, value_name = "BASIN")]
    basin: Vec<BasinName>,

    /// Only show what would be copied
    #[arg(long, conflicts_with = "verify")]
    dry_run: bool,

    /// Copy nothing: only compare what both servers hold
    #[arg(long)]
    verify: bool,

    /// Most positions before a stream's first record that are filled, so that records keep theirs
    #[arg(long, value_name = "N", default_value_t = front::MAX_FRONT)]
    max_front: u64,

    /// File with the access token of the source [env: S2_ACCESS_TOKEN, the token itself]
    #[arg(long, value_name = "FILE")]
    source_token_file: Option<std::path::PathBuf>,

    /// Print a JSON object for each stream
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    key: KeyArgs,
}

/// What an import does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Copy,
    DryRun,
    Verify,
}

/// Both servers, and how streams are copied.
struct Import {
    source: Connection,
    target: Connection,
    mode: Mode,
    max_front: u64,
    json: bool,
}

pub fn run(args: Args, access: &AccessArgs) -> Result<(), Failure> {
    let Command::S2(args) = args.command;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::wrong("io", format!("starting the runtime: {e}")))?;
    let left = match args.dry_run || args.verify {
        true => "nothing was changed",
        false => LEFT,
    };
    interrupts::run(runtime, left, async {
        if args.source == args.server {
            return Err(Failure::usage(
                "usage",
                "the server to copy from is the one to copy to: name the other with --server",
            ));
        }
        let source_access = AccessArgs {
            token_file: args.source_token_file.clone(),
            ..access.clone()
        };
        // Neither server gets the token of the other.
        let source_token = source_access.token_of(&["S2_ACCESS_TOKEN"])?;
        let target_token = access.token_of(&["ESKER_TOKEN"])?;
        let (source_trust, target_trust) =
            (access.trust(&args.source)?, access.trust(&args.server)?);
        let source = Remote::with(args.source, source_token, source_trust);
        let target = Remote::with(args.server, target_token, target_trust);
        let key = args.key.key()?;
        let import = Import {
            source: Connection::open(&source).await?.with_key(key.clone()),
            target: Connection::open(&target).await?.with_key(key),
            mode: match (args.dry_run, args.verify) {
                (true, _) => Mode::DryRun,
                (_, true) => Mode::Verify,
                _ => Mode::Copy,
            },
            max_front: args.max_front,
            json: args.json,
        };
        import.run(&args.basin).await
    })
}
