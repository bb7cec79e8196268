//! Is everything healthy, how long would a recovery take now, what do the snapshots cover, what changed?

use std::cmp::Reverse;
use std::collections::BTreeMap;

use axum::extract::{Query, State};
use axum::response::Response;
use esker_server::admin::cluster::ClusterView;
use esker_server::admin::history::Samples;
use esker_server::admin::status::{
    CopyKind, Partition, Predicted, Recovery, RoleName, Status, Wrong,
};
use maud::{Markup, html};
use serde::Deserialize;
use time::OffsetDateTime;

use crate::Console;
use crate::access::{Viewer, Watch};
use crate::api_client::{ApiError, Caller, path};
use crate::layout::{
    Page, PageError, Section, card, command, commands, failed_part, live as live_part, nothing,
    page as layout,
};
use crate::live::{Place, repeat};
use crate::plot::plot;
use crate::ruler::{Positions, ruler};
use crate::words::{ago, bytes, count, entries, seconds, several};

/// Partitions on a page. Each takes some 2 KB of it.
const PAGE: usize = 40;
/// Partitions that a problem names one by one.
const NAMED: usize = 20;

/// Which partitions to show.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Which {
    /// A partition's number.
    find: String,
    page: usize,
}

/// The page.
pub async fn page(
    State(console): State<Console>,
    Viewer(caller): Viewer,
    Query(which): Query<Which>,
) -> Page {
    let page_number = which.page.to_string();
    let source = path(
        "/dashboard/live/overview",
        &[
            ("find", Some(&*which.find).filter(|it| !it.is_empty())),
            ("page", Some(&*page_number).filter(|_| which.page > 0)),
        ],
    );
    let part = part(&console, &caller, &which).await?;
    let body = html! {
        (live_part(&source, &part))
        form.find method="get" action="/" {
            label for="find" { "Partition" }
            input id="find" name="find" inputmode="numeric" value=(which.find) size="6";
            button type="submit" { "Show" }
        }
        (commands("On the command line", &[
            ("the same, every two seconds", "esker status --watch".into()),
            ("a snapshot of every partition, now", "esker snapshot create".into()),
            ("restore the newest snapshots and compare them", "esker snapshot verify --restore".into()),
        ]))
    };
    Ok(layout(
        "Overview",
        Section::Overview,
        caller.token.is_some(),
        body,
    ))
}

/// What changes of it.
pub async fn live(
    State(console): State<Console>,
    watch: Watch,
    Query(which): Query<Which>,
) -> Result<Response, Response> {
    let place = Place::take(console, watch)?;
    Ok(repeat(place, move |console, caller| {
        let which = which.clone();
        async move { part(&console, &caller, &which).await }
    }))
}

async fn part(console: &Console, caller: &Caller, which: &Which) -> Result<Markup, PageError> {
    let status: Status = console.api.get(caller, "/esker/v1/status").await?;
    let history = console
        .api
        .get::<Samples>(caller, "/esker/v1/history")
        .await;
    let cluster = match status.in_cluster {
        true => Some(
            console
                .api
                .get::<ClusterView>(caller, "/esker/v1/cluster")
                .await,
        ),
        false => None,
    };
    Ok(render(
        &status,
        history,
        cluster,
        which,
        OffsetDateTime::now_utc(),
    ))
}

fn render(
    status: &Status,
    history: Result<Samples, ApiError>,
    cluster: Option<Result<ClusterView, ApiError>>,
    which: &Which,
    now: OffsetDateTime,
) -> Markup {
    let replicas = match &cluster {
        Some(Ok(view)) => replicas(view, status.node_id),
        _ => BTreeMap::new(),
    };
    html! {
        (banner(status))
        @if let Some(Err(error)) = &cluster { (failed_part(error)) }
        (cards(status))
        (problems(&status.problems))
        @match &history {
            Ok(history) => (plots(history, now)),
            Err(error) => (failed_part(error)),
        }
        (partitions(status, &replicas, which, now))
    }
}

fn banner(status: &Status) -> Markup {
    let wrong = status.problems.iter().filter(|it| !it.advice).count() as u64;
    let name = html! {
        span.who { "node " (status.node_id) " of cluster " (status.cluster_name) }
    };
    html! {
        @match (&status.not_serving, wrong) {
            (Some(why), _) => div.banner.bad role="alert" { strong { "Appends are not accepted. " } (why) " " (name) },
            (None, 0) => div.banner.good { strong { "All is well." } " " (name) },
            (None, wrong) => div.banner.bad role="alert" {
                strong { (several(wrong, "problem")) " need" @if wrong == 1 { "s" } " action." } " " (name)
            },
        }
    }
}

fn cards(status: &Status) -> Markup {
    let at_risk = status
        .partitions
        .iter()
        .map(|it| it.entries_at_risk)
        .sum::<u64>();
    let longest = status.partitions.iter().filter(|it| it.entries_at_risk > 0);
    let longest = longest.map(|it| it.seconds_at_risk).max();
    let database = status.partitions.iter().map(|it| it.database_bytes).sum();
    html! {
        div.cards {
            (card("Restart", &seconds(status.restart.seconds), html! {
                "after a crash now" (assumed(&status.restart))
                @if let Some(last) = &status.recovery { "; the last one took " (seconds(last.total_seconds)) (recovered(last)) }
            }))
            (card("Restore", &seconds(status.restore.seconds), html! {
                "everything from " (status.repository) (assumed(&status.restore))
            }))
            (card("At risk", &match at_risk { 0 => "nothing".to_owned(), some => entries(some) }, html! {
                @match longest {
                    Some(since) => { "the repository had everything " (seconds(since as f64)) " ago" },
                    None => "the repository has everything",
                }
            }))
            (card("Log", &bytes(status.log_bytes), html! { "of at most " (bytes(status.max_log_bytes)) }))
            (card("Database", &bytes(database), html! { (several(status.partitions.len() as u64, "partition")) }))
        }
    }
}

fn assumed(predicted: &Predicted) -> Markup {
    match predicted.assumed {
        true => html! { " (assumed: this node has not measured it yet)" },
        false => nothing(),
    }
}

fn recovered(last: &Recovery) -> Markup {
    let lossy = last
        .partitions
        .iter()
        .filter(|it| it.lost_after.is_some())
        .count() as u64;
    let rebuilt = last
        .partitions
        .iter()
        .filter(|it| it.source != CopyKind::Database)
        .count() as u64;
    html! {
        @if rebuilt > 0 { ", " (several(rebuilt, "partition")) " rebuilt" }
        @if lossy > 0 { ", " strong { (several(lossy, "partition")) " may have lost something" } }
        @if last.entries > 0 { ", " (entries(last.entries)) " replayed" }
    }
}

fn problems(problems: &[Wrong]) -> Markup {
    let (advice, wrong): (Vec<&Wrong>, Vec<&Wrong>) = problems.iter().partition(|it| it.advice);
    html! {
        @if !wrong.is_empty() {
            section.problems {
                h2 { "What is wrong" }
                @for one in wrong { (problem(one)) }
            }
        }
        @if !advice.is_empty() {
            details.advice {
                summary { "Advice: " (several(advice.len() as u64, "point")) }
                @for one in advice { (problem(one)) }
            }
        }
    }
}

fn problem(wrong: &Wrong) -> Markup {
    let named = wrong.partitions.iter().take(NAMED);
    let more = wrong.partitions.len().saturating_sub(NAMED);
    html! {
        div.problem-row {
            p {
                code { (wrong.code) } " "
                @if !wrong.partitions.is_empty() {
                    span.partitions {
                        "partition "
                        @for (at, partition) in named.enumerate() { @if at > 0 { ", " } (partition) }
                        @if more > 0 { " and " (more) " more" }
                        ": "
                    }
                }
                (wrong.what)
            }
            p.remedy {
                @match wrong.remedy.strip_prefix("esker ").filter(|it| !it.contains([',', ';', '.'])) {
                    Some(_) => (command(&wrong.remedy)),
                    None => (wrong.remedy),
                }
            }
        }
    }
}

fn plots(history: &Samples, now: OffsetDateTime) -> Markup {
    let of = |value: &dyn Fn(&esker_server::admin::history::HistorySample) -> Option<f64>| {
        let samples = history.samples.iter();
        samples.map(|it| (it.at, value(it))).collect::<Vec<_>>()
    };
    let rate = |number: u64, of: f64| Some(number as f64 / of.max(0.001));
    html! {
        section.plots aria-label="The last hour" {
            (plot("Records appended", now, &of(&|it| rate(it.records, it.seconds)), |it| format!("{}/s", count(it.round() as u64))))
            (plot("Append p99", now, &of(&|it| it.p99_seconds), seconds))
            (plot("Uploaded", now, &of(&|it| rate(it.bytes_uploaded, it.seconds)), |it| format!("{}/s", bytes(it.round() as u64))))
            (plot("Log entries a restart may replay", now, &of(&|it| Some(it.entries_above_floor as f64)), |it| count(it.round() as u64)))
        }
    }
}

/// What other nodes have applied, by partition.
fn replicas(view: &ClusterView, own: u64) -> BTreeMap<u64, Vec<(String, u64)>> {
    let groups = view.partitions.iter();
    let replicas = groups.map(|group| {
        let others = group.replicas.iter().filter(|it| it.node != own);
        let others = others.map(|it| (it.name.clone(), it.applied)).collect();
        (group.partition, others)
    });
    replicas.collect()
}

fn partitions(
    status: &Status,
    replicas: &BTreeMap<u64, Vec<(String, u64)>>,
    which: &Which,
    now: OffsetDateTime,
) -> Markup {
    let wanted = which.find.trim();
    let mut all: Vec<&Partition> = status.partitions.iter().collect();
    all.retain(|it| wanted.is_empty() || it.partition.to_string() == wanted);
    let is_wrong = |of: &Partition| {
        let problems = status.problems.iter().filter(|it| !it.advice);
        problems
            .flat_map(|it| &it.partitions)
            .any(|it| *it == of.partition)
    };
    // The worst first: what is wrong, what has no leader, what takes longest to be back.
    let longest = |of: &Partition| (of.restart.seconds * 1e6) as u64;
    let no_leader = |of: &Partition| status.in_cluster && of.leader.is_none();
    all.sort_by_cached_key(|of| {
        let worst = (
            is_wrong(of),
            no_leader(of),
            longest(of) / 100_000,
            of.seconds_at_risk / 60,
        );
        (Reverse(worst), of.partition)
    });
    let pages = all.len().div_ceil(PAGE).max(1);
    let number = which.page.min(pages - 1);
    let shown = all.iter().skip(number * PAGE).take(PAGE);
    html! {
        section {
            h2 { "Partitions" }
            p.legend {
                span.key.log {} "log" span.key.replayed {} "a restart replays" span.key.at-risk {} "not in the repository"
                span.key.durable {} "durable" span.key.floor {} "floor" span.key.archived {} "archived"
                @if status.in_cluster { span.key.replica {} "another node" }
            }
            @if all.is_empty() { p { "There is no partition " (wanted) "." } }
            @for of in shown { (partition(of, status, replicas.get(&of.partition), is_wrong(of), now)) }
            @if pages > 1 {
                nav.pages aria-label="More partitions" {
                    @for at in 0..pages {
                        a href=(path("/", &[("page", Some(&at.to_string()))])) aria-current=[(at == number).then_some("page")] { (at + 1) }
                    }
                }
            }
        }
    }
}

fn partition(
    of: &Partition,
    status: &Status,
    replicas: Option<&Vec<(String, u64)>>,
    is_wrong: bool,
    now: OffsetDateTime,
) -> Markup {
    let positions = Positions {
        head: of.log_head,
        floor: of.floor,
        archived: of.archived,
        newest: of.newest.as_ref().map(|it| it.lsn),
        durable: of.durable,
        applied: of.applied,
        tail: of.last,
        replicas: replicas.cloned().unwrap_or_default(),
    };
    let number = of.partition.to_string();
    let snapshots = path("/dashboard/snapshots", &[("partition", Some(&number))]);
    html! {
        article.partition class=[is_wrong.then_some("bad")] {
            h3 {
                "Partition " (of.partition) @if of.partition == 0 { " (catalog)" }
                @if status.in_cluster {
                    span.role { (role(of.role)) @match &of.leader { Some(leader) => { ", led by " (leader.name) }, None => ", no leader known" } }
                }
            }
            (ruler(&positions))
            p.positions {
                "head " b { (count(of.log_head)) } " · floor " b { (count(of.floor)) }
                @if let Some(archived) = of.archived { " · archived " b { (count(archived)) } }
                " · durable " b { (count(of.durable)) } " · applied " b { (count(of.applied)) } " · tail " b { (count(of.last)) }
            }
            p.more {
                "restart " b { (seconds(of.restart.seconds)) } " · restore " b { (seconds(of.restore.seconds)) } " · "
                @match &of.newest {
                    Some(newest) => { a href=(snapshots) { "newest snapshot" } " at LSN " (count(newest.lsn)) ", " (ago(newest.created_at, now)) },
                    None => a href=(snapshots) { "no snapshot" },
                }
                " · "
                @match &of.proven {
                    Some(proven) => { "proven " (ago(proven.at, now)) },
                    None => "never proven since the start",
                }
                @if of.entries_at_risk > 0 { " · " b { (entries(of.entries_at_risk)) } " at risk for " (seconds(of.seconds_at_risk as f64)) }
                @if of.damaged > 0 { " · " b { (several(of.damaged, "damaged snapshot")) } }
            }
        }
    }
}

/// The role in words.
pub fn role(role: RoleName) -> &'static str {
    match role {
        RoleName::Leader => "leader",
        RoleName::Follower => "follower",
        RoleName::Candidate => "candidate",
        RoleName::Learner => "learner",
    }
}
