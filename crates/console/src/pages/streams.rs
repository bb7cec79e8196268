//! Basins, and the streams of one.

use axum::extract::{Query, State};
use esker_server::admin::streams::StreamPosition;
use futures::{StreamExt as _, stream};
use maud::{Markup, html};
use serde::Deserialize;
use time::OffsetDateTime;

use crate::Console;
use crate::access::Viewer;
use crate::api_client::{ApiError, Caller, path, segment};
use crate::layout::{Page, Section, commands, page as layout, quoted};
use crate::words::{ago, count, moment, visible};

/// Basins or streams on a page.
const PAGE: usize = 50;
/// Positions that are asked for at a time.
const PARALLEL: usize = 8;

/// Which basins, or which streams of one.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Which {
    basin: String,
    prefix: String,
    after: String,
}

#[derive(Deserialize)]
struct Basins {
    basins: Vec<Named>,
    has_more: bool,
}

#[derive(Deserialize)]
struct Streams {
    streams: Vec<Named>,
    has_more: bool,
}

/// What the S2 API has of a basin or a stream.
#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(default, with = "time::serde::rfc3339::option")]
    deleted_at: Option<OffsetDateTime>,
    #[serde(default)]
    cipher: Option<String>,
}

/// The page.
pub async fn page(
    State(console): State<Console>,
    Viewer(caller): Viewer,
    Query(which): Query<Which>,
) -> Page {
    match which.basin.as_str() {
        "" => basins(&console, &caller, &which).await,
        _ => streams(&console, &caller, &which).await,
    }
}

fn listing(base: &str, which: &Which) -> String {
    let some = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned());
    let (prefix, after) = (some(&which.prefix), some(&which.after));
    path(
        base,
        &[
            ("prefix", prefix.as_deref()),
            ("start_after", after.as_deref()),
            ("limit", Some(&PAGE.to_string())),
        ],
    )
}

async fn basins(console: &Console, caller: &Caller, which: &Which) -> Page {
    let listed: Basins = console
        .api
        .get(caller, &listing("/v1/basins", which))
        .await?;
    let now = OffsetDateTime::now_utc();
    let body = html! {
        (search(which, "Basins whose name begins with"))
        @if listed.basins.is_empty() { p { "There are no such basins." } }
        @else {
            div.scroll tabindex="0" role="region" aria-label="Basins" {
                table {
                    thead { tr { th scope="col" { "Basin" } th scope="col" { "Created" } th scope="col" { "State" } } }
                    tbody {
                        @for it in &listed.basins {
                            tr {
                                th scope="row" { a href=(path("/dashboard/streams", &[("basin", Some(&it.name))])) { (visible(&it.name)) } }
                                td { time datetime=(moment(it.created_at)) { (ago(it.created_at, now)) } }
                                td { @if it.deleted_at.is_some() { "being deleted" } }
                            }
                        }
                    }
                }
            }
        }
        (next(which, listed.has_more, listed.basins.last()))
        (commands("On the command line", &[("a basin with a first stream", "esker stream create BASIN/STREAM".into())]))
    };
    Ok(layout(
        "Basins",
        Section::Streams,
        caller.token.is_some(),
        body,
    ))
}

async fn streams(console: &Console, caller: &Caller, which: &Which) -> Page {
    let headers = [("s2-basin", which.basin.as_str())];
    let listed = listing("/v1/streams", which);
    let listed: Streams = console.api.get_with(caller, &listed, &headers).await?;
    let paths: Vec<String> = listed
        .streams
        .iter()
        .map(|it| position_path(&it.name))
        .collect();
    let positions = paths.into_iter().map(|at| async move {
        let headers = [("s2-basin", which.basin.as_str())];
        console
            .api
            .get_with::<StreamPosition>(caller, &at, &headers)
            .await
    });
    let positions: Vec<Result<StreamPosition, ApiError>> =
        stream::iter(positions).buffered(PARALLEL).collect().await;
    let now = OffsetDateTime::now_utc();
    let body = html! {
        p { a href="/dashboard/streams" { "All basins" } }
        (search(which, "Streams whose name begins with"))
        @if listed.streams.is_empty() { p { "There are no such streams." } }
        @else {
            div.scroll tabindex="0" role="region" aria-label="Streams" {
                table {
                    thead { tr {
                        th scope="col" { "Stream" } th scope="col" { "Head" } th scope="col" { "Tail" } th scope="col" { "Records" }
                        th scope="col" { "Last record" } th scope="col" { "Created" } th scope="col" { "Cipher" }
                    } }
                    tbody {
                        @for (it, position) in listed.streams.iter().zip(&positions) {
                            tr {
                                th scope="row" {
                                    a href=(path("/dashboard/stream", &[("basin", Some(&which.basin)), ("name", Some(&it.name))])) { (visible(&it.name)) }
                                }
                                @match position {
                                    Ok(position) => {
                                        td.number { (count(position.head)) }
                                        td.number { (count(position.tail)) }
                                        td.number { (count(position.tail.saturating_sub(position.head))) }
                                        td { (last_record(position, now)) }
                                    },
                                    Err(error) => td colspan="4" { (error) },
                                }
                                td { time datetime=(moment(it.created_at)) { (ago(it.created_at, now)) } }
                                td { (it.cipher.as_deref().unwrap_or("–")) }
                            }
                        }
                    }
                }
            }
        }
        (next(which, listed.has_more, listed.streams.last()))
        (commands("On the command line", &[
            ("the same", format!("esker stream ls {}", quoted(&which.basin))),
        ]))
    };
    let title = format!("Streams of {}", which.basin);
    Ok(layout(
        &title,
        Section::Streams,
        caller.token.is_some(),
        body,
    ))
}

/// The path of a stream's position. Asking for it creates no stream.
pub fn position_path(stream: &str) -> String {
    format!("/esker/v1/streams/{}/position", segment(stream))
}

/// When the last record was appended.
pub fn last_record(position: &StreamPosition, now: OffsetDateTime) -> Markup {
    let at =
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(position.tail_timestamp) * 1_000_000);
    html! {
        @match (position.tail_timestamp, at) {
            (0, _) => "none yet",
            (_, Ok(at)) => time datetime=(moment(at)) title=(moment(at)) { (ago(at, now)) },
            (ms, Err(_)) => { (ms) " ms" },
        }
    }
}

fn search(which: &Which, label: &str) -> Markup {
    html! {
        form.find method="get" action="/dashboard/streams" {
            @if !which.basin.is_empty() { input type="hidden" name="basin" value=(which.basin); }
            label for="prefix" { (label) }
            input id="prefix" name="prefix" value=(which.prefix) size="30";
            button type="submit" { "Search" }
        }
    }
}

fn next(which: &Which, has_more: bool, last: Option<&Named>) -> Markup {
    let some = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned());
    let (basin, prefix) = (some(&which.basin), some(&which.prefix));
    let target = |after: Option<&str>| {
        path(
            "/dashboard/streams",
            &[
                ("basin", basin.as_deref()),
                ("prefix", prefix.as_deref()),
                ("after", after),
            ],
        )
    };
    html! {
        nav.pages aria-label="More" {
            @if !which.after.is_empty() { a href=(target(None)) { "From the beginning" } }
            @if let Some(last) = last.filter(|_| has_more) { a rel="next" href=(target(Some(&last.name))) { "Next " (PAGE) } }
        }
    }
}
