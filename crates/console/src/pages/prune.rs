//! What a prune would delete. It deletes nothing.

use axum::extract::{Query, State};
use esker_server::admin::snapshots::PruneAnswer;
use maud::html;
use serde::Deserialize;
use serde_json::json;

use super::why::reason;
use crate::Console;
use crate::access::Viewer;
use crate::api_client::{DESCRIPTION_TIMEOUT, path};
use crate::layout::{
    LIST_BYTES, Page, PageError, Section, commands, fitting, page as layout, table,
};
use crate::words::{bytes, count, several, visible};

/// Objects that are listed.
const LISTED: usize = 200;

/// Which plan.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Which {
    partition: u64,
    /// How many of the newest snapshots stay.
    keep: String,
    /// Whether those of stale lineages go.
    abandoned: Option<String>,
}

/// The page.
pub async fn page(
    State(console): State<Console>,
    Viewer(caller): Viewer,
    Query(which): Query<Which>,
) -> Page {
    let partition = which.partition;
    let keep = match which.keep.trim() {
        "" => None,
        text => match text.parse::<u32>() {
            Ok(keep) if keep > 0 => Some(keep),
            _ => {
                return Err(PageError::Invalid(format!(
                    "{text} is no number of snapshots, from 1 on"
                )));
            }
        },
    };
    let abandoned = which.abandoned.is_some();
    let asked = json!({ "apply": false, "keep": keep, "abandoned": abandoned });
    let target = format!("/esker/v1/partitions/{partition}/prune");
    let repository = console.api.of_repository(DESCRIPTION_TIMEOUT);
    let plan = match repository.post(&caller, &target, &asked).await? {
        PruneAnswer::Plan(plan) => plan,
        PruneAnswer::Done(_) => {
            return Err(PageError::Invalid(
                "the server answered a plan with a deed".to_owned(),
            ));
        }
    };
    let mut command = format!("esker snapshot prune --partition {partition}");
    if let Some(keep) = keep {
        command += &format!(" --keep {keep}");
    }
    if abandoned {
        command += " --abandoned";
    }
    let listed = plan.objects.iter().take(LISTED);
    let (rows, shown) = fitting(listed, LIST_BYTES, |object| {
        let query = [
            ("partition", Some(partition.to_string())),
            ("key", Some(object.key.clone())),
        ];
        let query = query
            .each_ref()
            .map(|(name, value)| (*name, value.as_deref()));
        html! {
            tr {
                th scope="row" { a href=(path("/dashboard/why", &query)) { (visible(&object.key)) } }
                td.number { (bytes(object.size)) }
                td { (reason(&object.why)) }
            }
        }
    });
    let body = html! {
        p { a href=(path("/dashboard/snapshots", &[("partition", Some(&partition.to_string()))])) { "All snapshots of partition " (partition) } }
        form.find method="get" action="/dashboard/prune" {
            input type="hidden" name="partition" value=(partition);
            label for="keep" { "Keep this many of the newest snapshots (all, if empty)" }
            input id="keep" name="keep" inputmode="numeric" size="6" value=(which.keep);
            label { input type="checkbox" name="abandoned" checked[abandoned]; " release those of stale lineages" }
            button type="submit" { "Plan" }
        }
        p.figure { (several(plan.objects.len() as u64, "object")) ", " (bytes(plan.bytes)) " would be deleted" }
        p {
            (several(plan.retained as u64, "snapshot")) " stay retained; "
            (count(plan.young)) " orphans stay because they are too young. The plan holds while the root is at generation " (plan.generation) "."
        }
        @if !plan.released.is_empty() {
            h2 { "Released first" }
            ul { @for name in plan.released.iter().take(LISTED) { li { code { (name) } } } }
            @if plan.released.len() > LISTED { p { "and " (count((plan.released.len() - LISTED) as u64)) " more" } }
        }
        @if !plan.objects.is_empty() {
            h2 { "Deleted" }
            (table("Objects", &["Object", "#Size", "Why"], rows))
            @if plan.objects.len() > shown { p { "and " (several((plan.objects.len() - shown) as u64, "more object")) } }
        }
        (commands("On the command line", &[("shows the plan, and asks before it deletes", command)]))
    };
    let title = format!("Prune of partition {partition}");
    Ok(layout(&title, Section::Snapshots, &caller, body))
}
