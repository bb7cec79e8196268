//! `esker cluster recover`.

use std::path::PathBuf;

use esker_server::give_up_others;
use serde_json::json;

use crate::confirm::confirm;
use crate::failure::Failure;
use crate::output::print;
use crate::term::plain;

/// Let a stopped node go on alone, after a majority of its cluster was lost for good.
///
/// Run it on the node that has most, with all others stopped: what they acknowledged and this node does not have is
/// lost, and none of them may run again. The node's next start begins new lineages, in which no sequence number is
/// given out twice. Then new nodes can join it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker cluster recover /var/lib/esker
  esker cluster recover /var/lib/esker --yes")]
pub struct Args {
    /// Its data directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Go on although a replica is known to differ from the others': with what the repository and the log have of the
    /// partition, and only where that is not all, with the replica as it is
    #[arg(long)]
    accept_diverged: bool,

    /// Do not ask
    #[arg(long)]
    yes: bool,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(args: &Args) -> Result<(), Failure> {
    let dir = args.dir.display().to_string();
    let question = format!(
        "The node in {} goes on alone, and the other nodes of its cluster are given up for good: what they have \
         acknowledged and this one does not have is lost.",
        plain(&dir)
    );
    confirm(&question, args.yes).await?;
    let node = give_up_others(&args.dir, args.accept_diverged)
        .map_err(|error| Failure::wrong(error.code(), error.to_string()))?;
    match args.json {
        true => print(json!({ "node": node, "data_dir": dir })),
        false => print(format!(
            "Node {node} goes on alone: start it as before. The others must not run again; their machines can join \
             with empty data directories. Issued access tokens are suspended from then on: revoke those that must not \
             be valid, then run `esker token confirm` with the root token.",
        )),
    }
}
