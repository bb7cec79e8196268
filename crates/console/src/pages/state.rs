//! The state store: agents, the keys of one, and commits as they come.

use axum::extract::{Query, State};
use axum::response::Response;
use esker_server::admin::state::{Agents, Commit, Commits, Keys, StoreStatus};
use maud::{Markup, html};
use serde::Deserialize;
use time::OffsetDateTime;

use crate::Console;
use crate::access::{Viewer, Watch};
use crate::api_client::{ApiError, Caller, path};
use crate::layout::{
    LIST_BYTES, Page, PageError, Section, commands, facts, failed_part, fitting, live as live_part,
    page as layout, table,
};
use crate::live::{Place, repeat};
use crate::shell;
use crate::words::{ago, bytes, count, label, moment, several, visible};

/// Agents or keys on a page.
const PAGE: usize = 50;
/// Commits that the log shows.
const COMMITS: usize = 20;
/// Operations of a commit that the log shows.
const OPERATIONS: usize = 10;
/// Bytes of the page that the list takes, and the log beside it.
const HALF_BYTES: usize = LIST_BYTES / 2;
/// Bytes of the page that the operations of a commit take, beyond the first one.
const COMMIT_BYTES: usize = 4000;

/// Which agents, or which keys of one.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Which {
    namespace: Option<String>,
    agent: Option<String>,
    after_namespace: Option<String>,
    after_agent: Option<String>,
    prefix: String,
    after: Option<String>,
    /// As of which commit.
    commit_ts: String,
}

/// The page.
pub async fn page(
    State(console): State<Console>,
    Viewer(caller): Viewer,
    Query(which): Query<Which>,
) -> Page {
    let status: StoreStatus = console.api.get(&caller, "/esker/v1/state").await?;
    let list = match (&which.namespace, &which.agent) {
        (Some(namespace), Some(agent)) => {
            keys(&console, &caller, &which, namespace, agent, &status).await?
        }
        _ => agents(&console, &caller, &which).await?,
    };
    let log = match commits(&console, &caller).await {
        Ok(log) => log,
        Err(error) => failed_part(&error),
    };
    let body = html! {
        (facts(&[
            ("newest commit", html! { (count(status.commit_ts)) }),
            ("history begins", html! { "at commit " (count(status.history_begins)) }),
            ("keys", html! { (count(status.keys)) ", deleted ones included" }),
            ("open transactions", html! { (count(status.open_transactions)) ", " (bytes(status.open_transaction_bytes)) }),
            ("JSON snapshot", html! {
                @match status.newest_snapshot {
                    Some(at) => { "of commit " (count(at)) ", " (several(status.commits_since_snapshot, "commit")) " ago" },
                    None => "none yet",
                }
                @if let Some(failure) = &status.last_failure { " " strong.bad { (failure) } }
            }),
        ]))
        div.columns {
            div { (list) }
            section {
                h2 { "Commits" }
                (live_part("/dashboard/live/commits", &log))
            }
        }
        (commands("On the command line", &[
            ("commits, from the first that is kept", "esker state replay".into()),
            ("a JSON snapshot, now", "esker state snapshot".into()),
            ("compare snapshot and replay with the live state", "esker state verify".into()),
        ]))
    };
    let title = match (&which.namespace, &which.agent) {
        (Some(namespace), Some(agent)) => format!("{} / {}", label(namespace), label(agent)),
        _ => "State".to_owned(),
    };
    Ok(layout(&title, Section::State, &caller, body))
}

async fn agents(console: &Console, caller: &Caller, which: &Which) -> Result<Markup, PageError> {
    let asked = path(
        "/esker/v1/state/agents",
        &[
            ("after_namespace", which.after_namespace.as_deref()),
            ("after_agent", which.after_agent.as_deref()),
            ("limit", Some(&PAGE.to_string())),
        ],
    );
    let agents: Agents = console.api.get(caller, &asked).await?;
    let (rows, shown) = fitting(&agents.agents, HALF_BYTES, |it| {
        let query = [
            ("namespace", Some(&*it.namespace)),
            ("agent", Some(&*it.agent)),
        ];
        html! {
            tr {
                td { (label(&it.namespace)) }
                th scope="row" { a href=(path("/dashboard/state", &query)) { (label(&it.agent)) } }
            }
        }
    });
    // Those that did not fit come with the next page.
    let next = match shown < agents.agents.len() {
        true => agents.agents[..shown].last(),
        false => agents.next.as_ref(),
    };
    Ok(html! {
        h2 { "Agents" }
        form.find method="get" action="/dashboard/state" {
            label for="namespace" { "Namespace" }
            input id="namespace" name="namespace" value="default" size="12" required;
            label for="agent" { "agent" }
            input id="agent" name="agent" size="16" required;
            button type="submit" { "Show" }
        }
        @if agents.agents.is_empty() && next.is_none() { p { "There are none." } }
        @else { (table("Agents", &["Namespace", "Agent"], rows)) }
        nav.pages aria-label="More agents" {
            @if which.after_agent.is_some() { a href="/dashboard/state" { "From the beginning" } }
            @if let Some(next) = next {
                a rel="next" href=(path("/dashboard/state", &[
                    ("after_namespace", Some(&next.namespace)), ("after_agent", Some(&next.agent)),
                ])) { "Next " (PAGE) }
            }
        }
    })
}

/// The commit that somebody wants to see; `None` for the present.
pub fn commit(text: &str) -> Result<Option<u64>, PageError> {
    match text.trim() {
        "" => Ok(None),
        text => {
            let number = text.replace(',', "").parse();
            let invalid = |_| PageError::Invalid(format!("{text} is no commit"));
            number.map(Some).map_err(invalid)
        }
    }
}

async fn keys(
    console: &Console,
    caller: &Caller,
    which: &Which,
    namespace: &str,
    agent: &str,
    status: &StoreStatus,
) -> Result<Markup, PageError> {
    let at = commit(&which.commit_ts)?.map(|it| it.to_string());
    let asked = path(
        "/esker/v1/state/keys",
        &[
            ("namespace", Some(namespace)),
            ("agent", Some(agent)),
            ("prefix", Some(&*which.prefix).filter(|it| !it.is_empty())),
            ("after", which.after.as_deref()),
            ("commit_ts", at.as_deref()),
            ("limit", Some(&PAGE.to_string())),
        ],
    );
    let keys: Keys = console.api.get(caller, &asked).await?;
    let at = at.as_deref();
    let (rows, shown) = fitting(&keys.keys, HALF_BYTES, |it| {
        let target = path(
            "/dashboard/key",
            &[
                ("namespace", Some(namespace)),
                ("agent", Some(agent)),
                ("key", Some(&it.key)),
                ("commit_ts", at),
            ],
        );
        html! {
            tr {
                th scope="row" { a href=(target) { (label(&it.key)) } }
                td.number { (count(it.version)) } td.number { (count(it.commit_ts)) } td.number { (bytes(it.bytes)) }
            }
        }
    });
    // Those that did not fit come with the next page.
    let next = match shown < keys.keys.len() {
        true => keys.keys[..shown].last().map(|it| it.key.as_str()),
        false => keys.next.as_deref(),
    };
    let here = |commit_ts: Option<&str>, after: Option<&str>| {
        path(
            "/dashboard/state",
            &[
                ("namespace", Some(namespace)),
                ("agent", Some(agent)),
                ("prefix", Some(&*which.prefix).filter(|it| !it.is_empty())),
                ("after", after),
                ("commit_ts", commit_ts),
            ],
        )
    };
    let as_of = keys.commit_ts.to_string();
    Ok(html! {
        p { a href="/dashboard/state" { "All agents" } }
        form.find method="get" action="/dashboard/state" {
            input type="hidden" name="namespace" value=(namespace);
            input type="hidden" name="agent" value=(agent);
            label for="prefix" { "Keys that begin with" }
            input id="prefix" name="prefix" value=(which.prefix) size="24";
            (slider(status, keys.commit_ts))
            button type="submit" { "Show" }
        }
        (steps(status, keys.commit_ts, |at| here(Some(&at.to_string()), None)))
        p {
            @match at {
                Some(_) => { "As it was after commit " b { (count(keys.commit_ts)) } ". " a href=(here(None, None)) { "As it is now" } },
                None => { "As it is now, after commit " b { (count(keys.commit_ts)) } "." },
            }
        }
        @if keys.keys.is_empty() && next.is_some() { p { "None so far: the keys that were looked at are deleted, or were not written by then." } }
        @else if keys.keys.is_empty() { p { "There are no such keys." } }
        @else { (table("Keys", &["Key", "#Version", "#Commit", "#Size"], rows)) }
        nav.pages aria-label="More keys" {
            @if which.after.is_some() { a href=(here(Some(&as_of), None)) { "From the beginning" } }
            @if let Some(next) = next { a rel="next" href=(here(Some(&as_of), Some(next))) { "Next " (PAGE) } }
        }
        (commands("Of this agent", &[
            ("these keys", shell::command("esker state keys", &[("--namespace", namespace)], &[agent])),
        ]))
    })
}

/// Chooses a commit among those that are kept.
pub fn slider(status: &StoreStatus, at: u64) -> Markup {
    html! {
        label for="commit_ts" { "As of commit" }
        input.slider type="range" id="slider" aria-label="As of commit" min=(first(status)) max=(status.commit_ts) value=(at) data-slider="commit_ts";
        input id="commit_ts" name="commit_ts" inputmode="numeric" size="10" value=(at);
    }
}

/// The earliest state that can be shown.
fn first(status: &StoreStatus) -> u64 {
    status
        .history_begins
        .saturating_sub(1)
        .min(status.commit_ts)
}

/// Links to commits near the one that is shown: of a million commits, a slider reaches one in thousands.
pub fn steps(status: &StoreStatus, at: u64, to: impl Fn(u64) -> String) -> Markup {
    let (first, last) = (first(status), status.commit_ts);
    let range = last - first;
    let mut sizes = vec![1_u64];
    sizes.extend([100, 10_000].into_iter().filter(|size| *size < range));
    let back = sizes.iter().rev().map(|size| {
        (
            at.saturating_sub(*size).max(first),
            format!("−{}", count(*size)),
        )
    });
    let forth = sizes.iter().map(|size| {
        (
            at.saturating_add(*size).min(last),
            format!("+{}", count(*size)),
        )
    });
    let links = back.chain(forth).filter(|(target, _)| *target != at);
    html! {
        nav.pages aria-label="Other commits" {
            @if at > first { a href=(to(first)) { "First" } }
            @for (target, name) in links { a href=(to(target)) { (name) } }
            @if at < last { a href=(to(last)) { "Newest" } }
        }
    }
}

/// The newest commits.
pub async fn live(State(console): State<Console>, watch: Watch) -> Result<Response, Response> {
    let place = Place::take(console, watch)?;
    Ok(repeat(place, async |console: Console, caller: Caller| {
        Ok(commits(&console, &caller).await?)
    }))
}

async fn commits(console: &Console, caller: &Caller) -> Result<Markup, ApiError> {
    let asked = path(
        "/esker/v1/state/commits",
        &[("limit", Some(&COMMITS.to_string()))],
    );
    let commits: Commits = console.api.get(caller, &asked).await?;
    let now = OffsetDateTime::now_utc();
    let (rows, _) = fitting(commits.commits.iter().rev(), HALF_BYTES, |it| {
        commit_row(it, now)
    });
    Ok(html! {
        @if commits.commits.is_empty() { p { "There are none." } }
        ol.commits { (rows) }
    })
}

fn commit_row(it: &Commit, now: OffsetDateTime) -> Markup {
    let at = it.commit_ts.to_string();
    let (operations, shown) = fitting(it.operations.iter().take(OPERATIONS), COMMIT_BYTES, |of| {
        let target = path(
            "/dashboard/key",
            &[
                ("namespace", Some(&of.namespace)),
                ("agent", Some(&of.agent)),
                ("key", Some(&of.key)),
                ("commit_ts", Some(&at)),
            ],
        );
        html! {
            li {
                a href=(target) { (label(&of.namespace)) " / " (label(&of.agent)) " / " (label(&of.key)) }
                " " @if of.deleted { "deleted" } @else { "version " (of.version) ", " (bytes(of.bytes)) }
            }
        }
    });
    html! {
        li {
            p {
                b { (count(it.commit_ts)) } " " time datetime=(moment(it.at)) title=(moment(it.at)) { (ago(it.at, now)) }
                " " code.quiet { (visible(&it.txn_id)) }
            }
            ul {
                (operations)
                @if it.operations.len() > shown {
                    li { "and " (several((it.operations.len() - shown) as u64, "more operation")) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use esker_server::admin::state::CommitOperation;

    use super::*;

    fn status(history_begins: u64, commit_ts: u64) -> StoreStatus {
        StoreStatus {
            commit_ts,
            history_begins,
            keys: 0,
            open_transactions: 0,
            open_transaction_bytes: 0,
            newest_snapshot: None,
            commits_since_snapshot: 0,
            last_failure: None,
        }
    }

    fn targets(status: &StoreStatus, at: u64) -> Vec<u64> {
        let shown = steps(status, at, |at| format!("?{at}")).0;
        let found = shown.split("href=\"?").skip(1);
        found
            .map(|it| it.split('"').next().unwrap().parse().unwrap())
            .collect()
    }

    #[test]
    fn each_of_a_million_commits_is_a_few_steps_away() {
        let million = status(1, 1_000_000);
        let near = targets(&million, 500_000);
        assert_eq!(
            near,
            [
                0, 490_000, 499_900, 499_999, 500_001, 500_100, 510_000, 1_000_000
            ]
        );
        assert_eq!(targets(&million, 1_000_000), [0, 990_000, 999_900, 999_999]);
        assert_eq!(targets(&million, 0), [1, 100, 10_000, 1_000_000]);
        // An empty store, and one commit.
        assert_eq!(targets(&status(1, 0), 0), Vec::<u64>::new());
        assert_eq!(targets(&status(1, 1), 1), [0, 0]);
        assert_eq!(targets(&status(5, 9), 20), [4, 19, 9]);
    }

    #[test]
    fn a_log_of_commits_fits_into_a_page_whatever_their_keys() {
        let operation = CommitOperation {
            namespace: "\u{202e}".repeat(300),
            agent: "<".repeat(900),
            key: "\"".repeat(900),
            version: 1,
            deleted: false,
            bytes: 1,
        };
        let commit = Commit {
            commit_ts: 1,
            txn_id: "t".to_owned(),
            at: OffsetDateTime::UNIX_EPOCH,
            operations: vec![operation; OPERATIONS * 2],
        };
        let commits = vec![commit; COMMITS];
        let now = OffsetDateTime::UNIX_EPOCH;
        let (rows, shown) = fitting(&commits, HALF_BYTES, |it| commit_row(it, now));
        assert!(
            shown >= 1 && rows.0.len() <= HALF_BYTES,
            "{shown} {}",
            rows.0.len()
        );
        assert!(rows.0.contains("more operations"));
    }
}
