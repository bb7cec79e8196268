//! One snapshot: its description, and its files with who shares them.

use axum::extract::{Query, State};
use esker_repository::files::SharedFile;
use esker_repository::why::Diff;
use esker_server::admin::snapshots::SnapshotFiles;
use maud::{Markup, html};
use serde::Deserialize;

use super::snapshots::{kind_name, state_name, why_form};
use crate::Console;
use crate::access::Viewer;
use crate::api_client::{DESCRIPTION_TIMEOUT, path, segment};
use crate::layout::{
    LIST_BYTES, Page, Section, commands, facts, failed_part, fitting, page as layout, page_links,
    table,
};
use crate::shell;
use crate::words::{bytes, count, moment, several, visible};

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
    let (skip, limit) = (which.page.saturating_mul(PAGE), PAGE.to_string());
    let query = [("skip", Some(&*skip.to_string())), ("limit", Some(&*limit))];
    let asked = path(&format!("{base}/files"), &query);
    let repository = console.api.of_repository(DESCRIPTION_TIMEOUT);
    let described: SnapshotFiles = repository.get(&caller, &asked).await?;
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
            Some(repository.get::<Diff>(&caller, &diff).await)
        }
    };
    let (partition, name) = (which.partition, &described.snapshot);
    let number = partition.to_string();
    let on_partition = [("--partition", number.as_str())];
    let body = html! {
        p { a href=(path("/dashboard/snapshots", &[("partition", Some(&number))])) { "All snapshots of partition " (partition) } }
        (facts(&[
            ("state", html! { @for state in &described.states { span.state { (state_name(*state)) } " " } (kind_name(described.kind)) }),
            ("LSN", html! { (count(described.lsn)) }),
            ("created", html! { (moment(described.created_at)) " by " (visible(&described.node_name)) }),
            ("files", html! { (several(described.total_files, "file")) ", " (bytes(described.bytes)) }),
            ("lineage", html! { @match &described.lineage { Some(lineage) => code { (lineage) }, None => "–" } }),
            ("repository", html! { (visible(&described.repository)) }),
        ]))
        form.find method="get" action="/dashboard/snapshot" {
            input type="hidden" name="partition" value=(partition);
            input type="hidden" name="snapshot" value=(which.snapshot);
            label for="with" { "Compare with an older one: its id, directory or LSN" }
            input id="with" name="with" value=(which.with) size="40";
            button type="submit" { "Compare" }
        }
        @match &diff {
            None => "",
            Some(Err(error)) => (failed_part(error)),
            Some(Ok(diff)) => (difference(diff, other)),
        }
        (files(&described, &which))
        (why_form(partition))
        (commands("On the command line", &[
            ("the same", shell::command("esker snapshot show", &on_partition, &[name])),
            ("restore it into a scratch directory and compare it with the live partition",
                shell::command("esker snapshot verify --restore", &on_partition, &[name])),
        ]))
    };
    let title = format!("Snapshot {}", described.snapshot_id);
    Ok(layout(&title, Section::Snapshots, &caller, body))
}

fn difference(diff: &Diff, other: &str) -> Markup {
    let files = |files: usize, size| format!("{}, {}", several(files as u64, "file"), bytes(size));
    html! {
        section {
            h2 { "Compared with " (visible(other)) }
            (facts(&[
                ("LSN", html! { (count(diff.old_lsn.0)) " to " (count(diff.new_lsn.0)) }),
                ("added", html! { (files(diff.added.len(), diff.added_bytes)) }),
                ("removed", html! { (files(diff.removed.len(), diff.removed_bytes)) }),
                ("changed", html! { (files(diff.changed.len(), diff.changed_bytes)) }),
                ("the same", html! { (several(diff.same, "file")) ", " (bytes(diff.same_bytes)) }),
            ]))
        }
    }
}

fn files(described: &SnapshotFiles, which: &Which) -> Markup {
    let partition = which.partition.to_string();
    let pages = usize::try_from(described.total_files).unwrap_or(usize::MAX);
    let pages = pages.div_ceil(PAGE).max(1);
    let (rows, _) = fitting(&described.files, LIST_BYTES, |it| row(it, &partition));
    let to = |at: usize| {
        path(
            "/dashboard/snapshot",
            &[
                ("partition", Some(&partition)),
                ("snapshot", Some(&which.snapshot)),
                ("page", Some(&at.to_string())),
            ],
        )
    };
    let undescribed = described.undescribed.len() as u64;
    html! {
        section {
            h2 { "Files" }
            @if undescribed > 0 {
                p.problem {
                    (several(undescribed, "other snapshot")) " cannot be described, and may share these files, too."
                }
            }
            @if described.files.is_empty() { p { "There are none here." } }
            @else { (table("Files", &["File", "#Size", "#Level", "Object", "Shared with"], rows)) }
            (page_links("More files", pages, which.page.min(pages - 1), to))
        }
    }
}

fn row(file: &SharedFile, partition: &str) -> Markup {
    let why = path(
        "/dashboard/why",
        &[("partition", Some(partition)), ("key", Some(&file.key))],
    );
    let snapshot = |dir: &str| {
        let query = [("partition", Some(partition)), ("snapshot", Some(dir))];
        path("/dashboard/snapshot", &query)
    };
    let more = file.shared_by.saturating_sub(file.sharers.len() as u64);
    html! {
        tr {
            th scope="row" { (visible(&file.name)) }
            td.number { (bytes(file.size)) }
            td.number { (file.level) }
            td { code { (visible(&file.key)) } " " a href=(why) { "why?" } }
            td {
                @if file.shared_by == 0 { "no other" }
                @for (at, dir) in file.sharers.iter().enumerate() {
                    @if at > 0 { ", " }
                    a href=(snapshot(dir)) title=(dir) { "LSN " (lsn_of(dir)) }
                }
                @if more > 0 { " and " (count(more)) " more" }
            }
        }
    }
}

/// The LSN in the name of a snapshot's directory.
fn lsn_of(dir: &str) -> String {
    let digits = dir.strip_prefix("lsn_").and_then(|it| it.get(..20));
    match digits.and_then(|it| it.parse().ok()) {
        Some(lsn) => count(lsn),
        None => dir.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_those_who_share_it() {
        let dir = "lsn_00000000000000012345-snap_157M0tK3zAdFFr9DMqK2YHM";
        let mut file = SharedFile {
            name: "/000123.sst".to_owned(),
            size: 2048,
            level: 6,
            key: "ssts/x.sst".to_owned(),
            shared_by: 5,
            sharers: vec![dir.to_owned()],
        };
        let shown = row(&file, "1").0;
        assert!(shown.contains(">LSN 12,345</a> and 4 more"), "{shown}");
        (file.shared_by, file.sharers) = (0, Vec::new());
        assert!(row(&file, "1").0.contains("no other"));
    }
}
