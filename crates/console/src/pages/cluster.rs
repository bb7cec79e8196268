//! Nodes and partitions: who leads, who lags.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use axum::extract::{Query, State};
use axum::response::Response;
use esker_server::admin::cluster::{
    ClusterGroup, ClusterMember, ClusterReplica, ClusterView, GroupMembers, MemberState,
    ReplicaFetch,
};
use maud::{Markup, html};
use serde::Deserialize;

use crate::Console;
use crate::access::{Viewer, Watch};
use crate::api_client::{ApiError, Caller, path};
use crate::layout::{
    Page, PageError, Section, commands, live as live_part, page as layout, quoted,
};
use crate::live::{Place, repeat};
use crate::words::{bytes, count, several};

/// Partitions on a page.
const PAGE: usize = 100;

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
            let name = name.map_or("NODE".to_owned(), |it| quoted(&it.name));
            html! {
                (live_part(&source, &render(&view, &which)))
                (commands("On the command line", &[
                    ("the same", "esker cluster status".into()),
                    ("move everything that a node leads away from it", format!("esker cluster drain {name}")),
                    ("let it take part again", format!("esker cluster activate {name}")),
                    ("let it lead a partition", format!("esker cluster transfer-leader 1 {name}")),
                    ("remove it for good", format!("esker cluster remove {name}")),
                ]))
            }
        }
    };
    Ok(layout(
        "Cluster",
        Section::Cluster,
        caller.token.is_some(),
        body,
    ))
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
    let pages = view.partitions.len().div_ceil(PAGE).max(1);
    let number = which.page.min(pages - 1);
    let mut groups: Vec<&ClusterGroup> = view.partitions.iter().collect();
    let trouble = |group: &ClusterGroup| {
        let halted = group
            .replicas
            .iter()
            .filter(|it| it.halted.is_some())
            .count();
        let lag = group.replicas.iter().filter_map(|it| it.lag).max();
        (group.leader.is_none(), halted, lag.unwrap_or(0) > 1000)
    };
    groups.sort_by_key(|group| (Reverse(trouble(group)), group.partition));
    let leaderless = view
        .partitions
        .iter()
        .filter(|it| it.leader.is_none())
        .count() as u64;
    let away = view
        .nodes
        .iter()
        .filter(|it| it.unreachable.is_some())
        .count() as u64;
    html! {
        @match (leaderless, away) {
            (0, 0) => div.banner.good { strong { "All nodes answer, and every partition has a leader." } },
            _ => div.banner.bad role="alert" {
                @if away > 0 { strong { (several(away, "node")) " without an answer. " } }
                @if leaderless > 0 { strong { (several(leaderless, "partition")) " without a known leader." } }
            },
        }
        h2 { "Nodes" }
        div.scroll tabindex="0" role="region" aria-label="Nodes" {
            table {
                thead { tr {
                    th scope="col" { "Node" } th scope="col" { "State" } th scope="col" { "Leads" } th scope="col" { "Clients" }
                    th scope="col" { "Other nodes" } th scope="col" { "Zone" }
                } }
                tbody { @for it in &view.nodes { (member(it, it.node == view.node)) } }
            }
        }
        h2 { "Partitions" }
        div.scroll tabindex="0" role="region" aria-label="Partitions" {
            table.matrix {
                thead { tr {
                    th scope="col" { "Partition" }
                    @for it in &view.nodes { th scope="col" { (it.name) } }
                    th scope="col" { "Members" }
                } }
                tbody {
                    @for group in groups.iter().skip(number * PAGE).take(PAGE) { (row(group, &view.nodes)) }
                }
            }
        }
        @if pages > 1 {
            nav.pages aria-label="More partitions" {
                @for at in 0..pages {
                    a href=(path("/dashboard/cluster", &[("page", Some(&at.to_string()))])) aria-current=[(at == number).then_some("page")] { (at + 1) }
                }
            }
        }
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
            th scope="row" { (it.name) @if is_this { " (this one)" } }
            td { (state) @if let Some(why) = &it.unreachable { ", " strong.bad { "no answer: " (why) } } }
            td.number { (count(it.leads)) }
            td { (it.client_address) }
            td {
                (it.peer_address)
                @if let Some(other) = it.address_answers_as { ", " strong.bad { "answers as node " (other) } }
            }
            td { (it.zone.as_deref().unwrap_or("–")) }
        }
    }
}

/// `1.20 GiB of 4.00 GiB fetched, 60.0 MiB/s`.
fn fetched(fetch: &ReplicaFetch) -> Markup {
    html! {
        span.fetch {
            (bytes(fetch.bytes_done)) " of " (bytes(fetch.bytes_total)) " fetched, "
            @if fetch.waits_for_space { strong.bad { "waits for space on its disk" } }
            @else if fetch.installing { "installs it" }
            @else { (bytes(fetch.bytes_per_second)) "/s" }
        }
    }
}

fn row(group: &ClusterGroup, nodes: &[ClusterMember]) -> Markup {
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
                        @match it.lag { Some(lag) if lag > 0 => span.lag { " −" (count(lag)) }, _ => "" }
                        @if let Some(fetch) = &it.fetching { " " (fetched(fetch)) }
                        @if let Some(why) = &it.halted { " " strong.bad { "halted: " (why) } }
                    },
                }
            }
            td { @if let Some(of) = &group.members { (members(of, nodes)) } }
        }
    }
}

/// What is under way with the members of a partition, and what it waits for.
fn members(of: &GroupMembers, nodes: &[ClusterMember]) -> Markup {
    let name = |id: &u64| {
        let node = nodes.iter().find(|node| node.node == *id);
        node.map_or_else(|| id.to_string(), |node| node.name.clone())
    };
    let names = |ids: &[u64]| ids.iter().map(name).collect::<Vec<_>>().join(", ");
    html! {
        @if !of.voters_before.is_empty() {
            "voters change from " (names(&of.voters_before)) " to " (names(&of.voters)) ". "
        }
        @if let Some(waits) = &of.waits {
            span.bad[waits.problem] { "for " (waits.seconds) " s: " (waits.why) }
        }
    }
}
