//! `esker stream delete`.

use s2_sdk::types::{DeleteBasinInput, DeleteStreamInput};
use serde_json::json;

use super::connection::Connection;
use super::target::{self, Target};
use crate::confirm::confirm;
use crate::failure::Failure;
use crate::output::print;

/// Delete a stream with its records, or a basin with all its streams, for good.
///
/// Readers and writers are refused at once; the space is given back later. The name of a basin can be used
/// again when that is done, that of a stream at once.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker stream delete my-basin/orders
  esker stream delete my-basin --yes")]
pub struct Args {
    /// The stream, or a basin
    #[arg(value_name = "BASIN[/STREAM]", value_parser = target::target)]
    target: Target,

    /// Do not ask before it is deleted
    #[arg(long)]
    yes: bool,

    /// Succeed also if there is none of that name
    #[arg(long)]
    if_exists: bool,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(connection: &Connection, args: Args) -> Result<(), Failure> {
    match &args.target {
        Target::Basin(basin) => {
            let asked = connection.asked_basin(basin);
            if !args.yes && !args.if_exists {
                let config = connection.account().get_basin_config(basin.clone()).await;
                config.map_err(|e| asked.request(&e))?;
            }
            let question = format!("Basin {basin} and all its streams will be gone for good.");
            confirm(&question, args.yes).await?;
            let input = DeleteBasinInput::new(basin.clone());
            let deleted = connection.account().delete_basin(input).await;
            let deleted = deleted.map_err(|e| asked.request(&e));
            let deleted = if_there(deleted, args.if_exists)?;
            match (args.json, deleted) {
                (true, _) => print(json!({ "basin": &**basin, "deleted": deleted })),
                (false, true) => print(format_args!("deleted basin {basin}")),
                (false, false) => print(format_args!("there is no basin {basin}")),
            }
        }
        Target::Stream(target) => {
            let asked = connection.asked_stream(target);
            if !args.yes && !args.if_exists {
                // This request creates no stream, even where the basin creates streams on read.
                let basin = connection.basin(&target.basin);
                let config = basin.get_stream_config(target.stream.clone()).await;
                config.map_err(|e| asked.request(&e))?;
            }
            let question = format!("Stream {target} and all its records will be gone for good.");
            confirm(&question, args.yes).await?;
            let input = DeleteStreamInput::new(target.stream.clone());
            let deleted = connection.basin(&target.basin).delete_stream(input).await;
            let deleted = deleted.map_err(|e| asked.request(&e));
            let deleted = if_there(deleted, args.if_exists)?;
            match (args.json, deleted) {
                (true, _) => print(json!({
                    "basin": &*target.basin,
                    "stream": &*target.stream,
                    "deleted": deleted,
                })),
                (false, true) => print(format_args!("deleted stream {target}")),
                (false, false) => print(format_args!("there is no stream {target}")),
            }
        }
    }
}

/// Whether something was deleted. If `need_not_be`, a missing object is no failure.
fn if_there(deleted: Result<(), Failure>, need_not_be: bool) -> Result<bool, Failure> {
    match deleted {
        Ok(()) => Ok(true),
        Err(failure)
            if need_not_be && matches!(failure.code, "basin_not_found" | "stream_not_found") =>
        {
            Ok(false)
        }
        Err(failure) => Err(failure),
    }
}
