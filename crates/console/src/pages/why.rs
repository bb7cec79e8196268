//! What keeps an object, or why it will be deleted.

use axum::extract::{Query, State};
use esker_repository::sweep::OrphanReason;
use esker_repository::why::{Holder, Verdict, Why};
use maud::{Markup, html};
use serde::Deserialize;

use super::snapshots::why_form;
use crate::Console;
use crate::access::Viewer;
use crate::api_client::{DESCRIPTION_TIMEOUT, path};
use crate::layout::{Page, Section, commands, page as layout};
use crate::shell;
use crate::words::{bytes, count, seconds, several, visible};

/// Names of files that are listed of one snapshot.
const NAMED: usize = 10;

/// Holders that are listed.
const HOLDERS: usize = 100;

/// Which object.
#[derive(Deserialize)]
pub struct Which {
    partition: u64,
    key: String,
}

/// The page.
pub async fn page(
    State(console): State<Console>,
    Viewer(caller): Viewer,
    Query(which): Query<Which>,
) -> Page {
    let key = which.key.trim();
    let asked = format!("/esker/v1/partitions/{}/objects/why", which.partition);
    let why: Why = console
        .api
        .of_repository(DESCRIPTION_TIMEOUT)
        .get(&caller, &path(&asked, &[("key", Some(key))]))
        .await?;
    let partition = which.partition.to_string();
    let body = html! {
        p { a href=(path("/dashboard/snapshots", &[("partition", Some(&partition))])) { "All snapshots of partition " (partition) } }
        p.figure { (verdict(&why.verdict)) }
        p { code { (visible(&why.key)) } @if let Some(size) = why.size { ", " (bytes(size)) } }
        @if !why.kept_by.is_empty() {
            h2 { "Kept by" }
            @if why.kept_by.len() > HOLDERS { p { (several(why.kept_by.len() as u64, "holder")) ", of which these are some:" } }
            ul { @for holder in why.kept_by.iter().take(HOLDERS) { li { (held(holder, which.partition)) } } }
        }
        (why_form(which.partition))
        (commands("On the command line", &[
            ("the same", shell::command("esker snapshot why", &[("--partition", &partition)], &[key])),
        ]))
    };
    Ok(layout("Why is it kept?", Section::Snapshots, &caller, body))
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Root => "It is the root of the repository, and is never deleted.".to_owned(),
        Verdict::Foreign => "It does not belong to a snapshot, and is never deleted.".to_owned(),
        Verdict::Kept => "It is kept.".to_owned(),
        Verdict::TooYoung { why, seconds_left } => format!(
            "{}; it is too young: a sweep may delete it in {}.",
            reason(why),
            seconds(*seconds_left as f64)
        ),
        Verdict::Orphan { why } => format!("{}: the next sweep deletes it.", reason(why)),
        Verdict::Absent => "There is no such object, and nothing refers to it.".to_owned(),
        Verdict::Lost => "There is no such object, although something refers to it.".to_owned(),
    }
}

/// Why an object is an orphan.
pub fn reason(reason: &OrphanReason) -> &'static str {
    match reason {
        OrphanReason::UnreferencedFile => "No kept snapshot refers to it",
        OrphanReason::UnretainedSnapshot => "It describes a snapshot that is not kept",
    }
}

fn held(holder: &Holder, partition: u64) -> Markup {
    let partition = partition.to_string();
    let snapshot = |name: &str| {
        let target = path(
            "/dashboard/snapshot",
            &[("partition", Some(&partition)), ("snapshot", Some(name))],
        );
        html! { a href=(target) { (name) } }
    };
    let files = |files: &[String]| {
        html! {
            @match files.len() {
                0 => ", whose description it is",
                all => {
                    ", as "
                    @for (at, name) in files.iter().take(NAMED).enumerate() { @if at > 0 { ", " } (visible(name)) }
                    @if all > NAMED { " and " (several((all - NAMED) as u64, "more file")) }
                }
            }
        }
    };
    match holder {
        Holder::Retained {
            snapshot: name,
            files: of,
        } => html! { "the retained snapshot " (snapshot(name)) (files(of)) },
        Holder::Pinned {
            snapshot: name,
            pin,
            files: of,
        } => {
            html! { "the snapshot " (snapshot(name)) ", which the restore " code { (visible(pin)) } " has pinned" (files(of)) }
        }
        Holder::Abandoned {
            snapshot: name,
            files: of,
        } => {
            html! { "the snapshot " (snapshot(name)) " of a stale lineage" (files(of)) }
        }
        Holder::Intent {
            generation,
            node_name,
        } => {
            html! { "an upload under way, generation " (count(generation.0)) ", by " (node_name) }
        }
    }
}
