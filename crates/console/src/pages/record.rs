//! Records of a stream: one on a page of its own, and as rows of a table.

use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header;
use maud::{Markup, html};
use serde::Deserialize;

use crate::Console;
use crate::access::Viewer;
use crate::api_client::{ApiError, Caller, path, segment};
use crate::layout::{PageError, Section, facts, fitting, page as layout, table};
use crate::words::{bytes, count, cut, hex, moment_ms, several, shortened, text, visible};

/// Bytes of a page that a body takes in a row.
const ROW_BYTES: usize = 1200;
/// A longer body is not shown as JSON in a row, but as text.
const ROW_JSON_BYTES: usize = 16 * 1024;
/// Bytes of a page that all rows take together.
const ROWS_BYTES: usize = 70_000;
/// Bytes of a body that the page of a record reads to show it.
const READ_BYTES: usize = 64 * 1024;
/// Bytes of that page that the body takes, and all headers together; the rest can be downloaded.
const BODY_BYTES: usize = 90_000;
const HEADERS_BYTES: usize = 30_000;
/// Headers that a row shows, and bytes of a page that each name and value takes.
const ROW_HEADERS: usize = 6;
const HEADER_BYTES: usize = 100;
/// The same of one header on the page of a record.
const LONG_HEADER_BYTES: usize = 2000;

/// How bodies are shown.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As text where they are UTF-8, else as hexadecimal digits.
    #[default]
    Text,
    /// As indented JSON where they are JSON, else as text.
    Json,
    /// As hexadecimal digits.
    Hex,
}

impl Format {
    /// Its name in a query.
    pub fn name(self) -> &'static str {
        match self {
            Format::Text => "text",
            Format::Json => "json",
            Format::Hex => "hex",
        }
    }
}

/// A batch of records, with bytes in base64.
#[derive(Debug, Default, Deserialize)]
pub struct Batch {
    /// In order.
    pub records: Vec<Raw>,
}

/// A record.
#[derive(Debug, Deserialize)]
pub struct Raw {
    /// Its sequence number.
    pub seq_num: u64,
    /// Its timestamp, in milliseconds since the epoch.
    pub timestamp: u64,
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(default)]
    body: String,
}

impl Raw {
    /// The value of a header, by its name.
    pub fn header(&self, name: &str) -> Option<Vec<u8>> {
        let found = self
            .headers
            .iter()
            .find(|(of, _)| decoded(of) == name.as_bytes());
        found.map(|(_, value)| decoded(value))
    }

    /// The command that it is, if it is one: its one header has no name.
    fn command(&self) -> Option<String> {
        match &self.headers[..] {
            [(name, command)] if name.is_empty() => {
                let command = decoded(command);
                Some(visible(&String::from_utf8_lossy(&command)))
            }
            _ => None,
        }
    }
}

fn decoded(base64: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(base64).unwrap_or_default()
}

/// Reads records; none at or beyond the tail. The stream has to exist: in some basins a read creates it.
pub async fn read(
    console: &Console,
    caller: &Caller,
    basin: &str,
    name: &str,
    query: &[(&str, Option<&str>)],
) -> Result<Batch, ApiError> {
    let at = path(&format!("/v1/streams/{}/records", segment(name)), query);
    let headers = [("s2-basin", basin), ("s2-format", "base64")];
    let read = console.api.get_with(caller, &at, &headers).await;
    match read {
        // The start is at the tail.
        Err(ApiError::Failed { code, .. }) if code == "416" => Ok(Batch::default()),
        other => other,
    }
}

/// Which record.
#[derive(Deserialize)]
pub struct Which {
    basin: String,
    name: String,
    seq_num: u64,
    #[serde(default)]
    format: Format,
    /// Whether the body alone is wanted, as it is.
    #[serde(default)]
    raw: bool,
}

/// The page of a record, or its body.
pub async fn page(
    State(console): State<Console>,
    Viewer(caller): Viewer,
    Query(which): Query<Which>,
) -> Result<Response, PageError> {
    // It has to exist: see `read`.
    let position = super::streams::position_path(&which.name);
    let headers = [("s2-basin", which.basin.as_str())];
    let _: serde_json::Value = console.api.get_with(&caller, &position, &headers).await?;
    let seq_num = which.seq_num.to_string();
    let query = [
        ("seq_num", Some(&*seq_num)),
        ("count", Some("1")),
        ("clamp", Some("true")),
    ];
    let batch = read(&console, &caller, &which.basin, &which.name, &query).await?;
    let found = batch
        .records
        .first()
        .filter(|it| it.seq_num == which.seq_num);
    let Some(record) = found else {
        return Err(PageError::Api(ApiError::NotFound {
            code: "record".to_owned(),
            message: format!("the stream has no record {seq_num}"),
        }));
    };
    let body = decoded(&record.body);
    if which.raw {
        // A name that says nothing, and a type that no browser shows.
        let headers = [
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            (
                header::CONTENT_DISPOSITION,
                format!("attachment; filename=\"record-{seq_num}\""),
            ),
        ];
        return Ok((headers, body).into_response());
    }
    let to = |format: Option<&str>, raw: Option<&str>| {
        path(
            "/dashboard/record",
            &[
                ("basin", Some(&which.basin)),
                ("name", Some(&which.name)),
                ("seq_num", Some(&seq_num)),
                ("format", format),
                ("raw", raw),
            ],
        )
    };
    let stream = path(
        "/dashboard/stream",
        &[
            ("basin", Some(&which.basin)),
            ("name", Some(&which.name)),
            ("from", Some(&seq_num)),
        ],
    );
    let begin = &body[..body.len().min(READ_BYTES)];
    let shown = shown_as(whole_characters(begin), which.format);
    let (shown, is_cut) = cut(&shown, BODY_BYTES);
    let is_cut = is_cut || begin.len() < body.len();
    let (headers, listed) = fitting(&record.headers, HEADERS_BYTES, |(name, value)| {
        html! {
            tr {
                th scope="row" { (header_text(name, LONG_HEADER_BYTES)) }
                td { (header_text(value, LONG_HEADER_BYTES)) }
            }
        }
    });
    let page = html! {
        p { a href=(stream) { (visible(&which.basin)) "/" (visible(&which.name)) } }
        (facts(&[
            ("timestamp", html! { (moment_ms(record.timestamp)) }),
            ("command", html! { (record.command().unwrap_or_else(|| "–".to_owned())) }),
            ("body", html! { (bytes(body.len() as u64)) " " a href=(to(None, Some("true"))) download { "Download" } }),
        ]))
        h2 { "Headers" }
        @if record.headers.is_empty() { p { "None." } }
        @else {
            (table("Headers", &["Name", "Value"], headers))
            @if listed < record.headers.len() { p { "and " (several((record.headers.len() - listed) as u64, "more header")) } }
        }
        h2 { "Body" }
        p.choices {
            @for format in [Format::Text, Format::Json, Format::Hex] {
                a href=(to(Some(format.name()), None)) aria-current=[(format == which.format).then_some("true")] { (format.name()) } " "
            }
        }
        pre.body tabindex="0" { (shown) @if is_cut { "…" } }
        @if is_cut { p { "This is the beginning of " (bytes(body.len() as u64)) ". " a href=(to(None, Some("true"))) download { "Download all of it" } } }
    };
    let title = format!("Record {}", count(which.seq_num));
    Ok(layout(&title, Section::Streams, &caller, page).into_response())
}

/// Records as rows of a table: the first ones, as many as fit into a page, and how many those are.
pub fn rows(records: &[Raw], basin: &str, name: &str, format: Format) -> (Markup, usize) {
    fitting(records, ROWS_BYTES, |record| {
        row(record, basin, name, format)
    })
}

fn row(record: &Raw, basin: &str, name: &str, format: Format) -> Markup {
    let seq_num = record.seq_num.to_string();
    let target = path(
        "/dashboard/record",
        &[
            ("basin", Some(basin)),
            ("name", Some(name)),
            ("seq_num", Some(&seq_num)),
        ],
    );
    let body = decoded(&record.body);
    let command = record.command();
    // Enough for what is shown, whatever the characters.
    let most = match format {
        Format::Json => ROW_JSON_BYTES,
        Format::Text | Format::Hex => ROW_BYTES,
    };
    let begin = &body[..body.len().min(most)];
    let shown = shown_as(whole_characters(begin), format);
    let (shown, is_cut) = cut(&shown, ROW_BYTES);
    let is_cut = is_cut || begin.len() < body.len();
    html! {
        tr class=[command.is_some().then_some("command-record")] {
            th.number scope="row" { a href=(target) { (count(record.seq_num)) } }
            td { time { (moment_ms(record.timestamp)) } }
            td {
                @match &command {
                    Some(command) => span.state { "command: " (shortened(command, HEADER_BYTES)) },
                    None => {
                        @if let Some(kind) = record.header("esker-snapshot") {
                            span.state { "snapshot: " (shortened(&visible(&String::from_utf8_lossy(&kind)), HEADER_BYTES)) } " "
                        }
                        @for (name, value) in record.headers.iter().take(ROW_HEADERS) {
                            span.header { (header_text(name, HEADER_BYTES)) "=" (header_text(value, HEADER_BYTES)) } " "
                        }
                        @if record.headers.len() > ROW_HEADERS { "…" }
                    }
                }
            }
            td.number { (bytes(body.len() as u64)) }
            td { pre.body { (shown) @if is_cut { "…" } } }
        }
    }
}

/// Without the beginning of a character that the cut has left.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        // It ends within a character.
        Err(error) if error.error_len().is_none() => &bytes[..error.valid_up_to()],
        _ => bytes,
    }
}

fn header_text(base64: &str, bytes: usize) -> String {
    shortened(&visible(&String::from_utf8_lossy(&decoded(base64))), bytes)
}

/// Bytes as text of a format. What is not of the format, because its end is missing say, is shown as text, and what
/// is no text as hexadecimal digits.
fn shown_as(bytes: &[u8], format: Format) -> String {
    match format {
        Format::Hex => hex(bytes),
        Format::Text => text(bytes).unwrap_or_else(|| hex(bytes)),
        Format::Json => {
            let json = serde_json::from_slice::<Box<serde_json::value::RawValue>>(bytes);
            let indented = json.ok().and_then(|json| indented(json.get()));
            let indented = indented.map(|it| visible(&it));
            indented
                .or_else(|| text(bytes))
                .unwrap_or_else(|| hex(bytes))
        }
    }
}

/// Deeper levels of JSON are indented no further.
const MAX_INDENT: usize = 20;

/// JSON with line breaks; numbers and the order of fields stay as they are.
pub fn indented(json: &str) -> Option<String> {
    // Parsing into a value would round numbers and sort fields.
    serde_json::from_str::<serde::de::IgnoredAny>(json).ok()?;
    let mut shown = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut characters = json.chars().peekable();
    let line = |shown: &mut String, depth: usize| {
        shown.push('\n');
        shown.extend(std::iter::repeat_n("  ", depth.min(MAX_INDENT)));
    };
    while let Some(it) = characters.next() {
        if in_string {
            shown.push(it);
            in_string = escaped || it != '"';
            escaped = !escaped && it == '\\';
            continue;
        }
        match it {
            '"' => {
                in_string = true;
                shown.push(it);
            }
            '{' | '[' => {
                shown.push(it);
                while characters
                    .next_if(|next| next.is_ascii_whitespace())
                    .is_some()
                {}
                if characters
                    .peek()
                    .is_some_and(|next| matches!(next, '}' | ']'))
                {
                    shown.extend(characters.next());
                    continue;
                }
                depth += 1;
                line(&mut shown, depth);
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut shown, depth);
                shown.push(it);
            }
            ',' => {
                shown.push(it);
                line(&mut shown, depth);
            }
            ':' => shown.push_str(": "),
            it if it.is_ascii_whitespace() => {}
            it => shown.push(it),
        }
    }
    Some(shown)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(headers: &[(&str, &str)], body: &[u8]) -> Raw {
        let encode = |text: &&str| BASE64_STANDARD.encode(text);
        Raw {
            seq_num: 7,
            timestamp: 1,
            headers: headers
                .iter()
                .map(|(n, v)| (encode(n), encode(v)))
                .collect(),
            body: BASE64_STANDARD.encode(body),
        }
    }

    #[test]
    fn json_is_indented_as_it_is() {
        let json = r#"{"b":1.10,"a":[],"c":[1,{"x":"a\"}{,:"}], "n": 18446744073709551617}"#;
        let expected = "{\n  \"b\": 1.10,\n  \"a\": [],\n  \"c\": [\n    1,\n    {\n      \"x\": \"a\\\"}{,:\"\n    }\n  ],\n  \"n\": 18446744073709551617\n}";
        assert_eq!(indented(json).as_deref(), Some(expected));
        assert_eq!(indented("{no"), None);
    }

    #[test]
    fn a_command_and_a_snapshot_are_marked() {
        let shown = row(&raw(&[("", "fence")], b"token"), "b", "s", Format::Text).0;
        assert!(shown.contains("command: fence"), "{shown}");
        let shown = row(
            &raw(&[("esker-snapshot", "single")], b"x"),
            "b",
            "s",
            Format::Text,
        )
        .0;
        assert!(shown.contains("snapshot: single"), "{shown}");
    }

    #[test]
    fn hostile_bodies_are_text_and_short() {
        let script = "<script>alert(1)</script>";
        let long = script.repeat(50_000);
        for format in [Format::Text, Format::Json, Format::Hex] {
            let record = raw(&[(script, script)], long.as_bytes());
            let shown = row(&record, script, script, format).0;
            assert!(!shown.contains("<script"), "{shown}");
            assert!(shown.len() < 3000, "{}", shown.len());
        }
    }

    #[test]
    fn rows_fit_into_a_page_whatever_is_in_them() {
        let name = "\"".repeat(512);
        let header = "<".repeat(1000);
        let headers: Vec<(&str, &str)> = (0..20).map(|_| (&*header, &*header)).collect();
        let nested = "[".repeat(500) + &"]".repeat(500);
        for body in [
            "\"".repeat(100_000),
            "\0".repeat(100_000),
            nested,
            "é".repeat(50_000),
        ] {
            for format in [Format::Text, Format::Json, Format::Hex] {
                let records: Vec<Raw> = (0..50).map(|_| raw(&headers, body.as_bytes())).collect();
                let (shown, count) = rows(&records, &name, &name, format);
                assert!(count > 5 && shown.0.len() <= ROWS_BYTES, "{count}");
            }
        }
    }

    #[test]
    fn deeply_nested_json_is_shown_in_bounded_space() {
        let deep = "[".repeat(READ_BYTES / 2) + &"]".repeat(READ_BYTES / 2);
        let shown = indented(&deep).unwrap();
        assert!(
            shown.len() <= deep.len() * (2 + 2 * MAX_INDENT),
            "{}",
            shown.len()
        );
    }

    proptest! {
        #[test]
        fn any_record_has_a_row(headers: Vec<(String, String)>, body: Vec<u8>) {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (&**n, &**v)).collect();
            let record = raw(&headers, &body);
            for format in [Format::Text, Format::Json, Format::Hex] {
                let shown = row(&record, "b", "s", format).0;
                prop_assert!(shown.starts_with("<tr"));
                prop_assert!(!shown.contains('\0'));
            }
        }

        #[test]
        fn indented_json_means_the_same(text in r#"[\[\]{}",:a0-9 \\]{0,40}"#) {
            if let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) {
                let shown = indented(&text).unwrap();
                prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
            }
        }
    }
}
