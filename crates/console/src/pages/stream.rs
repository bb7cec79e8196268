//! One stream: where it stands, its records, its snapshots, and new records as they come.

use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::Response;
use axum::response::sse::Event;
use esker_server::admin::streams::{StreamActivity, StreamPosition};
use futures::stream;
use http::HeaderMap;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::record::{Batch, Format, Raw, read, rows};
use super::streams::{activity_path, configuration, last_record, per_second, position_path};
use crate::Console;
use crate::access::{Viewer, Watch};
use crate::api_client::{ApiError, Caller, path, segment};
use crate::layout::{Page, PageError, Section, command, commands, facts, fitting, page as layout};
use crate::live::{Place, Turn, answer, failed, signed_out};
use crate::shell;
use crate::words::{bytes, count, moment, shortened, visible};

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
/// Bytes of them that are read for it: of a stream with large records, fewer are looked at.
const MAX_SNAPSHOT_READS: u64 = 32 << 20;
/// Requests that are made for it.
const MAX_SNAPSHOT_REQUESTS: u32 = 64;
/// Bytes of the page that the list takes.
const SNAPSHOT_BYTES: usize = 25_000;
/// Bytes of a field of a snapshot's description that are shown.
const FIELD: usize = 100;
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
    let activity = format!("{}?size=true", activity_path(&which.name));
    let activity: StreamActivity = console.api.get_with(&caller, &activity, &headers).await?;
    let config = format!("/v1/streams/{}", segment(&which.name));
    let config = console
        .api
        .get_with::<Value>(&caller, &config, &headers)
        .await;
    let name = format!("{}/{}", which.basin, which.name);
    let (records, first) = match &activity.cipher {
        Some(cipher) => (encrypted(cipher, &name), position.head),
        None => readable(&console, &caller, &which, (&position, &activity)).await,
    };
    let now = OffsetDateTime::now_utc();
    let first = first.to_string();
    let body = html! {
        p { a href=(path("/dashboard/streams", &[("basin", Some(&which.basin))])) { "All streams of " (visible(&which.basin)) } }
        (facts(&[
            ("head", html! { (count(position.head)) }),
            ("tail", html! { (count(position.tail)) }),
            ("records", html! { (count(activity.records)) }),
            ("size", html! { @match activity.bytes { Some(size) => (bytes(size)), None => "not measured" } }),
            ("rate", html! { (per_second(&activity)) " records/s in the last minute" }),
            ("last record", last_record(&position, now)),
            ("created", html! { (moment(position.created_at)) }),
            ("cipher", html! { (activity.cipher.as_deref().unwrap_or("none")) }),
            ("lineage", html! { code { (position.lineage) } @if !position.forks.is_empty() { ", after " (position.forks.len()) " restores with a loss" } }),
        ]))
        details { summary { "Configuration" } (configuration(&config)) }
        (records)
        (commands("On the command line", &[
            ("these records", shell::command("esker stream read", &[("--from", &first)], &[&name])),
            ("new ones, as they come", shell::command("esker stream tail -f", &[], &[&name])),
            ("where it stands", shell::command("esker stream check-tail", &[], &[&name])),
            ("its snapshots, whole and not", shell::command("esker follow --inspect", &[], &[&name])),
        ]))
    };
    Ok(layout(&which.name, Section::Streams, &caller, body))
}

/// What is shown of a stream whose records only the holder of its key can read.
fn encrypted(cipher: &str, name: &str) -> Markup {
    html! {
        section.encrypted {
            h2 { "Records" }
            p {
                strong { "The records are encrypted (" (cipher) ") and cannot be shown here: " }
                "the key comes with each request of a client, and the server keeps none. Whoever has it reads them on the command line:"
            }
            p { (command(&shell::command("esker stream read", &[("--encryption-key-file", "FILE")], &[name]))) }
        }
    }
}

/// The records of a stream, its snapshots, and the number of the first record that is shown.
async fn readable(
    console: &Console,
    caller: &Caller,
    which: &Which,
    (position, activity): (&StreamPosition, &StreamActivity),
) -> (Markup, u64) {
    let batch = records(console, caller, which, position).await;
    let snapshots = match which.snapshots {
        true => Some(snapshots(console, caller, which, position, activity).await),
        false => None,
    };
    let shown = html! {
        (browser(which, position))
        (table(which, position, &batch))
        (in_stream(which, snapshots))
    };
    (shown, first(&batch).unwrap_or(position.head))
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
            return html! { p.problem role="alert" { strong { (heading) ": " } (visible(&why)) } };
        }
    };
    let (rows, shown) = rows(records, &which.basin, &which.name, which.format);
    let begin = records.first().map_or(position.tail, |it| it.seq_num);
    let end = records[..shown]
        .last()
        .map_or(position.tail, |it| it.seq_num + 1);
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
                    th.number scope="col" { "Number" } th scope="col" { "Timestamp (UTC)" } th scope="col" { "Headers" }
                    th.number scope="col" { "Size" } th.wide scope="col" { "Body" }
                } }
                // At the tail, new records are added as they come.
                tbody data-live-rows=[is_at_tail.then_some(&live)] {
                    (rows)
                }
            }
        }
        @if is_at_tail {
            p { button type="button" data-pause aria-pressed="false" { "Pause the live tail" } }
        }
    }
}

/// A snapshot in a stream: the number of its record, how it is written, and its description.
type FoundSnapshot = (u64, String, Option<Value>);

/// Snapshots of the stream's state among its last records.
struct Found {
    snapshots: Vec<FoundSnapshot>,
    from: u64,
}

async fn snapshots(
    console: &Console,
    caller: &Caller,
    which: &Which,
    position: &StreamPosition,
    activity: &StreamActivity,
) -> Result<Found, ApiError> {
    let size = activity.bytes.unwrap_or(0) / activity.records.max(1);
    let records = SNAPSHOT_RECORDS.min(MAX_SNAPSHOT_READS / size.max(1));
    let from = position
        .tail
        .saturating_sub(records.max(1))
        .max(position.head);
    let mut found = Found {
        snapshots: Vec::new(),
        from,
    };
    let mut next = from;
    // The size is that of a mean record, and the last ones may be larger.
    for _ in 0..MAX_SNAPSHOT_REQUESTS {
        if next >= position.tail {
            break;
        }
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
                let kind = shortened(&visible(&String::from_utf8_lossy(&kind)), FIELD);
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
    html! {
        section {
            h2 { "Snapshots in the stream" }
            @match found {
                None => p { a href=(look) { "Look for them in the last " (count(SNAPSHOT_RECORDS)) " records" } },
                Some(Err(error)) => (crate::layout::failed_part(&error)),
                Some(Ok(found)) => {
                    @if found.snapshots.is_empty() { p { "There are none from record " (count(found.from)) " on." } }
                    @else {
                        @let (rows, shown) = fitting(found.snapshots.iter().rev(), SNAPSHOT_BYTES, |it| snapshot_row(which, it));
                        @if found.snapshots.len() > shown { p { "The last " (shown) " of " (count(found.snapshots.len() as u64)) "." } }
                        table {
                            thead { tr {
                                th scope="col" { "At record" } th scope="col" { "Written as" } th scope="col" { "Kind" }
                                th.number scope="col" { "Cursor" }
                            } }
                            tbody { (rows) }
                        }
                    }
                }
            }
        }
    }
}

fn snapshot_row(which: &Which, (seq_num, written, meta): &FoundSnapshot) -> Markup {
    let field = |name: &str| match meta.as_ref().and_then(|it| it.get(name)) {
        None => "–".to_owned(),
        Some(Value::String(text)) => shortened(&visible(text), FIELD),
        Some(other) => shortened(&visible(&other.to_string()), FIELD),
    };
    html! {
        tr {
            th scope="row" { a href=(target(which, Some(&seq_num.to_string()), which.format)) { (count(*seq_num)) } }
            td { (written) } td { (field("kind")) } td.number { (field("cursor")) }
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
            if it.is_over {
                return None;
            }
            match it.place.wait(it.pause).await {
                Turn::GoesOn => {}
                Turn::Stopped => return None,
                Turn::SignedOut => {
                    it.is_over = true;
                    return Some((Ok(signed_out()), it));
                }
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
                    // What does not fit into an event comes with the next one.
                    let (rows, shown) = rows(&batch.records, basin, name, it.which.format);
                    let last = batch.records[..shown].last().unwrap_or(last);
                    it.next = last.seq_num + 1;
                    it.pause = Duration::ZERO;
                    let event = Event::default().event("rows").id(it.next.to_string());
                    event.data(rows.0.replace('\r', ""))
                }
                Err(error) => {
                    let (event, is_over) = failed(&error.into());
                    it.is_over = is_over;
                    if is_over {
                        it.place.end_session();
                    }
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
