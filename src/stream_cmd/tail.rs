//! `esker stream tail`.

use super::connection::Connection;
use super::read::{self, Format};
use super::target::{self, StreamTarget};
use crate::failure::Failure;

/// Records that are printed by default.
const RECORDS: u64 = 10;

/// Print the last records of a stream, and with --follow what comes next.
///
/// Records are printed as `esker stream read` prints them. `esker stream check-tail` shows where a stream
/// ends.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker stream tail my-basin/orders
  esker stream tail my-basin/orders -f
  esker stream tail my-basin/orders -n 100 --json")]
pub struct Args {
    /// The stream
    #[arg(value_name = "BASIN/STREAM", value_parser = target::stream)]
    stream: StreamTarget,

    /// How many records before the end [default: 10]
    #[arg(long, short = 'n', value_name = "COUNT")]
    lines: Option<u64>,

    /// Wait for what comes next, until Ctrl-C
    #[arg(long, short)]
    follow: bool,

    /// How records are printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,

    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

impl Args {
    /// Whether it runs until it is interrupted.
    pub fn follows(&self) -> bool {
        self.follow
    }
}

pub async fn run(connection: &Connection, args: Args) -> Result<(), Failure> {
    // In earlier releases, the command without options printed the tail.
    if args.lines.is_none() && !args.follow {
        remark!(
            "These are the last records; `esker stream check-tail {}` shows where the stream ends.",
            args.stream
        );
    }
    let last = args.lines.unwrap_or(RECORDS);
    let format = if args.json { Format::Json } else { args.format };
    read::run(
        connection,
        read::Args::tail(args.stream, last, args.follow, format),
    )
    .await
}
