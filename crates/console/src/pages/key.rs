//! One key of the state store: its value, its versions, and how two of them differ.

use axum::extract::{Query, State};
use esker_server::admin::state::{StoreStatus, Value, Versions};
use maud::{Markup, html};
use serde::Deserialize;
use similar::{ChangeTag, TextDiff};

use super::record::indented;
use super::state::{commit, slider, steps};
use crate::Console;
use crate::access::Viewer;
use crate::api_client::{ApiError, Caller, path};
use crate::layout::{
    LIST_BYTES, Page, PageError, Section, commands, facts, failed_part, fitting, page as layout,
    table,
};
use crate::shell;
use crate::words::{bytes, count, cut, label, visible};

/// Versions on a page.
const PAGE: usize = 50;
/// Bytes of the page that a value takes.
const SHOWN_BYTES: usize = 45_000;
/// The same of each of two that are compared.
const DIFF_BYTES: usize = 12_000;
/// With names of more bytes than this, a page has fewer links.
const LONG: usize = 1500;
/// Lines of a difference that are shown.
const LINES: usize = 1500;
/// How long a comparison may take; what is left then counts as replaced.
const DIFF_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(50);

/// Which key.
#[derive(Deserialize)]
pub struct Which {
    namespace: String,
    agent: String,
    key: String,
    /// As of which commit.
    #[serde(default)]
    commit_ts: String,
    /// Versions before this one are listed.
    #[serde(default)]
    before: Option<u64>,
    /// Two versions that are compared.
    #[serde(default)]
    old: Option<u64>,
    #[serde(default)]
    new: Option<u64>,
}

/// The page.
pub async fn page(
    State(console): State<Console>,
    Viewer(caller): Viewer,
    Query(which): Query<Which>,
) -> Page {
    let status: StoreStatus = console.api.get(&caller, "/esker/v1/state").await?;
    let at = commit(&which.commit_ts)?.map(|it| it.to_string());
    let value = value(&console, &caller, &which, ("commit_ts", at.as_deref())).await;
    let (before, limit) = (which.before.map(|it| it.to_string()), PAGE.to_string());
    let listed = of_key(
        "/esker/v1/state/versions",
        &which,
        &[("before", before.as_deref()), ("limit", Some(&limit))],
    );
    let versions: Versions = console.api.get(&caller, &listed).await?;
    let difference = match (which.old, which.new) {
        (Some(old), Some(new)) => Some(difference(&console, &caller, &which, old, new).await?),
        _ => None,
    };
    let (namespace, agent, key) = (&which.namespace, &which.agent, &which.key);
    let shown_at = at
        .as_deref()
        .and_then(|it| it.parse().ok())
        .unwrap_or(status.commit_ts);
    let of_agent = [
        ("namespace", Some(&**namespace)),
        ("agent", Some(&**agent)),
        ("commit_ts", at.as_deref()),
    ];
    let in_namespace = [("--namespace", namespace.as_str())];
    let names: [&str; 2] = [agent, key];
    let as_of = |at: u64| {
        of_key(
            "/dashboard/key",
            &which,
            &[("commit_ts", Some(&at.to_string()))],
        )
    };
    let body = html! {
        p { a href=(path("/dashboard/state", &of_agent)) { (label(namespace)) " / " (label(agent)) } }
        form.find method="get" action="/dashboard/key" {
            (names_of(&which))
            (slider(&status, shown_at))
            button type="submit" { "Show" }
        }
        @if !which.is_long() { (steps(&status, shown_at, as_of)) }
        @match &value {
            Err(error) => (failed_part(error)),
            Ok(value) => (shown(value, shown_at)),
        }
        @if let Some(difference) = &difference { (difference) }
        (list(&which, &versions))
        (commands("On the command line", &[
            ("the value now", shell::command("esker state get", &in_namespace, &names)),
            ("its versions", shell::command("esker state history", &in_namespace, &names)),
        ]))
    };
    Ok(layout(&label(key), Section::State, &caller, body))
}

/// A value, and where it comes from.
fn shown(value: &Value, at: u64) -> Markup {
    html! {
        (facts(&[
            ("shown as of commit", html! { (count(at)) }),
            ("version", html! { @match value.version { 0 => "none", version => (count(version)) } }),
            ("written by commit", html! { @match value.version { 0 => "none", _ => (count(value.commit_ts)) } }),
        ]))
        @match &value.value {
            Some(json) => (json_text(json.get())),
            None => p { @match value.version { 0 => "The key was not written by then.", _ => "The key was deleted by then." } },
        }
    }
}

impl Which {
    /// Whether the names are so long that few links with them fit into a page.
    fn is_long(&self) -> bool {
        self.namespace.len() + self.agent.len() + self.key.len() > LONG
    }
}

/// The fields of a form that name the key.
fn names_of(which: &Which) -> Markup {
    html! {
        input type="hidden" name="namespace" value=(which.namespace);
        input type="hidden" name="agent" value=(which.agent);
        input type="hidden" name="key" value=(which.key);
    }
}

fn of_key(base: &str, which: &Which, more: &[(&str, Option<&str>)]) -> String {
    let mut query = vec![
        ("namespace", Some(which.namespace.as_str())),
        ("agent", Some(which.agent.as_str())),
        ("key", Some(which.key.as_str())),
    ];
    query.extend_from_slice(more);
    path(base, &query)
}

async fn value(
    console: &Console,
    caller: &Caller,
    which: &Which,
    at: (&str, Option<&str>),
) -> Result<Value, ApiError> {
    let asked = of_key("/esker/v1/state/value", which, &[at]);
    console.api.get(caller, &asked).await
}

fn json_text(json: &str) -> Markup {
    let text = visible(&indented(json).unwrap_or_else(|| json.to_owned()));
    let (shown, is_cut) = cut(&text, SHOWN_BYTES);
    html! {
        pre.body tabindex="0" { (shown) @if is_cut { "…" } }
        @if is_cut { p { "This is the beginning of " (bytes(json.len() as u64)) "." } }
    }
}

fn list(which: &Which, versions: &Versions) -> Markup {
    let this = |more: &[(&str, Option<&str>)]| of_key("/dashboard/key", which, more);
    let (rows, shown) = fitting(&versions.versions, LIST_BYTES / 3, |it| {
        let (version, commit_ts) = (it.version.to_string(), it.commit_ts.to_string());
        let before = it.version.saturating_sub(1);
        html! {
            tr {
                th scope="row" { a href=(this(&[("commit_ts", Some(&commit_ts))])) { (count(it.version)) } }
                td.number { (count(it.commit_ts)) }
                td.number { @if it.deleted { "deleted" } @else { (bytes(it.bytes)) } }
                td {
                    @if before > 0 && !which.is_long() {
                        a href=(this(&[("old", Some(&before.to_string())), ("new", Some(&version))])) { "with version " (count(before)) }
                    }
                }
            }
        }
    });
    // Those that did not fit come with the next page.
    let next = match shown < versions.versions.len() {
        true => versions.versions[..shown].last().map(|it| it.version),
        false => versions.next,
    };
    html! {
        section {
            h2 { "Versions" }
            @if versions.versions.is_empty() { p { "None are kept." } }
            @else { (table("Versions", &["Version", "#Commit", "#Size", "Compare"], rows)) }
            nav.pages aria-label="More versions" {
                @if which.before.is_some() { a href=(this(&[])) { "The newest" } }
                @if let Some(next) = next { a rel="next" href=(this(&[("before", Some(&next.to_string()))])) { "Earlier ones" } }
            }
            @if !which.is_long() {
                form.find method="get" action="/dashboard/key" {
                    (names_of(which))
                    label for="old" { "Compare version" }
                    input id="old" name="old" inputmode="numeric" size="8" required value=[which.old];
                    label for="new" { "with" }
                    input id="new" name="new" inputmode="numeric" size="8" required value=[which.new];
                    button type="submit" { "Compare" }
                }
            }
        }
    }
}

/// A version of a key that is to be compared.
#[derive(Debug, PartialEq)]
enum Compared {
    /// Its value, as indented text.
    Value(String),
    /// It is a deletion.
    Deleted,
    /// There is no such version.
    Absent,
}

impl Compared {
    fn of(value: &Value, version: u64) -> Compared {
        match &value.value {
            _ if value.version != version => Compared::Absent,
            None => Compared::Deleted,
            Some(json) => Compared::Value(visible(&indented(json.get()).unwrap_or_default())),
        }
    }

    /// What is said of it where it has no value.
    fn remark(&self, version: u64) -> Option<String> {
        match self {
            Compared::Value(_) => None,
            Compared::Deleted => Some(format!("Version {} is a deletion.", count(version))),
            Compared::Absent => Some(format!("There is no version {}.", count(version))),
        }
    }

    fn text(&self) -> &str {
        match self {
            Compared::Value(text) => cut(text, DIFF_BYTES).0,
            Compared::Deleted | Compared::Absent => "",
        }
    }

    fn is_cut(&self) -> bool {
        matches!(self, Compared::Value(text) if text.len() > self.text().len())
    }
}

/// How two versions differ. What is not kept, cannot be read now or does not exist is said in its place.
async fn difference(
    console: &Console,
    caller: &Caller,
    which: &Which,
    old: u64,
    new: u64,
) -> Result<Markup, PageError> {
    let read = async |version: u64| -> Result<Compared, ApiError> {
        let number = version.to_string();
        let value = value(console, caller, which, ("version", Some(&number))).await?;
        Ok(Compared::of(&value, version))
    };
    let (before, after) = (read(old).await, read(new).await);
    Ok(html! {
        section {
            h2 { "From version " (count(old)) " to " (count(new)) }
            @match (&before, &after) {
                (Err(error), _) | (_, Err(error)) => (failed_part(error)),
                (Ok(before), Ok(after)) => {
                    @for remark in [before.remark(old), after.remark(new)].into_iter().flatten() { p { (remark) } }
                    @if before == after { p { "They do not differ." } }
                    @else if *before != Compared::Absent && *after != Compared::Absent { (lines(before.text(), after.text())) }
                    @if before.is_cut() || after.is_cut() { p { "Only the beginnings are compared here." } }
                }
            }
        }
    })
}

fn lines(before: &str, after: &str) -> Markup {
    let diff = TextDiff::configure()
        .timeout(DIFF_TIMEOUT)
        .diff_lines(before, after);
    html! {
        pre.diff tabindex="0" {
            @for change in diff.iter_all_changes().take(LINES) {
                @match change.tag() {
                    ChangeTag::Delete => del { "- " (change.value().trim_end_matches('\n')) "\n" },
                    ChangeTag::Insert => ins { "+ " (change.value().trim_end_matches('\n')) "\n" },
                    ChangeTag::Equal => span { "  " (change.value().trim_end_matches('\n')) "\n" },
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_what_went_and_what_came() {
        let old = indented(r#"{"a":1,"b":"<b>"}"#).unwrap();
        let new = indented(r#"{"a":2,"b":"<b>"}"#).unwrap();
        let shown = lines(&old, &new).0;
        assert!(
            shown.contains("<del>-   &quot;a&quot;: 1,\n</del>"),
            "{shown}"
        );
        assert!(
            shown.contains("<ins>+   &quot;a&quot;: 2,\n</ins>"),
            "{shown}"
        );
        assert!(!shown.contains("<b>"), "{shown}");
    }

    #[test]
    fn a_deletion_an_absent_version_and_an_empty_value_are_told_apart() {
        let value = |version, json: Option<&str>| Value {
            exists: json.is_some(),
            value: json.map(|it| serde_json::from_str(it).unwrap()),
            version,
            commit_ts: 1,
        };
        assert_eq!(Compared::of(&value(3, None), 3), Compared::Deleted);
        assert_eq!(Compared::of(&value(0, None), 3), Compared::Absent);
        assert_eq!(
            Compared::of(&value(3, Some("{}")), 3),
            Compared::Value("{}".to_owned())
        );
        assert_eq!(
            Compared::Absent.remark(3).as_deref(),
            Some("There is no version 3.")
        );
        assert_eq!(
            Compared::Deleted.remark(3).as_deref(),
            Some("Version 3 is a deletion.")
        );
    }
}
