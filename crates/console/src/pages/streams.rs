//! Basins, and the streams of one.

use axum::extract::{Query, State};
use esker_server::admin::streams::{StreamActivity, StreamPosition};
use futures::{StreamExt as _, stream};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use crate::Console;
use crate::access::Viewer;
use crate::api_client::{ApiError, Caller, path, segment};
use crate::layout::{
    LIST_BYTES, Page, Section, commands, failed_part, fitting, page as layout, table,
};
use crate::shell;
use crate::words::{ago, bytes, count, moment, visible};

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
#[derive(Clone, Deserialize)]
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
    let (rows, shown) = fitting(&listed.basins, LIST_BYTES, |it| {
        html! {
            tr {
                th scope="row" { a href=(path("/dashboard/streams", &[("basin", Some(&it.name))])) { (visible(&it.name)) } }
                td { time datetime=(moment(it.created_at)) title=(moment(it.created_at)) { (ago(it.created_at, now)) } }
                td { @if it.deleted_at.is_some() { "being deleted" } }
            }
        }
    });
    let has_more = listed.has_more || shown < listed.basins.len();
    let body = html! {
        (search(which, "Basins whose name begins with"))
        @if listed.basins.is_empty() { p { "There are no such basins." } }
        @else { (table("Basins", &["Basin", "Created", "State"], rows)) }
        (next(which, has_more, listed.basins[..shown].last()))
        (commands("On the command line", &[("a basin with a first stream", "esker stream create BASIN/STREAM".into())]))
    };
    Ok(layout("Basins", Section::Streams, caller, body))
}

async fn streams(console: &Console, caller: &Caller, which: &Which) -> Page {
    let headers = [("s2-basin", which.basin.as_str())];
    let listed = listing("/v1/streams", which);
    let listed: Streams = console.api.get_with(caller, &listed, &headers).await?;
    let config = format!("/v1/basins/{}", segment(&which.basin));
    let config = console.api.get::<Value>(caller, &config).await;
    let names: Vec<String> = listed.streams.iter().map(|it| it.name.clone()).collect();
    let asked = names
        .into_iter()
        .map(|name| figures(console, caller, &which.basin, name));
    let figures: Vec<Figures> = stream::iter(asked).buffered(PARALLEL).collect().await;
    let now = OffsetDateTime::now_utc();
    let (rows, shown) = fitting(listed.streams.iter().zip(&figures), LIST_BYTES, |it| {
        row(which, it, now)
    });
    let has_more = listed.has_more || shown < listed.streams.len();
    let headings = [
        "Stream",
        "#Records",
        "#Head",
        "#Tail",
        "#Size",
        "#Records/s",
        "Last record",
        "Cipher",
    ];
    let body = html! {
        p { a href="/dashboard/streams" { "All basins" } }
        (search(which, "Streams whose name begins with"))
        @if listed.streams.is_empty() { p { "There are no such streams." } }
        @else {
            (table("Streams", &headings, rows))
            p.more { "Records/s: over the last minute, by the records' timestamps. Size: as last measured, at most once a minute; “–” if it was not since the start." }
        }
        (next(which, has_more, listed.streams[..shown].last()))
        details { summary { "Configuration of the basin" } (configuration(&config)) }
        (commands("On the command line", &[
            ("the same", shell::command("esker stream ls", &[], &[&which.basin])),
        ]))
    };
    let title = format!("Streams of {}", which.basin);
    Ok(layout(&title, Section::Streams, caller, body))
}

/// What is known of a stream.
type Figures = (
    Result<StreamPosition, ApiError>,
    Result<StreamActivity, ApiError>,
);

async fn figures(console: &Console, caller: &Caller, basin: &str, name: String) -> Figures {
    let headers = [("s2-basin", basin)];
    let position = console
        .api
        .get_with(caller, &position_path(&name), &headers)
        .await;
    let activity = console
        .api
        .get_with(caller, &activity_path(&name), &headers)
        .await;
    (position, activity)
}

fn row(which: &Which, (it, figures): (&Named, &Figures), now: OffsetDateTime) -> Markup {
    let target = path(
        "/dashboard/stream",
        &[("basin", Some(&which.basin)), ("name", Some(&it.name))],
    );
    html! {
        tr {
            th scope="row" title={ "created " (moment(it.created_at)) } { a href=(target) { (visible(&it.name)) } }
            @match figures {
                (Ok(position), Ok(activity)) => {
                    td.number { (count(activity.records)) }
                    td.number { (count(position.head)) }
                    td.number { (count(position.tail)) }
                    td.number { @match activity.bytes { Some(size) => (bytes(size)), None => "–" } }
                    td.number { (per_second(activity)) }
                    td { (last_record(position, now)) }
                },
                (Err(error), _) | (_, Err(error)) => td colspan="6" { (visible(&error.to_string())) },
            }
            td { @if it.deleted_at.is_some() { "being deleted " } (it.cipher.as_deref().unwrap_or("–")) }
        }
    }
}

/// Records in a second, over the last minute.
pub fn per_second(activity: &StreamActivity) -> String {
    match activity.records_last_minute {
        0 => "0".to_owned(),
        records if records < 600 => format!("{:.2}", records as f64 / 60.0),
        records => count(records / 60),
    }
}

/// The configuration of a basin or a stream.
pub fn configuration(config: &Result<Value, ApiError>) -> Markup {
    match config {
        Err(error) => failed_part(error),
        Ok(config) => {
            html! { pre tabindex="0" { (serde_json::to_string_pretty(config).unwrap_or_default()) } }
        }
    }
}

/// The path of a stream's position. Asking for it creates no stream.
pub fn position_path(stream: &str) -> String {
    format!("/esker/v1/streams/{}/position", segment(stream))
}

/// The path of what goes on in a stream. Asking for it creates no stream.
pub fn activity_path(stream: &str) -> String {
    format!("/esker/v1/streams/{}/activity", segment(stream))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_as_many_digits_as_it_needs() {
        let rate = |records_last_minute| {
            per_second(&StreamActivity {
                records: 1,
                records_last_minute,
                cipher: None,
                bytes: None,
                bytes_at: None,
            })
        };
        assert_eq!([rate(0), rate(30), rate(120_000)], ["0", "0.50", "2,000"]);
    }

    #[test]
    fn fifty_streams_with_the_longest_names_fit_into_a_page() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let which = Which {
            basin: "b".repeat(48),
            ..Which::default()
        };
        let error = || ApiError::Forbidden("no".to_owned());
        let named = Named {
            // Each takes nine bytes in an address, and eight as text.
            name: "\u{202e}".repeat(170),
            created_at: now,
            deleted_at: None,
            cipher: None,
        };
        let all: Vec<(Named, Figures)> = (0..PAGE)
            .map(|_| (named.clone(), (Err(error()), Err(error()))))
            .collect();
        let items = all.iter().map(|(named, figures)| (named, figures));
        let (rows, shown) = fitting(items, LIST_BYTES, |it| row(&which, it, now));
        assert!(shown < PAGE && rows.0.len() <= LIST_BYTES, "{shown}");
        assert!(!rows.0.contains('\u{202e}'));
    }
}
