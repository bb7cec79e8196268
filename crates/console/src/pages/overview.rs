//! Is everything healthy, how long would a recovery take now, what do the snapshots cover, what changed?

use std::cmp::Reverse;
use std::collections::BTreeMap;

use axum::extract::{Query, State};
use axum::response::Response;
use esker_server::admin::cluster::ClusterView;
use esker_server::admin::history::Samples;
use esker_server::admin::snapshots::{Proven, Swept};
use esker_server::admin::status::{
    CopyKind, Newest, Partition, Predicted, Recovery, RoleName, Status, Wrong,
};
use maud::{Markup, html};
use serde::Deserialize;
use time::OffsetDateTime;

use crate::Console;
use crate::access::{Viewer, Watch};
use crate::api_client::{ApiError, Caller, path};
use crate::layout::{
    Page, PageError, Section, card, command, commands, failed_part, live as live_part, nothing,
    page as layout, page_links,
};
use crate::live::{Place, repeat};
use crate::plot::plot;
use crate::ruler::{Positions, ruler};
use crate::words::{ago, bytes, count, entries, moment, seconds, several, visible};

/// Partitions on a page. Each takes some 2 KB of it.
const PAGE: usize = 40;
/// Partitions that a problem names one by one.
const NAMED: usize = 20;
/// Changes that are listed.
const EVENTS: usize = 6;

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
    Ok(layout("Overview", Section::Overview, &caller, body))
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
        (problems(&status.problems))
        (cards(status, history.as_ref().ok()))
        @match &history {
            Ok(history) => (plots(history, now)),
            Err(error) => (failed_part(error)),
        }
        (lately(status, now))
        (partitions(status, &replicas, which, now))
    }
}

fn banner(status: &Status) -> Markup {
    let wrong = status.problems.iter().filter(|it| !it.advice).count() as u64;
    let name = html! {
        span.who { "node " (status.node_id) " of cluster " (visible(&status.cluster_name)) }
    };
    html! {
        @match (&status.not_serving, wrong) {
            (Some(why), _) => div.banner.bad role="alert" { span { strong { "Appends are not accepted. " } (why) } (name) },
            (None, 0) => div.banner.good { strong { "All is well." } (name) },
            (None, wrong) => div.banner.bad role="alert" {
                strong { (several(wrong, "problem")) " need" @if wrong == 1 { "s" } " action." } (name)
            },
        }
    }
}

fn cards(status: &Status, history: Option<&Samples>) -> Markup {
    let at_risk = status
        .partitions
        .iter()
        .map(|it| it.entries_at_risk)
        .sum::<u64>();
    let longest = status.partitions.iter().filter(|it| it.entries_at_risk > 0);
    let longest = longest.map(|it| it.seconds_at_risk).max();
    let database: u64 = status.partitions.iter().map(|it| it.database_bytes).sum();
    html! {
        div.cards {
            (card("Restart", &seconds(status.restart.seconds), html! {
                "after a crash now"
                @if let Some(last) = &status.recovery { "; the last start took " b { (seconds(last.total_seconds)) } (recovered(last)) }
                (assumed(&status.restart))
            }))
            (card("Restore", &seconds(status.restore.seconds), html! {
                "of everything, from " (visible(&status.repository)) (assumed(&status.restore))
            }))
            (card("At risk", &match at_risk { 0 => "nothing".to_owned(), some => entries(some) }, html! {
                @match longest {
                    Some(0) => "if this disk is lost: the repository had everything a moment ago",
                    Some(since) => { "if this disk is lost: the repository had everything " (whole_seconds(since)) " ago" },
                    None => "the repository has everything",
                }
            }))
            (snapshots_card(status, history))
            (card("Disk", &bytes(database + status.log_bytes), html! {
                "database " b { (bytes(database)) } " of " (several(status.partitions.len() as u64, "partition"))
                "; log " b { (bytes(status.log_bytes)) } " of at most " (bytes(status.max_log_bytes))
            }))
        }
    }
}

/// What the snapshots cost: what the sweeps have found in the repository, and what was uploaded lately.
fn snapshots_card(status: &Status, history: Option<&Samples>) -> Markup {
    let sweeps = status.partitions.iter().filter_map(|it| it.sweep.as_ref());
    // What a sweep has deleted is gone.
    let stored: Vec<(u64, u64)> = sweeps
        .map(|it| {
            (
                it.objects.saturating_sub(it.deleted),
                it.bytes.saturating_sub(it.deleted_bytes),
            )
        })
        .collect();
    let retained = status.partitions.iter().map(|it| it.retained).sum();
    let history = history.filter(|it| !it.samples.is_empty());
    let uploaded = history.map(|it| it.samples.iter().map(|it| it.bytes_uploaded).sum());
    let figure = match stored.is_empty() {
        true => "–".to_owned(),
        false => bytes(stored.iter().map(|(_, bytes)| bytes).sum()),
    };
    card(
        "Snapshots",
        &figure,
        html! {
            @match stored.is_empty() {
                true => "no sweep has looked at the repository since the start",
                false => {
                    "in " (several(stored.iter().map(|(objects, _)| objects).sum(), "object")) ", as of the last sweeps"
                    @if stored.len() < status.partitions.len() {
                        " of " (several(stored.len() as u64, "partition"))
                    }
                },
            }
            "; " (several(retained, "snapshot")) " retained"
            @if let Some(uploaded) = uploaded { "; " b { (bytes(uploaded)) } " uploaded in the last hour" }
        },
    )
}

/// Something that has changed.
#[derive(Clone, Copy)]
enum Event<'a> {
    Started,
    Snapshot(&'a Partition, &'a Newest),
    Proof(&'a Partition, &'a Proven),
    Sweep(&'a Partition, &'a Swept),
}

/// What has changed, the newest first.
fn lately(status: &Status, now: OffsetDateTime) -> Markup {
    let mut events: Vec<(OffsetDateTime, Event<'_>)> = Vec::new();
    events.extend(status.started_at.map(|at| (at, Event::Started)));
    for of in &status.partitions {
        let newest = of.newest.as_ref();
        events.extend(newest.map(|it| (it.created_at, Event::Snapshot(of, it))));
        let proven = of.proven.as_ref();
        events.extend(proven.map(|it| (it.at, Event::Proof(of, it))));
        let sweep = of.sweep.as_ref().filter(|it| it.deleted > 0);
        events.extend(sweep.map(|it| (it.at, Event::Sweep(of, it))));
    }
    events.sort_by_key(|(at, _)| Reverse(*at));
    html! {
        @if !events.is_empty() {
            section {
                h2 { "What changed" }
                ul.events {
                    @for (at, what) in events.into_iter().take(EVENTS) {
                        li { time datetime=(moment(at)) title=(moment(at)) { (ago(at, now)) } " " span { (event(what, status)) } }
                    }
                }
            }
        }
    }
}

fn event(event: Event<'_>, status: &Status) -> Markup {
    let link = |of: &Partition| {
        let number = of.partition.to_string();
        let target = path("/dashboard/snapshots", &[("partition", Some(&number))]);
        html! { a href=(target) { "partition " (of.partition) } }
    };
    html! {
        @match event {
            Event::Started => {
                "the node started"
                @if let Some(last) = &status.recovery { ", in " (seconds(last.total_seconds)) (recovered(last)) }
            },
            Event::Snapshot(of, newest) => { "a snapshot of " (link(of)) ", up to LSN " (count(newest.lsn)) },
            Event::Proof(of, proven) => {
                "a snapshot of " (link(of)) " was restored in " (seconds(proven.restore_seconds + proven.replay_seconds))
                " and found equal"
            },
            Event::Sweep(of, sweep) => {
                "a sweep of " (link(of)) " deleted " (several(sweep.deleted, "orphan")) ", " (bytes(sweep.deleted_bytes))
            },
        }
    }
}

fn assumed(predicted: &Predicted) -> Markup {
    match predicted.assumed {
        true => html! { " (assumed: not measured yet)" },
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
            h2 { "Partitions" @if pages > 1 { " (" (count(all.len() as u64)) ", the worst first)" } }
            p.legend {
                span { span.key.log {} "log" }
                span { span.key.replayed {} "a restart replays this" }
                span { span.key.at-risk {} "the repository does not have this" }
                span { span.key.floor {} "floor" }
                span { span.key.durable {} "durable" }
                span { span.key.archived {} "oldest and newest snapshot" }
                @if status.in_cluster { span { span.key.replica {} "another node" } }
            }
            @if all.is_empty() { p { "There is no partition " (visible(wanted)) "." } }
            div.partitions {
                @for of in shown { (partition(of, status, replicas.get(&of.partition), is_wrong(of), now)) }
            }
            (page_links("More partitions", pages, number, |at| path("/", &[("page", Some(&at.to_string()))])))
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
        is_at_risk: of.entries_at_risk > 0,
        replicas: replicas.cloned().unwrap_or_default(),
    };
    let number = of.partition.to_string();
    let snapshots = path("/dashboard/snapshots", &[("partition", Some(&number))]);
    let to_replay = of.last.saturating_sub(of.durable);
    let recovered = status.recovery.as_ref();
    let recovered =
        recovered.and_then(|it| it.partitions.iter().find(|it| it.partition == of.partition));
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
                span { "head " b { (count(of.log_head)) } } " "
                span { "floor " b { (count(of.floor)) } } " "
                @if let Some(archived) = of.archived { span { "archived " b { (count(archived)) } } " " }
                span { "durable " b { (count(of.durable)) } } " "
                span { "applied " b { (count(of.applied)) } } " "
                span { "tail " b { (count(of.last)) } }
                @for (name, lsn) in replicas.into_iter().flatten() { " " span.of-replica { (visible(name)) " " b { (count(*lsn)) } } }
            }
            p.more {
                "Restart " b { (seconds(of.restart.seconds)) }
                @match (to_replay, recovered.map_or(0, |it| it.replayed)) {
                    (0, 0) => "",
                    (now, before) => { " for " (entries(now)) ", " (count(before)) " the last time" },
                }
                "; restore " b { (seconds(of.restore.seconds)) } ". "
                @match &of.newest {
                    Some(newest) => { a href=(snapshots) { "Newest snapshot" } " " (ago(newest.created_at, now)) },
                    None => { a href=(snapshots) { "No snapshot" } " yet" },
                }
                @match &of.proven {
                    Some(proven) => { ", proven up to LSN " (count(proven.lsn)) " " (ago(proven.at, now)) "." },
                    None => { @if of.newest.is_some() { ", none proven since the start." } @else { "." } },
                }
                @if of.entries_at_risk > 0 { " " b { (entries(of.entries_at_risk)) } " at risk for " (whole_seconds(of.seconds_at_risk)) "." }
                @if of.damaged > 0 { " " b.bad { (several(of.damaged, "damaged snapshot")) "." } }
                @if of.abandoned > 0 { " " b { (several(of.abandoned, "snapshot")) } " of stale lineages." }
            }
        }
    }
}

/// Seconds that pass while somebody looks: whole, and coarser as they become many.
fn whole_seconds(since: u64) -> String {
    match since {
        since if since < 60 => format!("{since} s"),
        since => seconds((since / 60 * 60) as f64),
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
