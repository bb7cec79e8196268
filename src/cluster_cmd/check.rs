//! `esker cluster check`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use esker_server::admin::cluster::{
    CheckBegun, CheckOutcome, ClusterGroup, ClusterView, ReplicaCheck,
};
use serde::Serialize;
use serde_json::json;

use crate::admin::Admin;
use crate::failure::Failure;
use crate::json;
use crate::output::print;
use crate::snapshot_cmd::render::table;
use crate::term::plain;

/// How often the result is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Compare the replicas of partitions.
///
/// Each node computes a digest of what it has, as of the same entry of the log. A replica that differs from the
/// majority stops, and its node has to be replaced. Every replica is read whole, at the rate of
/// `cluster.check-rate`; nodes do that by themselves at intervals of `cluster.check-interval`. If the leadership of a
/// partition moves meanwhile, the next leader goes on, and the command waits for that.
///
/// Exits with 1 if replicas differ, or could not be compared.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker cluster check
  esker cluster check 3 --json | jq .partitions[].check.outcome")]
pub struct Args {
    /// The partition, 0 for the catalog; without it, all of them
    #[arg(value_name = "PARTITION")]
    partition: Option<u64>,

    /// Seconds to wait for the results
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,

    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result for a partition.
#[derive(Serialize)]
struct Checked {
    partition: u64,
    /// Absent if there is none.
    check: Option<ReplicaCheck>,
    /// Why there is none.
    failed: Option<String>,
}

pub async fn run(admin: &Admin, args: &Args) -> Result<(), Failure> {
    let view: ClusterView = admin.get(&["cluster"], &[]).await?;
    let noted = |of: &ClusterGroup| of.check.as_ref().map_or(0, |check| check.noted_at);
    let before: BTreeMap<u64, u64> = view
        .partitions
        .iter()
        .filter(|of| args.partition.is_none_or(|wanted| wanted == of.partition))
        .map(|of| (of.partition, noted(of)))
        .collect();
    let wanted: Vec<u64> = match args.partition {
        Some(partition) => vec![partition],
        None => before.keys().copied().collect(),
    };
    for partition in &wanted {
        let partition = partition.to_string();
        let path = ["cluster", "partitions", &partition, "check"];
        let _: CheckBegun = admin.post(&path, &json!({})).await?;
    }
    let until = Instant::now() + Duration::from_secs(args.timeout);
    let mut done: BTreeMap<u64, Checked> = BTreeMap::new();
    while done.len() < wanted.len() {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let is_over = Instant::now() >= until;
        let view: ClusterView = admin.get(&["cluster"], &[]).await?;
        for of in &view.partitions {
            let (partition, Some(before)) = (of.partition, before.get(&of.partition)) else {
                continue;
            };
            if done.contains_key(&partition) {
                continue;
            }
            let is_new = noted(of) > *before;
            let failed = match (&of.check_failed, is_over) {
                _ if is_new => None,
                (Some(why), _) if !of.checking => Some(why.clone()),
                (_, true) => Some(format!("there is no result after {} s", args.timeout)),
                _ => continue,
            };
            let check = of.check.clone().filter(|_| is_new);
            let checked = Checked {
                partition,
                check,
                failed,
            };
            done.insert(partition, checked);
        }
    }
    show(&done, &view, args.json)
}

fn show(done: &BTreeMap<u64, Checked>, view: &ClusterView, json: bool) -> Result<(), Failure> {
    let done: Vec<&Checked> = done.values().collect();
    let is_equal = |it: &&&Checked| {
        let check = it.check.as_ref();
        check.is_some_and(|check| check.outcome == CheckOutcome::Equal && !check.undecided)
    };
    let equal = done.iter().filter(is_equal).count();
    let result = match equal == done.len() {
        true => Ok(()),
        false => Err(Failure::wrong(
            "replicas_not_equal",
            format!(
                "of {} partitions, the replicas of {} are not known to be equal",
                done.len(),
                done.len() - equal
            ),
        )),
    };
    if json {
        return json::print_with(&json!({ "partitions": done }), result);
    }
    let rows: Vec<_> = done.iter().map(|it| row(it, view)).collect();
    print(
        table(
            &["partition", "LSN", "replicas", "result"],
            &rows,
            &[0, 1, 2],
        )
        .trim_end(),
    )?;
    result
}

/// Which nodes have the same, and which of them are copies.
fn states(check: &ReplicaCheck, name: impl Fn(&u64) -> String) -> String {
    let mut states: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for of in &check.digests {
        let copy = match &of.copy_of {
            None => String::new(),
            Some(0) => " (its origin is not known)".to_owned(),
            Some(origin) => format!(" (a copy of {}'s)", name(origin)),
        };
        let same = states.entry(&of.digest).or_default();
        same.push(format!("{}{copy}", name(&of.node)));
    }
    let states = states.into_values().map(|same| same.join(" = "));
    states.collect::<Vec<_>>().join("; ")
}

fn row(checked: &Checked, view: &ClusterView) -> Vec<String> {
    let name = |node: &u64| {
        let known = view.nodes.iter().find(|it| it.node == *node);
        known.map_or_else(|| node.to_string(), |it| plain(&it.name))
    };
    let (lsn, replicas, result) = match &checked.check {
        None => {
            let why = checked.failed.as_deref().unwrap_or_default();
            ("–".to_owned(), "–".to_owned(), plain(why))
        }
        Some(check) => {
            let result = match check.outcome {
                CheckOutcome::Equal if check.undecided => format!(
                    "equal, but another one differs that has not answered: {}",
                    states(check, name)
                ),
                CheckOutcome::Equal => "equal".to_owned(),
                CheckOutcome::Undecided => format!(
                    "they differ, and it is not known which is wrong: {}",
                    states(check, name)
                ),
                CheckOutcome::Diverged => {
                    let names: Vec<_> = check.diverged.iter().map(name).collect();
                    format!("diverged and stopped: {}", names.join(", "))
                }
            };
            let replicas = check.digests.len().to_string();
            (check.lsn.to_string(), replicas, result)
        }
    };
    vec![checked.partition.to_string(), lsn, replicas, result]
}
