//! `esker cluster remove`, `drain`, `activate` and `transfer-leader`.

use esker_server::admin::cluster::ClusterChange;
use serde_json::json;

use crate::admin::Admin;
use crate::confirm::confirm;
use crate::failure::Failure;
use crate::output::print;
use crate::term::plain;

/// Remove a node from the cluster, for good.
///
/// It needs the root token, where the server has one. The node's number is never used again, and its data directory is never let in again. Refused where a partition
/// would lose its majority: all nodes are asked for that, and more than half of the others have to answer.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker cluster remove n2
  esker cluster remove 3536847439 --yes")]
pub struct RemoveArgs {
    /// Its number or its name
    #[arg(value_name = "NODE")]
    node: String,

    /// Do not ask
    #[arg(long)]
    yes: bool,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Move what a node leads to other nodes, and its votes where another node can take them.
///
/// It stays in the cluster and follows; `esker cluster activate` lets it lead and vote again.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker cluster drain n2 && esker cluster status")]
pub struct NodeArgs {
    /// Its number or its name
    #[arg(value_name = "NODE")]
    node: String,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Let a node that was drained lead and vote again.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker cluster activate n2")]
pub struct ActivateArgs {
    /// Its number or its name
    #[arg(value_name = "NODE")]
    node: String,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Make another node lead a partition.
///
/// It has to vote and to have caught up. The cluster spreads leaders by itself, and may move it again later.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker cluster transfer-leader 3 n1")]
pub struct LeaderArgs {
    /// The partition; 0 is the catalog
    #[arg(value_name = "PARTITION")]
    partition: u64,

    /// The number or the name of the node
    #[arg(value_name = "NODE")]
    to: String,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub async fn remove(admin: &Admin, args: &RemoveArgs) -> Result<(), Failure> {
    let question = format!(
        "The node {} is removed from the cluster for good: its data directory is never let in again.",
        plain(&args.node)
    );
    confirm(&question, args.yes).await?;
    let done = of_node(admin, &args.node, "remove").await?;
    shown(args.json, "removed", &done, "is removed")
}

pub async fn drain(admin: &Admin, args: &NodeArgs) -> Result<(), Failure> {
    let done = of_node(admin, &args.node, "drain").await?;
    shown(
        args.json,
        "draining",
        &done,
        "is being drained: `esker cluster status` shows what it still leads",
    )
}

pub async fn activate(admin: &Admin, args: &ActivateArgs) -> Result<(), Failure> {
    let done = of_node(admin, &args.node, "activate").await?;
    shown(args.json, "active", &done, "takes part again")
}

pub async fn transfer_leader(admin: &Admin, args: &LeaderArgs) -> Result<(), Failure> {
    let partition = args.partition.to_string();
    let path = ["cluster", "partitions", &partition, "leader"];
    let done: ClusterChange = admin.post(&path, &json!({ "to": args.to })).await?;
    match args.json {
        true => {
            print(json!({ "partition": args.partition, "leader": done.node, "name": done.name }))
        }
        false => print(format_args!(
            "{} leads partition {partition}",
            plain(&done.name)
        )),
    }
}

async fn of_node(admin: &Admin, node: &str, change: &str) -> Result<ClusterChange, Failure> {
    let path = ["cluster", "nodes", node, change];
    admin.post(&path, &json!({})).await
}

fn shown(json: bool, key: &str, done: &ClusterChange, what: &str) -> Result<(), Failure> {
    match json {
        true => print(json!({ key: done.node, "name": done.name })),
        false => print(format_args!(
            "node {} ({}) {what}",
            plain(&done.name),
            done.node
        )),
    }
}
