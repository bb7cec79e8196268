//! `esker cluster trust`.

use esker_server::admin::cluster::ClusterChange;
use serde_json::json;

use crate::admin::Admin;
use crate::confirm::confirm;
use crate::failure::Failure;
use crate::output::print;
use crate::term::plain;

/// Name the right one of replicas that differ.
///
/// It needs the root token, where the server has one. For a partition with the problem `replicas_differ` whose replicas
/// cannot be told apart by a majority: two of three differ and the third is lost, or those that agree are copies of
/// one. The replica leads from then on if it can, others get its state again, and once more than half of the voters
/// have it, those that have another one stop for good. Find out first which is right: `esker cluster check` shows who
/// has the same, and a snapshot that was put before they differed can be restored and compared.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker cluster trust 1 n2
  esker cluster trust 0 3536847439 --yes")]
pub struct Args {
    /// The partition; 0 is the catalog
    #[arg(value_name = "PARTITION")]
    partition: u64,

    /// The number or the name of the node whose replica is right
    #[arg(value_name = "NODE")]
    node: String,

    /// Do not ask
    #[arg(long)]
    yes: bool,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(admin: &Admin, args: &Args) -> Result<(), Failure> {
    let question = format!(
        "The replica of partition {} on {} counts as the right one: replicas with another state stop for good.",
        args.partition,
        plain(&args.node)
    );
    confirm(&question, args.yes).await?;
    let partition = args.partition.to_string();
    let path = ["cluster", "partitions", &partition, "trust"];
    let done: ClusterChange = admin.post(&path, &json!({ "node": args.node })).await?;
    match args.json {
        true => {
            print(json!({ "partition": args.partition, "right": done.node, "name": done.name }))
        }
        false => print(format_args!(
            "the replica of {} counts as the right one of partition {partition}: `esker cluster check {partition}` shows \
             what follows",
            plain(&done.name)
        )),
    }
}
