//! One stream: where it stands, its records, its snapshots, and new records as they come.

use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::Response;
use axum::response::sse::Event;
use esker_server::admin::streams::StreamPosition;
use futures::stream;
use http::HeaderMap;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::record::{Batch, Format, Raw, read, rows};
use super::streams::{last_record, position_path};
use crate::Console;
use crate::access::{Viewer, Watch};
use crate::api_client::{ApiError, Caller, path, segment};
use crate::layout::{Page, PageError, Section, commands, facts, page as layout, quoted};
use crate::live::{Place, answer, failed};
use crate::words::{count, moment, visible};

/// Records on a page. Each takes some 2 KB of it at most.
const PAGE: u64 = 50;
/// Bytes of records that are read for a page: the records of a page end earlier if they are large.
const MAX_READ_BYTES: &str = "1048576";
/// How long a read at the tail waits for a record. A stop and the end of a session wait as long.
const WAIT: &str = "5";
/// Pause of the live tail after a read that failed, or found nothing at once.
const PAUSE: Duration = Duration::from_millis(500);
/// Records that are read back from the tail for the list of snapshots.
const SNAPSHOT_RECORDS: u64 = 5000;
/// Records that are read at a time for it.
const SNAPSHOT_PAGE: u64 = 1000;

/// Which records of which stream.
#[derive(Clone, Deserialize)]
pub struct Which {
    basin: String,
    name: String,
    /// The first sequence number.
    #[serde(default)]
    from: String,
    /// Or the first timestamp: RFC 3339, or milliseconds.
    #[serde(default)]
    at: String,
    #[serde(default)]
    format: Format,
    /// Whether to look for snapshots.
    #[serde(default)]
    snapshots: bool,
}

/// The page.
pub async fn page(
    State(console): State<Console>,
    Viewer(caller): Viewer,
    Query(which): Query<Which>,
) -> Page {
    let headers = [("s2-basin", which.basin.as_str())];
    let get = position_path(&which.name);
    let position: StreamPosition = console.api.get_with(&caller, &get, &headers).await?;
    let config = format!("/v1/streams/{}", segment(&which.name));
    let config = console
        .api
        .get_with::<Value>(&caller, &config, &headers)
        .await;
    let batch = records(&console, &caller, &which, &position).await;
    let rate = rate(&console, &caller, &which, &position).await;
    let snapshots = match which.snapshots {
        true => Some(snapshots(&console, &caller, &which, &position).await),
        false => None,
    };
    let now = OffsetDateTime::now_utc();
    let full_name = quoted(&format!("{}/{}", which.basin, which.name));
    let body = html! {
        p { a href=(path("/dashboard/streams", &[("basin", Some(&which.basin))])) { "All streams of " (which.basin) } }
        (facts(&[
            ("head", html! { (count(position.head)) }),
            ("tail", html! { (count(position.tail)) }),
            ("records", html! { (count(position.tail.saturating_sub(position.head))) }),
            ("last record", last_record(&position, now)),
            ("rate", html! { (rate) }),
            ("created", html! { (moment(position.created_at)) }),
            ("lineage", html! { code { (position.lineage) } @if !position.forks.is_empty() { ", after " (position.forks.len()) " restores with a loss" } }),
        ]))
        details { summary { "Configuration" } (configuration(&config)) }
        (browser(&which, &position))
        (table(&which, &position, &batch))
        (in_stream(&which, snapshots))
        (commands("On the command line", &[
            ("these records", format!("esker stream read {full_name} --from {}", first(&batch).unwrap_or(position.head))),
            ("new ones, as they come", format!("esker stream tail {full_name} -f")),
            ("where it stands", format!("esker stream check-tail {full_name}")),
            ("its snapshots, whole and not", format!("esker follow {full_name} --inspect")),
        ]))
    };
    Ok(layout(
        &visible(&which.name),
        Section::Streams,
        caller.token.is_some(),
        body,
    ))
}

fn first(batch: &Result<Batch, PageError>) -> Option<u64> {
    batch.as_ref().ok()?.records.first().map(|it| it.seq_num)
}

async fn records(
    console: &Console,
    caller: &Caller,
    which: &Which,
    position: &StreamPosition,
) -> Result<Batch, PageError> {
    let limit = PAGE.to_string();
    let start = match (which.from.trim(), which.at.trim()) {
        ("", "") => (
            "seq_num",
            position
                .tail
                .saturating_sub(PAGE)
                .max(position.head)
                .to_string(),
        ),
        (from, "") => {
            let from = from.replace(',', "");
            let invalid = |_| PageError::Invalid(format!("{from} is no sequence number"));
            (
                "seq_num",
                from.parse::<u64>()
                    .map_err(invalid)?
                    .max(position.head)
                    .to_string(),
            )
        }
        (_, at) => ("timestamp", milliseconds(at)?.to_string()),
    };
    let query = [
        (start.0, Some(&*start.1)),
        ("count", Some(&*limit)),
        ("bytes", Some(MAX_READ_BYTES)),
        ("clamp", Some("true")),
    ];
    Ok(read(console, caller, &which.basin, &which.name, &query).await?)
}

/// A timestamp in milliseconds.
fn milliseconds(text: &str) -> Result<u64, PageError> {
    if let Ok(ms) = text.parse() {
        return Ok(ms);
    }
    // A field for local time has no zone; pages show UTC.
    let zoned = [text.to_owned(), format!("{text}Z"), format!("{text}:00Z")];
    let parsed = zoned
        .iter()
        .find_map(|it| OffsetDateTime::parse(it, &Rfc3339).ok());
    let at = parsed.map(|at| at.unix_timestamp_nanos() / 1_000_000);
    at.and_then(|ms| u64::try_from(ms).ok()).ok_or_else(|| {
        PageError::Invalid(format!(
            "{text} is no time: write 2026-01-31T12:00:00Z, or milliseconds"
        ))
    })
}

/// How fast records come: over the last hundred of them.
async fn rate(
    console: &Console,
    caller: &Caller,
    which: &Which,
    position: &StreamPosition,
) -> String {
    const LAST: u64 = 100;
    let records = LAST.min(position.tail.saturating_sub(position.head));
    if records < 2 {
        return "–".to_owned();
    }
    let from = (position.tail - records).to_string();
    let query = [
        ("seq_num", Some(&*from)),
        ("count", Some("1")),
        ("clamp", Some("true")),
    ];
    let read = read(console, caller, &which.basin, &which.name, &query).await;
    let begin = read
        .ok()
        .and_then(|batch| batch.records.first().map(|it| it.timestamp));
    match begin {
        Some(begin) if position.tail_timestamp > begin => {
            let seconds = (position.tail_timestamp - begin) as f64 / 1000.0;
            format!(
                "{:.1} records/s over the last {records}",
                (records - 1) as f64 / seconds
            )
        }
        _ => "–".to_owned(),
    }
}

fn configuration(config: &Result<Value, ApiError>) -> Markup {
    match config {
        Err(error) => crate::layout::failed_part(error),
        Ok(config) => html! { pre { (serde_json::to_string_pretty(config).unwrap_or_default()) } },
    }
}

fn target(which: &Which, from: Option<&str>, format: Format) -> String {
    path(
        "/dashboard/stream",
        &[
            ("basin", Some(&which.basin)),
            ("name", Some(&which.name)),
            ("from", from),
            (
                "format",
                Some(format.name()).filter(|_| format != Format::Text),
            ),
        ],
    )
}

fn browser(which: &Which, position: &StreamPosition) -> Markup {
    html! {
        form.find method="get" action="/dashboard/stream" {
            input type="hidden" name="basin" value=(which.basin);
            input type="hidden" name="name" value=(which.name);
            label for="from" { "From sequence number" }
            input id="from" name="from" inputmode="numeric" value=(which.from) size="12" placeholder=(position.head);
            label for="at" { "or time (UTC)" }
            input id="at" name="at" value=(which.at) size="24" placeholder="2026-01-31T12:00:00Z";
            label for="format" { "as" }
            select id="format" name="format" {
                @for format in [Format::Text, Format::Json, Format::Hex] {
                    option value=(format.name()) selected[format == which.format] { (format.name()) }
                }
            }
            button type="submit" { "Show" }
        }
    }
}

fn table(which: &Which, position: &StreamPosition, batch: &Result<Batch, PageError>) -> Markup {
    let records: &[Raw] = match batch {
        Ok(batch) => &batch.records,
        Err(error) => {
            let (heading, why) = error.explained();
            return html! { p.problem { strong { (heading) ": " } (why) } };
        }
    };
    let begin = records.first().map_or(position.tail, |it| it.seq_num);
    let end = records.last().map_or(position.tail, |it| it.seq_num + 1);
    let is_at_tail = end >= position.tail;
    let next = end.to_string();
    let live = path(
        "/dashboard/live/records",
        &[
            ("basin", Some(&which.basin)),
            ("name", Some(&which.name)),
            ("from", Some(&next)),
            ("format", Some(which.format.name())),
        ],
    );
    let before = begin.saturating_sub(PAGE).max(position.head);
    html! {
        nav.pages aria-label="More records" {
            @if begin > position.head {
                a href=(target(which, Some(&position.head.to_string()), which.format)) { "Head" }
                a rel="prev" href=(target(which, Some(&before.to_string()), which.format)) { "Earlier" }
            }
            @if !is_at_tail {
                a rel="next" href=(target(which, Some(&next), which.format)) { "Later" }
                a href=(target(which, None, which.format)) { "Tail" }
            }
        }
        @if records.is_empty() { p { "There are no records here." } }
        div.scroll tabindex="0" role="region" aria-label="Records" {
            table.records {
                thead { tr {
                    th scope="col" { "Number" } th scope="col" { "Timestamp" } th scope="col" { "Headers" }
                    th scope="col" { "Size" } th scope="col" { "Body" }
                } }
                // At the tail, new records are added as they come.
                tbody data-live-rows=[is_at_tail.then_some(&live)] {
                    (rows(records, &which.basin, &which.name, which.format))
                }
            }
        }
        @if is_at_tail {
            p { button type="button" data-pause aria-pressed="false" { "Pause the live tail" } }
        }
    }
}

/// Snapshots of the stream's state among its last records.
struct Found {
    snapshots: Vec<(u64, String, Option<Value>)>,
    from: u64,
}

async fn snapshots(
    console: &Console,
    caller: &Caller,
    which: &Which,
    position: &StreamPosition,
) -> Result<Found, ApiError> {
    let from = position
        .tail
        .saturating_sub(SNAPSHOT_RECORDS)
        .max(position.head);
    let mut found = Found {
        snapshots: Vec::new(),
        from,
    };
    let mut next = from;
    while next < position.tail {
        let (start, limit) = (next.to_string(), SNAPSHOT_PAGE.to_string());
        let query = [
            ("seq_num", Some(&*start)),
            ("count", Some(&*limit)),
            ("bytes", Some(MAX_READ_BYTES)),
            ("clamp", Some("true")),
        ];
        let batch = read(console, caller, &which.basin, &which.name, &query).await?;
        let Some(last) = batch.records.last() else {
            break;
        };
        next = last.seq_num + 1;
        for record in &batch.records {
            let Some(kind) = record.header("esker-snapshot") else {
                continue;
            };
            let meta = record.header("esker-snapshot-meta");
            let meta = meta.and_then(|meta| serde_json::from_slice(&meta).ok());
            // Fragments after the first one belong to the one before.
            if kind == b"single" || meta.is_some() {
                let kind = visible(&String::from_utf8_lossy(&kind));
                found.snapshots.push((record.seq_num, kind, meta));
            }
        }
    }
    Ok(found)
}

fn in_stream(which: &Which, found: Option<Result<Found, ApiError>>) -> Markup {
    let look = path(
        "/dashboard/stream",
        &[
            ("basin", Some(&which.basin)),
            ("name", Some(&which.name)),
            ("snapshots", Some("true")),
        ],
    );
    let field = |meta: &Option<Value>, name: &str| match meta.as_ref().and_then(|it| it.get(name)) {
        None => "–".to_owned(),
        Some(Value::String(text)) => visible(text),
        Some(other) => other.to_string(),
    };
    html! {
        section {
            h2 { "Snapshots in the stream" }
            @match found {
                None => p { a href=(look) { "Look for them in the last " (count(SNAPSHOT_RECORDS)) " records" } },
                Some(Err(error)) => (crate::layout::failed_part(&error)),
                Some(Ok(found)) => {
                    @if found.snapshots.is_empty() { p { "There are none from record " (count(found.from)) " on." } }
                    @else {
                        table {
                            thead { tr {
                                th scope="col" { "At record" } th scope="col" { "Written as" } th scope="col" { "Kind" }
                                th scope="col" { "Cursor" }
                            } }
                            tbody {
                                @for (seq_num, written, meta) in &found.snapshots {
                                    tr {
                                        th scope="row" { a href=(target(which, Some(&seq_num.to_string()), which.format)) { (count(*seq_num)) } }
                                        td { (written) } td { (field(meta, "kind")) } td.number { (field(meta, "cursor")) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// New records, as rows.
pub async fn live(
    State(console): State<Console>,
    watch: Watch,
    headers: HeaderMap,
    Query(which): Query<Which>,
) -> Result<Response, Response> {
    // A browser that connects again names the last event that it has.
    let last = headers.get("last-event-id").and_then(|it| it.to_str().ok());
    let from = last.unwrap_or(&which.from).parse().unwrap_or(0);
    // It has to exist: in some basins a read creates it.
    let head = [("s2-basin", which.basin.as_str())];
    let target = position_path(&which.name);
    let position = console
        .api
        .get_with::<StreamPosition>(&watch.caller, &target, &head);
    if let Err(error) = position.await {
        return Err(axum::response::IntoResponse::into_response(
            PageError::from(error),
        ));
    }
    let place = Place::take(console, watch)?;
    Ok(tail(place, which, from))
}

fn tail(place: Place, which: Which, from: u64) -> Response {
    struct Tail {
        place: Place,
        which: Which,
        next: u64,
        pause: Duration,
        is_over: bool,
    }
    let tail = Tail {
        place,
        which,
        next: from,
        pause: Duration::ZERO,
        is_over: false,
    };
    answer(stream::unfold(tail, |mut it| async move {
        loop {
            if it.is_over || !it.place.wait(it.pause).await {
                return None;
            }
            let (start, limit) = (it.next.to_string(), PAGE.to_string());
            let query = [
                ("seq_num", Some(&*start)),
                ("count", Some(&*limit)),
                ("bytes", Some(MAX_READ_BYTES)),
                ("wait", Some(WAIT)),
                ("clamp", Some("true")),
            ];
            let (console, caller) = it.place.parts();
            let began = tokio::time::Instant::now();
            let (basin, name) = (&it.which.basin, &it.which.name);
            let event = match read(console, caller, basin, name, &query).await {
                Ok(batch) => {
                    let Some(last) = batch.records.last() else {
                        // It has waited, unless the stream does not let it.
                        it.pause = PAUSE.saturating_sub(began.elapsed());
                        continue;
                    };
                    it.next = last.seq_num + 1;
                    it.pause = Duration::ZERO;
                    let rows = rows(&batch.records, basin, name, it.which.format);
                    let event = Event::default().event("rows").id(it.next.to_string());
                    event.data(rows.0.replace('\r', ""))
                }
                Err(error) => {
                    let (event, is_over) = failed(&error.into());
                    it.is_over = is_over;
                    it.pause = PAUSE * 4;
                    event
                }
            };
            return Some((Ok(event), it));
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let ms = |text| milliseconds(text).ok();
        assert_eq!(ms("1000"), Some(1000));
        for text in [
            "1970-01-01T00:00:01Z",
            "1970-01-01T00:00:01",
            "1970-01-01T01:00:01+01:00",
        ] {
            assert_eq!(ms(text), Some(1000), "{text}");
        }
        assert_eq!(ms("1970-01-01T00:01"), Some(60_000));
        for text in ["yesterday", "1969-01-01T00:00:00Z", "-1"] {
            assert_eq!(ms(text), None, "{text}");
        }
    }
}
