//! `esker cluster remove`, `drain`, `activate` and `transfer-leader`.

use std::time::{Duration, Instant};

use esker_server::admin::cluster::{ClusterChange, ClusterMember, ClusterView};
use serde_json::{Value, json};

use super::MAY_BE_MADE;
use super::departure::{Standing, Timing, WaitArgs, Waited, settle};
use crate::admin::Admin;
use crate::confirm::confirm;
use crate::failure::Failure;
use crate::json;
use crate::output::print;
use crate::term::plain;

/// Remove a node from the cluster, for good, and wait until nothing counts on it.
///
/// It needs the root token, where the server has one. The node's number is never used again, and its data directory is
/// never let in again. Refused where a partition would lose its majority: all nodes are asked for that, and more than
/// half of the others have to answer.
///
/// A removal that is recorded takes effect in one partition after the other, within seconds, or within minutes where
/// another node has to catch up first. Until then a partition may need the node's vote, so do not stop the node before
/// this command has ended. Standard error has what it waits for. Asking again is no error: the command waits again.
///
/// Exits with 1 if partitions still count on the node at the end of the time (`removal_incomplete`): the message names
/// them, and what each waits for.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker cluster remove n2
  esker cluster remove 3536847439 --yes
  esker cluster remove n2 --yes --json | jq .pending")]
pub struct RemoveArgs {
    /// Its number or its name; not the node that is asked
    #[arg(value_name = "NODE")]
    node: String,

    /// Do not ask
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    wait: WaitArgs,

    /// Print a JSON object: `pending` has the partitions that still count on the node, and is absent with --no-wait
    #[arg(long)]
    json: bool,
}

/// Move what a node leads to other nodes, and its votes where another node can take them, and wait for that.
///
/// It stays in the cluster and follows; `esker cluster activate` lets it lead and vote again. Where no other node can
/// take its vote, it keeps it, and that is no error: the result names these partitions.
///
/// To wait, it needs a token that may read the status. Exits with 1 if the node still leads something at the end of the
/// time, or has a vote that another node is to take (`drain_incomplete`).
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker cluster drain n2 && esker cluster status
  esker cluster drain n2 --json | jq .keeps_vote")]
pub struct DrainArgs {
    /// Its number or its name
    #[arg(value_name = "NODE")]
    node: String,

    #[command(flatten)]
    wait: WaitArgs,

    /// Print a JSON object: `pending` has the partitions that still count on the node, `keeps_vote` those in which it
    /// keeps its vote; absent with --no-wait
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
    if !args.wait.no_wait {
        check_is_another(&view(admin).await?, &args.node)?;
    }
    let question = format!(
        "The node {} is removed from the cluster for good: its data directory is never let in again.",
        plain(&args.node)
    );
    confirm(&question, args.yes).await?;
    let departure = Departure {
        admin,
        wait: &args.wait,
        change: "remove",
        code: "removal_incomplete",
        standing: Standing::of_removed,
    };
    let (done, waited) = departure.run(&args.node).await?;
    let node = format!("node {} ({})", plain(&done.name), done.node);
    let mut document = json!({ "removed": done.node, "name": done.name });
    let Some(waited) = waited else {
        return show(args.json, &document, Ok(()), || {
            format!(
                "{node} is removed: keep it running until `esker cluster status` shows it in no partition"
            )
        });
    };
    document["pending"] = json!(waited.standing().map(|it| &it.pending));
    let advice = format!(
        "keep it running, and do what the reasons say; `esker cluster remove {} --yes` waits again",
        done.node
    );
    let result = departure.result(&format!("{node} is removed"), &waited, advice);
    show(args.json, &document, result, || {
        format!("{node} is removed, and no partition counts on it any more")
    })
}

pub async fn drain(admin: &Admin, args: &DrainArgs) -> Result<(), Failure> {
    if !args.wait.no_wait {
        // It may be that it cannot be waited for: nothing was changed then.
        view(admin).await?;
    }
    let departure = Departure {
        admin,
        wait: &args.wait,
        change: "drain",
        code: "drain_incomplete",
        standing: Standing::of_drained,
    };
    let (done, waited) = departure.run(&args.node).await?;
    let node = format!("node {} ({})", plain(&done.name), done.node);
    let mut document = json!({ "draining": done.node, "name": done.name });
    let Some(waited) = waited else {
        return show(args.json, &document, Ok(()), || {
            format!("{node} is being drained: `esker cluster status` shows what it still leads")
        });
    };
    let standing = waited.standing();
    document["pending"] = json!(standing.map(|it| &it.pending));
    document["keeps_vote"] = json!(standing.map(|it| &it.keeps_vote));
    let advice = format!(
        "do what the reasons say; `esker cluster drain {0}` waits again, and `esker cluster activate {0}` lets it stay",
        done.node
    );
    let result = departure.result(&format!("{node} is being drained"), &waited, advice);
    show(args.json, &document, result, || {
        let kept = standing.iter().flat_map(|it| &it.keeps_vote);
        let kept: Vec<_> = kept.map(u64::to_string).collect();
        match &kept[..] {
            [] => format!("{node} leads nothing, and votes nowhere"),
            _ => format!(
                "{node} leads nothing. It keeps its vote, because no other node can take it, in partition {}",
                kept.join(", ")
            ),
        }
    })
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

/// A result as JSON, or, if there is no failure, as a text.
fn show(
    json: bool,
    document: &Value,
    result: Result<(), Failure>,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    match json {
        true => json::print_line_with(document, result),
        false => result.and_then(|()| print(text())),
    }
}

/// What to do where the node that is asked cannot show what is waited for.
const ASK_ANOTHER: &str = "ask another node with --server; or do not wait, with --no-wait";

/// How long the node that is asked may take to show the cluster: it waits 2 s for other nodes.
const VIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// The cluster, as the node that is asked shows it now.
///
/// # Errors
///
/// The node does not answer in time; or it does not belong to the cluster, and so does not learn what becomes of the
/// partitions.
async fn view(admin: &Admin) -> Result<ClusterView, Failure> {
    let shown = admin.get::<ClusterView>(&["cluster"], &[]);
    let Ok(view) = tokio::time::timeout(VIEW_TIMEOUT, shown).await else {
        let seconds = VIEW_TIMEOUT.as_secs();
        let message = format!("{} has not answered within {seconds} s", admin.address());
        return Err(Failure::unreachable("unreachable", message));
    };
    let view = view?;
    match &view.refused {
        None => Ok(view),
        Some(why) => {
            let why = plain(why);
            let message = format!("the cluster does not take the node that is asked: {why}");
            Err(Failure::wrong("cluster_refused", message).advise(ASK_ANOTHER))
        }
    }
}

/// Refuses to remove the node that is asked: once it is removed, it does not learn what becomes of the partitions.
fn check_is_another(view: &ClusterView, said: &str) -> Result<(), Failure> {
    let is_asked = |node: &&ClusterMember| {
        node.node == view.node && (node.name == said || node.node.to_string() == said)
    };
    match view.nodes.iter().find(is_asked) {
        None => Ok(()),
        Some(asked) => {
            let message = format!(
                "node {} is the one that is asked, and once it is removed it does not learn whether partitions still \
                 count on it; nothing was changed",
                plain(&asked.name)
            );
            Err(Failure::usage("usage", message).advise(ASK_ANOTHER))
        }
    }
}

/// A node leaves: the change is recorded, and then waited for.
struct Departure<'a> {
    admin: &'a Admin,
    wait: &'a WaitArgs,
    /// As the admin API names it.
    change: &'static str,
    /// The error code if the time ends before.
    code: &'static str,
    standing: fn(&ClusterView, u64) -> Standing,
}

impl Departure<'_> {
    /// Records the change, and waits, if that is wanted.
    async fn run(&self, said: &str) -> Result<(ClusterChange, Option<Waited>), Failure> {
        let timeout = Duration::from_secs(self.wait.timeout);
        let deadline = Instant::now() + timeout;
        let recorded = of_node(self.admin, said, self.change);
        let done = match tokio::time::timeout(timeout, recorded).await {
            Ok(done) => done?,
            Err(_) => {
                let why = format!(
                    "the server has not answered within {} s; {MAY_BE_MADE}",
                    timeout.as_secs()
                );
                return Err(Failure::wrong(self.code, why));
            }
        };
        if self.wait.no_wait {
            return Ok((done, None));
        }
        let look = async || Ok((self.standing)(&view(self.admin).await?, done.node));
        let name = plain(&done.name);
        let report = |text: &str| remark!("Waiting until no partition counts on {name}: {text}");
        let waited = settle(deadline, Timing::DEFAULT, look, report).await;
        Ok((done, Some(waited)))
    }

    /// What a wait has come to; `made` is what was recorded before it.
    fn result(&self, made: &str, waited: &Waited, advice: String) -> Result<(), Failure> {
        let seconds = self.wait.timeout;
        let message = match waited {
            Waited::Settled(_) => return Ok(()),
            Waited::TimedOut(standing) => format!(
                "{made}, but after {seconds} s partitions still count on it: {}",
                standing.describe()
            ),
            Waited::Unknown(why) => format!(
                "{made}, but it is not known after {seconds} s whether partitions still count on it: {}",
                plain(why)
            ),
        };
        Err(Failure::wrong(self.code, message).advise(advice))
    }
}
