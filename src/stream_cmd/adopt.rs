//! `esker stream adopt`.

use esker_server::admin::basins::{Adopt, Adopted};
use s2_sdk::types::BasinName;
use serde_json::json;

use crate::admin::Admin;
use crate::failure::Failure;
use crate::output::print;
use crate::remote::Remote;

/// Recreate a basin of which a restore brought back only the streams.
///
/// `esker status` then has the problem basin_unknown, with the id. The basin gets this id, the name that
/// you give, and default settings; its streams are there as they were.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker status                          shows the id: problem basin_unknown
  esker stream adopt my-basin 12
  esker stream ls my-basin")]
pub struct Args {
    /// The basin's name; its own, if it is known
    #[arg(value_name = "BASIN")]
    basin: BasinName,

    /// The basin's id
    #[arg(value_name = "ID")]
    id: u64,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(remote: Remote, args: Args) -> Result<(), Failure> {
    let admin = Admin::open(remote).await?;
    let path = ["basins", &args.basin, "adopt"];
    let adopted: Adopted = admin.post(&path, &Adopt { id: args.id }).await?;
    if args.json {
        print(json!({ "basin": adopted.basin, "id": adopted.id }))
    } else {
        print(format_args!(
            "basin {} has the streams of id {}",
            adopted.basin, adopted.id
        ))
    }
}
