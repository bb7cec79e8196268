//! `--once`: the state as of now, and a snapshot if one is due.

use std::time::Duration;

use esker_follow::{Snapshots, Status};

use super::following::{Following, remark};
use super::render::Output;
use super::report::{self, Document};
use super::stop::Stop;
use super::{interrupted, progress};
use crate::failure::Failure;
use crate::json;

/// How long a server may send nothing before the command gives up: `--once` may run unattended.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

pub async fn run(
    mut following: Following<'_>,
    wants_json: bool,
    stop: &mut Stop,
) -> Result<(), Failure> {
    if !following.catch_up(stop, Some(WAIT_TIMEOUT)).await? {
        return Err(interrupted());
    }
    let taken = if is_due(&following, &following.follower.status()) {
        let spinner = progress::spinner("taking a snapshot".to_owned());
        let taken = tokio::select! {
            taken = following.follower.snapshot() => taken,
            () = stop.asked() => return Err(interrupted()),
        };
        spinner.finish_and_clear();
        taken.map(drop).map_err(|e| following.failure(&e))
    } else {
        Ok(())
    };
    let view = following.follower.view().await;
    let view = view.map_err(|e| following.failure(&e))?;
    let status = following.follower.status();
    let restored = following.restored();
    if wants_json {
        let name = report::name(following.stream);
        let document = Document::new(&name, &status, restored, &view);
        return json::print_with(&document, taken);
    }
    Output::new().print(|out| view.state.state.lines(out))?;
    let state = view.state.state.summary();
    let took = following.caught_up_in;
    remark(&report::summary(
        following.stream,
        &status,
        restored,
        &state,
        took,
    ));
    // The state is printed even if the snapshot failed.
    taken
}

/// Whether a snapshot is to be taken before the end.
fn is_due(following: &Following<'_>, status: &Status) -> bool {
    let place = following.place;
    let records = status.since_snapshot;
    let by_records = place.every.is_some_and(|every| records >= every);
    let by_budget = match (place.budget, status.predicted_replay) {
        (Some(budget), Some(predicted)) => records > 0 && predicted > budget,
        _ => false,
    };
    !matches!(place.snapshots, Snapshots::None) && (by_records || by_budget)
}
