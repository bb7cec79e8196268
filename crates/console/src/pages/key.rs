//! One key of the state store: its value, its versions, and how two of them differ.

use axum::extract::{Query, State};
use esker_server::admin::state::{StoreStatus, Value, Versions};
use maud::{Markup, html};
use serde::Deserialize;
use similar::{ChangeTag, TextDiff};

use super::record::indented;
use super::state::{commit, slider};
use crate::Console;
use crate::access::Viewer;
use crate::api_client::{ApiError, Caller, path};
use crate::layout::{Page, PageError, Section, commands, facts, page as layout, quoted};
use crate::words::{bytes, count, cut, visible};

/// Versions on a page.
const PAGE: usize = 50;
/// Characters of a value that are shown, and of each of two that are compared.
const SHOWN: usize = 40_000;
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
    let body = html! {
        p {
            a href=(path("/dashboard/state", &[("namespace", Some(namespace)), ("agent", Some(agent)), ("commit_ts", at.as_deref())])) {
                (visible(namespace)) " / " (visible(agent))
            }
        }
        form.find method="get" action="/dashboard/key" {
            input type="hidden" name="namespace" value=(namespace);
            input type="hidden" name="agent" value=(agent);
            input type="hidden" name="key" value=(key);
            (slider(&status, shown_at))
            button type="submit" { "Show" }
        }
        @match &value {
            Err(error) => (crate::layout::failed_part(error)),
            Ok(value) => {
                (facts(&[
                    ("version", html! { (count(value.version)) }),
                    ("written by commit", html! { (count(value.commit_ts)) }),
                    ("shown as of commit", html! { (count(shown_at)) }),
                ]))
                @match &value.value {
                    Some(json) => (json_text(json.get())),
                    None => p { @if value.version == 0 { "The key was not written by then." } @else { "The key was deleted by then." } },
                }
            }
        }
        @if let Some(difference) = &difference { (difference) }
        (list(&which, &versions))
        (commands("On the command line", &[
            ("the value now", format!("esker state get {} {} --namespace {}", quoted(agent), quoted(key), quoted(namespace))),
            ("its versions", format!("esker state history {} {} --namespace {}", quoted(agent), quoted(key), quoted(namespace))),
        ]))
    };
    Ok(layout(
        &visible(key),
        Section::State,
        caller.token.is_some(),
        body,
    ))
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
    let (shown, is_cut) = cut(&text, SHOWN);
    html! {
        pre.body tabindex="0" { (shown) }
        @if is_cut { p { "and more: " (bytes(json.len() as u64)) " in all" } }
    }
}

fn list(which: &Which, versions: &Versions) -> Markup {
    let this = |more: &[(&str, Option<&str>)]| of_key("/dashboard/key", which, more);
    html! {
        section {
            h2 { "Versions" }
            @if versions.versions.is_empty() { p { "None are kept." } }
            @else {
                table {
                    thead { tr {
                        th scope="col" { "Version" } th scope="col" { "Commit" } th scope="col" { "Size" } th scope="col" { "Compare" }
                    } }
                    tbody {
                        @for it in &versions.versions {
                            @let (version, commit_ts) = (it.version.to_string(), it.commit_ts.to_string());
                            @let before = it.version.saturating_sub(1);
                            tr {
                                th scope="row" { a href=(this(&[("commit_ts", Some(&commit_ts))])) { (count(it.version)) } }
                                td.number { (count(it.commit_ts)) }
                                td.number { @if it.deleted { "deleted" } @else { (bytes(it.bytes)) } }
                                td {
                                    @if before > 0 {
                                        a href=(this(&[("old", Some(&before.to_string())), ("new", Some(&version))])) { "with version " (before) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
            @if let Some(next) = versions.next {
                nav.pages aria-label="More versions" { a rel="next" href=(this(&[("before", Some(&next.to_string()))])) { "Earlier ones" } }
            }
            form.find method="get" action="/dashboard/key" {
                input type="hidden" name="namespace" value=(which.namespace);
                input type="hidden" name="agent" value=(which.agent);
                input type="hidden" name="key" value=(which.key);
                label for="old" { "Compare version" }
                input id="old" name="old" inputmode="numeric" size="8" required value=[which.old];
                label for="new" { "with" }
                input id="new" name="new" inputmode="numeric" size="8" required value=[which.new];
                button type="submit" { "Compare" }
            }
        }
    }
}

async fn difference(
    console: &Console,
    caller: &Caller,
    which: &Which,
    old: u64,
    new: u64,
) -> Result<Markup, PageError> {
    let text = async |version: u64| -> Result<String, PageError> {
        let version = version.to_string();
        let value = value(console, caller, which, ("version", Some(&version))).await?;
        let json = value.value.as_ref().map_or("", |json| json.get());
        let text = visible(&indented(json).unwrap_or_default());
        Ok(cut(&text, SHOWN).0.to_owned())
    };
    let (before, after) = (text(old).await?, text(new).await?);
    Ok(html! {
        section {
            h2 { "From version " (count(old)) " to " (count(new)) }
            (lines(&before, &after))
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
}
