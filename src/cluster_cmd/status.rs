//! `esker cluster status`.

use std::collections::BTreeMap;

use esker_server::admin::cluster::{
    ClusterGroup, ClusterMember, ClusterView, GroupMembers, MemberState, RemovedMember,
    ReplicaFetch,
};

use time::format_description::well_known::Rfc3339;

use crate::admin::Admin;
use crate::failure::Failure;
use crate::output::print;
use crate::snapshot_cmd::render::{print_json, table};
use crate::term::{bytes, kept_log, plain};

/// Removed nodes that the tables show; `--json` has up to 64.
const MAX_REMOVED: usize = 3;

/// Show the nodes of the cluster, who leads each partition, and how far each replica is.
///
/// Nodes become voters by themselves as soon as they have caught up, so there is no command for that. The lag of
/// a replica is the number of entries that it has not applied yet. While the voters of a partition change, both
/// those before and those after the change are shown; what a change waits for is shown with it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker cluster status
  esker cluster status --json | jq '.nodes[] | select(.unreachable)'
  esker cluster status --json | jq '.removed[] | {name, removed_at}'")]
pub struct Args {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub async fn run(admin: &Admin, args: &Args) -> Result<(), Failure> {
    let view: ClusterView = admin.get(&["cluster"], &[]).await?;
    match args.json {
        true => print_json(&view),
        false => print(tables(&view).trim_end()),
    }
}

/// Nodes and partitions, as tables.
pub fn tables(view: &ClusterView) -> String {
    let nodes: Vec<_> = view.nodes.iter().map(|node| node_row(node, view)).collect();
    let names: BTreeMap<u64, &str> = view
        .nodes
        .iter()
        .map(|node| (node.node, node.name.as_str()))
        .collect();
    let row = |of| partition_row(of, &names);
    let partitions: Vec<_> = view.partitions.iter().map(row).collect();
    let head = [
        "node", "name", "state", "leads", "clients", "peers", "zone", "",
    ];
    let refused = view.refused.as_ref().map_or_else(String::new, |why| {
        let why = plain(why);
        format!("the cluster does not take node {}: {why}\n\n", view.node)
    });
    format!(
        "{refused}{}{}\n{}",
        table(&head, &nodes, &[0, 3]),
        removed(view),
        table(&["partition", "leader", "replicas"], &partitions, &[0])
    )
}

/// The nodes that were removed last.
fn removed(view: &ClusterView) -> String {
    if view.removed.is_empty() {
        return String::new();
    }
    let one = |of: &RemovedMember| {
        let at = of.removed_at.and_then(|at| at.format(&Rfc3339).ok());
        let when = match (at, of.given_up) {
            (Some(at), _) => format!("at {at}"),
            (None, true) => "given up after a loss".to_owned(),
            (None, false) => "when was not recorded".to_owned(),
        };
        format!("{} ({}) {when}", plain(&of.name), of.node)
    };
    let shown: Vec<String> = view.removed.iter().take(MAX_REMOVED).map(one).collect();
    let more = match view.removed_count.saturating_sub(shown.len() as u64) {
        0 => String::new(),
        more => format!("; and {more} more, see --json"),
    };
    format!("\nremoved: {}{more}\n", shown.join("; "))
}

fn node_row(node: &ClusterMember, view: &ClusterView) -> Vec<String> {
    let state = match node.state {
        MemberState::Joining => "joining",
        MemberState::Active => "active",
        MemberState::Draining => "draining",
        MemberState::Removed => "removed",
    };
    let remark = match (&node.unreachable, node.address_answers_as) {
        (Some(why), _) => format!("does not answer: {}", plain(why)),
        (None, Some(other)) => format!("its address answers as node {other}"),
        (None, None) if node.node == view.node => "this node".to_owned(),
        (None, None) => String::new(),
    };
    let zone = node.zone.as_deref().unwrap_or("–");
    vec![
        node.node.to_string(),
        plain(&node.name),
        state.to_owned(),
        match node.unreachable {
            Some(_) => "?".to_owned(),
            None => node.leads.to_string(),
        },
        plain(&node.client_address),
        plain(&node.peer_address),
        plain(zone),
        remark,
    ]
}

/// `, fetches 1.20 GiB of 4.00 GiB at 60.0 MiB/s`.
fn fetching(fetch: &ReplicaFetch) -> String {
    let (done, total) = (bytes(fetch.bytes_done), bytes(fetch.bytes_total));
    let how = match fetch {
        ReplicaFetch {
            waits_for_space: true,
            ..
        } => "and waits for space on its disk".to_owned(),
        ReplicaFetch {
            installing: true, ..
        } => "and installs it".to_owned(),
        _ => format!("at {}/s", bytes(fetch.bytes_per_second)),
    };
    format!(", fetches {done} of {total} {how}")
}

/// What is under way with the members of a partition, and what keeps it from being done.
fn members(members: &GroupMembers, names: &BTreeMap<u64, &str>) -> Vec<String> {
    let named = |ids: &[u64]| {
        let name = |id: &u64| {
            names
                .get(id)
                .map_or_else(|| id.to_string(), |name| plain(name))
        };
        ids.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    let mut shown = Vec::new();
    if !members.voters_before.is_empty() {
        let (before, after) = (named(&members.voters_before), named(&members.voters));
        shown.push(format!("voters change from {before} to {after}"));
    } else if members.unconfirmed {
        shown.push("a majority of the voters has not confirmed their last change".to_owned());
    }
    if let Some(kept) = &members.kept_for_absent {
        let (log, nodes) = (kept_log(kept.entries, kept.bytes), named(&kept.nodes));
        shown.push(format!("keeps {log} of the log for {nodes} (away)"));
    }
    if let Some(waits) = &members.waits {
        let (why, seconds) = (plain(&waits.why), waits.seconds);
        shown.push(format!("for {seconds} s: {why}"));
    }
    shown
}

fn partition_row(of: &ClusterGroup, names: &BTreeMap<u64, &str>) -> Vec<String> {
    let replicas = of.replicas.iter().map(|replica| {
        let mut text = format!("{} {}", plain(&replica.name), plain(&replica.role));
        if let Some(lag) = replica.lag.filter(|lag| *lag > 0) {
            text += &format!(", lags by {lag}");
        }
        if let Some(fetch) = &replica.fetching {
            text += &fetching(fetch);
        }
        if let Some(why) = &replica.halted {
            text += &format!(", halted: {}", plain(why));
        }
        text
    });
    let changes = of.members.iter().flat_map(|of| members(of, names));
    vec![
        of.partition.to_string(),
        of.leader_name
            .as_deref()
            .map_or_else(|| "none known".to_owned(), plain),
        replicas.chain(changes).collect::<Vec<_>>().join("; "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_with_the_members_of_a_partition_is_shown_behind_its_replicas() {
        let of = |more: serde_json::Value| {
            let mut all = serde_json::json!({
                "voters": [1, 2, 4], "voters_before": [], "learners": [], "waits": null,
            });
            let (all_of, more) = (all.as_object_mut().unwrap(), more);
            all_of.extend(more.as_object().unwrap().clone());
            let members_of: GroupMembers = serde_json::from_value(all).unwrap();
            let names = BTreeMap::from([(1, "n1"), (2, "n2")]);
            members(&members_of, &names)
        };
        // As an earlier release answers.
        assert!(of(serde_json::json!({})).is_empty());
        assert_eq!(
            of(serde_json::json!({ "voters_before": [1, 2], "unconfirmed": true })),
            ["voters change from n1, n2 to n1, n2, 4"]
        );
        assert_eq!(
            of(serde_json::json!({ "unconfirmed": true })),
            ["a majority of the voters has not confirmed their last change"]
        );
        let kept = serde_json::json!({ "entries": 1204, "bytes": 3 << 20, "nodes": [2, 4] });
        assert_eq!(
            of(serde_json::json!({ "kept_for_absent": kept })),
            ["keeps 1,204 entries (3.00 MiB) of the log for n2, 4 (away)"]
        );
    }

    #[test]
    fn the_nodes_that_were_removed_last_are_shown_with_the_time() {
        let of = |node, removed_at: Option<i64>, given_up| RemovedMember {
            node,
            name: format!("n{node}"),
            removed_at: removed_at.map(|at| time::OffsetDateTime::from_unix_timestamp(at).unwrap()),
            given_up,
        };
        let mut view = ClusterView {
            node: 1,
            refused: None,
            nodes: Vec::new(),
            removed: Vec::new(),
            removed_count: 0,
            partitions: Vec::new(),
        };
        assert_eq!(removed(&view), "");
        view.removed = vec![
            of(4, Some(1_500_000_000), false),
            of(3, None, true),
            of(2, None, false),
            of(5, None, false),
        ];
        view.removed_count = 4;
        assert_eq!(
            removed(&view),
            "\nremoved: n4 (4) at 2017-07-14T02:40:00Z; n3 (3) given up after a loss; n2 (2) when was not recorded; and 1 more, see --json\n"
        );
    }
}
