//! `esker state verify`.

use esker_proto::state::v1::VerifyRequest;
use serde_json::json;

use super::connection::State;
use crate::failure::Failure;
use crate::follow_cmd::progress::spinner;
use crate::json;
use crate::output::print;
use crate::term::{Paint, count, plain};

/// Prove that a snapshot and the commits after it give the live state.
///
/// The snapshot is read, what came after it is replayed, and the result is compared with the live state,
/// by digest. If they differ, it exits with 1.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker state verify
  esker state verify --at-snapshot 12000
  esker state verify --json | jq .differences")]
pub struct Args {
    /// The snapshot of this commit [default: the newest that can be used]
    #[arg(long, value_name = "COMMIT_TS")]
    at_snapshot: Option<u64>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(mut state: State, args: Args) -> Result<(), Failure> {
    let bar = spinner("folding and comparing".into());
    let request = VerifyRequest {
        commit_ts: args.at_snapshot,
    };
    let found = state.client.verify(request).await;
    bar.finish_and_clear();
    let found = found.map_err(|e| state.failure(&e))?.into_inner();
    let differs = !found.differences.is_empty() || found.folded_digest != found.live_digest;
    let result = match differs {
        false => Ok(()),
        true => Err(Failure::wrong(
            "state_differs",
            format!(
                "{} and the commits after it do not give the live state",
                plain(&found.snapshot)
            ),
        )
        .advise("export the live state with `esker state export`, and keep both")),
    };
    if args.json {
        let document = json!({
            "snapshot": found.snapshot,
            "snapshot_commit_ts": found.snapshot_commit_ts,
            "commit_ts": found.commit_ts,
            "replayed": found.replayed,
            "keys": found.keys,
            "folded_digest": found.folded_digest,
            "live_digest": found.live_digest,
            "differences": found.differences,
            "passed_over": found.passed_over,
        });
        json::print_line_with(&document, result)
    } else {
        let paint = Paint::stdout();
        for passed_over in &found.passed_over {
            print(format_args!(
                "{} {}",
                paint.red("cannot be used:"),
                plain(passed_over)
            ))?;
        }
        let verdict = match differs {
            false => paint.green("the same"),
            true => paint.red("not the same"),
        };
        print(format_args!(
            "{} and {} replayed {}, {} {}, as of commit {}: {verdict}\n\
             snapshot and replay  {}\n\
             live state           {}",
            plain(&found.snapshot),
            count(found.replayed),
            if found.replayed == 1 {
                "commit"
            } else {
                "commits"
            },
            count(found.keys),
            if found.keys == 1 { "key" } else { "keys" },
            found.commit_ts,
            found.folded_digest,
            found.live_digest
        ))?;
        for difference in &found.differences {
            print(format_args!("  {}", plain(difference)))?;
        }
        result
    }
}
