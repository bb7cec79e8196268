//! `esker status`: the positions of a server, how long a recovery would take, what would be lost, and what is
//! wrong.

use std::io::IsTerminal as _;
use std::time::Duration;

use esker_server::admin::status::{
    CopyKind, Partition, Predicted, Recovery, RoleName, Status, Wrong,
};

use crate::admin::Admin;
use crate::failure::Failure;
use crate::interrupts;
use crate::json;
use crate::output::print;
use crate::remote::{AccessArgs, Remote};
use crate::server_address::{DEFAULT_SERVER, SERVER_VARIABLE, ServerAddress};
use crate::snapshot_cmd::render::{print_json, table};
use crate::term::{Paint, ago, bytes, columns, count, kept_log, plain, took, wrapped};

/// Interval at which a watched status is shown.
const EVERY: Duration = Duration::from_secs(2);
/// Moves the cursor to the upper left corner and erases everything.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Show the state of a server: health, predicted recovery, what is at risk, problems.
///
/// Restart is how long a start would take after a crash of this moment, restore how long it would take
/// to bring everything back from the repository. At risk is what only this server's disk holds.
///
/// Exits with 1 if something needs action; advice is shown, and exits with 0.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker status
  esker status --watch
  esker status --json | jq '.problems[].code'")]
pub struct Args {
    /// Address of the server
    #[arg(
        long,
        env = SERVER_VARIABLE,
        hide_env_values = true,
        value_name = "URL",
        default_value = DEFAULT_SERVER
    )]
    server: ServerAddress,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    /// Show it again every two seconds, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

pub fn run(args: Args, access: &AccessArgs) -> Result<(), Failure> {
    // One thread is enough: a command does one thing at a time.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::wrong("io", format!("starting the runtime: {e}")))?;
    interrupts::run_following(runtime, "nothing was changed", args.watch, async {
        let admin = Admin::open(Remote::new(args.server, access)?).await?;
        let clears = args.watch && !args.json && std::io::stdout().is_terminal();
        loop {
            let status: Status = admin.get(&["status"], &[]).await?;
            if args.json && !args.watch {
                return json::print_with(&status, judge(&status));
            } else if args.json {
                print_json(&status)?;
            } else {
                let clear = if clears { CLEAR } else { "" };
                let page = page(&status, &admin.address().to_string(), Paint::stdout());
                print(format_args!("{clear}{}", page.trim_end()))?;
            }
            if !args.watch {
                return judge(&status);
            }
            tokio::time::sleep(EVERY).await;
        }
    })
}

/// A failure, if something needs action.
fn judge(status: &Status) -> Result<(), Failure> {
    let urgent: Vec<_> = status.problems.iter().filter(|p| !p.advice).collect();
    let what = match (urgent.as_slice(), &status.not_serving) {
        ([], None) => return Ok(()),
        (_, Some(why)) => format!("appends are not taken: {why}"),
        ([only], None) => format!("{} needs action", only.code),
        (several, None) => format!("{} problems need action", several.len()),
    };
    Err(Failure::wrong("unhealthy", what))
}

fn page(status: &Status, address: &str, paint: Paint) -> String {
    let mut text = format!("{}\n\n", health(status, address, paint));
    let log = format!(
        "{} of at most {}{}",
        bytes(status.log_bytes),
        bytes(status.max_log_bytes),
        kept_for_absent(status)
    );
    let mut facts = vec![
        ("restart", predicted(status.restart)),
        (
            "restore",
            format!(
                "{}, from {}",
                predicted(status.restore),
                plain(&status.repository)
            ),
        ),
        ("log", log),
    ];
    if let Some(recovery) = &status.recovery {
        facts.push(("last start", last_start(recovery)));
    }
    for (name, fact) in facts {
        text += &format!("{name:<10}  {fact}\n");
    }
    text.push('\n');
    let mut head = vec![
        "partition",
        "head",
        "last",
        "applied",
        "durable",
        "floor",
        "archived",
        "newest snapshot",
        "proven",
        "at risk",
    ];
    let mut rows: Vec<_> = status.partitions.iter().map(row).collect();
    let mut right = vec![0, 1, 2, 3, 4, 5, 6];
    if status.in_cluster {
        head.splice(1..1, ["role", "leader"]);
        for (row, one) in rows.iter_mut().zip(&status.partitions) {
            row.splice(1..1, [role(one.role).to_owned(), leader(one)]);
        }
        right = vec![0, 3, 4, 5, 6, 7, 8];
    }
    text += &table(&head, &rows, &right);
    for (title, advice) in [("What is wrong", false), ("Advice", true)] {
        let some: Vec<_> = status
            .problems
            .iter()
            .filter(|problem| problem.advice == advice)
            .collect();
        if !some.is_empty() {
            text += &format!("\n{}\n", paint.bold(title));
        }
        for problem in some {
            text += &shown(problem, paint);
        }
    }
    text
}

/// `; 1,204 entries (3.00 MiB) of it kept for nodes that are away`, if so.
fn kept_for_absent(status: &Status) -> String {
    let kept = status.partitions.iter();
    let kept: Vec<_> = kept
        .filter_map(|one| one.kept_for_absent.as_ref())
        .collect();
    if kept.is_empty() {
        return String::new();
    }
    let entries = kept.iter().map(|kept| kept.entries).sum();
    let in_bytes = kept.iter().map(|kept| kept.bytes).sum();
    let log = kept_log(entries, in_bytes);
    format!("; {log} of it kept for nodes that are away")
}

fn health(status: &Status, address: &str, paint: Paint) -> String {
    let urgent = status.problems.iter().filter(|p| !p.advice).count();
    let health = match (&status.not_serving, urgent) {
        (Some(why), _) => paint.red(format!("takes no appends: {}", plain(why))),
        (None, 0) => paint.green("healthy"),
        (None, 1) => paint.red("serves, and 1 problem needs action"),
        (None, n) => paint.red(format!("serves, and {n} problems need action")),
    };
    let who = format!(
        "node {} of cluster {} at {address}",
        status.node_id,
        plain(&status.cluster_name)
    );
    format!("{}: {health}", paint.bold(who))
}

/// `0.3 s`, `0.3 s (assumed)`.
fn predicted(predicted: Predicted) -> String {
    let time = took(seconds(predicted.seconds));
    match predicted.assumed {
        true => format!("{time} (assumed: this node has not measured it yet)"),
        false => time,
    }
}

fn last_start(recovery: &Recovery) -> String {
    let mut parts = vec![format!("took {}", took(seconds(recovery.total_seconds)))];
    let from = |kind| {
        let of = recovery.partitions.iter();
        of.filter(|one| one.source == kind).count()
    };
    for (number, what) in [
        (from(CopyKind::LocalSnapshot), "from a local snapshot"),
        (from(CopyKind::Repository), "from the repository"),
        (from(CopyKind::Log), "from the log alone"),
        (from(CopyKind::StateSnapshot), "from a state snapshot"),
    ] {
        match number {
            0 => {}
            1 => parts.push(format!("1 partition {what}")),
            n => parts.push(format!("{n} partitions {what}")),
        }
    }
    parts.push(match recovery.entries {
        0 => "nothing to replay".to_owned(),
        n => format!(
            "replayed {} in {}",
            entries(n),
            took(seconds(recovery.replay_seconds))
        ),
    });
    let lost = recovery.partitions.iter();
    let lost: Vec<_> = lost
        .filter_map(|one| one.lost_after.map(|lsn| (one, lsn)))
        .collect();
    for (one, lsn) in lost {
        let partition = one.partition;
        parts.push(match one.source {
            CopyKind::Empty => format!(
                "partition {partition} began a new lineage, empty: all that was in it is lost"
            ),
            _ => format!(
                "partition {partition} began a new lineage: what came after LSN {lsn} may be lost"
            ),
        });
    }
    if let Some(newer) = &recovery.newer_state {
        parts.push(format!(
            "{} has a newer state store than what was restored",
            plain(newer)
        ));
    }
    parts.join(", ")
}

fn role(role: RoleName) -> &'static str {
    match role {
        RoleName::Leader => "leader",
        RoleName::Follower => "follower",
        RoleName::Candidate => "candidate",
        RoleName::Learner => "learner",
    }
}

fn leader(one: &Partition) -> String {
    let leader = one.leader.as_ref();
    leader.map_or_else(|| "none known".to_owned(), |leader| plain(&leader.name))
}

fn row(one: &Partition) -> Vec<String> {
    let none = || "–".to_owned();
    let newest = one.newest.as_ref();
    let proven = one.proven.as_ref();
    let at_risk = match (one.entries_at_risk, one.seconds_at_risk) {
        (0, _) => "nothing".to_owned(),
        (n, s) => {
            let since = ago(Duration::from_secs(s));
            format!("{}, since {since}", entries(n))
        }
    };
    vec![
        one.partition.to_string(),
        one.log_head.to_string(),
        one.last.to_string(),
        one.applied.to_string(),
        one.durable.to_string(),
        one.floor.to_string(),
        one.archived.map_or_else(none, |lsn| lsn.to_string()),
        newest.map_or_else(none, |newest| {
            format!("{} at LSN {}", ago(seconds(newest.age_seconds)), newest.lsn)
        }),
        proven.map_or_else(none, |proven| format!("LSN {}", proven.lsn)),
        at_risk,
    ]
}

fn shown(problem: &Wrong, paint: Paint) -> String {
    let code = match problem.advice {
        true => problem.code.clone(),
        false => paint.red(&problem.code),
    };
    let about = match problem.partitions.as_slice() {
        [] => String::new(),
        [only] => format!(" of partition {only}"),
        several => format!(" of partitions {}", ranges(several)),
    };
    let columns = columns(std::io::stdout());
    let what = format!("  {code}{about}: {}", plain(&problem.what));
    let remedy = format!("    {}", plain(&problem.remedy));
    let (what, remedy) = (wrapped(&what, columns, 4), wrapped(&remedy, columns, 4));
    format!("{what}\n{}\n", paint.dim(remedy))
}

/// `1–8`, `0, 3–5`, for ascending numbers.
fn ranges(numbers: &[u64]) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let shown = runs.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}–{last}"),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// `1 entry`, `20,000 entries` of the log: records and operations on streams are entries.
fn entries(number: u64) -> String {
    match number {
        1 => "1 entry".to_owned(),
        n => format!("{} entries", count(n)),
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn partitions_in_a_row_are_a_range() {
        assert_eq!(ranges(&[1, 2, 3, 4, 5, 6, 7, 8]), "1–8");
        assert_eq!(ranges(&[0, 2, 3, 7, 8, 9]), "0, 2, 3, 7–9");
    }
}
