//! `esker state snapshot`.

use esker_proto::state::v1::{ListSnapshotsRequest, SnapshotInfo, SnapshotRequest};
use serde::Serialize;
use time::OffsetDateTime;

use super::connection::State;
use super::render;
use crate::failure::Failure;
use crate::output::print;
use crate::snapshot_cmd::render::table;
use crate::term::{bytes, count, plain, rfc3339, second};

/// Write a JSON snapshot now, or list those that there are.
///
/// The server writes one after every `state.snapshot-interval` commits. It is a file that people and
/// jq can read, in snapshots/ of the data directory, and in the repository if there is one.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker state snapshot
  esker state snapshot --list")]
pub struct Args {
    /// List the snapshots instead, newest first
    #[arg(long, short)]
    list: bool,

    /// Print JSON: one object, or one a line with --list
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    commit_ts: u64,
    /// `None` if it was not or could not be read.
    created_at: Option<String>,
    bytes: u64,
    keys: Option<u64>,
    lineage: &'a str,
    local: bool,
    archived: bool,
    problem: Option<&'a str>,
}

pub async fn run(mut state: State, args: Args) -> Result<(), Failure> {
    if args.list {
        return list(state, &args).await;
    }
    let made = state.client.snapshot(SnapshotRequest {}).await;
    let made = made.map_err(|e| state.failure(&e))?.into_inner();
    let Some(made) = made.snapshot else {
        return Err(Failure::wrong("server", "the server names no snapshot"));
    };
    if args.json {
        return print(line(&made)?);
    }
    let keys = match made.keys {
        Some(1) => "1 key, ".to_owned(),
        Some(keys) => format!("{} keys, ", count(keys)),
        None => String::new(),
    };
    print(format_args!(
        "{}: {keys}{}, up to commit {}",
        plain(&made.name),
        bytes(made.bytes),
        made.commit_ts
    ))
}

async fn list(mut state: State, args: &Args) -> Result<(), Failure> {
    let all = state.client.list_snapshots(ListSnapshotsRequest {}).await;
    let all = all.map_err(|e| state.failure(&e))?.into_inner().snapshots;
    if args.json {
        let lines = all.iter().map(line).collect::<Result<Vec<_>, _>>()?;
        return match lines.is_empty() {
            true => Ok(()),
            false => print(lines.join("\n")),
        };
    }
    if all.is_empty() {
        let remark = "There is no snapshot yet. `esker state snapshot` writes one.";
        remark!("{remark}");
        return Ok(());
    }
    let rows: Vec<_> = all.iter().map(row).collect();
    let head = ["SNAPSHOT", "COMMIT", "CREATED", "KEYS", "SIZE", "WHERE"];
    print(table(&head, &rows, &[1, 3, 4]).trim_end())
}

fn row(it: &SnapshotInfo) -> Vec<String> {
    let created = created_at(it).and_then(|at| i64::try_from(at).ok());
    let created = created.and_then(|it| OffsetDateTime::from_unix_timestamp(it).ok());
    let places: Vec<_> = [(it.local, "local"), (it.archived, "repository")]
        .into_iter()
        .filter_map(|(is_there, place)| is_there.then_some(place))
        .collect();
    let mut place = places.join(", ");
    if let Some(problem) = &it.problem {
        place += &format!("; cannot be used: {}", plain(problem));
    }
    vec![
        plain(&it.name),
        it.commit_ts.to_string(),
        created.map(second).unwrap_or_default(),
        it.keys.map(count).unwrap_or_default(),
        bytes(it.bytes),
        place,
    ]
}

/// When it was created, if that is known.
fn created_at(it: &SnapshotInfo) -> Option<u64> {
    Some(it.created_at).filter(|at| *at > 0)
}

fn line(it: &SnapshotInfo) -> Result<String, Failure> {
    render::line(&Shown {
        name: &it.name,
        commit_ts: it.commit_ts,
        created_at: created_at(it).and_then(|seconds| rfc3339(seconds.saturating_mul(1000))),
        bytes: it.bytes,
        keys: it.keys,
        lineage: &it.lineage,
        local: it.local,
        archived: it.archived,
        problem: it.problem.as_deref(),
    })
}
