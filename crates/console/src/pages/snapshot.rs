//! One snapshot: its description, and its files.

use axum::extract::{Query, State};
use esker_repository::why::Diff;
use esker_server::admin::snapshots::Described;
use maud::{Markup, html};
use serde::Deserialize;

use super::snapshots::{kind_name, state_name, why_form};
use crate::Console;
use crate::access::Viewer;
use crate::api_client::{path, segment};
use crate::layout::{Page, Section, commands, facts, page as layout};
use crate::words::{bytes, count, moment, several};

/// Files on a page.
const PAGE: usize = 100;

/// Which snapshot.
#[derive(Deserialize)]
pub struct Which {
    partition: u64,
    snapshot: String,
    #[serde(default)]
    page: usize,
    /// Another one, to be compared.
    #[serde(default)]
    with: String,
}

/// The page.
pub async fn page(
    State(console): State<Console>,
    Viewer(caller): Viewer,
    Query(which): Query<Which>,
) -> Page {
    let base = format!(
        "/esker/v1/partitions/{}/snapshots/{}",
        which.partition,
        segment(&which.snapshot)
    );
    let described: Described = console.api.get(&caller, &base).await?;
    let other = which.with.trim();
    let diff = match other {
        "" => None,
        other => {
            let diff = format!(
                "/esker/v1/partitions/{}/snapshots/{}/diff/{}",
                which.partition,
                segment(other),
                segment(&which.snapshot)
            );
            Some(console.api.get::<Diff>(&caller, &diff).await?)
        }
    };
    let (partition, name) = (which.partition, &described.snapshot);
    let body = html! {
        p { a href=(path("/dashboard/snapshots", &[("partition", Some(&partition.to_string()))])) { "All snapshots of partition " (partition) } }
        (facts(&[
            ("state", html! { @for state in &described.states { span.state { (state_name(*state)) } " " } (kind_name(described.kind)) }),
            ("LSN", html! { (count(described.metadata.min_applied_lsn.0)) }),
            ("created", html! { (moment(described.metadata.created_at)) " by " (described.metadata.node_name) }),
            ("files", html! { (several(described.files, "file")) ", " (bytes(described.bytes)) }),
            ("lineage", html! { @match &described.metadata.lineage { Some(lineage) => code { (lineage) }, None => "–" } }),
            ("repository", html! { (described.repository) }),
        ]))
        form.find method="get" action="/dashboard/snapshot" {
            input type="hidden" name="partition" value=(partition);
            input type="hidden" name="snapshot" value=(which.snapshot);
            label for="with" { "Compare with an older one: its id, directory or LSN" }
            input id="with" name="with" value=(which.with) size="40";
            button type="submit" { "Compare" }
        }
        @if let Some(diff) = &diff { (difference(diff, other)) }
        (files(&described, &which))
        (why_form(partition))
        (commands("On the command line", &[
            ("the same", format!("esker snapshot show --partition {partition} {name}")),
            ("restore it into a scratch directory and compare it with the live partition",
                format!("esker snapshot verify --restore --partition {partition} {name}")),
        ]))
    };
    Ok(layout(
        &format!("Snapshot {}", described.metadata.snapshot_id),
        Section::Snapshots,
        caller.token.is_some(),
        body,
    ))
}

fn difference(diff: &Diff, other: &str) -> Markup {
    let files = |files: usize, size| format!("{}, {}", several(files as u64, "file"), bytes(size));
    html! {
        section {
            h2 { "Compared with " (other) }
            (facts(&[
                ("LSN", html! { (count(diff.old_lsn.0)) " to " (count(diff.new_lsn.0)) }),
                ("added", html! { (files(diff.added.len(), diff.added_bytes)) }),
                ("removed", html! { (files(diff.removed.len(), diff.removed_bytes)) }),
                ("changed", html! { (files(diff.changed.len(), diff.changed_bytes)) }),
                ("the same", html! { (several(diff.same, "file")) }),
            ]))
        }
    }
}

fn files(described: &Described, which: &Which) -> Markup {
    let metadata = &described.metadata;
    let pages = metadata.files.len().div_ceil(PAGE).max(1);
    let number = which.page.min(pages - 1);
    let shown = metadata.files.iter().skip(number * PAGE).take(PAGE);
    let partition = which.partition.to_string();
    html! {
        section {
            h2 { "Files" }
            div.scroll tabindex="0" role="region" aria-label="Files" {
                table {
                    thead { tr {
                        th scope="col" { "File" } th scope="col" { "Size" } th scope="col" { "Level" }
                        th scope="col" { "Object" } th scope="col" { "Who has it" }
                    } }
                    tbody {
                        @for file in shown {
                            @let key = metadata.key_of(file);
                            tr {
                                th scope="row" { (file.name) }
                                td.number { (bytes(file.size)) }
                                td.number { (file.level) }
                                td { code { (key) } }
                                td {
                                    a href=(path("/dashboard/why", &[("partition", Some(&partition)), ("key", Some(&key))])) {
                                        "Why is it kept?"
                                    }
                                }
                            }
                        }
                    }
                }
            }
            @if pages > 1 {
                nav.pages aria-label="More files" {
                    @for at in (0..pages).take(200) {
                        a href=(path("/dashboard/snapshot", &[
                            ("partition", Some(&partition)), ("snapshot", Some(&which.snapshot)), ("page", Some(&at.to_string())),
                        ])) aria-current=[(at == number).then_some("page")] { (at + 1) }
                    }
                }
            }
        }
    }
}
