//! The state store: agents, the keys of one, and commits as they come.

use axum::extract::{Query, State};
use axum::response::Response;
use esker_server::admin::state::{Agents, Commits, Keys, StoreStatus};
use maud::{Markup, html};
use serde::Deserialize;
use time::OffsetDateTime;

use crate::Console;
use crate::access::{Viewer, Watch};
use crate::api_client::{ApiError, Caller, path};
use crate::layout::{
    Page, PageError, Section, commands, facts, failed_part, live as live_part, page as layout,
    quoted,
};
use crate::live::{Place, repeat};
use crate::words::{ago, bytes, count, moment, several, visible};

/// Agents or keys on a page.
const PAGE: usize = 50;
/// Commits that the log shows.
const COMMITS: usize = 20;
/// Operations of a commit that the log shows.
const OPERATIONS: usize = 10;

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
        (Some(namespace), Some(agent)) => format!("{} / {}", visible(namespace), visible(agent)),
        _ => "State".to_owned(),
    };
    Ok(layout(&title, Section::State, caller.token.is_some(), body))
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
    Ok(html! {
        h2 { "Agents" }
        @if agents.agents.is_empty() { p { "There are none." } }
        @else {
            table {
                thead { tr { th scope="col" { "Namespace" } th scope="col" { "Agent" } } }
                tbody {
                    @for it in &agents.agents {
                        tr {
                            td { (visible(&it.namespace)) }
                            th scope="row" {
                                a href=(path("/dashboard/state", &[("namespace", Some(&it.namespace)), ("agent", Some(&it.agent))])) {
                                    (visible(&it.agent))
                                }
                            }
                        }
                    }
                }
            }
        }
        @if let Some(next) = &agents.next {
            nav.pages aria-label="More agents" {
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
        p {
            @match at {
                Some(_) => { "As it was after commit " b { (count(keys.commit_ts)) } ". "
                    a href=(path("/dashboard/state", &[("namespace", Some(namespace)), ("agent", Some(agent))])) { "As it is now" } },
                None => { "As it is now, after commit " b { (count(keys.commit_ts)) } "." },
            }
        }
        @if keys.keys.is_empty() { p { "There are no such keys." } }
        @else {
            div.scroll tabindex="0" role="region" aria-label="Keys" {
                table {
                    thead { tr {
                        th scope="col" { "Key" } th scope="col" { "Version" } th scope="col" { "Commit" } th scope="col" { "Size" }
                    } }
                    tbody {
                        @for it in &keys.keys {
                            tr {
                                th scope="row" {
                                    a href=(path("/dashboard/key", &[
                                        ("namespace", Some(namespace)), ("agent", Some(agent)), ("key", Some(&it.key)), ("commit_ts", at),
                                    ])) { (visible(&it.key)) }
                                }
                                td.number { (count(it.version)) } td.number { (count(it.commit_ts)) } td.number { (bytes(it.bytes)) }
                            }
                        }
                    }
                }
            }
        }
        @if let Some(next) = &keys.next {
            nav.pages aria-label="More keys" {
                a rel="next" href=(path("/dashboard/state", &[
                    ("namespace", Some(namespace)), ("agent", Some(agent)), ("after", Some(next)),
                    ("prefix", Some(&*which.prefix).filter(|it| !it.is_empty())),
                    ("commit_ts", Some(&keys.commit_ts.to_string())),
                ])) { "Next " (PAGE) }
            }
        }
        (commands("For programs", &[
            ("these keys", format!("esker state keys {} --namespace {}", quoted(agent), quoted(namespace))),
        ]))
    })
}

/// Chooses a commit among those that are kept.
pub fn slider(status: &StoreStatus, at: u64) -> Markup {
    let first = status
        .history_begins
        .saturating_sub(1)
        .min(status.commit_ts);
    html! {
        label for="commit_ts" { "As of commit" }
        input.slider type="range" id="slider" aria-label="As of commit" min=(first) max=(status.commit_ts) value=(at) data-slider="commit_ts";
        input id="commit_ts" name="commit_ts" inputmode="numeric" size="10" value=(at);
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
    Ok(html! {
        @if commits.commits.is_empty() { p { "There are none." } }
        ol.commits {
            @for it in commits.commits.iter().rev() {
                li {
                    p {
                        b { (count(it.commit_ts)) } " " time datetime=(moment(it.at)) title=(moment(it.at)) { (ago(it.at, now)) }
                        " " code.quiet { (it.txn_id) }
                    }
                    ul {
                        @for of in it.operations.iter().take(OPERATIONS) {
                            li {
                                a href=(path("/dashboard/key", &[
                                    ("namespace", Some(&of.namespace)), ("agent", Some(&of.agent)), ("key", Some(&of.key)),
                                    ("commit_ts", Some(&it.commit_ts.to_string())),
                                ])) { (visible(&of.namespace)) " / " (visible(&of.agent)) " / " (visible(&of.key)) }
                                " " @if of.deleted { "deleted" } @else { "version " (of.version) ", " (bytes(of.bytes)) }
                            }
                        }
                        @if it.operations.len() > OPERATIONS {
                            li { "and " (several((it.operations.len() - OPERATIONS) as u64, "more operation")) }
                        }
                    }
                }
            }
        }
    })
}
