//! `esker state keys`.

use std::io::{self, BufWriter, Write as _};

use esker_proto::state::v1::{ScanRequest, StateEntry};
use serde::Serialize;
use serde_json::value::RawValue;

use super::NamespaceArg;
use super::connection::State;
use super::render;
use crate::failure::Failure;
use crate::output::{Written, written};
use crate::term::{Paint, plain};

/// Keys per request.
const PAGE: u32 = 1000;

/// List the keys of an agent, in order: version, commit, name.
///
/// All are as of the same commit. Deleted ones are left out.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker state keys agent-1
  esker state keys agent-1 --prefix plan/ --at 12340
  esker state keys agent-1 --values --json | jq -c '{key, value}'")]
pub struct Args {
    /// The agent
    agent: String,

    #[command(flatten)]
    of: NamespaceArg,

    /// Only keys with this prefix
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    prefix: String,

    /// As they were after this commit
    #[arg(long, value_name = "COMMIT_TS")]
    at: Option<u64>,

    /// Print the values as well
    #[arg(long)]
    values: bool,

    /// Print one JSON object a line: key, version, commit_ts, and value with --values
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    key: &'a str,
    version: u64,
    commit_ts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Box<RawValue>>,
}

pub async fn run(mut state: State, args: Args) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut none = true;
    let mut page_token = String::new();
    loop {
        let request = ScanRequest {
            namespace: args.of.namespace.clone(),
            agent_id: args.agent.clone(),
            prefix: args.prefix.clone(),
            commit_ts: args.at,
            keys_only: !args.values,
            page_size: PAGE,
            page_token: std::mem::take(&mut page_token),
        };
        let messages = state.client.scan(request).await;
        let mut messages = messages.map_err(|e| state.failure(&e))?.into_inner();
        while let Some(message) = messages.message().await.map_err(|e| state.failure(&e))? {
            for entry in &message.entries {
                if none && !args.json {
                    written(writeln!(out, "{}", Paint::stdout().dim(HEAD)))?;
                }
                none = false;
                let line = row(entry, &args)?;
                if let Written::NobodyReads = written(writeln!(out, "{line}"))? {
                    return Ok(());
                }
            }
            page_token = message.next_page_token;
        }
        if page_token.is_empty() {
            break;
        }
    }
    written(out.flush())?;
    if none && !args.json {
        let (agent, namespace) = (plain(&args.agent), plain(&args.of.namespace));
        let remark = match args.prefix.as_str() {
            "" => format!("Agent `{agent}` in namespace `{namespace}` has no keys."),
            prefix => format!(
                "Agent `{agent}` in namespace `{namespace}` has no keys that begin with `{}`.",
                plain(prefix)
            ),
        };
        remark!("{remark}");
    }
    Ok(())
}

const HEAD: &str = "VERSION     COMMIT  KEY";

fn row(entry: &StateEntry, args: &Args) -> Result<String, Failure> {
    if args.json {
        return render::line(&Shown {
            key: &entry.key,
            version: entry.version,
            commit_ts: entry.commit_ts,
            value: render::raw(entry.value.as_ref())?,
        });
    }
    let (version, commit_ts, key) = (entry.version, entry.commit_ts, plain(&entry.key));
    let value = match &entry.value {
        Some(value) => format!("  {}", render::json(value)?),
        None => String::new(),
    };
    Ok(format!("{version:>7}  {commit_ts:>9}  {key}{value}"))
}
