//! What the repository keeps: of all partitions in short, and of one of them.

use axum::extract::{Query, State};
use esker_repository::inventory::{KeptSnapshot, ProblemKind, State as KeptState};
use esker_repository::{Inventory, Kind};
use esker_server::admin::snapshots::{Sweeps, Swept};
use esker_server::admin::status::{Partition, Status};
use maud::{Markup, html};
use serde::Deserialize;
use time::OffsetDateTime;

use crate::Console;
use crate::access::Viewer;
use crate::api_client::{ApiError, Caller, LIST_TIMEOUT, path};
use crate::layout::{
    LIST_BYTES, Page, PageError, Section, commands, failed_part, fitting, page as layout,
    page_links, table,
};
use crate::words::{ago, bytes, count, moment, several, visible};

/// Snapshots or partitions on a page.
const PAGE: usize = 100;

/// Which partition; none for all.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Which {
    partition: Option<u64>,
    page: usize,
}

/// The page.
pub async fn page(
    State(console): State<Console>,
    Viewer(caller): Viewer,
    Query(which): Query<Which>,
) -> Page {
    match which.partition {
        Some(partition) => of_partition(&console, &caller, partition, which.page).await,
        None => of_all(&console, &caller, which.page).await,
    }
}

async fn of_all(console: &Console, caller: &Caller, page: usize) -> Page {
    let status: Status = console.api.get(caller, "/esker/v1/status").await?;
    let now = OffsetDateTime::now_utc();
    let all = &status.partitions;
    let pages = all.len().div_ceil(PAGE).max(1);
    let number = page.min(pages - 1);
    let shown = all.iter().skip(number * PAGE).take(PAGE);
    let rows = html! { @for of in shown { (partition_row(of, now)) } };
    let headings = [
        "Partition",
        "#Retained",
        "Newest",
        "#At LSN",
        "Proven",
        "#In the repository",
        "#Orphans",
        "What is wrong",
    ];
    let body = html! {
        (selector(None))
        p { "In " (visible(&status.repository)) @if status.repository_is_local { ", on the disk of the data directory and lost with it" } "." }
        (table("Partitions", &headings, rows))
        (page_links("More partitions", pages, number, |at| path("/dashboard/snapshots", &[("page", Some(&at.to_string()))])))
        p.more {
            "Sizes and orphans are those that the last sweep of each partition has found, since the start of the node "
            "that leads it."
        }
        (commands("On the command line", &[
            ("the same", "esker snapshot list".into()),
            ("a snapshot of every partition, now", "esker snapshot create".into()),
        ]))
    };
    Ok(layout("Snapshots", Section::Snapshots, caller, body))
}

fn partition_row(of: &Partition, now: OffsetDateTime) -> Markup {
    let number = of.partition.to_string();
    let target = path("/dashboard/snapshots", &[("partition", Some(&number))]);
    let time = |at: OffsetDateTime| html! { time datetime=(moment(at)) title=(moment(at)) { (ago(at, now)) } };
    let sweep = of.sweep.as_ref();
    let stored = sweep.map(|it| it.bytes.saturating_sub(it.deleted_bytes));
    html! {
        tr {
            th scope="row" { a href=(target) { (of.partition) @if of.partition == 0 { " (catalog)" } } }
            td.number { (count(of.retained)) }
            td { @match &of.newest { Some(newest) => (time(newest.created_at)), None => "none" } }
            td.number { (optional(of.newest.as_ref().map(|it| it.lsn), count)) }
            td { @match &of.proven { Some(proven) => (time(proven.at)), None => "–" } }
            td.number { (optional(stored, bytes)) }
            td.number { (optional(sweep.map(|it| it.deleted + it.failed + it.young), count)) }
            td {
                @if of.damaged > 0 { strong.bad { (several(of.damaged, "damaged snapshot")) } " " }
                @if of.abandoned > 0 { (several(of.abandoned, "snapshot")) " of stale lineages" }
            }
        }
    }
}

async fn of_partition(console: &Console, caller: &Caller, partition: u64, page: usize) -> Page {
    let inventory = format!("/esker/v1/partitions/{partition}/snapshots");
    let repository = console.api.of_repository(LIST_TIMEOUT);
    let inventory: Result<Inventory, ApiError> = repository.get(caller, &inventory).await;
    let inventory = match inventory {
        Err(ApiError::NotFound { code, message }) if code == "partition_not_found" => {
            return Err(PageError::Api(ApiError::NotFound { code, message }));
        }
        // The rest of the page does not need the repository.
        Err(error @ (ApiError::Failed { .. } | ApiError::NotFound { .. })) => Err(error),
        other => Ok(other?),
    };
    let sweeps = format!("/esker/v1/partitions/{partition}/sweep");
    let sweeps: Result<Sweeps, ApiError> = console.api.get(caller, &sweeps).await;
    let now = OffsetDateTime::now_utc();
    let number = partition.to_string();
    let body = html! {
        (selector(Some(partition)))
        @match &inventory {
            Err(error) => (failed_part(error)),
            Ok(inventory) => {
                (summary(inventory))
                (timeline(&inventory.snapshots, now))
                (list(inventory, page, now))
                (claims(inventory, now))
            }
        }
        section {
            h2 { "The last sweep" }
            @match &sweeps {
                Err(error) => (failed_part(error)),
                Ok(sweeps) => (last_sweep(sweeps.last.as_ref(), now)),
            }
        }
        (why_form(partition))
        p { a href=(path("/dashboard/prune", &[("partition", Some(&number))])) { "What a prune would delete" } }
        (commands("On the command line", &[
            ("the same", format!("esker snapshot list --partition {partition}")),
            ("a snapshot, now", format!("esker snapshot create --partition {partition}")),
            ("read and compare every byte", format!("esker snapshot verify --data --partition {partition}")),
            ("restore the newest one and compare it", format!("esker snapshot verify --restore --partition {partition}")),
        ]))
    };
    let title = format!("Snapshots of partition {partition}");
    Ok(layout(&title, Section::Snapshots, caller, body))
}

/// The form that chooses a partition.
fn selector(partition: Option<u64>) -> Markup {
    let to = |number: u64| {
        path(
            "/dashboard/snapshots",
            &[("partition", Some(&number.to_string()))],
        )
    };
    html! {
        form.find method="get" action="/dashboard/snapshots" {
            label for="partition" { "Partition" }
            input id="partition" name="partition" inputmode="numeric" required value=[partition] size="6";
            button type="submit" { "Show" }
            @if let Some(partition) = partition {
                @if partition > 0 { a rel="prev" href=(to(partition - 1)) { "← " (partition - 1) } }
                a rel="next" href=(to(partition.saturating_add(1))) { (partition.saturating_add(1)) " →" }
                a href="/dashboard/snapshots" { "All partitions" }
            }
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
            @if damaged > 0 { ", " strong.bad { (count(damaged)) " that cannot be relied on" } }
            ", of cluster " (visible(&inventory.cluster_name))
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
        .max(1);
    // A date that is ahead of this clock is at the end.
    let x =
        |at: OffsetDateTime| 8.0 + (at - first).as_seconds_f64().min(span) / span * (WIDTH - 24.0);
    let height = |bytes: u64| bytes as f64 / largest as f64 * (HEIGHT - 10.0);
    let bar = |class: &str, at: OffsetDateTime, height: f64| {
        html! {
            rect class=(class) x=(format!("{:.1}", x(at) - 4.0)) width="8" y=(format!("{:.1}", HEIGHT - 4.0 - height))
                height=(format!("{height:.1}")) {}
        }
    };
    html! {
        figure.timeline {
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img"
                aria-label={ "Sizes of " (dated.len()) " snapshots since " (moment(first)) ", the largest " (bytes(largest)) } {
                line.axis x1="0" x2=(WIDTH) y1=(HEIGHT - 3.0) y2=(HEIGHT - 3.0) {}
                @for (it, at) in &dated {
                    g {
                        title { (it.snapshot) ", " (moment(*at)) ", " (optional(it.bytes, bytes)) }
                        @match it.bytes {
                            // Its description cannot be used.
                            None => (bar("unknown", *at, HEIGHT - 10.0)),
                            Some(size) => {
                                (bar("all", *at, height(size).max(2.0)))
                                @if let Some(alone) = it.alone_bytes { (bar("alone", *at, height(alone))) }
                            }
                        }
                    }
                }
            }
            figcaption.scale {
                span { (ago(first, now)) }
                span { "largest " (bytes(largest)) "; dark: what no other snapshot has" }
                span { "now" }
            }
        }
    }
}

fn list(inventory: &Inventory, page: usize, now: OffsetDateTime) -> Markup {
    let partition = inventory.partition.to_string();
    let all = &inventory.snapshots;
    let pages = all.len().div_ceil(PAGE).max(1);
    let number = page.min(pages - 1);
    let shown = all.iter().skip(number * PAGE).take(PAGE);
    let (rows, _) = fitting(shown, LIST_BYTES, |it| row(it, &partition, now));
    let headings = [
        "Snapshot",
        "#LSN",
        "Created",
        "State",
        "#Files",
        "#Size",
        "#Alone",
        "#Shared",
        "#Uploaded",
    ];
    let to = |at: usize| {
        let page = at.to_string();
        path(
            "/dashboard/snapshots",
            &[("partition", Some(&partition)), ("page", Some(&page))],
        )
    };
    html! {
        @if all.is_empty() { p { "There is no snapshot." } }
        @else {
            (table("Snapshots", &headings, rows))
            p.more {
                "Alone: what no other kept snapshot has, and what would be freed with it. Uploaded: what the one before it "
                "does not have."
            }
            (page_links("More snapshots", pages, number, to))
        }
    }
}

fn row(it: &KeptSnapshot, partition: &str, now: OffsetDateTime) -> Markup {
    let target = path(
        "/dashboard/snapshot",
        &[
            ("partition", Some(partition)),
            ("snapshot", Some(&it.snapshot)),
        ],
    );
    let shared = it.bytes.zip(it.alone_bytes);
    let shared = shared.map(|(all, alone)| all.saturating_sub(alone));
    html! {
        tr class=[it.problem.is_some().then_some("bad")] {
            th scope="row" { a href=(target) { (it.snapshot_id) } }
            td.number { (count(it.lsn.0)) }
            td { @if let Some(at) = it.created_at { time datetime=(moment(at)) title=(moment(at)) { (ago(at, now)) } } }
            td { (states(it)) }
            td.number { (optional(it.files, count)) }
            td.number { (optional(it.bytes, bytes)) }
            td.number { (optional(it.alone_bytes, bytes)) }
            td.number { (optional(shared, bytes)) }
            td.number { (optional(it.new_bytes, bytes)) }
        }
    }
}

/// Why a snapshot is kept, and what is wrong with it.
fn states(it: &KeptSnapshot) -> Markup {
    html! {
        @for state in &it.states { span.state { (state_name(*state)) } " " }
        @if let Some(lineage) = &it.stale_lineage { code { (lineage) } " " }
        @if let Some(kind) = it.kind { (kind_name(kind)) }
        @if !it.damaged.is_empty() { " " strong.bad { (several(it.damaged.len() as u64, "damaged object")) } }
        @if let Some(problem) = &it.problem {
            " " strong.bad { (it.problem_kind.map_or("unusable", problem_name)) } ": " (visible(problem))
        }
    }
}

fn problem_name(kind: ProblemKind) -> &'static str {
    match kind {
        ProblemKind::Damaged => "damaged",
        ProblemKind::Missing => "missing",
        ProblemKind::OtherCluster => "of another cluster",
        ProblemKind::NewerFormat => "written by a later release",
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

/// Uploads and restores that keep objects.
fn claims(inventory: &Inventory, now: OffsetDateTime) -> Markup {
    html! {
        section {
            h2 { "Uploads under way" }
            @if inventory.uploads.is_empty() { p { "None." } }
            ul {
                @for intent in inventory.uploads.iter().take(PAGE) {
                    li {
                        "generation " (intent.generation) " by " (visible(&intent.node_name)) ", renewed " (ago(intent.renewed_at, now))
                        @if intent.repair { " (a repair)" }
                    }
                }
            }
        }
        section {
            h2 { "Pins of restores" }
            @if inventory.pins.is_empty() { p { "None." } }
            ul {
                @for pin in inventory.pins.iter().take(PAGE) {
                    li { code { (visible(&pin.path)) } ", pin " code { (visible(&pin.id)) } ", expires " (ago(pin.expires_at, now)) }
                }
            }
        }
    }
}

fn last_sweep(last: Option<&Swept>, now: OffsetDateTime) -> Markup {
    let Some(it) = last else {
        return html! { p { "None since the start of the node that leads the partition; one follows the next snapshot." } };
    };
    let sized = |number, size| format!("{}, {}", count(number), bytes(size));
    html! {
        p {
            time datetime=(moment(it.at)) title=(moment(it.at)) { (ago(it.at, now)) } ": "
            @match it.deleted + it.failed + it.young {
                0 => "no orphans",
                orphans => b { (several(orphans, "orphan")) },
            }
            " among " (several(it.objects, "object")) " of " (bytes(it.bytes)) "."
        }
        @if it.deleted + it.failed + it.young + it.foreign + it.fenced + it.unpinned > 0 {
            (crate::layout::facts(&[
                ("orphans deleted", html! { (sized(it.deleted, it.deleted_bytes)) }),
                ("too young to be deleted", html! { (sized(it.young, it.young_bytes)) }),
                ("could not be deleted", html! { @if it.failed > 0 { strong.bad { (count(it.failed)) } } @else { "0" } }),
                ("of other programs, never deleted", html! { (count(it.foreign)) }),
                ("uploads given up", html! { (count(it.fenced)) }),
                ("pins expired", html! { (count(it.unpinned)) }),
            ]))
        }
    }
}

fn optional(value: Option<u64>, show: impl Fn(u64) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), show)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_a_missing_and_a_sound_snapshot_look_different() {
        let kept = |more: serde_json::Value| {
            let mut json = serde_json::json!({
                "snapshot": "lsn_00000000000000000009-snap_157M0tK3zAdFFr9DMqK2YHM",
                "snapshot_id": "snap_157M0tK3zAdFFr9DMqK2YHM", "lsn": 9, "states": ["retained"],
                "created_at": "2026-01-01T00:00:00Z", "kind": null, "files": null, "bytes": null, "node_name": null,
            });
            for (name, value) in more.as_object().unwrap() {
                json[name] = value.clone();
            }
            serde_json::from_value::<KeptSnapshot>(json).unwrap()
        };
        let shown = |more| row(&kept(more), "1", OffsetDateTime::UNIX_EPOCH).0;
        let damaged = shown(serde_json::json!({ "problem": "<b>", "problem_kind": "damaged" }));
        assert!(
            damaged.contains(">damaged</strong>: &lt;b&gt;"),
            "{damaged}"
        );
        let missing = shown(serde_json::json!({ "problem": "gone", "problem_kind": "missing" }));
        assert!(missing.contains(">missing</strong>: gone"), "{missing}");
        let sound = shown(serde_json::json!({ "files": 4, "bytes": 2048, "alone_bytes": 1024 }));
        assert!(
            !sound.contains("bad") && sound.contains(">1.00 KiB<"),
            "{sound}"
        );
    }

    #[test]
    fn a_timeline_holds_dates_of_a_clock_that_is_ahead() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let snapshot: KeptSnapshot = serde_json::from_value(serde_json::json!({
            "snapshot": "x", "snapshot_id": "snap_157M0tK3zAdFFr9DMqK2YHM", "lsn": 9, "states": ["newest"],
            "created_at": "2200-01-01T00:00:00Z", "kind": "full", "files": 1, "bytes": u64::MAX, "node_name": "n",
        }))
        .unwrap();
        let shown = timeline(&[snapshot], now).0;
        assert!(!shown.contains("NaN") && !shown.contains("inf"), "{shown}");
    }
}
