//! Nodes and partitions: who leads, who lags, and what moves between nodes.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use axum::extract::{Query, State};
use axum::response::Response;
use esker_server::admin::cluster::{
    CheckOutcome, ClusterGroup, ClusterMember, ClusterReplica, ClusterView, GroupMembers,
    MemberState, ReplicaFetch,
};
use maud::{Markup, html};
use serde::Deserialize;
use time::OffsetDateTime;

use crate::Console;
use crate::access::{Viewer, Watch};
use crate::api_client::{ApiError, Caller, path};
use crate::layout::{
    Page, PageError, Section, commands, live as live_part, page as layout, page_links, table,
};
use crate::live::{Place, repeat};
use crate::shell;
use crate::words::{ago, bytes, count, entries, seconds, several, visible};

/// Partitions on a page.
const PAGE: usize = 100;
/// Cells of the table of partitions on a page: with many nodes, a page has fewer partitions.
const CELLS: usize = 800;
/// Transfers that are listed.
const TRANSFERS: usize = 50;
/// Entries that a replica may be behind without being marked.
const SMALL_LAG: u64 = 1000;

/// Which partitions.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Which {
    page: usize,
}

/// The page.
pub async fn page(
    State(console): State<Console>,
    Viewer(caller): Viewer,
    Query(which): Query<Which>,
) -> Page {
    let view = console
        .api
        .get::<ClusterView>(&caller, "/esker/v1/cluster")
        .await;
    let body = match view {
        Err(ApiError::Failed { code, message }) if code == "not_in_cluster" => html! {
            p { (message) }
            (commands("To try a cluster on this machine", &[("three nodes", "esker cluster try".into())]))
        },
        view => {
            let view = view?;
            let number = which.page.to_string();
            let source = path("/dashboard/live/cluster", &[("page", Some(&*number))]);
            let name = view.nodes.iter().find(|it| it.node != view.node);
            let name = name.map_or("NODE", |it| &it.name);
            let of_node = |command: &str| shell::command(command, &[], &[name]);
            html! {
                (live_part(&source, &render(&view, &which)))
                (commands("On the command line", &[
                    ("the same", "esker cluster status".into()),
                    ("move everything that a node leads away from it", of_node("esker cluster drain")),
                    ("let it take part again", of_node("esker cluster activate")),
                    ("let it lead a partition", shell::command("esker cluster transfer-leader", &[], &["1", name])),
                    ("remove it for good", of_node("esker cluster remove")),
                ]))
            }
        }
    };
    Ok(layout("Cluster", Section::Cluster, &caller, body))
}

/// What changes of it.
pub async fn live(
    State(console): State<Console>,
    watch: Watch,
    Query(which): Query<Which>,
) -> Result<Response, Response> {
    let place = Place::take(console, watch)?;
    Ok(repeat(place, move |console: Console, caller: Caller| {
        let which = which.clone();
        async move {
            let view: ClusterView = console.api.get(&caller, "/esker/v1/cluster").await?;
            Ok::<Markup, PageError>(render(&view, &which))
        }
    }))
}

fn render(view: &ClusterView, which: &Which) -> Markup {
    let now = OffsetDateTime::now_utc();
    let size = (CELLS / view.nodes.len().max(1)).clamp(1, PAGE);
    let pages = view.partitions.len().div_ceil(size).max(1);
    let number = which.page.min(pages - 1);
    let mut groups: Vec<&ClusterGroup> = view.partitions.iter().collect();
    groups.sort_by_cached_key(|group| (Reverse(trouble(group)), group.partition));
    let shown = groups.iter().skip(number * size).take(size);
    let partitions = html! { @for group in shown { (row(group, &view.nodes, now)) } };
    let names: Vec<String> = view.nodes.iter().map(|it| visible(&it.name)).collect();
    let mut headings = vec!["Partition"];
    headings.extend(names.iter().map(String::as_str));
    headings.extend(["Members", "Replicas compared"]);
    let nodes = html! { @for it in &view.nodes { (member(it, it.node == view.node)) } };
    html! {
        (banner(view))
        h2 { "Nodes" }
        (table("Nodes", &["Node", "State", "#Leads", "Clients", "Other nodes", "Zone"], nodes))
        (transfers(view))
        h2 { "Partitions" }
        (table("Partitions", &headings, partitions))
        (page_links("More partitions", pages, number, |at| path("/dashboard/cluster", &[("page", Some(&at.to_string()))])))
    }
}

/// How bad it is, the worst last.
fn trouble(group: &ClusterGroup) -> (bool, bool, usize, bool, bool) {
    let is_diverged = group
        .check
        .as_ref()
        .is_some_and(|it| it.outcome != CheckOutcome::Equal);
    let halted = group.replicas.iter().filter(|it| it.halted.is_some());
    let lag = group.replicas.iter().filter_map(|it| it.lag).max();
    let is_fetching = group.replicas.iter().any(|it| it.fetching.is_some());
    let waits = group.members.as_ref().and_then(|it| it.waits.as_ref());
    (
        group.leader.is_none(),
        is_diverged || waits.is_some_and(|it| it.problem),
        halted.count(),
        lag.unwrap_or(0) > SMALL_LAG,
        is_fetching,
    )
}

fn banner(view: &ClusterView) -> Markup {
    let of = |is: &dyn Fn(&ClusterGroup) -> bool| {
        view.partitions.iter().filter(|it| is(it)).count() as u64
    };
    let leaderless = of(&|it| it.leader.is_none());
    let halted = of(&|it| it.replicas.iter().any(|it| it.halted.is_some()));
    let away = view.nodes.iter().filter(|it| it.unreachable.is_some());
    let away = away.count() as u64;
    html! {
        @if let Some(why) = &view.refused {
            div.banner.bad role="alert" { span { strong { "The other nodes do not take this one: " } (visible(why)) } }
        }
        @match away + leaderless + halted {
            0 if view.refused.is_some() => "",
            0 => div.banner.good { strong { "All nodes answer, and every partition has a leader." } },
            _ => div.banner.bad role="alert" {
                span {
                    @if away > 0 { strong { (several(away, "node")) " without an answer. " } }
                    @if leaderless > 0 { strong { (several(leaderless, "partition")) " without a known leader. " } }
                    @if halted > 0 { strong { (several(halted, "partition")) " with a halted replica." } }
                }
            },
        }
    }
}

fn transfers(view: &ClusterView) -> Markup {
    let groups = view.partitions.iter();
    let all = groups.flat_map(|group| {
        let replicas = group.replicas.iter();
        replicas.filter_map(|it| Some((group.partition, it, it.fetching.as_ref()?)))
    });
    let all: Vec<(u64, &ClusterReplica, &ReplicaFetch)> = all.collect();
    let name = |node: u64| {
        let known = view.nodes.iter().find(|it| it.node == node);
        known.map_or_else(|| format!("node {node}"), |it| visible(&it.name))
    };
    let rows = html! {
        @for (partition, replica, fetch) in all.iter().take(TRANSFERS) {
            tr {
                th scope="row" { (partition) }
                td { (name(fetch.from)) " → " (visible(&replica.name)) }
                td.number { (count(fetch.lsn)) }
                td { (progress(fetch)) }
                td.number { (bytes(fetch.bytes_per_second)) "/s" }
                td { (time_left(fetch)) }
            }
        }
    };
    html! {
        h2 { "Transfers" }
        @match all.len() {
            0 => p { "No replica fetches a snapshot." },
            number => {
                (table("Transfers", &["Partition", "From and to", "#Up to LSN", "Progress", "#Rate", "Left"], rows))
                @if number > TRANSFERS { p { "and " (several((number - TRANSFERS) as u64, "more transfer")) } }
            }
        }
    }
}

fn progress(fetch: &ReplicaFetch) -> Markup {
    let (done, total) = (fetch.bytes_done.min(fetch.bytes_total), fetch.bytes_total);
    let percent = match total {
        0 => 0,
        total => u128::from(done) * 100 / u128::from(total),
    };
    html! {
        progress max=(total.max(1)) value=(done) aria-label={ (percent) " %" } {}
        " " (percent) " %, " (bytes(done)) " of " (bytes(total))
    }
}

fn time_left(fetch: &ReplicaFetch) -> String {
    let left = fetch.bytes_total.saturating_sub(fetch.bytes_done);
    match (
        fetch.installing,
        fetch.waits_for_space,
        fetch.bytes_per_second,
    ) {
        (true, ..) => "being installed".to_owned(),
        (_, true, _) => "waits for space on its disk".to_owned(),
        (.., 0) => "–".to_owned(),
        (.., rate) => seconds(left as f64 / rate as f64),
    }
}

fn member(it: &ClusterMember, is_this: bool) -> Markup {
    let state = match it.state {
        MemberState::Joining => "joining",
        MemberState::Active => "active",
        MemberState::Draining => "draining",
        MemberState::Removed => "removed",
    };
    html! {
        tr class=[it.unreachable.is_some().then_some("bad")] {
            th scope="row" { (visible(&it.name)) @if is_this { " (this one)" } }
            td { (state) @if let Some(why) = &it.unreachable { ", " strong.bad { "no answer: " (visible(why)) } } }
            td.number { (count(it.leads)) }
            td { (visible(&it.client_address)) }
            td {
                (visible(&it.peer_address))
                @if let Some(other) = it.address_answers_as { ", " strong.bad { "answers as node " (other) } }
            }
            td { @match &it.zone { Some(zone) => (visible(zone)), None => "–" } }
        }
    }
}

fn row(group: &ClusterGroup, nodes: &[ClusterMember], now: OffsetDateTime) -> Markup {
    let replicas: BTreeMap<u64, &ClusterReplica> =
        group.replicas.iter().map(|it| (it.node, it)).collect();
    html! {
        tr class=[group.leader.is_none().then_some("bad")] {
            th scope="row" { (group.partition) @if group.partition == 0 { " (catalog)" } }
            @for node in nodes {
                @match replicas.get(&node.node) {
                    None => td { "–" },
                    Some(it) => td class={ "replica " (it.role) } {
                        span.role { (it.role) } " " (count(it.applied))
                        @match it.lag {
                            Some(lag) if lag > SMALL_LAG => strong.lag { " −" (count(lag)) },
                            Some(lag) if lag > 0 => span.lag { " −" (count(lag)) },
                            _ => "",
                        }
                        @if it.fetching.is_some() { " fetches a snapshot" }
                        @if let Some(why) = &it.halted { " " strong.bad { "halted: " (visible(why)) } }
                    },
                }
            }
            td { @if let Some(of) = &group.members { (members(of, nodes)) } }
            td { (compared(group, now)) }
        }
    }
}

/// What is under way with the members of a partition, and what it waits for.
fn members(of: &GroupMembers, nodes: &[ClusterMember]) -> Markup {
    let name = |id: &u64| {
        let node = nodes.iter().find(|node| node.node == *id);
        node.map_or_else(|| id.to_string(), |node| visible(&node.name))
    };
    let names = |ids: &[u64]| ids.iter().map(name).collect::<Vec<_>>().join(", ");
    html! {
        @if !of.voters_before.is_empty() {
            "voters change from " (names(&of.voters_before)) " to " (names(&of.voters)) ". "
        } @else if of.unconfirmed {
            "a majority of the voters has not confirmed their last change. "
        }
        @if let Some(kept) = &of.kept_for_absent {
            "keeps " (entries(kept.entries)) " (" (bytes(kept.bytes)) ") of the log for " (names(&kept.nodes)) " (away). "
        }
        @if let Some(waits) = &of.waits {
            span.bad[waits.problem] { "for " (waits.seconds) " s: " (visible(&waits.why)) }
        }
    }
}

fn compared(group: &ClusterGroup, now: OffsetDateTime) -> Markup {
    html! {
        @match &group.check {
            None => "not yet",
            Some(check) => {
                @match check.outcome {
                    CheckOutcome::Equal if check.undecided => strong.bad { "undecided" },
                    CheckOutcome::Equal => "equal",
                    CheckOutcome::Diverged => strong.bad { "diverged" },
                    CheckOutcome::Undecided => strong.bad { "undecided" },
                }
                ", " (ago(check.at, now))
            }
        }
        @if group.checking { " (under way)" }
        @if let Some(why) = &group.check_failed { " " span.bad { "the last one failed: " (visible(why)) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch() -> ReplicaFetch {
        ReplicaFetch {
            from: 1,
            lsn: 77,
            bytes_done: 3 << 20,
            bytes_total: 4 << 20,
            bytes_per_second: 1 << 20,
            waits_for_space: false,
            installing: false,
        }
    }

    #[test]
    fn a_transfer_shows_its_progress_its_rate_and_what_it_waits_for() {
        let shown = progress(&fetch()).0;
        assert!(shown.contains("75 %, 3.00 MiB of 4.00 MiB"), "{shown}");
        assert_eq!(time_left(&fetch()), "1.00 s");
        let full = ReplicaFetch {
            waits_for_space: true,
            bytes_per_second: 0,
            ..fetch()
        };
        assert_eq!(time_left(&full), "waits for space on its disk");
        let nothing = ReplicaFetch {
            bytes_total: 0,
            bytes_done: 9,
            bytes_per_second: 0,
            ..fetch()
        };
        assert!(progress(&nothing).0.contains("0 %"));
        assert_eq!(time_left(&nothing), "–");
    }

    #[test]
    fn a_replica_that_fetches_is_listed_with_both_nodes_and_comes_first() {
        let node = |node: u64| {
            serde_json::json!({
                "node": node, "name": format!("<n{node}>"), "state": "active", "peer_address": "p",
                "client_address": "c", "zone": null, "unreachable": null, "leads": 1,
            })
        };
        let partition = |partition: u64| {
            let replica = serde_json::json!({
                "node": 2, "name": "<n2>", "role": "learner", "term": 1, "applied": 5, "last": 5, "lag": 0,
                "halted": null, "fetching": (partition == 1).then(fetch),
            });
            serde_json::json!({
                "partition": partition, "leader": 1, "leader_name": "n1", "members": null, "check": null,
                "checking": false, "check_failed": null, "replicas": [replica],
            })
        };
        let view: ClusterView = serde_json::from_value(serde_json::json!({
            "node": 1, "nodes": [node(1), node(2)], "partitions": [partition(0), partition(1)],
        }))
        .unwrap();
        let shown = render(&view, &Which::default()).0;
        assert!(shown.contains("&lt;n1&gt; → &lt;n2&gt;"), "{shown}");
        assert!(shown.contains("1.00 MiB/s"), "{shown}");
        let row = |number: &str| {
            shown
                .rfind(&format!("<tr><th scope=\"row\">{number}"))
                .unwrap()
        };
        assert!(row("1") < row("0"), "{shown}");
    }
}
