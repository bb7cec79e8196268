//! What the repository keeps of a partition.

use axum::extract::{Query, State};
use esker_repository::inventory::{KeptSnapshot, State as KeptState};
use esker_repository::{Inventory, Kind};
use maud::{Markup, html};
use serde::Deserialize;
use time::OffsetDateTime;

use crate::Console;
use crate::access::Viewer;
use crate::api_client::path;
use crate::layout::{Page, Section, commands, page as layout};
use crate::words::{ago, bytes, count, moment, several};

/// Snapshots on a page.
const PAGE: usize = 100;

/// Which partition.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Which {
    partition: u64,
    page: usize,
}

/// The page.
pub async fn page(
    State(console): State<Console>,
    Viewer(caller): Viewer,
    Query(which): Query<Which>,
) -> Page {
    let partition = which.partition;
    let inventory = format!("/esker/v1/partitions/{partition}/snapshots");
    let inventory: Inventory = console.api.get(&caller, &inventory).await?;
    let now = OffsetDateTime::now_utc();
    let body = html! {
        (selector(partition))
        (summary(&inventory))
        (timeline(&inventory.snapshots, now))
        (table(&inventory, which.page, now))
        (uploads(&inventory, now))
        (why_form(partition))
        p { a href=(path("/dashboard/prune", &[("partition", Some(&partition.to_string()))])) { "What a prune would delete" } }
        (commands("On the command line", &[
            ("the same", format!("esker snapshot list --partition {partition}")),
            ("a snapshot, now", format!("esker snapshot create --partition {partition}")),
            ("read and compare every byte", format!("esker snapshot verify --data --partition {partition}")),
            ("restore the newest one and compare it", format!("esker snapshot verify --restore --partition {partition}")),
        ]))
    };
    Ok(layout(
        &format!("Snapshots of partition {partition}"),
        Section::Snapshots,
        caller.token.is_some(),
        body,
    ))
}

/// The form that chooses a partition.
pub fn selector(partition: u64) -> Markup {
    html! {
        form.find method="get" action="/dashboard/snapshots" {
            label for="partition" { "Partition" }
            input id="partition" name="partition" inputmode="numeric" value=(partition) size="6";
            button type="submit" { "Show" }
            @if partition > 0 {
                a rel="prev" href=(path("/dashboard/snapshots", &[("partition", Some(&(partition - 1).to_string()))])) { "← " (partition - 1) }
            }
            a rel="next" href=(path("/dashboard/snapshots", &[("partition", Some(&(partition + 1).to_string()))])) { (partition + 1) " →" }
        }
    }
}

/// The form that asks what keeps an object.
pub fn why_form(partition: u64) -> Markup {
    html! {
        form.find method="get" action="/dashboard/why" {
            input type="hidden" name="partition" value=(partition);
            label for="key" { "Why is an object kept? Its key" }
            input id="key" name="key" size="50" required;
            button type="submit" { "Ask" }
        }
    }
}

fn summary(inventory: &Inventory) -> Markup {
    let of = |state: KeptState| {
        let all = inventory.snapshots.iter();
        all.filter(|it| it.states.contains(&state)).count() as u64
    };
    let retained = of(KeptState::Newest) + of(KeptState::Retained);
    let damaged = inventory
        .snapshots
        .iter()
        .filter(|it| !it.damaged.is_empty() || it.problem.is_some());
    let damaged = damaged.count() as u64;
    html! {
        p {
            (several(retained, "retained snapshot"))
            @if of(KeptState::Pinned) > 0 { ", " (count(of(KeptState::Pinned))) " pinned by restores" }
            @if of(KeptState::Abandoned) > 0 { ", " strong { (count(of(KeptState::Abandoned))) " of stale lineages" } }
            @if damaged > 0 { ", " strong.bad { (several(damaged, "damaged one")) } }
            ", of cluster " (inventory.cluster_name)
            @if let Some(lineage) = &inventory.lineage { ", lineage " code { (lineage) } }
            @if let Some(generation) = inventory.generation { ", generation " (generation) " of the root" }
            "."
        }
    }
}

/// The snapshots over time: the height is their size, the dark part what only this one holds.
fn timeline(snapshots: &[KeptSnapshot], now: OffsetDateTime) -> Markup {
    const WIDTH: f64 = 1000.0;
    const HEIGHT: f64 = 80.0;
    let dated = snapshots.iter().filter_map(|it| Some((it, it.created_at?)));
    let dated: Vec<_> = dated.take(PAGE).collect();
    let Some(first) = dated.iter().map(|(_, at)| *at).min() else {
        return html! {};
    };
    let span = (now - first).as_seconds_f64().max(1.0);
    let largest = dated
        .iter()
        .filter_map(|(it, _)| it.bytes)
        .max()
        .unwrap_or(0)
        .max(1) as f64;
    let x = |at: OffsetDateTime| 8.0 + (at - first).as_seconds_f64() / span * (WIDTH - 24.0);
    let height = |bytes: Option<u64>| bytes.unwrap_or(0) as f64 / largest * (HEIGHT - 10.0);
    html! {
        figure.timeline {
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img"
                aria-label={ "Sizes of " (dated.len()) " snapshots since " (moment(first)) } {
                @for (it, at) in &dated {
                    g {
                        title { (it.snapshot) ", " (moment(*at)) ", " (bytes(it.bytes.unwrap_or(0))) }
                        rect.all x=(format!("{:.1}", x(*at) - 4.0)) width="8" y=(format!("{:.1}", HEIGHT - 4.0 - height(it.bytes).max(2.0)))
                            height=(format!("{:.1}", height(it.bytes).max(2.0))) {}
                        rect.alone x=(format!("{:.1}", x(*at) - 4.0)) width="8" y=(format!("{:.1}", HEIGHT - 4.0 - height(it.alone_bytes)))
                            height=(format!("{:.1}", height(it.alone_bytes))) {}
                    }
                }
            }
            figcaption.scale { span { (ago(first, now)) } span { "dark: what no other snapshot has" } span { "now" } }
        }
    }
}

fn table(inventory: &Inventory, page: usize, now: OffsetDateTime) -> Markup {
    let partition = inventory.partition.to_string();
    let all = &inventory.snapshots;
    let pages = all.len().div_ceil(PAGE).max(1);
    let number = page.min(pages - 1);
    let shown = all.iter().skip(number * PAGE).take(PAGE);
    html! {
        @if all.is_empty() { p { "There is no snapshot." } }
        @else {
            div.scroll tabindex="0" role="region" aria-label="Snapshots" {
                table {
                    thead { tr {
                        th scope="col" { "Snapshot" } th scope="col" { "LSN" } th scope="col" { "Created" } th scope="col" { "State" }
                        th scope="col" { "Files" } th scope="col" { "Size" } th scope="col" { "Alone" } th scope="col" { "Shared" }
                        th scope="col" { "Uploaded" }
                    } }
                    tbody {
                        @for it in shown {
                            tr {
                                th scope="row" {
                                    a href=(path("/dashboard/snapshot", &[("partition", Some(&partition)), ("snapshot", Some(&it.snapshot))])) {
                                        (it.snapshot_id)
                                    }
                                }
                                td.number { (count(it.lsn.0)) }
                                td { @if let Some(at) = it.created_at { time datetime=(moment(at)) title=(moment(at)) { (ago(at, now)) } } }
                                td { (states(it)) }
                                td.number { (optional(it.files, count)) }
                                td.number { (optional(it.bytes, bytes)) }
                                td.number { (optional(it.alone_bytes, bytes)) }
                                td.number { (optional(it.bytes.zip(it.alone_bytes).map(|(all, alone)| all.saturating_sub(alone)), bytes)) }
                                td.number { (optional(it.new_bytes, bytes)) }
                            }
                        }
                    }
                }
            }
            p.more {
                "Alone: what no other kept snapshot has, and what would be freed with it. Uploaded: what the one before it "
                "does not have."
            }
            @if pages > 1 {
                nav.pages aria-label="More snapshots" {
                    @for at in 0..pages {
                        a href=(path("/dashboard/snapshots", &[("partition", Some(&partition)), ("page", Some(&at.to_string()))]))
                            aria-current=[(at == number).then_some("page")] { (at + 1) }
                    }
                }
            }
        }
    }
}

/// Why a snapshot is kept, and what is wrong with it.
pub fn states(it: &KeptSnapshot) -> Markup {
    html! {
        @for state in &it.states { span.state { (state_name(*state)) } " " }
        @if let Some(kind) = it.kind { (kind_name(kind)) }
        @if !it.damaged.is_empty() { " " strong.bad { (several(it.damaged.len() as u64, "damaged object")) } }
        @if let Some(problem) = &it.problem { " " strong.bad { (problem) } }
    }
}

/// A state in words.
pub fn state_name(state: KeptState) -> &'static str {
    match state {
        KeptState::Newest => "newest",
        KeptState::Retained => "retained",
        KeptState::Pinned => "pinned",
        KeptState::Abandoned => "stale lineage",
    }
}

/// Its kind in words.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Full => "full",
        Kind::Incremental => "incremental",
    }
}

fn uploads(inventory: &Inventory, now: OffsetDateTime) -> Markup {
    html! {
        @if !inventory.uploads.is_empty() {
            section {
                h2 { "Uploads under way" }
                ul {
                    @for intent in &inventory.uploads {
                        li {
                            "generation " (intent.generation) " by " (intent.node_name) ", renewed " (ago(intent.renewed_at, now))
                            @if intent.repair { " (a repair)" }
                        }
                    }
                }
            }
        }
    }
}

fn optional(value: Option<u64>, show: impl Fn(u64) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), show)
}
